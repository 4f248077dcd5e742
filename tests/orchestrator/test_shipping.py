"""What travels to a cluster: the four packages and no more, and requests whose paths hold on another machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.shipping import PACKAGES, PROJECT, inbound, inputs, outbound, runtime_environment
from tests.orchestrator.hand_made import TEXT, make_cell
from workers import zoo
from workers.api import EvaluateRequest, ModelRef, QuantizeRequest, TextRef

SHIPPED = ModelRef("mini", "zoo:mini_llama", "llama", "sha256:0", directory=str(zoo.ROOT / "mini_llama"))
SHIPPED_TEXT = TextRef("text", str(zoo.ROOT / "mini_llama" / "calibration.txt"), "sha256:1")


def quantize_request(model: ModelRef, text: TextRef) -> QuantizeRequest:
    config = make_cell().config
    return QuantizeRequest(
        "e",
        "q",
        model,
        config.method,
        config.scheme,
        config.calibration,
        text,
        0,
        config.numerics,
        "/s",
        "/s/attempts/a",
    )


def evaluate_request(model: ModelRef, texts: dict[str, TextRef]) -> EvaluateRequest:
    return EvaluateRequest("e", "q", model, make_cell().config.suite, texts, "vllm", "float32", "/s", "/s/attempts/a")


def test_all_but_the_packages_stays_at_home() -> None:
    environment = runtime_environment(PROJECT)
    top = {path.name for path in PROJECT.iterdir()}
    assert {f"/{name}" for name in top - set(PACKAGES)} == set(environment["excludes"]) - {"__pycache__"}
    assert environment["working_dir"] == str(PROJECT) and set(PACKAGES) <= top


def test_what_travels_is_small_enough_for_ray() -> None:
    files = [p for package in PACKAGES for p in (PROJECT / package).rglob("*") if "__pycache__" not in p.parts]
    assert sum(path.stat().st_size for path in files) < 100 * 2**20


def test_a_path_to_a_shipped_file_becomes_a_name_and_then_the_path_of_another_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = TextRef("tasks", str(zoo.ROOT / "tasks"), "sha256:2")
    quantize = outbound(quantize_request(SHIPPED, SHIPPED_TEXT))
    evaluate = outbound(evaluate_request(SHIPPED, {"held_out": SHIPPED_TEXT, "tasks": tasks}))
    assert str(PROJECT) not in repr((quantize, evaluate))
    for name in ("mini_llama/calibration.txt", "tasks/load.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    quantize, evaluate = inbound(quantize), inbound(evaluate)
    assert quantize.model.directory == str(tmp_path / "mini_llama")
    assert quantize.calibration_text.location == str(tmp_path / "mini_llama" / "calibration.txt")
    assert evaluate.texts["tasks"].location == str(tmp_path / "tasks")


@pytest.mark.parametrize("directory", [None, "/models/tiny"])
@pytest.mark.parametrize("location", [None, "/texts/calibration.txt"])
def test_a_request_without_shipped_files_arrives_as_it_was_sent(directory: str | None, location: str | None) -> None:
    request = quantize_request(replace(SHIPPED, directory=directory), replace(TEXT, location=location))
    assert inbound(outbound(request)) == request


def test_a_tokenizer_s_directory_is_sent_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer").mkdir()
    monkeypatch.chdir(tmp_path)
    sent = [outbound(quantize_request(replace(SHIPPED, tokenizer=t), TEXT)) for t in ("tokenizer", "org/on-the-hub")]
    assert [request.model.tokenizer for request in sent] == [str(tmp_path / "tokenizer"), "org/on-the-hub"]


def test_the_inputs_of_cells_are_each_named_once_and_what_travels_is_not_among_them() -> None:
    cell = make_cell()
    own = ("/models/tiny", "/texts/calibration.txt", "/texts/held_out.txt")
    assert inputs([cell, cell]) == own
    assert inputs([replace(cell, model=SHIPPED, calibration_text=SHIPPED_TEXT)]) == own[2:]
