"""Verdicts follow from the numbers: the same rule says yes, no or cannot be asked."""

import dataclasses
from typing import Any

import pandas as pd
import pytest

from orchestrator.report import metrics
from orchestrator.report.claims import CLAIMS, paper_protocol, verdicts
from orchestrator.report.claims_table import claims_table
from orchestrator.report.columns import normalise
from orchestrator.report.families import family_verdicts
from orchestrator.report.losses import Loss, losses
from tests.orchestrator.report.conftest import make_cell
from tests.orchestrator.report.several_models import MODELS, cells, of_model

PERPLEXITY = metrics.parse("metric.held_out.perplexity")


def of(lost: dict[str, float], bits: int, model: str = "mini-llama", **columns: Any) -> list[Loss]:
    table = [of_model(model, "none", 16, 0.0, **columns)]
    table += [of_model(model, method, bits, nats, **columns) for method, nats in lost.items()]
    return losses(normalise(pd.DataFrame(table)), PERPLEXITY)


def outcome(found: list[Loss], claim: str) -> str:
    (one,) = [verdict for verdict in verdicts(found, []) if verdict.claim.startswith(claim)]
    return one.outcome


FOUR = {"gptq": 0.02, "quip": 0.03, "awq": 0.01, "omniquant": 0.04}


@pytest.mark.parametrize(
    ("change", "close", "ahead"),
    [
        ({}, "reproduced", "reproduced"),
        ({"awq": 0.025}, "reproduced", "not reproduced"),
        ({"quip": 0.2}, "not reproduced", "reproduced"),
    ],
)
def test_four_bits_are_decided_by_the_spread_and_by_who_loses_least(
    change: dict[str, float], close: str, ahead: str
) -> None:
    found = of(FOUR | change, 4)
    assert outcome(found, "4 bits: all strategies are close") == close
    assert outcome(found, "4 bits: AWQ") == ahead


def test_collapse_is_ten_times_the_perplexity() -> None:
    assert outcome(of({"awq": 2.31, "omniquant": 5.0}, 2), "2 bits: AWQ and OmniQuant collapse") == "reproduced"
    assert outcome(of({"awq": 2.29, "omniquant": 5.0}, 2), "2 bits: AWQ and OmniQuant collapse") == "not reproduced"
    assert outcome(of({"quip": 0.5, "gptq": 2.29}, 2), "2 bits: QuIP and GPTQ hold") == "reproduced"
    assert outcome(of({"quip": 0.5, "gptq": 2.31}, 2), "2 bits: QuIP and GPTQ hold") == "not reproduced"


def test_compensation_with_rotation_must_beat_whatever_lacks_one() -> None:
    lost = {"quip": 0.1, "quip_gptq": 0.1, "quarot_gptq": 0.2, "gptq": 0.3, "awq": 0.4, "omniquant": 0.3}
    claim = "2 bits: compensation with rotation"
    assert outcome(of(lost, 2), claim) == "reproduced"
    assert outcome(of(lost | {"quarot_gptq": 0.31}, 2), claim) == "not reproduced"


def test_a_claim_must_hold_on_every_model_it_is_about() -> None:
    found = of(FOUR, 4) + of({**FOUR, "awq": 0.05}, 4, "mini-gqa")
    (verdict,) = [one for one in verdicts(found, []) if one.claim.startswith("4 bits: AWQ")]
    assert verdict.outcome == "not reproduced"
    assert verdict.evidence[0] == "holds on 1 of 2"
    assert verdict.evidence[1] == "mini-llama: awq +0.010, gptq +0.020, quip +0.030, omniquant +0.040"


def test_a_lack_is_named() -> None:
    found = {one.claim: one for one in verdicts(of({"gptq": 0.2, "quip": 0.1}, 2), [])}
    assert found["2 bits: AWQ and OmniQuant collapse"].evidence == ("no value at 2 bits of awq, omniquant",)
    assert found["2 bits: QuIP is best on LLaMA 1, 2"].evidence == ("the sweep has no model of the kind: LLaMA 1, 2",)
    assert {found[claim].outcome for claim in list(found) if "best on LLaMA" in claim} == {"not testable"}


