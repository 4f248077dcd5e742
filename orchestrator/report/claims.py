"""The paper's claims (arXiv 2502.13178), each with the rule by which losses decide it. Pure.

A claim is about the paper's methods on the paper's kinds of models. Here the words mean, per model and mean over seeds:

- close: the methods lie within CLOSE nats per token of each other.
- collapse: more than COLLAPSE nats lost, which is ten times the 16-bit perplexity. hold: no collapse.
- ahead, best: lost less than every other method compared. better, far behind: lost less, lost more.

A claim is reproduced when its rule holds on every model it is about, and not reproduced when it fails on one. Where a
method or a model it needs is not in the sweep, or has no value, it is not testable.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.report import text
from orchestrator.report.losses import Loss, Protocol, Subject, gap_is_noise
from orchestrator.report.pivots import WIN_DEVIATIONS

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "not reproduced", "not testable"
CLOSE, CLOSE_POINTS = 0.05, 1.7  # the second is the paper's largest gap on LLaVA-1.5-13B
COLLAPSE = math.log(10)
STRATEGIES = ("gptq", "quip", "awq", "omniquant")  # compensation, rotation, salience, optimization
WITH_BOTH = ("quip", "quip_gptq", "quarot_gptq")  # compensation and rotation; QuIP's LDLQ is a compensation
WITHOUT = ("gptq", "awq", "omniquant")


@dataclass(frozen=True)
class Verdict:
    """What became of a claim, and the numbers or the lack that decide it, a line each."""

    claim: str
    outcome: str
    evidence: tuple[str, ...]


Place = dict[str, Loss]  # of one model at some bits: method -> loss with a value


@dataclass(frozen=True)
class Finding:
    """Whether a rule holds at a place, in numbers; sure: no gap that decides it is within the noise of seeds."""

    holds: bool
    numbers: str
    sure: bool = True


@dataclass(frozen=True)
class Claim:
    """bits: at which. methods: that it needs. subject: whether it is about a model; about: those models in words.

    of_images: it is about points of accuracy in questions about images.
    """

    text: str
    bits: int
    methods: tuple[str, ...]
    rule: Callable[[Place], Finding]
    about: str = "any model"
    subject: Callable[[Subject], bool] = lambda subject: True
    of_images: bool = False


def verdicts(losses: Sequence[Loss], of_images: Sequence[Loss]) -> list[Verdict]:
    """Of every claim, in the paper's order. losses: of one protocol, of a perplexity; of_images: of accuracies."""
    return [_verdict(claim, of_images if claim.of_images else losses) for claim in CLAIMS]


def paper_protocol(losses: Sequence[Loss]) -> Protocol | None:
    """The protocol under which most of the paper's methods have a value, then most models; null with less than two."""
    methods: dict[Protocol, set[str]] = {}
    models: dict[Protocol, set[str]] = {}
    for loss in losses:
        if loss.value is not None and loss.method in (*STRATEGIES, *WITH_BOTH):
            methods.setdefault(loss.protocol, set()).add(loss.method)
            models.setdefault(loss.protocol, set()).add(loss.subject.model)
    best = max(methods, key=lambda protocol: (len(methods[protocol]), len(models[protocol])), default=None)
    return best if best is not None and len(methods[best]) > 1 else None


def _verdict(claim: Claim, losses: Sequence[Loss]) -> Verdict:
    about = [loss for loss in losses if claim.subject(loss.subject)]
    if not about:
        return Verdict(claim.text, NOT_TESTABLE, (f"the sweep has no model of the kind: {claim.about}",))
    places = _places(about, claim)
    if not places:
        return Verdict(claim.text, NOT_TESTABLE, (_lack(claim, about),))
    findings = {model: claim.rule(place) for model, place in places.items()}
    outcome = REPRODUCED if all(finding.holds for finding in findings.values()) else NOT_REPRODUCED
    return Verdict(claim.text, outcome, _evidence(findings))


def _places(losses: Sequence[Loss], claim: Claim) -> dict[str, Place]:
    """model (and task) -> its place, where every method of the claim has a value at its bits."""
    found: dict[str, Place] = {}
    for loss in losses:
        if loss.bits == claim.bits and loss.method in claim.methods and loss.value is not None:
            name = f"{loss.subject.model} {loss.metric.task}" if claim.of_images else loss.subject.model
            found.setdefault(name, {})[loss.method] = loss
    return {model: place for model, place in found.items() if len(place) == len(claim.methods)}


def _lack(claim: Claim, losses: Sequence[Loss]) -> str:
    there = {loss.method for loss in losses if loss.bits == claim.bits and loss.value is not None}
    absent = [method for method in claim.methods if method not in there]
    if absent:
        return f"no value at {claim.bits} bits of {', '.join(absent)}"
    return f"no model has values at {claim.bits} bits of all of {', '.join(claim.methods)}"


def _evidence(findings: dict[str, Finding]) -> tuple[str, ...]:
    """The count where it is of several, the numbers of every model, and what seeds say of the gaps."""
    held = sum(finding.holds for finding in findings.values())
    counted = [f"holds on {held} of {len(findings)}"] if len(findings) > 1 else []
    unsure = [model for model, finding in findings.items() if not finding.sure]
    noise = [f"one seed, or a gap within seed noise: {', '.join(unsure)}"] if unsure else []
    return (*counted, *(f"{model}: {finding.numbers}" for model, finding in findings.items()), *noise)


# --- rules -----------------------------------------------------------------------------------------------------------


def _close(place: Place) -> Finding:
    values = [_value(loss) for loss in place.values()]
    spread = max(values) - min(values)
    return Finding(spread <= CLOSE, f"{_listed(place.values())}: {text.number(spread, 3)} apart")


