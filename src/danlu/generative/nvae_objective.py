r"""What keeps many groups of latents alive while they are young: a slow KL, and shares of it by group.

    beta(step) = max( min( (step - 0.0001 T) / (0.3 T), 1 ), 0.0001 )                                         (1)
    gamma_l = c (mean_x KL_l + 0.01) / alpha_l,   mean_l gamma_l = 1,   without gradient                      (2)
    alpha_l = 4^i / G_i / min,   i = 0 for the coarsest scale, G_i its number of groups                       (3)
    L = E[-log p(x | z)] + beta sum_l gamma_l KL_l                                                            (4)

By (2) a group that carries much pays more for it, one that carries little pays next to nothing and may start to carry;
(3) lets groups at fine scales, whose latents are more, carry more. With beta = 1 all gamma are 1: then (4) is a bound
of -log p(x), and nothing is left of the help.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898 (2), (3); the numbers of (1) and (2): the authors' program.
Shapes: N items, L groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["group_alphas", "group_balance", "kl_warmup"]

OFFSET = 0.01  # nats


def kl_warmup(step: int, total_steps: int, share: float = 0.3, start: float = 1e-4) -> float:
    """The weight of the KL terms, eq. (1).

    Args:
        step: from 0.
        total_steps: T >= 1, of the whole training.
        share: of the steps until it is 1, > 0.
        start: share of the steps before it rises, and the least weight.

    Returns:
        beta in [start, 1].

    Raises:
        ValueError: total_steps < 1, share <= 0 or a start outside of [0, 1].

    >>> kl_warmup(0, 1000), round(kl_warmup(150, 1000), 4), kl_warmup(400, 1000)
    (0.0001, 0.4997, 1.0)
    """
    if total_steps < 1 or not share > 0 or not 0 <= start <= 1:
        raise ValueError(
            f"kl_warmup needs total_steps >= 1, share > 0 and start in [0, 1], got {total_steps}, {share} and {start}; "
            "for no warm-up take beta=1"
        )
    return max(min((step - start * total_steps) / (share * total_steps), 1.0), start)  # eq. (1)


def group_alphas(groups: Sequence[int]) -> Tensor:
    """What every group may carry, eq. (3).

    Args:
        groups: of every scale, coarse to fine.

    Returns:
        (L,) float32, the least of them 1.

    Raises:
        ValueError: no scale, or one without a group.

    >>> group_alphas((2, 4))  # 1/2 and 4/4
    tensor([1., 1., 2., 2., 2., 2.])
    """
    if not groups or min(groups) < 1:
        raise ValueError(f"group_alphas needs a number of groups >= 1 for every scale, got {tuple(groups)}")
    values = [4.0**scale / count for scale, count in enumerate(groups) for _ in range(count)]
    return torch.tensor(values) / min(values)  # eq. (3)


@torch.no_grad()
def group_balance(group_kl: Tensor, alphas: Tensor) -> Tensor:
    """Weights of the groups, eq. (2).

    Args:
        group_kl: (L, N) nats, or (L,) means over a batch, as when several processes share it.
        alphas: (L,) > 0, of `group_alphas`.

    Returns:
        (L,) of mean 1, float32 or better, without a graph.

    Raises:
        ValueError: shapes that do not fit, or an empty batch.

    >>> group_balance(torch.tensor([0.99, 2.99]), torch.tensor([1.0, 1.0]))
    tensor([0.5000, 1.5000])
    """
    if group_kl.ndim not in (1, 2) or alphas.shape != group_kl.shape[:1] or not group_kl.numel():
        raise ValueError(
            f"group_balance needs group_kl (L, N) or (L,) and alphas (L,), got {tuple(group_kl.shape)} and "
            f"{tuple(alphas.shape)}"
        )
    kl = wide(group_kl)
    shares = ((kl.mean(1) if kl.ndim == 2 else kl).abs() + OFFSET) / alphas.to(kl)
    return shares / shares.mean()  # eq. (2)
