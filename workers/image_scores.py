"""What an answer to a question about an image is worth, by the published definition of each benchmark. Pure functions.

exact_match: GQA's (Hudson and Manning 2019), lower case and without a final period, as LLaVA's converter hands answers
in. option_letter: ScienceQA's (Lu et al. 2022) as LLaVA's evaluation reads letters. vqa_accuracy: VQA's (Antol et al.
2015) with TextVQA's normalisation (Singh et al. 2019). yes_no: POPE's (Li et al. 2023).
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJ"


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 when the answer is one of `accepted`, up to case, outer white space and a final period."""
    return float(_plain(answer) in {_plain(text) for text in accepted})


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().lower()


# --- option letters --------------------------------------------------------------------------------------------------


def chosen_letter(answer: str, num_choices: int) -> str | None:
    """`B`, `B. ...` or `... The answer is B` -> B; null for anything else and for a letter that is no choice."""
    text = answer.strip().replace("\n", ". ")
    letters = LETTERS[:num_choices]
    found = re.fullmatch(rf"([{letters}])\.?", text) or re.match(rf"([{letters}])\. ", text)
    found = found or re.search(rf"The answer is ([{letters}])\b", text)
    return found[1] if found else None


def option_letter(answer: str, gold: int, num_choices: int) -> float:
    """1 when the answer names the letter of choice number `gold`, counted from 0."""
    return float(chosen_letter(answer, num_choices) == LETTERS[gold])


# --- VQA accuracy ----------------------------------------------------------------------------------------------------

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The published list without apostrophes; its I'm, I've and I'd've never apply, because they stand in capitals there.
_CONTRACTIONS = frozenset(
    """
    aint arent cant couldve couldnt couldntve didnt doesnt dont hadnt hadntve hasnt havent hed hedve hes howd howll
    hows isnt itd itdve itll lets maam mightve mightnt mightntve mustve mustnt neednt notve oclock oughtnt owsat
    shant shedve shes shouldve shouldnt shouldntve somebodyd somebodydve somebodyll somebodys someoned someonedve
    someonell someones somethingd somethingdve somethingll thats thered theredve therere theres theyd theydve theyll
    theyre theyve twas wasnt wedve weve werent whatll whatre whats whatve whens whered wheres whereve whod whodve
    wholl whos whove whyll whyre whys wont wouldve wouldnt wouldntve yall yalldve yallll youd youdve youll youre
    youve
    """.split()  # noqa: SIM905 (a list of words)
)


def normalised(answer: str) -> str:
    """TextVQA's form: lower case, no punctuation or articles, numbers up to ten as digits, contractions as one word."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = _without_punctuation(" ".join(text.split()))
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_contraction(word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark beside white space goes, one between letters becomes a space; a period goes unless a digit follows."""
    found = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space else " ")
    return re.sub(r"\.(?!\d)", "", found)


def _contraction(word: str) -> str:
    """Without its apostrophes, so that they make no difference (the original puts them in)."""
    bare = word.replace("'", "")
    return bare if bare in _CONTRACTIONS else word


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """Mean over the people asked of min(1, how many of the others said the same / 3)."""
    found, people = normalised(answer), [normalised(text) for text in given]
    others = (people[:i] + people[i + 1 :] for i in range(len(people)))
    return statistics.fmean(min(1.0, other.count(found) / 3) for other in others)


# --- yes or no -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """One answer of POPE. category: random | popular | adversarial, or '' where there is one kind of question."""

    said_yes: bool
    is_yes: bool
    category: str = ""


def says_yes(answer: str) -> bool:
    """POPE's reading: no when the first sentence has the word no or not, else yes."""
    words = answer.strip().partition(".")[0].replace(",", "").split()
    return not {"No", "no", "not"} & set(words)


def _count(verdicts: Sequence[Verdict], *, said: bool, true: bool) -> int:
    return sum(v.said_yes is said and v.is_yes is true for v in verdicts)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _accuracy(verdicts: Sequence[Verdict]) -> float:
    return _ratio(sum(v.said_yes is v.is_yes for v in verdicts), len(verdicts))


def _precision(verdicts: Sequence[Verdict]) -> float:
    return _ratio(_count(verdicts, said=True, true=True), sum(v.said_yes for v in verdicts))


def _recall(verdicts: Sequence[Verdict]) -> float:
    return _ratio(_count(verdicts, said=True, true=True), sum(v.is_yes for v in verdicts))


def _f1(verdicts: Sequence[Verdict]) -> float:
    precision, recall = _precision(verdicts), _recall(verdicts)
    return _ratio(2 * precision * recall, precision + recall)


def _yes_ratio(verdicts: Sequence[Verdict]) -> float:
    return _ratio(sum(v.said_yes for v in verdicts), len(verdicts))


def _mean_over_categories(of: Callable[[Sequence[Verdict]], float]) -> Callable[[Sequence[Verdict]], float]:
    def aggregated(verdicts: Sequence[Verdict]) -> float:
        groups: defaultdict[str, list[Verdict]] = defaultdict(list)
        for verdict in verdicts:
            groups[verdict.category].append(verdict)
        return statistics.fmean(map(of, groups.values()))

    return aggregated


YES_NO_METRICS: dict[str, Callable[[Sequence[Verdict]], float]] = {
    "acc": _mean_over_categories(_accuracy),
    "precision": _mean_over_categories(_precision),
    "recall": _mean_over_categories(_recall),
    "f1": _mean_over_categories(_f1),
    "yes_ratio": _mean_over_categories(_yes_ratio),
}
"""Metric -> what it is of all verdicts: the mean over categories. Yes is the positive class; 0 where nothing counts."""
