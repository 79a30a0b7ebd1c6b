"""The report: one self-contained page, the same numbers as Markdown, and a table that fits a terminal."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from resv_sim.plots.style import FigureFile
from resv_sim.report import report_html, summary_markdown, tables, terminal_table
from resv_sim.results import ExperimentResult
from tests.sample_results import sample_experiment, sample_result, sample_rows

FIGURES = [FigureFile("latency", "Latency", "Latency over <length> & stage.")]
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    (tmp_path / "latency.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    return tmp_path


def html(figures: Path, result: ExperimentResult | None = None) -> str:
    return report_html(result or sample_result(), sample_experiment(), FIGURES, figures)


def test_the_page_needs_nothing_but_itself(figures: Path) -> None:
    page = Page(html(figures))
    assert len(page.sources) == 1
    kind, _, data = page.sources[0].partition(";base64,")
    assert kind == "data:image/svg+xml"
    assert base64.b64decode(data).startswith(b"<svg")
    assert not re.search(r"<script|@import|url\(|https?://", html(figures))


def test_the_page_is_readable_on_a_phone(figures: Path) -> None:
    text = html(figures)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert text.count('<div class="scroll"><table>') == text.count("<table>") == 5


def test_the_page_has_every_section(figures: Path) -> None:
    assert Page(html(figures)).headings == [
        "Results", "Figures", "Published figures and ours", "What uncertain prices do to the conclusion", "The stream",
        "Area", "Assumptions", "Notes", "Configuration",
    ]  # fmt: skip


def test_a_result_with_rows_alone_has_no_empty_sections(figures: Path) -> None:
    page = Page(html(figures, ExperimentResult(rows=sample_rows((200,)))))
    assert page.headings == ["Results", "Figures", "Configuration"]


def test_text_is_escaped(figures: Path) -> None:
    result = ExperimentResult(rows=sample_rows((200,)), notes=("<b>1 < 2</b>",))
    assert "&lt;b&gt;1 &lt; 2&lt;/b&gt;" in html(figures, result)
    assert "Latency over &lt;length&gt; &amp; stage." in html(figures, result)


def test_markdown_tables_are_rectangular_and_hold_the_signed_errors() -> None:
    result = sample_result()
    text = summary_markdown(result, sample_experiment(), FIGURES)
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    for comparison in result.published:
        assert f"| {100 * comparison.error:+.1f} % | {comparison.role} |" in text
    assert "![Latency](figures/latency.png)" in text
    assert f"- {result.assumptions[0]}" in text
    assert f"configuration {sample_experiment().config_hash()}" in text


def test_the_headline_shows_every_row_and_the_bound_beside_the_latency() -> None:
    result = sample_result()
    headline = tables(result, sample_experiment())[0]
    assert len(headline.rows) == len(result.rows)
    latency, bound = headline.header.index("latency (ms)"), headline.header.index("bound (ms)")
    assert bound == latency + 1
    assert headline.rows[0][latency] == "240"
    assert "agx_orin+flexgen_stream" in headline.note


def test_the_terminal_table_fits_80_columns_without_cutting_a_word() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    longest = replace(sample_rows()[0], platform="agx_orin_paper", stage="question", energy_gain=1234.5)
    console.print(terminal_table((*sample_rows(), longest), sample_experiment()))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert sum("agx_orin+flexgen_stream" in line for line in lines) == 10
    assert [line.split()[0] for line in lines[-2:] if line.strip()] == ["agx_orin_paper", "+flexgen_stream"]
