"""What a metric means: which way is better, how damage is measured, and the score of guessing."""

import enum
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """How a metric is shown and compared with the 16-bit baseline."""

    PERPLEXITY = "perplexity"  # ratio, and difference of its logarithm in nats
    NLL = "nll"  # difference in nats
    ACCURACY = "accuracy"  # a fraction; difference in points
    OTHER = "other"  # difference; nothing is known about its direction


KINDS: dict[str, Kind] = {
    "perplexity": Kind.PERPLEXITY,
    "word_perplexity": Kind.PERPLEXITY,
    "byte_perplexity": Kind.PERPLEXITY,
    "mean_nll": Kind.NLL,
    "acc": Kind.ACCURACY,
    "acc_norm": Kind.ACCURACY,
    "average": Kind.ACCURACY,  # of accuracies only
    "exact_match": Kind.ACCURACY,
    "f1": Kind.ACCURACY,
    "pass@1": Kind.ACCURACY,
    "precision": Kind.ACCURACY,
    "recall": Kind.ACCURACY,
    "vqa_acc": Kind.ACCURACY,
}

LOWER_IS_BETTER: dict[Kind, bool | None] = {
    Kind.PERPLEXITY: True,
    Kind.NLL: True,
    Kind.ACCURACY: False,
    Kind.OTHER: None,
}

CHANCE: dict[str, float] = {
    "arc_challenge": 0.25,
    "arc_easy": 0.25,
    "boolq": 0.5,
    "ceval-valid": 0.25,
    "gsm8k": 0.0,
    "hellaswag": 0.25,
    "lambada_openai": 0.0,
    "lambada_standard": 0.0,
    "mini_continuation": 0.25,
    "mini_last_word": 0.0,
    "mmlu": 0.25,
    "openbookqa": 0.25,
    "piqa": 0.5,
    "race": 0.25,
    "winogrande": 0.5,
}
"""Task -> accuracy of guessing, as a fraction. A task that is not listed has no known chance level."""


@dataclass(frozen=True)
class MetricSpec:
    """One metric column, taken apart."""

    column: str
    task: str
    metric: str
    kind: Kind

    @property
    def name(self) -> str:
        """<task> <metric>, for people."""
        return f"{self.task} {self.metric}"

    @property
    def lower_is_better(self) -> bool | None:
        """None when the direction is not known; then there is no best."""
        return LOWER_IS_BETTER[self.kind]

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing, as a fraction; None when not known or not an accuracy."""
        return CHANCE.get(self.task) if self.kind is Kind.ACCURACY else None


def parse(column: str) -> MetricSpec:
    """Take `metric.<task>.<metric>` apart; the task may contain dots. Raises ValueError on any other shape."""
    _, _, name = column.partition(".")
    task, dot, metric = name.rpartition(".")
    if not dot:
        raise ValueError(f"column {column!r}: expected metric.<task>.<metric>")
    return MetricSpec(column, task, metric, kind_of(metric))


def kind_of(metric: str) -> Kind:
    """By its name, with or without a filter's behind it (exact_match_strict-match)."""
    return next((kind for name, kind in KINDS.items() if f"{metric}_".startswith(f"{name}_")), Kind.OTHER)


def primary(columns: list[str]) -> str | None:
    """The column the report is led by: the first that ends with `.perplexity`."""
    return next((c for c in columns if c.endswith(".perplexity")), None)
