"""What a stream has taken so far: time, and bytes by the policy's own rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamTiming:
    """Wall-clock time of a stream's steps.

    forward_s : whole steps, everything below included
    policy_s : inside the policies' select, observe, append and read_back
    predict_s : making the queries that predict the next layer's
    """

    n_steps: int = 0
    forward_s: float = 0.0
    policy_s: float = 0.0
    predict_s: float = 0.0

    @property
    def policy_share(self) -> float:
        """What the policy adds / the rest of the forward passes; 0 where nothing ran."""
        added_s = self.policy_s + self.predict_s
        model_s = self.forward_s - added_s
        return added_s / model_s if model_s > 0 else 0.0


@dataclass(frozen=True)
class StreamBytes:
    """Keys and values of one batch item, all layers, as the policy accounts for them.

    resident, offloaded, evicted : where the tokens are now;  appended = their sum
    hit, fetched : attended to so far, on the device and from the tier below; counted while `keep_selections` is set
    """

    resident_bytes: int
    offloaded_bytes: int
    evicted_bytes: int
    hit_bytes: int
    fetched_bytes: int

    @property
    def appended_bytes(self) -> int:
        return self.resident_bytes + self.offloaded_bytes + self.evicted_bytes
