"""What was stored comes back; what was damaged counts as absent."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from resv.selection import ClusterTable, ClusterUpdate, Counts, Fidelity, LayerSelection, ScoreRows
from resv_sim.memo import Memo, code_fingerprint, key_of, pack_layers, unpack_layers


def _example(rng: np.random.Generator) -> tuple[LayerSelection, Fidelity]:
    heads, cached, clusters = 2, 37, 5
    masks = [rng.random((heads, cached)) < 0.5 for _ in range(3)]
    table = ClusterTable(
        rng.integers(0, clusters, cached).astype(np.int32),
        rng.integers(0, 2**32, clusters).astype(np.uint64),
        rng.integers(1, 9, clusters).astype(np.int32),
        rng.random(clusters) < 0.5,
        np.arange(clusters, dtype=np.int32),
        np.arange(clusters, dtype=np.int32),
    )
    update = ClusterUpdate(table.codes[:3], np.arange(5, dtype=np.int32), np.arange(3, dtype=np.int32))
    bf16 = (rng.random((4, clusters)).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    rows = ScoreRows(bf16, table.token_counts, np.arange(5, dtype=np.int32), rng.random(clusters) < 0.5)
    selection = LayerSelection(3, *masks, Counts(score_macs=7), (table,), (update,), (rows, rows))
    return selection, Fidelity(*(rng.random(heads) for _ in range(3)))


def test_evicted_tokens_survive_the_disk() -> None:
    selection, fidelity = _example(np.random.default_rng(1))
    gone = ~(selection.attended | selection.resident | selection.candidates)
    evicting = replace(selection, evicted=gone)
    plain, back = unpack_layers(pack_layers((selection, evicting), (fidelity, fidelity)))[0]
    assert plain.evicted is None
    assert back.evicted is not None
    assert np.array_equal(back.evicted, gone)


def test_selections_survive_the_disk_bit_for_bit(tmp_path: Path) -> None:
    selection, fidelity = _example(np.random.default_rng(1))
    memo = Memo(tmp_path)
    memo.store("ab12", pack_layers((selection, selection), (fidelity, fidelity)))
    arrays = memo.load("ab12")
    assert arrays is not None
    selections, fidelities = unpack_layers(arrays)
    assert len(selections) == len(fidelities) == 2
    got = selections[1]
    assert got.counts == selection.counts
    assert got.layer == 3
    for name in ("attended", "resident", "candidates"):
        np.testing.assert_array_equal(getattr(got, name), getattr(selection, name))
    np.testing.assert_array_equal(got.rows[1].scores, selection.rows[1].scores)
    np.testing.assert_array_equal(got.tables[0].codes, selection.tables[0].codes)
    np.testing.assert_array_equal(got.updates[0].assignment, selection.updates[0].assignment)
    np.testing.assert_array_equal(fidelities[0].output_rel_error, fidelity.output_rel_error)


def test_a_damaged_file_counts_as_absent_and_is_made_again(tmp_path: Path) -> None:
    memo = Memo(tmp_path)
    memo.store("cd34", {"a": np.arange(3)})
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert memo.load("cd34") is None
    memo.store("cd34", {"a": np.arange(3)})
    again = memo.load("cd34")
    assert again is not None
    assert again["a"].tolist() == [0, 1, 2]


def test_an_unwritable_cache_costs_nothing_but_time(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    memo = Memo(blocker)
    memo.store("ef56", {"a": np.arange(3)})
    assert memo.load("ef56") is None


def test_without_a_directory_nothing_is_remembered() -> None:
    memo = Memo(None)
    memo.store("00", {"a": np.arange(3)})
    assert memo.load("00") is None


def test_keys_depend_on_every_part_and_code_fingerprints_on_the_package() -> None:
    assert key_of("a", {"x": 1}) == key_of("a", {"x": 1})
    assert key_of("a", {"x": 1}) != key_of("a", {"x": 2})
    assert code_fingerprint("resv") != code_fingerprint("dre_sim")
