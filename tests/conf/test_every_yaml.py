"""Every file under conf/ composes to the dataclass it names, and is called what it says it is called."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf import register, schema
from conf.register import GROUPS, ROOT, SCHEMAS, SLOTS

APPLICABILITY_KEYS = {"architecture", "lane", "reason", "section", *SLOTS}
FILES = sorted(path for path in ROOT.glob("*/*.yaml") if not path.stem.endswith("_schema"))
NAMED = [group for group in GROUPS if group not in (*SLOTS, "scheme")]
WHOLE = [group for group in NAMED if group != "experiment"]


def names(group: str) -> list[str]:
    return [path.stem for path in FILES if path.parent.name == group]


def schema_of(group: str, name: str) -> type:
    """The dataclass that a file names first in its defaults list."""
    first = yaml.safe_load((ROOT / group / f"{name}.yaml").read_text())["defaults"][0]
    stem = "method" if first == "slots_schema" else first.removesuffix("_schema")
    return SCHEMAS[group][stem]


def rows(groups: list[str] | tuple[str, ...]) -> list[dict[str, str]]:
    """As few compositions as hold every option of these groups: row i takes option i of each."""
    columns = {group: names(group) for group in groups}
    return [
        {group: options[i % len(options)] for group, options in columns.items()}
        for i in range(max(map(len, columns.values())))
    ]


def overrides(row: dict[str, str]) -> list[str]:
    """A row as a user would write it, with what an option leaves to be given."""
    written = [f"{g}@method.{g}={name}" if g in SLOTS else f"{g}={name}" for g, name in row.items()]
    return [*written, "model.repo=organisation/name"] if row.get("model") == "hf" else written


def leaves(node: Any) -> list[Any]:
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return list(itertools.chain.from_iterable(leaves(getattr(node, f.name)) for f in dataclasses.fields(node)))
    return [node]


@pytest.mark.parametrize("row", rows(WHOLE), ids=lambda row: f"{row['model']},{row['method']}")
def test_every_option_of_a_whole_node_composes_to_its_dataclass(row: dict[str, str]) -> None:
    with register.hydra_context():
        root = register.compose(overrides(row)).root
    for group, name in row.items():
        node: Any = getattr(root, group)
        assert node.name == name, f"conf/{group}/{name}.yaml says name: {node.name}"
        assert type(node) is schema_of(group, name)
        assert schema.MISSING not in leaves(node)


@pytest.mark.parametrize("row", rows((*SLOTS, "scheme")), ids=lambda row: f"{row['clip']},{row['round']}")
def test_every_option_of_a_slot_or_scheme_composes_to_its_dataclass(row: dict[str, str]) -> None:
    with register.hydra_context():
        root = register.compose(overrides(row)).root
    for group, name in row.items():
        node = root.scheme if group == "scheme" else getattr(root.method, group)
        assert type(node) is schema_of(group, name)


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_is_a_sweep_of_its_own_name(name: str) -> None:
    with register.hydra_context():
        root = register.compose([f"experiment={name}"]).root
    assert root.name == name
    assert root.axes
    assert all(root.axes.values()), "an axis has values"


def test_every_dataclass_has_a_file_and_every_file_belongs_to_a_group() -> None:
    assert {path.parent.name for path in FILES} == set(GROUPS)
    for group, schemas in SCHEMAS.items():
        if group:
            assert {schema_of(group, name) for name in names(group)} == set(schemas.values())


def test_the_options_a_user_may_choose_are_the_files() -> None:
    with register.hydra_context():
        assert {group: register.options(group) for group in GROUPS} == {group: names(group) for group in GROUPS}


@pytest.mark.parametrize("name", names("method"))
def test_a_published_recipe_can_be_read(name: str) -> None:
    recipe = yaml.safe_load((ROOT / "method" / f"{name}.yaml").read_text()).get("published", [])
    with register.hydra_context():
        choices = register.parse(recipe)
        assert not any(choice.is_axis for choice in choices)
        if recipe:
            register.compose([f"method={name}", *(f"{choice.key}={choice.values[0]}" for choice in choices)])


def test_what_is_not_applicable_is_said_with_reason_and_section() -> None:
    entries = yaml.safe_load((ROOT / "applicability.yaml").read_text())
    architectures = {
        yaml.safe_load((ROOT / "model" / f"{name}.yaml").read_text()).get("architecture") for name in names("model")
    }
    for entry in entries:
        assert entry.keys() <= APPLICABILITY_KEYS
        assert entry["architecture"] in architectures
        assert entry["reason"] and entry["section"]
        assert entry.get("lane", "published") in names("lane")
        for slot in set(SLOTS) & entry.keys():
            assert entry[slot] in {cls.__name__ for cls in SCHEMAS[slot].values()}


def test_no_file_speaks_of_how_it_runs_where_it_says_what_it_is() -> None:
    """Identity never holds execution: these nodes have nothing that counts GPUs or workers."""
    fields = {
        f.name for cls in (schema.ModelConf, schema.MethodConf, schema.SchemeConf) for f in dataclasses.fields(cls)
    }
    assert not [name for name in fields if "gpu" in name or "worker" in name or "cluster" in name]


def test_the_root_of_all_files_is_this_repository() -> None:
    assert Path(register.__file__).parent == ROOT == Path(__file__).parents[2] / "conf"
