"""Choices of a cell that fit some architectures only: experts, images to calibrate on, linears that keep their bits."""

import difflib

from conf.schema import CalibrationConf, CellConf, GptaqRound, MethodConf
from orchestrator.models import ResolvedModel
from orchestrator.shapes import block_kinds, block_linears
from workers.arch import ARCHITECTURES, is_skipped
from workers.datasets import IMAGES

EXPERTS = ("blend", "nearest", "own", "all")  # calibration.experts


def expert_problems(architecture: str, config: CellConf) -> list[str]:
    """Why experts cannot be calibrated as asked for, or nothing."""
    has_experts = any(kind.experts for kind in ARCHITECTURES[architecture].kinds)
    if has_experts and isinstance(config.method.round, GptaqRound) and config.calibration.experts != "all":
        return [
            "method.round: GPTAQ compares each input with that of the original model, whose router may have sent the "
            "token to other experts; set calibration.experts=all"
        ]
    return []


def image_problems(architecture: str, calibration: CalibrationConf) -> list[str]:
    """Why a model cannot be calibrated on images, or nothing."""
    if calibration.source != IMAGES:
        return [] if calibration.prompt is None else ["calibration.prompt: it is for calibration.source=images"]
    if not ARCHITECTURES[architecture].tower:
        return [f"calibration.source=images: {architecture} reads and sees no images; calibrate on text"]
    return []


def skip_problems(model: ResolvedModel, method: MethodConf) -> list[str]:
    """Names in method.skip that no linear has, with those that there are; and a skip of everything."""
    architecture, shape = model.ref.architecture, model.shape
    names = {x.name for index, _ in block_kinds(architecture, shape) for x in block_linears(architecture, shape, index)}
    problems = []
    for skip in method.skip:
        if not any(is_skipped(name, [skip]) for name in names):
            valid = sorted({name.rpartition(".")[2] for name in names})
            near = difflib.get_close_matches(skip, valid, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            problems.append(f"method.skip={skip}: no linear of a block is called that. {hint}Valid: {', '.join(valid)}")
    if method.skip and all(is_skipped(name, method.skip) for name in names):
        problems.append("method.skip: it names every linear, so that nothing is quantized; use method=none")
    return problems
