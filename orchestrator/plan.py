"""What a sweep would take, printed before anything is spent. Estimates, not measurements."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from conf.schema import NodeConf
from orchestrator.cell import Cell, CellStatus
from orchestrator.cost_model import evaluate_cost, quantize_cost
from orchestrator.jobs import place
from orchestrator.memory_model import disk, evaluate_memory, quantize_memory
from orchestrator.placement import NoPlacement, Placement
from orchestrator.storage import CellState
from orchestrator.sweep import Sweep

GIB = 2**30


@dataclass(frozen=True)
class CellPlan:
    """One cell's estimate. hours: GPU-hours, or hours of the machine where it has no GPU."""

    hours: float
    device_gib: float
    host_gib: float
    disk_gib: float
    placement: str
    problem: str | None = None


def plan_cell(cell: Cell, nodes: list[NodeConf]) -> CellPlan:
    """Estimate a cell from its shape alone, whether or not its method is built."""
    config, architecture, shape = cell.config, cell.model.architecture, cell.shape
    node = next((n for n in nodes if n.num_gpus), nodes[0])
    quantize, evaluate = place(cell, nodes)
    size = evaluate.tensor_parallel_size if isinstance(evaluate, Placement) else 1
    q_seconds = quantize_cost(
        architecture, shape, config.method, config.scheme, config.calibration, config.numerics, node
    ).seconds
    num_gpus = evaluate.num_gpus if isinstance(evaluate, Placement) else 0
    e_seconds = evaluate_cost(
        architecture, shape, config.scheme, cell.engine.weight_format, config.suite, node, num_gpus
    ).seconds
    q_memory = quantize_memory(architecture, shape, config.method, config.calibration, config.numerics)
    e_memory = evaluate_memory(architecture, shape, config.scheme, cell.engine.weight_format, config.suite, size)
    space = disk(architecture, shape, config.scheme, cell.engine.weight_format, config.calibration)
    problems = [p.reason for p in (quantize, evaluate) if isinstance(p, NoPlacement)]
    hours = _gpu_hours(q_seconds, e_seconds, quantize, num_gpus)
    return CellPlan(
        hours=hours,
        device_gib=max(q_memory.device_bytes, e_memory.device_bytes) / GIB,
        host_gib=max(p.memory_gib for p in (quantize, evaluate) if isinstance(p, Placement)) if not problems else 0.0,
        disk_gib=space.kept / GIB,
        placement=f"{_spoken(quantize)} / {_spoken(evaluate)}",
        problem="; ".join(problems) or None,
    )


def print_plan(
    console: Console, sweep: Sweep, cells: list[Cell], states: dict[str, CellState], nodes: list[NodeConf]
) -> None:
    """One line per cell, then totals and every reason why a cell cannot run."""
    hours = "GPU-h" if any(node.num_gpus for node in nodes) else "hours"
    table = Table(
        "cell", "status", hours, "GPU GiB", "host GiB", "disk GiB", "GPUs", "engine", box=None, pad_edge=False
    )
    table.columns[0].no_wrap = True
    for column in table.columns[2:6]:
        column.justify = "right"
    plans = {cell.key: plan_cell(cell, nodes) for cell in cells}
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        estimate, status = plans[cell.key], _status(cell, states)
        for reason in filter(None, (cell.support_reason or estimate.problem or "").split("; ")):
            reasons.setdefault(f"{status}: {reason}", []).append(cell.label)
        table.add_row(
            cell.label,
            status,
            _hours(estimate.hours),
            f"{estimate.device_gib:.1f}",
            f"{estimate.host_gib:.1f}",
            f"{estimate.disk_gib:.1f}",
            estimate.placement,
            cell.engine.name,
        )
    console.print(table)
    for note in dict.fromkeys(note for cell in cells for note in cell.notes):
        console.print(f"note: {note}", highlight=False)
    for reason, labels in reasons.items():
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        console.print(f"{len(labels)} x {reason}\n    {', '.join(labels[:3])}{more}", markup=False, highlight=False)
    _print_totals(console, sweep, cells, plans, states, hours)


def _print_totals(
    console: Console,
    sweep: Sweep,
    cells: list[Cell],
    plans: dict[str, CellPlan],
    states: dict[str, CellState],
    hours: str,
) -> None:
    counts: dict[str, int] = {}
    for cell in cells:
        status = _status(cell, states)
        counts[status] = counts.get(status, 0) + 1
    todo = [c for c in cells if _status(c, states) != CellStatus.SUCCEEDED]
    console.print(f"{len(cells)} cells: " + ", ".join(f"{n} {s}" for s, n in counts.items()), highlight=False)
    console.print(
        f"to do: {_hours(sum(plans[c.key].hours for c in todo))} {hours}, "
        f"{sum(plans[c.key].disk_gib for c in todo):.0f} GiB of checkpoints on {sweep.cluster.storage} "
        f"(cluster={sweep.cluster.name}; estimate, not measured)",
        highlight=False,
    )


def _status(cell: Cell, states: dict[str, CellState]) -> str:
    return (cell.support or (states[cell.key].status if cell.key in states else CellStatus.PENDING)).value


def _spoken(placement: Placement | NoPlacement) -> str:
    if isinstance(placement, NoPlacement):
        return "none"
    return str(placement.num_gpus) if placement.num_gpus else f"{placement.num_cpus} CPU"


def _hours(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _gpu_hours(
    quantize_seconds: float, evaluate_seconds: float, quantize: Placement | NoPlacement, evaluate_gpus: int
) -> float:
    """Seconds of both stages, times the GPUs each holds; a stage without GPUs counts the machine's own hours."""
    quantize_gpus = quantize.num_gpus if isinstance(quantize, Placement) else 0
    return (quantize_seconds * max(1, quantize_gpus) + evaluate_seconds * max(1, evaluate_gpus)) / 3600
