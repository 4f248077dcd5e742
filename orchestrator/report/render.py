"""Cells -> report.html and report.md: what stands in a report, and in which order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from orchestrator.report import metrics, provenance
from orchestrator.report.claims_table import claims_table
from orchestrator.report.columns import metric_columns, normalise
from orchestrator.report.guide import GUIDE
from orchestrator.report.losses import image_metrics, losses
from orchestrator.report.metrics import Kind
from orchestrator.report.pivots import Pivot, pivots
from orchestrator.report.plots import Plot, perplexity_plots
from orchestrator.report.robustness_tables import over_bits, over_modalities, over_structures
from orchestrator.report.tables import Table, accuracy_table, damage_table, value_table
from workers.files import replace

REQUIRED_FACTS = ("sweep", "date")
MARKDOWN_SPECIAL = "\\`*|[]"


def write_report(
    cells: pd.DataFrame, attempts: pd.DataFrame, directory: Path, *, title: str, facts: Mapping[str, str]
) -> tuple[Path, Path]:
    """Write report.html (one self-contained file) and report.md with its plots (perplexity-<n>.png) into `directory`.

    cells: one row per cell, `columns.COLUMNS` and the metrics. attempts: one row per attempt,
    `provenance.ATTEMPT_COLUMNS`. facts: what is known of the run, printed as it is;
    `sweep` (its name, for the resubmit command) and `date` are required. The same input gives the same bytes.

    Returns the paths of the two files. Raises ValueError when a fact or a column is missing.
    """
    missing = [fact for fact in REQUIRED_FACTS if fact not in facts]
    if missing:
        raise ValueError(f"report of {title!r}: missing facts {missing}; pass them in `facts`")
    content = _content(normalise(cells), attempts)
    plots: list[Plot] = content["plots"]
    images = [(plot, f"perplexity-{number}.png") for number, plot in enumerate(plots, start=1)]
    values = {**content, "title": title, "facts": facts, "guide": GUIDE, "images": images}
    directory.mkdir(parents=True, exist_ok=True)
    for plot, name in images:
        (directory / name).write_bytes(plot.png)
    html, markdown = directory / "report.html", directory / "report.md"
    replace(html, _environment(autoescape=True).get_template("template.html.j2").render(values))
    replace(markdown, _environment(autoescape=False).get_template("template.md.j2").render(values))
    return html, markdown


def _content(cells: pd.DataFrame, attempts: pd.DataFrame) -> dict[str, Any]:
    found = pivots(cells, [metrics.parse(column) for column in metric_columns(cells)])
    first = metrics.primary([p.metric.column for p in found])
    perplexities = sorted(_of_kind(found, Kind.PERPLEXITY), key=lambda p: p.metric.column != first)
    scored = {p.metric.task for p in perplexities}
    # mean_nll beside a perplexity is its logarithm; the damage table already says it
    others = [p for p in _of_kind(found, Kind.NLL) if p.metric.task not in scored] + _of_kind(found, Kind.OTHER)
    read = losses(cells, perplexities[0].metric) if perplexities else []
    seen = [loss for metric in image_metrics(cells) for loss in losses(cells, metric)]
    return {
        "headline": provenance.headline(cells),
        "warnings": provenance.warnings(cells),
        "scored": bool(found),
        "perplexities": [value_table(p) for p in perplexities],
        "damages": [damage_table(p) for p in perplexities],
        "plots": perplexity_plots(perplexities[0]) if perplexities else [],
        "accuracies": [accuracy_table(p) for p in _of_kind(found, Kind.ACCURACY)],
        "robustness": _present(over_bits(read), over_structures(read), over_modalities(read, seen)),
        "claims": claims_table(read, seen),
        "others": [table for p in others for table in (value_table(p), damage_table(p))],
        "degraded": provenance.degraded_table(cells),
        "failures": provenance.failure_table(cells),
        "attempts": provenance.attempts_table(attempts),
        "left_out": provenance.left_out_table(cells),
        "provenance": _present(provenance.calibration_table(cells), provenance.engine_table(cells)),
        "costs": provenance.cost_table(cells),
    }


def _of_kind(found: list[Pivot], kind: Kind) -> list[Pivot]:
    return [p for p in found if p.metric.kind is kind]


def _present(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = _markdown
    return environment


def _markdown(value: str) -> str:
    """Text as it stands in one cell of a Markdown table."""
    for character in MARKDOWN_SPECIAL:
        value = value.replace(character, "\\" + character)
    return " ".join(value.replace("<", "&lt;").replace(">", "&gt;").split())
