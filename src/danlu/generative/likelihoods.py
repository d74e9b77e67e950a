r"""Decoder likelihoods by name, as a configuration file names them.

    bernoulli              bits                                        one feature a channel
    continuous_bernoulli   numbers in [0, 1]                           one
    gaussian               any numbers, the best common width          one
    gaussian:global        ... one learned width                       one
    gaussian:pixel         ... a width for every number                two
    gaussian:0.5           ... that width                              one
    discretized_logistic   levels 0 .. 2^bits - 1                      two
    logistic_mixture       levels, channels of a pixel together        components * (1 + 2 C + C (C - 1) / 2) in all

For images of 8 bits take discretized_logistic (grey) or logistic_mixture (colour): only probabilities of levels give
bits per dimension that mean the same for every model.

Source: `danlu.generative.likelihood_continuous`, `danlu.generative.likelihood_discrete`.
"""

from danlu.generative.likelihood import Likelihood
from danlu.generative.likelihood_continuous import ContinuousBernoulliLikelihood, GaussianLikelihood
from danlu.generative.likelihood_discrete import BernoulliLikelihood, LogisticLikelihood, LogisticMixtureLikelihood

__all__ = ["make_likelihood"]

NAMES = "bernoulli, continuous_bernoulli, gaussian, gaussian:global, gaussian:pixel, gaussian:WIDTH, " \
    "discretized_logistic, logistic_mixture"  # fmt: skip


def make_likelihood(name: str, bits: int = 8, components: int = 5, validate: bool = True) -> Likelihood:
    """The likelihood of that name.

    Args:
        name: one of the table.
        bits: of the levels of discretized_logistic and logistic_mixture.
        components: of logistic_mixture.
        validate: whether log_prob looks at the data and raises for what does not belong.

    Returns:
        A module; "gaussian:global" has a parameter to train, "gaussian" a running average.

    Raises:
        ValueError: an unknown name, or bits or components out of range.

    >>> make_likelihood("gaussian:pixel").param_shape((3, 8, 8))
    (6, 8, 8)
    """
    kind, _, scale = name.partition(":")
    if kind == "gaussian":
        try:
            return GaussianLikelihood(_number(scale or "optimal"), validate)
        except ValueError as error:
            raise ValueError(f"no likelihood {name!r}: {error}") from None
    if name == "bernoulli":
        return BernoulliLikelihood(validate)
    if name == "continuous_bernoulli":
        return ContinuousBernoulliLikelihood(validate)
    if name == "discretized_logistic":
        return LogisticLikelihood(bits, validate)
    if name == "logistic_mixture":
        return LogisticMixtureLikelihood(components, bits, validate=validate)
    raise ValueError(f"no likelihood {name!r}; there are {NAMES}")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
