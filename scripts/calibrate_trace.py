"""What ReSV does on a synthetic trace, beside what the paper measured on COIN.

    python scripts/calibrate_trace.py [--video FILE] [--fps N] [--layers 0,10,21,31 | all] [--set a.b=c ...]
    python scripts/calibrate_trace.py --layers all --markdown docs/validation.md --clip A.mp4 --clip B.mp4

The generator's defaults are set with this on the rendered video; a clip is reported as it comes out. `--set` tries a
field of `GeneratorConfig` without editing it. Takes about a second per layer; the two workloads share the weights.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from resv.attention import fidelity
from resv.hashing import cosine_hamming_correlation
from resv.policies import run_layer
from resv.policies.resv import ReSV
from resv.selection import LayerSelection
from resv.synthetic import GeneratorConfig, SyntheticTrace, build_trace
from resv.trace import LayerTrace, ModelShape
from resv.video import VideoConfig, stream_features
from resv.workload_plan import ProbeWorkload, SessionWorkload
from resv_sim.validate.report import check_section, replace_section

RECENT_TOKENS = 5_120  # assumed: the paper gives no size; 0.67 GB of Llama-3-8B keys and values
CORRELATION_LAYER = 3  # Fig. 7
ROOT = Path(__file__).parent.parent
Samples = dict[str, list[float]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="a video file instead of the rendered default")
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--loop", choices=("none", "pingpong"), default="none")
    parser.add_argument("--layers", default="0,3,8,14,20,26,31", help="comma-separated, or all")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a field of GeneratorConfig")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("session", "probes"))
    parser.add_argument("--markdown", type=Path, help="write the section 'The trace' into this file")
    parser.add_argument("--clip", type=Path, action="append", default=[], help="for --markdown: another column")
    return parser.parse_args()


def changed(settings: Iterable[str]) -> GeneratorConfig:
    plain = GeneratorConfig().model_dump()
    for setting in settings:
        path, _, value = setting.partition("=")
        *parents, name = path.split(".")
        node = plain
        for parent in parents:
            node = node[parent]
        node[name] = yaml.safe_load(value)
    return GeneratorConfig.model_validate(plain)


def ratio(selection: LayerSelection) -> float:
    """Share of the candidates that was selected."""
    return float(selection.selected_tokens.sum() / selection.candidate_tokens.sum())


def visited(selection: LayerSelection) -> float:
    """Share of a row's sorted scores up to the exit."""
    return selection.counts.selected_prefix_elements / selection.counts.score_elements


def mass_kept(layer: LayerTrace, probe: int, first: int, selection: LayerSelection) -> float:
    return float(
        fidelity(
            layer.queries[probe], layer.keys[:, :first], None, layer.step_keys[probe], None, selection.attended
        ).attention_mass_kept.mean()
    )


def adjacent_likeness(video: VideoConfig, tokens_per_frame: int) -> float:
    """Mean cosine of a token's centred features in adjacent frames, over the first 40 s."""
    x = stream_features(video, tokens_per_frame, round(40 * video.fps)).astype(np.float64)
    x -= x.mean(axis=(0, 1))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return float(np.sum(x[1:] * x[:-1], axis=-1).mean())


def measure(trace: SyntheticTrace, policy: ReSV, layers: Iterable[int], *, session: bool) -> dict[str, Samples]:
    """Per quantity, per layer: the values of all probes that it concerns. Quantities of probes name their length."""
    found: dict[str, Samples] = defaultdict(lambda: defaultdict(list))
    for index in layers:
        layer = trace.layer(index, values=False)
        selections = run_layer(policy, trace, layer)
        for p, (probe, selection) in enumerate(zip(trace.probes, selections, strict=True)):
            if not selection.candidate_tokens.any():
                continue  # nothing cached yet, or everything recent
            where = probe.kind if session else f"{probe.kind} at {probe.first_token}"
            found[f"{where}: selected"][str(index)].append(ratio(selection))
            found[f"{where}: scores visited"][str(index)].append(visited(selection))
            if not session or p % 5 == 0:
                found[f"{where}: mass kept"][str(index)].append(mass_kept(layer, p, probe.first_token, selection))
        table = selections[-1].tables[0]
        found["tokens per cluster at the end"][str(index)].append(trace.probes[-1].first_token / table.n_clusters)
        if index == CORRELATION_LAYER:
            flat = layer.keys.transpose(1, 0, 2).reshape(layer.keys.shape[1], -1)
            value = abs(cosine_hamming_correlation(flat, policy.hash_bits, seed=policy.seed))
            found["|cosine-Hamming correlation|, layer 3"][str(index)].append(value)
        print(".", end="", flush=True)
    print()
    return found


def show(title: str, found: dict[str, Samples], targets: dict[str, str]) -> None:
    print(f"\n{title:42s} {'measured':>9s}   layers min .. max   target")
    for name, by_layer in found.items():
        means = [float(np.mean(values)) for values in by_layer.values()]
        target = targets.get(name, "")
        print(f"{name:42s} {np.mean(means):9.3f}   {min(means):6.3f} .. {max(means):6.3f}   {target}")


