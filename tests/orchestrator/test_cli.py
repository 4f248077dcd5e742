"""The command line: what is bad is refused with exit code 2, its spot and the nearest names; never a traceback."""

import os
import shlex
from pathlib import Path

import pandas as pd
import pytest

from conf.errors import ConfigError
from orchestrator import cli, results, run, verbs
from orchestrator.cell import CellStatus
from orchestrator.cluster import declared_nodes
from orchestrator.resolve import resolve
from orchestrator.results import SweepRecord
from orchestrator.storage import Storage, end_attempt, lost
from orchestrator.sweep import expand
from tests.orchestrator.hand_made import write_checkpoint, write_text
from workers.errors import PrerequisiteError

pytestmark = pytest.mark.usefixtures("quick_composition")

# What a user writes behind `ptqbench plan` and a model and texts of his own, and words of the answer: where, and what
# would have been valid.
BAD_LINES: list[tuple[str, list[str]]] = [
    # names
    ("methd=gptq", ["'methd'", "did you mean method"]),
    ("bit=3", ["'bit'", "did you mean bits"]),
    ("experiment=papr", ["conf/experiment/ has no `papr`; did you mean paper?", "valid: mini, paper, smoke"]),
    ("method=gptqq", ["conf/method/ has no `gptqq`; did you mean gptq", "valid: autoround, awq"]),
    ("method=rtn,gptqq", ["conf/method/ has no `gptqq`"]),
    ("model=llama2_7b", ["conf/model/ has no `llama2_7b`; did you mean llama2-7b"]),
    ("cluster=h200", ["conf/cluster/ has no `h200`", "h200x8"]),
    ("suite=papr", ["conf/suite/ has no `papr`; did you mean paper"]),
    ("lane=both", ["conf/lane/ has no `both`", "valid: published, unified"]),
    ("method=", ["conf/method/ has no ``", "valid: autoround"]),
    ("method=glob(zzz*)", ["`method=glob(zzz*)`: matches nothing", "valid: autoround"]),
    ("method=slots_schema", ["conf/method/ has no `slots_schema`"]),
    ("round@method.round=gtpq", ["conf/round/ has no `gtpq`; did you mean gptq", "valid: gptaq, gptq"]),
    ("round@method.rund=gptq", ["write round@method.round=<option>"]),
    ("round=gptq", ["a slot belongs to a method; write round@method.round=<option>"]),
    ("foo@bar=baz", ["group 'foo' does not exist", "valid keys: experiment, bits"]),
    ("method@x=gptq", ["'method@x'", "Did you mean to override method?"]),
    ("calibration.num_sequence=8", ["'num_sequence'", "did you mean num_sequences"]),
    ("method.round.damping=0.1", ["'damping'", "NearestRound has no keys"]),
    ("round@method.round=gptq method.round.dampin=0.1", ["'dampin'", "did you mean damping?"]),
    ("cluster.nodes=[{counts:1}]", ["'counts'", "did you mean count"]),
    ("hydra.run.dir=x", ["`hydra.run.dir=x`: no such key"]),
    ("axes.method=[rtn]", ["an axis is given by its values: method=a,b"]),
    # types
    ("bits=abc", ["scheme.bits=abc", "could not be converted to Integer"]),
    ("bits=2,2.5", ["scheme.bits=2.5", "could not be converted to Integer"]),
    ("bits=null", ["scheme.bits=null", "not Optional"]),
    ("seed=1.5", ["seed=1.5", "Integer"]),
    ("group_size=wide", ["scheme.group_size=wide", "Integer"]),
    ("scheme.symmetric=maybe", ["scheme.symmetric=maybe", "not a valid bool"]),
    ("suite.tasks=piqa", ["suite.tasks=piqa", "not a ListConfig"]),
    ("engine=[vllm]", ["engine=[vllm]", "Cannot convert 'list' to string"]),
    ("exclude=3", ["exclude=3"]),
    # missing
    ("model=hf model.repo=null", ["model.repo=null"]),
    ("cluster.nodes=[{count:1}]", ["cluster.nodes[0].num_cpus", "give it: cluster.nodes[0].num_cpus=..."]),
    ("calibration=text calibration.path=null", ["give calibration.path=<file>"]),
    ("suite=tokens suite.path=null", ["give suite.path=<file>"]),
    # grammar
    ("bits", ["cannot read `bits`", "write key=value"]),
    ("=3", ["`=3`: no such key"]),
    ("method=[gptq", ["cannot read `method=[gptq`"]),
    ("model.name=a=b", ["cannot read `model.name=a=b`", "quote values that hold `=`"]),
    ("bits=interval(2,4)", ["an interval has no list of values"]),
    ("+foo=1", ["keys can be neither added nor deleted"]),
    ("~method", ["keys can be neither added nor deleted"]),
    ("suite.path='${calibration.path}'", ["references are not read on the command line"]),
    ("bits=2 scheme.bits=3", ["`scheme.bits=3`: scheme.bits is given twice"]),
    # what cannot be meant
    ("cluster=local,a100x8", ["`cluster` cannot be an axis: only model, method"]),
    ("name=a/b", ["name=a/b", "use letters, digits"]),
    ("name=storage", ["not storage or mlflow"]),
    ("cluster.storage=s3://bucket/x", ["cluster.storage=s3://bucket/x", "not a URL"]),
    ("exclude=[{methd:rtn}]", ["exclude: `methd` is not an axis here; the axes are method, scheme.bits"]),
    ("model.repo=/no/such", ["model.repo=/no/such: no such directory"]),
    ("model.repo=a/b", ["start from a model of its size: model=llama2-7b model.repo=a/b"]),
    ("model.shape.hidden_size=64", ["`model.shape.hidden_size=64`: this model has no shape to change"]),
    ("model=mini-llama model.repo=zoo:mini_lama", ["mini_llama"]),
    ("bits=9", ["scheme.bits=9: a code is one byte"]),
    ("group_size=48", ["group_size=48 does not divide the 64 inputs of self_attn.q_proj", "nearest valid: 16, 32"]),
    ("suite.path=short.txt", ["short.txt: at most 8 tokens", "lower suite.sequence_length"]),
    ("engine=vlm", ["engine=vlm: unknown. did you mean vllm?"]),
    ("numerics.dtype=float33", ["numerics.dtype=float33", "did you mean float32?"]),
]


