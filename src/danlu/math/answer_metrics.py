r"""Scores of extracted answers: exact match and F1 over characters of Chinese and words of the rest.

    EM(p, A)  = 1 if plain(p) = plain(a) for some accepted answer a in A, else 0                                  (1)
    F1(p, A)  = max over a of 2 P R / (P + R),   P = c / |p|,   R = c / |a|                                       (2)
    c         = longest common run of segments ("run"), or number of common segments with repeats ("bag")         (3)
    score     = (mean EM + mean F1) / 2                                                                           (4)

A segment is a Chinese character, or a word or number of other scripts; punctuation and blanks are dropped, letters are
small. "run" with `plain="cmrc"` is the measure of CMRC 2018, also used for DRCD: marks of a list of the scorer's own
are dropped, full-width forms stay what they are. "bag" with `plain="webqa"` and (4) is that of WebQA and SogouQA: every
mark and blank goes, full-width forms become half-width, segments are single characters in every script.

A question without an answer expects the empty prediction: both measures are then 1 or 0.

The CMRC scorer cuts Latin stretches with nltk's word tokenizer; here a word is a run of letters and digits, a number
keeps its inner points and commas, any other mark is a segment. On "don't" and on "U.S." the two differ.

Source: Cui et al., 2019, "A span-extraction dataset for Chinese machine reading comprehension" (EMNLP-IJCNLP),
arXiv:1810.07366, and its scorer; kexue.fm/archives/5409 and 6906 (WebQA). Bag of segments: SQuAD, arXiv:1606.05250.
Shapes: no tensors; strings.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

__all__ = ["answer_f1", "answer_match", "answer_scores", "answer_segments"]

# the marks that the scorer of CMRC 2018 knows; its list names the ellipsis as two characters, which matches no one
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_WORD = re.compile(r"\d+(?:[.,:]\d+)+|[^\W_]+|\S")
_STYLES = ("cmrc", "webqa")


def answer_segments(text: str, plain: str = "cmrc") -> list[str]:
    """What F1 counts: Chinese characters one by one, words of other scripts, punctuation left out.

    Args:
        text: an answer.
        plain: "cmrc" or "webqa"; see the module.

    Returns:
        Segments in order.

    Raises:
        ValueError: another style.

    >>> answer_segments("《iPhone 4S》，约3.5英寸"), answer_segments("ｉＰ 4", "webqa")
    (['iphone', '4s', '约', '3.5', '英', '寸'], ['i', 'p', '4'])
    """
    _check_style(plain)
    if plain == "webqa":
        return list(_webqa(text))
    segments: list[str] = []
    run = ""
    for character in [*text.lower().strip(), " "]:
        if character in _CMRC_MARKS:
            continue  # the scorer joins what stands on both sides of a mark
        if "\u4e00" <= character <= "\u9fa5":
            segments += [*_WORD.findall(run), character]
            run = ""
        else:
            run += character
    return segments + _WORD.findall(run)


def answer_match(prediction: str, answers: Sequence[str], plain: str = "cmrc") -> float:
    """Whether the prediction is one of the accepted answers, eq. (1).

    Args:
        prediction: the text found, "" for none.
        answers: the accepted texts; none where the question has no answer.
        plain: "cmrc" or "webqa".

    Returns:
        1.0 or 0.0.

    Raises:
        ValueError: another style.

    >>> answer_match("2 米", ["2米"], "webqa"), answer_match("《红楼梦》", ["红楼梦"]), answer_match("", [])
    (1.0, 1.0, 1.0)
    """
    _check_style(plain)
    spelled = _webqa if plain == "webqa" else _cmrc
    if not answers:
        return float(not prediction)
    return float(any(spelled(prediction) == spelled(answer) for answer in answers))  # eq. (1)


def answer_f1(prediction: str, answers: Sequence[str], overlap: str = "run", plain: str = "cmrc") -> float:
    """The best agreement in segments with an accepted answer, eq. (2).

    Args:
        prediction: the text found, "" for none.
        answers: the accepted texts; none where the question has no answer.
        overlap: "run" (the longest common run of segments, CMRC) or "bag" (common segments, SQuAD and WebQA).
        plain: "cmrc" or "webqa".

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: another style or overlap.

    >>> answer_f1("在北京", ["北京"])  # P = 2 / 3, R = 2 / 2
    0.8
    >>> answer_f1("京北", ["北京"]), answer_f1("京北", ["北京"], "bag")
    (0.5, 1.0)
    """
    if overlap not in ("run", "bag"):
        raise ValueError(f"overlap must be 'run' (longest common run) or 'bag' (common segments), got {overlap!r}")
    found = answer_segments(prediction, plain)
    if not answers:
        return float(not prediction)
    best = 0.0
    for answer in answers:
        wanted = answer_segments(answer, plain)
        if not found or not wanted:
            continue
        common = _longest_run(found, wanted) if overlap == "run" else (Counter(found) & Counter(wanted)).total()
        best = max(best, 2 * common / (len(found) + len(wanted)))  # eq. (2), with P and R put in
    return best


def answer_scores(
    predictions: Iterable[str], answers: Iterable[Sequence[str]], overlap: str = "run", plain: str = "cmrc"
) -> dict[str, float]:
    """Means over questions: "em", "f1" and their mean "score", eq. (4).

    Args:
        predictions: the texts found, "" for none.
        answers: the accepted texts of each question.
        overlap: "run" or "bag".
        plain: "cmrc" or "webqa".

    Returns:
        Three numbers in [0, 1]; zeros for no questions.

    Raises:
        ValueError: the numbers of predictions and answers differ, or an option is unknown.

    >>> answer_scores(["2 米", ""], [["2米"], ["北京"]], "bag", "webqa")
    {'em': 0.5, 'f1': 0.5, 'score': 0.5}
    """
    found, wanted = list(predictions), list(answers)
    if len(found) != len(wanted):
        raise ValueError(f"need one prediction for each question, got {len(found)} for {len(wanted)}; give '' for none")
    if any(isinstance(accepted, str) for accepted in wanted):
        raise ValueError("each question needs a list of accepted answers, got a text; write [[answer], ...]")
    size = max(1, len(found))
    em = sum(answer_match(p, a, plain) for p, a in zip(found, wanted, strict=True)) / size
    f1 = sum(answer_f1(p, a, overlap, plain) for p, a in zip(found, wanted, strict=True)) / size
    return {"em": em, "f1": f1, "score": (em + f1) / 2}  # eq. (4)


def _cmrc(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in _CMRC_MARKS)


def _webqa(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).lower()
    return "".join(c for c in plain if unicodedata.category(c)[0] not in "PSZC")


def _longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common run, eq. (3)."""
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size


def _check_style(plain: str) -> None:
    if plain not in _STYLES:
        raise ValueError(f"plain must be one of {', '.join(_STYLES)}, got {plain!r}")
