"""How to read a report: the terms it uses. Said once, printed by HTML and Markdown."""

GUIDE: tuple[tuple[str, str], ...] = (
    (
        "Perplexity and damage",
        "Perplexity is e to the mean negative log-likelihood of the next token, on text the model was not calibrated "
        "on. Damage puts it beside the same model in 16 bits: +0.010 nats is one percent more perplexity, +0.693 nats "
        "is twice as much. Compare damage across models, never perplexity: tokenizers and texts differ.",
    ),
    (
        "Mean \u00b1 standard deviation",
        "Seeds choose the calibration windows and every random draw of a method. The mean and the standard deviation "
        "(n \u2212 1) are over seeds. With one seed the spread is unknown and a small gap may be chance.",
    ),
    (
        "Robustness",
        "A method is robust when its loss stays small whatever the model: the mean and the worst over models, of the "
        "loss in nats per token (points for questions about images) and of the rank among the methods on the same "
        "model at the same bits. Only cells of one suite, lane and granularity are put together.",
    ),
    (
        "Bold",
        "The best method at equal bits, when it beats the second by more than two pooled standard deviations over at "
        "least two seeds each. From two seeds that is a hint, from five or more a finding. Degraded entries are never "
        "bold.",
    ),
    (
        "Bits and bits per weight",
        "Columns are nominal bits. b/w counts everything stored for a quantized weight: code, scale and zero point. "
        "Methods at the same nominal bits may differ in it; the plot uses it as its axis.",
    ),
    (
        "Degraded",
        "Some module did not get exactly what the label says: more damping than asked for, a fallback that the "
        "configuration allowed, an expert that saw too few tokens. The score is that of what was really made.",
    ),
    (
        "Lanes",
        "unified: every method is given the same calibration tokens. published: each method follows its own recipe.",
    ),
    (
        "Places without a value",
        "failed: see the list of failures. not applicable: the method is not defined there. not implemented: we have "
        "not built it. pending, running, cancelled: not finished. not in the sweep: nobody asked for it. not scored: "
        "the cell has no such metric. no 16-bit value: there is nothing to compare with.",
    ),
)
