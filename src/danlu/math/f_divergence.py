r"""How far two distributions are apart, by any convex f: exactly from probabilities, from below by a critic on samples.

    D_f(P || Q) = sum over q > 0 of q f(p / q)  +  f'(inf) P(q = 0),        q f(0) where p = 0           (1)
    each term   q f(p / q) - f'(1) (p - q)  >= 0, the same sum for probabilities                         (2)
    D_f(P || Q) = max over T of E_P[T(x)] - E_Q[f*(T(x))],      T = a(v)                                 (3)
    best        T(x) = f'(p / q),   v = log(p / q)                                                       (4)

f*(t) = sup_u t u - f(u) is the conjugate, and a(v) = f'(e^v) the activation that keeps a critic where f* is finite
(`danlu.math.f_table` has both for the usual f, `danlu.math.f_convex` for any other). (2) is what is summed: rounding
then never makes a divergence negative. Every v makes (3) a lower bound; on the samples that a critic was trained on its
value is no bound, so read it on others. Where the supports do not meet, D is f(0) + f'(inf) however far they are
apart, and where it is infinite (3) only grows with the sample. Averages of e^v over Q have heavy tails: judge them by
their spread, too.

Source: Nowozin, Cseke and Tomioka, 2016, arXiv:1606.00709; kexue.fm/archives/6016.
Shapes: any; K outcomes along `dim`.
"""

import torch
from torch import Tensor

from danlu.math.f_convex import Elementwise, FDivergence
from danlu.math.f_table import as_f_divergence
from danlu.math.precision import wide, wide_dtype

__all__ = ["f_activation", "f_bound", "f_conjugate", "f_divergence"]


def f_divergence(p: Tensor, q: Tensor, divergence: str | FDivergence | Elementwise = "kl", dim: int = -1) -> Tensor:
    """The divergence of two distributions over the same outcomes, eq. (1), in nats where there are logarithms.

    Args:
        p: probabilities along `dim`, any float dtype; the data.
        q: the same shape; the model.
        divergence: a name of F_DIVERGENCES, a record, or a convex function of u = p / q.
        dim: the dimension of the outcomes, not empty.

    Returns:
        The shape without `dim`, float32 or, for float64, float64; >= 0, inf where (1) is. A probability that is 0
        costs what it should and passes on no gradient.

    Raises:
        ValueError: unlike shapes, no outcomes, or a divergence that is none.

    >>> f_divergence(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), "total_variation")
    tensor(0.5000)
    >>> f_divergence(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), "reverse_kl")  # log 2
    tensor(0.6931)
    """
    if p.shape != q.shape or not p.ndim or not p.shape[dim]:
        raise ValueError(
            f"f_divergence needs p and q of one shape with at least one outcome along dim={dim}; got {tuple(p.shape)} "
            f"and {tuple(q.shape)}; write q.expand_as(p) to compare many with one"
        )
    record = as_f_divergence(divergence)
    dtype = torch.promote_types(wide_dtype(p), wide_dtype(q))
    exact = torch.float32 if p.device.type == "mps" else torch.float64
    p, q = p.to(exact), q.to(exact)
    ratio = p / q
    no_p, no_q = (p == 0) | (ratio == 0), (q == 0) | ratio.isinf()
    one = no_p | no_q
    inner_p, inner_q = p.masked_fill(one, 1.0), q.masked_fill(one, 1.0)
    slope = record.activation(p.new_zeros(()))  # f'(1)
    terms = inner_q * record.f(inner_p / inner_q) - slope * (inner_p - inner_q)  # eq. (2)
    q_alone = torch.where(no_p & (q > 0), q, 0.0)
    p_alone = torch.where(no_q & (p > 0), p, 0.0)
    terms = torch.where(q_alone > 0, torch.where(q_alone > 0, q_alone, 1.0) * (record.zero + slope), terms)
    terms = torch.where(p_alone > 0, torch.where(p_alone > 0, p_alone, 1.0) * (record.infinity - slope), terms)
    return terms.masked_fill((p == 0) & (q == 0), 0.0).sum(dim).to(dtype)  # eq. (1)


def f_activation(v: Tensor, divergence: str | FDivergence | Elementwise = "kl") -> Tensor:
    """The critic's value T = f'(e^v) for a free number v, the estimate of log(p / q): the last step of a critic.

    Args:
        v: any shape and float dtype.
        divergence: a name of F_DIVERGENCES, a record, or a convex function of u = p / q.

    Returns:
        The shape of v, float32 or, for float64, float64; where f* is finite, and larger for larger v.

    Raises:
        ValueError: a divergence that is none.

    >>> f_activation(torch.tensor([0.0, 2.0]).log(), "pearson")  # 2 (u - 1)
    tensor([-2.,  2.])
    """
    return as_f_divergence(divergence).activation(v)


def f_conjugate(t: Tensor, divergence: str | FDivergence | Elementwise = "kl") -> Tensor:
    """The conjugate f*(t) = sup over u > 0 of t u - f(u); its gradient is the density ratio u that t stands for.

    Args:
        t: values of a critic, any shape and float dtype.
        divergence: a name of F_DIVERGENCES, a record, or a convex function of u = p / q.

    Returns:
        The shape of t, float32 or, for float64, float64; inf beyond f'(inf). By bisection (any function, "jeffreys",
        a swapped record) it can be differentiated once.

    Raises:
        ValueError: a divergence that is none.

    >>> f_conjugate(torch.tensor([2.0, -9.0]), "pearson")  # t^2 / 4 + t; below f'(0) = -2 it is -f(0)
    tensor([ 3., -1.])
    """
    return as_f_divergence(divergence).conjugate(t)


def f_bound(real: Tensor, fake: Tensor, divergence: str | FDivergence | Elementwise = "kl") -> Tensor:
    """The lower bound of the divergence that a critic shows on samples, eq. (3).

    Args:
        real: the critic's outputs v on samples of P, any shape and float dtype.
        fake: its outputs on samples of Q, any shape.
        divergence: a name of F_DIVERGENCES, a record, or a convex function of u = p / q.

    Returns:
        Scalar, float32 or, for float64, float64; its expectation is at most D, and is D for v = log(p / q).

    Raises:
        ValueError: no real or no fake sample, or a divergence that is none.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> v = (p / q).log()
    >>> f_bound(v, v[[0, 1, 1, 1]], "pearson"), f_divergence(p, q, "pearson")  # samples in exact proportion
    (tensor(0.3333), tensor(0.3333))
    """
    if not real.numel() or not fake.numel():
        raise ValueError(
            f"f_bound needs at least one real and one fake sample; got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    record = as_f_divergence(divergence)
    return record.activation(wide(real)).mean() - record.activation_conjugate(wide(fake)).mean()  # eq. (3)
