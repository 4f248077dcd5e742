import math
import statistics
from typing import Any

import pandas as pd
import pytest

from orchestrator.report import metrics
from orchestrator.report.columns import normalise
from orchestrator.report.pivots import Entry, Pivot, Row, difference, log_ratio, pivot, ratio, relative, variants, wins

PERPLEXITY = metrics.parse("metric.held_out.perplexity")


def row(table: Pivot, model: str, method: str, **same: Any) -> Row:
    (found,) = [
        r
        for m in table.models
        for r in m.rows
        if (m.model, r.method) == (model, method) and all(getattr(r, name) == value for name, value in same.items())
    ]
    return found


def test_an_entry_is_the_mean_and_the_standard_deviation_over_seeds(clean: pd.DataFrame) -> None:
    table = pivot(clean, PERPLEXITY)
    entry = row(table, "mini-llama", "rtn").entries[2]
    assert table.bits == (2, 3, 4)
    assert entry.values == (56.74, 56.74 * 1.01)
    assert entry.mean == pytest.approx(57.0237)
    assert entry.deviation == pytest.approx(0.5674 / math.sqrt(2))
    assert entry.bits_per_weight == 2.25


def test_models_and_methods_stand_in_the_order_of_the_sweep(clean: pd.DataFrame) -> None:
    table = pivot(clean, PERPLEXITY)
    assert [m.model for m in table.models] == ["mini-llama", "mini-mamba"]
    assert [r.method for r in table.models[0].rows] == ["rtn", "gptq"]
    assert table.models[0].baselines[""].values == (20.9,)


def test_damage_is_a_ratio_and_a_difference_in_nats() -> None:
    baseline, entry = Entry(values=(20.0,)), Entry(values=(22.0, 24.0))
    assert relative(entry, baseline, ratio).values == (1.1, 1.2)
    assert relative(entry, baseline, log_ratio).values == pytest.approx((math.log(1.1), math.log(1.2)))
    assert relative(Entry(values=(0.61,)), Entry(values=(0.64,)), difference).mean == pytest.approx(-0.03)


def test_damage_without_a_baseline_has_no_value() -> None:
    assert relative(Entry(values=(22.0,)), Entry(missing=(("FAILED: CUDA", 1),)), ratio).mean is None


def test_a_place_without_a_value_says_why(clean: pd.DataFrame, cell: Any) -> None:
    more = pd.DataFrame(
        [
            cell("mini-llama", "awq", 2, status="NOT_IMPLEMENTED"),
            cell("mini-llama", "awq", 3, perplexity=22.0, **{"metric.held_out.perplexity": math.nan}),
        ]
    )
    table = pivot(normalise(pd.concat([clean, more])), PERPLEXITY)
    assert row(table, "mini-mamba", "gptq").entries[2].missing == (("FAILED: NUMERICAL", 2),)
    awq = row(table, "mini-llama", "awq").entries
    assert [awq[b].missing for b in (2, 3, 4)] == [
        (("NOT_IMPLEMENTED", 1),),
        (("not scored", 1),),
        (("not in the sweep", 0),),
    ]


def test_every_entry_has_a_value_or_a_reason(clean: pd.DataFrame) -> None:
    for model in pivot(clean, PERPLEXITY).models:
        for one in model.rows:
            assert all(entry.values or entry.missing for entry in one.entries.values())


def test_degraded_cells_are_counted(clean: pd.DataFrame) -> None:
    table = pivot(clean, PERPLEXITY)
    assert row(table, "mini-mamba", "gptq").entries[3].degraded == 2
    assert row(table, "mini-mamba", "gptq").entries[4].degraded == 0


def test_gptq_wins_where_the_gap_exceeds_two_pooled_deviations(clean: pd.DataFrame) -> None:
    table = pivot(clean, PERPLEXITY)
    for bits in (2, 3, 4):
        gptq, rtn = (row(table, "mini-llama", method).entries[bits] for method in ("gptq", "rtn"))
        pooled = math.sqrt((statistics.variance(gptq.values) + statistics.variance(rtn.values)) / 2)
        assert gptq.best == (statistics.mean(rtn.values) - statistics.mean(gptq.values) > 2 * pooled)
        assert not rtn.best
    assert [row(table, "mini-llama", "gptq").entries[b].best for b in (2, 3, 4)] == [True, True, False]


def test_nobody_wins_with_one_seed(one_seed: pd.DataFrame) -> None:
    entries = [e for m in pivot(one_seed, PERPLEXITY).models for r in m.rows for e in r.entries.values()]
    assert not any(entry.best for entry in entries)


