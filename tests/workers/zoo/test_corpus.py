import random
from pathlib import Path

import pytest

from workers.zoo import corpus, zoo_path

LONG = "the quick brown fox jumps over the lazy dog near the river bank number {}"


def fake_library(folder: Path) -> Path:
    """Two help topics, one documented module, one module under a licence of its own, one test module."""
    (folder / "pydoc_data").mkdir()
    (folder / "pydoc_data" / "topics.py").write_text("topics = {'b': 'Second topic.', 'a': 'First topic.'}\n")
    (folder / "module.py").write_text(
        "# A comment of\n# two lines.\n\n# Label.\n"
        "def f():\n    '''Docstring.'''\n    x = 1  # trailing\n    # Inside a\n    # function.\n"
    )
    (folder / "foreign.py").write_text("'''Foreign text.'''\n# Permission to use,\n# copy and modify is granted.\n")
    (folder / "test").mkdir()
    (folder / "test" / "test_module.py").write_text("'''Test text.'''\n")
    return folder


def test_documents_are_topics_then_prose_of_source_files(tmp_path: Path) -> None:
    assert corpus.documents(fake_library(tmp_path)) == [
        "First topic.",
        "Second topic.",
        "A comment of\ntwo lines.\n\nDocstring.\n\nInside a\nfunction.",
    ]


def test_a_folder_without_help_topics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="standard library folder"):
        corpus.documents(tmp_path)


def test_cleaning_keeps_words_and_drops_rules_trailing_spaces_and_non_ascii_paragraphs() -> None:
    assert corpus.clean("Title  \n*****\n\n\n\n    indented\n\nna\u00efve text\n") == "Title\n\n    indented"


def test_the_split_does_not_depend_on_the_order_of_documents() -> None:
    texts = [LONG.format(f"{i} " + " ".join(f"word{i}x{j}" for j in range(20))) for i in range(60)]
    shuffled = random.Random(1).sample(texts, len(texts))
    assert corpus.split(texts, 1_000, 1_000) == corpus.split(shuffled, 1_000, 1_000)


def test_a_paragraph_met_in_held_out_text_is_missing_from_every_other_part() -> None:
    shared = "this paragraph stands in every single document of the corpus under test"
    texts = [f"{shared}\n\nonly document {i} says word{i} and other{i} and third{i} here" for i in range(20)]
    parts = corpus.split(texts, 200, 200)
    assert shared in parts.held_out[0]
    assert not any(shared in text for text in (*parts.held_out[1:], *parts.development, *parts.train))


def test_shipped_texts_share_no_paragraph() -> None:
    paragraphs = {
        name: {text for text in zoo_path(f"mini_llama/{name}.txt").read_text().split("\n\n") if corpus.shingles(text)}
        for name in ("calibration", "development", "held_out")
    }
    assert not paragraphs["held_out"] & (paragraphs["calibration"] | paragraphs["development"])
    assert not paragraphs["development"] & paragraphs["calibration"]


def test_few_word_runs_of_shipped_held_out_text_were_trained_on() -> None:
    held_out, calibration = (
        corpus.shingles(zoo_path(f"mini_llama/{name}.txt").read_text()) for name in ("held_out", "calibration")
    )
    assert len(held_out & calibration) < 0.01 * len(held_out)


def test_calibration_is_the_head_of_the_training_text() -> None:
    assert corpus.calibration(["a" * 6, "b" * 6, "c" * 6], num_bytes=10) == ("a" * 6, "b" * 6)
