r"""Joint distributions as tables: every identity of the joint-KL view in numbers, and the GAN whose players are exact.

    KL(p || q) = KL of the marginals of x + E_p(x) KL of the conditionals of z                              (1)
    D = A_old / (A_old + B_old)                                    the best critic of the last round         (2)
    2 KL(S || T) + 2 log 2 = E_A[-log D] + E_B[-log D] + KL(B || B_old) + E_B[log A_old / A]                  (3)
      S(., 1) = A / 2,  S(., 0) = B / 2,   T(., 1) = D A,  T(., 0) = (1 - D) A
    argmin over B of E_B[-log D] + KL(B || B_old) = B_old D / Z                                             (4)

A and B are what the critic tells apart: data and model for a GAN (A = A_old, so the last term is 0), prior and
aggregated codes for an AAE, the encoder's and the decoder's pairs for ALI. (3) has the non-saturating loss E_B[-log D]
and, beside it, KL(B || B_old): do not go far in one round. Dropped, the best B at a fixed D is the single point where D
is largest, and that is mode collapse; with it the step is (4), which from a start that covers everything goes to the
data with the error halved in each round at the end. Both are statements on exact minimisation.

Source: kexue.fm/archives/5716; arXiv:1807.05936. (4) and its rate are worked out here.
Shapes: tables of probabilities of one shape; (X, Z) for (1).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.f_divergence import f_divergence
from danlu.math.precision import wide

__all__ = ["AdversarialTerms", "KLChain", "adversarial_terms", "kl_chain", "proximal_step"]


class KLChain(NamedTuple):
    """The two sides of eq. (1): joint = marginal + conditional, nats."""

    joint: Tensor
    marginal: Tensor
    conditional: Tensor


class AdversarialTerms(NamedTuple):
    """The two sides of eq. (3), nats: joint = real + fake + step + target.

    joint: 2 KL(S || T) + 2 log 2. real: E_A[-log D]. fake: E_B[-log D]. step: KL(B || B_old). target:
    E_B[log A_old / A].
    """

    joint: Tensor
    real: Tensor
    fake: Tensor
    step: Tensor
    target: Tensor


def kl_chain(p: Tensor, q: Tensor) -> KLChain:
    """The divergence of two joint tables, taken apart, eq. (1).

    Args:
        p: (X, Z) probabilities, rows are x.
        q: (X, Z), the same.

    Returns:
        A KLChain of scalars; inf where p has weight that q has not.

    Raises:
        ValueError: shapes that are not (X, Z) or differ.

    >>> p, q = torch.tensor([[0.5, 0.0], [0.0, 0.5]]), torch.full((2, 2), 0.25)
    >>> kl_chain(p, q)  # the marginals agree, each conditional is log 2 away
    KLChain(joint=tensor(0.6931), marginal=tensor(0.), conditional=tensor(0.6931))
    """
    if p.ndim != 2 or p.shape != q.shape:
        raise ValueError(f"kl_chain needs two tables (X, Z), got {tuple(p.shape)} and {tuple(q.shape)}")
    p, q = wide(p), wide(q)
    p_x, q_x = p.sum(1), q.sum(1)
    seen = p_x > 0
    # a row that q lacks altogether costs inf in the marginal; its conditional is not asked for
    given = p[seen] / p_x[seen, None], torch.where(q_x > 0, 1 / q_x, 0.0)[seen, None] * q[seen]
    lacking = (q_x[seen] == 0)[:, None]
    conditional = f_divergence(given[0], torch.where(lacking, given[0], given[1]), "kl")  # (rows,)
    return KLChain(
        f_divergence(p.flatten(), q.flatten(), "kl"), f_divergence(p_x, q_x, "kl"), (p_x[seen] * conditional).sum()
    )


def adversarial_terms(a: Tensor, b: Tensor, a_old: Tensor, b_old: Tensor) -> AdversarialTerms:
    """The joint divergence after the critic's best answer to the last round, and its four parts, eq. (3).

    Args:
        a: probabilities > 0 of what the critic is to call real, any shape.
        b: of what it is to call made.
        a_old: of the last round; `a` itself where it does not move.
        b_old: of the last round.

    Returns:
        An AdversarialTerms of scalars.

    Raises:
        ValueError: unlike shapes, or probabilities that are not > 0.

    >>> u = torch.tensor([0.5, 0.5])
    >>> [round(v.item(), 4) + 0.0 for v in adversarial_terms(u, u, u, u)]  # D = 1/2: twice log 2
    [1.3863, 0.6931, 0.6931, 0.0, 0.0]
    """
    tables = [wide(t).flatten() for t in (a, b, a_old, b_old)]
    if len({t.shape for t in (a, b, a_old, b_old)}) != 1 or not all(bool((t > 0).all()) for t in tables):
        raise ValueError(
            "adversarial_terms needs four tables of one shape with probabilities > 0; got shapes "
            f"{[tuple(t.shape) for t in (a, b, a_old, b_old)]}; a point mass is the limit of narrow peaks"
        )
    a, b, a_old, b_old = tables
    critic = a_old / (a_old + b_old)  # eq. (2)
    other = b_old / (a_old + b_old)
    left = torch.stack([a, b]) / 2  # S
    right = torch.stack([critic * a, other * a])  # T, which does not sum to 1 unless D is the best for b
    joint = 2 * (left * (left / right).log()).sum() + 2 * math.log(2)
    return AdversarialTerms(
        joint,
        -(a * critic.log()).sum(),
        -(b * critic.log()).sum(),
        (b * (b / b_old).log()).sum(),
        (b * (a_old / a).log()).sum(),
    )  # eq. (3)


def proximal_step(data: Tensor, model: Tensor) -> Tensor:
    """The exact generator's answer to the exact critic of this round, eq. (4).

    Args:
        data: (S,) probabilities.
        model: (S,) probabilities, the old generator; what it has lost it does not find again.

    Returns:
        (S,) probabilities, float32 or better.

    Raises:
        ValueError: unlike shapes, or no state that both have.

    >>> proximal_step(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))  # 3/4 2/5 against 1/4 2/3
    tensor([0.6429, 0.3571])
    """
    if data.ndim != 1 or data.shape != model.shape:
        raise ValueError(f"proximal_step needs two tables (S,), got {tuple(data.shape)} and {tuple(model.shape)}")
    p, q = wide(data), wide(model)
    critic = torch.where(p + q > 0, p / (p + q).clamp_min(torch.finfo(p.dtype).tiny), 0.0)  # eq. (2)
    weight = q * critic
    if not bool(weight.sum() > 0):
        raise ValueError("data and model share no state, so no step of this kind leads from one to the other")
    return weight / weight.sum()  # eq. (4)
