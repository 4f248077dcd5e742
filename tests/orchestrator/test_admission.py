"""Which nodes may take part: pins against what is installed, storage that is really shared, inputs under one path."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.admission import PYTHON, Survey, Terms, installed, mismatches, pins, read_lanes, refusals, survey
from orchestrator.shipping import PROJECT

NODE = "0123456789abcdef"
LANES = {"cpu": {"ray": "2.60.0", "torch": "2.13.0+cpu"}, "cuda": {"ray": "2.60.0", "torch": "2.13.0", "nvtx": "0.2"}}
NAMES = st.text("abc-_.", min_size=1, max_size=4)
VERSIONS = st.sampled_from(["1.0", "1.0+cpu", "2.0.post1"])


@pytest.fixture
def terms(tmp_path: Path) -> Terms:
    (tmp_path / "leases").mkdir()
    return Terms(tmp_path, (), LANES)


def surveyed(terms: Terms, versions: dict[str, str | None]) -> Survey:
    """What a node with these versions says, having written its probe."""
    return replace(survey(terms, NODE), installed=versions)


def test_pins_are_the_lines_with_a_version_and_nothing_else() -> None:
    text = "# torch==1.0\npip==26.3\n\nPyYAML==6.0.3\ntorch==2.13.0+cpu\n# What runs.\n"
    assert pins(text) == {"pip": "26.3", "PyYAML": "6.0.3", "torch": "2.13.0+cpu"}


@given(st.dictionaries(NAMES, VERSIONS))
def test_pins_read_what_is_written(wanted: dict[str, str]) -> None:
    assert pins("".join(f"{name}=={version}\n" for name, version in wanted.items())) == wanted


@given(st.dictionaries(NAMES, VERSIONS), st.dictionaries(NAMES, st.none() | VERSIONS))
def test_a_package_is_complained_of_exactly_when_it_is_not_as_pinned(
    wanted: dict[str, str], found: dict[str, str | None]
) -> None:
    complaints = mismatches(wanted, found)
    assert [line.split(":")[0] for line in complaints] == [
        n for n, version in wanted.items() if found.get(n) != version
    ]


def test_a_complaint_names_both_versions() -> None:
    assert mismatches({"ray": "2.60.0", "absent": "1.0"}, {"ray": "2.59.0", "absent": None}) == [
        "ray: 2.60.0 is pinned, 2.59.0 is installed",
        "absent: 1.0 is pinned, none is installed",
    ]


def test_this_environment_is_one_lane_of_the_lock_and_not_the_other() -> None:
    lanes = read_lanes(PROJECT / "locks")
    found = installed({name for pinned in lanes.values() for name in pinned})
    differing = sorted(len(mismatches(pinned, found)) for pinned in lanes.values())
    assert differing[0] == 0 < differing[1]


def test_the_nearest_installed_version_is_the_one_a_process_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray-1.0.dist-info").mkdir()
    (tmp_path / "ray-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert installed(["ray", "no-such-package"]) == {"ray": "1.0", "no-such-package": None}


@pytest.mark.parametrize("lane", LANES)
def test_a_node_with_either_lane_is_admitted_and_its_probe_removed(terms: Terms, lane: str) -> None:
    assert refusals(terms, surveyed(terms, dict(LANES[lane])), NODE) == []
    assert list((terms.storage / "leases").iterdir()) == []


def test_what_the_nearer_lane_lacks_is_named_with_the_command_that_mends_it(terms: Terms) -> None:
    (reason,) = refusals(terms, surveyed(terms, {"ray": "2.59.0", "torch": "2.13.0+cpu", "nvtx": None}), NODE)
    assert "the cpu lane of this lock: ray: 2.60.0 is pinned, 2.59.0 is installed; " in reason
    assert "make setup" in reason and "nvtx" not in reason


def test_a_long_list_of_differences_is_counted_and_not_printed(terms: Terms) -> None:
    many = replace(terms, lanes={"cpu": {f"package{i}": "1.0" for i in range(100)}})
    (reason,) = refusals(many, surveyed(many, {}), NODE)
    assert "and 96 more" in reason and len(reason) < 500


def test_another_python_is_named_instead_of_every_package(terms: Terms) -> None:
    (reason,) = refusals(terms, replace(surveyed(terms, {}), python="3.12"), NODE)
    assert f"its Python is 3.12, the driver's {PYTHON}" in reason


def test_versions_are_not_asked_where_the_environment_is_the_driver_s_own(terms: Terms) -> None:
    own = replace(terms, lanes={})
    assert survey(own, NODE).installed == {}
    assert refusals(own, survey(own, NODE), NODE) == []


def test_a_directory_of_the_same_name_on_another_machine_is_no_shared_storage(terms: Terms, tmp_path: Path) -> None:
    elsewhere = replace(terms, storage=tmp_path / "elsewhere", lanes={})
    (elsewhere.storage / "leases").mkdir(parents=True)
    (reason,) = refusals(replace(terms, lanes={}), survey(elsewhere, NODE), NODE)
    assert "what the node wrote is not here" in reason and "cluster.storage=<directory>" in reason


def test_a_node_that_cannot_write_says_why(terms: Terms) -> None:
    absent = replace(terms, storage=terms.storage / "not mounted", lanes={})
    (reason,) = refusals(absent, survey(absent, NODE), NODE)
    assert "No such file or directory" in reason and "not mounted" in reason


def test_inputs_a_node_does_not_have_are_named_and_all_reasons_come_at_once(terms: Terms) -> None:
    asked = replace(terms, inputs=("/no/such/model", str(terms.storage)), storage=terms.storage / "not mounted")
    reasons = refusals(asked, surveyed(asked, {}), NODE)
    assert len(reasons) == 3
    assert "it has no /no/such/model; " in reasons[1]
