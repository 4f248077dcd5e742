import math

import pandas as pd
import pytest

from orchestrator.report import metrics
from orchestrator.report.columns import normalise
from orchestrator.report.losses import Loss, Protocol, gap_is_noise, image_metrics, losses
from tests.orchestrator.report.several_models import cells, of_model

PERPLEXITY = metrics.parse("metric.held_out.perplexity")
ACCURACY = metrics.parse("metric.questions.acc")
PER_ROW = Protocol("mini", "unified", None, "")


def at(found: list[Loss], model: str, method: str, bits: int) -> Loss:
    (one,) = [x for x in found if (x.subject.model, x.method, x.bits) == (model, method, bits)]
    return one


def test_a_loss_is_the_logarithm_of_the_ratio_to_the_same_model_in_16_bits() -> None:
    one = at(losses(cells(), PERPLEXITY), "mini-mixtral", "rtn", 2)
    assert one.value == pytest.approx(1.1)
    assert one.score == pytest.approx(10 * math.exp(1.1))
    assert one.protocol == PER_ROW
    assert (one.subject.structure, one.subject.modality) == ("MoE", "text")


def test_ranks_are_of_the_methods_on_one_model_at_the_same_bits() -> None:
    found = losses(cells(), PERPLEXITY)
    assert [at(found, "mini-llama", m, 2).rank for m in ("quip", "gptq", "rtn", "awq")] == [1, 2, 3, 4]
    assert [at(found, "mini-mixtral", m, 4).rank for m in ("awq", "gptq", "quip", "rtn")] == [1, 2, 3, 4]
    assert [at(found, "mini-mamba", m, 2).rank for m in ("gptq", "awq", "rtn", "quip")] == [1, 2, 3, None]


def test_equal_losses_share_the_mean_of_their_ranks() -> None:
    table = [of_model("mini-gqa", m, 2, lost) for m, lost in (("none", 0.0), ("rtn", 0.5), ("gptq", 0.5), ("awq", 0.7))]
    found = losses(normalise(pd.DataFrame(table).assign(bits=[16, 2, 2, 2])), PERPLEXITY)
    assert [one.rank for one in found] == [1.5, 1.5, 3]


def test_places_without_a_value_say_why() -> None:
    found = losses(cells(), PERPLEXITY)
    assert at(found, "mini-mamba", "quip", 2).missing == "failed: numerical"
    assert at(found, "mini-llava", "quip", 4).missing == "not in the sweep"
    assert at(found, "mini-llama", "quip", 4).missing == ""


def test_without_a_baseline_there_is_no_loss() -> None:
    table = cells()
    found = losses(table[table["method"] != "none"].reset_index(drop=True), PERPLEXITY)
    assert {one.missing for one in found} == {"no 16-bit value", "not in the sweep", "failed: numerical"}
    assert all(one.value is None and one.rank is None for one in found)


def test_another_suite_lane_granularity_or_axis_is_another_protocol() -> None:
    more = [
        of_model("mini-llama", "gptq", 2, 0.3, group_size=64, label="m gptq g64"),
        of_model("mini-llama", "gptq", 2, 0.4, lane="published", label="m gptq published"),
        of_model("mini-llama", "gptq", 2, 0.5, suite="other", label="m gptq suite=other"),
        of_model("mini-llama", "none", 16, 0.1, suite="other", label="m none suite=other"),
    ]
    found = losses(cells(*more), PERPLEXITY)
    gptq = {x.protocol: x.value for x in found if (x.subject.model, x.method, x.bits) == ("mini-llama", "gptq", 2)}
    assert gptq == {
        PER_ROW: pytest.approx(0.2),
        Protocol("mini", "unified", 64, ""): pytest.approx(0.3),
        Protocol("mini", "published", None, ""): pytest.approx(0.4),
        Protocol("other", "unified", None, ""): pytest.approx(0.4),
    }
    alone = [x for x in found if x.protocol == Protocol("mini", "unified", 64, "")]
    assert [(x.subject.model, x.method, x.bits, x.rank) for x in alone] == [("mini-llama", "gptq", 2, None)]


def test_a_cell_of_both_lanes_is_compared_in_both() -> None:
    table = [
        of_model("mini-llama", "none", 16, 0.0, also_in_lane="published"),
        of_model("mini-llama", "gptq", 2, 0.2, also_in_lane="published"),
        of_model("mini-llama", "awq", 2, 0.1, lane="published", label="m awq published"),
    ]
    found = losses(normalise(pd.DataFrame(table)), PERPLEXITY)
    assert {(x.method, x.protocol.lane): x.rank for x in found} == {
        ("gptq", "unified"): None,
        ("gptq", "published"): 2,
        ("awq", "published"): 1,
    }


def test_points_of_accuracy_are_lost_where_less_is_right() -> None:
    column = ACCURACY.column
    table = [
        of_model("mini-llava", "none", 16, 0.0, **{column: 0.75, "image_tasks": "questions"}),
        of_model("mini-llava", "gptq", 2, 0.2, **{column: 0.7, "image_tasks": "questions"}),
    ]
    found = normalise(pd.DataFrame(table))
    assert image_metrics(found) == [ACCURACY]
    (one,) = losses(found, ACCURACY)
    assert one.value == pytest.approx(5.0)


def test_a_metric_without_a_direction_has_no_loss() -> None:
    with pytest.raises(ValueError, match="perplexities and accuracies"):
        losses(cells(), metrics.parse("metric.held_out.surprise"))


def test_seeds_are_one_loss_and_tell_noise_from_a_gap() -> None:
    lost = {"rtn": (0.5, 0.52), "gptq": (0.51, 0.49), "awq": (0.9, 0.92)}
    table = [of_model("mini-llama", "none", 16, 0.0)]
    table += [of_model("mini-llama", m, 2, nats, seed=s) for m, both in lost.items() for s, nats in enumerate(both)]
    found = {one.method: one for one in losses(normalise(pd.DataFrame(table)), PERPLEXITY)}
    assert found["rtn"].value == pytest.approx(0.51)
    assert gap_is_noise(found["rtn"], found["gptq"], 2.0) is True
    assert gap_is_noise(found["rtn"], found["awq"], 2.0) is False
    single = at(losses(cells(), PERPLEXITY), "mini-llama", "rtn", 2)
    assert gap_is_noise(single, found["awq"], 2.0) is None
