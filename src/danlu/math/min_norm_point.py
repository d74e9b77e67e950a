r"""The shortest vector among the weighted means of several: the direction of MGDA, from the Gram matrix alone.

    a = argmin over a >= 0, sum a = 1 of  || sum_i a_i g_i ||^2 = a'Qa,      Q_ij = <g_i, g_j>            (1)
    two vectors:  a_1 = clip(<g_2 - g_1, g_2> / ||g_1 - g_2||^2, 0, 1)                                    (2)
    Frank-Wolfe:  t = argmin_i (Qa)_i,   then (2) between the present point and g_t                       (3)
    exact:        x = argmin over x >= 0 of  x'Qx + r (sum x - 1)^2,   a = x / sum x,   any r > 0         (4)

u = sum a_i g_i has <g_i, u> >= ||u||^2 for all i, with equality where a_i > 0: a small step along -u makes no task
worse, and u = 0 says that no direction can do that. (4) has the a of (1) because for x = c a its value, least over c,
is r q / (r + q) with q = a'Qa, which grows with q. The gap that the source's (3) leaves falls like 1 / steps; (4) ends
after a few small systems, exactly.

Source: Desideri, 2012, MGDA; Sener and Koltun, 2018, arXiv:1810.04650; kexue.fm/archives/8896.
Shapes: K vectors.
"""

import torch
from torch import Tensor

from danlu.math.nonnegative_minimum import nonnegative_minimum

__all__ = ["min_norm_weights"]


def min_norm_weights(gram: Tensor, method: str = "exact", steps: int = 1000) -> Tensor:
    """Weights of the shortest weighted mean, eq. (1); a constant for autograd.

    Args:
        gram: (K, K) inner products of the vectors, any float dtype: `G @ G.T` for the rows of G.
        method: "exact", eq. (2) for two vectors and eq. (4) for more, or "frank_wolfe", eq. (3) from equal weights.
        steps: most steps of Frank-Wolfe.

    Returns:
        (K,) weights >= 0 with sum 1, the dtype and device of gram.

    Raises:
        ValueError: gram is not (K, K) with K >= 1, holds inf or nan, an unknown method, or steps < 1.

    >>> G = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0]])
    >>> weights = min_norm_weights(G @ G.T)
    >>> weights, weights @ G
    (tensor([0.7000, 0.3000]), tensor([0.1000, 0.3000, 0.0000]))
    """
    check_gram(gram, "min_norm_weights")
    if method not in ("exact", "frank_wolfe") or steps < 1:
        raise ValueError(f"method must be 'exact' or 'frank_wolfe' and steps >= 1, got {method!r} and {steps}")
    q = gram.detach().cpu().double()
    zero = q.diagonal() <= 0
    if bool(zero.any()):  # the zero vector is one of them, and none is shorter
        weights = zero.double() / zero.sum()
    elif method == "frank_wolfe":
        weights = frank_wolfe(q, steps)
    elif len(q) == 1:
        weights = torch.ones(1, dtype=torch.float64)
    elif len(q) == 2:
        share = between(q[0, 0], q[0, 1], q[1, 1])
        weights = torch.stack([share, 1 - share])
    else:
        r = q.diagonal().min()
        x = nonnegative_minimum(q + r, -r.expand(len(q)))  # eq. (4)
        weights = x / x.sum()
    return weights.to(gram.device, gram.dtype)


def between(aa: Tensor, ab: Tensor, bb: Tensor) -> Tensor:
    """Weight of a in the shortest point between a and b, eq. (2)."""
    gap = aa - 2 * ab + bb
    return torch.where(gap > 0, ((bb - ab) / gap).clamp(0, 1), 0.5)


def frank_wolfe(q: Tensor, steps: int) -> Tensor:
    """Eq. (3), until the gap that bounds what is left to gain is rounding."""
    weights = torch.full((len(q),), 1 / len(q), dtype=q.dtype)
    for _ in range(steps):
        products = q @ weights  # (K,) <g_i, u>
        length = weights @ products
        t = int(products.argmin())
        if length - products[t] <= 1e-15 * length:
            break
        stay = between(length, products[t], q[t, t])
        weights = stay * weights
        weights[t] += 1 - stay
    return weights


def check_gram(gram: Tensor, name: str) -> None:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not len(gram):
        raise ValueError(
            f"{name} needs the inner products (K, K) of K >= 1 gradients, got {tuple(gram.shape)}; for gradients in "
            "the rows of G give G @ G.T"
        )
    if not bool(torch.isfinite(gram).all()):
        raise ValueError(f"{name} needs finite inner products; leave out the task whose gradient holds inf or nan")