SESSION_TARGETS = {
    "frame: selected": "0.25-0.36, mean 0.327; layers 0.042 .. 0.44 (Table II, Fig. 20)",
    "frame: scores visited": "0.16 mean (early exit)",
    "decode: selected": "0.014-0.029, mean 0.025 (Table II)",
    "|cosine-Hamming correlation|, layer 3": "0.8 (Fig. 7)",
}
PROBE_TARGETS = {
    "frame at 10000: selected": "0.30-0.35 (implied by the latencies)",
    "frame at 20000: selected": "0.20-0.25 (likewise)",
    "frame at 40000: selected": "0.14-0.15 (likewise)",
    "tokens per cluster at the end": "32 (section VI-F)",
    "|cosine-Hamming correlation|, layer 3": "0.8 (Fig. 7)",
}


INTRODUCTION = """## The trace

Written by `scripts/calibrate_trace.py --layers all --markdown docs/validation.md --clip ...`. What ReSV with its
defaults does on the synthetic Llama-3-8B stream, over all layers, KV heads and steps: mean, and the lowest and highest
layer. The generator's knobs are set on the rendered video and nothing else; the clips are reported as they come out
(sampled at 10 FPS; played to and fro for the lengths that they are too short for). Session: 26 frames, 25 question and
39 answer tokens, nothing offloaded, every cached token competes. Probes: 5,120 recent tokens are on the device and do
not compete. "Implied" targets follow from the published latencies if the link is the bottleneck."""


class Source(NamedTuple):
    """One column: what was measured on one video."""

    name: str
    likeness: float
    session: dict[str, Samples]
    probes: dict[str, Samples]


def measure_source(
    name: str, video: VideoConfig, shape: ModelShape, args: argparse.Namespace, layers: list[int]
) -> Source:
    """Both workloads on one video."""
    generator, session, probes = changed(args.set), {}, {}
    if args.only != "probes":
        trace = build_trace(shape, video, generator, SessionWorkload(), args.seed)
        session = measure(trace, ReSV(), layers, session=True)
    if args.only != "session":
        trace = build_trace(shape, video, generator, ProbeWorkload(stages=("frame", "decode")), args.seed)
        for reason in trace.skipped_lengths.values():
            print(reason)
        policy = ReSV(recent_bytes=RECENT_TOKENS * shape.kv_bytes_per_token, recent="exempt")
        probes = measure(trace, policy, layers, session=False)
    return Source(name, adjacent_likeness(video, shape.tokens_per_frame), session, probes)


def markdown(sources: list[Source]) -> str:
    """The section of docs/validation.md: a row per quantity, a column per video."""
    head = ["", "target", *(s.name for s in sources)]
    lines = [INTRODUCTION, "", row(head), row(["---"] * len(head))]
    lines.append(row(["feature cosine, adjacent frames", "", *(f"{s.likeness:.4f}" for s in sources)]))
    for title, part, targets in (("session", "session", SESSION_TARGETS), ("probes", "probes", PROBE_TARGETS)):
        for name in getattr(sources[0], part):
            cells = [summary(getattr(s, part).get(name)) for s in sources]
            lines.append(row([f"{title}: {name}".replace("|", ""), targets.get(name, ""), *cells]))
    return "\n".join([*lines, ""])


def summary(by_layer: Samples | None) -> str:
    if by_layer is None:
        return ""
    means = [float(np.mean(values)) for values in by_layer.values()]
    spread = f" ({min(means):.3g} .. {max(means):.3g})" if len(means) > 1 else ""
    return f"{np.mean(means):.3g}{spread}"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    args = parse()
    if args.markdown is not None:
        check_section(args.markdown, "the-trace")
    shape = ModelShape.model_validate(yaml.safe_load((ROOT / "configs/models/llama3_8b.yaml").read_text()))
    layers = list(range(shape.n_layers)) if args.layers == "all" else [int(x) for x in args.layers.split(",")]
    video = VideoConfig(file=args.video, fps=args.fps, loop=args.loop)
    first = measure_source(Path(args.video).stem if args.video else "rendered", video, shape, args, layers)
    print(f"{first.name} at {args.fps:g} FPS: adjacent frames have a feature cosine of {first.likeness:.4f}")
    show("session of COIN's mean lengths", first.session, SESSION_TARGETS)
    show(f"probes, {RECENT_TOKENS} recent tokens exempt", first.probes, PROBE_TARGETS)
    if args.markdown is not None:
        clips = [(c.stem, VideoConfig(file=str(c), fps=args.fps, loop="pingpong")) for c in args.clip]
        sources = [first, *(measure_source(name, clip, shape, args, layers) for name, clip in clips)]
        replace_section(args.markdown, "the-trace", markdown(sources))


if __name__ == "__main__":
    main()
