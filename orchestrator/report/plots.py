"""Perplexity against true bits per weight, one figure per model (per model, group size and lane when it gets crowded).

The x axis is what a method really spends (scales and zero points included), because that is what a user pays for; the
nominal bits stand over the band their cells span. Output is deterministic.
"""

import io
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from matplotlib.typing import RcKeyType

from orchestrator.report import text
from orchestrator.report.panels import COLOURS, Panel, Series, has_point, in_words, panels
from orchestrator.report.pivots import Entry, Pivot

INK, GRID, BAND, PAPER = "#1b1f24", "#d5d9de", "#eef0f3", "#fefefe"
CSS: dict[str, str] = {
    INK: "var(--ink)",
    GRID: "var(--rule)",
    BAND: "var(--band)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(COLOURS, start=1)},
}
"""Colour in the figure -> variable of the page, so that an inline SVG follows the light and the dark scheme."""

SETTINGS: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "ptq-bench",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
}
WIDTH_INCHES, HEIGHT_INCHES, LEGEND_ROW_INCHES = 5.4, 3.9, 0.24
MAX_PLOTS = 24  # a second each, and more than that nobody compares
DECADE = 10.0
MAX_DIRECT_LABELS, MAX_LEADER_BITS = 8, 0.3
LABEL_GAP_POINTS = 14.0
LEGEND_CHARACTERS = 54  # what fits beside each other in the width of a figure, at 6 characters for a line's sample


@dataclass(frozen=True)
class Plot:
    """One figure. svg: an element to put into a page. png: a file's bytes.

    words: the numbers drawn. note: what is not drawn; '' when everything is.
    """

    title: str
    words: str
    note: str
    svg: str
    png: bytes


def perplexity_plots(pivot: Pivot) -> list[Plot]:
    """A plot for each model that has at least one point, at most MAX_PLOTS; the last says which are left out."""
    drawable = [panel for model in pivot.models for panel in panels(pivot, model)]
    plots = [_plot(pivot, panel, index) for index, panel in enumerate(drawable[:MAX_PLOTS], start=1)]
    left_out = ", ".join(panel.name for panel in drawable[MAX_PLOTS:])
    if left_out:
        more = f"{len(drawable) - MAX_PLOTS} more figures are left out, the tables hold their numbers: {left_out}."
        plots[-1] = replace(plots[-1], note=f"{plots[-1].note} {more}".strip())
    return plots


def _plot(pivot: Pivot, panel: Panel, index: int) -> Plot:
    title = f"{panel.name}: {pivot.metric.name} against bits per weight"
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        _draw(figure, pivot, panel)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    words = in_words(panel)
    return Plot(title, words, panel.note, _inline(svg.getvalue(), f"plot{index}", title, words), png.getvalue())


