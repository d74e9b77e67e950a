r"""How much whitening a model wants, and how many dimensions: a grid of (beta, gamma, k) on pairs with scores.

    rho(beta, gamma, k) = Spearman(cos(y_i, y'_i), score_i),   y, y' the whitened vectors of pair i             (1)

The first k columns of a kernel are the kernel of k, so every k costs one more column of a running sum. Best on the
development pairs is not best on others by as much: report the choice on pairs it has not seen.

Source: kexue.fm/archives/9079 (beta, gamma); the grid over k is ours.
Shapes: N pairs, D features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.correlation import spearman
from danlu.text.whitening import default_eps, kernel_of, principal_axes, whiten

__all__ = ["WhiteningChoice", "choose_whitening"]


class WhiteningChoice(NamedTuple):
    """One point of the grid and its rank correlation; the first three are options of `whitening`."""

    beta: float
    gamma: float
    dim: int
    spearman: float


@torch.no_grad()
def choose_whitening(
    mean: Tensor,
    covariance: Tensor,
    first: Tensor,
    second: Tensor,
    score: Tensor,
    dims: Sequence[int | None] = (None,),
    betas: Sequence[float] = (0.0, 0.5, 1.0),
    gammas: Sequence[float] = (0.0, 0.5, 1.0),
    ridge: float = 0.0,
    eps: float | None = None,
) -> list[WhiteningChoice]:
    """Every point of the grid by eq. (1), the best first; of equals the one that comes first in the grid.

    Args:
        mean: (D,) of the vectors to fit on.
        covariance: (D, D) of them.
        first: (N, D) vectors of the first texts of the pairs.
        second: (N, D) vectors of the second ones.
        score: (N,) how alike they are.
        dims: dimensions to try; None: all that have variance. Those above the rank are left out.
        betas: shares of the mean to try.
        gammas: powers to try.
        ridge: as of `whitening`.
        eps: as of `whitening`.

    Returns:
        List of WhiteningChoice.

    Raises:
        ValueError: shapes that do not fit, fewer than two pairs, values that are not finite, no dim within the rank.

    >>> pairs = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> found = choose_whitening(torch.zeros(2), torch.eye(2), *pairs, torch.tensor([1.0, 0.0]), betas=[1], gammas=[1])
    >>> found[0].dim, found[0].spearman
    (2, 1.0)
    """
    pairs = first.ndim == 2 and first.shape == second.shape and first.shape[1:] == mean.shape
    if not pairs or score.shape != first.shape[:1]:
        raise ValueError(
            f"choose_whitening needs first and second (N, {len(mean)}) and score (N,); got {tuple(first.shape)}, "
            f"{tuple(second.shape)} and {tuple(score.shape)}"
        )
    if not bool(first.isfinite().all() & second.isfinite().all() & score.isfinite().all()):
        raise ValueError("vectors and scores of the pairs must be finite; leave out the pairs that hold nan or inf")
    limit = default_eps(covariance.dtype) if eps is None else eps
    found = []
    for beta in betas:
        axes = principal_axes(mean, covariance, beta)
        center = beta * mean.double()
        for gamma in gammas:
            kernel = kernel_of(axes, None, gamma, ridge, limit)  # (D, rank)
            a, b = (whiten(side.double(), kernel, center) for side in (first, second))  # (N, rank) each
            both, aa, bb = (part.cumsum(1) for part in (a * b, a * a, b * b))
            cosine = both / (aa.sqrt() * bb.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)  # (N, rank)
            for k in dict.fromkeys(kernel.shape[1] if dim is None else dim for dim in dims):
                if k < 1:
                    raise ValueError(f"dims must be at least 1 or None, got {k}")
                if k <= kernel.shape[1]:
                    found.append(WhiteningChoice(beta, gamma, k, spearman(cosine[:, k - 1], score).item()))  # eq. (1)
    if not found:
        raise ValueError(f"none of the dims {list(dims)} is within the rank; add None, which takes all there are")
    return sorted(found, key=lambda choice: -choice.spearman)