def merged(given: list[str], line: str) -> list[str]:
    """The line's overrides in the place of those given before."""
    added = shlex.split(line, posix=False)
    keys = {text.split("=", 1)[0] for text in added}
    return [text for text in given if text.split("=", 1)[0] not in keys] + added


@pytest.mark.parametrize(("line", "said"), BAD_LINES, ids=[line for line, _ in BAD_LINES])
def test_a_bad_line_is_exit_2_and_says_where_and_what_is_valid(
    line: str, said: list[str], mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(Path("short.txt"), 7)
    before = sorted(os.listdir())  # noqa: PTH208 (names)
    assert cli.main(["plan", *merged(mine, line)]) == 2
    answer = capsys.readouterr()
    assert answer.err.startswith("configuration: ")
    assert "Traceback" not in answer.err
    assert [words for words in said if words not in answer.err] == [], answer.err
    assert answer.out == ""
    assert sorted(os.listdir()) == before, "nothing was started"  # noqa: PTH208


def test_markup_in_what_a_user_wrote_is_printed_as_it_is(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *merged(mine, "model.repo='/[red]no/[/]such'")]) == 2
    assert "/[red]no/[/]such" in capsys.readouterr().err


# --- other ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["frobnicate", "plan --colour", "resubmit --failure NOPE", "ui --port many", ""])
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


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object, console: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(verbs, "plan", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan"])


def test_plan_lists_the_cells_and_starts_nothing(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *mine, "bits=2,3"]) == 0
    answer = capsys.readouterr()
    assert "tiny rtn w2" in answer.out and "tiny rtn w3" in answer.out
    assert "2 cells: 2 PENDING" in answer.out
    assert "estimate, not measured" in answer.out
    assert not Path("results").exists()


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


def test_a_directory_with_a_space_needs_no_more_than_quotes(mine: list[str], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "my models" / "tiny=1,2")
    assert cli.main(["plan", *merged(mine, "model.repo=x")[:-1], "model.repo='./my models/tiny=1,2'"]) == 0
