r"""How far two samples are apart, by a trained critic that is judged on examples it has not seen.

    B_k = mean over real of T(v_k) - mean over fake of f*(T(v_k)),    v_k trained without fold k            (1)
    B = mean_k B_k,   E[B] <= D_f(P || Q)                                                                   (2)
    s^2 = mean_k [ var T(v_k) / n_k + var f*(T(v_k)) / m_k ] / K                                            (3)
    E_P[v] - log E_Q[e^v] <= KL(P || Q)                                                                     (4)

Whatever the critic learned, a mean over fresh examples is a lower bound in expectation (2), and B - z s is one with
the stated confidence; a bound from above does not exist without assumptions: the interval is one for B, not for D. The
bound on the training part is given, too: it shows how much the critic learned by heart.

When not to believe it. Means of e^v have heavy tails, and where D is infinite B is finite all the same: `pareto_k` of
the terms tells (above 0.7 the mean is not worth its error bar). Where f punishes mass of P that Q lacks without bound,
the mean of p/q over Q must be 1, where it punishes mass of Q that P lacks, the mean of q/p over P; a mean well below
says that the supports differ and D is infinite. `trusted` is the three together. (4), of Donsker and Varadhan, is never
below (1) for KL with the same v, since log y <= y - 1, but is biased upwards on small samples.

v is trained as a classifier ("logistic"), whose optimum log p/q is the best v for every f, or by f's own bound: an
error of v costs the bound one of second order, and the logistic loss has no heavy tails to be pulled about by. Total
variation takes T = sign(v) / 2. Folds are by random choice; examples must be independent.

Source: kexue.fm/archives/6016; Nguyen, Wainwright and Jordan, 2010, arXiv:0809.0853 (1); Nowozin et al., 2016,
arXiv:1606.00709; Donsker and Varadhan, 1983 (4); folds and tests are ours.
Shapes: n real examples (n, ...), m others (m, ...) of the same kind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from danlu.generative.log_ratio import fit_log_ratio, log_ratio_critic
from danlu.math.f_convex import Elementwise, FDivergence
from danlu.math.f_table import F_DIVERGENCES, as_f_divergence
from danlu.math.importance import effective_sample_size, log_mean_exp
from danlu.math.pareto_k import pareto_k
from danlu.math.precision import wide

__all__ = ["DivergenceEstimate", "divergence_from_scores", "donsker_varadhan", "estimate_divergence"]

LIMIT = 30.0  # of |v| in what is averaged: any v is a bound


@dataclass(frozen=True)
class DivergenceEstimate:
    """A held-out bound in nats and what to think of it.

    value, standard_error, low, high: of (2), low and high the two-sided interval; low is also below D with that
    confidence (and half the rest). training_value: the bound where the critics were trained. pareto_k: the heavier of
    the two samples' terms. ess: effective share of the second sample under p/q. real_mass, fake_mass: the means of q/p
    over P and of p/q over Q, 1 on equal supports. log_ratio: x -> v. real, fake: held-out v of all examples, in order.
    """

    value: float
    standard_error: float
    low: float
    high: float
    training_value: float
    pareto_k: float
    ess: float
    real_mass: float
    fake_mass: float
    trusted: bool
    log_ratio: Callable[[Tensor], Tensor]
    real: Tensor
    fake: Tensor


def estimate_divergence(
    real: Tensor,
    fake: Tensor,
    divergence: str | FDivergence | Elementwise = "kl",
    critic: Callable[[], nn.Module] | None = None,
    objective: str = "logistic",
    steps: int = 1_000,
    batch_size: int = 256,
    lr: float = 2e-3,
    folds: int = 2,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> DivergenceEstimate:
    """The divergence of two samples from below, eqs. (1) to (3), with a critic trained for each fold.

    Args:
        real: (n, ...) examples of P, any float dtype, n >= 2 folds.
        fake: (m, ...) examples of Q, m >= 2 folds.
        divergence: a name of F_DIVERGENCES, a record, or a convex function of u = p / q.
        critic: builds a fresh module from examples (N, ...) to v (N,) or (N, 1); None for a perceptron of two layers.
        objective: what trains it, "logistic" or "own" (the bound).
        steps: of Adam for each fold; its rate falls to 0.
        batch_size: examples of each sample in a step.
        lr: of Adam at the start.
        folds: K >= 2.
        confidence: of the interval, in (0, 1).
        generator: for folds, batches and the perceptron's weights.

    Returns:
        The estimate.

    Raises:
        ValueError: samples too small or unlike, not finite, an unknown objective, or numbers out of range.

    >>> seed = torch.Generator().manual_seed(0)
    >>> x = torch.randn(64, 1, generator=seed)
    >>> found = estimate_divergence(x, x + 40, "js", steps=100, generator=seed)
    >>> 0.6 < found.value < 0.6932, found.trusted  # told apart: log 2, and JS is finite there
    (True, True)
    """
    _check(real, fake, objective, steps, batch_size, lr, folds, confidence)
    record = as_f_divergence(divergence)
    trainer = record if objective == "own" else as_f_divergence("gan")
    x, y = wide(real.detach()), wide(fake.detach())
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = x.to(dtype), y.to(dtype)
    parts_x, parts_y = (_folds(len(s), folds, generator, s.device) for s in (x, y))
    critics, training = [], []
    v_real, v_fake = x.new_zeros(len(x)), y.new_zeros(len(y))
    for k in range(folds):
        train_x = x[torch.cat([p for i, p in enumerate(parts_x) if i != k])]
        train_y = y[torch.cat([p for i, p in enumerate(parts_y) if i != k])]
        both = torch.cat([train_x, train_y])
        net = log_ratio_critic(both, generator=generator) if critic is None else critic()
        fit_log_ratio(net, train_x, train_y, trainer, steps, batch_size, lr, generator)
        v_real[parts_x[k]], v_fake[parts_y[k]] = _values(net, x[parts_x[k]]), _values(net, y[parts_y[k]])
        training.append(_bound(_values(net, train_x), _values(net, train_y), record)[0])
        critics.append(net)

    def log_ratio(z: Tensor) -> Tensor:
        return torch.stack([_values(net, wide(z).to(dtype)) for net in critics]).mean(0)

    return divergence_from_scores(
        v_real, v_fake, record, list(zip(parts_x, parts_y, strict=True)), confidence, sum(training) / folds, log_ratio
    )


@torch.no_grad()
def divergence_from_scores(
    real: Tensor,
    fake: Tensor,
    divergence: str | FDivergence | Elementwise = "kl",
    folds: list[tuple[Tensor, Tensor]] | None = None,
    confidence: float = 0.95,
    training_value: float = math.nan,
    log_ratio: Callable[[Tensor], Tensor] | None = None,
) -> DivergenceEstimate:
    """The estimate from log-ratios on examples that their critics were not trained on, eqs. (1) to (3).

    Args:
        real: (n,) v of examples of P, n >= 2.
        fake: (m,) v of examples of Q, m >= 2.
        divergence: a name of F_DIVERGENCES, a record, or a convex function of u = p / q.
        folds: rows of real and of fake judged by one critic each; None: one critic for all.
        confidence: of the interval, in (0, 1).
        training_value: to be passed on.
        log_ratio: to be passed on.

    Returns:
        The estimate.

    Raises:
        ValueError: fewer than 2 numbers in a sample or a fold.

    >>> v = torch.tensor([0.0, 0.0])
    >>> divergence_from_scores(v, v, "kl").value  # a critic that knows nothing
    0.0
    """
    record = as_f_divergence(divergence)
    if folds is None:
        folds = [(torch.arange(len(real), device=real.device), torch.arange(len(fake), device=fake.device))]
    if not folds or min(min(len(a), len(b)) for a, b in folds) < 2:
        raise ValueError(
            f"an error bar needs at least 2 examples of each sample in every fold; got {len(real)} and {len(fake)} in "
            f"{len(folds)} folds"
        )
    real, fake = wide(real).double(), wide(fake).double()
    found = [_bound(real[a], fake[b], record) for a, b in folds]
    value = sum(b for b, _ in found) / len(found)  # eq. (2)
    error = math.sqrt(sum(variance for _, variance in found)) / len(found)  # eq. (3)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    w = fake.clamp(-LIMIT, LIMIT)
    heaviest = max(_tail(_terms(real, fake, record)[i]) for i in (0, 1))
    real_mass, fake_mass = (
        math.exp(float(log_mean_exp(-real.clamp(-LIMIT, LIMIT), 0))),
        math.exp(float(log_mean_exp(w, 0))),
    )
    lacking = (math.isinf(record.infinity) and fake_mass < 0.9) or (math.isinf(record.zero) and real_mass < 0.9)
    return DivergenceEstimate(
        value,
        error,
        value - z * error,
        value + z * error,
        training_value,
        heaviest,
        float(effective_sample_size(w, 0)) / len(w),
        real_mass,
        fake_mass,
        not lacking and heaviest < 0.7 and math.isfinite(value),
        log_ratio or (lambda x: x),
        real,
        fake,
    )


def donsker_varadhan(real: Tensor, fake: Tensor) -> Tensor:
    """The bound (4) of KL(P || Q) in nats.

    Args:
        real: v of examples of P, any shape, at least one.
        fake: v of examples of Q.

    Returns:
        Scalar with the graph, float32 or better; a shift of v does not change it.

    Raises:
        ValueError: an empty sample.

    >>> donsker_varadhan(torch.tensor([5.0]), torch.tensor([5.0, 5.0]))
    tensor(0.)
    """
    if not (real.numel() and fake.numel()):
        raise ValueError(
            f"donsker_varadhan needs an example of each sample, got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    return wide(real).mean() - log_mean_exp(wide(fake).flatten(), 0)  # eq. (4)


def _terms(real: Tensor, fake: Tensor, record: FDivergence) -> tuple[Tensor, Tensor]:
    """T(v) and f*(T(v)) of eq. (1)."""
    v, w = real.double().clamp(-LIMIT, LIMIT), fake.double().clamp(-LIMIT, LIMIT)
    if record is F_DIVERGENCES["total_variation"]:  # its activation is a smoothed step, there to be trained through
        return v.sign() / 2, w.sign() / 2
    return record.activation(v), record.activation_conjugate(w)


def _bound(real: Tensor, fake: Tensor, record: FDivergence) -> tuple[float, float]:
    """B_k and its variance, eqs. (1) and (3)."""
    a, b = _terms(real, fake, record)
    return float(a.mean() - b.mean()), float(a.var() / len(a) + b.var() / len(b))


def _tail(terms: Tensor) -> float:
    """Pareto k of how far terms lie from their middle; -inf where they are bounded or too few to tell."""
    distance = (terms - terms.median()).abs()
    k = float(pareto_k(distance.clamp_min(1e-300).log(), 0))
    return -math.inf if math.isnan(k) else k


@torch.no_grad()
def _values(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(part).flatten() for part in x.split(8192)])


def _folds(n: int, folds: int, generator: torch.Generator | None, device: torch.device) -> list[Tensor]:
    order = torch.randperm(n, generator=generator, device=None if generator is None else generator.device)
    return list(order.to(device).tensor_split(folds))


def _check(
    real: Tensor,
    fake: Tensor,
    objective: str,
    steps: int,
    batch_size: int,
    lr: float,
    folds: int,
    confidence: float,
) -> None:
    if folds < 2 or not (real.ndim and fake.ndim) or min(len(real), len(fake)) < 2 * folds:
        raise ValueError(
            f"estimate_divergence needs folds >= 2 and at least 2 examples of each sample in every fold; got "
            f"{tuple(real.shape)} and {tuple(fake.shape)} in {folds} folds"
        )
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"both samples must be of one kind; got {tuple(real.shape)} and {tuple(fake.shape)}")
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ValueError("estimate_divergence needs finite examples; there is nan or inf among them")
    if objective not in ("own", "logistic"):
        raise ValueError(f"objective must be 'own' (the bound itself) or 'logistic' (a classifier), got {objective!r}")
    if not (steps >= 1 and batch_size >= 1 and lr > 0 and 0 < confidence < 1):
        raise ValueError(
            f"estimate_divergence needs steps >= 1, batch_size >= 1, lr > 0 and 0 < confidence < 1; got {steps}, "
            f"{batch_size}, {lr} and {confidence}"
        )
