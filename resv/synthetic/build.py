"""One call from a video to a trace."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resv.synthetic.config import GeneratorConfig
from resv.synthetic.latents import frame_latents, text_latents
from resv.synthetic.stream import SyntheticTrace
from resv.trace import ModelShape
from resv.video import VideoConfig, stream_features
from resv.workload_plan import Workload, plan_steps

_TEXT_KEY = 13  # tells the draws of text latents from the other draws of a seed


def build_trace(
    shape: ModelShape,
    video: VideoConfig,
    generator: GeneratorConfig,
    workload: Workload,
    seed: int = 0,
    batch_index: int = 0,
) -> SyntheticTrace:
    """The trace of a workload on a video. Streams of a batch share the weights and differ in what they see.

    Probe lengths that the video is too short for are left out and stand, with the reason, in `skipped_lengths`.
    Raises `VideoError` where the video cannot be read, ValueError where a session does not fit into it.
    """
    per_frame = shape.tokens_per_frame
    features = stream_features(video, per_frame, workload.frames_needed(per_frame), batch_index)
    plan = plan_steps(workload, len(features), per_frame)
    latents = frame_latents(features, video.fps, generator.key.smoothing_s)
    n_features = features.shape[2]

    def text(n_tokens: int, place: int) -> NDArray[np.float32]:
        return text_latents(n_tokens, n_features, np.random.default_rng([seed, _TEXT_KEY, batch_index, place]))

    in_stream = text(sum(step.n_tokens for step in plan.steps if step.kind != "frame"), 0)
    return SyntheticTrace(
        shape=shape,
        steps=plan.steps,
        probes=plan.probes,
        generator=generator,
        seed=seed,
        latents=np.concatenate([latents, in_stream]),
        probe_latents={i: text(probe.n_tokens, i + 1) for i, probe in enumerate(plan.probes) if not probe.in_stream},
        batch_index=batch_index,
        source={
            "video": video.file or "rendered",
            "fps": video.fps,
            "loop": video.loop,
            "frames": len(features),
            "workload": workload.model_dump(mode="json"),
        },
        skipped_lengths=plan.skipped,
    )
