"""Settings that are refused before a cell starts, with the reason. Torch-free: the planner asks first."""

from collections.abc import Callable, Mapping
from typing import Any

from conf.schema import (
    AwqScale,
    BlockTune,
    ColumnsKeep,
    FloatScheme,
    GptaqRound,
    GptqRound,
    HadamardIncohere,
    HadamardRotate,
    HqqRound,
    KroneckerIncohere,
    LdlqRound,
    LearnedClip,
    LearnedScale,
    MaskKeep,
    MethodConf,
    MinmaxClip,
    MixedScheme,
    MseClip,
    NearestRound,
    NoIncohere,
    NoKeep,
    NoScale,
    NoTune,
    RandomRotate,
    RealZeroScheme,
    RmsClip,
    SchemeConf,
    SearchClip,
    UniformScheme,
    VectorCodebookScheme,
)
from workers.methods.accounting import SCALE_BITS, salient_fraction
from workers.methods.registry import SLOTS, Need, is_baseline, needs

INPUTS = ("quantized", "original")
SALIENCIES = ("hessian", "magnitude")
GQA_FOLDS = ("mean", "max", "skip")
ON_FAILURE = ("fail", "diagonal")
LEARNABLE = ("clip", "scale", "rounding")
OPTIMIZERS = ("adamw", "signsgd")
LOSSES = ("mse", "mse_cosine")  # of workers.methods.tune.loss
CLIP_FORMS = ("sigmoid", "direct")
SCALE_STARTS = ("smooth", "log")
SIDES = ("both", "input")
CODEBOOKS, CODEBOOK_BITS = ("e8p",), (2, 3, 4)


def refusals(method: MethodConf, scheme: SchemeConf) -> list[str]:
    """Every reason why this method cannot run with this scheme, each naming the key; empty when it can."""
    reasons = []
    if isinstance(scheme, FloatScheme) and not is_baseline(method):
        reasons.append("scheme: rounding needs integer codes and 16-bit floats have none; choose a uniform scheme")
    if method.inputs not in INPUTS:
        reasons.append(f"method.inputs={method.inputs}: one of {', '.join(INPUTS)}")
    for stage in (scheme, *(getattr(method, slot) for slot in SLOTS)):
        if type(stage) in _RULES:
            reasons += _RULES[type(stage)](stage, method, scheme)
    return reasons


# --- schemes ---------------------------------------------------------------------------------------------------------


def _uniform(scheme: UniformScheme, *_: Any) -> list[str]:
    reasons = _codes(scheme)
    if scheme.scale_dtype not in SCALE_BITS:
        reasons.append(f"scheme.scale_dtype={scheme.scale_dtype}: one of {', '.join(SCALE_BITS)}")
    return reasons


def _codes(scheme: SchemeConf, *_: Any) -> list[str]:
    reasons = []
    if not 1 <= scheme.bits <= 8:
        reasons.append(f"scheme.bits={scheme.bits}: a code is one byte, so 1 to 8 bits")
    if scheme.group_size is not None and scheme.group_size < 1:
        reasons.append(f"scheme.group_size={scheme.group_size}: at least 1, or null for one group per output row")
    return reasons


def _mixed(scheme: MixedScheme, method: MethodConf, _: SchemeConf) -> list[str]:
    reasons = []
    if not isinstance(method.keep, MaskKeep):
        reasons.append("scheme=mixed: method.keep=mask says which entry has which bits; set it, or scheme=uniform")
    if not isinstance(method.scale, NoScale):
        reasons.append("method.scale: its search rounds to one grid a row, scheme=mixed has two; set method.scale=none")
    if scheme.group_size is not None:
        reasons.append(f"scheme.group_size={scheme.group_size}: scheme=mixed has one grid of each kind for a row; null")
    return reasons


def _codebook(scheme: VectorCodebookScheme, method: MethodConf, _: SchemeConf) -> list[str]:
    reasons = []
    if scheme.codebook not in CODEBOOKS:
        reasons.append(f"scheme.codebook={scheme.codebook}: one of {', '.join(CODEBOOKS)}")
    if scheme.bits not in CODEBOOK_BITS:
        reasons.append(f"scheme.bits={scheme.bits}: e8p has {', '.join(map(str, CODEBOOK_BITS))} bits")
    if scheme.group_size is not None:
        reasons.append(f"scheme.group_size={scheme.group_size}: scheme=vector_codebook has one scale a matrix; null")
    for slot, (allowed, names) in _WITH_CODEBOOK.items():
        if not isinstance(getattr(method, slot), allowed):
            reasons.append(f"method.{slot}: it needs integer codes, scheme=vector_codebook has none; set {names}")
    return reasons


