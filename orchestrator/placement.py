"""Which resources one stage of one cell gets: pure, from sizes, formats and the declared nodes.

The scheduler goes by counts and host memory, so a placement is given only if it fits on every kind of node that could
take it. On a cluster of mixed GPUs this may ask for more GPUs than a stage needs: they keep it off the small ones.
"""

import math
from collections.abc import Sequence
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
from orchestrator.memory_model import (
    GIB,
    EvaluateMemory,
    evaluate_memory,
    quantize_memory,
)
from orchestrator.shapes import block_kinds, block_linears, num_heads, num_key_value_heads

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
USABLE = 0.9  # part of a GPU's memory that a stage may fill; the engine's own default too
CPUS_PER_GPU = 4
DEVICE_GIB = 1.0  # CUDA context, communication buffers, allocator's slack

# Resident memory of a process before any weights, GiB. CPU: measured, 0.52 for interpreter, torch and Transformers,
# 0.88 for an engine without its cache, then rounded up for the harness and its data. GPU: assumed.
TRANSFORMERS_GIB = 0.6
VLLM_GIB = 1.5
VLLM_CACHE_GIB = 1.0  # what the CPU engine is told to reserve for keys and values, at least
GPU_PROCESS_GIB = 4.0


@dataclass(frozen=True)
class Placement:
    """Resources of one stage. memory_gib is host memory; tensor_parallel_size GPUs work together, on one node."""

    num_gpus: int
    num_cpus: int
    memory_gib: float
    tensor_parallel_size: int = 1


@dataclass(frozen=True)
class NoPlacement:
    """A stage that fits nowhere. reason: what it needs, what there is, in GiB."""

    reason: str


def place_quantize(
    nodes: Sequence[NodeConf],
    architecture: str,
    shape: ShapeConf,
    method: MethodConf,
    calibration: CalibrationConf,
    numerics: NumericsConf,
) -> Placement | NoPlacement:
    """Quantization streams the model block by block: one GPU (none on a CPU cluster), activations on the host."""
    memory = quantize_memory(architecture, shape, method, calibration, numerics)
    return _place_streaming(nodes, memory.device_bytes, memory.host_bytes, numerics.device)


def place_streamed(
    nodes: Sequence[NodeConf], architecture: str, shape: ShapeConf, windows: CalibrationConf, numerics: NumericsConf
) -> Placement | NoPlacement:
    """Scoring block by block, for a model that no engine can hold. windows: how many are carried, and how long."""
    memory = quantize_memory(architecture, shape, MethodConf(), windows, numerics)
    activations = 2 * windows.num_sequences * windows.sequence_length * shape.hidden_size * 4
    return _place_streaming(nodes, memory.device_bytes, activations + memory.read, numerics.device)


def place_evaluate(
    nodes: Sequence[NodeConf],
    architecture: str,
    shape: ShapeConf,
    method: MethodConf,
    scheme: SchemeConf,
    weight_format: str,
    suite: SuiteConf,
    engine: str,
) -> Placement | NoPlacement:
    """The smallest number of GPUs of one node that holds the model under `engine` (vllm | transformers).

    weight_format: source, dense or packed; the Transformers engine multiplies packed weights out and takes one GPU.
    """
    if engine == "transformers":
        weight_format = "source" if isinstance(scheme, FloatScheme) else "dense"
    if not _gpu_nodes(nodes):
        memory = evaluate_memory(architecture, shape, method, scheme, weight_format, suite)
        return _host_placement(nodes, _cpu_engine_gib(memory, engine), _subject(scheme))
    sizes = tensor_parallel_sizes(architecture, shape, scheme, weight_format) if engine == "vllm" else (1,)
    needs = []
    for size in sizes:
        memory = evaluate_memory(architecture, shape, method, scheme, weight_format, suite, size)
        need = memory.device_bytes / GIB + DEVICE_GIB
        placement = _engine_placement(nodes, size)
        takers = _takers(nodes, placement)
        if takers and USABLE * _smallest_gpu(takers) >= need:
            return placement
        needs.append(f"{need:.1f} GiB on each of {size}")
    uncut = [
        f"{size} are impossible: {problem}"
        for size in TENSOR_PARALLEL_SIZES
        if any(node.num_gpus >= size for node in nodes)
        and (problem := tensor_parallel_problem(architecture, shape, scheme, weight_format, size))
    ]
    there = ", ".join(
        f"{n.num_gpus} x {n.gpu_memory_gib:g} GiB ({n.memory_gib:g} on the host)" for n in _gpu_nodes(nodes)
    )
    return NoPlacement(
        f"{_subject(scheme)} fits no placement: of GPUs it needs {'; '.join([*needs, *uncut])}. "
        f"A node has {there}; {USABLE:.0%} of a GPU is usable"
    )


