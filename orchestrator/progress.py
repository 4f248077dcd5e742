"""What a person sees while a sweep runs: counts, a bar, what is at work, and every end as a line."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from orchestrator.cell import Cell
from workers.api import Failure


class SweepProgress:
    """A live line on a terminal; plain lines, one per end, where there is none."""

    def __init__(self, console: Console, num_cells: int, seconds_estimated: float) -> None:
        """seconds_estimated: of all stages of all cells, one after the other."""
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=num_cells)
        self._started = time.monotonic()
        self._running: dict[str, str] = {}
        self._num_failed = 0
        self._num_retries = 0
        self._estimate = seconds_estimated
        self._estimate_done = 0.0

    def __enter__(self) -> "SweepProgress":
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def started(self, cell: Cell, stage: str) -> None:
        """A stage of a cell has begun."""
        self._running[cell.key] = f"{stage} {cell.label}"
        self._refresh()

    def ended(self, cell: Cell, seconds_estimated: float) -> None:
        """A stage of a cell is over. seconds_estimated: of that stage; 0 where it has to be done again."""
        self._running.pop(cell.key, None)
        self._estimate_done += seconds_estimated
        self._refresh()

    def succeeded(self, cell: Cell, summary: str) -> None:
        """A cell is done."""
        self._end(cell)
        self._say("done", "green", cell, (summary, "dim"))

    def left_to_another(self, cell: Cell) -> None:
        """Another sweep has the cell."""
        self._end(cell)
        self._say("left", "cyan", cell, ("another sweep has it", "dim"))

    def failed(self, cell: Cell, failure: Failure, *, final: bool) -> None:
        """An attempt failed; with final, the cell."""
        if final:
            self._num_failed += 1
            self._end(cell)
        else:
            self._num_retries += 1
            self.ended(cell, 0.0)
        word, colour = ("FAILED", "red") if final else ("retry", "yellow")
        first_line = failure.message.partition("\n")[0]
        self._say(word, colour, cell, (f"{failure.kind} in {failure.stage}: {first_line}", ""))

    def note(self, text: str) -> None:
        """Something about the cluster rather than a cell."""
        self._console.print(text, style="yellow", markup=False, highlight=False)

    def _say(self, word: str, colour: str, cell: Cell, rest: tuple[str, str]) -> None:
        """A line that stays, in one print: the live line is drawn again after each. rest: text and style."""
        self._console.print(Text.assemble((f"{word:<8}", colour), f"{cell.label}  ", rest))

    def _end(self, cell: Cell) -> None:
        self._running.pop(cell.key, None)
        self._progress.update(self._task, advance=1)
        self._refresh()

    def _refresh(self) -> None:
        parts = [f"{len(self._running)} running", f"{self._num_failed} failed", f"ETA {self._eta()}"]
        if self._num_retries:
            parts.insert(2, f"{self._num_retries} retried")
        if self._running:
            parts.append(", ".join(list(self._running.values())[:2]))
        self._progress.update(self._task, description="  ".join(parts))

    def _eta(self) -> str:
        """From the share of the estimated work that is done; from the estimate itself before that.

        A count of cells would say nothing for long: checkpoints come first, and the longest of them.
        """
        elapsed, left = time.monotonic() - self._started, max(self._estimate - self._estimate_done, 0.0)
        seconds = elapsed / self._estimate_done * left if self._estimate_done else max(left - elapsed, 0.0)
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
