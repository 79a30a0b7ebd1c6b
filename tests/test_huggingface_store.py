"""The store that keeps everything in memory gives back what it was given."""

import numpy as np
import torch

from resv.huggingface.store import MemoryStore, StoreBytes
from tests.shapes import TINY


def filled(seed=0, lengths=(3, 70, 1, 200, 5), batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    store = MemoryStore(TINY, batch, torch.device("cpu"), dtype)
    shape = (TINY.n_layers, 2, batch, TINY.n_kv_heads, sum(lengths), TINY.head_dim)
    kept = torch.randn(shape, generator=generator).to(dtype)
    start = 0
    for n in lengths:
        for layer in range(TINY.n_layers):
            store.append(layer, *kept[layer, ..., start : start + n, :])
        start += n
    return store, kept


def test_everything_comes_back():
    store, kept = filled()
    assert store.n_tokens == 279
    assert store.on_device
    for layer in range(TINY.n_layers):
        keys, values = store.full(layer)
        assert torch.equal(keys, kept[layer, 0])
        assert torch.equal(values, kept[layer, 1])


def test_gathering_is_indexing():
    store, kept = filled()
    rng = np.random.default_rng(0)
    indices = np.sort(rng.choice(279, (2, TINY.n_kv_heads, 40)), axis=-1)
    indices[0, 0, 30:] = -1
    keys, values = store.gather(1, torch.from_numpy(indices))
    for item, head, at in np.ndindex(*indices.shape):
        token = indices[item, head, at]
        if token >= 0:
            assert torch.equal(keys[item, head, at], kept[1, 0, item, head, token])
            assert torch.equal(values[item, head, at], kept[1, 1, item, head, token])
    assert torch.isfinite(keys).all()
    empty = store.gather(0, torch.zeros((2, TINY.n_kv_heads, 0), dtype=torch.int64))
    assert empty[0].shape == (2, TINY.n_kv_heads, 0, TINY.head_dim)


def test_truncating_forgets_the_end_also_of_a_half_step():
    store, kept = filled()
    store.append(0, *kept[0, ..., :2, :])
    store.truncate(73)
    assert store.n_tokens == 73
    assert torch.equal(store.full(0)[0], kept[0, 0][:, :, :73])
    for layer in range(TINY.n_layers):
        store.append(layer, *kept[layer, ..., 100:104, :])
    assert torch.equal(store.full(1)[1][:, :, 73:], kept[1, 1][:, :, 100:104])
    assert torch.equal(store.full(1)[1][:, :, :73], kept[1, 1][:, :, :73])


def test_size_is_the_tokens_that_are_not_evicted():
    store, _ = filled(dtype=torch.bfloat16)
    rows = TINY.n_layers * 2 * TINY.n_kv_heads * 279
    assert store.size() == StoreBytes(device_bytes=rows * 2 * TINY.head_dim * 2)
    evicted = torch.zeros((2, TINY.n_kv_heads, 275), dtype=torch.bool)
    evicted[:, :, 10:60] = True
    store.place(1, ~evicted, evicted)
    assert store.size().device_bytes == (rows - 2 * TINY.n_kv_heads * 50) * 2 * TINY.head_dim * 2
    store.truncate(0)
    assert store.size().device_bytes == 0
    store, _ = filled(dtype=torch.bfloat16)
    store.place(1, ~evicted, None)
    assert store.size().device_bytes == rows * 2 * TINY.head_dim * 2
    store.close()
