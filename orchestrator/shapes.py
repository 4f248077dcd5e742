"""The sizes of a model: one table per architecture says which linears a block has; the rest is summed from it.

Pure, no torch: the planner knows a model from its config.json alone. What every cell of a model asks for is remembered.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conf.errors import ConfigError
from conf.schema import ShapeConf
from workers.methods.accounting import VECTOR_SIZE

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class LinearShape:
    """Equal quantized linears of a block, weights [out_features, in_features].

    name: relative to the block, `*` for the expert's number. group: linears of one group (and one expert) read the same
    input, so they share a Hessian. split: the side that tensor parallelism cuts, `out` or `in`. count: how many there
    are. share: mean part of the tokens that each one sees.
    """

    name: str
    group: str
    out_features: int
    in_features: int
    split: str
    count: int = 1
    share: float = 1.0

    @property
    def num_weights(self) -> int:
        return self.out_features * self.in_features * self.count


@functools.cache
def block_linears(architecture: str, shape: ShapeConf, block_index: int) -> tuple[LinearShape, ...]:
    """The linears of one block that a method quantizes, in order. Raises ConfigError naming a size that is missing."""
    return tuple(_blocks(architecture).linears(shape, block_index))


def calibrated(linears: Sequence[LinearShape], experts: str) -> tuple[LinearShape, ...]:
    """Linears as the calibration sees them: with calibration.experts=all every token runs through every expert."""
    return tuple(dataclasses.replace(x, share=1.0) if experts == "all" else x for x in linears)


def block_rest(architecture: str, shape: ShapeConf, block_index: int) -> int:
    """Parameters of one block that keep their bits: norms, router, convolution, state matrices."""
    return _blocks(architecture).rest(shape, block_index)


def block_kinds(architecture: str, shape: ShapeConf) -> list[tuple[int, int]]:
    """(index of a block, how many are like it): sums over blocks need one term per kind."""
    dense = min(shape.first_dense_layers, shape.num_hidden_layers) if architecture == "deepseek_moe" else 0
    kinds = [(0, dense), (dense, shape.num_hidden_layers - dense)]
    return [(index, count) for index, count in kinds if count]


@dataclass(frozen=True)
class Parameters:
    """Parameter counts. rest: norms, routers, convolutions, state matrices. head: 0 when tied to the embedding."""

    quantized: int
    rest: int
    embedding: int
    head: int
    extra: int

    @property
    def total(self) -> int:
        return self.quantized + self.rest + self.embedding + self.head + self.extra


@functools.cache
def parameters(architecture: str, shape: ShapeConf) -> Parameters:
    """Exact parameter counts of a model."""
    kinds = block_kinds(architecture, shape)
    embedding = shape.vocab_size * shape.hidden_size
    return Parameters(
        quantized=sum(n * sum(x.num_weights for x in block_linears(architecture, shape, i)) for i, n in kinds),
        rest=sum(n * block_rest(architecture, shape, i) for i, n in kinds) + shape.hidden_size,
        embedding=embedding,
        head=0 if shape.tie_word_embeddings else embedding,
        extra=shape.extra_parameters,
    )


def _attention(shape: ShapeConf) -> list[LinearShape]:
    hidden = shape.hidden_size
    query = num_heads(shape) * head_dim(shape)
    key = num_key_value_heads(shape) * head_dim(shape)
    return [
        LinearShape("self_attn.q_proj", "qkv", query, hidden, "out"),
        LinearShape("self_attn.k_proj", "qkv", key, hidden, "out"),
        LinearShape("self_attn.v_proj", "qkv", key, hidden, "out"),
        LinearShape("self_attn.o_proj", "o", hidden, query, "in"),
    ]


def _swiglu(
    prefix: str, hidden: int, intermediate: int, group: str = "", count: int = 1, share: float = 1.0
) -> list[LinearShape]:
    return [
        LinearShape(f"{prefix}.gate_proj", f"{group}gate_up", intermediate, hidden, "out", count, share),
        LinearShape(f"{prefix}.up_proj", f"{group}gate_up", intermediate, hidden, "out", count, share),
        LinearShape(f"{prefix}.down_proj", f"{group}down", hidden, intermediate, "in", count, share),
    ]


def _experts(shape: ShapeConf, intermediate: int) -> list[LinearShape]:
    count = required_size(shape, "num_experts")
    share = required_size(shape, "num_experts_per_tok") / count
    return _swiglu("mlp.experts.*", shape.hidden_size, intermediate, "experts.*.", count, share)


def _llama_linears(shape: ShapeConf, _: int) -> list[LinearShape]:
    return _attention(shape) + _swiglu("mlp", shape.hidden_size, required_size(shape, "intermediate_size"))


def _llama_rest(shape: ShapeConf, _: int) -> int:
    return 2 * shape.hidden_size


def _mixtral_linears(shape: ShapeConf, _: int) -> list[LinearShape]:
    return _attention(shape) + _experts(shape, required_size(shape, "intermediate_size"))


def _mixtral_rest(shape: ShapeConf, _: int) -> int:
    return (2 + required_size(shape, "num_experts")) * shape.hidden_size


def _deepseek_moe_linears(shape: ShapeConf, block_index: int) -> list[LinearShape]:
    if block_index < shape.first_dense_layers:
        return _llama_linears(shape, block_index)
    intermediate = required_size(shape, "moe_intermediate_size")
    shared = required_size(shape, "num_shared_experts") * intermediate
    return [
        *_attention(shape),
        *_experts(shape, intermediate),
        *_swiglu("mlp.shared_experts", shape.hidden_size, shared, "shared."),
    ]


def _deepseek_moe_rest(shape: ShapeConf, block_index: int) -> int:
    return _llama_rest(shape, block_index) if block_index < shape.first_dense_layers else _mixtral_rest(shape, 0)


def _mamba_linears(shape: ShapeConf, _: int) -> list[LinearShape]:
    hidden, inner = shape.hidden_size, required_size(shape, "intermediate_size")
    state, rank = required_size(shape, "state_size"), required_size(shape, "time_step_rank")
    return [
        LinearShape("mixer.in_proj", "in", 2 * inner, hidden, "out"),
        LinearShape("mixer.x_proj", "x", rank + 2 * state, inner, "in"),
        LinearShape("mixer.dt_proj", "dt", inner, rank, "out"),
        LinearShape("mixer.out_proj", "out", hidden, inner, "in"),
    ]


def _mamba_rest(shape: ShapeConf, _: int) -> int:
    # norm; convolution with bias, time-step bias and D (one each per channel), A_log [inner, state]
    inner = required_size(shape, "intermediate_size")
    return shape.hidden_size + inner * (required_size(shape, "conv_kernel") + 3 + required_size(shape, "state_size"))


@dataclass(frozen=True)
class _Blocks:
    linears: Callable[[ShapeConf, int], list[LinearShape]]
    rest: Callable[[ShapeConf, int], int]


_LLAMA = _Blocks(_llama_linears, _llama_rest)
ARCHITECTURES: dict[str, _Blocks] = {
    "llama": _LLAMA,
    "mixtral": _Blocks(_mixtral_linears, _mixtral_rest),
    "deepseek_moe": _Blocks(_deepseek_moe_linears, _deepseek_moe_rest),
    "mamba": _Blocks(_mamba_linears, _mamba_rest),
    "llava": _LLAMA,
    "vila": _LLAMA,
}


def _blocks(architecture: str) -> _Blocks:
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"model.architecture={architecture}: unknown. {hint}Known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture]


def required_size(shape: ShapeConf, name: str) -> int:
    """A size that only some architectures have. Raises ConfigError when the shape leaves it null."""
    value = getattr(shape, name)
    if value is None:
        raise ConfigError(f"model.shape.{name} is null; this architecture needs it to be planned")
    return int(value)


def num_heads(shape: ShapeConf) -> int:
    """Query heads."""
    return required_size(shape, "num_attention_heads")


def num_key_value_heads(shape: ShapeConf) -> int:
    """Key and value heads; as many as query heads unless the shape says otherwise."""
    return shape.num_key_value_heads or num_heads(shape)


def head_dim(shape: ShapeConf) -> int:
    """Columns of one head; hidden_size / heads unless the shape says otherwise."""
    return shape.head_dim or shape.hidden_size // num_heads(shape)


def structure(shape: ShapeConf) -> str:
    """What the blocks are made of: dense MHA | dense GQA (keys shared by several heads) | MoE | state space."""
    if shape.state_size is not None:
        return "state space"
    if shape.num_experts is not None:
        return "MoE"
    heads, keys = shape.num_attention_heads or 0, shape.num_key_value_heads
    return "dense GQA" if keys is not None and keys < heads else "dense MHA"


def modality(shape: ShapeConf) -> str:
    """What the model takes in: text | vision-language (a tower and a projector stand beside the language model)."""
    return "vision-language" if shape.extra_parameters else "text"


def group_inputs(linears: Sequence[LinearShape]) -> list[LinearShape]:
    """One linear for each distinct input of a block: the inputs whose Hessians are accumulated."""
    return list({linear.group: linear for linear in linears}.values())


def codebook_problem(architecture: str, shape: ShapeConf) -> str | None:
    """Why a model's linears cannot be coded as vectors of neighbouring weights, or null."""
    for index, _ in block_kinds(architecture, shape):
        for x in block_linears(architecture, shape, index):
            if x.in_features % VECTOR_SIZE:
                return (
                    f"scheme=vector_codebook codes {VECTOR_SIZE} columns together, which do not divide the "
                    f"{x.in_features} inputs of {x.name}; set scheme=uniform"
                )
    return None


def group_size_problem(architecture: str, shape: ShapeConf, group_size: int | None) -> str | None:
    """Why a model cannot have this group size, or null: groups must divide the inputs of every quantized linear."""
    if group_size is None:
        return None
    linears = [x for index, _ in block_kinds(architecture, shape) for x in block_linears(architecture, shape, index)]
    common = math.gcd(*(x.in_features for x in linears))
    if group_size > 0 and common % group_size == 0:
        return None
    valid = [d for d in range(1, common + 1) if common % d == 0]
    nearest = sorted(sorted(valid, key=lambda d: abs(math.log(d / max(group_size, 1))))[:2])
    choices = f"nearest valid: {', '.join(map(str, nearest))}, or null (one group per row)"
    if group_size <= 0:
        return f"group_size={group_size} is not positive; {choices}"
    linear = next(x for x in linears if x.in_features % group_size)
    return f"group_size={group_size} does not divide the {linear.in_features} inputs of {linear.name}; {choices}"
