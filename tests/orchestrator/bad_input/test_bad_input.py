"""What is bad is refused before anything starts: exit code 2, the spot, what to write instead; never a traceback."""

import os
from pathlib import Path

import pytest

from orchestrator import cli, results
from tests.orchestrator.bad_input.case import Case
from tests.orchestrator.bad_input.files import FILES
from tests.orchestrator.bad_input.lines import LINES

CASES = [
    pytest.param(case, id=f"{kind}: {number} {case.name}".encode("ascii", "replace").decode())
    for kind, cases in {**LINES, **FILES}.items()
    for number, case in enumerate(cases)
]

pytestmark = pytest.mark.usefixtures("quick_composition")


def merged(given: list[str], overrides: tuple[str, ...]) -> list[str]:
    """The overrides in the place of those given before."""
    keys = {text.split("=", 1)[0] for text in overrides}
    return [*(text for text in given if text.split("=", 1)[0] not in keys), *overrides]


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_its_spot(
    case: Case, mine: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: object) -> None:
        raise AssertionError("a sweep was started")

    monkeypatch.setattr(results, "open_storage", start)
    if case.prepare is not None:
        case.prepare(Path.cwd())
    before = sorted(os.listdir())  # noqa: PTH208 (names)
    for verb in ("plan", "sweep"):
        assert cli.main([verb, *merged(mine, case.overrides)]) == 2
        answer = capsys.readouterr()
        assert answer.err.startswith("configuration: ")
        assert "Traceback" not in answer.err
        assert [words for words in case.said if words not in answer.err] == [], answer.err
        assert answer.out == ""
    assert sorted(os.listdir()) == before, "nothing was written"  # noqa: PTH208
