"""Hydra's override grammar read, and its errors turned into a spot, a key and the nearest valid names."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conf import register
from conf.errors import ConfigError
from conf.register import ROOT, Choice


@pytest.fixture
def hydra() -> Iterator[None]:
    with register.hydra_context():
        yield


def values(text: str) -> tuple[str, ...]:
    (choice,) = register.parse([text])
    return choice.values


# --- grammar ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bits=3", ("3",)),
        ("bits=2,3,4", ("2", "3", "4")),
        ("bits=3,2,3", ("3", "2")),
        ("bits=range(2,5)", ("2", "3", "4")),
        ("bits=choice(2,4)", ("2", "4")),
        ("group_size=null,64", ("null", "64")),
        ("method=glob(quip*)", ("quip", "quip_gptq", "quip_sharp")),
        ("method=glob(*,exclude=*_*)", None),
        ("scheme.symmetric=true,False", ("True", "False")),
        ("suite.tasks=[piqa,boolq]", ("[piqa,boolq]",)),
        ("suite.tasks=[piqa],[piqa,boolq]", ("[piqa]", "[piqa,boolq]")),
        ("method.round.damping=0.01,1e-3", ("0.01", "0.001")),
    ],
)
def test_values_are_read_as_hydra_writes_them(text: str, expected: tuple[str, ...] | None) -> None:
    if expected is None:
        assert all("_" not in name for name in values(text)) and len(values(text)) > 5
    else:
        assert values(text) == expected


@pytest.mark.usefixtures("hydra")
def test_several_values_are_an_axis_and_one_is_not() -> None:
    assert [choice.is_axis for choice in register.parse(["bits=2,3", "seed=1", "method=glob(rtn)"])] == [
        True,
        False,
        False,
    ]


QUOTED = {
    'model.name="a=b"': "a=b",
    "model.repo=/data/my models/tiny": "/data/my models/tiny",
    "model.tokenizer='a, b = c'": "a, b = c",
    'calibration.name="a,b"': "a,b",
    r"calibration.path='it\'s'": "it's",
    "suite.name='null'": "null",
    "suite.path='3'": "3",
    "lane.name='ä ö'": "ä ö",
}


@pytest.mark.usefixtures("hydra")
def test_a_quoted_value_arrives_as_it_was_meant() -> None:
    choices = register.parse(list(QUOTED))
    assert not any(choice.is_axis for choice in choices)
    root = register.compose([f"{choice.key}={choice.values[0]}" for choice in choices]).root
    arrived = [getattr(getattr(root, node), field) for node, field in (c.key.split(".") for c in choices)]
    assert arrived == list(QUOTED.values())


@pytest.mark.usefixtures("hydra")
def test_quoted_values_can_be_an_axis() -> None:
    assert values("""model.name="a,b",'c=d'""") == ('"a,b"', "'c=d'")


@pytest.mark.usefixtures("hydra")
def test_a_quoted_option_is_an_option() -> None:
    assert values('method="gptq"') == ('"gptq"',)
    with pytest.raises(ConfigError, match="did you mean gptq"):
        register.parse(['method="gtpq"'])


@pytest.mark.usefixtures("hydra")
def test_shorthands_stand_for_their_keys() -> None:
    assert register.parse(["bits=3", "group_size=64", "clip@method.clip=mse"]) == [
        Choice("scheme.bits", ("3",)),
        Choice("scheme.group_size", ("64",)),
        Choice("clip@method.clip", ("mse",)),
    ]


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("texts", [["bits=2", "bits=3"], ["bits=2", "scheme.bits=3"], ["model=hf", "model=hf"]])
def test_a_key_is_given_once(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        register.parse(texts)


@pytest.mark.usefixtures("hydra")
def test_schemas_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="has no `gptq_schema`"):
        register.parse(["round@method.round=gptq_schema"])
    assert not any(value.endswith("_schema") for value in values("round@method.round=glob(*)"))


# --- composition -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hydra")
def test_a_method_brings_its_scheme_and_a_user_may_change_it() -> None:
    assert register.compose(["method=none"]).choices["scheme"] == "float16"
    assert type(register.compose(["method=hqq"]).root.scheme).__name__ == "RealZeroScheme"
    assert type(register.compose(["method=hqq", "scheme=uniform"]).root.scheme).__name__ == "UniformScheme"


@pytest.mark.usefixtures("hydra")
def test_one_slot_can_be_changed() -> None:
    method = register.compose(["method=awq", "round@method.round=gptq", "method.round.damping=0.1"]).root.method
    assert type(method.round).__name__ == "GptqRound"
    assert type(method.scale).__name__ == "AwqScale"
    assert vars(method.round)["damping"] == 0.1


@pytest.mark.usefixtures("hydra")
def test_sizes_of_a_model_without_a_shape_cannot_be_changed() -> None:
    with pytest.raises(ConfigError, match="start from one of its size"):
        register.compose(["model=hf", "model.repo=a/b", "model.shape.hidden_size=64"])
    assert register.compose(["model=llama2-7b", "model.shape.hidden_size=64"]).root.model.shape is not None


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("options", ["cluster=ray", "tracking=server"])
def test_what_lies_elsewhere_never_falls_back_to_this_machine(options: str) -> None:
    """OmegaConf drops a `???` that stands over a default: such an option must say an address itself."""
    root = register.compose([options]).root
    assert (root.cluster.address if options == "cluster=ray" else root.tracking.uri) is not None


# --- errors in files -------------------------------------------------------------------------------------------------


def appended(line: str) -> Callable[[str], str]:
    return lambda text: f"{text}{line}\n"


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


SMOKE, GPTQ, CALIBRATION = "conf/experiment/smoke.yaml", "conf/round/gptq.yaml", "calibration.source"


@pytest.mark.parametrize(
    ("file", "change", "override", "said"),
    [
        (
            "round/gptq",
            appended("dampin: 0.1"),
            "method=gptq",
            [GPTQ, "`method.round.dampin`", "mean damping?"],
        ),
        ("round/gptq", appended("damping: much"), "method=gptq", [GPTQ, "`much` is not a number"]),
        ("round/gptq", appended("a: [1"), "method=gptq", ["not YAML", "round/gptq.yaml", "line 5"]),
        ("method/gptq", replaced("round: gptq", "round: gtpq"), "method=gptq", ["'round/gtpq'", "valid: gptaq, gptq"]),
        ("experiment/smoke", appended("suit: x"), "experiment=smoke", [SMOKE, "did you mean suite"]),
        ("experiment/smoke", replaced("[3]", "3"), "experiment=smoke", [SMOKE, "`axes.bits`"]),
        ("suite/text", lambda text: "- 3\n", "suite=text", ["conf/suite/text.yaml", "SuiteConf"]),
        ("calibration/c4", replaced("source: c4", ""), "calibration=c4", [f"give it: {CALIBRATION}=..."]),
    ],
)
def test_an_error_in_a_file_names_the_file_and_the_key(
    tmp_path: Path, file: str, change: Callable[[str], str], override: str, said: list[str]
) -> None:
    shutil.copytree(ROOT, tmp_path / "conf")
    path = tmp_path / "conf" / f"{file}.yaml"
    path.write_text(change(path.read_text()))
    with register.hydra_context(tmp_path / "conf"), pytest.raises(ConfigError) as raised:
        register.compose([override])
    assert all(words in str(raised.value) for words in said), str(raised.value)
