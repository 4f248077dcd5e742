"""Choices that fit some architectures only are refused by the plan, with what to set instead."""

from dataclasses import replace

import pytest

from conf.schema import GptaqRound, MethodConf, ShapeConf
from orchestrator.choices import expert_problems, image_problems, skip_problems
from orchestrator.models import ResolvedModel
from tests.orchestrator.hand_made import MODEL, make_config

SHAPE = ShapeConf(64, 2, 128, 64, intermediate_size=128, state_size=4, conv_kernel=4, time_step_rank=4)
MAMBA = ResolvedModel(replace(MODEL, architecture="mamba"), SHAPE, revision_known=True)


def test_gptaq_needs_all_tokens_in_every_expert() -> None:
    config = replace(make_config(), method=MethodConf("gptaq", "compensation", round=GptaqRound()))
    assert expert_problems("llama", config) == []
    (reason,) = expert_problems("mixtral", config)
    assert reason.endswith("set calibration.experts=all")
    config.calibration = replace(config.calibration, experts="all")
    assert expert_problems("mixtral", config) == []


def test_a_model_that_reads_is_not_calibrated_on_images() -> None:
    images = replace(make_config().calibration, source="images", prompt="{{question}}")
    assert image_problems("llava", images) == []
    assert image_problems("llama", images) == [
        "calibration.source=images: llama reads and sees no images; calibrate on text"
    ]


def test_a_prompt_is_for_images() -> None:
    (reason,) = image_problems("llava", replace(make_config().calibration, prompt="{{question}}"))
    assert reason == "calibration.prompt: it is for calibration.source=images"


@pytest.mark.parametrize(
    ("skip", "reasons"),
    [
        ([], []),
        (["x_proj", "mixer.dt_proj"], []),
        (["xproj"], ["method.skip=xproj: no linear of a block is called that. did you mean x_proj? Valid: dt_proj, "]),
        (["in_proj", "x_proj", "dt_proj", "out_proj"], ["method.skip: it names every linear"]),
    ],
)
def test_skipped_linears_have_to_be_there(skip: list[str], reasons: list[str]) -> None:
    found = skip_problems(MAMBA, MethodConf("m", "c", skip=skip))
    assert len(found) == len(reasons) and all(a.startswith(b) for a, b in zip(found, reasons, strict=True))
