"""What the planner counts from config.json alone is what the files of every architecture hold."""

import json
from pathlib import Path

import pytest

from orchestrator.config_shapes import shape_from_config
from orchestrator.shapes import block_kinds, block_linears, parameters
from tests.workers.arch.tiny import MODELS, stream_of, write
from workers.checkpoint import CheckpointReader


@pytest.mark.parametrize("name", MODELS)
def test_the_planner_counts_the_parameters_of_the_files(name: str, tmp_path: Path) -> None:
    architecture = MODELS[name][0]
    model = write(name, tmp_path / "model")
    shape = shape_from_config(json.loads((model / "config.json").read_text()), model)
    reader = CheckpointReader(model)
    tensors = reader.read(reader.files)
    counts = parameters(architecture, shape)
    assert counts.total == sum(tensor.numel() for tensor in tensors.values())
    stream = stream_of(name, model)
    chosen = {
        stream.tensors.stored(f"{stream.architecture.blocks}.{i}.{linear}.weight")
        for i in range(2)
        for group in stream.groups(i)
        for linear in group.linears
    }
    assert counts.quantized == sum(tensors[n].numel() for n in chosen)
    blocks = [
        block_linears(architecture, shape, index) for index, n in block_kinds(architecture, shape) for _ in range(n)
    ]
    assert sum(x.count for block in blocks for x in block) == len(chosen)
