"""What waits to be run: stages of cells, in queues of one kind each."""

import heapq
from dataclasses import dataclass, field

from orchestrator.events import Job, Stage
from orchestrator.placement import Placement
from orchestrator.retry import Ladder

Kind = tuple[str | None, Placement]  # what work asks for: a host of which host_key (null for quantize), and how large


@dataclass(eq=False)
class Work:
    """A stage to run, as an attempt of the first of its cells. cells: who waits for it, in grid order.

    A checkpoint is made once for all cells that share it; an evaluation is for one cell.
    """

    stage: Stage
    cells: list[Job]

    @property
    def key(self) -> str:
        return self.cells[0].key

    @property
    def ladder(self) -> Ladder:
        return self.cells[0].quantize if self.stage is Stage.QUANTIZE else self.cells[0].evaluate

    @property
    def seconds(self) -> float:
        job = self.cells[0]
        return job.quantize_seconds if self.stage is Stage.QUANTIZE else job.evaluate_seconds

    @property
    def is_baseline(self) -> bool:
        return self.cells[0].is_baseline

    @property
    def host_key(self) -> str | None:
        return None if self.stage is Stage.QUANTIZE else self.cells[0].host_key


@dataclass(eq=False)
class Queue:
    """Waiting work of one kind: baselines first, then the longest, then as in the grid."""

    kind: Kind
    heap: list[tuple[bool, float, int, Work]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def head(self) -> Work:
        return self.heap[0][-1]

    @property
    def head_order(self) -> int:
        return self.heap[0][2]

    def push(self, work: Work, order: int) -> None:
        heapq.heappush(self.heap, (not work.is_baseline, -work.seconds, order, work))
        self.seconds += work.seconds

    def pop(self) -> Work:
        work = heapq.heappop(self.heap)[-1]
        self.seconds -= work.seconds
        return work
