r"""One objective behind VAE, EM, AAE, ALI and GAN: a Kullback-Leibler divergence between two joint distributions.

    A(x, z) = data(x) e(z | x)        the encoder's joint
    B(x, z) = prior(z) d(x | z)       the decoder's joint
    KL(A || B) = KL(data || B(x)) + E_data KL(e(z | x) || B(z | x))  >=  KL(data || B(x))                    (1)
    KL(A || B) + H(data) = E_A[-log d(x | z)] + E_A[log e(z | x) - log prior(z)] = distortion + rate          (2)
    F(x) = sum_z e(z | x) [log e(z | x) - log prior(z) d(x | z)],   E_data F = KL(A || B) + H(data)            (3)
    rate = I_A(x; z) + KL(A(z) || prior)                                                                     (4)

The right side of (1) cannot be computed, the left one can, up to the entropy of the data, which no model changes. The
methods differ in how they go down on it:

    VAE   gradients of (2) in encoder and decoder                                    `VAE`, `joint_kl`
    EM    e unrestricted: the best e for this d, the best d for this e, in turns      `gaussian_mixture_fit`, (3)
    AAE   (2) with I_A dropped from (4) and the rest of the rate judged by a critic   `AAE`
    ALI   log A / B as a whole judged by a critic of pairs                            `ALI`
    GAN   no code; the label "real or made" is what is latent                         `adversarial_terms`

VAE and EM minimise KL(A || B); the adversarial ones, in the post, the other direction.

Source: Su, 2018, arXiv:1807.05936; kexue.fm/archives/5716, where p is the data's side and q the model's. (4): Hoffman
    and Johnson, 2016, ELBO surgery.
Shapes: N examples, M samples of the code in front, K values of a discrete code.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["JointKL", "free_energy", "joint_kl"]


class JointKL(NamedTuple):
    """KL(A || B) + H(data) and its two parts, nats; all have their graph.

    loss: scalar, the mean over everything. distortion, rate: (...) of each sample, eq. (2).
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor


def joint_kl(log_encoder: Tensor, log_prior: Tensor, log_decoder: Tensor) -> JointKL:
    """Eq. (2) from log-densities at codes that the encoder drew; minus the evidence bound.

    Args:
        log_encoder: (...) log e(z | x), summed over the code's dimensions, any float dtype; (N,) or (M, N).
        log_prior: the same shape, log prior(z).
        log_decoder: the same shape, log d(x | z), summed over the data's dimensions.

    Returns:
        A JointKL, float32 or better.

    Raises:
        ValueError: unlike shapes, or nothing.

    >>> joint_kl(torch.tensor([0.0]), torch.tensor([-2.0]), torch.tensor([-3.0])).loss  # 3 + 2
    tensor(5.)
    """
    if not log_encoder.shape == log_prior.shape == log_decoder.shape or not log_encoder.numel():
        raise ValueError(
            "joint_kl needs log_encoder, log_prior and log_decoder of one shape, one number for each example (and "
            f"sample); got {tuple(log_encoder.shape)}, {tuple(log_prior.shape)} and {tuple(log_decoder.shape)}"
        )
    distortion, rate = -wide(log_decoder), wide(log_encoder) - wide(log_prior)
    return JointKL((distortion + rate).mean(), distortion, rate)  # eq. (2)


def free_energy(log_joint: Tensor, log_encoder: Tensor) -> Tensor:
    """F of eq. (3), the sum over a discrete code; never below -log B(x), and equal to it for the posterior.

    Args:
        log_joint: (N, K) log prior(z) d(x | z), any float dtype; -inf allowed.
        log_encoder: (N, K) log e(z | x), normalised over K; -inf where e is 0.

    Returns:
        (N,) nats, float32 or better; inf where e puts weight on what the model excludes.

    Raises:
        ValueError: shapes that are not (N, K) or differ.

    >>> log_joint = torch.tensor([[0.25, 0.25]]).log()
    >>> free_energy(log_joint, torch.tensor([[0.5, 0.5]]).log())  # the posterior: -log of 1/4 + 1/4
    tensor([0.6931])
    """
    if log_joint.ndim != 2 or log_joint.shape != log_encoder.shape:
        raise ValueError(
            f"free_energy needs log_joint and log_encoder (N, K); got {tuple(log_joint.shape)} and "
            f"{tuple(log_encoder.shape)}; for samples of a continuous code use joint_kl"
        )
    log_joint, log_encoder = wide(log_joint), wide(log_encoder)
    absent = log_encoder == -torch.inf
    gap = log_encoder.masked_fill(absent, 0.0) - log_joint.masked_fill(absent, 0.0)
    return (log_encoder.exp() * gap).sum(1)  # eq. (3), 0 log 0 = 0