def _draw(figure: Figure, pivot: Pivot, panel: Panel) -> None:
    axes, series = figure.add_subplot(), panel.series
    drawn = [(bits, e) for s in series for bits, e in s.points if has_point(e)]
    baselines = [(v, e.mean) for v, e in panel.baselines.items() if e.mean is not None and math.isfinite(e.mean)]
    values = [value for _, e in drawn for value in _extent(e)] + [mean for _, mean in baselines]
    _scale_y(axes, min(values), max(values))
    _scale_x(axes, drawn)
    _bands(axes, drawn)
    for variant, mean in baselines:
        axes.axhline(mean, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        name = f"16-bit {text.number(mean, 2)} {variant}".strip()
        axes.annotate(
            name, (0, mean), xycoords=("axes fraction", "data"), xytext=(4, -4), textcoords="offset points",
            ha="left", va="top", fontsize=9,
        )  # fmt: skip
    for one in series:
        _line(axes, one)
    if _fit_direct_labels(series):
        _label_directly(figure, axes, series)
    else:
        _legend(figure, axes)
    axes.set_xlabel("true bits per weight (scales and zero points included)")
    axes.set_ylabel(f"{pivot.metric.name}, lower is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _extent(entry: Entry) -> tuple[float, ...]:
    """What has to be visible of an entry: its mean and, where they are positive, the ends of its error bar."""
    mean, deviation = entry.mean or 0.0, entry.deviation or 0.0
    return tuple(value for value in (mean - deviation, mean, mean + deviation) if value > 0)


def _scale_y(axes: Axes, low: float, high: float) -> None:
    """Logarithmic when the values span more than a decade; room below for the baseline's label."""
    if high > DECADE * low:
        room = math.log(high / low)
        axes.set_yscale("log")
        axes.set_ylim(low * math.exp(-0.12 * room), high * math.exp(0.12 * room))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if room < math.log(1e3) else (1.0,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.number(value, 0)))
    else:
        room = max(high - low, 0.01 * high)
        axes.set_ylim(low - 0.12 * room, high + 0.12 * room)


def _scale_x(axes: Axes, drawn: list[tuple[int, Entry]]) -> None:
    """Ticks at whole bits; room at the left for the names of the lines."""
    xs = [e.bits_per_weight for _, e in drawn if e.bits_per_weight is not None]
    low, high = min(xs), max(xs)
    width = max(high - low, 1.0)
    axes.set_xlim(low - 0.32 * width, high + 0.08 * width)
    axes.xaxis.set_major_locator(FixedLocator(list(range(math.floor(low), math.floor(high) + 1))))


def _bands(axes: Axes, drawn: list[tuple[int, Entry]]) -> None:
    """Shade what the cells of one nominal bits span and name it; where spans overlap, name each point instead."""
    spans: dict[int, tuple[float, float]] = {}
    for bits, entry in drawn:
        x = entry.bits_per_weight
        if x is not None:
            low, high = spans.get(bits, (x, x))
            spans[bits] = (min(low, x), max(high, x))
    ordered = sorted(spans.items())
    margin = 0.05
    apart = all(a[1] + 2 * margin < b[0] for (_, a), (_, b) in itertools.pairwise(ordered))
    if apart:
        for bits, (low, high) in ordered:
            axes.axvspan(low - margin, high + margin, color=BAND, zorder=0, linewidth=0)
            axes.annotate(
                f"{bits}-bit", ((low + high) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", va="bottom", fontsize=9,
            )  # fmt: skip
        return
    for bits, entry in drawn:
        axes.annotate(
            str(bits), (entry.bits_per_weight or 0.0, entry.mean or 0.0), xytext=(5, 4), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip


def _line(axes: Axes, series: Series) -> None:
    """A missing point breaks the line: what was not measured is not drawn."""
    nothing = math.nan
    points = [e if has_point(e) else None for _, e in series.points]
    xs = [nothing if e is None or e.bits_per_weight is None else e.bits_per_weight for e in points]
    ys = [nothing if e is None or e.mean is None else e.mean for e in points]
    deviations = [nothing if e is None or e.deviation is None else e.deviation for e in points]
    fill, edge, width = (PAPER, series.colour, 1.5) if series.hollow else (series.colour, PAPER, 0.8)
    axes.errorbar(
        xs, ys, yerr=deviations, label=series.label, color=series.colour, linestyle=series.line, linewidth=1.6,
        marker=series.marker, markersize=6.5, markerfacecolor=fill, markeredgecolor=edge, markeredgewidth=width,
        capsize=3, zorder=3,
    )  # fmt: skip


def _start(series: Series) -> tuple[float, float]:
    """(true bits per weight, value) of the first point."""
    entry = next(e for _, e in series.points if has_point(e))
    return entry.bits_per_weight or 0.0, entry.mean or 0.0


def _fit_direct_labels(series: tuple[Series, ...]) -> bool:
    """Few lines, which start side by side: then each can be named where it starts."""
    starts = [_start(one)[0] for one in series]
    return len(series) <= MAX_DIRECT_LABELS and max(starts) - min(starts) <= MAX_LEADER_BITS


def _label_directly(figure: Figure, axes: Axes, series: tuple[Series, ...]) -> None:
    """Names in a column left of the lines, where they lie furthest apart, pushed up until each is legible."""
    figure.draw_without_rendering()
    pixels_per_point = figure.dpi / 72
    starts = sorted(((*_start(one), one) for one in series), key=lambda start: start[1])
    places = [axes.transData.transform((x, y)) / pixels_per_point for x, y, _ in starts]
    column, floor = min(float(x) for x, _ in places) - 14, -math.inf
    for (x, y, one), (across, up) in zip(starts, places, strict=True):
        height = max(float(up), floor)
        floor = height + LABEL_GAP_POINTS
        axes.annotate(
            one.label, (x, y), xytext=(column - float(across), height - float(up)), textcoords="offset points",
            ha="right", va="center",
            arrowprops={"arrowstyle": "-", "color": one.colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip


def _legend(figure: Figure, axes: Axes) -> None:
    """Under the axes, in as many columns as fit; the figure grows by its rows."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, LEGEND_CHARACTERS // (6 + max(map(len, labels))))
    figure.set_figheight(HEIGHT_INCHES + LEGEND_ROW_INCHES * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _inline(svg: str, prefix: str, title: str, words: str) -> str:
    """matplotlib's file as an element: accessible, ids unique in the page, colours from the page's scheme."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = _recolour(body, CSS)
    head = (
        f'<svg role="img" aria-labelledby="{prefix}-title {prefix}-desc">'
        f'<title id="{prefix}-title">{escape(title)}</title><desc id="{prefix}-desc">{escape(words)}</desc>'
    )
    view = re.search(r'viewBox="[^"]+"', body)
    if view is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox; the report cannot scale it")
    rest = body[body.index(">") + 1 :]
    return head.replace("<svg ", f"<svg {view.group(0)} ", 1) + rest.strip()


def _recolour(svg: str, colours: Mapping[str, str]) -> str:
    for colour, variable in colours.items():
        svg = svg.replace(colour, variable)
    return svg
