"""What to do about a failed cell: a sentence for each kind of failure, and the command that runs cells again."""

import shlex
from collections.abc import Sequence

from orchestrator.cell import Cell
from orchestrator.storage import KEY_DIGITS
from workers.api import FailureKind

MAX_CELLS_NAMED = 5  # a command that names more cells names their kind of failure instead

NEXT_STEPS: dict[FailureKind, str] = {
    FailureKind.TRANSIENT: "the hub or the network did not answer, again and again: see that it does",
    FailureKind.PREREQUISITE: "give the node what the message names",
    FailureKind.BAD_INPUT: "put the file right that the message names",
    FailureKind.NUMERICAL: "mend the weights, or give the method more calibration tokens or damping",
    FailureKind.OUT_OF_MEMORY: "add a node with more memory, or calibrate with fewer or shorter sequences",
    FailureKind.WORKER_LOST: "see in the node's own logs who ended the process, often for want of host memory",
    FailureKind.CUDA: "try one cell by itself under CUDA_LAUNCH_BLOCKING=1: ptqbench cell",
    FailureKind.ENGINE: "see in the log what the engine says; engine=transformers scores without it",
    FailureKind.PARITY: "do not use this engine's numbers for the model; engine=transformers scores without it",
    FailureKind.NO_OP: "see that the method reaches the model's linears and that they are not quantized already",
    FailureKind.DISK_FULL: "make room (ptqbench gc), or give another place: cluster.storage=<directory>",
    FailureKind.TIMEOUT: "raise the limit that the message names, or give the stage more of the machine",
    FailureKind.CANCELLED: "run the sweep again",
    FailureKind.INTERNAL: "a defect of PTQ-Bench: report it with the attempt's log.txt",
}


def resubmit_command(sweep: str, cells: Sequence[Cell], kind: FailureKind) -> str:
    """Run these cells again; where there are many, all of the sweep that failed with this kind."""
    keys = [cell.key[:KEY_DIGITS] for cell in cells]
    chosen = keys if len(keys) <= MAX_CELLS_NAMED else ["--failure", kind.value]
    return f"make resubmit ARGS='{shlex.join([f'name={sweep}', *chosen])}'"