_WITH_CODEBOOK: dict[str, tuple[tuple[type[Any], ...], str]] = {
    "scale": ((NoScale,), "none"),
    "keep": ((NoKeep,), "none"),
    "clip": ((RmsClip,), "rms"),
    "tune": ((NoTune,), "none"),
    "round": ((NearestRound, LdlqRound), "nearest or ldlq"),
}


# --- scale -----------------------------------------------------------------------------------------------------------


def _awq(scale: AwqScale, *_: Any) -> list[str]:
    reasons = [
        f"method.scale.{key}={value}: at least 1"
        for key, value in (("grid", scale.grid), ("num_windows", scale.num_windows))
        if value < 1
    ]
    if scale.gqa not in GQA_FOLDS:
        reasons.append(f"method.scale.gqa={scale.gqa}: one of {', '.join(GQA_FOLDS)}")
    return reasons


# --- rotate, incohere, keep ------------------------------------------------------------------------------------------


def _rotate(rotate: HadamardRotate | RandomRotate, method: MethodConf, _: SchemeConf) -> list[str]:
    if is_baseline(method):
        return ["method.rotate: the 16-bit baseline is the model's own files and would not be rotated; set it to none"]
    if not any(vars(rotate).values()):
        return [f"method.rotate: {', '.join(vars(rotate))} are all false, so nothing is rotated; set it to none"]
    return []


def _hadamard(incohere: HadamardIncohere, *_: Any) -> list[str]:
    if incohere.sides not in SIDES:
        return [f"method.incohere.sides={incohere.sides}: one of {', '.join(SIDES)}"]
    return []


def _kronecker(incohere: KroneckerIncohere, *_: Any) -> list[str]:
    if incohere.trace_damping < 0:
        return [f"method.incohere.trace_damping={incohere.trace_damping}: at least 0"]
    return []


def _columns(keep: ColumnsKeep, _: MethodConf, scheme: SchemeConf) -> list[str]:
    reasons = []
    if scheme.group_size is not None:
        reasons.append(
            f"scheme.group_size={scheme.group_size} with method.keep=columns: what is left of the groups has no "
            "common size; set scheme.group_size=null"
        )
    if not 0 <= keep.extra_bits <= 16 - scheme.bits:
        reasons.append(f"method.keep.extra_bits={keep.extra_bits}: 0 to {16 - scheme.bits}, of 16 bits")
    return reasons + _damping("method.keep", keep.damping)


def _mask(keep: MaskKeep, method: MethodConf, scheme: SchemeConf) -> list[str]:
    reasons = _damping("method.keep", keep.damping)
    if not isinstance(scheme, MixedScheme):
        reasons.append("method.keep=mask: its entries have different bits; set scheme=mixed")
    if not isinstance(method.clip, MinmaxClip):
        reasons.append("method.clip: the salient entries' range is the whole one; set method.clip=minmax")
    if keep.saliency not in SALIENCIES:
        reasons.append(f"method.keep.saliency={keep.saliency}: one of {', '.join(SALIENCIES)}")
    if not 2 <= keep.bits <= 8:
        reasons.append(f"method.keep.bits={keep.bits}: 2 to 8, a code is one byte")
    elif not 0 <= salient_fraction(keep, scheme) <= 1:
        asked = f"scheme.bits={scheme.bits}" if keep.fraction is None else f"method.keep.fraction={keep.fraction}"
        reasons.append(f"{asked}: a mean of 1 and {keep.bits} bits, with 0 to 1 of the entries salient")
    return reasons


# --- clip ------------------------------------------------------------------------------------------------------------


def _mse(clip: MseClip, *_: Any) -> list[str]:
    reasons = []
    if not 1 <= clip.steps <= 100:
        reasons.append(f"method.clip.steps={clip.steps}: a step is 1/100 of the range, so 1 to 100")
    if clip.norm <= 0:
        reasons.append(f"method.clip.norm={clip.norm}: must be positive")
    return reasons


def _search(clip: SearchClip, *_: Any) -> list[str]:
    reasons = [
        f"method.clip.{key}={value}: at least 1"
        for key, value in (("grid", clip.grid), ("num_tokens", clip.num_tokens))
        if value < 1
    ]
    if not 0 < clip.max_shrink <= 1:
        reasons.append(f"method.clip.max_shrink={clip.max_shrink}: a share of the range, above 0 and at most 1")
    return reasons


