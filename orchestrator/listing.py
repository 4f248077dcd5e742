"""Rows of text in aligned columns, for a terminal or a file.

rich's own table takes half a millisecond for a row and shortens what is wider than the terminal; sweeps have thousands
of cells, and a label that is cut names no cell.
"""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

MAX_LINES = 500  # more rows than that nobody reads on a terminal
GAP = "  "


def shows_every_row(console: Console, num_rows: int) -> bool:
    """Whether rows are printed one by one: they are few, or go to a file or another program."""
    return num_rows <= MAX_LINES or not console.is_terminal


def print_listing(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    num_words: int,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Print a header and rows. num_words: leading columns that hold words; the others hold numbers, set to the right.

    A row that is shorter than the header ends with a remark, which may be of any length. colours: word -> style.
    """
    widths = [0] * len(header)
    for row in (header, *rows):
        for i, cell in enumerate(_split(row, len(header))[0]):
            widths[i] = max(widths[i], len(cell))
    lines = [_line(row, widths, num_words) for row in (header, *rows)]
    text = Text("\n".join(lines))
    text.stylize("bold", 0, len(lines[0]))
    for word, style in (colours or {}).items():
        text.highlight_words([word], style)
    console.print(text, soft_wrap=True)


def _line(row: Sequence[str], widths: Sequence[int], num_words: int) -> str:
    cells, remark = _split(row, len(widths))
    placed = [f"{text:<{widths[i]}}" if i < num_words else f"{text:>{widths[i]}}" for i, text in enumerate(cells)]
    return GAP.join([*placed, *remark]).rstrip()


def _split(row: Sequence[str], num_columns: int) -> tuple[Sequence[str], Sequence[str]]:
    """The cells that are aligned, and the remark behind them, if any."""
    return (row, ()) if len(row) == num_columns else (row[:-1], row[-1:])
