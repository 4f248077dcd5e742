"""The writer of log.txt without its process: bounds, cuts, and masks whatever way the output arrives."""

import errno
import itertools
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.log_writer import MARGIN_BYTES, READ_BYTES, BoundedLog, Output
from workers.redaction import MASK

SECRET = "hunter2-hunter2"


def written(path: Path, pieces: list[bytes], limit: int = 1024) -> bytes:
    log = BoundedLog(str(path), limit)
    for piece in pieces:
        log.append(piece)
        assert path.stat().st_size <= limit
    log.close()
    return path.read_bytes()


def omitted(text: bytes) -> int:
    (count,) = re.findall(rb"\n\[(\d+) bytes of output are left out here\]\n", text)
    return int(count)


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_what_fits_is_kept_as_it_is(tmp_path: Path) -> None:
    lines = [b"line %d\n" % i for i in range(50)]
    assert written(tmp_path / "log.txt", lines) == b"".join(lines)


@given(st.lists(st.integers(1, 300), min_size=30, max_size=120), st.booleans())
def test_of_too_much_the_beginning_and_the_end_are_kept_and_every_byte_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], lines: bool
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.txt"
    pieces = [b"%03d" % i + b"x" * length + b"\n" * lines for i, length in enumerate(lengths)]
    everything = b"".join(pieces)
    text = written(path, pieces)
    if len(everything) <= 1024:
        assert text == everything
        return
    head, _, tail = re.split(rb"\n\[(\d+) bytes of output are left out here\]\n", text)
    assert everything.startswith(head) and everything.endswith(tail)
    assert len(head) + omitted(text) + len(tail) == len(everything)
    assert len(head) > 1024 // 2 - 310 and len(tail) >= 1


def test_a_stage_that_prints_without_end_keeps_its_last_line(tmp_path: Path) -> None:
    text = written(tmp_path / "log.txt", [b"%d\n" % i for i in range(10_000)])
    assert text.startswith(b"0\n1\n2\n") and text.endswith(b"9998\n9999\n")


def test_a_second_stage_has_its_own_bounds_and_leaves_the_first_alone(tmp_path: Path) -> None:
    first = written(tmp_path / "log.txt", [b"%d\n" % i for i in range(10_000)])
    log = BoundedLog(str(tmp_path / "log.txt"), 1024)
    for i in range(10_000):
        log.append(b"again %d\n" % i)
    log.close()
    text = (tmp_path / "log.txt").read_bytes()
    assert text.startswith(first + b"again 0\n") and text.endswith(b"again 9999\n")
    assert len(text) <= 2048


def test_on_a_full_disk_output_is_dropped_and_how_much_is_told_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = BoundedLog(str(tmp_path / "log.txt"))
    log.append(b"before\n")
    with monkeypatch.context() as patch:
        patch.setattr("workers.log_writer.os.write", full)
        log.append(b"0123456789")
        log.append(b"0123456789")
    log.append(b"after\n")
    log.close()
    text = (tmp_path / "log.txt").read_text()
    assert text == "before\n[20 bytes of output could not be written here]\nafter\n"


def test_where_there_is_no_directory_output_is_dropped_until_there_is(tmp_path: Path) -> None:
    log = BoundedLog(str(tmp_path / "gone" / "log.txt"))
    log.append(b"nobody reads this\n")
    (tmp_path / "gone").mkdir()
    log.append(b"back\n")
    assert (tmp_path / "gone" / "log.txt").read_text().endswith("\nback\n")


# --- masks -----------------------------------------------------------------------------------------------------------


def kept(path: Path, pieces: list[bytes]) -> bytes:
    output = Output()
    output.obey({"path": str(path), "hide": [SECRET]})
    for piece in pieces:
        output.feed(piece)
    output.close()
    return path.read_bytes() if path.exists() else b""


LINES = st.lists(st.sampled_from([SECRET, "ä", "word ", "\n", "\r", "\x00", "https://a:b@c/"]), max_size=30).map(
    "".join
)


@given(LINES, st.lists(st.integers(0, 300), max_size=10))
def test_a_secret_is_masked_however_the_output_is_cut(
    tmp_path_factory: pytest.TempPathFactory, text: str, cuts: list[int]
) -> None:
    data = text.encode()
    ends = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    expected = text.replace(SECRET, MASK).replace("a:b@", f"{MASK}@").encode()
    assert kept(tmp_path_factory.mktemp("log") / "log.txt", pieces) == expected


@pytest.mark.parametrize("position", [0, READ_BYTES - 7, READ_BYTES, READ_BYTES + MARGIN_BYTES - 5, 3 * READ_BYTES - 1])
def test_a_secret_in_a_line_without_end_is_masked_wherever_it_stands(tmp_path: Path, position: int) -> None:
    data = b"-" * position + SECRET.encode() + b"-" * (4 * READ_BYTES - position)
    pieces = [data[i : i + READ_BYTES] for i in range(0, len(data), READ_BYTES)]
    assert kept(tmp_path / "log.txt", pieces) == data.replace(SECRET.encode(), MASK.encode())


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    assert kept(tmp_path / "log.txt", [b"\xff\xfe\x80 ", os.urandom(0), b"\n"]) == b"\xff\xfe\x80 \n"


def test_output_before_the_first_log_is_dropped() -> None:
    output = Output()
    output.feed(b"early\n")
    output.close()
