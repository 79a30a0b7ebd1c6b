"""How much of the gain depends on the baseline's figures: V-Rex against three readings of each GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from resv.trace import StepKind
from resv_sim.plots.style import length_name, number
from resv_sim.reproduce.items import Findings, Table
from resv_sim.reproduce.speed import A100, AGX, OURS, SERVER
from resv_sim.reproduce.study import Outcome, Study

# Experiment, V-Rex, and three readings of its baseline: measured rates under the paper's software, which the figures
# are compared with; the paper's table taken at its word, its power drawn all the time; measured rates, compiled stack.
PAIRS = (
    ("fig13_edge", OURS, (AGX, "agx_orin_paper+full", "agx_orin+full")),
    ("fig13_server", SERVER, (A100, "a100_paper+full", "a100+full")),
)
STAGES: tuple[StepKind, ...] = ("frame", "decode")
EAGER_HOSTS_PS = (7_000_000, 25_500_000)  # the ends of what was measured (configs/platforms/a100_eager.yaml)


def readings(study: Study) -> Findings:
    """Speed-up and energy gain over each reading of both baselines, at every length, from the traced steps."""
    over = ("over eager", "over the table", "over measured")
    header = ("machine", "stage", "cache", *(f"speedup {o}" for o in over), *(f"energy gain {o}" for o in over))
    rows, notes = [], []
    for name, ours, bases in PAIRS:
        outcome = study.outcome(name)
        rows += list(_rows(outcome, ours, bases))
        notes.append(_in_words(outcome, ours, bases))
    server = study.outcome("fig13_server")
    notes += [_with_other_hosts(server), _with_pinned_memory(server)]
    return Findings(tables=(Table(header, tuple(rows)),), notes=tuple(notes))


def _rows(outcome: Outcome, ours: str, bases: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for stage in STAGES:
        for length in outcome.lengths:
            over = [gain(outcome, ours, base, stage, length) for base in bases]
            cells = map(number, (*(speed for speed, _ in over), *(energy for _, energy in over)))
            yield (ours.partition("+")[0], stage, length_name(length), *cells)


def gain(outcome: Outcome, ours: str, base: str, stage: StepKind, length: int) -> tuple[float, float]:
    """Speed-up and energy gain of one run over another."""
    mine, theirs = outcome.row(ours, stage, length), outcome.row(base, stage, length)
    return theirs.latency_s / mine.latency_s, theirs.energy_j / mine.energy_j


def _with_other_hosts(server: Outcome) -> str:
    """What the host of the A100 decides at the shortest cache: nobody says which host it was."""
    shortest = min(server.lengths)
    found = [
        f"{dispatch_ps / 1e6:.1f} us an operator: {_changed(server, shortest, dispatch_ps=dispatch_ps)}"
        for dispatch_ps in EAGER_HOSTS_PS
    ]
    return (
        f"A100 + FlexGen at {length_name(shortest)} by what an eager operator costs its host (V-Rex48's gain): "
        f"{'; '.join(found)}. A100s were measured at both ends; the platform takes "
        f"{server.experiment.platforms['a100_eager'].dispatch_ps / 1e6:.0f} us, the fit of the Orin scaled by bare "
        "launches (configs/platforms/a100_eager.yaml). V-Rex48's latencies and gains as published mean 52 and 39 ms."
    )


def _with_pinned_memory(server: Outcome) -> str:
    """What FlexGen's relay through the host decides where the fetch does."""
    longest = max(server.lengths)
    return (
        f"A100 + FlexGen at {length_name(longest)} with its cache in pinned memory, which FlexGen's code does without: "
        f"{_changed(server, longest, pageable=False)}; as it is: {_changed(server, longest)}."
    )


def _changed(server: Outcome, length: int, **fields: object) -> str:
    """Steps of the A100 with some fields changed, in words, and V-Rex48's gain over them."""
    a100 = server.experiment.platforms["a100_eager"].model_copy(update=fields)
    platforms = {**server.experiment.platforms, "a100_eager": a100}
    other = replace(server, experiment=server.experiment.model_copy(update={"platforms": platforms}))
    steps = {s: other.simulate(A100, server.points[A100, s, length].work).row.latency_s for s in STAGES}
    gains = {s: t / server.row(SERVER, s, length).latency_s for s, t in steps.items()}
    return ", ".join(f"{s} {1e3 * t:.1f} ms ({gains[s]:.1f}x)" for s, t in steps.items())


def _in_words(outcome: Outcome, ours: str, bases: Sequence[str]) -> str:
    longest, shortest = max(outcome.lengths), min(outcome.lengths)
    far = [gain(outcome, ours, base, "frame", longest) for base in bases]
    near = [gain(outcome, ours, base, "frame", shortest) for base in bases]
    machine, names = ours.partition("+")[0], [base.partition("+")[0] for base in bases]
    lost = 100 * (1 - far[2][1] / far[1][1])

    def listed(gains: Sequence[tuple[float, float]], i: int, digits: int) -> str:
        return ", ".join(f"{g[i]:.{digits}f}x over {name}" for g, name in zip(gains, names, strict=True))

    return (
        f"{machine}, frame stage at {length_name(longest)}: {listed(far, 0, 1)}; all wait for the link, the first for "
        f"what its software makes of it. Energy gain: {listed(far, 1, 1)}. {names[1]} draws the table's power all the "
        f"time, link and tier beside it; that of {names[2]} falls while it waits: {lost:.0f} % of the gain over the "
        "table is the baseline's power. At "
        f"{length_name(shortest)}: "
        f"{listed(near, 0, 2)}: the first two run eager PyTorch in FlexGen's loop, the last a compiled stack that "
        "fetches ahead."
    )
