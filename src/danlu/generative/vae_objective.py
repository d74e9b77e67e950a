r"""Training objectives of a latent-variable model from log p(x | z): ELBO, IWAE, and encoder gradients with less noise.

    L = E[-log p(x | z)] + beta KL(encoder || prior)                                                          (1)
    log w_i = log p(x | z_i) + beta [ log N(z_i; 0, I) - log N(z_i; mean, std) ]                              (2)
    L_iwae = -log (1/M) sum_i w_i                                                                             (3)

(1) with beta = 1 is an upper bound of -log p(x), and so is (3), a tighter one (`danlu.math.importance`). All are summed
over data and latent dimensions and averaged over the batch: a mean over pixels beside a sum over latents multiplies
beta by the number of pixels, and the latent is never used. The two terms of (1) fight each other; report both.

Encoder gradients. "plain" differentiates (1) with its KL in closed form, or (3) as it stands. "stl" takes the KL of
(1) from the samples of (2) and leaves out the density's dependence on its own parameters: that part has mean 0, and
without it the gradient has no noise at all where encoder and posterior agree. With (3) the same omission is biased for
M > 1; what is right there is "dreg", and with M = 1 the two are one.

Source: Kingma and Welling, 2013, arXiv:1312.6114 (1); Burda, Grosse and Salakhutdinov, 2015, arXiv:1509.00519 (3);
    Roeder, Wu and Duvenaud, 2017, arXiv:1703.09194 (stl); Tucker et al., 2018, arXiv:1810.04152 (dreg);
    kexue.fm/archives/5343; kexue.fm/archives/8791.
Shapes: N items, M samples of the latent, K latent dimensions.
"""

import math

from torch import Tensor

from danlu.generative.latent import normal_log_prob, standard_normal_kl
from danlu.math import dreg_hook, log_mean_exp
from danlu.math.precision import wide

__all__ = ["latent_log_weights", "variational_loss"]


def latent_log_weights(log_likelihood: Tensor, z: Tensor, mean: Tensor, std: Tensor, beta: float = 1.0) -> Tensor:
    """Log-weights of samples of an encoder against a standard normal prior, eq. (2).

    Args:
        log_likelihood: (M, N) log p(x | z), nats.
        z: (M, N, K) samples.
        mean: (N, K) of the encoder.
        std: (N, K) of the encoder, > 0.
        beta: weight of the prior and the encoder; 1 for weights that mean something.

    Returns:
        (M, N) nats, float32 or better.

    Raises:
        ValueError: shapes that do not fit.

    >>> import torch
    >>> zero = torch.zeros(1, 1, 1)
    >>> latent_log_weights(torch.tensor([[-3.0]]), zero, zero[0], zero[0] + 1)  # encoder = prior
    tensor([[-3.]])
    """
    fits = z.ndim == 3 and log_likelihood.shape == z.shape[:2] and mean.shape == std.shape == z.shape[1:]
    if not fits:
        raise ValueError(
            "latent_log_weights needs log_likelihood (M, N), z (M, N, K), mean and std (N, K); got "
            f"{tuple(log_likelihood.shape)}, {tuple(z.shape)}, {tuple(mean.shape)} and {tuple(std.shape)}"
        )
    return wide(log_likelihood) + beta * (normal_log_prob(z) - normal_log_prob(z, wide(mean), wide(std)))  # eq. (2)


def variational_loss(
    log_likelihood: Tensor,
    z: Tensor,
    mean: Tensor,
    std: Tensor,
    objective: str = "elbo",
    gradient: str = "plain",
    beta: float = 1.0,
) -> Tensor:
    """The loss of a batch, eq. (1) or (3).

    Args:
        log_likelihood: (M, N) log p(x | z), nats, with the decoder's graph.
        z: (M, N, K) samples mean + std * noise, with the encoder's graph.
        mean: (N, K) of the encoder.
        std: (N, K) of the encoder, > 0.
        objective: "elbo" (M samples are averaged) or "iwae".
        gradient: of the encoder: "plain"; "stl" for the elbo; "dreg" for iwae.
        beta: weight of the KL term, >= 0; only 1 gives a bound, and "dreg" is right for 1 alone. For one that rises
            over 1,000 steps: danlu.optim.piecewise_linear({1000: 1})(step).

    Returns:
        Scalar, mean over the batch, nats, float32 or better.

    Raises:
        ValueError: an unknown objective or gradient, a pair of them or a beta that does not fit, shapes that do not.

    >>> import torch
    >>> mean = torch.tensor([[2.0]])
    >>> variational_loss(torch.tensor([[-3.0]]), torch.zeros(1, 1, 1), mean, torch.ones(1, 1))  # 3 + KL of 2
    tensor(5.)
    """
    if (objective, gradient) not in (("elbo", "plain"), ("elbo", "stl"), ("iwae", "plain"), ("iwae", "dreg")):
        raise ValueError(
            "objective and gradient must be 'elbo' with 'plain' or 'stl', or 'iwae' with 'plain' or 'dreg'; got "
            f"{objective!r} with {gradient!r}"
        )
    if not 0 <= beta < math.inf or (gradient == "dreg" and beta != 1):
        raise ValueError(
            f"beta must be >= 0 and finite, and 1 for 'dreg', got {beta} for {gradient!r}; warm up with "
            "gradient='plain'"
        )
    fixed = gradient != "plain"  # the encoder is reached through z alone
    log_w = latent_log_weights(
        log_likelihood, z, mean.detach() if fixed else mean, std.detach() if fixed else std, beta
    )  # (M, N)
    if objective == "iwae":
        if gradient == "dreg" and z.requires_grad:
            dreg_hook(z, log_w, dim=0)
        return -log_mean_exp(log_w, dim=0).mean()  # eq. (3)
    if gradient == "stl":
        return -log_w.mean()
    return standard_normal_kl(mean, std).sum(-1).mean() * beta - wide(log_likelihood).mean()  # eq. (1)