def test_methods_that_do_not_apply_are_refuted_by_a_value() -> None:
    claim = "MoE: AWQ does not apply"
    assert outcome(of({"awq": 0.1, "gptq": 0.1}, 4, "mini-mixtral"), claim) == "not reproduced"
    assert outcome(of({"gptq": 0.1}, 4, "mini-mixtral"), claim) == "not testable"


def test_one_seed_decides_but_is_said_to() -> None:
    (verdict,) = [one for one in verdicts(of(FOUR, 4), []) if one.claim.startswith("4 bits: AWQ")]
    assert verdict.evidence[-1] == "one seed, or a gap within seed noise: mini-llama"


def test_claims_about_images_count_points() -> None:
    table = [
        of_model("mini-llava", method, bits, 0.1, **{"metric.questions.acc": accuracy, "image_tasks": "questions"})
        for method, bits, accuracy in (
            ("none", 16, 0.8), ("gptq", 4, 0.79), ("quip", 4, 0.8), ("awq", 4, 0.795), ("omniquant", 4, 0.785),
        )
    ]  # fmt: skip
    seen = losses(normalise(pd.DataFrame(table)), metrics.parse("metric.questions.acc"))
    found = {one.claim: one for one in verdicts([], seen)}
    assert found["Images, 4 bits: methods lie close"].outcome == "reproduced"
    assert found["Images, 4 bits: methods lie close"].evidence == ("mini-llava questions: 1.5 pt apart",)
    assert found["Images, 3 bits: methods lie close"].outcome == "not testable"


def test_sizes_of_a_family_are_compared_by_their_best_methods() -> None:
    values = {
        ("llama2-7b", 4): (6.0, 5.7),
        ("llama2-13b", 2): (9.0, 7.0),
        ("llama2-13b", 3): (5.4, 6.5),
        ("mini-llama", 2): (1.0, 1.0),
    }
    table = [make_cell(model, "none", 16, perplexity=5.0) for model in {model for model, _ in values}]
    table += [
        make_cell(model, method, bits, perplexity=value)
        for (model, bits), both in values.items()
        for method, value in zip(("gptq", "quip"), both, strict=True)
    ]
    worse, better = family_verdicts(losses(normalise(pd.DataFrame(table)), PERPLEXITY))
    assert (worse.outcome, worse.evidence) == ("reproduced", ("llama2-13b w2 7.00, llama2-7b w4 5.70",))
    assert (better.outcome, better.evidence) == ("reproduced", ("llama2-13b w3 5.40, llama2-7b w4 5.70",))
    assert {one.outcome for one in family_verdicts(of(FOUR, 4))} == {"not testable"}


def test_the_table_stands_under_the_protocol_that_decides_most() -> None:
    more = [of_model("mini-llama", "gptq", 2, 0.1, group_size=64, label="m gptq g64")]
    found = losses(cells(*more), PERPLEXITY)
    protocol = paper_protocol(found)
    assert protocol is not None and protocol.group_size is None
    table = claims_table(found, [])
    assert table is not None
    assert table.sections[0].heading == protocol.words
    assert len(table.sections[0].rows) == len(CLAIMS) + 2
    assert claims_table([one for one in found if one.method in ("rtn", "gptq")], []) is None


def test_every_claim_is_about_models_there_can_be() -> None:
    one = losses(cells(), PERPLEXITY)[0]
    names = ["llama1-7b", "llama2-7b", "llama3-8b", "llama3.1-8b", *MODELS]
    structures = ("dense MHA", "dense GQA", "MoE", "state space")
    subjects = [
        dataclasses.replace(one.subject, model=name, structure=structure, modality=modality, architecture=architecture)
        for name in names
        for structure in structures
        for modality in ("text", "vision-language")
        for architecture in ("llama", "mixtral", "deepseek_moe", "mamba")
    ]
    assert all(any(claim.subject(subject) for subject in subjects) for claim in CLAIMS)
