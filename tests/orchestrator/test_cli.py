"""The command line: what is bad is refused with exit code 2, its spot and the nearest names; never a traceback."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from conf.errors import ConfigError
from orchestrator import cli, crash, results, run, verbs
from orchestrator.cell import Cell, CellStatus
from orchestrator.cluster import declared_nodes
from orchestrator.resolve import resolve
from orchestrator.results import SweepRecord
from orchestrator.storage import Attempt, CellState, Storage, end_attempt, lost
from orchestrator.sweep import Sweep, expand
from tests.orchestrator.hand_made import write_checkpoint, write_text
from workers.api import AttemptResult, Failure, FailureKind
from workers.errors import PrerequisiteError

pytestmark = pytest.mark.usefixtures("quick_composition")


def merged(given: list[str], line: str) -> list[str]:
    """The line's overrides in the place of those given before."""
    added = shlex.split(line, posix=False)
    keys = {text.split("=", 1)[0] for text in added}
    return [text for text in given if text.split("=", 1)[0] not in keys] + added


def test_markup_in_what_a_user_wrote_is_printed_as_it_is(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *merged(mine, "model.repo='/[red]no/[/]such'")]) == 2
    assert "/[red]no/[/]such" in capsys.readouterr().err


# --- other ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["frobnicate", "plan --colour", "resubmit --failure NOPE", "ui --port many", "ui --port 0", "kernels x", ""]
)
def test_a_bad_verb_or_option_is_exit_2_with_the_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(line.split())
    assert ended.value.code == 2
    assert "usage: ptqbench" in capsys.readouterr().err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_and_a_function(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert cli.VERBS[verb] in " ".join(capsys.readouterr().out.split())
    assert callable(cli._verb(verb))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("bits=99"), 2, "configuration: bits=99"),
        (PrerequisiteError("run make setup"), 3, "missing: run make setup"),
        (KeyboardInterrupt(), 130, "what was finished is kept"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object, console: object) -> int:
        raise error

    monkeypatch.setattr(verbs, "plan", fail)
    assert cli.main(["plan"]) == code
    assert said in capsys.readouterr().err


def fail(arguments: object, console: object) -> int:
    raise ZeroDivisionError("with https://me:secret-word@host and hf_0123456789abcdefghijkl")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Verbs with a defect, run from an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verbs, "plan", fail)
    monkeypatch.setattr(verbs, "cell", fail)


@pytest.mark.usefixtures("broken")
def test_a_defect_of_ours_is_one_message_and_its_traceback_is_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "bits=2"]) == 70
    answer = capsys.readouterr()
    assert answer.err.startswith("internal error: ZeroDivisionError: with https://***@host")
    assert f"the traceback is in {Path('results/ptqbench.log').absolute()}" in answer.err
    assert "Traceback" not in answer.err + answer.out
    log = Path("results/ptqbench.log").read_text()
    assert "ptqbench plan bits=2\nTraceback (most recent call last):" in log
    assert "in fail" in log
    assert not any(secret in log + answer.err for secret in ("secret-word", "hf_0123"))


@pytest.mark.usefixtures("broken")
def test_the_log_of_defects_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "MAX_LOG", 2000)
    for _ in range(20):
        assert cli.main(["plan"]) == 70
    sizes = {path.name: path.stat().st_size for path in Path("results").iterdir()}
    assert sizes.keys() == {"ptqbench.log", "ptqbench.log.1"}
    assert sum(sizes.values()) < 10_000


@pytest.mark.usefixtures("broken")
def test_where_results_cannot_be_written_the_log_is_in_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("results").write_text("a file in its place")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert cli.main(["plan"]) == 70
    assert f"the traceback is in {tmp_path}/temporary/ptqbench.log" in capsys.readouterr().err
    assert "ZeroDivisionError" in (tmp_path / "temporary" / "ptqbench.log").read_text()


@pytest.mark.usefixtures("broken")
def test_one_cell_keeps_its_stack_trace() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["cell"])


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "plan", "experiment=smoke"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_plan_lists_the_cells_and_starts_nothing(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *mine, "bits=2,3"]) == 0
    answer = capsys.readouterr()
    assert "tiny rtn w2" in answer.out and "tiny rtn w3" in answer.out
    assert "2 cells: 2 PENDING" in answer.out
    assert "estimate, not measured" in answer.out
    assert not Path("results").exists()


@pytest.mark.usefixtures("awq_not_built")
def test_plan_is_0_whatever_cannot_run(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *merged(mine, "method=awq")]) == 0
    assert "NOT_IMPLEMENTED: slot scale: AwqScale is not implemented" in capsys.readouterr().out


