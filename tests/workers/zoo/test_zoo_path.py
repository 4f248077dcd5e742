import hashlib
import subprocess
import sys

import pytest

from workers.zoo import MINIS, ROOT, zoo_names, zoo_path


def test_names_lead_to_folders_and_files() -> None:
    assert zoo_path("mini_llama").is_dir()
    assert zoo_path("tasks").is_dir()
    assert zoo_path("mini_llama/calibration.txt").is_file()


@pytest.mark.parametrize(
    "name", ["mini_lama", "mini_llama/calibration.tx", "../conf", "/etc/hostname", "mini_llama/", ""]
)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"nearest names: .*mini_llama"):
        zoo_path(name)


def test_the_error_names_the_nearest_name_first() -> None:
    with pytest.raises(ValueError, match=r"'mini_llama/calibratoin.txt'; nearest names: mini_llama/calibration\.txt"):
        zoo_path("mini_llama/calibratoin.txt")


def test_the_registry_needs_no_torch() -> None:
    code = "import sys, workers.zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parents[1]).returncode == 0


def test_every_shipped_file_has_the_checksum_that_is_listed() -> None:
    lines = (ROOT / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert {name: hashlib.sha256(zoo_path(name).read_bytes()).hexdigest() for name in listed} == listed


def test_every_file_of_a_model_is_listed_but_its_figures() -> None:
    listed = {line.split("  ")[1] for line in (ROOT / "SHA256SUMS").read_text().splitlines()}
    shipped = {name for name in zoo_names() if name.startswith(tuple(f"{mini}/" for mini in MINIS))}
    assert shipped - listed == {f"{mini}/figures.json" for mini in MINIS}


@pytest.mark.parametrize("mini", MINIS)
def test_shipped_weights_stay_small(mini: str) -> None:
    assert 0 < sum(path.stat().st_size for path in zoo_path(mini).rglob("*.safetensors")) <= 8_000_000
