"""Verdicts on scores that are no ratio of counts: the same as with counts, coverage for a correlation, messages."""

import json
from dataclasses import astuple

import numpy as np
import pytest
import torch

from danlu.math import spearman, spearman_influence
from danlu.tasks.ablate import _read_result
from danlu.tasks.statistics import paired_contributions, paired_difference


def test_equals_the_counts_where_both_exist():
    rng = np.random.default_rng(0)
    base, arm = (rng.random((4, 200)) < p for p in (0.6, 0.7))
    counts = [np.stack([x, np.ones_like(x), np.ones_like(x)], -1).astype(float) for x in (base, arm)]
    one, two = paired_difference(*counts), paired_contributions(base.astype(float), arm.astype(float))
    assert astuple(one) == pytest.approx(astuple(two))  # of an accuracy the contributions are right or wrong


def contributions(x, y):
    return (spearman(x, y) + spearman_influence(x, y)).tolist()


def test_coverage_of_a_difference_of_correlations():
    """Arms see one truth through noise of every seed and example: the interval holds the true difference."""
    g = torch.Generator().manual_seed(0)

    def draw(pairs, strength):  # cosines of one seed
        noise = torch.randn(len(pairs), generator=g)
        return strength * pairs + noise

    many = torch.randn(200_000, generator=g)
    truth = float(spearman(draw(many, 1.3), many) - spearman(draw(many, 1.0), many))
    inside, runs = 0, 250
    for _ in range(runs):
        pairs = torch.randn(80, generator=g)
        base = [contributions(draw(pairs, 1.0), pairs) for _ in range(3)]
        arm = [contributions(draw(pairs, 1.3), pairs) for _ in range(3)]
        found = paired_contributions(base, arm)
        inside += found.low <= truth <= found.high
    assert 0.95 - 4 * (0.95 * 0.05 / runs) ** 0.5 < inside / runs  # 0.895


def test_equal_arms_are_no_evidence_and_swapping_mirrors():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(3, 30)), rng.normal(size=(3, 30))
    same = paired_contributions(a, a)
    assert (same.mean, same.p) == (0.0, 1.0) and same.low <= 0 <= same.high
    one, two = paired_contributions(a, b), paired_contributions(b, a)
    assert (one.mean, one.low, one.high, one.p) == pytest.approx((-two.mean, -two.high, -two.low, two.p))
    single = paired_contributions(a[:1], b[:1])
    assert (single.low, single.high, single.p) == (-2.0, 2.0, 1.0)


def test_messages():
    with pytest.raises(ValueError, match=r"one shape \(seeds, examples\); got \(2,\) and \(2,\)"):
        paired_contributions([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\)"):
        paired_contributions([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="a contribution is nan or infinite"):
        paired_contributions([[1.0, float("nan")]], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 2"):
        paired_contributions([[1.0, 2.0]], [[1.0, 2.0]], 2)


def test_a_trial_whose_contributions_do_not_give_its_score_counts_as_failed(tmp_path):
    path = tmp_path / "trial.json"
    for parts, told in (([0.25, 0.75], ""), ([0.25, 0.5], "its contributions give 0.375"), ([], "no usable result"),
                        ([0.5, None], "no usable result")):  # fmt: skip
        path.write_text(json.dumps({"metric": "spearman", "value": 0.5, "counts": [], "contributions": parts}))
        result, problem = _read_result(path, 0, "")
        assert told in problem and (result is None) == bool(told)
