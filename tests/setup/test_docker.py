"""The images cannot be built here; what they name must exist all the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_copies_and_runs_what_exists(path: Path) -> None:
    text = path.read_text()
    sources = [words.split()[0] for words in re.findall(r"^COPY (?:--\S+ )*(.+)$", text, re.MULTILINE)]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
    targets = re.findall(r"^RUN .*\bmake (\w+)$", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_has_the_python_and_the_lane_of_its_lock(path: Path) -> None:
    text = path.read_text()
    version = re.search(r"^FROM python:(\d+\.\d+)-", text, re.MULTILINE)
    required = re.search(r'requires-python = "==(\d+\.\d+)\.\*"', (ROOT / "pyproject.toml").read_text())
    assert version is not None and required is not None
    assert version[1] == required[1]
    assert f"PTQ_BENCH_LANE={path.stem} make setup" in text
    assert (ROOT / "locks" / f"{path.stem}.txt").exists()
