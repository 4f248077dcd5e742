"""What a sweep would take, printed before anything is spent. Estimates, not measurements."""

from collections import Counter
from dataclasses import dataclass

from rich.console import Console

from conf.schema import NodeConf
from orchestrator.cell import Cell, CellStatus
from orchestrator.cost_model import evaluate_cost, quantize_cost
from orchestrator.jobs import place
from orchestrator.listing import print_listing, shows_every_row
from orchestrator.memory_model import disk, evaluate_memory, quantize_memory
from orchestrator.placement import NoPlacement, Placement
from orchestrator.storage import CellState
from orchestrator.sweep import Sweep

GIB = 2**30


@dataclass(frozen=True)
class CellPlan:
    """One cell's estimate. Hours: GPU-hours, or hours of the machine where it has no GPU."""

    quantize_hours: float
    evaluate_hours: float
    device_gib: float
    host_gib: float
    disk_gib: float
    placement: str
    problem: str | None = None

    @property
    def hours(self) -> float:
        return self.quantize_hours + self.evaluate_hours


def plan_cell(cell: Cell, nodes: list[NodeConf]) -> CellPlan:
    """Estimate a cell from its shape alone, whether or not its method is built."""
    config, architecture, shape = cell.config, cell.model.architecture, cell.shape
    weight_format = cell.engine.weight_format
    node = next((n for n in nodes if n.num_gpus), nodes[0])
    quantize, evaluate = place(cell, nodes)
    size = evaluate.tensor_parallel_size if isinstance(evaluate, Placement) else 1
    q_seconds = quantize_cost(
        architecture, shape, config.method, config.scheme, config.calibration, config.numerics, node
    ).seconds
    quantize_gpus, num_gpus = (p.num_gpus if isinstance(p, Placement) else 0 for p in (quantize, evaluate))
    e_seconds = evaluate_cost(
        architecture, shape, config.method, config.scheme, weight_format, config.suite, node, num_gpus
    ).seconds
    q_memory = quantize_memory(architecture, shape, config.method, config.calibration, config.numerics)
    e_memory = evaluate_memory(architecture, shape, config.method, config.scheme, weight_format, config.suite, size)
    space = disk(architecture, shape, config.method, config.scheme, weight_format, config.calibration, config.numerics)
    problems = [p.reason for p in (quantize, evaluate) if isinstance(p, NoPlacement)]
    return CellPlan(
        quantize_hours=_gpu_hours(q_seconds, quantize_gpus),
        evaluate_hours=_gpu_hours(e_seconds, num_gpus),
        device_gib=max(q_memory.device_bytes, e_memory.device_bytes) / GIB,
        host_gib=max(p.memory_gib for p in (quantize, evaluate) if isinstance(p, Placement)) if not problems else 0.0,
        disk_gib=space.kept / GIB,
        placement=f"{_spoken(quantize)} / {_spoken(evaluate)}",
        problem="; ".join(problems) or None,
    )


def plan_cells(cells: list[Cell], nodes: list[NodeConf]) -> list[CellPlan]:
    """Estimates of these cells, in their order; those that differ in the seed or the lane only share one."""
    known: dict[tuple[object, ...], CellPlan] = {}
    plans = []
    for cell in cells:
        config = cell.config
        read = (config.method, config.scheme, config.calibration, config.suite, config.numerics)
        key = (cell.model.architecture, cell.shape, cell.engine, *map(id, read))  # cells share equal nodes: resolve.py
        plans.append(known[key] if key in known else known.setdefault(key, plan_cell(cell, nodes)))
    return plans


def print_plan(
    console: Console, sweep: Sweep, cells: list[Cell], states: dict[str, CellState], nodes: list[NodeConf]
) -> None:
    """The cells, then every reason why some cannot run, then totals.

    One line per cell; on a terminal, one per model and method where there would be too many to read.
    """
    estimates = plan_cells(cells, nodes)
    plans = [PlannedCell(c, estimate, _status(c, states)) for c, estimate in zip(cells, estimates, strict=True)]
    unit = "GPU-h" if any(node.num_gpus for node in nodes) else "hours"
    if shows_every_row(console, len(plans)):
        _print_cells(console, plans, unit)
    else:
        _print_groups(console, plans, unit)
    for note in dict.fromkeys(note for cell in cells for note in cell.notes):
        console.print(f"note: {note}", markup=False, highlight=False)
    _print_reasons(console, plans)
    _print_totals(console, sweep, plans, unit)


@dataclass(frozen=True)
class PlannedCell:
    """A cell, its estimate and where it stands: a CellStatus in words."""

    cell: Cell
    estimate: CellPlan
    status: str

    @property
    def group(self) -> tuple[str, str]:
        return self.cell.model.name, self.cell.config.method.name