def _rms(clip: RmsClip, method: MethodConf, scheme: SchemeConf) -> list[str]:
    reasons = [
        f"method.clip.{key}: {value} times the RMS is no range; must be positive"
        for key, value in (("constant", clip.constant), *(("candidates", c) for c in clip.candidates))
        if value is not None and value <= 0
    ]
    if clip.candidates and Need.HESSIAN not in needs(method):
        reasons.append("method.clip.candidates: the proxy loss that chooses needs a Hessian; set method.round=ldlq")
    if isinstance(scheme, RealZeroScheme):
        reasons.append("method.clip=rms: its grid leaves no zero point to be fitted; set scheme=uniform")
    if isinstance(scheme, UniformScheme) and scheme.symmetric:
        reasons.append(
            "scheme.symmetric=true: the grid of method.clip=rms is mirrored around zero already, with no level there; "
            "leave it false"
        )
    return reasons


# --- what is learned -------------------------------------------------------------------------------------------------


def _learned_scale(scale: LearnedScale, method: MethodConf, _: SchemeConf) -> list[str]:
    reasons = _rate("method.scale", scale.learning_rate)
    if scale.init not in SCALE_STARTS:
        reasons.append(f"method.scale.init={scale.init}: one of {', '.join(SCALE_STARTS)}")
    if not 0 <= scale.alpha <= 1:
        reasons.append(f"method.scale.alpha={scale.alpha}: 0 to 1")
    return reasons + _untrained("scale", method)


def _learned_clip(clip: LearnedClip, method: MethodConf, _: SchemeConf) -> list[str]:
    reasons = _rate("method.clip", clip.learning_rate)
    if clip.form not in CLIP_FORMS:
        reasons.append(f"method.clip.form={clip.form}: one of {', '.join(CLIP_FORMS)}")
    elif clip.form == "direct" and not 0 <= clip.init <= 1:
        reasons.append(f"method.clip.init={clip.init}: with method.clip.form=direct a factor, so 0 to 1")
    return reasons + _untrained("clip", method)


def _untrained(slot: str, method: MethodConf) -> list[str]:
    if isinstance(method.tune, BlockTune) and slot in method.tune.learns:
        return []
    return [f"method.{slot}=learned is trained by slot tune; set method.tune=block and name {slot} in its learns"]


def _block_tune(tune: BlockTune, method: MethodConf, scheme: SchemeConf) -> list[str]:
    return [*_learns(tune, method), *_training(tune), *_tuned_rounding(method, scheme)]


def _learns(tune: BlockTune, method: MethodConf) -> list[str]:
    reasons = [
        f"method.tune.learns: {word}: of {', '.join(LEARNABLE)}" for word in tune.learns if word not in LEARNABLE
    ]
    if not tune.learns:
        reasons.append(f"method.tune.learns is empty; name some of {', '.join(LEARNABLE)}, or set method.tune=none")
    for slot, cls in (("clip", LearnedClip), ("scale", LearnedScale)):
        if slot in tune.learns and not isinstance(getattr(method, slot), cls):
            reasons.append(f"method.tune.learns: {slot}: needs method.{slot}=learned, which applies what is found")
    if "rounding" in tune.learns and not isinstance(method.round, NearestRound):
        reasons.append("method.tune.learns: rounding: only method.round=nearest keeps the offsets that are found")
    return reasons


def _training(tune: BlockTune) -> list[str]:
    reasons = [
        f"method.tune.{key}={value}: one of {', '.join(words)}"
        for key, value, words in (("optimizer", tune.optimizer, OPTIMIZERS), ("loss", tune.loss, LOSSES))
        if value not in words
    ]
    for key, value in (("epochs", tune.epochs), ("iterations", tune.iterations)):
        if value < 0:
            reasons.append(f"method.tune.{key}={value}: at least 0")
    if tune.epochs > 0 and tune.iterations > 0:
        reasons.append(
            f"method.tune.epochs={tune.epochs} and iterations={tune.iterations}: one of them says how long; set the "
            "other to 0"
        )
    if tune.batch_size < 1:
        reasons.append(f"method.tune.batch_size={tune.batch_size}: at least 1 window")
    return reasons + _rate("method.tune", tune.learning_rate)


