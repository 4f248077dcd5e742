"""Axes to points: the same cells that Hydra would compose one by one, in a fraction of the time."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from conf import register
from conf.errors import ConfigError
from conf.schema import BlockTune, CellConf, FloatScheme, RootConf
from orchestrator.sweep import NODES, Sweep, expand

pytestmark = pytest.mark.usefixtures("quick_composition")


def grid(sweep: Sweep) -> list[dict[str, str]]:
    return [point.assignment for point in sweep.points]


def names(sweep: Sweep) -> list[str]:
    return [f"{p.config.method.name} w{p.config.scheme.bits}" for p in sweep.points]


# --- equality with Hydra ---------------------------------------------------------------------------------------------

# Command lines, and the overrides of each of their cells as Hydra itself would be given them.
MSE = ["clip@method.clip=mse", "method.clip.steps=40"]
SCALARS = ["seed=1", "numerics.device=cpu", "engine=vllm"]
SAMPLE: dict[str, tuple[list[str], list[list[str]]]] = {
    "plain": (
        ["experiment=smoke", "method=gptq", "bits=2,4"],
        [["method=gptq", "scheme.bits=2"], ["method=gptq", "scheme.bits=4"]],
    ),
    "a method that brings its scheme": (
        ["experiment=smoke", "method=hqq,rtn"],
        [["method=hqq", "scheme.bits=3"], ["method=rtn", "scheme.bits=3"]],
    ),
    "a changed slot with a value of its own": (
        [
            "experiment=smoke",
            "method=awq",
            "round@method.round=gptq,nearest",
            "clip@method.clip=mse",
            "method.clip.steps=40",
        ],
        [
            ["method=awq", f"round@method.round={r}", "clip@method.clip=mse", "method.clip.steps=40", "scheme.bits=3"]
            for r in ("gptq", "nearest")
        ],
    ),
    "groups": (
        ["experiment=smoke", "method=gptq", "group_size=null,64"],
        [["method=gptq", "scheme.bits=3", f"scheme.group_size={g}"] for g in ("null", "64")],
    ),
    "the baseline": (["experiment=smoke", "method=none", "bits=2,3,4"], [["method=none"]]),
    "an explicit scheme wins over the method's": (
        ["experiment=smoke", "method=hqq", "scheme=uniform"],
        [["method=hqq", "scheme=uniform", "scheme.bits=3"]],
    ),
    "nodes that refer to themselves, and quoted values": (
        ["experiment=smoke", "method=rtn", "suite=text", "suite.path='a, b = c'", "model=hf", 'model.repo="x=y/z"'],
        [["method=rtn", "scheme.bits=3", "suite=text", "suite.path='a, b = c'", "model=hf", 'model.repo="x=y/z"']],
    ),
    "an experiment with its own calibration, suite and cluster": (
        [
            "experiment=paper",
            "model=mamba-1.4b",
            "method=quip",
            "bits=3",
            "seed=1",
            "numerics.device=cpu",
            "engine=vllm",
        ],
        [
            [
                "model=mamba-1.4b",
                "method=quip",
                "scheme.bits=3",
                "seed=1",
                "numerics.device=cpu",
                "engine=vllm",
            ]
        ],
    ),
    "a published recipe": (
        ["experiment=paper", "model=llama2-7b", "method=quarot_gptq", "bits=4", "lane=published"],
        [
            [
                "model=llama2-7b",
                "method=quarot_gptq",
                "lane=published",
                "calibration=wikitext2",
                "scheme.symmetric=true",
                "method.round.act_order=false",
                "scheme.bits=4",
            ]
        ],
    ),
    "a published recipe with more at some bits": (
        ["experiment=paper", "model=llama2-7b", "method=omniquant", "bits=2,3", "lane=published", "seed=5"],
        [
            ["model=llama2-7b", "method=omniquant", "lane=published", "calibration=wikitext2", *more, "seed=5"]
            for more in (["scheme.bits=2", "method.tune.epochs=40", "method.tune.aug_loss=true"], ["scheme.bits=3"])
        ],
    ),
    "a published recipe that a user changes": (
        ["experiment=paper", "model=llama2-7b", "method=omniquant", "bits=4", "lane=published", "seed=5"],
        [["model=llama2-7b", "method=omniquant", "lane=published", "calibration=wikitext2", "scheme.bits=4", "seed=5"]],
    ),
}


@pytest.mark.parametrize("case", SAMPLE)
def test_a_point_is_what_hydra_composes_for_it(case: str) -> None:
    written, cells = SAMPLE[case]
    with register.hydra_context():
        composed = [composed_by_hydra([written[0], *overrides]) for overrides in cells]
    assert [point.config for point in expand(written).points] == composed


def test_any_point_of_a_large_grid_is_what_hydra_composes_for_it() -> None:
    written = [
        "experiment=paper",
        "model=llama2-7b,mamba-1.4b",
        "method=none,gptq,hqq",
        "group_size=null,64",
        "scheme.bits=2,3,8",
        "clip@method.clip=minmax,mse",
        "calibration.num_sequences=16,128",
        "seed=range(0,9)",
    ]
    points = random.Random(0).sample(expand(written).points, 5)
    with register.hydra_context():
        for point in points:
            overrides = [f"{key}={value}" for key, value in point.assignment.items()]
            assert composed_by_hydra([written[0], *overrides]) == point.config, overrides


def composed_by_hydra(overrides: list[str]) -> CellConf:
    """The identity part of a configuration that Hydra composes at once, options and values."""
    root = OmegaConf.to_object(hydra.compose("config", overrides=overrides))
    return CellConf(**{node: getattr(root, node) for node in NODES})


# --- the grid --------------------------------------------------------------------------------------------------------


def test_the_paper_is_nineteen_models_by_six_methods_by_three_bits_and_the_baselines() -> None:
    points = expand(["experiment=paper"]).points
    baselines = [p for p in points if isinstance(p.config.scheme, FloatScheme)]
    assert (len(points), len(baselines)) == (19 * 6 * 3 + 19, 19)
    assert len({p.config.model.name for p in baselines}) == 19
    rest = Counter((p.config.model.name, p.config.method.name) for p in points if p not in baselines)
    assert len(rest) == 19 * 6
    assert set(rest.values()) == {3}


def test_a_baseline_has_no_bits_and_no_groups() -> None:
    sweep = expand(
        ["experiment=smoke", "method=none,rtn", "bits=2,3", "group_size=null,64", "scheme.symmetric=true,false"]
    )
    assert Counter(p.config.method.name for p in sweep.points) == {"none": 1, "rtn": 8}
    assert sweep.points[0].assignment == {"method": "none"}


def test_the_grid_runs_through_the_last_axis_first() -> None:
    sweep = expand(["experiment=smoke", "method=rtn,gptq", "bits=4,2"])
    assert names(sweep) == ["rtn w4", "rtn w2", "gptq w4", "gptq w2"]
    assert grid(sweep)[0] == {"method": "rtn", "scheme.bits": "4"}


def test_a_single_value_replaces_an_axis_of_the_experiment() -> None:
    sweep = expand(["experiment=smoke", "method=rtn"])
    assert names(sweep) == ["rtn w3"]
    assert grid(sweep) == [{"method": "rtn", "scheme.bits": "3"}]


def test_a_new_axis_comes_behind_those_of_the_experiment() -> None:
    sweep = expand(["experiment=smoke", "method=rtn", "seed=0,1"])
    assert [tuple(assignment) for assignment in grid(sweep)] == [("method", "scheme.bits", "seed")] * 2
    assert [p.config.seed for p in sweep.points] == [0, 1]


@pytest.mark.parametrize("axis", ["bits=3,3", 'bits=3,"3"', "bits=range(3,4)", "seed=0,0"])
def test_points_that_are_the_same_cell_are_one(axis: str) -> None:
    assert len(expand(["experiment=smoke", "method=rtn", axis]).points) == 1


def test_lanes_are_an_axis_and_keep_what_the_user_says() -> None:
    points = expand(
        ["experiment=paper", "model=llama2-7b", "method=quarot_gptq,rtn", "bits=4", "lane=unified,published"]
    ).points
    seen = {(p.config.method.name, p.config.lane.name): p.config for p in points}
    assert seen["quarot_gptq", "published"].calibration.name == "wikitext2"
    assert seen["quarot_gptq", "unified"].calibration.name == "c4"
    assert seen["rtn", "published"].calibration == seen["rtn", "unified"].calibration


def test_where_it_runs_is_no_part_of_a_point() -> None:
    sweep = expand(["experiment=smoke", "method=rtn", "cluster=a100x8", "cluster.storage=/s", "name=other"])
    assert (sweep.name, sweep.cluster.name, sweep.cluster.storage) == ("other", "a100x8", "/s")
    assert sweep.points == expand(["experiment=smoke", "method=rtn"]).points


# --- exclusions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ("[{method:rtn,bits:2}]", ["rtn w3", "gptq w2", "gptq w3"]),
        ("[{method:[rtn,gptq],bits:2}]", ["rtn w3", "gptq w3"]),
        ("[{bits:2},{method:gptq}]", ["rtn w3"]),
        ("[{method:awq}]", ["rtn w2", "rtn w3", "gptq w2", "gptq w3"]),
        ("[]", ["rtn w2", "rtn w3", "gptq w2", "gptq w3"]),
    ],
)
def test_what_is_excluded_together_is_left_out_together(rule: str, left: list[str]) -> None:
    assert names(expand(["experiment=smoke", "method=rtn,gptq", "bits=2,3", f"exclude={rule}"])) == left


def test_null_and_booleans_can_be_excluded() -> None:
    axes = ["experiment=smoke", "method=rtn", "group_size=null,64", "scheme.symmetric=true,false"]
    kept = expand([*axes, "exclude=[{group_size:null,scheme.symmetric:true}]"]).points
    assert [(p.assignment["scheme.group_size"], p.assignment["scheme.symmetric"]) for p in kept] == [
        ("null", "False"),
        ("64", "True"),
        ("64", "False"),
    ]


# --- settings --------------------------------------------------------------------------------------------------------

SHORT = "{method:[omniquant,lrquant],set:['method.tune.epochs=2']}"


def epochs(written: list[str]) -> dict[str, int]:
    points = expand(["experiment=smoke", "method=rtn,omniquant,autoround", "bits=2", *written]).points
    methods = [point.config.method for point in points]
    return {m.name: m.tune.epochs for m in methods if isinstance(m.tune, BlockTune)}


def test_what_is_set_holds_where_it_says_and_nowhere_else() -> None:
    assert epochs([f"settings=[{SHORT}]"]) == {"omniquant": 2, "autoround": 0}
    assert epochs(["settings=[]"]) == {"omniquant": 20, "autoround": 0}


def test_a_later_setting_and_the_command_line_win() -> None:
    later = "{bits:2,method:omniquant,set:['method.tune.epochs=3','seed=4']}"
    assert epochs([f"settings=[{SHORT},{later}]"])["omniquant"] == 3
    assert epochs([f"settings=[{later},{SHORT}]"])["omniquant"] == 2
    only = ["experiment=smoke", "method=omniquant", "method.tune.epochs=7", f"settings=[{SHORT}]"]
    assert [point.config.method.tune.epochs for point in expand(only).points] == [7]  # type: ignore[attr-defined]


def test_a_published_recipe_wins_over_a_setting() -> None:
    line = ["experiment=smoke", "method=omniquant", "bits=2", "lane=unified,published", f"settings=[{SHORT}]"]
    seen = {point.config.lane.name: point.config.method.tune for point in expand(line).points}
    assert {lane: tune.epochs for lane, tune in seen.items() if isinstance(tune, BlockTune)} == {
        "unified": 2,
        "published": 40,
    }


def test_a_setting_may_choose_the_scheme_s_values_for_one_method_on_one_axis() -> None:
    groups = "settings=[{method:[none,hqq],set:['group_size=16']}]"
    line = ["experiment=smoke", "method=none,hqq,rtn", "bits=2,3", groups]
    assert {(p.config.method.name, p.config.scheme.group_size) for p in expand(line).points} == {
        ("none", None),
        ("hqq", 16),
        ("rtn", None),
    }


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["experiment=smoke,paper"], "experiment: one at a time"),
        (["cluster.storage=a,b"], "`cluster.storage` cannot be an axis: only model, method"),
        (["name=a,b"], "`name` cannot be an axis"),
        (["exclude=[{method:[none,rtn,gptq]}]"], "leaves no cell"),
        (["settings=[{set:['seed=1']}]"], "an entry says where it holds and what it sets there"),
        (["settings=[{method:rtn,set:'seed=1'}]"], "an entry says where it holds and what it sets there"),
        (["settings=[{method:rtn,set:['seed=1,2']}]"], "settings: `seed`: one value"),
        (["settings=[{method:rtn,set:['name=x']}]"], "settings: `name`: one value of a key that identifies a cell"),
        (["settings=[{methd:rtn,set:['seed=1']}]"], "settings: `methd` is not an axis here"),
        (["exclude=[{methd:rtn}]"], "exclude: `methd` is not an axis here; the axes are method, scheme.bits"),
        (["cluster.storage=s3://bucket/x"], "not a URL"),
        (["cluster.nodes=[]"], "at least one node"),
        (["name=../mine"], "letters, digits"),
        (["name=storage"], "not storage or mlflow"),
        (["axes.method=[rtn]"], "an axis is given by its values: method=a,b"),
    ],
)
def test_what_cannot_be_meant_is_refused(written: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        expand(["experiment=smoke", *written] if not written[0].startswith("experiment") else written)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ("{method: [gptqq]}", "did you mean gptq"),
        ("{bits: []}", "axis `scheme.bits` has no values"),
        ("{cluster: [local]}", "`cluster` cannot be an axis"),
        ("{methd: [rtn]}", "`methd` cannot be an axis"),
    ],
)
def test_a_mistake_in_an_experiments_axes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: str, said: str
) -> None:
    def compose(overrides: Any) -> register.Composed:
        root = RootConf(name="mine", axes=yaml.safe_load(axes))
        return register.Composed(root, {})

    monkeypatch.setattr(register, "compose", compose)
    with pytest.raises(ConfigError, match=re.escape(said)):
        expand([])
