"""Multiple-choice tasks of lm-evaluation-harness from a JSON-lines file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def write_task(directory: Path, name: str, items: Sequence[dict[str, Any]]) -> Path:
    """items: query, choices and gold. The data set's cache stays in `directory`, which is returned."""
    data = directory / f"{name}.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(directory / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return directory


def read_items(path: Path, count: int) -> list[dict[str, Any]]:
    """The first items of a JSON-lines file."""
    with path.open() as stream:
        return [json.loads(line) for line, _ in zip(stream, range(count), strict=False)]
