r"""Scores of taggers and classifiers: precision, recall and F1 of spans and classes, accuracy, confusion, calibration.

With c correct, p predicted and g gold spans (or members of a class)

    P = c / p,   R = c / g,   F1 = 2 c / (p + g)                                                     (1)

A quotient over zero is 0, never NaN. A span is correct when start, end and type all agree. Averages over types i

    micro: (1) on the sums of c, p, g;   macro: mean_i;   weighted: sum_i g_i (.)_i / sum_i g_i      (2)

where i runs over all types found in the gold or the predicted tags, so macro F1 is the mean of the F1 of the types, not
the F1 of mean P and mean R. The expected calibration error parts n answers by their confidence into B bins of equal
width, ((b - 1) / B, b / B] for b = 1 ... B, a confidence of 0 in the first,

    ECE = sum_b  n_b / n  |accuracy_b - mean confidence_b|                                           (3)

Source: Tjong Kim Sang and De Meulder, 2003, arXiv:cs/0306050 (scoring of spans); the averages are those of seqeval's
default mode; Guo et al., 2017, arXiv:1706.04599 (ECE).
Shapes: N answers, K classes.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from danlu.math.tag_scheme import spans

__all__ = [
    "CalibrationBin",
    "Report",
    "Score",
    "accuracy",
    "calibration_bins",
    "class_report",
    "confusion_matrix",
    "expected_calibration_error",
    "f1_from_counts",
    "report_from_counts",
    "score_from_counts",
    "span_confusion",
    "span_counts",
    "span_report",
    "tag_accuracy",
]

Tags = Sequence[Sequence[str]]
_NOTHING = "O"  # the row and column of spans without a counterpart in `span_confusion`


@dataclass(frozen=True)
class Score:
    """Precision, recall, F1 by eq. (1) and the number of gold spans or members."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Report:
    """Averages by eq. (2) and the score of every type, in alphabetical order."""

    micro: Score
    macro: Score
    weighted: Score
    by_type: dict[str, Score]

    def as_dict(self) -> dict[str, Any]:
        """The same as nested dicts of numbers, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CalibrationBin:
    """Answers whose confidence lies in (lower, upper]; means are 0 in an empty bin."""

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float


def f1_from_counts(correct: float, predicted: float, gold: float) -> float:
    """F1 of eq. (1).

    Args:
        correct: number of predicted spans that are right.
        predicted: number of predicted spans.
        gold: number of spans in the truth.

    Returns:
        A number in [0, 1]; 0 when nothing is predicted and nothing is there.

    >>> f1_from_counts(1, 2, 2), f1_from_counts(0, 0, 0)
    (0.5, 0.0)
    """
    return 2 * correct / (predicted + gold) if predicted + gold else 0.0  # eq. (1)


def score_from_counts(correct: int, predicted: int, gold: int) -> Score:
    """Precision, recall and F1 of eq. (1) with the gold count as support.

    Args:
        correct: number of predicted spans that are right.
        predicted: number of predicted spans.
        gold: number of spans in the truth.

    Returns:
        A Score; quotients over zero are 0.

    >>> score_from_counts(1, 2, 4)
    Score(precision=0.5, recall=0.25, f1=0.3333333333333333, support=4)
    """
    return Score(
        precision=correct / predicted if predicted else 0.0,
        recall=correct / gold if gold else 0.0,
        f1=f1_from_counts(correct, predicted, gold),
        support=gold,
    )


def report_from_counts(counts: Mapping[str, tuple[int, int, int]]) -> Report:
    """Averages of eq. (2) from the counts of every type.

    Args:
        counts: (correct, predicted, gold) by type.

    Returns:
        A Report; all its averages are 0 when there are no types.

    >>> report = report_from_counts({"LOC": (1, 1, 1), "PER": (0, 1, 3)})
    >>> report.macro.f1, report.weighted.recall, report.micro
    (0.5, 0.25, Score(precision=0.5, recall=0.25, f1=0.3333333333333333, support=4))
    """
    by_type = {kind: score_from_counts(*counts[kind]) for kind in sorted(counts)}
    scores = list(by_type.values())
    support = [score.support for score in scores]
    return Report(
        micro=score_from_counts(*(sum(c[i] for c in counts.values()) for i in range(3))),
        macro=_average(scores, [1] * len(scores)),
        weighted=_average(scores, support),
        by_type=by_type,
    )


def span_counts(predicted: Tags, gold: Tags, scheme: str = "BIO") -> list[tuple[int, int, int]]:
    """Correct, predicted and gold spans of every sentence; their sums give micro F1, their rows resample.

    Args:
        predicted: tags by sentence, read leniently (`danlu.math.tag_scheme.spans`).
        gold: true tags by sentence, of the same lengths.
        scheme: tag scheme of both.

    Returns:
        One (correct, predicted, gold) per sentence.

    Raises:
        ValueError: the numbers of sentences or of tags differ, or a tag is not of the scheme.

    >>> span_counts([["B-PER", "O"], ["O"]], [["B-PER", "B-LOC"], ["O"]])
    [(1, 1, 2), (0, 0, 0)]
    """
    rows = []
    for found, true in _span_sets(predicted, gold, scheme):
        rows.append((len(found & true), len(found), len(true)))
    return rows


def span_report(predicted: Tags, gold: Tags, scheme: str = "BIO") -> Report:
    """Micro, macro and weighted scores of spans and those of every type, eq. (2).

    Args:
        predicted: tags by sentence, read leniently.
        gold: true tags by sentence, of the same lengths.
        scheme: tag scheme of both.

    Returns:
        A Report; word segmentation has the one type "".

    Raises:
        ValueError: the numbers of sentences or of tags differ, or a tag is not of the scheme.

    >>> span_report([["B-PER", "O"]], [["B-PER", "B-LOC"]]).micro.recall
    0.5
    """
    totals: dict[str, list[int]] = {}
    for found, true in _span_sets(predicted, gold, scheme):
        for column, group in enumerate((found & true, found, true)):
            for span in group:
                totals.setdefault(span[2], [0, 0, 0])[column] += 1
    return report_from_counts({kind: (c, p, g) for kind, (c, p, g) in totals.items()})


def class_report(predicted: Iterable[str], gold: Iterable[str]) -> Report:
    """Micro, macro and weighted scores of classes, one class per text; micro F1 is then the accuracy.

    Args:
        predicted: class of every text.
        gold: true class of every text.

    Returns:
        A Report over all classes that occur in either.

    Raises:
        ValueError: the numbers of texts differ.

    >>> class_report(["a", "b", "b"], ["a", "a", "b"]).by_type["a"]
    Score(precision=1.0, recall=0.5, f1=0.6666666666666666, support=2)
    """
    predicted, gold = list(predicted), list(gold)
    _same_length(predicted, gold)
    right = Counter(p for p, g in zip(predicted, gold, strict=True) if p == g)
    said, there = Counter(predicted), Counter(gold)
    return report_from_counts({kind: (right[kind], said[kind], there[kind]) for kind in set(said) | set(there)})


def accuracy(predicted: Iterable[Hashable], gold: Iterable[Hashable]) -> float:
    """Share of equal pairs.

    Args:
        predicted: answers.
        gold: true answers.

    Returns:
        A number in [0, 1]; 0 for no answers.

    Raises:
        ValueError: the numbers of answers differ.

    >>> accuracy(["a", "b"], ["a", "a"])
    0.5
    """
    predicted, gold = list(predicted), list(gold)
    _same_length(predicted, gold)
    return sum(p == g for p, g in zip(predicted, gold, strict=True)) / len(gold) if gold else 0.0


def tag_accuracy(predicted: Tags, gold: Tags) -> float:
    """Share of tokens whose tag is right, over all sentences together.

    Args:
        predicted: tags by sentence.
        gold: true tags by sentence, of the same lengths.

    Returns:
        A number in [0, 1]; 0 for no tokens.

    Raises:
        ValueError: the numbers of sentences or of tags differ.

    >>> tag_accuracy([["O"], ["O", "B", "O"]], [["O"], ["O", "O", "O"]])
    0.75
    """
    _same_shape(predicted, gold)
    return accuracy((tag for row in predicted for tag in row), (tag for row in gold for tag in row))


def confusion_matrix(predicted: Iterable[str], gold: Iterable[str], labels: Sequence[str]) -> Tensor:
    """How often each true class (row) was given each answer (column).

    Args:
        predicted: answers.
        gold: true classes.
        labels: the K classes in the order of rows and columns.

    Returns:
        (K, K) int64 counts.

    Raises:
        ValueError: the numbers of answers differ, or a class is not among `labels`.

    >>> confusion_matrix(["a", "b"], ["a", "a"], ["a", "b"])
    tensor([[1, 1],
            [0, 0]])
    """
    predicted, gold = list(predicted), list(gold)
    _same_length(predicted, gold)
    place = {label: i for i, label in enumerate(labels)}
    unknown = (set(predicted) | set(gold)) - set(place)
    if unknown:
        raise ValueError(f"{min(unknown)!r} is not among the labels {list(labels)}; give every class that occurs")
    counts = torch.zeros(len(labels), len(labels), dtype=torch.int64)  # (K, K)
    for (true, answer), count in Counter(zip(gold, predicted, strict=True)).items():
        counts[place[true], place[answer]] = count
    return counts


def span_confusion(predicted: Tags, gold: Tags, scheme: str = "BIO") -> tuple[list[str], Tensor]:
    """Types of spans whose borders agree, and spans without a counterpart.

    Args:
        predicted: tags by sentence, read leniently.
        gold: true tags by sentence, of the same lengths.
        scheme: tag scheme of both.

    Returns:
        (types, counts): the types in alphabetical order and "O" last; counts (K, K) int64 with gold types in rows and
        predicted types in columns. Row "O" holds predicted spans whose borders are no gold span's, column "O" gold
        spans whose borders were not predicted.

    Raises:
        ValueError: the numbers of sentences or of tags differ, or a tag is not of the scheme.

    >>> types, counts = span_confusion([["B-LOC", "O", "B-PER"]], [["B-PER", "B-PER", "O"]])
    >>> types
    ['LOC', 'PER', 'O']
    >>> counts.tolist()  # PER taken for LOC, PER missed, PER invented
    [[0, 0, 0], [1, 0, 1], [0, 1, 0]]
    """
    answers: list[str] = []
    truths: list[str] = []
    for found, true in _span_sets(predicted, gold, scheme):
        at_found = {span[:2]: span[2] for span in found}
        at_true = {span[:2]: span[2] for span in true}
        for borders in at_found.keys() | at_true.keys():
            answers.append(at_found.get(borders, _NOTHING))
            truths.append(at_true.get(borders, _NOTHING))
    types = [*sorted((set(answers) | set(truths)) - {_NOTHING}), _NOTHING]
    return types, confusion_matrix(answers, truths, types)


def calibration_bins(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> list[CalibrationBin]:
    """The reliability diagram's bars: answers parted by confidence into bins of equal width.

    Args:
        confidence: (N,) probability given to the answer, in [0, 1].
        correct: (N,) whether the answer is right, bool or 0 / 1.
        num_bins: number of bins.

    Returns:
        `num_bins` bins, lowest confidence first.

    Raises:
        ValueError: the shapes differ, a confidence lies outside [0, 1] or is NaN, or num_bins is below 1.

    >>> calibration_bins(torch.tensor([0.4, 0.9]), torch.tensor([True, True]), 2)[1]
    CalibrationBin(lower=0.5, upper=1.0, count=1, confidence=0.8999999761581421, accuracy=1.0)
    """
    if confidence.ndim != 1 or correct.shape != confidence.shape or num_bins < 1:
        raise ValueError(
            f"calibration needs confidence (N,), correct (N,) and num_bins >= 1; got {tuple(confidence.shape)}, "
            f"{tuple(correct.shape)} and {num_bins}; flatten the kept tokens first"
        )
    p, right = confidence.detach().double(), correct.double()  # (N,) each
    if not bool(((p >= 0) & (p <= 1)).all()):
        outside = p[~((p >= 0) & (p <= 1))][0].item()
        raise ValueError(f"confidence must lie in [0, 1], got {outside}; give probabilities, not logits")
    edges = torch.arange(num_bins + 1, dtype=torch.float64, device=p.device) / num_bins  # (B + 1,)
    place = torch.bucketize(p, edges[1:-1])  # (N,): b when edge_b < p <= edge_(b+1), so a border falls to the left bin
    count = torch.bincount(place, minlength=num_bins)  # (B,)
    at_least_one = count.clamp_min(1)
    mean = torch.bincount(place, weights=p, minlength=num_bins) / at_least_one  # (B,)
    share = torch.bincount(place, weights=right, minlength=num_bins) / at_least_one  # (B,)
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), count.tolist(), mean.tolist(), share.tolist(), strict=True)
    return [CalibrationBin(*row) for row in rows]


def expected_calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> float:
    """Mean distance between confidence and accuracy, eq. (3).

    Args:
        confidence: (N,) probability given to the answer, in [0, 1].
        correct: (N,) whether the answer is right, bool or 0 / 1.
        num_bins: number of bins of equal width.

    Returns:
        A number in [0, 1]; 0 for no answers.

    Raises:
        ValueError: the shapes differ, a confidence lies outside [0, 1] or is NaN, or num_bins is below 1.

    >>> expected_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
    0.25
    """
    bins = calibration_bins(confidence, correct, num_bins)
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / total if total else 0.0  # eq. (3)


def _average(scores: list[Score], weights: list[int]) -> Score:
    total = sum(weights)

    def mean(values: list[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / total if total else 0.0  # eq. (2)

    return Score(
        mean([s.precision for s in scores]),
        mean([s.recall for s in scores]),
        mean([s.f1 for s in scores]),
        sum(s.support for s in scores),
    )


def _span_sets(
    predicted: Tags, gold: Tags, scheme: str
) -> list[tuple[set[tuple[int, int, str]], set[tuple[int, int, str]]]]:
    _same_shape(predicted, gold)
    return [(set(spans(p, scheme)), set(spans(g, scheme))) for p, g in zip(predicted, gold, strict=True)]


def _same_length(predicted: Sequence[Any], gold: Sequence[Any]) -> None:
    if len(predicted) != len(gold):
        raise ValueError(f"need one answer for each truth, got {len(predicted)} answers and {len(gold)} truths")


def _same_shape(predicted: Tags, gold: Tags) -> None:
    _same_length(predicted, gold)
    for i, (p, g) in enumerate(zip(predicted, gold, strict=True)):
        if len(p) != len(g):
            raise ValueError(
                f"need one tag for each token, got {len(p)} predicted and {len(g)} gold tags in sentence {i} (from 0); "
                f"stitch windows together and drop padding before scoring"
            )
