"""What was stored comes back; what was damaged counts as absent."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from resv.selection import ClusterTable, ClusterUpdate, Counts, Fidelity, LayerSelection, ScoreRows
from resv_sim.cli import main
from resv_sim.errors import ConfigError
from resv_sim.memo import Memo, cache_directory, cache_limit_bytes, code_fingerprint, key_of, pack_layers, unpack_layers


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
    assert key_of({"x": 1, "y": 2}) == key_of({"y": 2, "x": 1})
    assert code_fingerprint("resv") != code_fingerprint("dre_sim")


def _filled(directory: Path, limit_bytes: int, keys: str = "abcdefgh") -> Memo:
    """Entries aa00, bb00, ... of about a kilobyte, used in that order."""
    memo = Memo(directory, limit_bytes)
    for age, key in enumerate(keys):
        memo.store(f"{key * 2}00", {"a": np.zeros(1000, np.uint8)})
        _use(directory, key, 1000 + age)
    return memo


def _use(directory: Path, key: str, when_s: int) -> None:
    os.utime(next(directory.glob(f"{key * 2}/*.safetensors")), (when_s, when_s))


def _held(memo: Memo, keys: str = "abcdef0123") -> str:
    return "".join(key for key in keys if memo.holds(f"{key * 2}00"))


def test_what_was_used_least_recently_goes(tmp_path: Path) -> None:
    memo = _filled(tmp_path, 10**9, "abcdef")
    one = memo.size_bytes() // 6
    assert one > 1000
    assert memo.load("bb00") is not None, "to load is to use"
    memo.trim(6 * one)
    assert _held(memo) == "abcdef", "within the limit nothing goes"
    memo.trim(4 * one)
    assert _held(memo) == "bef", "to nine tenths of the limit: three of four"
    memo.trim(0)
    assert _held(memo) == ""
    assert memo.size_bytes() == 0


def test_storing_keeps_the_folder_within_its_limit(tmp_path: Path) -> None:
    memo = Memo(tmp_path, 100_000)
    largest = 0
    for n in range(1000):
        memo.store(f"{n % 256:02x}{n}", {"a": np.zeros(1000, np.uint8)})
        largest = max(largest, memo.size_bytes()) if n % 20 == 0 else largest
    # One store in 32 looks, chosen by its key: far more than a hundred stores in between would be bad luck.
    assert 50_000 < memo.size_bytes() <= largest < 100_000 + 150 * 1100
    assert memo.load("e7999") is not None


def test_an_unfinished_file_of_a_killed_process_goes_and_one_being_written_stays(tmp_path: Path) -> None:
    memo = _filled(tmp_path, 10**9, "a")
    (tmp_path / "aa" / "aa11.123.part").write_bytes(b"x")
    (tmp_path / "aa" / "aa22.124.part").write_bytes(b"x")
    (tmp_path / "mine.txt").write_text("not the memo's")
    os.utime(tmp_path / "aa" / "aa11.123.part", (1, 1))
    memo.trim(0)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["aa22.124.part", "mine.txt"]


def _hammer(directory: Path, seed: int) -> int:
    """Store and load under a limit that is always too small; the number of loads that found something."""
    memo, rng, found = Memo(directory, 20_000), np.random.default_rng(seed), 0
    for _ in range(400):
        n = int(rng.integers(0, 64))
        memo.store(f"{n:02x}", {"a": np.full(1000, n, np.int16)})
        arrays = memo.load(f"{int(rng.integers(0, 64)):02x}")
        if arrays is not None:
            found += 1
            assert len(set(arrays["a"].tolist())) == 1
        memo.trim(memo.limit_bytes)
    return found


def test_processes_that_store_and_remove_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_hammer, [tmp_path] * 3, range(3)))
    assert min(found) > 0
    assert Memo(tmp_path).size_bytes() <= 20_000


def test_the_limit_is_the_users_and_must_be_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_limit_bytes() == 4_000_000_000
    monkeypatch.setenv("RESV_SIM_CACHE_GB", "0.5")
    assert Memo(None).limit_bytes == 500_000_000
    for wrong in ("much", "-1", "inf", "nan"):
        monkeypatch.setenv("RESV_SIM_CACHE_GB", wrong)
        with pytest.raises(ConfigError, match=f"RESV_SIM_CACHE_GB is '{wrong}'; allowed: a number of gigabytes"):
            cache_limit_bytes()


def test_the_command_shows_shrinks_and_empties_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESV_SIM_CACHE", str(tmp_path))
    memo = _filled(tmp_path, 10**9, "abcd")

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["cache", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert said() == f"{tmp_path}: 0.00 GB, limit 4 GB\n"
    said("--limit", str(memo.size_bytes() / 2e9))
    assert _held(memo) == "d"
    said("--clear")
    assert _held(memo) == ""


def test_the_folder_is_the_named_one_else_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("RESV_SIM_CACHE", str(tmp_path / "named"))
    assert cache_directory() == tmp_path / "named"
    monkeypatch.delenv("RESV_SIM_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "resv-sim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "resv-sim"


def test_a_file_in_the_place_of_the_cache_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESV_SIM_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert cache_directory() == tmp_path / "file"
    assert capsys.readouterr().err.count("is a file, not the folder of a cache") == 1
