"""What is bad is refused before anything starts: exit code 2, the spot, what to write instead; never a traceback."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from conf import register
from orchestrator import cli, results
from tests.orchestrator.bad_input.case import Case
from tests.orchestrator.bad_input.files import FILES
from tests.orchestrator.bad_input.lines import LINES
from tests.orchestrator.bad_input.yaml_files import YAML


def named(groups: dict[str, list[Case]]) -> list[ParameterSet]:
    """Each case with the kind it belongs to in its name."""
    return [
        pytest.param(case, id=f"{kind}: {number} {case.name}".encode("ascii", "replace").decode())
        for kind, cases in groups.items()
        for number, case in enumerate(cases)
    ]


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object) -> None:
        raise AssertionError("a sweep was started")

    monkeypatch.setattr(results, "open_storage", start)


def merged(given: list[str], overrides: tuple[str, ...]) -> list[str]:
    """The overrides in the place of those given before."""
    keys = {text.split("=", 1)[0] for text in overrides}
    return [*(text for text in given if text.split("=", 1)[0] not in keys), *overrides]


def refused(verb: str, case: Case, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a verb from the current directory and look at its answer."""
    if case.prepare is not None:
        case.prepare(Path.cwd())
    before = sorted(os.listdir())  # noqa: PTH208 (names)
    code = cli.main([verb, *merged(given, case.overrides)])
    answer = capsys.readouterr()
    assert (code, answer.out) == (2, ""), answer.err
    assert answer.err.startswith("configuration: ")
    assert "Traceback" not in answer.err
    assert [words for words in case.said if words not in answer.err] == [], answer.err
    assert sorted(os.listdir()) == before, "nothing was written"  # noqa: PTH208


def test_the_table_is_long_enough() -> None:
    assert sum(len(cases) for cases in {**LINES, **FILES, **YAML}.values()) >= 100


@pytest.mark.usefixtures("quick_composition")
@pytest.mark.parametrize("case", named({**LINES, **FILES}))
def test_bad_input_is_refused_with_its_spot(case: Case, mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused("sweep", case, mine, capsys)


@pytest.mark.usefixtures("quick_composition")
@pytest.mark.parametrize("case", named({kind: cases[:1] for kind, cases in {**LINES, **FILES}.items()}))
def test_a_plan_refuses_what_a_sweep_refuses(case: Case, mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused("plan", case, mine, capsys)


@pytest.mark.parametrize("case", named(YAML))
def test_a_bad_file_of_the_configuration_is_refused_with_its_spot(
    case: Case, mine: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = Path.cwd() / "conf"
    shutil.copytree(register.ROOT, conf, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.md"))
    monkeypatch.setattr(register, "hydra_context", partial(register.hydra_context, conf))
    refused("sweep", case, mine, capsys)