def _close_points(place: Place) -> Finding:
    values = [_value(loss) for loss in place.values()]
    spread = max(values) - min(values)
    return Finding(spread <= CLOSE_POINTS, f"{text.number(spread, 1)} pt apart")


def _runs(place: Place) -> Finding:
    """Of a claim that a method does not apply: a value refutes it."""
    return Finding(False, f"it runs: {_listed(place.values())}")


def _best(winner: str) -> Callable[[Place], Finding]:
    def rule(place: Place) -> Finding:
        second = min((loss for name, loss in place.items() if name != winner), key=_value)
        holds = _value(place[winner]) < _value(second)
        return Finding(holds, _listed(place.values()), sure=_is_sure(place[winner], second))

    return rule


def _collapse(place: Place) -> Finding:
    return Finding(all(_value(loss) > COLLAPSE for loss in place.values()), _listed(place.values()))


def _hold(place: Place) -> Finding:
    return Finding(all(_value(loss) <= COLLAPSE for loss in place.values()), _listed(place.values()))


def _with_both(place: Place) -> Finding:
    """The worst that has both loses less than the best that has not."""
    worst = max((place[name] for name in WITH_BOTH), key=_value)
    best = min((place[name] for name in WITHOUT), key=_value)
    return Finding(_value(worst) < _value(best), _listed(place.values()), sure=_is_sure(worst, best))


def _less(better: str, worse: str) -> Callable[[Place], Finding]:
    def rule(place: Place) -> Finding:
        one, other = place[better], place[worse]
        return Finding(_value(one) < _value(other), _listed((one, other)), sure=_is_sure(one, other))

    return rule


def _is_sure(one: Loss, other: Loss) -> bool:
    return gap_is_noise(one, other, WIN_DEVIATIONS) is False


def _value(loss: Loss) -> float:
    assert loss.value is not None
    return loss.value


def _listed(losses: Iterable[Loss]) -> str:
    """From the least lost to the most; a degraded one says so."""
    words = [(loss, " (degraded)" if loss.lost.degraded else "") for loss in sorted(losses, key=_value)]
    return ", ".join(f"{loss.method} {text.signed(_value(loss), 3)}{degraded}" for loss, degraded in words)


# --- claims ----------------------------------------------------------------------------------------------------------


def _named(*starts: str) -> Callable[[Subject], bool]:
    return lambda subject: subject.model.startswith(starts)


def _is_dense_text(subject: Subject) -> bool:
    return subject.structure.startswith("dense") and subject.modality == "text"


def _is(**wanted: str) -> Callable[[Subject], bool]:
    return lambda subject: all(getattr(subject, name) == value for name, value in wanted.items())


_MIXTRAL, _DEEPSEEK = _is(architecture="mixtral"), _is(architecture="deepseek_moe")
_MOE, _MAMBA, _SEES = _is(structure="MoE"), _is(structure="state space"), _is(modality="vision-language")
_NEW, _OLD = _named("llama3-", "llama3.1-"), _named("llama1-", "llama2-")
DENSE = "dense language models"
CLAIMS = (
    Claim("4 bits: all strategies are close", 4, STRATEGIES, _close, DENSE, _is_dense_text),
    Claim("4 bits: AWQ is slightly ahead", 4, STRATEGIES, _best("awq"), DENSE, _is_dense_text),
    Claim("3 bits: AWQ still leads", 3, STRATEGIES, _best("awq"), DENSE, _is_dense_text),
    Claim("3 bits: OmniQuant collapses on LLaMA 3, 3.1", 3, ("omniquant",), _collapse, "LLaMA 3, 3.1", _NEW),
    Claim("2 bits: AWQ and OmniQuant collapse", 2, ("awq", "omniquant"), _collapse, DENSE, _is_dense_text),
    Claim("2 bits: QuIP and GPTQ hold", 2, ("quip", "gptq"), _hold, DENSE, _is_dense_text),
    Claim("2 bits: QuIP is best on LLaMA 1, 2", 2, STRATEGIES, _best("quip"), "LLaMA 1, 2", _OLD),
    Claim("2 bits: GPTQ is best on LLaMA 3, 3.1", 2, STRATEGIES, _best("gptq"), "LLaMA 3, 3.1", _NEW),
    Claim("MoE: AWQ does not apply", 4, ("awq",), _runs, "mixtures of experts", _MOE),
    Claim("Mamba: AWQ does not apply", 4, ("awq",), _runs, "state space", _MAMBA),
    Claim("Mixtral, 2 bits: GPTQ is better than QuIP", 2, ("gptq", "quip"), _less("gptq", "quip"), "Mixtral", _MIXTRAL),
    Claim("Mixtral, 2 bits: OmniQuant collapses", 2, ("omniquant",), _collapse, "Mixtral", _MIXTRAL),
    Claim("DeepSeekMoE, 2 bits: QuIP leads GPTQ", 2, ("gptq", "quip"), _less("quip", "gptq"), "DeepSeekMoE", _DEEPSEEK),
    Claim("Mamba: OmniQuant collapses even at 4 bits", 4, ("omniquant",), _collapse, "state space", _MAMBA),
    Claim("Images, 3 bits: methods lie close", 3, STRATEGIES, _close_points, "vision-language", _SEES, of_images=True),
    Claim("Images, 4 bits: methods lie close", 4, STRATEGIES, _close_points, "vision-language", _SEES, of_images=True),
    Claim("2 bits: compensation with rotation loses least", 2, (*WITH_BOTH, *WITHOUT), _with_both),
)
