import xml.etree.ElementTree as ElementTree
from typing import Any

import pandas as pd
import pytest

from orchestrator.report import metrics
from orchestrator.report import plots as drawing
from orchestrator.report.columns import normalise
from orchestrator.report.panels import MAX_LINES, panels
from orchestrator.report.pivots import pivot
from orchestrator.report.plots import CSS, perplexity_plots

PERPLEXITY = metrics.parse("metric.held_out.perplexity")
SVG = "{http://www.w3.org/2000/svg}"


def test_a_model_is_a_plot_that_names_its_numbers_and_its_gaps(one_seed: pd.DataFrame) -> None:
    first, second = perplexity_plots(pivot(one_seed, PERPLEXITY))
    assert first.words == (
        "16-bit: 20.90; rtn: 2 bits 56.74, 3 bits 23.70, 4 bits 21.43; gptq: 2 bits 29.50, 3 bits 21.84, 4 bits 21.20."
    )
    assert first.note == ""
    assert second.note == "Not drawn, see the table: gptq 2 bits."
    assert first.png.startswith(b"\x89PNG")


def test_an_inline_svg_has_a_title_a_description_and_only_the_colours_of_the_page(one_seed: pd.DataFrame) -> None:
    plots = perplexity_plots(pivot(one_seed, PERPLEXITY))
    roots = [
        ElementTree.fromstring(
            plot.svg.replace(
                "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ', 1
            )
        )
        for plot in plots
    ]
    title = roots[0].find(f"{SVG}title")
    description = roots[0].find(f"{SVG}desc")
    assert title is not None and title.text == plots[0].title
    assert description is not None and description.text == plots[0].words
    assert not any(colour in plot.svg for colour in CSS for plot in plots)
    ids = [element.get("id") for root in roots for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_the_y_axis_is_logarithmic_only_beyond_a_decade(one_seed: pd.DataFrame) -> None:
    llama, mamba = perplexity_plots(pivot(one_seed, PERPLEXITY))
    assert ">1e4<" in mamba.svg
    assert ">30<" in llama.svg and ">40<" in llama.svg


def test_a_method_looks_the_same_in_every_panel(one_seed: pd.DataFrame) -> None:
    table = pivot(one_seed, PERPLEXITY)
    first, second = (panels(table, model)[0] for model in table.models)
    looks = [{s.label: (s.colour, s.marker, s.line) for s in panel.series} for panel in (first, second)]
    assert looks[0] == looks[1]
    assert len(set(looks[0].values())) == 2


def test_a_crowded_model_gets_a_panel_for_each_group_size(cell: Any) -> None:
    methods = [f"method{i}" for i in range(MAX_LINES // 2 + 1)]
    cells = normalise(
        pd.DataFrame(
            [
                cell("m", method, bits, perplexity=20.0 + bits, group_size=size, label=f"m {method} {bits} g{size}")
                for method in methods
                for bits in (3, 4)
                for size in (64, 128)
            ]
        )
    )
    table = pivot(cells, PERPLEXITY)
    found = panels(table, table.models[0])
    assert [panel.name for panel in found] == ["m, g64", "m, g128"]
    assert [s.label for s in found[0].series] == methods
    assert len({(s.colour, s.marker) for s in found[0].series}) == len(methods)
    assert "method8" in perplexity_plots(table)[0].svg


@pytest.mark.parametrize("value", [float("inf"), None])
def test_a_model_without_a_finite_value_has_no_plot(cell: Any, value: float | None) -> None:
    assert perplexity_plots(pivot(normalise(pd.DataFrame([cell("m", "rtn", 2, perplexity=value)])), PERPLEXITY)) == []


def test_of_many_figures_the_first_are_drawn_and_the_others_are_named(
    cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "MAX_PLOTS", 2)
    cells = [cell(f"model{i}", "rtn", bits, perplexity=20.0 + bits) for i in range(4) for bits in (2, 3)]
    first, second = perplexity_plots(pivot(normalise(pd.DataFrame(cells)), PERPLEXITY))
    assert first.note == ""
    assert second.note == "2 more figures are left out, the tables hold their numbers: model2, model3."