def test_a_sweep_that_another_driver_holds_is_exit_3_and_names_it(
    mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with Storage(Path("results/storage")).lease("mine"):
        assert cli.main(["sweep", *mine]) == 3
    assert f"sweep mine is being driven by process {os.getpid()}" in capsys.readouterr().err


def test_a_storage_that_cannot_be_used_is_exit_3(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert cli.main(["sweep", *mine, "cluster.storage=file"]) == 3
    assert "cluster.storage=<directory>" in capsys.readouterr().err


@pytest.mark.usefixtures("awq_not_built")
def test_one_cell_is_one_cell(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cell", *mine, "bits=2,3"]) == 2
    assert "`cell` runs one cell, this is 2; give each axis one value" in capsys.readouterr().err
    assert cli.main(["cell", *merged(mine, "method=awq")]) == 2
    assert "NOT_IMPLEMENTED: slot scale: AwqScale" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sweep", "status", "resubmit", "report", "sync", "ui", "gc"])
def test_a_sweep_nobody_has_started_is_exit_2(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([verb, "name=never"]) == 2
    assert "no sweep `never` under" in capsys.readouterr().err


def test_status_and_report_read_a_sweep_as_it_was_started(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results.write_record("mine", SweepRecord([*mine, "bits=2,3"], []))
    assert cli.main(["status", "name=mine"]) == 1
    assert "sweep mine: 2 PENDING" in capsys.readouterr().out
    assert cli.main(["report", "name=mine"]) == 0
    assert Path("results/mine/cells.csv").exists() and Path("results/mine/report.html").exists()


def test_a_report_keeps_the_mlflow_runs_that_were_shown(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results.write_record("mine", SweepRecord(mine, []))
    assert cli.main(["report", "name=mine"]) == 0
    path = Path("results/mine/cells.csv")
    table = pd.read_csv(path)
    assert table.mlflow_run_id.isna().all()
    (cell,) = resolve(expand(mine), declared_nodes(expand(mine).cluster), online=False)
    attempt = Storage(Path("results/storage")).open_attempt(cell, 1)
    end_attempt(attempt.directory, cell, CellStatus.FAILED, lost("quantize", "gone"))
    table.assign(attempt=1, mlflow_run_id="0" * 32).to_csv(path, index=False)
    assert cli.main(["report", "name=mine"]) == 0
    row = pd.read_csv(path, dtype=str).iloc[0]
    assert (row.status, row.attempt, row.mlflow_run_id) == ("FAILED", "1", "0" * 32)


@pytest.mark.usefixtures("awq_not_built")
def test_a_sweep_with_nothing_to_run_says_so(
    mine: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not implemented is exit 1, and nothing is started for it."""
    monkeypatch.setattr(run, "views_are_current", lambda *_: True)  # MLflow, which shows them, takes seconds to import
    assert cli.main(["sweep", *merged(mine, "method=awq")]) == 1
    assert "nothing to run: every cell has ended" in capsys.readouterr().out
    assert results.all_records().keys() == {"mine"}


def test_gc_lists_before_it_removes(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Storage(Path("results/storage")).checkpoint("a" * 64)
    checkpoint.mkdir()
    results.write_record("mine", SweepRecord(mine, []))
    assert cli.main(["gc", "name=mine"]) == 0
    assert checkpoint.exists()
    assert cli.main(["gc", "--yes", "name=mine"]) == 0
    assert not checkpoint.exists()


# --- resubmit --------------------------------------------------------------------------------------------------------


def failed(cell: Cell, kind: FailureKind) -> CellState:
    failure = Failure("quantize", kind, "it did")
    result = AttemptResult(cell.evaluate_key, cell.quantize_key, "FAILED", failure)
    return CellState(CellStatus.FAILED, (Attempt(Path("attempt"), 1, result),))


@pytest.fixture
def asked(mine: list[str], monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str]]]:
    """What `resubmit` hands on: the overrides, and the labels it picks of a sweep of three cells that have failed."""
    handed: list[tuple[list[str], list[str]]] = []
    results.write_record("mine", SweepRecord([*mine, "bits=2,3,4"], []))

    def take(sweep: Sweep, overrides: list[str], console: Console, statuses: object, choose: run.Choose) -> int:
        cells = resolve(sweep, declared_nodes(sweep.cluster), online=False)
        kinds = (FailureKind.TIMEOUT, FailureKind.OUT_OF_MEMORY, FailureKind.NO_OP)
        states = {cell.key: failed(cell, kind) for cell, kind in zip(cells, kinds, strict=True)}
        handed.append((overrides, [cell.label for cell in choose(cells, states)]))
        return 1

    monkeypatch.setattr(run, "run", take)
    return handed


@pytest.mark.parametrize(
    ("arguments", "picked"),
    [
        (["name=mine"], ["2", "3", "4"]),
        (["name=mine", "tiny rtn w3"], ["3"]),
        (["tiny rtn w4", "name=mine", "tiny rtn w2"], ["4", "2"]),
        (["name=mine", "--failure", "TIMEOUT"], ["2"]),
        (["--failure", "TIMEOUT", "name=mine"], ["2"]),
        (["name=mine", "--failure", "TIMEOUT,NO_OP"], ["2", "4"]),
        (["--failure", "TIMEOUT", "name=mine", "--failure", "NO_OP"], ["2", "4"]),
        (["tiny rtn w3", "--failure", "OUT_OF_MEMORY", "name=mine", "tiny rtn w2"], ["3"]),
        (["name=mine", "--failure", "CUDA"], []),
    ],
)
def test_resubmit_picks_cells_by_label_and_kind(
    arguments: list[str], picked: list[str], asked: list[tuple[list[str], list[str]]]
) -> None:
    assert cli.main(["resubmit", *arguments]) == 1
    assert asked[0][1] == [f"tiny rtn w{bits}" for bits in picked]
    assert "name=mine" in asked[0][0] and "bits=2,3,4" in asked[0][0]


@pytest.mark.usefixtures("asked")
def test_resubmit_says_when_nothing_has_failed_so(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["resubmit", "name=mine", "--failure", "CUDA"])
    assert "no cell has failed with CUDA; failures: 1 TIMEOUT, 1 OUT_OF_MEMORY, 1 NO_OP" in capsys.readouterr().out


@pytest.mark.usefixtures("asked")
def test_resubmit_of_a_cell_that_is_none_is_exit_2_with_the_nearest_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resubmit", "name=mine", "tiny rtm w3"]) == 2
    answer = capsys.readouterr().err
    assert 'no cell `tiny rtm w3` in this sweep; nearest: "tiny rtn w3"' in answer


@pytest.mark.usefixtures("asked")
def test_a_kind_behind_a_space_is_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resubmit", "name=mine", "--failure", "TIMEOUT", "NO_OP"]) == 2
    assert "`NO_OP` is a kind of failure, not a cell; several kinds: --failure NO_OP,OTHER" in capsys.readouterr().err


def test_labels_reach_resubmit_through_make(tmp_path: Path) -> None:
    """make hands ARGS to a shell, which reads the quotes."""
    makefile = Path(cli.__file__).parents[1] / "Makefile"
    # This make may be the child of another, `make test`, whose habit is to say which directory it enters and leaves.
    quiet = ["make", "-n", "--no-print-directory", "-f", str(makefile)]
    line = [*quiet, "resubmit", "PYTHON=python3", 'ARGS=name=mine "tiny rtn w3 length=64"']
    shown = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert shlex.split(shown.splitlines()[-1])[1:] == ["resubmit", "name=mine", "tiny rtn w3 length=64"]


# --- a sweep by its name, and more ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["status", "report", "sync", "resubmit", "ui", "gc"])
@pytest.mark.parametrize(("line", "said"), [("bitz=3", "did you mean bits"), ("method=gptqq", "did you mean gptq")])
def test_a_typo_behind_a_sweep_s_name_is_exit_2(
    verb: str, line: str, said: str, mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results.write_record("mine", SweepRecord(mine, []))
    assert cli.main([verb, "name=mine", line]) == 2
    assert said in capsys.readouterr().err


# --- odd, but good ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["my models/tiny", "a=b", "a,b", "it's", "modèle 量子/tiny", "[red]", "100%", "a:b", "-dash", "x(1)"]
)
def test_files_of_any_name_can_be_used(
    name: str, mine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_checkpoint(tmp_path / "models" / name)
    write_text(directory / f"{Path(name).name}.txt", 200)
    keys = ("model.repo", "calibration.path", "suite.path")
    given = [text for text in mine if text.partition("=")[0] not in keys]
    paths = (directory, *2 * [directory / f"{Path(name).name}.txt"])
    quoted = [f'{key}="{path}"' for key, path in zip(keys, paths, strict=True)]
    assert cli.main(["plan", *given, *quoted]) == 0
    assert "1 PENDING" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [b"a b\r\n" * 100, b"\xef\xbb\xbf" + b"a b " * 100, "é 量 ".encode() * 100, b"a b " * 100_000]
)
def test_texts_of_any_line_ends_and_letters_can_be_used(content: bytes, mine: list[str]) -> None:
    Path("text.txt").write_bytes(content)
    assert cli.main(["plan", *mine]) == 0


def test_links_and_paths_from_another_directory_can_be_used(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linked").symlink_to("tiny")
    (tmp_path / "linked.txt").symlink_to("text.txt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = merged(mine, "model.repo=../linked calibration.path=../linked.txt suite.path=../linked.txt")
    assert cli.main(["plan", *moved]) == 0
