"""The verdicts as a printed table, under the protocol that can decide most of them. Pure."""

from collections.abc import Sequence

from orchestrator.report.claims import CLOSE, COLLAPSE, NOT_TESTABLE, paper_protocol, verdicts
from orchestrator.report.families import family_verdicts
from orchestrator.report.losses import Loss
from orchestrator.report.robustness_tables import seeds_note
from orchestrator.report.tables import Mark, Section, Table, TextCell, bare

RULES = (
    "Each verdict is computed from the losses in nats per token, against the same model in 16 bits, and holds on every "
    f"model or is not reproduced. Close: within {CLOSE:g} nats of each other. Collapse: more than {COLLAPSE:.2f} nats, "
    "ten times the 16-bit perplexity. Compensation with rotation: QuIP (its LDLQ compensates), quip_gptq, quarot_gptq."
)


def claims_table(losses: Sequence[Loss], of_images: Sequence[Loss]) -> Table | None:
    """Claim, verdict, numbers; null without two of the paper's methods under one protocol."""
    protocol = paper_protocol(losses)
    if protocol is None:
        return None
    judged = [loss for loss in losses if loss.protocol == protocol]
    same = (protocol.lane, protocol.group_size)
    seen = [loss for loss in of_images if (loss.protocol.lane, loss.protocol.group_size) == same]
    rows = tuple(
        (bare(one.claim), _outcome(one.outcome), TextCell(one.evidence))
        for one in [*verdicts(judged, seen), *family_verdicts(judged)]
    )
    columns = (("claim", False), ("here", False), ("losses, in nats per token unless said", False))
    notes = (RULES, seeds_note(judged))
    return Table("The paper's claims (arXiv 2502.13178)", columns, (Section(protocol.words, rows),), notes)


def _outcome(outcome: str) -> TextCell:
    return TextCell(marks=(Mark(outcome, "quiet"),)) if outcome == NOT_TESTABLE else bare(outcome)
