"""The columns of `results/<sweep>/cells.csv`: their stable order, meaning and unit. One row is one cell."""

import pandas as pd

DESCRIPTIONS: dict[str, str] = {
    "cell_key": "sha256 that names the cell: everything that may change its numbers, evaluation included",
    "label": "the cell in words, unique within a sweep; model, method, bits and every axis that varies",
    "model": "name of the model, as in its YAML",
    "architecture": "model family, as in the table of architectures",
    "structure": "what its blocks are made of: dense MHA | dense GQA | MoE | state space",
    "modality": "text | vision-language",
    "method": "name of the method; `none` is the 16-bit baseline",
    "category": "baseline | compensation | rotation | salience | optimization | combination",
    "bits": "nominal bits per weight of the scheme; 16 for the baseline",
    "group_size": "weights that share a scale, along an output row; empty: one group per row",
    "seed": "the one seed from which all others derive",
    "lane": "unified: every method on the same calibration tokens; published: each method's own recipe",
    "also_in_lane": "the lane in which the sweep asks for this very cell too, every key the same; empty: none",
    "calibration_hash": "sha256 of the calibration tokens the cell saw; empty where no checkpoint was made",
    "suite": "name of what the cell is scored on",
    "image_tasks": "tasks of the suite that show images: `<task>, ...`; empty: none",
    "status": "PENDING | RUNNING | SUCCEEDED | FAILED | NOT_APPLICABLE | NOT_IMPLEMENTED | CANCELLED",
    "failure_kind": "why the last attempt failed (workers.api.FailureKind); empty unless FAILED",
    "failure_message": "what, where and what next; for NOT_APPLICABLE and NOT_IMPLEMENTED the reason",
    "degraded": "what linears got that differs from the label, the first of each kind named; empty: nothing",
    "attempt": "number of attempts so far, counted from 1",
    "engine": "what scored the cell: vllm | transformers",
    "engine_reason": "why that engine was chosen",
    "weight_format": "what the engine loaded: source | packed | dense",
    "bits_per_weight": "true bits per quantized weight, scales and zero points included",
    "checkpoint_bytes": "size of the checkpoint, in bytes",
    "quantize_seconds": "wall time of the quantize stage, in seconds",
    "shared_statistics": "linears whose calibration statistics another cell had left in the storage: "
    "quantize_seconds has none for them",
    "evaluate_seconds": "wall time of the evaluate stage, in seconds",
    "peak_memory_gib": "largest memory of either stage, in GiB",
    "mlflow_run_id": "id of the MLflow run of the last attempt",
    "averages": "what each `metric.<name>.average` is the mean of: `<name> = <task>.<metric>, ...`",
}
"""Column -> what it is and its unit, in the order of the file.

After these stand the metrics in the order of the suite, texts, tasks, averages: `metric.<task>.<metric>` and, where it
is defined, its standard error `metric.<task>.<metric>_stderr`, both in the unit of the metric (accuracies as fractions,
mean_nll in nats per token). The first perplexity leads the report.
"""

COLUMNS: tuple[str, ...] = tuple(DESCRIPTIONS)

BASELINE = "none"  # the method that leaves the model in 16 bits

METRIC_PREFIX = "metric."
STDERR_SUFFIX = "_stderr"

NUMBERS = (
    "bits_per_weight",
    "checkpoint_bytes",
    "quantize_seconds",
    "shared_statistics",
    "evaluate_seconds",
    "peak_memory_gib",
    "group_size",
    "attempt",
)


def metric_columns(cells: pd.DataFrame) -> list[str]:
    """The columns that hold metrics, standard errors left out, in the order of the file."""
    return [c for c in map(str, cells.columns) if c.startswith(METRIC_PREFIX) and not c.endswith(STDERR_SUFFIX)]


def normalise(cells: pd.DataFrame) -> pd.DataFrame:
    """A copy in which empty is always NaN, numbers are numbers and bits and seed are whole.

    Raises ValueError when a column is missing, or holds something that is not a number where one belongs.
    """
    missing = [c for c in COLUMNS if c not in cells.columns]
    if missing:
        raise ValueError(f"cells.csv: missing columns {missing}; write them in the order of report.columns.COLUMNS")
    clean = cells.astype(object).replace({"": None}).reset_index(drop=True)
    numbers = [*NUMBERS, *(c for c in map(str, cells.columns) if c.startswith(METRIC_PREFIX))]
    for column in numbers:
        clean[column] = pd.to_numeric(clean[column]).astype(float)
    for column in ("bits", "seed"):
        clean[column] = pd.to_numeric(clean[column]).astype(int)
    return clean
