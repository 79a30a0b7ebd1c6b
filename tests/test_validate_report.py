"""What `resv-sim validate` prints and writes, and that docs/validation.md is what it would write now."""

from __future__ import annotations

import io
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from resv_sim.cli import main
from resv_sim.errors import OutputError
from resv_sim.progress import Progress
from resv_sim.validate import report, suite
from resv_sim.validate.comparison import Point, Summary
from resv_sim.validate.tables import REFERENCE, read_table

DOCUMENT = Path(__file__).parent.parent / "docs" / "validation.md"
KEYS = ["model", "table", "metric", "n_rows", "median_abs_error", "p90_abs_error", "worst_abs_error", "worst_row"]


def resv_sim(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def bundled_points(*names: str) -> list[Point]:
    tables = [read_table(REFERENCE / f"{name}.csv") for name in names]
    return suite.run(tables, 2, Progress(quiet=True))


def test_json_is_a_list_of_summaries_and_nothing_else() -> None:
    result = resv_sim("validate", "link", "--json")
    assert result.exit_code == 0
    entries = json.loads(result.stdout)
    assert [field.name for field in fields(Summary)] == KEYS
    for entry in entries:
        assert list(entry) == KEYS
        assert entry["model"] == "link"
        assert isinstance(entry["n_rows"], int)
        assert 0 <= entry["median_abs_error"] <= entry["p90_abs_error"] <= entry["worst_abs_error"]
    assert sum(entry["n_rows"] for entry in entries) == 30
    assert "figures of 1 tables compared" in result.stderr


def test_a_folder_of_tables_takes_the_place_of_the_bundled_ones(tmp_path: Path) -> None:
    lines = (REFERENCE / "ssd_read_g4.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "my_drive.v2.csv").write_text("\n".join(lines[:8]) + "\n", encoding="utf-8")
    entries = json.loads(resv_sim("validate", "all", "--json", "--data", str(tmp_path)).stdout)
    assert {(entry["model"], entry["table"], entry["n_rows"]) for entry in entries} == {("ssd", "my_drive", 2)}


def test_a_bad_table_ends_with_exit_code_2_and_one_paragraph(tmp_path: Path) -> None:
    text = (REFERENCE / "ssd_read_g4.csv").read_text(encoding="utf-8")
    (tmp_path / "ssd.csv").write_text(text.replace("7.4393e+07", "nan"), encoding="utf-8")
    result = resv_sim("validate", "ssd", "--data", str(tmp_path), "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "ssd.csv:7: column 'read_bw_bytes_per_s' is 'nan': must be a finite number" in result.stderr


def test_a_model_that_does_not_exist_is_refused_with_the_list() -> None:
    result = resv_sim("validate", "cpu")
    assert result.exit_code == 2
    assert "'dram', 'ssd', 'link', 'gpu', 'energy', 'all'" in result.stderr


def test_the_terminal_report_fits_80_columns() -> None:
    stream = io.StringIO()
    report.print_report(Console(file=stream, width=80), bundled_points("link_copies", "energy_published"), [])
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "every row" in text
    assert "payload rate" in text


def test_rows_beyond_the_limit_are_listed_worst_first() -> None:
    points = [
        Point("ssd", "t", "p99 latency", f"row {i}", 1.0 + error, 1.0, "us")
        for i, error in enumerate((0.1, 0.5, -0.9, *[0.3] * 20))
    ]
    (listing,) = [s for s in report.sections(points, []) if s.title == "rows beyond what is asked"]
    assert [line[1] for line in listing.lines[:2]] == ["row 2", "row 1"]
    assert listing.lines[0][5] == "-90.0 %"
    assert listing.lines[-1][1] == f"and {22 - report.LISTED} more of 23"


def test_one_section_is_written_and_the_other_left_alone(tmp_path: Path) -> None:
    path = page(tmp_path)
    report.replace_section(path, "the-trace", "old trace")
    report.replace_section(path, "hardware-models", "models")
    report.replace_section(path, "the-trace", "new trace")
    text = path.read_text(encoding="utf-8")
    assert "models" in text
    assert "new trace" in text
    assert "old trace" not in text
    assert text.index("hardware-models") < text.index("the-trace")


def page(folder: Path) -> Path:
    """A page with the marks of two sections."""
    marks = (
        f"<!-- begin generated: {name} -->\n<!-- end generated: {name} -->" for name in ("hardware-models", "the-trace")
    )
    path = folder / "page.md"
    path.write_text("\n\n".join(marks), encoding="utf-8")
    return path


def test_a_section_without_marks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.md"
    path.write_text("# Something else\n", encoding="utf-8")
    with pytest.raises(OutputError, match="are not both there"):
        report.replace_section(path, "hardware-models", "models")
    assert path.read_text(encoding="utf-8") == "# Something else\n"


@pytest.mark.parametrize("command", ["validate", "reproduce"])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_computed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "run", None)
    monkeypatch.setattr("resv_sim.reproduce.command.reproduce", None)
    (tmp_path / "other.md").write_text("# Something else\n", encoding="utf-8")
    for name, words in (("none.md", "no such file"), ("other.md", "are not both there")):
        result = resv_sim(command, "all", "--markdown", str(tmp_path / name))
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert not (tmp_path / "none.md").exists()


def test_the_section_of_all_models_is_not_overwritten_with_one(tmp_path: Path) -> None:
    path = page(tmp_path)
    before = path.read_bytes()
    result = resv_sim("validate", "link", "--markdown", str(path))
    assert result.exit_code == 2
    assert "--markdown writes all models" in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["link_copies", "gpu_kernels", "gpu_measured", "energy_published"])
def test_the_document_holds_the_present_rows_of_small_tables(name: str) -> None:
    assert_document_holds(bundled_points(name))


@pytest.mark.parametrize("name", ["dram_lpddr5_6400_norefresh", "ssd_read_tlc_g4"])
def test_the_document_holds_the_present_rows_of_a_table_of_each_memory(name: str) -> None:
    assert_document_holds(bundled_points(name))


def assert_document_holds(points: list[Point]) -> None:
    document = DOCUMENT.read_text(encoding="utf-8").splitlines()
    for line in report.markdown(points, []).splitlines():
        if line.startswith("| ") and "none" not in line and not line.startswith(("| stage", "| decode", "| prefill")):
            assert line in document, "run `resv-sim validate all --markdown docs/validation.md`"


def test_the_document_bears_no_date() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.partition("<!-- end generated: hardware-models -->")[0]
    assert "<!-- begin generated: hardware-models -->" in section
    assert not re.search(r"\d{4}-\d{2}-\d{2}|\d\d:\d\d", section)


def test_the_mean_of_a_stage_stands_beside_that_with_context_rows() -> None:
    points = [
        Point("gpu", "t", "decode, a100 fp16", "stated", 1.12, 1.0, "ms"),
        Point("gpu", "t", "decode, a100 fp16", "unknown stack", 1.48, 1.0, "ms", "context"),
        Point("gpu", "t", "decode, a100 fp16, if at 50 W", "stated", 9.0, 1.0, "ms", "context"),
    ]
    (means,) = [s for s in report.sections(points, []) if s.headings == report.STAGE_HEADINGS]
    assert means.lines[0] == ["decode", "a100", "1", "12.0 %", "mean 10 %: NOT met", "30.0 % of 2"]


def test_the_readme_says_what_the_document_says() -> None:
    readme = (DOCUMENT.parent.parent / "README.md").read_text(encoding="utf-8")
    document = DOCUMENT.read_text(encoding="utf-8")
    quoted = re.findall(r"^\|[^|]+\|[^|]+\| `(\w+): ([^`]+)` \| (.+) \|$", readme, re.MULTILINE)
    assert len(quoted) > 5
    for table, metric, figures in quoted:
        assert f"| {table} | {metric} | {figures} | " in document
    [predictions, error] = re.findall(r"over (\d+) predictions the\nmedian error is ([\d.]+ %)", readme)[0]
    assert f"Over the {predictions} predictions" in document
    assert f"is **{error}**" in document