def test_a_winner_needs_a_rival_two_seeds_and_an_undegraded_checkpoint() -> None:
    good, bad = Entry(values=(10.0, 10.1)), Entry(values=(20.0, 20.1))
    assert wins(good, [bad], lower_is_better=True)
    assert wins(bad, [good], lower_is_better=False)
    assert not wins(bad, [good], lower_is_better=True)
    assert not wins(good, [], lower_is_better=True)
    assert not wins(good, [Entry(values=(20.0,))], lower_is_better=True)
    assert not wins(Entry(values=(10.0, 10.1), degraded=1), [bad], lower_is_better=True)
    assert not wins(good, [Entry(values=(10.1, 10.2))], lower_is_better=True)


def test_a_diverged_rival_has_no_spread_to_compare_with() -> None:
    diverged = Entry(values=(math.inf, math.inf))
    assert diverged.mean == math.inf
    assert diverged.deviation is None
    assert not wins(Entry(values=(10.0, 10.1)), [diverged], lower_is_better=True)


def test_group_sizes_and_lanes_are_lines_of_their_own_and_do_not_compete(cell: Any) -> None:
    cells = [
        cell(
            "m", "gptq", 3, seed, value + 0.01 * seed, label=f"m gptq g{size} {lane} {seed}", group_size=size, lane=lane
        )
        for seed in (0, 1)
        for size, lane, value in ((math.nan, "unified", 30.0), (128, "unified", 20.0), (128, "published", 10.0))
    ]
    table = pivot(normalise(pd.DataFrame(cells)), PERPLEXITY)
    rows = table.models[0].rows
    assert [(r.group_size, r.lane) for r in rows] == [(None, "unified"), (128, "unified"), (128, "published")]
    assert not any(r.entries[3].best for r in rows)
    assert (table.distinct("group_size"), table.distinct("lane"), table.distinct("variant")) == (2, 2, 1)


def test_cells_of_another_axis_are_not_averaged_as_if_they_were_seeds(cell: Any) -> None:
    cells = [
        cell("m", "gptq", bits, seed, 20.0 + damping, label=f"m gptq {bits} damping={damping} seed={seed}")
        for bits in (3, 4)
        for seed in (0, 1)
        for damping in (0.01, 0.1)
    ]
    rows = pivot(normalise(pd.DataFrame(cells)), PERPLEXITY).models[0].rows
    assert [r.variant for r in rows] == ["damping=0.01", "damping=0.1"]
    assert [r.entries[4].values for r in rows] == [(20.01, 20.01), (20.1, 20.1)]


def test_cells_with_equal_labels_are_told_apart_by_their_keys(cell: Any) -> None:
    cells = [cell("m", "gptq", 3, perplexity=20.0, label="m gptq", cell_key=key) for key in ("aaaaaaaa1", "bbbbbbbb2")]
    assert list(variants(normalise(pd.DataFrame(cells)))) == ["aaaaaaaa", "bbbbbbbb"]


def test_each_variant_is_compared_with_its_own_baseline(cell: Any) -> None:
    cells = [
        cell("m", method, bits, perplexity=value, label=f"m {method} {dtype}")
        for dtype, shift in (("float32", 0.0), ("bfloat16", 1.0))
        for method, bits, value in (("none", 16, 20.0 + shift), ("rtn", 4, 22.0 + shift))
    ]
    model = pivot(normalise(pd.DataFrame(cells)), PERPLEXITY).models[0]
    assert [model.baseline_of(r).values for r in model.rows] == [(20.0,), (21.0,)]


def test_a_baseline_made_once_for_each_lane_is_one_baseline(cell: Any) -> None:
    cells = [
        cell("m", "none", 16, perplexity=20.0, label=f"m none {lane}", lane=lane) for lane in ("unified", "published")
    ]
    model = pivot(normalise(pd.DataFrame(cells)), PERPLEXITY).models[0]
    assert model.baselines[""].mean == 20.0
    assert model.rows == ()


def test_no_metric_of_unknown_direction_has_a_winner(cell: Any) -> None:
    column = "metric.task.surprise"
    cells = [
        cell("m", method, 3, seed, 1.0, **{column: value + 0.001 * seed})
        for seed in (0, 1)
        for method, value in (("rtn", 1.0), ("gptq", 9.0))
    ]
    rows = pivot(normalise(pd.DataFrame(cells)), metrics.parse(column)).models[0].rows
    assert not any(r.entries[3].best for r in rows)
