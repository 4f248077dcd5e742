"""Seconds of each stage from work over declared rates: an estimate, not a measurement.

Pure. Work comes in four kinds: FLOP of forward passes, FLOP of float32 algebra, bytes of elementwise passes, and
sequential column steps. Efficiencies are set so that known times on one A100 come out within a factor of two
(tests/orchestrator/test_cost_model.py lists them); past measurements, where there are any, are better.
"""

from dataclasses import dataclass

from conf.schema import (
    CalibrationConf,
    FloatScheme,
    MethodConf,
    NodeConf,
    NumericsConf,
    SchemeConf,
    ShapeConf,
    SuiteConf,
)
from orchestrator.memory_model import checkpoint_bytes
from orchestrator.shapes import DTYPE_BYTES, block_kinds, block_linears, parameters
from orchestrator.slot_memory import num_streams, stream_bytes
from orchestrator.slot_work import Block, Work, forward_work, hessian_work, scan_bytes
from workers.methods.registry import SLOTS


@dataclass(frozen=True)
class _Efficiency:
    """What part of a declared rate is reached. float32 is a part of the 16-bit rate; seconds_per_column is latency."""

    half: float
    float32: float
    traffic: float
    seconds_per_column: float
    start_seconds: float


# GPU: float32 runs on ordinary cores at a sixteenth of the tensor cores' rate. CPU start: a worker or an engine takes
# 6 to 15 s once and stays for the cells that follow; measured, some 2 s a stage over 7 cells and 0.3 s over 495.
_GPU = _Efficiency(half=0.45, float32=0.025, traffic=0.6, seconds_per_column=1.5e-4, start_seconds=60.0)
_CPU = _Efficiency(half=0.5, float32=0.4, traffic=0.5, seconds_per_column=2e-5, start_seconds=2.0)

DISK_BANDWIDTH = 1e9  # bytes/s from and to the storage
GENERATION_BATCH = 64

# Rates of a node that nobody described: one core with AVX-512 (measured: 100 GFLOP/s in float32, 30 GB/s); a GPU
# between a consumer card and an A100.
ASSUMED_CORE_FLOPS, ASSUMED_CORE_BANDWIDTH = 1e11, 2e10
ASSUMED_GPU_FLOPS, ASSUMED_GPU_BANDWIDTH = 2e14, 1.5e12


@dataclass(frozen=True)
class Estimate:
    """Seconds by what they are spent on; "estimate, not measured"."""

    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def gpu_hours(estimate: Estimate, num_gpus: int) -> float:
    """GPU-hours of a stage; 0 on a CPU node."""
    return estimate.seconds * num_gpus / 3600


def assumed_node(num_cpus: int, memory_gib: float, num_gpus: int = 0, gpu_memory_gib: float = 0.0) -> NodeConf:
    """A node known only by its counts (what Ray reports), with rates assumed."""
    gpu = num_gpus > 0
    return NodeConf(
        num_gpus=num_gpus,
        gpu_memory_gib=gpu_memory_gib,
        num_cpus=num_cpus,
        memory_gib=memory_gib,
        flops=ASSUMED_GPU_FLOPS if gpu else num_cpus * ASSUMED_CORE_FLOPS,
        bandwidth=ASSUMED_GPU_BANDWIDTH if gpu else num_cpus * ASSUMED_CORE_BANDWIDTH,
    )


# --- quantize --------------------------------------------------------------------------------------------------------


def quantize_cost(
    architecture: str,
    shape: ShapeConf,
    method: MethodConf,
    scheme: SchemeConf,
    calibration: CalibrationConf,
    numerics: NumericsConf,
    node: NodeConf,
) -> Estimate:
    """Seconds of the quantize stage on one GPU of `node`, or on the node itself where it has none.

    NodeConf's flops and bandwidth are those of one GPU; of the whole node without GPUs. They say nothing of the cores
    beside a GPU: numerics.device=cpu there is estimated for one assumed core.

    Statistics that another cell leaves in the storage (cluster.statistics_gib) spare a cell the collecting run of
    `forward` and all of `hessian`: in the first block or, where a method follows the original model, in all. It is not
    counted: which of the cells comes first is not known, and what is full or was removed spares nothing.
    """
    if numerics.device == "cpu" and node.num_gpus:
        node = assumed_node(1, node.memory_gib)
    efficiency = _GPU if node.num_gpus else _CPU
    parts = dict.fromkeys(("forward", "hessian", *SLOTS), 0.0)
    for index, count in block_kinds(architecture, shape):
        block = Block(
            linears=block_linears(architecture, shape, index),
            num_sequences=calibration.num_sequences,
            sequence_length=calibration.sequence_length,
            scan_bytes_per_token=scan_bytes(architecture, shape),
            method=method,
            scheme=scheme,
            experts=calibration.experts,
        )
        work = {"forward": forward_work(block), "hessian": hessian_work(block)}
        work |= {slot: block.work_of(slot) for slot in SLOTS}
        for name, amount in work.items():
            parts[name] += count * _seconds(amount, node, efficiency, numerics.dtype)
    source = checkpoint_bytes(architecture, shape, method, FloatScheme(), "source")
    written = 0 if isinstance(scheme, FloatScheme) else checkpoint_bytes(architecture, shape, method, scheme, "packed")
    saved = shape.num_hidden_layers * num_streams(method) * stream_bytes(shape, calibration, numerics)
    parts["disk"] = (source + written + saved) / DISK_BANDWIDTH
    parts["start"] = efficiency.start_seconds
    return Estimate(parts)


