"""The choice of beta, gamma and k: every point equals the long way round, order, and the messages."""

import pytest
import torch
import torch.nn.functional as F

from danlu.math import moments, spearman
from danlu.text import choose_whitening, whitening

GENERATOR = torch.Generator().manual_seed(0)
X = (
    torch.randn(60, 5, generator=GENERATOR, dtype=torch.float64) @ torch.diag(torch.tensor([9.0, 3, 1, 1, 1]).double())
    + 2
)
FIRST, SECOND = X[:30], X[30:]
SCORE = torch.rand(30, generator=GENERATOR)
M = moments(X)


def test_every_point_by_the_long_way_round():
    found = choose_whitening(M.mean, M.covariance, FIRST, SECOND, SCORE, dims=(1, 3, None, 5), ridge=0.01)
    assert len(found) == 27  # None is 5 here, counted once
    for beta, gamma, dim, value in found:
        kernel, bias = whitening(M.mean, M.covariance, dim, beta, gamma, ridge=0.01)
        cosine = F.cosine_similarity(FIRST @ kernel + bias, SECOND @ kernel + bias)
        assert value == pytest.approx(spearman(cosine, SCORE).item(), abs=1e-12)
    assert [c.spearman for c in found] == sorted((c.spearman for c in found), reverse=True)


def test_finds_what_was_hidden():
    """Likeness stands in the small directions, so that only the map that evens the scales out sees it."""
    target = F.cosine_similarity((FIRST - M.mean)[:, 2:], (SECOND - M.mean)[:, 2:])
    best = choose_whitening(M.mean, M.covariance, FIRST, SECOND, target)[0]
    assert (best.beta, best.gamma) == (1.0, 1.0)


def test_equals_keep_the_order_of_the_grid_and_dims_beyond_the_rank_go():
    flat = torch.cat([X, torch.zeros(60, 1, dtype=torch.float64)], 1)
    m = moments(flat)
    found = choose_whitening(m.mean, m.covariance, flat[:30], flat[30:], torch.ones(30), dims=(6, 2), gammas=(1.0, 0.0))
    assert [c.spearman for c in found] == [0.0] * 9
    assert [(c.beta, c.gamma, c.dim) for c in found[:3]] == [(0.0, 1.0, 2), (0.0, 0.0, 6), (0.0, 0.0, 2)]


def test_messages():
    with pytest.raises(ValueError, match=r"first and second \(N, 5\) and score \(N,\); got \(30, 5\), \(29, 5\)"):
        choose_whitening(M.mean, M.covariance, FIRST, SECOND[1:], SCORE)
    with pytest.raises(ValueError, match="must be finite; leave out the pairs"):
        choose_whitening(M.mean, M.covariance, FIRST, SECOND, SCORE.clone().fill_(torch.nan))
    with pytest.raises(ValueError, match=r"none of the dims \[9\] is within the rank; add None"):
        choose_whitening(M.mean, M.covariance, FIRST, SECOND, SCORE, dims=[9])
    with pytest.raises(ValueError, match="dims must be at least 1 or None, got 0"):
        choose_whitening(M.mean, M.covariance, FIRST, SECOND, SCORE, dims=[0])
