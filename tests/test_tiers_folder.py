"""The disk tier's folder: what counts after a kill, one writer and many readers, refusals, a full disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resv.tiers.errors import DiskFullError, FolderError, FolderInUseError
from resv.tiers.layout import Layout, StepNote, StepRecord
from resv.tiers.locks import LOCK, WriterLock, remove_stale
from resv.tiers.reader import BLOCKS, INDEX, MODEL, BlockReader, read_layout
from resv.tiers.writer import BlockWriter

LAYOUT = Layout("small", n_layers=3, n_kv_heads=2, head_dim=4, dtype="float16")


def rows_of(step: int, layer: int, n: int) -> np.ndarray:
    return np.random.default_rng((step, layer)).integers(0, 256, (n, LAYOUT.row_bytes), dtype=np.uint8)


def lengths(step: int) -> int:
    return 1 + step % 3


def add(writer: BlockWriter, step: int) -> StepRecord:
    writer.begin(lengths(step))
    for layer in range(LAYOUT.n_layers):
        writer.write(layer, rows_of(step, layer, lengths(step)))
    return writer.commit(StepNote("frame", step / 2))


def written(folder: Path, n_steps: int) -> None:
    writer = BlockWriter(folder, LAYOUT)
    for step in range(n_steps):
        add(writer, step)
    writer.close()


def assert_holds(reader: BlockReader, n_steps: int) -> None:
    assert len(reader.records) == n_steps
    assert reader.n_tokens == sum(lengths(step) for step in range(n_steps))
    lanes, tokens = (part.ravel() for part in np.indices((LAYOUT.lanes, reader.n_tokens)))
    for layer in range(LAYOUT.n_layers):
        whole = [rows_of(step, layer, lengths(step)) for step in range(n_steps)]
        ref = np.concatenate([np.zeros((0, LAYOUT.row_bytes), dtype=np.uint8), *whole])
        got = reader.units(layer, lanes, tokens).reshape(LAYOUT.lanes, reader.n_tokens, LAYOUT.unit_bytes)
        assert np.array_equal(got.transpose(1, 0, 2).reshape(ref.shape), ref)


def test_what_was_written_is_read_and_goes_on(tmp_path: Path) -> None:
    written(tmp_path, 4)
    reader = BlockReader(tmp_path, LAYOUT)
    assert_holds(reader, 4)
    assert [(r.step, r.first_token, r.n_tokens, r.timestamp_s) for r in reader.records] == [
        (0, 0, 1, 0.0),
        (1, 1, 2, 0.5),
        (2, 3, 3, 1.0),
        (3, 6, 1, 1.5),
    ]
    assert (tmp_path / BLOCKS).stat().st_size == 7 * LAYOUT.token_bytes
    writer = BlockWriter(tmp_path, LAYOUT)
    add(writer, 4)
    assert reader.refresh() == 1
    assert_holds(reader, 5)
    writer.close()


def test_a_refresh_reads_what_is_new_and_nothing_that_was_counted(tmp_path: Path) -> None:
    writer = BlockWriter(tmp_path, LAYOUT)
    add(writer, 0)
    reader = BlockReader(tmp_path)
    assert reader.refresh() == 0
    with (tmp_path / BLOCKS).open("r+b") as file:  # would be refused as damaged if it were read again
        file.write(b"\xff" * LAYOUT.token_bytes)
    for step in (1, 2):
        add(writer, step)
        assert reader.refresh() == 1
    writer.close()


def test_units_come_in_any_order(tmp_path: Path) -> None:
    written(tmp_path, 5)
    reader = BlockReader(tmp_path)
    tokens, lanes = np.array([5, 0, 3]), np.array([1, 0, 1])
    got = reader.units(2, lanes, tokens)
    size = LAYOUT.unit_bytes
    assert np.array_equal(got[0], rows_of(2, 2, 3)[2, size:])
    assert np.array_equal(got[1], rows_of(0, 2, 1)[0, :size])
    assert np.array_equal(got[2], rows_of(2, 2, 3)[0, size:])


def test_a_step_counts_when_all_its_layers_have_landed(tmp_path: Path) -> None:
    writer = BlockWriter(tmp_path, LAYOUT)
    reader = BlockReader(tmp_path)
    writer.begin(2)
    for layer in range(LAYOUT.n_layers):
        assert reader.refresh() == 0
        writer.write(layer, rows_of(1, layer, 2))
    assert reader.refresh() == 0
    writer.commit(StepNote())
    assert reader.refresh() == 1
    writer.close()


def test_bytes_are_on_the_disk_before_the_line_that_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, act: Callable[..., int]) -> Callable[..., int]:
        def call(*args: object) -> int:
            calls.append(name)
            return act(*args)

        return call

    writer = BlockWriter(tmp_path, LAYOUT)
    for name in ("pwrite", "fdatasync", "write"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    add(writer, 0)
    monkeypatch.undo()
    assert calls == ["pwrite"] * LAYOUT.n_layers + ["fdatasync", "write", "fdatasync"]
    writer.close()


def test_a_line_that_does_not_follow_the_one_before_counts_no_step(tmp_path: Path) -> None:
    written(tmp_path, 3)
    index = tmp_path / INDEX
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([*lines, lines[0]]))
    assert_holds(BlockReader(tmp_path), 3)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_line_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    written(tmp_path, 3)
    index = tmp_path / INDEX
    index.write_bytes(index.read_bytes()[:-cut])
    assert_holds(BlockReader(tmp_path), 2)
    writer = BlockWriter(tmp_path, LAYOUT)
    assert_holds(writer.reader, 2)
    add(writer, 2)
    writer.close()
    assert_holds(BlockReader(tmp_path), 3)


@pytest.mark.parametrize("spoil", ["short", "altered"])
def test_a_line_whose_bytes_are_not_there_does_not_count(tmp_path: Path, spoil: str) -> None:
    written(tmp_path, 3)
    blocks = tmp_path / BLOCKS
    data = bytearray(blocks.read_bytes())
    data[-1] ^= 1
    blocks.write_bytes(bytes(data) if spoil == "altered" else bytes(data[:-7]))
    writer = BlockWriter(tmp_path, LAYOUT)
    assert_holds(writer.reader, 2)
    assert blocks.stat().st_size == writer.file_bytes
    writer.close()


def test_damage_before_the_end_is_an_error_and_nothing_is_thrown_away(tmp_path: Path) -> None:
    written(tmp_path, 4)
    blocks = tmp_path / BLOCKS
    data = bytearray(blocks.read_bytes())
    data[LAYOUT.token_bytes + 3] ^= 1
    blocks.write_bytes(bytes(data))
    for opened in (BlockReader, BlockWriter):
        with pytest.raises(FolderError, match="damaged: the bytes of step 1"):
            opened(tmp_path, LAYOUT)
    assert blocks.read_bytes() == bytes(data)


def test_bytes_behind_the_last_line_are_dropped(tmp_path: Path) -> None:
    written(tmp_path, 2)
    with (tmp_path / BLOCKS).open("ab") as file:
        file.write(b"x" * 50)
    writer = BlockWriter(tmp_path, LAYOUT)
    assert (tmp_path / BLOCKS).stat().st_size == writer.file_bytes
    writer.close()
    assert_holds(BlockReader(tmp_path), 2)


def test_another_models_folder_is_refused_with_the_difference(tmp_path: Path) -> None:
    written(tmp_path, 1)
    other = Layout("large", n_layers=3, n_kv_heads=4, head_dim=4, dtype="bfloat16")
    with pytest.raises(FolderError) as caught:
        BlockReader(tmp_path, other)
    message = str(caught.value)
    assert "model is small, not large; n_kv_heads is 2, not 4; dtype is float16, not bfloat16" in message
    with pytest.raises(FolderError, match="n_kv_heads is 2, not 4"):
        BlockWriter(tmp_path, other)
    BlockWriter(tmp_path, LAYOUT).close()  # the refusal left the lock free


def test_weights_are_compared_where_both_are_known_and_equal_ones_are_the_same_model(tmp_path: Path) -> None:
    BlockWriter(tmp_path, Layout("small", 3, 2, 4, "float16", weights="abc")).close()
    BlockReader(tmp_path, LAYOUT)
    with pytest.raises(FolderError, match="weights is abc, not xyz"):
        BlockReader(tmp_path, Layout("small", 3, 2, 4, "float16", weights="xyz"))
    BlockReader(tmp_path, Layout("renamed", 3, 2, 4, "float16", weights="abc")).close()
    with pytest.raises(FolderError, match=r"model is small, not renamed\."):
        BlockReader(tmp_path, Layout("renamed", 3, 2, 4, "float16"))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no disk tier"):
        BlockReader(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"not empty \(notes.txt"):
        BlockWriter(tmp_path, LAYOUT)
    (tmp_path / MODEL).write_text(json.dumps({"version": 99}))
    with pytest.raises(FolderError, match="another version"):
        read_layout(tmp_path)


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'; allowed: float32, bfloat16, float16"):
        Layout("small", 3, 2, 4, "int8")  # type: ignore[arg-type]


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    writer = BlockWriter(tmp_path, LAYOUT)
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()}"):
        BlockWriter(tmp_path, LAYOUT)
    writer.close()
    BlockWriter(tmp_path, LAYOUT).close()


def test_a_limit_is_kept(tmp_path: Path) -> None:
    writer = BlockWriter(tmp_path, LAYOUT, capacity_bytes=5 * LAYOUT.token_bytes)
    add(writer, 0)
    add(writer, 1)
    with pytest.raises(DiskFullError, match="the limit of"):
        add(writer, 2)
    assert_holds(BlockReader(tmp_path), 2)
    writer.close()


@pytest.mark.parametrize("failing", ["posix_fallocate", "pwrite", "write"])
def test_a_full_disk_leaves_the_steps_before_and_room_lets_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    writer = BlockWriter(tmp_path, LAYOUT)
    add(writer, 0)
    real = getattr(os, failing)

    def full(fd: int, data: object, *rest: object) -> int:
        if failing != "posix_fallocate" and len(data) > 8:  # type: ignore[arg-type]
            return int(real(fd, data[:8], *rest))  # type: ignore[index]  # a part fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(DiskFullError, match="No space left on device"):
        add(writer, 1)
    monkeypatch.undo()
    assert_holds(BlockReader(tmp_path), 1)
    assert (tmp_path / BLOCKS).stat().st_size == writer.file_bytes
    add(writer, 1)
    assert_holds(BlockReader(tmp_path), 2)
    writer.close()


def test_an_error_that_is_no_lack_of_room_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = BlockWriter(tmp_path, LAYOUT)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OSError, match="input/output error"):
        add(writer, 0)
    monkeypatch.undo()
    assert_holds(writer.reader, 0)
    writer.close()


def test_steps_can_be_taken_back_and_readers_see_it(tmp_path: Path) -> None:
    writer = BlockWriter(tmp_path, LAYOUT)
    for step in range(4):
        add(writer, step)
    reader = BlockReader(tmp_path)
    tail = reader.units(0, np.array([0]), np.array([6]))
    with pytest.raises(FolderError, match="token 4 lies within step 2"):
        writer.forget(4)
    writer.forget(3)
    assert np.array_equal(reader.units(0, np.array([0]), np.array([6])), tail)  # until it looks again
    assert reader.refresh() == -2
    add(writer, 2)
    assert reader.refresh() == 1
    assert_holds(reader, 3)
    writer.close()
    assert (tmp_path / BLOCKS).stat().st_size >= 6 * LAYOUT.token_bytes


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_tiers_folder import LAYOUT, add, rows_of
from resv.tiers.writer import BlockWriter
writer = BlockWriter(Path(sys.argv[1]), LAYOUT)
for step in range(int(sys.argv[2])):
    add(writer, step)
writer.begin(3)
writer.write(0, rows_of(9, 0, 3))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_the_next_writer_goes_on_where_frames_had_landed(tmp_path: Path) -> None:
    folder = tmp_path / "tier"
    child = subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder), "3"], cwd=Path(__file__).parents[1], check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert (folder / BLOCKS).stat().st_size > 6 * LAYOUT.token_bytes  # half a step lies behind
    assert_holds(BlockReader(folder), 3)
    writer = BlockWriter(folder, LAYOUT)  # its lock went with it
    add(writer, 3)
    writer.close()
    assert_holds(BlockReader(folder), 4)


def test_folders_of_dead_processes_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead, alive = tmp_path / "1-dead", tmp_path / "2-alive"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / BLOCKS).write_bytes(b"x")
    (dead / LOCK).write_text("1\n")
    lock = WriterLock(alive)
    assert remove_stale(tmp_path) == [dead]
    assert alive.is_dir()
    assert not dead.exists()
    lock.release()
    lock.release()  # twice does no harm


def test_a_record_survives_its_line_and_no_altered_one_does() -> None:
    record = StepRecord(3, 7, 2, 96, (1, 2, 3), "question", 1.5, (2, 3))
    line = record.line()
    assert StepRecord.of_line(line) == record
    assert StepRecord.of_line(line[:-1]) is None
    assert StepRecord.of_line(line.replace(b'"n_tokens":2', b'"n_tokens":3')) is None


def test_a_temporary_folder_that_goes_while_others_are_swept_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(WriterLock):
        def __init__(self, folder: Path) -> None:
            if folder.name == "going":
                folder.rmdir()  # by its own process, which needs no guard for that
            super().__init__(folder)

    for name in ("going", "stale"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("resv.tiers.locks.WriterLock", Late)
    assert remove_stale(tmp_path) == [tmp_path / "stale"]
    assert not list(tmp_path.iterdir())