# --- evaluate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TaskSize:
    """Rough size of a benchmark: examples, requests per example, tokens per request, tokens generated per example."""

    num_examples: int
    num_requests: int
    num_tokens: int
    num_generated: int = 0


_TASKS = {
    "arc_challenge": _TaskSize(1172, 4, 40),
    "arc_easy": _TaskSize(2376, 4, 40),
    "boolq": _TaskSize(3270, 2, 150),
    "ceval-valid": _TaskSize(1346, 4, 100),
    "gqa": _TaskSize(12578, 1, 620, num_generated=4),
    "gsm8k": _TaskSize(1319, 1, 1000, num_generated=200),
    "hellaswag": _TaskSize(10042, 4, 100),
    "lambada_openai": _TaskSize(5153, 1, 90),
    "lambada_standard": _TaskSize(4869, 1, 90),
    "mmlu": _TaskSize(14042, 4, 120),
    "openbookqa": _TaskSize(500, 4, 20),
    "piqa": _TaskSize(1838, 2, 40),
    "pope": _TaskSize(9000, 1, 620, num_generated=4),
    "race": _TaskSize(1045, 4, 450),
    "scienceqa": _TaskSize(2017, 1, 720, num_generated=4),
    "textvqa": _TaskSize(5000, 1, 620, num_generated=6),
    "truthfulqa_mc1": _TaskSize(817, 5, 60),
    "truthfulqa_mc2": _TaskSize(817, 7, 60),
    "winogrande": _TaskSize(1267, 2, 30),
}
_UNKNOWN_TASK = _TaskSize(1000, 4, 100)
_WIKITEXT2_TOKENS = 341_469
_TEXT_WINDOWS = 256  # C4 by definition; assumed of a text of the user's


def evaluate_cost(
    architecture: str,
    shape: ShapeConf,
    method: MethodConf,
    scheme: SchemeConf,
    weight_format: str,
    suite: SuiteConf,
    node: NodeConf,
    num_gpus: int,
) -> Estimate:
    """Seconds of the evaluate stage on num_gpus GPUs of `node` (0: on its CPUs), engine start included."""
    efficiency = _GPU if num_gpus else _CPU
    counts = parameters(architecture, shape)
    kinds = block_kinds(architecture, shape)
    active = sum(n * x.num_weights * x.share for i, n in kinds for x in block_linears(architecture, shape, i))
    head = shape.vocab_size * shape.hidden_size
    scan = scan_bytes(architecture, shape) * shape.num_hidden_layers
    dtype = shape.torch_dtype if suite.dtype == "auto" else suite.dtype

    def scored(num_tokens: float) -> float:
        work = Work(forward=2 * (active + head) * num_tokens, traffic=scan * num_tokens)
        return _seconds(work, node, efficiency, dtype) / max(1, num_gpus)

    perplexity = sum(
        _WIKITEXT2_TOKENS if text.source == "wikitext2" else _TEXT_WINDOWS * suite.sequence_length
        for text in suite.perplexity.values()
    )
    tasks, generated = 0, 0
    for name in suite.tasks:
        task = _TASKS.get(name, _UNKNOWN_TASK)
        examples = min(task.num_examples, suite.limit or task.num_examples)
        tasks += examples * task.num_requests * task.num_tokens
        generated += examples * task.num_generated
    # one generated token of a whole batch reads all weights once
    generation = Work(traffic=generated / GENERATION_BATCH * counts.total * DTYPE_BYTES[dtype])
    return Estimate(
        {
            "start": efficiency.start_seconds,
            "disk": checkpoint_bytes(architecture, shape, method, scheme, weight_format) / DISK_BANDWIDTH,
            "perplexity": scored(perplexity),
            "tasks": scored(tasks) + _seconds(generation, node, efficiency, dtype) / max(1, num_gpus),
        }
    )


# --- rates -----------------------------------------------------------------------------------------------------------


def _seconds(work: Work, node: NodeConf, efficiency: _Efficiency, dtype: str) -> float:
    forward = efficiency.float32 if dtype == "float32" else efficiency.half
    return (
        work.forward / (node.flops * forward)
        + work.float32 / (node.flops * efficiency.float32)
        + work.traffic / (node.bandwidth * efficiency.traffic)
        + work.columns * efficiency.seconds_per_column
    )
