"""A cell that stands in several lanes is one row of cells.csv; tables show it in each of them. Pure."""

import pandas as pd

from orchestrator.report.columns import BASELINE

SAME_AS = "same_as"  # column: the lane in whose row a cell is listed; empty in that row itself


def in_every_lane(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with a row for each lane they stand in, a copy behind its original. cells: of `columns.normalise`.

    A 16-bit baseline is compared with whatever the lane, so it stays one row.
    """
    originals = cells.assign(**{SAME_AS: None})
    copied = cells["also_in_lane"].notna() & (cells["method"] != BASELINE)
    twice = originals[copied]
    if twice.empty:
        return originals
    copies = twice.assign(lane=twice["also_in_lane"].str.split(", "), **{SAME_AS: twice["lane"]}).explode("lane")
    return pd.concat([originals, copies]).sort_index(kind="stable").reset_index(drop=True)
