r"""EM for mixtures of Gaussians: the joint KL minimised exactly, in the encoder and in the decoder by turns.

    E   e(k | x) = w_k N(x; m_k, S_k) / sum_j w_j N(x; m_j, S_j)          the model's own posterior             (1)
    M   n_k = sum_i e(k | x_i),   w_k = n_k / N,   m_k = sum_i e(k | x_i) x_i / n_k                            (2)
        S_k = sum_i e(k | x_i) (x_i - m_k)(x_i - m_k)^T / n_k + floor I                                       (3)
    F = mean_i sum_k e(k | x_i) [log e(k | x_i) - log w_k N(x_i; m_k, S_k)]                                   (4)

Each half step is the exact minimum of (4) in its own block, so F never rises, and after E it is the mean of -log q(x):
that is the whole proof that the likelihood never falls. A floor > 0 keeps components from shrinking onto single
points, whose likelihood is infinite; it is no minimum of (4), and F may rise by its order near the end. A component
that no point belongs to keeps its place with weight 0. Computed in float64 where the device has it.

Source: Dempster, Laird and Rubin, 1977, doi:10.1111/j.2517-6161.1977.tb01600.x; kexue.fm/archives/5716.
Shapes: N points of D dimensions, K components.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from danlu.generative.joint_kl import free_energy

__all__ = ["EMResult", "GaussianMixture", "em_step", "gaussian_mixture_fit", "mixture_log_joint"]


class EMResult(NamedTuple):
    """A fitted mixture, F of eq. (4) after every half step (E, M, E, M, ...), and whether it stood still."""

    model: "GaussianMixture"
    history: list[float]
    converged: bool


class GaussianMixture(nn.Module):
    """A mixture of K Gaussians with full covariances; weights, means and covariances are buffers.

    Args:
        weights: (K,) >= 0, sum 1.
        means: (K, D).
        covariances: (K, D, D), positive definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__()
        if means.ndim != 2 or weights.shape != means.shape[:1] or covariances.shape != (*means.shape, means.shape[1]):
            raise ValueError(
                "GaussianMixture needs weights (K,), means (K, D) and covariances (K, D, D); got "
                f"{tuple(weights.shape)}, {tuple(means.shape)} and {tuple(covariances.shape)}"
            )
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("covariances", covariances)

    def log_joint(self, x: Tensor) -> Tensor:
        """log w_k N(x; m_k, S_k).

        Args:
            x: (N, D).

        Returns:
            (N, K) nats.
        """
        return mixture_log_joint(x, self.weights, self.means, self.covariances)

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x).

        Args:
            x: (N, D).

        Returns:
            (N,) nats.
        """
        return self.log_joint(x).logsumexp(1)

    def encode(self, x: Tensor) -> Tensor:
        """The posterior of the components, eq. (1).

        Args:
            x: (N, D).

        Returns:
            (N, K).
        """
        return self.log_joint(x).softmax(1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The posterior mean of the components' means: all that the code k remembers of x.

        Args:
            x: (N, D).

        Returns:
            (N, D).
        """
        return self.encode(x).to(self.means) @ self.means

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draws of the mixture.

        Args:
            n: draws.
            generator: source of the draws, on the device of the mixture.
            temperature: factor of all deviations, >= 0.

        Returns:
            (n, D).
        """
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(
            n, self.means.shape[1], generator=generator, dtype=self.means.dtype, device=self.means.device
        )
        factor = torch.linalg.cholesky(self.covariances)[component]
        return self.means[component] + temperature * (factor @ noise[..., None])[..., 0]


def mixture_log_joint(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """log w_k N(x; m_k, S_k): prior and decoder of the mixture.

    Args:
        x: (N, D), float.
        weights: (K,).
        means: (K, D).
        covariances: (K, D, D), positive definite.

    Returns:
        (N, K) nats in the parameters' dtype; -inf for a weight of 0.

    Raises:
        ValueError: x is not (N, D), or a covariance is not positive definite.

    >>> one = torch.ones(1)
    >>> mixture_log_joint(torch.zeros(1, 1), one, torch.zeros(1, 1), torch.ones(1, 1, 1))  # -log(2 pi) / 2
    tensor([[-0.9189]])
    """
    if x.ndim != 2 or x.shape[1] != means.shape[1]:
        raise ValueError(f"this mixture takes x (N, {means.shape[1]}), got {tuple(x.shape)}; flatten images first")
    factor, info = torch.linalg.cholesky_ex(covariances)  # (K, D, D)
    if bool(info.any()):
        bad = int(info.nonzero()[0])
        raise ValueError(
            f"covariance {bad} of {len(info)} is not positive definite: its component has shrunk onto fewer points "
            "than dimensions; raise floor or take fewer components"
        )
    gap = x.to(means.dtype)[None] - means[:, None]  # (K, N, D)
    scaled = torch.linalg.solve_triangular(factor, gap.mT, upper=False)  # (K, D, N)
    log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)  # (K,)
    constant = x.shape[1] * math.log(2 * math.pi) / 2
    return (weights.log() - log_det - constant)[None] - scaled.square().sum(1).T / 2


def em_step(
    x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor, floor: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One E and one M step, eqs. (1) to (3).

    Args:
        x: (N, D) N >= 1 points.
        weights: (K,).
        means: (K, D).
        covariances: (K, D, D).
        floor: >= 0, added to the variances.

    Returns:
        (N, K) the encoder e, and the new weights, means and covariances.

    Raises:
        ValueError: no points, a negative floor, or a covariance that is not positive definite.

    >>> x, one = torch.tensor([[1.0], [3.0]]), torch.ones(1)
    >>> _, weights, means, covariances = em_step(x, one, torch.zeros(1, 1), torch.ones(1, 1, 1))
    >>> means, covariances  # one component: mean and variance of the data at once
    (tensor([[2.]]), tensor([[[1.]]]))
    """
    if not len(x) or not floor >= 0:
        raise ValueError(f"em_step needs at least one point and floor >= 0, got {len(x)} and {floor}")
    encoder = mixture_log_joint(x, weights, means, covariances).softmax(1)  # eq. (1)
    return encoder, *_m_step(x, encoder, means, covariances, floor)