def larger_placements(
    nodes: Sequence[NodeConf], placement: Placement, sizes: Sequence[int] = (1,)
) -> tuple[Placement, ...]:
    """What to try after OUT_OF_MEMORY, in order; empty when nothing larger would help.

    sizes: the tensor-parallel sizes the model can be cut into (`tensor_parallel_sizes`), (1,) for a stage that uses one
    GPU. Without GPUs the stage gets twice the host memory, up to a whole node's; with more GPUs, each holds less; a
    stage of one GPU is helped only by a node whose GPUs are larger.
    """
    if placement.num_gpus == 0:
        return _more_host_memory(nodes, placement)
    if len(sizes) > 1:
        cut = (_engine_placement(nodes, size) for size in sizes if size > placement.num_gpus)
        return tuple(larger for larger in cut if _takers(nodes, larger))
    larger = []
    reached = _smallest_gpu(_takers(nodes, placement))
    for num_gpus in TENSOR_PARALLEL_SIZES:
        candidate = Placement(num_gpus, _num_cpus(nodes, num_gpus), placement.memory_gib)
        takers = _takers(nodes, candidate)
        if num_gpus > placement.num_gpus and takers and _smallest_gpu(takers) > reached:
            larger.append(candidate)
            reached = _smallest_gpu(takers)
    return tuple(larger)


# --- tensor parallelism ----------------------------------------------------------------------------------------------


def tensor_parallel_sizes(
    architecture: str, shape: ShapeConf, scheme: SchemeConf, weight_format: str
) -> tuple[int, ...]:
    """The sizes out of 1, 2, 4, 8 that a model in this format can be cut into."""
    return tuple(
        size
        for size in TENSOR_PARALLEL_SIZES
        if tensor_parallel_problem(architecture, shape, scheme, weight_format, size) is None
    )


