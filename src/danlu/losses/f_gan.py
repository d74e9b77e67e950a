r"""f-GAN: two losses for a critic and a generator from any f-divergence.

    critic                   L_T = -E_P[T(x)] + E_Q[f*(T(x))],     T = a(v),   v the critic's output          (1)
    generator, saturating    L_G = -E_Q[f*(T(x))]                                                            (2)
    generator, otherwise     L_G = -E_Q[T(x)]                                                                (3)
    v held back              sign(v) (c + log(1 + |v| - c))  for |v| > c                                     (4)

v estimates log(p / q), so the critic ends in a plain linear layer whatever f is, and larger is always more real: a(v)
is part of the loss (`danlu.math.f_table`, `danlu.math.f_convex`). -L_T is a lower bound of D_f(P || Q), and at the best
critic (2) has its gradient. (3) pushes harder where the critic is sure. With r = q / p it descends the divergence D
with D'(r) = -f'(1 / r), also least at q = p but another one: for "kl" it is KL(Q || P), for "reverse_kl" half of
int (q - p)^2 / p, for "gan" the loss -log sigmoid(v). Where the supports do not meet, no f helps: gradients
vanish or explode; `danlu.train` has penalties.

(4) leaves |v| <= c as it is, keeps a gradient beyond it, and makes e^v grow no faster than e^c |v|: float32 then does
not overflow for any f of the table. It is part of the critic, so that -L_T stays a bound.

Source: Nowozin, Cseke and Tomioka, 2016, arXiv:1606.00709; kexue.fm/archives/6016; what (3) descends and (4) are ours.
Shapes: any; v is one number a sample.
"""

import torch
from torch import Tensor, nn

from danlu.math.f_convex import Elementwise, FDivergence
from danlu.math.f_divergence import f_bound
from danlu.math.f_table import as_f_divergence
from danlu.math.precision import wide

__all__ = ["FGANLoss", "f_gan_critic_loss", "f_gan_generator_loss"]

MODES = ("non_saturating", "saturating")


def f_gan_critic_loss(
    real: Tensor, fake: Tensor, divergence: str | FDivergence | Elementwise = "js", limit: float | None = 30.0
) -> Tensor:
    """What the critic descends, eq. (1): minus a lower bound of the divergence.

    Args:
        real: the critic's outputs on real samples, any shape and float dtype.
        fake: its outputs on generated samples, detached from the generator; any shape.
        divergence: a name of danlu.math.F_DIVERGENCES, a record, or a convex function of u = p / q.
        limit: c of eq. (4), > 0; None takes v as it is.

    Returns:
        Scalar, float32 or, for float64, float64.

    Raises:
        ValueError: no samples, a limit that is not above 0, or a divergence that is none.

    >>> f_gan_critic_loss(torch.tensor([90.0]), torch.tensor([-90.0]), "js")  # told apart: D is log 2, its most
    tensor(-0.6931)
    """
    return -f_bound(_held(real, limit), _held(fake, limit), divergence)  # eq. (1)


def f_gan_generator_loss(
    fake: Tensor,
    divergence: str | FDivergence | Elementwise = "js",
    mode: str = "non_saturating",
    limit: float | None = 30.0,
) -> Tensor:
    """What the generator descends, eq. (3) or (2).

    Args:
        fake: the critic's outputs on generated samples, with the generator's graph; any shape and float dtype.
        divergence: as for the critic.
        mode: "non_saturating", eq. (3), or "saturating", eq. (2).
        limit: c of eq. (4), > 0; None takes v as it is.

    Returns:
        Scalar, float32 or, for float64, float64.

    Raises:
        ValueError: no samples, an unknown mode, a limit that is not above 0, or a divergence that is none.

    >>> f_gan_generator_loss(torch.tensor([0.0]), "gan")  # -log sigmoid(0)
    tensor(0.6931)
    """
    _check_mode(mode)
    if not fake.numel():
        raise ValueError(f"f_gan_generator_loss needs at least one fake sample; got {tuple(fake.shape)}")
    record = as_f_divergence(divergence)
    v = _held(fake, limit)
    return -(
        record.activation(v) if mode == "non_saturating" else record.activation_conjugate(v)
    ).mean()  # eq. (2), (3)


class FGANLoss(nn.Module):
    """`f_gan_critic_loss` as its call and `f_gan_generator_loss` as `.generator(fake)`, for one divergence."""

    def __init__(
        self,
        divergence: str | FDivergence | Elementwise = "js",
        mode: str = "non_saturating",
        limit: float | None = 30.0,
    ) -> None:
        super().__init__()
        _check_mode(mode)
        self.divergence = as_f_divergence(divergence)
        self.mode, self.limit = mode, limit

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        return f_gan_critic_loss(real, fake, self.divergence, self.limit)

    def generator(self, fake: Tensor) -> Tensor:
        return f_gan_generator_loss(fake, self.divergence, self.mode, self.limit)

    def extra_repr(self) -> str:
        return f"{self.divergence.name}: integral of {self.divergence.formula}, {self.mode}, limit={self.limit}"


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be 'non_saturating' (minimise -E[T]) or 'saturating' (-E[f*(T)]), got {mode!r}")


def _held(v: Tensor, limit: float | None) -> Tensor:
    """v in float32 or better, eq. (4)."""
    v = wide(v)
    if limit is None:
        return v
    if not limit > 0:
        raise ValueError(f"limit must be > 0, got {limit}; limit=None takes the critic's output as it is")
    beyond = torch.where(v.abs() > limit, v.abs() - limit, 0.0)
    return v.clamp(-limit, limit) + v.sign() * beyond.log1p()  # eq. (4)
