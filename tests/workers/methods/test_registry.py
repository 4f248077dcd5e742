"""The table of stages, and what the planner asks of it."""

import importlib
import subprocess
import sys
from typing import Any

import pytest

from conf import schema
from conf.schema import GptqRound, MethodConf, MseClip, NearestRound, UniformScheme
from workers.methods import registry
from workers.methods.registry import Need

GPTQ = MethodConf(name="gptq", category="compensation", round=GptqRound())
BASELINE = MethodConf(name="none", category="baseline")
FUNCTION_OF_SLOT = {
    schema.RotateConf: "draw_orthogonal",
    schema.ScaleConf: "scales",
    schema.IncohereConf: "make_basis",
    schema.KeepConf: "round_rest",
    schema.ClipConf: "fit_grid",
    schema.TuneConf: "TunedLinear",
    schema.RoundConf: "round_weight",
}


@pytest.mark.parametrize(
    "cls", [cls for cls, stage in registry.STAGES.items() if stage.module], ids=lambda c: c.__name__
)
def test_every_stage_with_a_module_has_the_function_of_its_slot(cls: type[Any]) -> None:
    module = importlib.import_module(registry.stage_module(cls()))

    (function,) = [name for slot, name in FUNCTION_OF_SLOT.items() if issubclass(cls, slot)]
    assert callable(getattr(module, function))


def test_planner_reads_the_registry_and_the_refusals_without_torch() -> None:
    code = "import sys, workers.methods.refusals, workers.methods.registry; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_defaults_of_every_slot_are_implemented() -> None:
    assert registry.missing_stages(BASELINE) == []


def test_class_outside_the_table_is_missing_and_has_no_module() -> None:
    class NewRound(schema.RoundConf):
        pass

    method = MethodConf(name="x", category="x", round=NewRound())

    assert registry.missing_stages(method) == ["slot round: NewRound is not implemented"]
    assert registry.recipes(method) == {"MinmaxClip": 1, "NewRound": 0}
    with pytest.raises(ValueError, match="NewRound has no module"):
        registry.stage_module(method.round)


def test_class_outside_the_known_schemes_is_missing() -> None:
    class NewScheme(schema.SchemeConf):
        pass

    assert registry.missing_schemes(NewScheme(bits=3)) == ["scheme: NewScheme is not implemented"]
    assert registry.missing_schemes(UniformScheme(bits=3)) == []


def test_needs_are_the_union_over_stages() -> None:
    assert registry.needs(GPTQ) == {Need.HESSIAN}
    assert registry.needs(MethodConf(name="rtn", category="baseline", round=NearestRound())) == frozenset()


def test_recipes_name_only_stages_that_do_something() -> None:
    assert set(registry.recipes(GPTQ)) == {"GptqRound", "MinmaxClip"}
    assert set(registry.recipes(MethodConf(name="g", category="c", clip=MseClip(), round=GptqRound()))) == {
        "GptqRound",
        "MseClip",
    }


def test_baseline_has_no_grid_and_so_no_recipe() -> None:
    assert registry.is_baseline(BASELINE)
    assert not registry.is_baseline(GPTQ)
    assert registry.recipes(BASELINE) == {}


def test_slots_are_those_of_the_method_node_in_its_order() -> None:
    others = ("name", "category", "published", "published_at", "inputs", "skip")
    fields = [name for name in MethodConf.__dataclass_fields__ if name not in others]

    assert list(registry.SLOTS) == fields
