"""Correlations: against scipy and the formula by hand, ties, invariances, constants, messages."""

import pytest
import torch
from scipy import stats

from danlu.math import pearson, spearman


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scipy_with_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 6, (40,), generator=generator).double()
    y = x + torch.randint(-3, 4, (40,), generator=generator)
    assert float(pearson(x, y)) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert float(spearman(x, y)) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_by_hand():
    x, y = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 2.0])
    # deviations (-4, -1, 5) / 3 and (-1, 1, 0): 1 / sqrt(42 / 9 * 2)
    assert float(pearson(x, y)) == pytest.approx(1 / (42 / 9 * 2) ** 0.5)
    assert float(spearman(x, y)) == pytest.approx(0.5)


def test_spearman_knows_order_alone_and_pearson_no_scale():
    x, y = torch.tensor([0.1, 0.5, 0.2, 0.9]), torch.tensor([3.0, 1.0, 2.0, 5.0])
    assert spearman(x.exp(), y) == spearman(x, y)
    assert float(pearson(1e-200 * x.double(), 1e200 * y.double() + 1e200)) == pytest.approx(float(pearson(x, y)))
    assert float(pearson(-x, y)) == pytest.approx(-float(pearson(x, y)))


def test_constants_order_nothing():
    x = torch.tensor([0.1, 0.1, 0.1])
    assert float(pearson(x, torch.tensor([1.0, 2.0, 3.0]))) == 0.0
    assert float(spearman(torch.tensor([1.0, 2.0, 3.0]), x)) == 0.0


@pytest.mark.parametrize("function", [pearson, spearman])
@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1,), (1,)), ((2, 2), (2, 2))])
def test_messages(function, shapes):
    with pytest.raises(ValueError, match="as many numbers, at least 2; got"):
        function(*(torch.zeros(shape) for shape in shapes))
