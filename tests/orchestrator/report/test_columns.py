import io

import pandas as pd
import pytest

from orchestrator.report.columns import COLUMNS, DESCRIPTIONS, metric_columns, normalise


def test_every_column_says_what_it_is() -> None:
    assert tuple(DESCRIPTIONS) == COLUMNS
    assert all(DESCRIPTIONS.values())
    assert (COLUMNS[0], COLUMNS[-1], len(COLUMNS)) == ("cell_key", "averages", 32)


def test_standard_errors_are_not_metrics_of_their_own(sweep: pd.DataFrame) -> None:
    assert metric_columns(sweep) == ["metric.held_out.perplexity", "metric.mini_continuation.acc"]


def test_a_frame_read_back_from_csv_is_the_same_as_the_frame_itself(sweep: pd.DataFrame) -> None:
    read = pd.read_csv(io.StringIO(sweep.to_csv(index=False)))
    pd.testing.assert_frame_equal(normalise(read), normalise(sweep))


def test_empty_text_means_nothing(sweep: pd.DataFrame) -> None:
    sweep["degraded"] = sweep["degraded"].astype(object).where(sweep["degraded"].notna(), "")
    assert normalise(sweep)["degraded"].notna().sum() == 2


def test_a_missing_column_is_named(sweep: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="bits_per_weight"):
        normalise(sweep.drop(columns="bits_per_weight"))
