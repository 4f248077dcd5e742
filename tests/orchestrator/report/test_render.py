import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from orchestrator.report.provenance import ATTEMPT_COLUMNS
from orchestrator.report.render import write_report
from tests.orchestrator.report import several_models

FACTS = {"sweep": "mini", "date": "2026-11-22", "git commit": "0123abc"}
ATTEMPTS = pd.DataFrame(
    [
        ("cell | a", 1, "WORKER_LOST", "quantize", "2026-11-22 14:00:00", 12.0, "the worker <died>"),
        ("cell | a", 2, "SUCCEEDED", "", "2026-11-22 14:01:00", 60.0, ""),
        ("cell | b", 1, "SUCCEEDED", "", "2026-11-22 14:02:00", 60.0, ""),
    ],
    columns=list(ATTEMPT_COLUMNS),
)
VOID = {"meta", "br", "hr", "img", "link", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """Checks that tags nest; collects text, ids and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "xlink:href") and value:
                self.targets.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: Path) -> Page:
    page = Page()
    page.feed(html.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def test_the_page_is_well_formed_and_names_every_cell(sweep: pd.DataFrame, tmp_path: Path) -> None:
    html, markdown = write_report(sweep, ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)
    page, text = parsed(html), markdown.read_text(encoding="utf-8")
    words = " ".join(page.text)
    for label in sweep["label"]:
        assert label in words
        assert label in text


def test_the_page_is_self_contained_and_its_links_lead_somewhere(sweep: pd.DataFrame, tmp_path: Path) -> None:
    page = parsed(write_report(sweep, ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)[0])
    assert len(page.ids) == len(set(page.ids))
    assert {"#failures", "#degraded"} <= set(page.targets)
    assert all(target.startswith("#") and target[1:] in page.ids for target in page.targets)


def test_several_models_have_tables_of_robustness_and_one_has_none(tmp_path: Path) -> None:
    few = [row for row in several_models.rows() if row["model"] in ("mini-llama", "mini-mixtral")]
    html, markdown = write_report(pd.DataFrame(few), ATTEMPTS, tmp_path, title="Several", facts=FACTS)
    words = " ".join(parsed(html).text)
    for title in ("Robustness over bits", "Robustness over structures", "The paper's claims (arXiv 2502.13178)"):
        assert title in words and title in markdown.read_text(encoding="utf-8")
    assert "Robustness over modalities" not in words
    alone = pd.DataFrame([row for row in few if row["model"] == "mini-llama" and row["method"] in ("none", "rtn")])
    html, _ = write_report(alone, ATTEMPTS, tmp_path, title="One", facts=FACTS)
    assert "Robustness over" not in " ".join(parsed(html).text)


def test_messages_are_escaped(sweep: pd.DataFrame, tmp_path: Path) -> None:
    html, markdown = write_report(sweep, ATTEMPTS, tmp_path, title="a < b", facts=FACTS)
    assert "layer 3: &lt;H&gt; | not PD" in html.read_text(encoding="utf-8")
    assert "<title>a &lt; b</title>" in html.read_text(encoding="utf-8")
    assert "layer 3: &lt;H&gt; \\| not PD" in markdown.read_text(encoding="utf-8")


def test_every_markdown_table_has_as_many_columns_in_each_row(sweep: pd.DataFrame, tmp_path: Path) -> None:
    text = write_report(sweep, ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)[1].read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 10
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1


def test_the_images_of_the_markdown_lie_beside_it(sweep: pd.DataFrame, tmp_path: Path) -> None:
    text = write_report(sweep, ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)[1].read_text(encoding="utf-8")
    names = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert names == ["perplexity-1.png", "perplexity-2.png"]
    assert all((tmp_path / name).is_file() for name in names)


def test_failures_come_with_the_command_that_runs_them_again(sweep: pd.DataFrame, tmp_path: Path) -> None:
    html, markdown = write_report(sweep, ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)
    assert "make resubmit ARGS='name=mini'" in parsed(html).text
    assert "make resubmit ARGS='name=mini'" in markdown.read_text(encoding="utf-8")


def test_the_history_of_cells_that_were_tried_again_is_shown(sweep: pd.DataFrame, tmp_path: Path) -> None:
    html, markdown = write_report(sweep, ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)
    words = " ".join(parsed(html).text)
    assert "cell | a" in words and "WORKER_LOST in quantize" in words and "the worker <died>" in words
    assert "cell | b" not in words
    assert "| 1 | (WORKER_LOST in quantize)" in markdown.read_text(encoding="utf-8").replace("\\", "")


def test_a_rerun_writes_the_same_bytes(sweep: pd.DataFrame, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        write_report(sweep, ATTEMPTS, directory, title="Sweep mini", facts=FACTS)
    names = sorted(path.name for path in first.iterdir())
    assert names == ["perplexity-1.png", "perplexity-2.png", "report.html", "report.md"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_perplexity_comes_first_and_its_mean_nll_is_not_repeated(sweep: pd.DataFrame, tmp_path: Path) -> None:
    sweep["metric.held_out.mean_nll"] = 3.0
    text = write_report(sweep, ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)[1].read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)", text, flags=re.MULTILINE)
    assert headings[:3] == [
        "held_out perplexity",
        "Damage: held_out perplexity against the same model in 16 bits",
        "mini_continuation acc",
    ]
    assert "Other metrics" not in text


@pytest.mark.parametrize("status", ["PENDING", "NOT_IMPLEMENTED"])
def test_a_sweep_without_any_metric_still_has_a_report(cell: Any, tmp_path: Path, status: str) -> None:
    cells = pd.DataFrame([cell("m", "rtn", 4, status=status)]).drop(columns="metric.held_out.perplexity")
    page = parsed(write_report(cells, ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)[0])
    assert "No metric has been recorded yet" in " ".join(page.text)
    assert status in page.text


def test_a_sweep_without_cells_still_has_a_report(sweep: pd.DataFrame, tmp_path: Path) -> None:
    page = parsed(write_report(sweep.iloc[:0], ATTEMPTS, tmp_path, title="Sweep mini", facts=FACTS)[0])
    assert "No cell failed." in page.text


def test_a_missing_fact_is_named(sweep: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="date"):
        write_report(sweep, ATTEMPTS, tmp_path, title="Sweep mini", facts={"sweep": "mini"})
