"""What a policy costs inside a model: its CPU time per frame as a share of the model's own forward.

    python scripts/bench_models.py [--tokens 10000] [--repeat 3] [--policy NAME ...]

The decoder has the shape of Qwen2-0.5B (LLaVA-OneVision-0.5B's) with random weights, 196 tokens a frame, float32 on one
thread. Its cache is filled with the generator's keys of the rendered video, which cluster as a video's do, rather than
with those of random weights. Each line is the median over frames of one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from resv.huggingface.attach import Attachment, attach
from resv.huggingface.stream import Landed, Stream
from resv.trace import KVTrace
from resv_sim.config import load_experiment
from resv_sim.streams import make_streams

# source: config.json of Qwen/Qwen2-0.5B-Instruct; the language model of LLaVA-OneVision-0.5B
QWEN2_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
TOKENS_PER_FRAME = 196  # LLaVA-OneVision's video frame
MARK = "resv"
POLICIES = ("resv", "topk", "rekv", "rekv_vrex", "infinigenp", "infllm", "quest", "oaken", "streamingllm")


def main() -> None:
    """Measure every policy on the same model and cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--policy", nargs="*", choices=POLICIES, default=POLICIES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(QWEN2_05B))
        length = f"workload.kv_lengths_tokens=[{arguments.tokens}]"
        settings = [f"model={folder}", f"model.tokens_per_frame={TOKENS_PER_FRAME}", length]
        experiment, _ = load_experiment("policies_compared.yaml", settings)
        trace = make_streams(experiment, lambda: None).traces[0]
    model = random_model()
    for name in arguments.policy:
        with attach(model, experiment.policies[name]) as attachment:
            share, forward_s = measured(attachment, trace, arguments.tokens, arguments.repeat)
        mark = "<= 10 %" if name == MARK else ""
        line = f"{name}, share of a frame's forward at {arguments.tokens} tokens"
        print(f"{line:<58} {100 * share:>14.1f} %   {mark:<8} forward {forward_s:.2f} s", flush=True)


def random_model() -> Any:
    """The decoder; weights say nothing here, so no checkpoint is needed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = {key: value for key, value in QWEN2_05B.items() if key not in ("model_type", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": QWEN2_05B["rope_theta"]}
    return Qwen2ForCausalLM(Qwen2Config(**config, rope_parameters=rope)).eval()


def measured(attachment: Attachment, trace: KVTrace, n_tokens: int, repeat: int) -> tuple[float, float]:
    """(share, seconds of the forward without the policy), medians over `repeat` frames after one to warm up."""
    stream = attachment.new_stream()
    stream.keep_selections = False
    fill(stream, trace, n_tokens)
    shares, forwards = [], []
    for _ in range(repeat + 1):
        before = stream.timing
        with stream.fork():
            stream.forward(torch.randn(1, TOKENS_PER_FRAME, attachment.shape.hidden), "frame")
            after = stream.timing
        added_s = after.policy_s - before.policy_s + after.predict_s - before.predict_s
        forwards.append(after.forward_s - before.forward_s - added_s)
        shares.append(added_s / forwards[-1])
    return statistics.median(shares[1:]), statistics.median(forwards[1:])


def fill(stream: Stream, trace: KVTrace, n_tokens: int) -> None:
    """Put the first tokens of a trace into the cache, as if their frames had run."""
    steps = [Landed(TOKENS_PER_FRAME, "frame")] * (n_tokens // TOKENS_PER_FRAME)
    n = TOKENS_PER_FRAME * len(steps)
    kept = []
    for layer in range(trace.shape.n_layers):
        arrays = trace.layer(layer)
        assert arrays.values is not None
        keys, values = (torch.from_numpy(array[None, :, :n]).clone() for array in (arrays.keys, arrays.values))
        stream.store.append(layer, keys, values)
        kept.append(keys.numpy())
    stream.adopt(steps, lambda layer, first, end: kept[layer][:, :, first:end])


if __name__ == "__main__":
    main()
