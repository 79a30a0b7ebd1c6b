"""Replay of the documented streams: pinned numbers, a slow twin, and what each pattern promises."""

from __future__ import annotations

import numpy as np
import pytest

from resv_sim.validate import replay

CHANNEL = 2**31
MASK = 2**64 - 1


def naive_splitmix64(seed: int, n: int) -> list[int]:
    numbers, state = [], seed
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        numbers.append(z ^ (z >> 31))
    return numbers


@pytest.mark.parametrize("seed", [0, 1, 1001, 2**63])
def test_the_generator_is_splitmix64(seed: int) -> None:
    assert replay.splitmix64(seed, 50).tolist() == naive_splitmix64(seed, 50)


def test_the_first_numbers_of_seed_1() -> None:
    assert [hex(x) for x in replay.splitmix64(1, 2).tolist()] == ["0x910a2dec89025cc1", "0xbeeb8da1658eec67"]


def test_the_first_addresses_of_seed_1() -> None:
    assert replay.units("rand64", 64, 4, CHANNEL).address.tolist() == [x % 2**25 * 64 for x in naive_splitmix64(1, 4)]
    assert replay.units("rand64", 64, 3, CHANNEL).address.tolist() == [1083650112, 1673206208, 1284855680]
    assert replay.units("chunk", 4096, 3, CHANNEL).address.tolist() == [634130432, 1858498560, 626384896]
    assert replay.units("seq", 64, 3, CHANNEL).address.tolist() == [0, 64, 128]


def test_the_first_arrivals_and_writes_of_seed_1() -> None:
    assert replay.arrivals_ps(4, 1000.0, poisson=False).tolist() == [0, 1000, 2000, 3000]
    gaps = [-np.log(((x >> 11) + 1) / 2**53) * 1000 for x in naive_splitmix64(1001, 4)]
    assert replay.arrivals_ps(4, 1000.0, poisson=True).tolist() == [int(t) for t in np.cumsum(gaps)]
    uniform = [((x >> 11) + 1) / 2**53 for x in naive_splitmix64(2001, 256)]
    for pattern, share in (("mix70chunk", 0.3), ("mix90chunk", 0.1), ("mix90seq", 0.1), ("seq", 0.0), ("chunk", 0.0)):
        assert replay.units(pattern, 4096, 256, CHANNEL).is_write.tolist() == [u <= share for u in uniform]


def test_a_stride_goes_to_the_next_column_after_a_round() -> None:
    assert replay.units("stride", 256, 10, 1024).address.tolist() == [0, 256, 512, 768, 64, 320, 576, 832, 128, 384]


def test_mixed_sequential_reads_and_writes_walk_their_own_halves() -> None:
    stream = replay.units("mix90seq", 64, 1000, CHANNEL)
    reads, writes = stream.address[~stream.is_write], stream.address[stream.is_write]
    assert reads.tolist() == [64 * i for i in range(reads.size)]
    assert writes.tolist() == [CHANNEL // 2 + 64 * i for i in range(writes.size)]
    assert 60 < writes.size < 140


@pytest.mark.parametrize("pattern", ["seq", "rand64", "chunk", "stride", "mix90seq", "mix90chunk", "mix70chunk"])
def test_units_are_aligned_and_lie_in_the_memory(pattern: str) -> None:
    stream = replay.units(pattern, 1024, 5000, 1 << 20)
    assert stream.n_bytes == replay.unit_bytes(pattern, 1024)
    assert int(stream.address.min()) >= 0
    assert int(stream.address.max()) + stream.n_bytes <= 1 << 20
    assert not (stream.address % stream.n_bytes).any()