def _tuned_rounding(method: MethodConf, scheme: SchemeConf) -> list[str]:
    """Training rounds as the last stages will; what they do beside it would be news to the parameters."""
    reasons = []
    if not isinstance(scheme, UniformScheme):
        reasons.append(f"method.tune=block trains integer grids, not {type(scheme).__name__}; set scheme=uniform")
    if not isinstance(method.clip, LearnedClip | MinmaxClip):
        reasons.append("method.tune=block trains on whole ranges or learned ones; set method.clip=minmax or learned")
    if not isinstance(method.keep, NoKeep):
        reasons.append("method.tune=block has no rule for kept columns or entries; set method.keep=none")
    turned = isinstance(method.rotate, HadamardRotate) and method.rotate.intermediate
    if turned or not isinstance(method.incohere, NoIncohere):
        key = "method.rotate.intermediate=false" if turned else "method.incohere=none"
        reasons.append(f"method.tune=block trains each linear in its own basis and rounding would turn it; set {key}")
    if isinstance(method.round, GptqRound) and not method.round.static_groups:
        reasons.append(
            "method.round.static_groups=false fits grids to compensated weights, not to those that were trained; set "
            "it to true"
        )
    return reasons


def _rate(slot: str, rate: float | None) -> list[str]:
    return [f"{slot}.learning_rate={rate}: must be positive"] if rate is not None and rate <= 0 else []


# --- round -----------------------------------------------------------------------------------------------------------


def _column_loop(conf: GptqRound | LdlqRound | GptaqRound) -> list[str]:
    reasons = _damping("method.round", conf.damping)
    if conf.block_size < 1:
        reasons.append(f"method.round.block_size={conf.block_size}: at least 1")
    if conf.on_failure not in ON_FAILURE:
        reasons.append(f"method.round.on_failure={conf.on_failure}: one of {', '.join(ON_FAILURE)}")
    return reasons


def _damping(slot: str, damping: float) -> list[str]:
    return [f"{slot}.damping={damping}: a fraction of the mean diagonal, at least 0"] if damping < 0 else []


def _ldlq(conf: LdlqRound, *_: Any) -> list[str]:
    reasons = _column_loop(conf)
    if conf.greedy_passes < 0:
        reasons.append(f"method.round.greedy_passes={conf.greedy_passes}: at least 0")
    return reasons


def _gptq(conf: GptqRound, _: MethodConf, scheme: SchemeConf) -> list[str]:
    reasons = _column_loop(conf)
    if conf.act_order and not conf.static_groups and scheme.group_size is not None:
        reasons.append(
            "method.round.act_order=true with static_groups=false: groups would be made of reordered columns, which no "
            "engine serves without an index per column; set method.round.static_groups=true or act_order=false"
        )
    return reasons


def _gptaq(conf: GptaqRound, method: MethodConf, _: SchemeConf) -> list[str]:
    reasons = _column_loop(conf)
    if not conf.static_groups:
        reasons.append("method.round.static_groups=false: GPTAQ fits its grids before the first column; set it to true")
    if method.inputs == "original":
        reasons.append(
            "method.inputs=original: GPTAQ takes back how the inputs differ from the original ones, and these would "
            "not; set method.inputs=quantized"
        )
    if not isinstance(method.keep, NoKeep):
        reasons.append("method.keep: GPTAQ has no rule for kept columns or entries; set method.keep=none")
    return reasons


def _hqq(conf: HqqRound, _: MethodConf, scheme: SchemeConf) -> list[str]:
    reasons = []
    if not isinstance(scheme, RealZeroScheme):
        reasons.append(f"method.round=hqq fits a real zero point, {type(scheme).__name__} has none: scheme=real_zero")
    if conf.iterations < 0:
        reasons.append(f"method.round.iterations={conf.iterations}: at least 0")
    for name, value in (("beta", conf.beta), ("norm", conf.norm)):
        if value <= 0:
            reasons.append(f"method.round.{name}={value}: must be positive")
    return reasons


_RULES: Mapping[type[Any], Callable[..., list[str]]] = {
    UniformScheme: _uniform,
    RealZeroScheme: _codes,
    MixedScheme: _mixed,
    VectorCodebookScheme: _codebook,
    HadamardRotate: _rotate,
    RandomRotate: _rotate,
    AwqScale: _awq,
    KroneckerIncohere: _kronecker,
    HadamardIncohere: _hadamard,
    ColumnsKeep: _columns,
    MaskKeep: _mask,
    MseClip: _mse,
    RmsClip: _rms,
    SearchClip: _search,
    LearnedScale: _learned_scale,
    LearnedClip: _learned_clip,
    BlockTune: _block_tune,
    LdlqRound: _ldlq,
    GptqRound: _gptq,
    GptaqRound: _gptaq,
    HqqRound: _hqq,
}
