"""Make the items of both tasks from a text nobody trained on."""

import random
import re
from dataclasses import dataclass

NUM_ITEMS = 200
NUM_CHOICES = 4
SEED = 0

# Words of one passage: what the model reads, then what it has to recognise. Both fit a window of 256 mini tokens.
CONTEXT_WORDS = 48
CONTINUATION_WORDS = 12
# A distractor's length in characters differs from the true continuation's by at most this share.
LENGTH_TOLERANCE = 0.1

LAST_WORD = re.compile(r"[A-Za-z]{3,}")
LAST_WORD_CONTEXT_WORDS = 60


@dataclass(frozen=True)
class ContinuationItem:
    """`choices[gold]` follows `context` in the text after one space; the other choices stand elsewhere in it."""

    context: str
    choices: list[str]
    gold: int


@dataclass(frozen=True)
class LastWordItem:
    """`word` follows `context` in the text after one space (after LAMBADA, Paperno et al. 2016).

    The word stands in `context` too, behind the same word as at its end, so a small model can know it by reading.
    """

    context: str
    word: str


def continuation_items(text: str, num_items: int = NUM_ITEMS, seed: int = SEED) -> list[ContinuationItem]:
    """Items from passages that do not overlap, in a seeded random order.

    Raises ValueError when the text yields fewer than `num_items`.
    """
    generator = random.Random(seed)
    words = _words(text)
    length = CONTEXT_WORDS + CONTINUATION_WORDS
    passages: list[tuple[str, str]] = []
    for start in range(0, len(words) - length, length):
        boundary, end = start + CONTEXT_WORDS, start + length - 1
        if _separator(text, words, boundary) == " ":
            context = text[words[start].start() : words[boundary - 1].end()]
            passages.append((context, text[words[boundary].start() : words[end].end()]))
    generator.shuffle(passages)

    items: list[ContinuationItem] = []
    for context, true in passages:
        near = [other for _, other in passages if other != true and _similar_length(other, true)]
        if len(near) < NUM_CHOICES - 1:
            continue
        choices = generator.sample(near, NUM_CHOICES - 1)
        gold = generator.randrange(NUM_CHOICES)
        items.append(ContinuationItem(context, [*choices[:gold], true, *choices[gold:]], gold))
    _require(len(items), num_items)
    return items[:num_items]


def last_word_items(text: str, num_items: int = NUM_ITEMS, seed: int = SEED) -> list[LastWordItem]:
    """Items whose contexts do not overlap, in a seeded random order.

    Raises ValueError when the text yields fewer than `num_items`.
    """
    words = _words(text)
    items: list[LastWordItem] = []
    first_free = 0
    for last in range(LAST_WORD_CONTEXT_WORDS, len(words)):
        start = last - LAST_WORD_CONTEXT_WORDS
        word = words[last].group()
        if start < first_free or not LAST_WORD.fullmatch(word) or _separator(text, words, last) != " ":
            continue
        context = text[words[start].start() : words[last - 1].end()]
        before = re.escape(words[last - 1].group())
        if re.search(rf"(?<!\S){before}\s+{word}\b", context):
            items.append(LastWordItem(context, word))
            first_free = last + 1
    random.Random(seed).shuffle(items)
    _require(len(items), num_items)
    return items[:num_items]


def _words(text: str) -> list[re.Match[str]]:
    return list(re.finditer(r"\S+", text))


def _separator(text: str, words: list[re.Match[str]], index: int) -> str:
    """What stands between word `index` and the word before it."""
    return text[words[index - 1].end() : words[index].start()]


def _similar_length(other: str, true: str) -> bool:
    return abs(len(other) - len(true)) <= LENGTH_TOLERANCE * len(true)


def _require(num_found: int, num_items: int) -> None:
    if num_found < num_items:
        raise ValueError(f"the text yields {num_found} items, {num_items} were asked for; give a longer text")
