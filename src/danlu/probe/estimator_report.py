r"""Bias and variance of a gradient estimator, against the exact gradient by enumeration or a mean of many draws.

    bias = E g^ - g,      variance = E |g^ - E g^|^2,      error = E |g^ - g|^2 = |bias|^2 + variance      (1)
    z_i = bias_i sqrt(n) / std_i,      biased if max_i |z_i| > q(n, d)                                     (2)
    g = grad_z sum_y f(y) prod_i softmax(z_i)[y_i]                                                         (3)

g^ is one estimate of d numbers, of which n are drawn; q is the quantile of the normal distribution at which d fair
estimators together stay unblamed in 99.9 % of reports. |bias|^2 of the mean of n draws contains variance / n by chance;
`squared_bias` takes it off, so it can come out negative. (3) is the reference for discrete choices, summed over all.

Source: the definitions are those of statistics; what they are measured for: kexue.fm/archives/7737 and 6705.
Shapes: n estimates of any shape; N independent choices among C.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = ["EstimatorReport", "compare_estimators", "enumerated_gradient", "estimator_report"]


@dataclass(frozen=True)
class EstimatorReport:
    """Numbers of eq. (1) and (2) from `num_samples` estimates.

    mean: E g^. variance: summed over the entries. squared_bias, error: None without a reference. z: greatest |z_i| of
    eq. (2), None without a reference. biased: whether z is beyond chance.
    """

    mean: Tensor
    variance: float
    squared_bias: float | None
    error: float | None
    z: float | None
    biased: bool | None
    num_samples: int

    def as_dict(self) -> dict[str, float | int | bool | None]:
        """The numbers without the mean, ready for JSON."""
        names = ("variance", "squared_bias", "error", "z", "biased", "num_samples")
        return {name: getattr(self, name) for name in names}


def estimator_report(
    estimate: Callable[[int], Tensor], exact: Tensor | None = None, num_samples: int = 10_000, chunk: int = 1_000
) -> EstimatorReport:
    """Measure one estimator.

    Args:
        estimate: n -> (n, ...) independent estimates; stack single ones where they come one by one.
        exact: (...) the true gradient, from `enumerated_gradient`, autograd or very many draws; None measures the
            variance alone.
        num_samples: estimates to draw in all, >= 2.
        chunk: greatest n asked for at once.

    Returns:
        An EstimatorReport in float64.

    Raises:
        ValueError: num_samples < 2, chunk < 1, estimates of another shape than (n, ...) or than exact.

    >>> report = estimator_report(lambda n: torch.tensor([1.0, 3.0]).repeat(n // 2)[:, None], torch.tensor([2.0]), 100)
    >>> report.mean.item(), round(report.variance, 2), report.biased
    (2.0, 1.01, False)
    """
    if num_samples < 2 or chunk < 1:
        raise ValueError(f"a variance needs num_samples >= 2 and chunk >= 1, got {num_samples} and {chunk}")
    count, mean, spread = 0, torch.zeros(()), torch.zeros(())
    while count < num_samples:
        asked = min(chunk, num_samples - count)
        drawn = estimate(asked).detach().double()
        if drawn.ndim < 1 or len(drawn) != asked or (exact is not None and drawn.shape[1:] != exact.shape):
            wanted = f"({asked}, ...)" if exact is None else f"{(asked, *exact.shape)}"
            raise ValueError(f"estimate({asked}) must return {wanted} estimates, got {tuple(drawn.shape)}")
        new = drawn.mean(dim=0)
        step = new - mean
        total = count + asked
        spread = spread + (drawn - new).square().sum(dim=0) + step.square() * count * asked / total  # sums over chunks
        mean = mean + step * asked / total
        count = total
    variances = spread / (count - 1)
    variance = float(variances.sum())
    if exact is None:
        return EstimatorReport(mean, variance, None, None, None, None, count)
    bias = mean - exact.detach().double().to(mean.device)
    squared_bias = float(bias.square().sum()) - variance / count
    noise = (variances / count).sqrt().clamp_min(1e-12 * (1 + float(exact.abs().max())))  # rounding is no bias
    z = float((bias.abs() / noise).max())  # eq. (2)
    limit = NormalDist().inv_cdf(1 - 0.001 / (2 * max(bias.numel(), 1)))
    return EstimatorReport(mean, variance, squared_bias, squared_bias + variance, z, z > limit, count)  # eq. (1)


def compare_estimators(
    estimates: Mapping[str, Callable[[int], Tensor]], exact: Tensor | None = None, num_samples: int = 10_000
) -> dict[str, EstimatorReport]:
    """Measure several estimators of one gradient.

    Args:
        estimates: name -> estimator, see `estimator_report`.
        exact: the true gradient, or None.
        num_samples: estimates to draw of each.

    Returns:
        Name -> report, in the order given.

    Raises:
        ValueError: as `estimator_report`; the message names the estimator.

    >>> reports = compare_estimators({"right": lambda n: torch.ones(n, 1), "double": lambda n: 2 * torch.ones(n, 1)},
    ...                              torch.ones(1), 10)
    >>> {name: report.biased for name, report in reports.items()}
    {'right': False, 'double': True}
    """
    reports = {}
    for name, estimate in estimates.items():
        try:
            reports[name] = estimator_report(estimate, exact, num_samples)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return reports


def enumerated_gradient(
    value_fn: Callable[[Tensor], Tensor], logits: Tensor, limit: int = 100_000
) -> tuple[Tensor, Tensor]:
    """The exact expectation of f over all answers and its gradient, eq. (3).

    Args:
        value_fn: f: (S, N) int64 answers -> (S,) values.
        logits: (N, C) of N independent choices, or (C,) of one.
        limit: greatest number of answers C^N.

    Returns:
        (E f, its gradient with respect to logits), both detached, in float64.

    Raises:
        ValueError: logits are not (N, C), there are more answers than limit, or f returns another shape.

    >>> value, gradient = enumerated_gradient(lambda y: (y == 1).double().sum(1), torch.zeros(1, 2))
    >>> value, gradient  # p = 1/2, p (1 - p) = 1/4
    (tensor(0.5000, dtype=torch.float64), tensor([[-0.2500,  0.2500]], dtype=torch.float64))
    """
    if logits.ndim not in (1, 2):
        raise ValueError(f"enumerated_gradient needs logits (N, C) or (C,), got {tuple(logits.shape)}")
    table = logits.detach().double().reshape(-1, logits.shape[-1]).requires_grad_()  # (N, C)
    number, classes = table.shape
    if number * math.log(classes) > math.log(limit) + 1e-9:
        raise ValueError(
            f"{classes}^{number} answers are more than limit={limit}; use fewer choices, or the mean of many draws "
            "as the reference"
        )
    answers = torch.tensor(list(itertools.product(range(classes), repeat=number)), device=logits.device)  # (S, N)
    values = value_fn(answers).detach().double()
    if values.shape != answers.shape[:1]:
        raise ValueError(f"value_fn must return {tuple(answers.shape[:1])} values, got {tuple(values.shape)}")
    with torch.enable_grad():
        log_p = table.log_softmax(dim=-1)[torch.arange(number, device=logits.device), answers].sum(dim=-1)  # (S,)
        expected = (log_p.exp() * values).sum()  # eq. (3)
    (gradient,) = torch.autograd.grad(expected, table)
    return expected.detach(), gradient.reshape(logits.shape)
