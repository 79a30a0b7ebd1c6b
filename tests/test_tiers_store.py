"""Three tiers against a store that keeps everything, byte accounts, copies, prefetching, capacities."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resv.huggingface.store import MemoryStore
from resv.policies import POLICIES
from resv.tiers.config import Tiers
from resv.tiers.errors import DeviceFullError, DiskFullError, HostFullError, TierError
from resv.tiers.layout import StepNote
from resv.tiers.locks import temporary_root
from resv.tiers.slab import Slab
from resv.tiers.store import TieredStore
from resv.trace import ModelShape

SHAPE = ModelShape(
    name="small", n_layers=2, hidden=16, n_query_heads=4, n_kv_heads=2, head_dim=4, ffn=16, vocab=16, kv_bits=32
)
CPU = torch.device("cpu")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOKEN = SHAPE.kv_bytes_per_token  # of one batch item


def tiered(tiers: Tiers | None = None, batch: int = 1, dtype: torch.dtype = torch.float32) -> TieredStore:
    return TieredStore(SHAPE, batch, CPU, dtype, tiers)


def step(generator: torch.Generator, n: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Keys and values of every layer, (L, B, H, n, D) each."""
    shape = (SHAPE.n_layers, batch, SHAPE.n_kv_heads, n, SHAPE.head_dim)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def add(store: TieredStore | MemoryStore, keys: Tensor, values: Tensor) -> None:
    for layer in range(SHAPE.n_layers):
        store.append(layer, keys[layer], values[layer])


def window(store: TieredStore, n: int, batch: int = 1) -> None:
    """The last `n` tokens are resident."""
    resident = torch.zeros((batch, SHAPE.n_kv_heads, store.n_tokens), dtype=torch.bool)
    resident[..., max(0, store.n_tokens - n) :] = True
    for layer in range(SHAPE.n_layers):
        store.place(layer, resident, None)


def filled(tiers: Tiers, n_steps: int = 6, n: int = 4, keep: int = 4) -> tuple[TieredStore, MemoryStore]:
    """Steps of `n` tokens of which the last `keep` tokens stay on the device, and the same without tiers."""
    generator = torch.Generator().manual_seed(0)
    store, plain = tiered(tiers), MemoryStore(SHAPE, 1, CPU, torch.float32)
    for _ in range(n_steps):
        made = step(generator, n)
        add(store, *made)
        add(plain, *made)
        window(store, keep)
    return store, plain


def chosen(*tokens: int) -> Tensor:
    """(1, H, m): the same tokens in every head"""
    return torch.tensor(tokens)[None, None].expand(1, SHAPE.n_kv_heads, -1).contiguous()


