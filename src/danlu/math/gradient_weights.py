r"""Weights that make one direction of several tasks' gradients, computed from their inner products alone.

    u = sum_i w_i g_i,   Q_ij = <g_i, g_j>                                                              (1)
    normalised:  w_i = 1 / ||g_i||                                                                      (2)
    PCGrad:      v_i = g_i; for j != i in random order, if <v_i, g_j> < 0:
                 v_i <- v_i - <v_i, g_j> / ||g_j||^2 g_j;   u = sum_i v_i                               (3)
    primary:     u = argmin ||u - g_0||  subject to  <u, g_i> >= 0 for all i                            (4)
                 = g_0 + sum_i l_i g_i,   l = argmin over l >= 0 of ||g_0 + sum_i l_i g_i||^2           (5)
    dual cone:   u = sum_k u_k,   u_k nearest to g_k  subject to  <u_k, g_i> >= 0 for all i             (6)

(2) forgets both the unit and the zero point of every loss: L -> c L + b leaves u as it is. (3) goes pair by pair: with
three tasks or more u can still make one of them worse. (6) is (3) done to the end and without chance: no task gets
worse to first order. (4) has one task that counts and others that only must not get worse; with one auxiliary task
l = relu(-<g_0, g_1>) / ||g_1||^2, which is (3) applied one way. Whatever the optimiser does to u later (momentum,
Adam's scaling, clipping by element) can undo these inequalities.

Source: kexue.fm/archives/8896 for (2), 8907 for (4); Yu et al., 2020, arXiv:2001.06782 for (3); Quinton and Rey, 2024,
arXiv:2406.16232 for (6) (they take the mean of the u_k).
Shapes: K gradients.
"""

import torch
from torch import Tensor

from danlu.math.min_norm_point import check_gram
from danlu.math.nonnegative_minimum import nonnegative_minimum

__all__ = ["dual_cone_weights", "gradient_cosines", "normalized_weights", "pcgrad_weights", "primary_weights"]


def gradient_cosines(gram: Tensor) -> Tensor:
    """Cosines between the gradients: below 0 two tasks are in conflict.

    Args:
        gram: (K, K) inner products, `G @ G.T` for gradients in the rows of G.

    Returns:
        (K, K) in [-1, 1], dtype and device of gram; 0 where a gradient is 0.

    Raises:
        ValueError: gram is not (K, K) or not finite.

    >>> gradient_cosines(torch.tensor([[1.0, -2.0], [-2.0, 16.0]]))
    tensor([[ 1.0000, -0.5000],
            [-0.5000,  1.0000]])
    """
    check_gram(gram, "gradient_cosines")
    unit = normalized_weights(gram)
    return (unit[:, None] * gram.detach() * unit).clamp(-1, 1)


def normalized_weights(gram: Tensor) -> Tensor:
    """One over each gradient's length, eq. (2); 0 for a gradient that is 0.

    Args:
        gram: (K, K) inner products; only the diagonal counts.

    Returns:
        (K,) weights, dtype and device of gram; a constant for autograd.

    Raises:
        ValueError: gram is not (K, K) or not finite.

    >>> normalized_weights(torch.tensor([[4.0, 1.0], [1.0, 0.25]]))
    tensor([0.5000, 2.0000])
    """
    check_gram(gram, "normalized_weights")
    square = gram.detach().diagonal()
    return torch.where(square > 0, square.clamp_min(0).rsqrt(), 0.0)  # eq. (2)


def pcgrad_weights(gram: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Weights of the sum of gradients from which conflicts were projected off pair by pair, eqs. (1) and (3).

    Args:
        gram: (K, K) inner products.
        generator: the source of the orders, on the CPU; not used with two tasks, where there is one order only.

    Returns:
        (K,) weights, dtype and device of gram; a constant for autograd.

    Raises:
        ValueError: gram is not (K, K) or not finite.

    >>> G = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0]])
    >>> pcgrad_weights(G @ G.T) @ G
    tensor([0.2000, 1.4000, 0.0000])
    """
    check_gram(gram, "pcgrad_weights")
    size = len(gram)
    q = gram.detach().cpu().tolist()
    total = [0.0] * size
    for i in range(size):
        v = [float(k == i) for k in range(size)]  # v_i in terms of the g_k
        order = torch.randperm(size, generator=generator).tolist() if size > 2 else range(size)
        for j in order:
            product = sum(c * q[k][j] for k, c in enumerate(v))
            if j != i and product < 0 < q[j][j]:
                v[j] -= product / q[j][j]  # eq. (3)
        total = [t + c for t, c in zip(total, v, strict=True)]
    return torch.tensor(total, dtype=gram.dtype, device=gram.device)


def primary_weights(gram: Tensor) -> Tensor:
    """Weights of the vector nearest to the first gradient that does no harm to the others, eqs. (4) and (5).

    Args:
        gram: (K, K) inner products; row 0 is the primary task, the others are auxiliary.

    Returns:
        (K,) weights, 1 first and then l >= 0, dtype and device of gram; a constant for autograd.

    Raises:
        ValueError: gram is not (K, K) or not finite.

    >>> G = torch.tensor([[1.0, 2.0], [1.0, -1.0]])
    >>> primary_weights(G @ G.T), primary_weights(G @ G.T) @ G
    (tensor([1.0000, 0.5000]), tensor([1.5000, 1.5000]))
    """
    check_gram(gram, "primary_weights")
    q = gram.detach().cpu().double()
    weights = torch.cat([torch.ones(1, dtype=q.dtype), nonnegative_minimum(q[1:, 1:], q[1:, 0])])  # eq. (5)
    return weights.to(gram.device, gram.dtype)


def dual_cone_weights(gram: Tensor) -> Tensor:
    """Weights of the sum of all gradients, each moved the least that lets it harm no task, eq. (6).

    Args:
        gram: (K, K) inner products.

    Returns:
        (K,) weights >= 1 (0 for a gradient that is 0), dtype and device of gram; a constant for autograd.

    Raises:
        ValueError: gram is not (K, K) or not finite.

    >>> G = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0]])
    >>> dual_cone_weights(G @ G.T) @ G  # with two tasks that of PCGrad
    tensor([0.2000, 1.4000, 0.0000])
    """
    check_gram(gram, "dual_cone_weights")
    q = gram.detach().cpu().double()
    total = (q.diagonal() > 0).double()
    for k in range(len(q)):
        total += nonnegative_minimum(q, q[:, k])  # eq. (6): g_k + sum_i l_i g_i
    return total.to(gram.device, gram.dtype)
