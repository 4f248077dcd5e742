"""Which engine, and in which words."""

import pytest

from conf.errors import ConfigError
from orchestrator.engine_choice import (
    CAPABILITIES,
    CPU_HEAD_DIMS,
    ENGINES,
    SEEING,
    Capability,
    EngineChoice,
    choose_engine,
)


def choose(
    requested: str = "auto",
    architecture: str = "llama",
    head_dim: int | None = 64,
    dtype: str = "float32",
    weight_format: str = "dense",
    device: str = "cpu",
    images: bool = False,
) -> EngineChoice:
    return choose_engine(requested, architecture, head_dim, dtype, weight_format, device, images)


def test_vllm_is_taken_where_it_can() -> None:
    choice = choose()
    assert choice.engine == "vllm"
    assert choice.reason == "vLLM scores llama in float32 on cpu"


@pytest.mark.parametrize("head_dim", CPU_HEAD_DIMS)
def test_every_head_size_of_the_cpu_attention_is_vllm_s(head_dim: int) -> None:
    assert choose(head_dim=head_dim).engine == "vllm"


def test_another_head_size_is_scored_by_transformers_and_the_row_says_why() -> None:
    choice = choose(head_dim=8)
    assert choice.engine == "transformers"
    assert choice.reason == (
        "vLLM's CPU attention supports head sizes 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512; this model has 8"
    )


def test_head_sizes_do_not_matter_on_a_gpu_or_without_attention() -> None:
    assert choose(head_dim=8, device="cuda").engine == "vllm"
    assert choose(architecture="mamba2", head_dim=None).engine == "vllm"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_language_model_of_the_paper_is_scored_by_vllm(device: str, dtype: str) -> None:
    heads = {"llama": 128, "mixtral": 128, "deepseek_moe": 128, "mamba": None, "llava": 128}
    for architecture, head_dim in heads.items():
        assert choose(architecture=architecture, head_dim=head_dim, dtype=dtype, device=device).engine == "vllm"


@pytest.mark.parametrize("architecture", SEEING)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_models_that_see_are_shown_images_by_either_engine(architecture: str, device: str) -> None:
    for requested, engine in (("auto", "vllm"), ("vllm", "vllm"), ("transformers", "transformers")):
        assert choose(requested, architecture=architecture, head_dim=128, device=device, images=True).engine == engine


def test_images_are_not_shown_to_a_model_that_sees_none() -> None:
    with pytest.raises(ConfigError, match="some show images, and mixtral sees none; leave them out for this model"):
        choose(architecture="mixtral", images=True)


def test_what_was_asked_for_is_taken_where_it_can() -> None:
    assert choose("transformers") == EngineChoice("transformers", "engine=transformers was asked for")
    assert choose("vllm").engine == "vllm"


def test_what_was_asked_for_and_cannot_is_refused_with_what_can() -> None:
    with pytest.raises(ConfigError, match=r"engine=vllm: vLLM's CPU attention .* has 8; use engine=transformers"):
        choose("vllm", head_dim=8)


def test_a_model_no_engine_can_score_is_refused_with_both_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAPABILITIES, "vila", Capability("it lacks this", "and here something else"))
    with pytest.raises(ConfigError, match=r"no engine can score this model: it lacks this; and here something else"):
        choose(architecture="vila", head_dim=128)


@pytest.mark.parametrize("requested", ["auto", *ENGINES])
def test_packed_weights_are_not_served_yet(requested: str) -> None:
    with pytest.raises(ConfigError, match="packed weights"):
        choose(requested, weight_format="packed")


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("requested", "vlm", "vllm"),
        ("architecture", "lama", "llama"),
        ("dtype", "float23", "float32"),
        ("weight_format", "dens", "dense"),
        ("device", "cud", "cuda"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(key: str, value: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"{value}.*did you mean {near}"):
        choose(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", CAPABILITIES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("engine", ENGINES)
def test_auto_never_takes_an_engine_that_would_be_refused(architecture: str, device: str, engine: str) -> None:
    try:
        choice = choose(architecture=architecture, device=device)
    except ConfigError:
        with pytest.raises(ConfigError):
            choose(engine, architecture=architecture, device=device)
    else:
        assert choose(choice.engine, architecture=architecture, device=device).engine == choice.engine
