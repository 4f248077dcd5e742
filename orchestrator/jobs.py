"""What the schedule must know of each cell: placements, their ladders, estimated seconds."""

from conf.errors import ConfigError
from conf.schema import NodeConf
from orchestrator.cell import Cell
from orchestrator.cost_model import evaluate_cost, quantize_cost
from orchestrator.events import Job
from orchestrator.placement import (
    NoPlacement,
    Placement,
    larger_placements,
    place_evaluate,
    place_quantize,
    tensor_parallel_sizes,
)
from orchestrator.retry import Ladder
from workers.methods.registry import is_baseline


def make_jobs(cells: list[Cell], nodes: list[NodeConf], ready: set[str]) -> list[Job]:
    """Jobs of cells that can run; ready: quantize keys with a finished checkpoint.

    Raises ConfigError naming every cell that fits nowhere in the cluster.
    """
    jobs, homeless = [], []
    for cell in cells:
        quantize, evaluate = place(cell, nodes)
        for stage, placement in (("quantize", quantize), ("evaluate", evaluate)):
            if isinstance(placement, NoPlacement):
                homeless.append(f"{cell.label}: {stage}: {placement.reason}")
        if isinstance(quantize, Placement) and isinstance(evaluate, Placement):
            jobs.append(_job(cell, nodes, quantize, evaluate, cell.quantize_key in ready))
    if homeless:
        raise ConfigError("these cells fit nowhere in this cluster:\n  " + "\n  ".join(homeless))
    return jobs


def place(cell: Cell, nodes: list[NodeConf]) -> tuple[Placement | NoPlacement, Placement | NoPlacement]:
    """Placements of both stages."""
    config = cell.config
    return (
        place_quantize(nodes, cell.model.architecture, cell.shape, config.method, config.calibration, config.numerics),
        place_evaluate(
            nodes,
            cell.model.architecture,
            cell.shape,
            config.method,
            config.scheme,
            cell.engine.weight_format,
            config.suite,
            cell.engine.name or "vllm",  # none is chosen for a cell that cannot run; it is planned all the same
        ),
    )


def _job(cell: Cell, nodes: list[NodeConf], quantize: Placement, evaluate: Placement, ready: bool) -> Job:
    config, node = cell.config, nodes[0]
    architecture, shape, weight_format = cell.model.architecture, cell.shape, cell.engine.weight_format
    sizes = tensor_parallel_sizes(architecture, shape, config.scheme, weight_format)
    quantize_estimate = quantize_cost(
        architecture, shape, config.method, config.scheme, config.calibration, config.numerics, node
    )
    evaluate_estimate = evaluate_cost(
        architecture, shape, config.method, config.scheme, weight_format, config.suite, node, evaluate.num_gpus
    )
    return Job(
        key=cell.key,
        quantize_key=cell.quantize_key,
        host_key=f"{cell.model.fingerprint} {cell.engine.name} {cell.engine.dtype}",
        quantize=_ladder(nodes, quantize, (1,)),
        evaluate=_ladder(nodes, evaluate, sizes if cell.engine.name == "vllm" else (1,)),
        quantize_seconds=quantize_estimate.seconds,
        evaluate_seconds=evaluate_estimate.seconds,
        is_baseline=is_baseline(config.method),
        checkpoint_ready=ready,
    )


def _ladder(nodes: list[NodeConf], first: Placement, sizes: tuple[int, ...]) -> Ladder:
    return (first, *larger_placements(nodes, first, sizes))
