"""Training: what a step is, and a run of steps.

The data of a step is a pure function of (seed, step), and a part of a batch is computed by one thread alone, so a
resumed run repeats an uninterrupted one bit for bit on one machine, with any number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from resv.mini.checkpoint import Run
from resv.mini.model import TOKENS_PER_FRAME, MiniNetwork
from resv.mini.packing import Batch, make_batch, split
from resv.mini.recipe import TrainingConfig
from resv.mini.vocabulary import COUNT_0, COUNT_CAP, N_CELLS, QUESTION_TOKENS, TASK_0, TASKS

_ATTENTION = "resv_mini_training"
_ALIGN_SCALE = 10.0  # inverse temperature of the alignment; assumed, between CLIP's initial 14 and 1


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Masked attention in plain products: on a CPU in bfloat16 twice as fast as the fused kernel at these lengths."""
    n_streams, n_heads, n_tokens, head_dim = query.shape
    grouped = (query * scaling).reshape(n_streams, key.shape[1], -1, head_dim)  # query heads of a KV head are adjacent
    scores = (grouped @ key.transpose(-1, -2)).view(n_streams, n_heads, n_tokens, -1)
    share = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1).to(value.dtype)
    out = share.reshape(n_streams, key.shape[1], -1, n_tokens) @ value
    return out.view(n_streams, n_heads, n_tokens, head_dim).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@dataclass(frozen=True)
class StepResult:
    """Loss of a step, and the share of its answers and narrations that were right before its update."""

    step: int
    loss: float
    answers_right: float
    narration_right: float
    by_task: dict[str, float]


@dataclass(frozen=True)
class Outputs:
    """Logits of the answers (B, Q, V), of the narration (B, T, V), and of what cells recall (B, T, 9, V).

    content (B, T, 9, hidden) is what cells show, from the encoder alone.
    """

    answers: Tensor
    narration: Tensor
    recalled: Tensor
    content: Tensor


def forward(network: MiniNetwork, batch: Batch) -> Outputs:
    """One pass over a batch."""
    device = next(network.parameters()).device
    frames = torch.from_numpy(batch.frames).to(device)
    content = network.encoder.content(frames)
    tokens = (content + network.encoder.place).flatten(1, 2)
    words = network.llm.get_input_embeddings()(torch.from_numpy(batch.words).to(device))
    states = network.llm.model(
        inputs_embeds=torch.cat([tokens, words.to(tokens.dtype)], dim=1),
        attention_mask=torch.from_numpy(batch.visible).to(device)[:, None],
        position_ids=torch.from_numpy(batch.positions).to(device),
        use_cache=False,
    ).last_hidden_state
    slots = torch.from_numpy(batch.answer_slots).to(device)
    asked = states.gather(1, slots[:, :, None].expand(-1, -1, states.shape[-1]))
    frame_states = states[:, : tokens.shape[1]].unflatten(1, (-1, TOKENS_PER_FRAME))
    head = network.llm.lm_head
    return Outputs(
        answers=head(asked).float(),
        narration=head(frame_states[:, :, N_CELLS]).float(),
        recalled=head(frame_states[:, :, :N_CELLS]).float(),
        content=content[:, :, :N_CELLS],
    )


def _cross_entropy(logits: Tensor, target: np.ndarray[Any, Any]) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), torch.from_numpy(target).to(logits.device).flatten())


def _without_counts(logits: Tensor) -> Tensor:
    """The logits with those of the counts ruled out: a cell token tells a kind and a count, each among its like."""
    return torch.cat(
        [logits[..., :COUNT_0], torch.full_like(logits[..., COUNT_0:TASK_0], -1e4), logits[..., TASK_0:]], -1
    )


@dataclass(frozen=True)
class _ShardResult:
    gradients: tuple[Tensor, ...]
    loss: float
    answers_right: NDArray[np.bool_]  # (B, Q)
    narration_right: float


