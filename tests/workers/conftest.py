"""One tiny model for all tests that only read it."""

from pathlib import Path

import pytest

from tests.workers.tiny_requests import write_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of three blocks with a tokenizer, as a Hugging Face directory."""
    return write_llama(tmp_path_factory.mktemp("tiny") / "llama")