def _print_cells(console: Console, plans: list[PlannedCell], unit: str) -> None:
    rows = [
        [
            plan.cell.label,
            plan.status,
            plan.cell.engine.name,
            plan.estimate.placement,
            _hours(plan.estimate.hours),
            f"{plan.estimate.device_gib:.1f}",
            f"{plan.estimate.host_gib:.1f}",
            f"{plan.estimate.disk_gib:.1f}",
        ]
        for plan in plans
    ]
    header = ["cell", "status", "engine", "GPUs", unit, "GPU GiB", "host GiB", "disk GiB"]
    print_listing(console, header, rows, num_words=4)


def _print_groups(console: Console, plans: list[PlannedCell], unit: str) -> None:
    """Sums of hours and disk, the largest of memory."""
    groups: dict[tuple[str, str], list[PlannedCell]] = {}
    for plan in plans:
        groups.setdefault(plan.group, []).append(plan)
    rows = []
    for names, group in groups.items():
        estimates = [plan.estimate for plan in group]
        hours, disk_gib = _total(group)
        rows.append(
            [
                *names,
                _counts(group),
                ", ".join(dict.fromkeys(estimate.placement for estimate in estimates)),
                _hours(hours),
                f"{max(estimate.device_gib for estimate in estimates):.1f}",
                f"{max(estimate.host_gib for estimate in estimates):.1f}",
                f"{disk_gib:.1f}",
            ]
        )
    header = ["model", "method", "cells", "GPUs", unit, "GPU GiB", "host GiB", "disk GiB"]
    print_listing(console, header, rows, num_words=4)
    console.print(
        f"{len(plans)} cells by model and method; each has a line of its own when the plan goes into a file: "
        "ptqbench plan ... > plan.txt",
        markup=False,
        highlight=False,
    )


def _print_reasons(console: Console, plans: list[PlannedCell]) -> None:
    reasons: dict[str, list[str]] = {}
    for plan in plans:
        for reason in filter(None, (plan.cell.support_reason or plan.estimate.problem or "").split("; ")):
            reasons.setdefault(f"{plan.status}: {reason}", []).append(plan.cell.label)
    for reason, labels in reasons.items():
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        console.print(f"{len(labels)} x {reason}\n    {', '.join(labels[:3])}{more}", markup=False, highlight=False)


def _print_totals(console: Console, sweep: Sweep, plans: list[PlannedCell], unit: str) -> None:
    console.print(f"{len(plans)} cells: {_counts(plans)}", highlight=False)
    hours, disk_gib = _total([plan for plan in plans if plan.cell.support is None])
    console.print(
        f"to do: {_hours(hours)} {unit}, {disk_gib:.0f} GiB of checkpoints on {sweep.cluster.storage} "
        f"(cluster={sweep.cluster.name}; estimate, not measured)",
        markup=False,
        highlight=False,
    )
    missing = [plan for plan in plans if plan.cell.support is CellStatus.NOT_IMPLEMENTED]
    if missing:
        hours, disk_gib = _total(missing)
        console.print(f"not implemented: {_hours(hours)} {unit} and {disk_gib:.0f} GiB more", highlight=False)


def _counts(plans: list[PlannedCell]) -> str:
    return ", ".join(f"{count} {status}" for status, count in Counter(plan.status for plan in plans).items())


def _total(plans: list[PlannedCell]) -> tuple[float, float]:
    """Hours and GiB of disk of what is not done: a checkpoint that several cells share is made once."""
    todo = [plan for plan in plans if plan.status != CellStatus.SUCCEEDED]
    made = {plan.cell.quantize_key for plan in plans if plan.status == CellStatus.SUCCEEDED}
    to_make = {plan.cell.quantize_key: plan.estimate for plan in todo if plan.cell.quantize_key not in made}
    hours = sum(plan.estimate.evaluate_hours for plan in todo) + sum(e.quantize_hours for e in to_make.values())
    return hours, sum(estimate.disk_gib for estimate in to_make.values())


def _status(cell: Cell, states: dict[str, CellState]) -> str:
    return (cell.support or (states[cell.key].status if cell.key in states else CellStatus.PENDING)).value


def _spoken(placement: Placement | NoPlacement) -> str:
    if isinstance(placement, NoPlacement):
        return "none"
    return str(placement.num_gpus) if placement.num_gpus else f"{placement.num_cpus} CPU"


def _hours(value: float) -> str:
    return f"{value:.2g}" if value < 9.95 else f"{value:.0f}"


def _gpu_hours(seconds: float, num_gpus: int) -> float:
    """Hours times the GPUs a stage holds; a stage without GPUs counts the machine's own hours."""
    return seconds * max(1, num_gpus) / 3600