def _m_step(
    x: Tensor, encoder: Tensor, means: Tensor, covariances: Tensor, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Eqs. (2) and (3)."""
    x = x.to(means.dtype)
    count = encoder.sum(0)  # n_k
    empty = count <= torch.finfo(means.dtype).tiny
    safe = torch.where(empty, 1.0, count)
    centre = torch.where(empty[:, None], means, (encoder.T @ x) / safe[:, None])  # eq. (2)
    gap = x[None] - centre[:, None]  # (K, N, D)
    spread = (gap * encoder.T[..., None]).mT @ gap / safe[:, None, None]
    spread = spread + floor * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)  # eq. (3)
    return count / len(x), centre, torch.where(empty[:, None, None], covariances, spread)


@torch.no_grad()
def gaussian_mixture_fit(
    x: Tensor,
    num_components: int,
    num_steps: int = 100,
    floor: float = 1e-6,
    tolerance: float = 1e-7,
    start: GaussianMixture | None = None,
    generator: torch.Generator | None = None,
) -> EMResult:
    """EM from a start until F stands still.

    Args:
        x: (N, D) points, float.
        num_components: K, at most N.
        num_steps: of E and M, >= 1.
        floor: >= 0, in squared units of x.
        tolerance: nats; stop when a whole step lowers F by less. 0 for all steps.
        start: a mixture to start from; None for K of the points with the covariance of all.
        generator: draws the start.

    Returns:
        An EMResult; the model in float64 where the device has it.

    Raises:
        ValueError: x is not (N, D) and finite, K is not in 1 to N, or a covariance is not positive definite.

    >>> result = gaussian_mixture_fit(torch.tensor([[1.0], [3.0]]), 1, floor=0.0)
    >>> result.model.means.item(), result.converged
    (2.0, True)
    """
    if x.ndim != 2 or not x.is_floating_point() or not bool(x.isfinite().all()):
        raise ValueError(f"gaussian_mixture_fit needs finite points (N, D), got {x.dtype} {tuple(x.shape)}")
    if not 1 <= num_components <= len(x) or num_steps < 1:
        raise ValueError(
            f"num_components must be from 1 to the number of points and num_steps >= 1; got {num_components} for "
            f"{len(x)} points and {num_steps}"
        )
    data = x if x.device.type == "mps" else x.double()
    if start is None:
        device = data.device if generator is None else generator.device
        chosen = torch.randperm(len(data), generator=generator, device=device)[:num_components].to(data.device)
        centred = data - data.mean(0)
        whole = centred.T @ centred / len(data) + max(floor, 1e-12) * torch.eye(data.shape[1]).to(data)
        weights = data.new_full((num_components,), 1 / num_components)
        start = GaussianMixture(weights, data[chosen], whole.repeat(num_components, 1, 1))
    weights, means, covariances = (t.to(data) for t in (start.weights, start.means, start.covariances))
    history: list[float] = []
    converged = False
    log_joint = mixture_log_joint(data, weights, means, covariances)
    for _ in range(num_steps):
        log_encoder = log_joint.log_softmax(1)  # eq. (1)
        history.append(free_energy(log_joint, log_encoder).mean().item())
        weights, means, covariances = _m_step(data, log_encoder.exp(), means, covariances, floor)
        log_joint = mixture_log_joint(data, weights, means, covariances)
        history.append(free_energy(log_joint, log_encoder).mean().item())
        if (
            tolerance > 0 and len(history) > 2 and history[-4] - history[-2] < tolerance
        ):  # after this E step and after the last one
            converged = True
            break
    return EMResult(GaussianMixture(weights, means, covariances), history, converged)