def assert_same(got: tuple[Tensor, Tensor], ref: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(got, ref, strict=True):
        assert torch.equal(a, b)


TIERS = [
    Tiers(),
    Tiers(host_bytes=6 * TOKEN, disk=True),
    Tiers(host_bytes=0, disk=True),
    Tiers(host_bytes=6 * TOKEN, disk=True, copies_bytes=5 * TOKEN),
    Tiers(device_bytes=12 * TOKEN, host_bytes=4 * TOKEN, disk=True, copies_bytes=8 * TOKEN),
]


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_what_comes_out_is_what_went_in(tiers: Tiers, dtype: torch.dtype, device: str) -> None:
    generator, rng, batch = torch.Generator().manual_seed(1), np.random.default_rng(1), 3
    where = torch.device(device)
    store, plain = TieredStore(SHAPE, batch, where, dtype, tiers), MemoryStore(SHAPE, batch, where, dtype)
    for n in (1, 3, 2, 3, 1, 2):
        made = [x.to(where) for x in step(generator, n, batch, dtype)]
        add(store, *made)
        add(plain, *made)
        lanes = (batch, SHAPE.n_kv_heads)
        resident = torch.from_numpy(rng.random((*lanes, store.n_tokens)) < 0.2)
        indices = np.full((*lanes, 4), -1)
        for lane in np.ndindex(lanes):
            picked = np.sort(rng.choice(store.n_tokens, min(store.n_tokens, int(rng.integers(5))), replace=False))
            indices[lane][: len(picked)] = picked
        wanted = torch.from_numpy(indices)
        for layer in range(SHAPE.n_layers):
            store.place(layer, resident, None)
            assert_same(store.full(layer), plain.full(layer))
            if rng.random() < 0.5:
                store.prefetch(layer, wanted)
            mask = (wanted >= 0)[..., None].to(where)
            got, ref = store.gather(layer, wanted), plain.gather(layer, wanted)
            assert_same((got[0] * mask, got[1] * mask), (ref[0] * mask, ref[1] * mask))
    store.close()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_bytes_are_conserved_and_limits_are_kept(data: st.DataObject) -> None:
    limits = Tiers(
        device_bytes=16 * TOKEN,
        host_bytes=data.draw(st.integers(0, 8)) * TOKEN,
        copies_bytes=data.draw(st.integers(0, 8)) * TOKEN,
        disk=True,
    )
    generator, store = torch.Generator().manual_seed(2), tiered(limits)
    evicted = torch.zeros((1, 2, 0), dtype=torch.bool)
    for _ in range(data.draw(st.integers(1, 8))):
        n = data.draw(st.integers(1, 4))
        add(store, *step(generator, n))
        evicted = torch.cat([evicted, torch.zeros((1, 2, n), dtype=torch.bool)], dim=-1)
        evicted[..., : data.draw(st.integers(0, store.n_tokens - 1))] |= data.draw(st.booleans())
        window(store, data.draw(st.integers(0, 6)))
        for layer in range(SHAPE.n_layers):
            store.place(layer, torch.ones_like(evicted), evicted)
        alive = np.flatnonzero(~evicted[0, 0].numpy())
        store.gather(0, chosen(*alive[:: data.draw(st.integers(1, 3))].tolist()))
        size = store.size()
        assert size.device_bytes + size.host_bytes + size.disk_bytes == len(alive) * TOKEN
        assert size.device_bytes + store.copies_bytes <= limits.device_bytes
        assert store.copies_bytes <= limits.copies_bytes
        assert size.host_bytes <= limits.host_bytes
        assert store.file_bytes == store.n_tokens * TOKEN
    store.close()


def test_the_newest_of_what_leaves_the_device_stays_on_the_host() -> None:
    store, _ = filled(Tiers(host_bytes=8 * TOKEN, disk=True))
    size = store.size()
    assert (size.device_bytes, size.host_bytes, size.disk_bytes) == (4 * TOKEN, 8 * TOKEN, 12 * TOKEN)
    assert size.spilled_bytes == 20 * TOKEN
    store.gather(0, chosen(11, 12, 19, 20))  # the disk's last, the host's first and last, one on the device
    assert store.size().fetched_bytes == 3 * TOKEN // SHAPE.n_layers
    store.close()


def test_copies_save_the_second_fetch_and_the_least_recently_used_step_leaves_first() -> None:
    per_layer = TOKEN // SHAPE.n_layers
    store, plain = filled(Tiers(host_bytes=0, disk=True, copies_bytes=SHAPE.n_layers * 4 * per_layer))

    def fetched(*tokens: int) -> int:
        before = store.size().fetched_bytes
        assert_same(store.gather(0, chosen(*tokens)), plain.gather(0, chosen(*tokens)))
        return (store.size().fetched_bytes - before) // per_layer

    assert fetched(0, 1) == 2  # step 0
    assert fetched(4, 5) == 2  # step 1
    assert fetched(0, 1) == 0  # used again: step 1 is the older one now
    assert fetched(8) == 1  # step 2 needs room
    assert fetched(0, 1) == 0
    assert fetched(4, 5) == 2
    assert fetched(*range(16)) == 12  # more than there is room for: the newest steps stay
    assert fetched(12, 13, 14, 15) == 0
    store.close()


def test_full_passes_the_copies_by() -> None:
    store, _ = filled(Tiers(host_bytes=0, disk=True, copies_bytes=4 * TOKEN))
    store.full(0)
    assert store.copies_bytes == 0
    assert store.size().fetched_bytes == 20 * TOKEN // SHAPE.n_layers
    store.close()


def test_homes_come_before_copies_where_the_device_is_small() -> None:
    store, _ = filled(Tiers(device_bytes=10 * TOKEN, copies_bytes=6 * TOKEN, host_bytes=0, disk=True))
    for layer in range(SHAPE.n_layers):
        store.gather(layer, chosen(0, 1, 2, 3, 4, 5))
    assert store.copies_bytes == 6 * TOKEN
    add(store, *step(torch.Generator().manual_seed(3), 4))
    assert store.copies_bytes <= 2 * TOKEN
    assert store.size().device_bytes == 8 * TOKEN
    store.close()


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
def test_a_prefetch_changes_neither_result_nor_accounts(monkeypatch: pytest.MonkeyPatch, delay_s: float) -> None:
    tiers = Tiers(host_bytes=4 * TOKEN, disk=True, copies_bytes=3 * TOKEN)
    store, plain = filled(tiers)
    without, _ = filled(tiers)
    read = store._read

    def slow(layer: int, lanes: np.ndarray, tokens: np.ndarray) -> Tensor:
        time.sleep(delay_s)
        return read(layer, lanes, tokens)

    monkeypatch.setattr(store._prefetcher, "_read", slow)
    for hinted, wanted in (((0, 1, 5, 13), (0, 5, 13)), ((2, 3), (2, 7)), ((1,), (20,)), ((9, 10), (1, 9, 10))):
        store.prefetch(1, chosen(*hinted))
        assert_same(store.gather(1, chosen(*wanted)), plain.gather(1, chosen(*wanted)))
        without.gather(1, chosen(*wanted))
        assert store.size() == without.size()
        assert store.copies_bytes == without.copies_bytes
    store.prefetch(0, chosen(0, 1))
    window(store, 2)  # what is being read is not moved meanwhile
    assert_same(store.gather(0, chosen(0, 1)), plain.gather(0, chosen(0, 1)))
    store.close()
    without.close()


def test_a_prefetch_reads_on_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    store, _ = filled(Tiers(host_bytes=0, disk=True))
    read, threads = store._read, []

    def noted(layer: int, lanes: np.ndarray, tokens: np.ndarray) -> Tensor:
        threads.append(threading.current_thread().name)
        return read(layer, lanes, tokens)

    monkeypatch.setattr(store._prefetcher, "_read", noted)
    store.prefetch(0, chosen(0, 1))
    store.gather(0, chosen(0, 1))
    store.gather(0, chosen(2))
    assert threads[0].startswith("kv-prefetch")
    assert threads[1] == threading.current_thread().name
    store.close()


def test_an_error_of_a_prefetch_is_raised_where_the_rows_are_asked_for() -> None:
    store, _ = filled(Tiers(host_bytes=0, disk=True))
    evicted = torch.zeros((1, 2, store.n_tokens), dtype=torch.bool)
    evicted[..., 0] = True
    store.place(0, torch.ones_like(evicted), evicted)
    store.prefetch(0, chosen(0))
    with pytest.raises(TierError, match="token 0 of layer 0 was evicted for good"):
        store.gather(0, chosen(0))
    store.close()


def test_tokens_taken_back_are_gone_from_every_tier() -> None:
    store, plain = filled(Tiers(host_bytes=4 * TOKEN, disk=True, copies_bytes=4 * TOKEN))
    generator = torch.Generator().manual_seed(5)
    store.announce(StepNote("question"))
    add(store, *step(generator, 3))
    store.announce(StepNote("decode"))
    add(store, *step(generator, 1))
    before = store.size()
    store.gather(0, chosen(0, 25))
    store.truncate(24)
    assert store.n_tokens == 24
    assert store.size().device_bytes == before.device_bytes - 4 * TOKEN
    assert_same(store.full(1), plain.full(1))
    with pytest.raises(ValueError, match="token 24 was asked for in layer 0, which has 24"):
        store.gather(0, chosen(24))
    store.truncate(8)  # frames, which the disk tier has: they are taken back there too
    assert store.file_bytes == 8 * TOKEN
    made = step(generator, 4)
    add(store, *made)
    assert torch.equal(store.full(1)[0][:, :, 8:], made[0][1])
    store.close()


def test_what_was_announced_of_a_step_taken_back_is_forgotten() -> None:
    store, _ = filled(Tiers(host_bytes=0, disk=True))
    store.announce(StepNote("question"))
    store.truncate(store.n_tokens)
    add(store, *step(torch.Generator().manual_seed(6), 4))
    assert [record.kind for record in store.records] == ["frame"] * 7
    store.close()


def test_text_reaches_the_folder_with_the_next_frame_and_is_read_as_it_was(tmp_path: Path) -> None:
    generator, batch = torch.Generator().manual_seed(7), 2
    tiers = Tiers(folder=tmp_path, host_bytes=4 * TOKEN)
    store, plain = tiered(tiers, batch), MemoryStore(SHAPE, batch, CPU, torch.float32)
    for kind, n in (("frame", 4), ("question", 3), ("decode", 1), ("frame", 4)):
        made = step(generator, n, batch)
        store.announce(StepNote(kind))
        add(store, *made)
        add(plain, *made)
        window(store, 2, batch)  # of the question one token is on the host and two are on the device
        assert store.file_bytes == (4 if kind in ("question", "decode") else store.n_tokens) * batch * TOKEN
    assert [(record.kind, record.n_tokens) for record in store.records] == [
        ("frame", 4),
        ("question", 3),
        ("decode", 1),
        ("frame", 4),
    ]
    store.close()
    read = tiered(tiers.model_copy(update={"read_only": True}), batch)
    for layer in range(SHAPE.n_layers):
        assert_same(read.full(layer), plain.full(layer))
        assert torch.equal(read.keys(layer, 3, 9), plain.full(layer)[0][:, :, 3:9])
    read.close()


def test_a_reader_looks_again_only_after_its_own_tokens_were_taken_back(tmp_path: Path) -> None:
    generator, tiers = torch.Generator().manual_seed(10), Tiers(folder=tmp_path)
    writer = tiered(tiers)
    add(writer, *step(generator, 4))
    reader = tiered(tiers.model_copy(update={"read_only": True}))
    add(reader, *step(generator, 3))
    made = step(generator, 4)
    add(writer, *made)
    with pytest.raises(TierError, match="3 tokens were added to a folder that is read only: take them back first"):
        reader.refresh()
    reader.truncate(4)
    assert reader.refresh() == 4
    assert torch.equal(reader.full(1)[1][:, :, 4:], made[1][1])
    with pytest.raises(TierError, match="read only cannot forget: it holds 8 tokens"):
        reader.truncate(7)
    writer.close()
    reader.close()


def test_of_text_taken_back_in_part_the_rest_reaches_the_folder(tmp_path: Path) -> None:
    generator, tiers = torch.Generator().manual_seed(9), Tiers(folder=tmp_path)
    store, plain = tiered(tiers), MemoryStore(SHAPE, 1, CPU, torch.float32)
    for kind, n, kept in (("frame", 4, 4), ("question", 3, 7), ("decode", 2, 6), ("frame", 4, 10)):
        made = step(generator, n)
        store.announce(StepNote(kind))
        for one in (store, plain):
            add(one, *made)
            one.truncate(kept)
    assert [(record.kind, record.n_tokens) for record in store.records] == [("frame", 4), ("question", 2), ("frame", 4)]
    store.close()
    read = tiered(tiers.model_copy(update={"read_only": True}))
    for layer in range(SHAPE.n_layers):
        assert_same(read.full(layer), plain.full(layer))
    read.close()


def test_what_comes_home_from_host_and_disk_leaves_again_like_anything_else() -> None:
    tiers = Tiers(device_bytes=16 * TOKEN, host_bytes=8 * TOKEN, disk=True)
    store, plain = filled(tiers)
    resident = torch.zeros((1, SHAPE.n_kv_heads, 24), dtype=torch.bool)
    resident[..., [0, 13, 14, 22]] = True  # on the disk, twice on the host, on the device
    for layer in range(SHAPE.n_layers):
        store.restore(layer, resident)
    size = store.size()
    assert (size.device_bytes, size.host_bytes, size.disk_bytes) == (7 * TOKEN, 6 * TOKEN, 11 * TOKEN)
    generator = torch.Generator().manual_seed(8)
    for _ in range(3):
        made = step(generator, 4)
        add(store, *made)
        add(plain, *made)
        window(store, 4)
        for layer in range(SHAPE.n_layers):
            assert_same(store.full(layer), plain.full(layer))
    size = store.size()
    assert (size.device_bytes, size.host_bytes, size.disk_bytes) == (4 * TOKEN, 8 * TOKEN, 24 * TOKEN)
    store.close()


def test_a_buffer_grows_ahead_of_need_but_past_its_limit_only_as_far_as_needed() -> None:
    slab, sizes = Slab(4, CPU, torch.float32, limit=400), []
    for n in (10, 246, 4, 140, 20):
        slab.put(torch.zeros(n, 2, 4))
        sizes.append(len(slab._rows))
    assert slab.used == 420
    assert sizes == [256, 256, 384, 400, 420]


def test_out_of_device_capacity_is_said_before_anything_happens() -> None:
    store = tiered(Tiers(device_bytes=10 * TOKEN))
    generator = torch.Generator().manual_seed(0)
    add(store, *step(generator, 4))
    add(store, *step(generator, 4))
    with pytest.raises(DeviceFullError, match=r"out of device capacity in layer 0.*recent_bytes") as caught:
        add(store, *step(generator, 4))
    assert str(10 * TOKEN) in str(caught.value)
    assert store.n_tokens == 8
    window(store, 4)
    add(store, *step(generator, 4))
    assert store.n_tokens == 12
    store.close()


def test_a_full_host_without_a_disk_is_said_at_the_next_step() -> None:
    store, plain = filled(Tiers(host_bytes=6 * TOKEN), n_steps=2)
    generator = torch.Generator().manual_seed(0)
    add(store, *step(generator, 4))
    window(store, 4)
    with pytest.raises(HostFullError, match="the host tier is full in layer 0"):
        add(store, *step(generator, 4))
    assert store.size().host_bytes <= 6 * TOKEN
    assert_same((store.full(0)[0][:, :, :8], store.full(0)[1][:, :, :8]), plain.full(0))
    store.close()


def test_a_full_disk_ends_the_step_and_nothing_else() -> None:
    store, plain = filled(Tiers(host_bytes=0, disk=True, disk_bytes=25 * TOKEN))
    with pytest.raises(DiskFullError, match=r"step 6 takes .* the 6 steps before it, which are kept"):
        add(store, *step(torch.Generator().manual_seed(0), 4))
    assert store.n_tokens == 24
    for layer in range(SHAPE.n_layers):
        assert_same(store.full(layer), plain.full(layer))
    store.close()


def test_a_temporary_tier_goes_with_its_store() -> None:
    def own() -> set[Path]:
        return set(temporary_root().glob(f"{os.getpid()}-*"))  # other processes have theirs beside

    before = own()
    store, _ = filled(Tiers(host_bytes=0, disk=True))
    made = own() - before
    assert len(made) == 1
    store.close()
    assert not made.pop().exists()


def test_a_closed_store_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for tiers in (Tiers(folder=tmp_path), Tiers(folder=tmp_path, read_only=True), Tiers(disk=True)):
        store = tiered(tiers)
        if not tiers.read_only:
            add(store, *step(torch.Generator().manual_seed(0), 4))
        store.full(0)
        store.close()
        assert len(os.listdir("/dev/fd")) == before


def test_a_store_without_bounds_needs_no_disk() -> None:
    store, plain = filled(Tiers())
    assert store.size().host_bytes == 20 * TOKEN
    assert store.file_bytes == 0
    assert store.records == ()
    assert_same(store.full(0), plain.full(0))
    store.close()


def test_tiers_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="read_only needs a folder"):
        Tiers(read_only=True)
    with pytest.raises(ValueError, match="disk_bytes limits a disk tier"):
        Tiers(disk_bytes=10)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policys_residency_is_what_its_ledger_counts(name: str) -> None:
    keeps_its_own = name in ("videollm_online", "flash_vstream", "streamingllm")
    policy = POLICIES[name](**({} if keeps_its_own else {"recent_bytes": 9 * TOKEN}))
    state = policy.start(policy.stored_shape(SHAPE), 0)
    rng = np.random.default_rng(0)
    for n in (3, 5, 4, 4, 6):
        state.append(rng.standard_normal((2, n, 4)).astype(np.float32), [n])
        resident, evicted = state.residency()
        gone = np.zeros_like(resident) if evicted is None else evicted
        assert resident.shape == (2, state.n_cached)
        assert not (resident & gone).any()
        assert np.count_nonzero(resident) == state.ledger.resident
        assert np.count_nonzero(gone) == state.ledger.evicted
