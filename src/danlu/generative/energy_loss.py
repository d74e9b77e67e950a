r"""The maximum-likelihood loss of an energy model, and how energies combine.

    dE[-log q]/dtheta = E_data[dU/dtheta] - E_q[dU/dtheta],   q = exp(-U) / Z                                  (1)
    cd         mean U(x+) - mean U(x-)                                                                      (2)
    softplus   mean softplus(U(x+) - U(x-)),  pair by pair                                                  (3)
    weighted   mean U(x+) - sum_i w_i U(x-_i),   w = softmax(-U(x-)) held fixed                              (4)
    + alpha (mean U(x+)^2 + mean U(x-)^2)                                                                   (5)
    all of      U_1 + U_2                    any of      -log(exp(-U_1) + exp(-U_2))                           (6)
    classes     -logsumexp of a classifier's logits                                                            (7)

x+ are data and x- samples of q, held fixed. The gradient of (2) is (1) if they are exact samples; from short chains it
is the gradient of nothing in particular, and the value of (2) is no likelihood: it hovers about 0. (3) fades where data
are already far below the samples. (4) fits negatives that were drawn uniformly; as a correction of Langevin chains, its
use in the released program, it counts low energies twice. (5) holds U, known up to a constant, near 0.

Source: Du and Mordatch, 2019, arXiv:1903.08689 (2) to (5); kexue.fm/archives/6612; (6) Du, Li and Mordatch, 2020,
    arXiv:2004.06030; (7) Grathwohl et al., 2019, arXiv:1912.03263.
Shapes: N data, M negatives; energies (N,) and (M,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.generative._energy_gradient import Energy
from danlu.math.precision import wide

__all__ = ["all_of", "any_of", "energy_loss", "logits_energy"]


def energy_loss(
    positive: Tensor, negative: Tensor, alpha: float = 1.0, kind: str = "cd", weights: Tensor | None = None
) -> Tensor:
    """What an energy model minimises, eqs. (2) to (5).

    Args:
        positive: (N,) energies of data with their graph, any float dtype, N >= 1.
        negative: (M,) energies of samples, which come from a sampler and have no graph of their own, M >= 1.
        alpha: weight of (5), >= 0.
        kind: "cd", "softplus" (needs N = M) or "weighted".
        weights: (M,) shares of the negatives in their mean for "cd", as of importance sampling; None for equal ones.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: energies that are not (N,) and (M,) or empty, unlike numbers of pairs, an unknown kind.

    >>> energy_loss(torch.tensor([1.0]), torch.tensor([3.0]), alpha=0.0), energy_loss(torch.ones(1), torch.ones(1))
    (tensor(-2.), tensor(2.))
    """
    if positive.ndim != 1 or negative.ndim != 1 or not len(positive) or not len(negative):
        raise ValueError(
            f"energy_loss needs energies of data (N,) and of samples (M,), at least one of each; got "
            f"{tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    if kind not in ("cd", "softplus", "weighted") or not alpha >= 0:
        raise ValueError(f"kind must be 'cd', 'softplus' or 'weighted' and alpha >= 0, got {kind!r} and {alpha}")
    if kind == "softplus" and len(positive) != len(negative):
        raise ValueError(f"kind='softplus' compares pairs, got {len(positive)} data and {len(negative)} samples")
    if weights is not None and (kind != "cd" or weights.shape != negative.shape):
        raise ValueError(
            f"weights go with kind='cd' and have the shape of the negatives {tuple(negative.shape)}; got kind={kind!r} "
            f"and {tuple(weights.shape)}"
        )
    up, down = wide(positive), wide(negative)
    if kind == "softplus":
        value = F.softplus(up - down).mean()  # eq. (3)
    elif kind == "weighted":
        value = up.mean() - ((-down.detach()).softmax(0) * down).sum()  # eq. (4)
    else:
        share = torch.full_like(down, 1 / len(down)) if weights is None else wide(weights) / wide(weights).sum()
        value = up.mean() - (share.detach() * down).sum()  # eq. (2)
    return value + alpha * (up.square().mean() + down.square().mean()) if alpha else value  # eq. (5)


def all_of(*energies: Energy) -> Energy:
    """The energy of what all models find likely: the product of their densities, eq. (6).

    Args:
        energies: at least one, each from (N, ...) to (N,).

    Returns:
        A function from (N, ...) to (N,), float32 or better.

    Raises:
        ValueError: no energy.

    >>> all_of(lambda x: x[:, 0], lambda x: x[:, 1])(torch.tensor([[1.0, 2.0]]))
    tensor([3.])
    """
    check_some("all_of", energies)
    return lambda x: torch.stack([wide(energy(x)) for energy in energies]).sum(0)  # eq. (6)


def any_of(*energies: Energy) -> Energy:
    """The energy of what some model finds likely: the sum of their exp(-U), eq. (6).

    The models' unknown Z weigh them: one whose energies are lower by c counts exp(c) times as much.

    Args:
        energies: at least one, each from (N, ...) to (N,).

    Returns:
        A function from (N, ...) to (N,), float32 or better.

    Raises:
        ValueError: no energy.

    >>> any_of(lambda x: x[:, 0], lambda x: x[:, 0])(torch.tensor([[1.0]]))  # 1 - log 2
    tensor([0.3069])
    """
    check_some("any_of", energies)
    return lambda x: -torch.stack([-wide(energy(x)) for energy in energies]).logsumexp(0)  # eq. (6)


def logits_energy(logits: Tensor) -> Tensor:
    """The energy of x that a classifier's logits hold, eq. (7); its posterior of the classes stays softmax(logits).

    Args:
        logits: (N, K), any float dtype.

    Returns:
        (N,) energies, float32 or better.

    Raises:
        ValueError: logits are not (N, K) with K >= 1.

    >>> logits_energy(torch.zeros(1, 2))  # -log 2
    tensor([-0.6931])
    """
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"logits_energy needs logits (N, K) with K >= 1, got {tuple(logits.shape)}")
    return -wide(logits).logsumexp(1)  # eq. (7)


def check_some(name: str, energies: tuple[Energy, ...]) -> None:
    if not energies:
        raise ValueError(f"{name} combines energies, got none; the energy of everything is lambda x: 0 * x.sum(1)")
