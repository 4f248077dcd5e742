"""Models whose figures other tools have measured, through the whole line."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.command_line import cells, ptqbench

pytestmark = [pytest.mark.slow, pytest.mark.shared, pytest.mark.ray, pytest.mark.timeout(1200)]

# Perplexity of mini_reference at 2 bits by (method, group size). RTN: exact arithmetic, rounded to 0.01. GPTQ: its
# authors' code with act_order (and static groups); the tolerance covers the order of sums.
KNOWN = {("rtn", None): 56.74, ("rtn", 64): 37.61, ("gptq", None): 29.53, ("gptq", 64): 25.17}
TOLERANCE = {"rtn": 0.01, "gptq": 0.5}


@pytest.mark.vllm
def test_rtn_and_gptq_agree_with_the_figures_of_other_tools(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "mini_reference"
    swept = ptqbench(
        tmp_path,
        "sweep",
        "name=reference",
        "model=hf",
        f"model.repo={model}",
        "calibration=tokens",
        f"calibration.path={model / 'calibration_windows.npy'}",
        "calibration.num_sequences=128",
        "calibration.sequence_length=256",
        "suite=tokens",
        f"suite.path={model / 'tokens_held.npy'}",
        "suite.sequence_length=256",
        "suite.dtype=float32",
        "scheme.scale_dtype=float32",
        "method=none,rtn,gptq",
        "bits=2",
        "group_size=null,64",
        timeout=1100,
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    table = cells(tmp_path, "reference")
    assert len(table) == 5 and set(table.engine) == {"vllm"}
    perplexity = "metric.tokens.perplexity"
    assert table[table.method == "none"][perplexity].item() == pytest.approx(20.88, abs=0.005)
    measured, wrong = {}, []
    for (method, group_size), known in KNOWN.items():
        group = table.group_size.isna() if group_size is None else table.group_size == group_size
        (value,) = table[(table.method == method) & group][perplexity]
        measured[f"{method} {group_size}"] = round(float(value), 3)
        if abs(value - known) > TOLERANCE[method]:
            wrong.append((method, group_size, value, known))
    print(measured)
    assert not wrong


@torch.no_grad()
def mean_nll(model: Path, text: str) -> float:
    """Nats per token of the model as Transformers gives it, over whole windows of 256 tokens."""
    ids = torch.tensor(AutoTokenizer.from_pretrained(model)(text).input_ids)
    windows = ids[: len(ids) // 256 * 256].view(-1, 256)
    return float(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(windows, labels=windows).loss)


def test_stories260k_is_scored_by_transformers_and_gptq_clearly_beats_rounding(shared: Path, tmp_path: Path) -> None:
    stories, model = shared / "data" / "tinystories", shared / "models" / "stories260k"
    held = tmp_path / "held.txt"
    held.write_text((stories / "evaluation.txt").read_text()[:60_000])
    swept = ptqbench(
        tmp_path,
        "sweep",
        "name=stories",
        "model=hf",
        f"model.repo={model}",
        "calibration=text",
        f"calibration.path={stories / 'calibration.txt'}",
        "calibration.num_sequences=128",
        "calibration.sequence_length=256",
        "suite=text",
        f"suite.path={held}",
        "suite.sequence_length=256",
        "suite.dtype=float32",
        "method=none,rtn,gptq",
        "bits=2",
        timeout=1100,
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    table = cells(tmp_path, "stories")
    assert set(table.engine) == {"transformers"}
    assert table.engine_reason.str.contains("head size").all()  # 8, which vLLM's CPU attention refuses
    nll = table.set_index(["method", "bits"])["metric.text.mean_nll"].to_dict()
    print({key: round(value, 3) for key, value in nll.items()})
    assert nll["none", 16] == pytest.approx(mean_nll(model, held.read_text()), rel=1e-5)
    # for each row of 64, rounding to nearest leaves a uniform guess over 512 tokens
    assert nll["none", 16] < nll["gptq", 2] < nll["rtn", 2] - 0.3
