r"""The weights of one direction out of several tasks' gradients, by name.

    u = sum_i w_i g_i,   Q_ij = <g_i, g_j>,   w = weighting(Q)                                          (1)
    normalize:  n_i = 1 / ||g_i||,   w_i = n_i weighting(N Q N)_i,   N = diag(n)                         (2)

"sum": all 1. "normalized", "pcgrad", "dual_cone", "primary": danlu.math.gradient_weights. "mgda":
danlu.math.min_norm_weights. A gradient that is 0 (a task solved, or one that does not reach the shared weights) has
nothing to say and is left out before: MGDA, taken at its word, would stop all tasks for it.

Source: kexue.fm/archives/8896 (2022).
Shapes: K gradients.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from danlu.math.gradient_weights import dual_cone_weights, normalized_weights, pcgrad_weights, primary_weights
from danlu.math.min_norm_point import min_norm_weights

__all__ = ["direction_weights"]

Weighting = str | Callable[[Tensor], Tensor]
WEIGHTINGS = ("sum", "normalized", "mgda", "pcgrad", "dual_cone", "primary")


def direction_weights(
    gram: Tensor,
    weighting: Weighting = "mgda",
    normalize: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The weights w of eq. (1) from the inner products of the gradients.

    Args:
        gram: (K, K) Q.
        weighting: "sum", "normalized", "mgda", "pcgrad", "dual_cone", "primary" (row 0 is the primary task), or a
            function from the (A, A) float64 Q of the A gradients that are not 0 to (A,) weights.
        normalize: weigh the directions g_i / ||g_i||, eq. (2).
        generator: the source of PCGrad's orders.

    Returns:
        (K,) float64 on the CPU; 0 where a gradient is 0, all 0 for "primary" if the primary gradient is. All 1 where Q
        holds inf or nan, so that a loss scaler or a check of the gradients sees what the plain sum would show.

    Raises:
        ValueError: gram is not (K, K), an unknown weighting, or a function whose result is not (A,).

    >>> direction_weights(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), "mgda")
    tensor([0.2000, 0.8000], dtype=torch.float64)
    >>> direction_weights(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), "mgda", normalize=True)  # halves of the unit vectors
    tensor([0.2500, 0.5000], dtype=torch.float64)
    """
    check_weighting(weighting)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"direction_weights needs the inner products (K, K) of the gradients, got {tuple(gram.shape)}")
    q = gram.detach().cpu().double()
    if not bool(torch.isfinite(q).all()):
        return torch.ones(len(q), dtype=torch.float64)
    weights = torch.zeros(len(q), dtype=torch.float64)
    alive = q.diagonal() > 0
    if not bool(alive.any()) or (weighting == "primary" and not bool(alive[0])):
        return weights
    q = q[alive][:, alive]
    unit = normalized_weights(q) if normalize else torch.ones(len(q), dtype=torch.float64)
    found = weights_by_name(unit[:, None] * q * unit, weighting, generator)
    if found.shape != (len(q),):
        raise ValueError(f"a weighting of {len(q)} gradients must give ({len(q)},), got {tuple(found.shape)}")
    weights[alive] = unit * found.detach().cpu().double()  # eq. (2)
    return weights


def weights_by_name(q: Tensor, weighting: Weighting, generator: torch.Generator | None) -> Tensor:
    if callable(weighting):
        return weighting(q)
    if weighting == "normalized":
        return normalized_weights(q)
    if weighting == "mgda":
        return min_norm_weights(q)
    if weighting == "pcgrad":
        return pcgrad_weights(q, generator)
    if weighting == "dual_cone":
        return dual_cone_weights(q)
    return primary_weights(q) if weighting == "primary" else torch.ones(len(q), dtype=q.dtype)


def check_weighting(weighting: Weighting) -> None:
    if not callable(weighting) and weighting not in WEIGHTINGS:
        raise ValueError(
            f"weighting must be one of {', '.join(WEIGHTINGS)}, or a function from inner products (K, K) to weights "
            f"(K,); got {weighting!r}"
        )
