"""What the paper says of the order of systems, checked at every length: holds, or does not and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from resv_sim.plots.style import length_name
from resv_sim.reproduce.items import Statement, not_run
from resv_sim.reproduce.study import Outcome

AGX = "agx_orin_eager"
# Policies as AGX Orin runs them in Figs. 13 and 14, with the paper's names.
RIVALS = {"InfiniGen": "infinigen", "InfiniGenP": "infinigenp", "ReKV": "rekv_vrex"}
REAL_TIME_FPS = 2  # source: the rate at which the streaming model was trained
Seconds = Callable[[str, int], float]


def ordering(
    text: str,
    outcome: Outcome,
    policies: Sequence[str],
    lengths: Sequence[int],
    holds: Callable[[str, int], bool],
) -> Statement:
    """Whether `holds` at every length for every policy on the published AGX Orin; where it does not is named."""
    labels = {policy: f"{AGX}+{policy}" for policy in policies}
    absent = [policy for policy, label in labels.items() if (label, "frame", lengths[0]) not in outcome.points]
    if absent:
        return Statement(text, "open", ", ".join(map(not_run, absent)))
    broken = [
        f"{policy} at {length_name(n)}" for policy, label in labels.items() for n in lengths if not holds(label, n)
    ]
    return Statement(text, "does not hold" if broken else "holds", "; ".join(broken))


def chain(text: str, values: Mapping[str, float]) -> Statement:
    """Whether each value is above the one before; the values are named where not."""
    holds = all(a < b for a, b in pairwise(values.values()))
    detail = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    return Statement(text, "holds" if holds else "does not hold", "" if holds else detail)


def frame_orderings(edge: Outcome, base: str, ours: str) -> tuple[Statement, ...]:
    """Fig. 13: frame latency of the systems on AGX Orin against each other, V-Rex8 and real time."""

    def seconds(label: str, length: int) -> float:
        return edge.row(label, "frame", length).latency_s

    def check(text: str, names: Sequence[str], lengths: Sequence[int], holds: Callable[[str, int], bool]) -> Statement:
        return ordering(text, edge, [RIVALS[name] for name in names], lengths, holds)

    return (
        check(
            "AGX + InfiniGen is slower than AGX + FlexGen until the longest caches (frame)",
            ("InfiniGen",),
            edge.lengths[:-1],
            lambda label, n: seconds(label, n) > seconds(base, n),
        ),
        check(
            "AGX + InfiniGenP is slower than AGX + FlexGen until the longest caches (frame)",
            ("InfiniGenP",),
            edge.lengths[:-1],
            lambda label, n: seconds(label, n) > seconds(base, n),
        ),
        check(
            "AGX + ReKV is modestly faster than AGX + FlexGen (frame)",
            ("ReKV",),
            edge.lengths,
            lambda label, n: seconds(label, n) < seconds(base, n),
        ),
        check(
            "V-Rex8 is faster than every system on AGX Orin at every length (frame)",
            tuple(RIVALS),
            edge.lengths,
            lambda label, n: seconds(ours, n) < min(seconds(label, n), seconds(base, n)),
        ),
        _real_time(edge),
    )


def session_orderings(edge: Outcome, base: str, seconds: Seconds) -> tuple[Statement, ...]:
    """Fig. 14: whole sessions against FlexGen."""
    lengths = [length for length in edge.lengths if length <= 20_000]
    return tuple(
        ordering(
            f"{name} on AGX Orin is slower than FlexGen end to end from 1K to 20K",
            edge,
            (RIVALS[name],),
            lengths,
            lambda label, n: seconds(label, n) > seconds(base, n),
        )
        for name in ("InfiniGenP", "ReKV")
    )


def _real_time(edge: Outcome) -> Statement:
    """'The longer lengths' are read as 20K and 40K; the machines as measured are no set-up of the paper."""
    fast = [
        f"{r.policy} at {length_name(r.kv_len_tokens)}: {r.fps:.1f}/s"
        for r in edge.result.rows
        if r.platform == AGX and r.policy != "oaken" and r.kv_len_tokens >= 20_000 and (r.fps or 0) >= REAL_TIME_FPS
    ]
    return Statement(
        f"no AGX set-up is real time ({REAL_TIME_FPS} frames per second) at the longer lengths (20K, 40K)",
        "does not hold" if fast else "holds",
        "; ".join(fast),
    )