def tensor_parallel_problem(
    architecture: str, shape: ShapeConf, scheme: SchemeConf, weight_format: str, size: int
) -> str | None:
    """Why a model cannot be cut over `size` GPUs, or null.

    Heads and cut features must divide; key-value heads may also be repeated. A packed linear cut along its inputs must
    be cut between groups and between 32-bit words. Vocabulary matrices are padded, so they always divide.
    """
    if size == 1:
        return None
    if architecture != "mamba":
        heads, key_heads = num_heads(shape), num_key_value_heads(shape)
        if heads % size:
            return f"{heads} attention heads do not divide by {size}"
        if key_heads % size and size % key_heads:
            return f"{key_heads} key-value heads neither divide by {size} nor divide it"
    packed = weight_format == "packed" and not isinstance(scheme, FloatScheme)
    for index, _ in block_kinds(architecture, shape):
        for linear in block_linears(architecture, shape, index):
            cut = linear.out_features if linear.split == "out" else linear.in_features
            if cut % size:
                return f"{cut} {linear.split}put features of {linear.name} do not divide by {size}"
            if packed and linear.split == "in" and (problem := _packed_problem(scheme, cut // size)):
                return f"{linear.name}: {cut} / {size} = {cut // size} inputs are {problem}"
    return None


def _packed_problem(scheme: SchemeConf, inputs: int) -> str | None:
    codes_per_cut = 32 // math.gcd(32, scheme.bits)  # 3 bits: 32 codes fill 3 words, and only there may a shard end
    if inputs % codes_per_cut:
        return f"not a multiple of {codes_per_cut} codes of {scheme.bits} bits"
    if scheme.group_size and inputs % scheme.group_size:
        return f"not a multiple of the group size {scheme.group_size}"
    return None


# --- nodes -----------------------------------------------------------------------------------------------------------


def _gpu_nodes(nodes: Sequence[NodeConf]) -> list[NodeConf]:
    return [node for node in nodes if node.num_gpus > 0]


def _takers(nodes: Sequence[NodeConf], placement: Placement) -> list[NodeConf]:
    """The kinds of node that a placement could land on."""
    return [
        node
        for node in nodes
        if node.num_gpus >= placement.num_gpus
        and node.num_cpus >= placement.num_cpus
        and node.memory_gib >= placement.memory_gib
    ]


def _smallest_gpu(nodes: Sequence[NodeConf]) -> float:
    return min((node.gpu_memory_gib for node in nodes), default=0.0)


def _num_cpus(nodes: Sequence[NodeConf], num_gpus: int) -> int:
    """CPUs beside num_gpus GPUs, so that every GPU of every node can be used at once."""
    share = min(node.num_cpus // node.num_gpus for node in _gpu_nodes(nodes))
    return num_gpus * max(1, min(CPUS_PER_GPU, share))


def _engine_placement(nodes: Sequence[NodeConf], size: int) -> Placement:
    return Placement(size, _num_cpus(nodes, size), GPU_PROCESS_GIB * (1 + size), size)


def _place_streaming(
    nodes: Sequence[NodeConf], device_bytes: int, host_bytes: int, device: str
) -> Placement | NoPlacement:
    if device == "cpu" or (device == "auto" and not _gpu_nodes(nodes)):
        return _host_placement(
            nodes, TRANSFORMERS_GIB + (device_bytes + host_bytes) / GIB, "a block and its activations"
        )
    if not _gpu_nodes(nodes):
        return NoPlacement("numerics.device=cuda, but no node has a GPU")
    need = device_bytes / GIB + DEVICE_GIB
    host = _round_up(GPU_PROCESS_GIB + host_bytes / GIB)
    for num_gpus in TENSOR_PARALLEL_SIZES:
        placement = Placement(num_gpus, _num_cpus(nodes, num_gpus), host)
        takers = _takers(nodes, placement)
        if takers and USABLE * _smallest_gpu(takers) >= need:
            return placement
    largest = max(node.gpu_memory_gib for node in nodes)
    return NoPlacement(
        f"one block in work needs {need:.1f} GiB on one GPU and {host:.1f} GiB of its host; "
        f"the largest GPU has {largest:g}, {USABLE:.0%} of it usable"
    )


def _host_placement(nodes: Sequence[NodeConf], memory_gib: float, subject: str) -> Placement | NoPlacement:
    placement = Placement(0, 1, _round_up(memory_gib))
    if _takers(nodes, placement):
        return placement
    largest = max((node.memory_gib for node in nodes), default=0.0)
    return NoPlacement(
        f"{subject} fits no placement: needs {placement.memory_gib:.1f} GiB of host memory; "
        f"the largest node has {largest:.1f}"
    )


def _more_host_memory(nodes: Sequence[NodeConf], placement: Placement) -> tuple[Placement, ...]:
    largest = max((node.memory_gib for node in nodes), default=0.0)
    steps = []
    memory_gib = placement.memory_gib
    while memory_gib < largest:
        memory_gib = min(2 * memory_gib, largest)
        steps.append(Placement(0, placement.num_cpus, memory_gib))
    return tuple(steps)


def _cpu_engine_gib(memory: EvaluateMemory, engine: str) -> float:
    if engine == "transformers":
        return TRANSFORMERS_GIB + memory.device_bytes / GIB
    return VLLM_GIB + max(VLLM_CACHE_GIB, memory.kv_cache / GIB) + (memory.weights + memory.working) / GIB


def _subject(scheme: SchemeConf) -> str:
    return "the 16-bit baseline" if isinstance(scheme, FloatScheme) else f"the {scheme.bits}-bit model"


def _round_up(memory_gib: float) -> float:
    return math.ceil(10 * memory_gib) / 10
