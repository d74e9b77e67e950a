"""Agreement of clusters with classes: all pairs by hand, scikit-learn, names and extremes, messages."""

import itertools
import math

import pytest
import torch

from danlu.math import adjusted_rand_index, normalized_mutual_information, purity

CASES = [
    ([0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 2]),
    ([3, 3, 3, 3], [0, 1, 0, 1]),
    ([0, 1, 2, 3], [5, 5, 7, 7]),
    ([-4, 9, 9, -4, 0, 0, 9], [1, 1, 1, 2, 2, 2, 3]),
]


def tensors(case):
    return torch.tensor(case[0]), torch.tensor(case[1])


@pytest.mark.parametrize("case", CASES)
def test_adjusted_rand_index_counts_pairs(case):
    """Its form by the four kinds of pairs of items, with Python numbers."""
    pairs = [(case[0][i] == case[0][j], case[1][i] == case[1][j])
             for i, j in itertools.combinations(range(len(case[0])), 2)]  # fmt: skip
    tp, fp, fn, tn = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    below = (tp + fn) * (fn + tn) + (tp + fp) * (fp + tn)
    expected = 2 * (tp * tn - fn * fp) / below if below else 1.0
    assert adjusted_rand_index(*tensors(case)).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_the_library_agrees(case):
    cluster = pytest.importorskip("sklearn.metrics.cluster")
    assert adjusted_rand_index(*tensors(case)).item() == pytest.approx(cluster.adjusted_rand_score(*case), abs=1e-12)
    for average in ("arithmetic", "geometric", "min", "max"):
        expected = cluster.normalized_mutual_info_score(case[1], case[0], average_method=average)
        found = normalized_mutual_information(*tensors(case), average).item()
        assert found == pytest.approx(expected, abs=1e-12)


def test_purity_by_hand():
    clusters, classes = tensors(([0, 0, 0, 1, 1, 2], [1, 1, 2, 2, 3, 3]))
    assert purity(clusters, classes).item() == pytest.approx((2 + 1 + 1) / 6)
    assert purity(classes, clusters).item() == pytest.approx((2 + 1 + 1) / 6)
    assert purity(torch.arange(6), classes).item() == 1


def test_mutual_information_by_hand():
    """2 x 2 with counts 3, 1, 1, 3: I = log 2 - H(1/4)."""
    clusters, classes = tensors(([0] * 4 + [1] * 4, [0, 0, 0, 1, 0, 1, 1, 1]))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = (math.log(2) - entropy) / math.log(2)
    assert normalized_mutual_information(clusters, classes).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("score", [adjusted_rand_index, normalized_mutual_information])
def test_names_and_order_do_not_matter(score):
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randint(4, (50,), generator=draw), torch.randint(3, (50,), generator=draw)
    shuffled = torch.randperm(50, generator=draw)
    expected = score(a, b).item()
    assert score(b, a).item() == pytest.approx(expected, abs=1e-14)
    assert score(7 - 3 * a[shuffled], b[shuffled] + 100).item() == pytest.approx(expected, abs=1e-14)
    assert score(a, a).item() == pytest.approx(1, abs=1e-14)


def test_chance_scores_zero():
    draw = torch.Generator().manual_seed(0)
    found = torch.stack([adjusted_rand_index(torch.randint(5, (200,), generator=draw), torch.arange(200) % 4)
                         for _ in range(50)])  # fmt: skip
    assert abs(found.mean()) < 4 * found.std() / 50**0.5


def test_one_group_and_single_items():
    one, alone = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    for score in (adjusted_rand_index, normalized_mutual_information):
        assert score(one, one).item() == 1
        assert score(alone, alone).item() == 1
        assert score(one, alone).item() == 0
        assert score(one[:1], alone[:1]).item() == 1


def test_many_items_do_not_overflow():
    a = (torch.arange(300_000) % 2).to(torch.int32)
    assert adjusted_rand_index(a, a).item() == 1
    assert adjusted_rand_index(a, torch.arange(300_000) % 3).item() == pytest.approx(0, abs=1e-4)


def test_messages():
    with pytest.raises(ValueError, match=r"got \(2,\) torch.int64 and \(3,\)"):
        purity(torch.arange(2), torch.arange(3))
    with pytest.raises(ValueError, match="whole numbers"):
        adjusted_rand_index(torch.zeros(2), torch.arange(2))
    with pytest.raises(ValueError, match="N >= 1"):
        normalized_mutual_information(torch.arange(0), torch.arange(0))
    with pytest.raises(ValueError, match="arithmetic, geometric, min, max, got 'mean'"):
        normalized_mutual_information(torch.arange(2), torch.arange(2), "mean")
