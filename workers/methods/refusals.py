"""Settings that are refused before a cell starts, with the reason. Torch-free: the planner asks first."""

from conf.schema import (
    FloatScheme,
    GptqRound,
    KroneckerIncohere,
    LdlqRound,
    MethodConf,
    MseClip,
    RmsClip,
    SchemeConf,
    UniformScheme,
)
from workers.methods.accounting import SCALE_BITS
from workers.methods.registry import is_baseline

ON_FAILURE = ("fail", "diagonal")


def refusals(method: MethodConf, scheme: SchemeConf) -> list[str]:
    """Every reason why this method cannot run with this scheme, each naming the key; empty when it can."""
    reasons = []
    if isinstance(scheme, FloatScheme) and not is_baseline(method):
        reasons.append("scheme: rounding needs integer codes and 16-bit floats have none; choose a uniform scheme")
    if isinstance(scheme, UniformScheme):
        reasons += _uniform(scheme)
    if isinstance(method.clip, MseClip):
        reasons += _mse(method.clip)
    if isinstance(method.round, GptqRound):
        reasons += _gptq(method.round, scheme)
    if isinstance(method.round, LdlqRound):
        reasons += _ldlq(method.round)
    if isinstance(method.clip, RmsClip):
        reasons += _rms(method.clip, scheme)
    if isinstance(method.incohere, KroneckerIncohere) and method.incohere.trace_damping < 0:
        reasons.append(f"method.incohere.trace_damping={method.incohere.trace_damping}: at least 0")
    return reasons


def _uniform(scheme: UniformScheme) -> list[str]:
    reasons = []
    if not 1 <= scheme.bits <= 8:
        reasons.append(f"scheme.bits={scheme.bits}: a code is one byte, so 1 to 8 bits")
    if scheme.group_size is not None and scheme.group_size < 1:
        reasons.append(f"scheme.group_size={scheme.group_size}: at least 1, or null for one group per output row")
    if scheme.scale_dtype not in SCALE_BITS:
        reasons.append(f"scheme.scale_dtype={scheme.scale_dtype}: one of {', '.join(SCALE_BITS)}")
    return reasons


def _mse(clip: MseClip) -> list[str]:
    reasons = []
    if not 1 <= clip.steps <= 100:
        reasons.append(f"method.clip.steps={clip.steps}: a step is 1/100 of the range, so 1 to 100")
    if clip.norm <= 0:
        reasons.append(f"method.clip.norm={clip.norm}: must be positive")
    return reasons


def _rms(clip: RmsClip, scheme: SchemeConf) -> list[str]:
    reasons = [
        f"method.clip.{key}: {value} times the RMS is no range; must be positive"
        for key, value in (("constant", clip.constant), *(("candidates", c) for c in clip.candidates))
        if value <= 0
    ]
    if isinstance(scheme, UniformScheme) and scheme.symmetric:
        reasons.append(
            "scheme.symmetric=true: the grid of method.clip=rms is mirrored around zero already, with no level there; "
            "leave it false"
        )
    return reasons


def _column_loop(conf: GptqRound | LdlqRound) -> list[str]:
    reasons = []
    if conf.damping < 0:
        reasons.append(f"method.round.damping={conf.damping}: a fraction of the mean diagonal, at least 0")
    if conf.block_size < 1:
        reasons.append(f"method.round.block_size={conf.block_size}: at least 1")
    if conf.on_failure not in ON_FAILURE:
        reasons.append(f"method.round.on_failure={conf.on_failure}: one of {', '.join(ON_FAILURE)}")
    return reasons


def _ldlq(conf: LdlqRound) -> list[str]:
    reasons = _column_loop(conf)
    if conf.greedy_passes < 0:
        reasons.append(f"method.round.greedy_passes={conf.greedy_passes}: at least 0")
    return reasons


def _gptq(conf: GptqRound, scheme: SchemeConf) -> list[str]:
    reasons = _column_loop(conf)
    if conf.act_order and not conf.static_groups and scheme.group_size is not None:
        reasons.append(
            "method.round.act_order=true with static_groups=false: groups would be made of reordered columns, which no "
            "engine serves without an index per column; set method.round.static_groups=true or act_order=false"
        )
    return reasons
