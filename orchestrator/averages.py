"""Means of accuracies over tasks: a view of metrics that are stored one by one, never shown without its members.

Pure. An average with a member missing is left out: the mean of what is there would be another one.
"""

import math
from collections.abc import Mapping, Sequence

from orchestrator.report.metrics import Kind, kind_of
from workers.api import Metric

Asked = Mapping[str, Sequence[str]]  # name -> <task>.<metric>, as a suite writes it


def averages(asked: Asked, metrics: Sequence[Metric]) -> list[Metric]:
    """`<name>.average` of each average all of whose members are there.

    Its standard error takes the tasks' items for independent samples; null where a member has none.
    """
    known = {metric.name: metric for metric in metrics}
    found = []
    for name, members_of in asked.items():
        if all(member in known for member in members_of):
            parts = [known[member] for member in members_of]
            errors = [part.stderr for part in parts if part.stderr is not None]
            found.append(
                Metric(
                    name=f"{name}.average",
                    value=math.fsum(part.value for part in parts) / len(parts),
                    stderr=math.hypot(*errors) / len(parts) if len(errors) == len(parts) else None,
                    num_examples=sum(part.num_examples for part in parts),
                    unit="fraction",
                )
            )
    return found


def listed(asked: Asked) -> list[tuple[str, str]]:
    """(name, its members in one line)."""
    return [(name, ", ".join(members_of)) for name, members_of in asked.items()]


def members(asked: Asked) -> str | None:
    """Every average with its members, in one line; null without any."""
    return "; ".join(f"{name} = {of}" for name, of in listed(asked)) or None


def average_problems(asked: Asked) -> list[str]:
    """Why these are no averages of accuracies, each with its key; empty when they are."""
    problems = []
    for name, members_of in asked.items():
        key = f"suite.averages.{name}"
        if not members_of or len(set(members_of)) < len(members_of):
            problems.append(f"{key}: metrics are needed, each once: [piqa.acc, arc_challenge.acc_norm]")
        for member in members_of:
            task, dot, metric = member.rpartition(".")
            if not (dot and task and kind_of(metric) is Kind.ACCURACY) or metric == "average":
                problems.append(f"{key}: `{member}` is no accuracy of a task; write <task>.<metric>: piqa.acc")
    return problems
