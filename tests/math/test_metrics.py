"""Metrics: against seqeval and scikit-learn on random answers, the calibration error by a scalar loop, edge cases."""

import json
import random

import pytest
import torch

from danlu.math.metrics import (
    accuracy,
    calibration_bins,
    class_report,
    confusion_matrix,
    expected_calibration_error,
    f1_from_counts,
    report_from_counts,
    score_from_counts,
    span_confusion,
    span_counts,
    span_report,
    tag_accuracy,
)


def random_tags(seed, labels, sentences=12, length=9):
    draw = random.Random(seed)
    return [[draw.choice(labels) for _ in range(1 + i % length)] for i in range(sentences)]


LABELS = ["O", "O", "B-A", "I-A", "B-B", "I-B", "B-C"]


@pytest.mark.parametrize("seed", range(8))
def test_span_report_is_seqevals(seed):
    seqeval = pytest.importorskip("seqeval.metrics")
    gold, predicted = random_tags(seed, LABELS), random_tags(seed + 100, LABELS[: 4 + seed % 4])
    expected = seqeval.classification_report(gold, predicted, output_dict=True, zero_division=0)
    report = span_report(predicted, gold)
    ours = {f"{name} avg": getattr(report, name) for name in ("micro", "macro", "weighted")} | report.by_type
    assert ours.keys() == expected.keys()
    for name, score in ours.items():
        theirs = expected[name]
        assert score.precision == pytest.approx(theirs["precision"])
        assert score.recall == pytest.approx(theirs["recall"])
        assert score.f1 == pytest.approx(theirs["f1-score"])
        assert score.support == theirs["support"]
    assert tag_accuracy(predicted, gold) == pytest.approx(seqeval.accuracy_score(gold, predicted))
    assert json.loads(json.dumps(report.as_dict()))["micro"]["f1"] == report.micro.f1


def test_counts_of_sentences_add_up_to_the_report():
    gold, predicted = random_tags(1, LABELS), random_tags(2, LABELS)
    rows = span_counts(predicted, gold)
    assert len(rows) == len(gold)
    assert score_from_counts(*map(sum, zip(*rows, strict=True))) == span_report(predicted, gold).micro
    assert span_counts([["B", "E"]], [["S", "S"]], "BMES") == [(0, 1, 2)]


@pytest.mark.parametrize("seed", range(4))
def test_class_report_is_scikit_learns(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = random.Random(seed)
    gold = [draw.choice("abc") for _ in range(30)]
    predicted = [draw.choice("abd") for _ in range(30)]
    report = class_report(predicted, gold)
    expected = sklearn.classification_report(gold, predicted, output_dict=True, zero_division=0)
    for name, score in {"macro avg": report.macro, "weighted avg": report.weighted, **report.by_type}.items():
        assert score.f1 == pytest.approx(expected[name]["f1-score"])
        assert score.recall == pytest.approx(expected[name]["recall"])
    assert report.micro.f1 == pytest.approx(expected["accuracy"]) == pytest.approx(accuracy(predicted, gold))
    labels = ["a", "b", "c", "d"]
    matrix = sklearn.confusion_matrix(gold, predicted, labels=labels)
    assert confusion_matrix(predicted, gold, labels).tolist() == matrix.tolist()


def test_nothing_is_zero_and_never_nan():
    assert f1_from_counts(0, 0, 0) == f1_from_counts(0, 3, 0) == 0.0
    assert f1_from_counts(2, 3, 5) == 0.5
    empty = span_report([["O"]], [["O"]])
    assert empty.macro.f1 == empty.weighted.f1 == empty.micro.precision == 0.0
    assert empty.by_type == {}
    assert report_from_counts({"X": (0, 2, 0)}).weighted.precision == 0.0  # no support to weigh by
    assert accuracy([], []) == 0.0
    assert expected_calibration_error(torch.zeros(0), torch.zeros(0)) == 0.0


def test_span_confusion_parts_borders_from_types():
    gold = [["B-A", "I-A", "O", "B-B", "B-B"]]
    predicted = [["B-B", "I-B", "B-A", "O", "B-B"]]
    types, counts = span_confusion(predicted, gold)
    assert types == ["A", "B", "O"]
    assert counts.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]  # rows gold, columns predicted
    right = span_counts(predicted, gold)[0][0]
    assert counts.diagonal().sum() == right


@pytest.mark.parametrize("num_bins", [1, 5, 15])
def test_ece_by_a_scalar_loop(num_bins):
    p = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right = torch.rand(200, generator=torch.Generator().manual_seed(1)) < p**2
    total = 0.0
    for b in range(num_bins):
        inside = [i for i in range(200) if b / num_bins < p[i] <= (b + 1) / num_bins]
        if inside:
            share = sum(float(right[i]) for i in inside) / len(inside)
            total += abs(share - sum(float(p[i]) for i in inside) / len(inside)) * len(inside) / 200
    assert expected_calibration_error(p, right, num_bins) == pytest.approx(total)
    assert sum(b.count for b in calibration_bins(p, right, num_bins)) == 200


def test_bin_borders_fall_to_the_left():
    bins = calibration_bins(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), torch.ones(3), 2)
    assert [b.count for b in bins] == [2, 1]
    assert (bins[0].lower, bins[0].upper, bins[1].upper) == (0.0, 0.5, 1.0)
    assert bins[0].confidence == 0.25


def test_sure_and_right_is_calibrated():
    assert expected_calibration_error(torch.ones(4), torch.ones(4)) == 0.0
    assert expected_calibration_error(torch.ones(4), torch.zeros(4)) == 1.0


def test_messages():
    with pytest.raises(ValueError, match=r"got 1 predicted and 2 gold tags in sentence 0"):
        span_counts([["O"]], [["O", "O"]])
    with pytest.raises(ValueError, match=r"got 0 answers and 1 truths"):
        tag_accuracy([], [["O"]])
    with pytest.raises(ValueError, match=r"'z' is not among the labels"):
        confusion_matrix(["z"], ["a"], ["a"])
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\], got 1.5; give probabilities"):
        calibration_bins(torch.tensor([1.5]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\], got nan"):
        calibration_bins(torch.tensor([float("nan")]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"got \(2, 1\), \(2, 1\) and 15"):
        expected_calibration_error(torch.zeros(2, 1), torch.zeros(2, 1))
