"""Reference tables: what is bundled, and how bad files are refused, by file and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from resv_sim.validate.schemas import MODELS, SCHEMAS
from resv_sim.validate.suite import tables_for
from resv_sim.validate.tables import REFERENCE, TableError, read_folder, read_table

DRAM, SSD, GPU, ENERGY = (
    REFERENCE / f"{name}.csv"
    for name in ("dram_lpddr5_6400_norefresh", "ssd_read_tlc_g4", "gpu_kernels", "energy_published")
)


def test_every_bundled_table_is_read_and_every_model_has_one() -> None:
    tables = tables_for("all", None)
    assert len(tables) == len(list(REFERENCE.glob("*.csv"))) == 21
    assert {table.model for table in tables} == set(MODELS)
    assert {table.kind for table in tables} == set(SCHEMAS)


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.csv")), ids=lambda path: path.stem)
def test_a_table_says_where_it_is_from_and_names_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Reference ")
    assert not re.search(r"(^|[\s\"'=])(/|~/|[A-Z]:\\)\w", text), "an absolute path"
    if path.stem.startswith(("dram", "ssd")):
        assert re.search(r"commit [0-9a-f]{40}", text)


def edited(tmp_path: Path, source: Path, edit: Callable[[list[str]], None]) -> Path:
    """A copy of a bundled table with its lines changed."""
    lines = source.read_text(encoding="utf-8").splitlines()
    edit(lines)
    path = tmp_path / source.name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def names_line(lines: list[str]) -> int:
    return next(i for i, line in enumerate(lines) if not line.startswith("#"))


def refusal(path: Path) -> str:
    with pytest.raises(TableError) as error:
        tables_for("all", path.parent)
    return str(error.value)


def cell(lines: list[str], row: int, column: str, value: str) -> None:
    """Set one cell of a table without quoted fields; row 1 is the first below the names."""
    head = names_line(lines)
    fields = lines[head + row].split(",")
    fields[lines[head].split(",").index(column)] = value
    lines[head + row] = ",".join(fields)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    def drop(lines: list[str]) -> None:
        head = names_line(lines)
        for i in range(head, len(lines)):
            fields = lines[i].split(",")
            lines[i] = ",".join(fields[:5] + fields[6:])
            if i == head:
                dropped.append(fields[5])

    dropped: list[str] = []
    path = edited(tmp_path, SSD, drop)
    assert re.search(rf"ssd_read_tlc_g4\.csv:6: missing column {dropped[0]}", refusal(path))


def test_a_column_in_another_unit_is_named(tmp_path: Path) -> None:
    def rename(lines: list[str]) -> None:
        lines[names_line(lines)] = lines[names_line(lines)].replace("lat_mean_ns", "lat_mean_us", 1)

    path = edited(tmp_path, DRAM, rename)
    assert ":12: 'lat_mean_us' has the wrong unit, 'lat_mean_ns' is needed" in refusal(path)


@pytest.mark.parametrize(
    ("source", "column", "value", "line", "words"),
    [
        (DRAM, "bw_bytes_per_s", "12.8", 14, "units do not match: bw_bytes_per_s over bw_frac_of_peak"),
        (DRAM, "lat_mean_ns", "0.07", 14, "units do not match: lat_mean_ns is 0.07; between"),
        (DRAM, "lat_mean_ns", "70000000", 14, "units do not match"),
        (SSD, "read_lat_mean_us", "57619", 8, "units do not match: iops x mean latency"),
        (SSD, "read_bw_bytes_per_s", "71.087", 8, "units do not match: read_bw_bytes_per_s over"),
    ],
)
def test_a_value_in_another_unit_is_noticed(
    tmp_path: Path, source: Path, column: str, value: str, line: int, words: str
) -> None:
    message = refusal(edited(tmp_path, source, lambda lines: cell(lines, 2, column, value)))
    assert f"{source.name}:{line}: {words}" in message


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "", "fast", "-1"])
@pytest.mark.parametrize("column", ["bw_bytes_per_s", "lat_p99_ns"])
def test_what_is_no_number_is_named_by_line_and_column(tmp_path: Path, column: str, value: str) -> None:
    path = edited(tmp_path, DRAM, lambda lines: cell(lines, 3, column, value))
    assert f"{DRAM.name}:15: column {column!r} is {value!r}: must be" in refusal(path)


def test_nan_is_refused_in_a_column_that_nobody_reads(tmp_path: Path) -> None:
    path = edited(tmp_path, DRAM, lambda lines: cell(lines, 1, "ctrl_lat_mean_ns", "nan"))
    assert f"{DRAM.name}:13: column 'ctrl_lat_mean_ns' is 'nan'" in refusal(path)


def test_a_word_that_is_not_known_gets_the_list_and_a_guess(tmp_path: Path) -> None:
    path = edited(tmp_path, DRAM, lambda lines: cell(lines, 1, "pattern", "chnk"))
    assert "must be one of seq, rand64, chunk" in refusal(path)
    assert "Did you mean 'chunk'?" in refusal(path)


def test_empty_tables_are_refused(tmp_path: Path) -> None:
    def only_names(lines: list[str]) -> None:
        del lines[names_line(lines) + 1 :]

    assert f"{DRAM.name}:12: empty table: column names but no row" in refusal(edited(tmp_path, DRAM, only_names))
    (tmp_path / DRAM.name).write_text("# only a comment\n", encoding="utf-8")
    assert f"{DRAM.name}:1: empty table: no line with column names" in refusal(tmp_path / DRAM.name)


def test_ragged_rows_unknown_tables_and_double_columns_are_refused(tmp_path: Path) -> None:
    def shorten(lines: list[str]) -> None:
        lines[-1] = lines[-1].rsplit(",", 1)[0]

    assert re.search(r":44: 17 fields, 18 columns", refusal(edited(tmp_path, DRAM, shorten)))
    path = tmp_path / DRAM.name
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    assert f"{DRAM.name}:1: these columns belong to no known kind of table" in refusal(path)
    path.write_text("a,a\n1,2\n", encoding="utf-8")
    assert "column 'a' is there twice" in refusal(path)


def test_a_dram_table_must_name_a_known_memory(tmp_path: Path) -> None:
    text = DRAM.read_text(encoding="utf-8")
    (tmp_path / "dram_ddr9.csv").write_text(text, encoding="utf-8")
    assert "dram_ddr9.csv:1: dram_ddr9: the file's name must be dram_[system_]DEVICE" in refusal(tmp_path / "x")
    (tmp_path / "dram_ddr9.csv").rename(tmp_path / "dram_lpddr5_6400_perbnk.csv")
    assert "no variant 'perbnk'" in refusal(tmp_path / "x")


def test_quantities_units_and_sizes_are_checked(tmp_path: Path) -> None:
    def replaced(old: str, new: str) -> Callable[[list[str]], None]:
        def edit(lines: list[str]) -> None:
            lines[:] = [line.replace(old, new) for line in lines]

        return edit

    assert "no quantity 'core_volume'" in refusal(edited(tmp_path, ENERGY, replaced("core_area", "core_volume")))
    message = refusal(edited(tmp_path, ENERGY, replaced(",mm2,calibrate", ",um2,calibrate")))
    assert "units do not match: unit_area is in mm2, not 'um2'" in message
    (tmp_path / ENERGY.name).unlink()
    message = refusal(edited(tmp_path, GPU, replaced("gemm,8192,", "gemm,,")))
    assert "gpu_kernels.csv:5: gemm needs m" in message


def test_a_folder_called_like_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(TableError, match=r"x\.csv: cannot be read: Is a directory"):
        read_folder(tmp_path)


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no \*\.csv file in this folder"):
        read_folder(tmp_path)
    with pytest.raises(TableError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    edited(tmp_path, SSD, lambda _: None)
    with pytest.raises(TableError, match="no table of the model 'dram'"):
        tables_for("dram", tmp_path)


def test_a_table_is_named_by_its_file_up_to_the_first_dot(tmp_path: Path) -> None:
    path = edited(tmp_path, DRAM, lambda _: None).rename(tmp_path / "dram_lpddr5_6400_norefresh.test.csv")
    table = read_table(path)
    assert (table.name, table.kind, table.model, len(table.rows)) == (DRAM.stem, "dram_channel", "dram", 32)
    assert table.header[0].startswith("Reference DRAM table")