def _shard_step(network: MiniNetwork, config: TrainingConfig, batch: Batch) -> _ShardResult:
    """Losses of a part of a batch, and their gradients, in the order of the parameters."""
    device = next(network.parameters()).device
    # The cache of cast weights is shared by all threads: gradients would be added in an order that depends on luck.
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bfloat16, cache_enabled=False):
        outputs = forward(network, batch)
    words = functional.normalize(network.llm.model.embed_tokens.weight, dim=-1)
    counts = outputs.recalled[..., COUNT_0 : COUNT_0 + COUNT_CAP + 1]  # told apart from one another alone
    loss = (
        _cross_entropy(outputs.answers, batch.answers)
        + config.narration_weight * _cross_entropy(outputs.narration, batch.narration)
        + config.alignment_weight * _cross_entropy(_ALIGN_SCALE * outputs.content.float() @ words.T, batch.shown)
        + config.recall_weight * _cross_entropy(_without_counts(outputs.recalled), batch.recalled)
        + config.recall_weight * _cross_entropy(counts, batch.times)
    )
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    right = outputs.answers.argmax(-1).cpu().numpy() == batch.answers
    said = outputs.narration.argmax(-1).cpu().numpy() == batch.narration
    return _ShardResult(gradients, loss.item(), right, float(said.mean()))


def train_step(run: Run, batch: Batch, pool: ThreadPoolExecutor) -> StepResult:
    """One update. The parts of the batch run side by side; their gradients are added in a fixed order."""
    config, network = run.config, run.network
    for group in run.optimiser.param_groups:
        group["lr"] = config.rate(run.step)
    parts = list(pool.map(lambda part: _shard_step(network, config, part), split(batch, config.n_shards)))
    for index, parameter in enumerate(network.parameters()):
        total = parts[0].gradients[index]
        for part in parts[1:]:
            total = total + part.gradients[index]
        parameter.grad = total / len(parts)
    torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    run.optimiser.step()
    right = np.concatenate([part.answers_right for part in parts])
    first_word = batch.answer_slots - batch.frames.shape[1] * TOKENS_PER_FRAME - (QUESTION_TOKENS - 1)
    asked = np.take_along_axis(batch.words, first_word, axis=1) - TASK_0
    by_task = {task.value: float(right[asked == i].mean()) for i, task in enumerate(TASKS) if (asked == i).any()}
    return StepResult(
        step=run.step,
        loss=float(np.mean([part.loss for part in parts])),
        answers_right=float(right.mean()),
        narration_right=float(np.mean([part.narration_right for part in parts])),
        by_task=by_task,
    )


def _mean_point(results: list[StepResult]) -> dict[str, float]:
    """A point of the curve: means over some steps, named by the step they end at."""
    point: dict[str, float] = {"step": results[-1].step + 1}
    for name in ("loss", "answers_right", "narration_right"):
        point[name] = float(np.mean([getattr(result, name) for result in results]))
    for task in TASKS:
        values = [result.by_task[task.value] for result in results if task.value in result.by_task]
        if values:
            point[task.value] = float(np.mean(values))
    return point


def train(run: Run, n_threads: int = 4, every: int = 100) -> Iterator[dict[str, float]]:
    """Train to the end of the recipe, stopping for the caller after every `every` steps with a new point of the curve.

    The caller may save the run at a stop, and abandon it there. The next batch is made while a step runs. How many
    threads there are changes the time it takes and nothing else.
    """
    device = next(run.network.parameters()).device
    run.network.train()
    run.network.llm.set_attn_implementation(_ATTENTION if device.type == "cpu" else "sdpa")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads share a batch, not a product: they wait for each other once a step
    pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
    ahead = ThreadPoolExecutor(1)
    try:
        coming = ahead.submit(make_batch, run.config, run.step)
        results: list[StepResult] = []
        while run.step < run.config.steps:
            began_s = time.perf_counter()
            batch = coming.result()
            coming = ahead.submit(make_batch, run.config, run.step + 1)
            results.append(train_step(run, batch, pool))
            run.step += 1
            run.seconds += time.perf_counter() - began_s
            if run.step % every == 0 or run.step == run.config.steps:
                run.curve.append(_mean_point(results))
                results = []
                yield run.curve[-1]
    finally:
        pool.shutdown()
        ahead.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
