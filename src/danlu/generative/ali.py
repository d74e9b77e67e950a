r"""ALI (BiGAN): encoder and decoder trained against a critic of pairs (x, z); three versions of their loss.

    critic           E_A[-log D(x, z)] + E_B[-log(1 - D(x, z))]                                              (1)
    minimax          E_A[log D] + E_B[log(1 - D)]                                                            (2)
    non_saturating   -E_A[log(1 - D)] - E_B[log D]                                                           (3)
    kl               -E_A[log D] - E_B[log D]                                                                (4)

A: x from the data, z = E(x). B: z from the prior, x = G(z). D = sigmoid(score) says "from A". In (2) and (3) each side
fools the critic. (4) is what the post derives from the joint KL: the encoder is asked to agree with the critic. It is
what is left of eq. (3) of `danlu.generative.joint_table` when the divergence from the last round's decoder and the term
E_B[log A_old / A] are dropped, so it stands on small steps; expect it to wander when the critic is far from its best.

As a case of the joint KL: the best score is log A(x, z) / B(x, z), its mean over A is KL(A || B), and the only point
where the critic has nothing left to tell is A = B, where E(x) draws from the decoder's posterior.

Source: Dumoulin et al., 2016, arXiv:1606.00704; Donahue, Krahenbuhl and Darrell, 2016, arXiv:1605.09782;
    kexue.fm/archives/5716 (4).
Shapes: N pairs of each side; scores (N,) or (N, 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.generative.codes import draw_code
from danlu.generative.evaluation_mode import evaluation_mode
from danlu.losses.gan import gan_critic_loss
from danlu.math.precision import wide

__all__ = ["ALI", "ali_loss"]


def ali_loss(encoder_scores: Tensor, decoder_scores: Tensor, kind: str = "non_saturating") -> Tensor:
    """What encoder and decoder minimise; the critic's side is `gan_critic_loss(encoder_scores, decoder_scores)`.

    Args:
        encoder_scores: scores of pairs (x, E(x)) with their graph, one a pair.
        decoder_scores: scores of pairs (G(z), z).
        kind: "non_saturating", "minimax" or "kl".

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: an unknown kind, or no pairs.

    >>> s = torch.zeros(2)
    >>> ali_loss(s, s), ali_loss(s, s, "minimax"), ali_loss(s + 9, s + 9, "kl")
    (tensor(1.3863), tensor(-1.3863), tensor(0.0002))
    """
    if not encoder_scores.numel() or not decoder_scores.numel():
        raise ValueError("ali_loss needs at least one pair of each side, got "
                         f"{encoder_scores.numel()} and {decoder_scores.numel()}")  # fmt: skip
    up, down = wide(encoder_scores), wide(decoder_scores)
    if kind == "non_saturating":
        return -F.logsigmoid(-up).mean() - F.logsigmoid(down).mean()  # eq. (3)
    if kind == "minimax":
        return F.logsigmoid(up).mean() + F.logsigmoid(-down).mean()  # eq. (2)
    if kind == "kl":
        return -F.logsigmoid(up).mean() - F.logsigmoid(down).mean()  # eq. (4)
    raise ValueError(f"kind must be 'non_saturating', 'minimax' or 'kl', got {kind!r}")


class ALI(nn.Module):
    """The three networks and their losses: `critic_loss` for one optimizer, `loss` for the other.

    Args:
        encoder: from x to codes (N, K), or to (mean, std) of a Gaussian.
        decoder: from codes to the shape of x, or to (mean, std) of a Gaussian.
        critic: from (x, z) to scores, high for the encoder's pairs.
        code_dim: K.
        kind: of `ali_loss`.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, critic: nn.Module, code_dim: int, kind: str = "non_saturating"
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.critic = encoder, decoder, critic
        self.code_dim, self.kind = code_dim, kind

    def scores(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The critic's scores of pairs of both sides.

        Args:
            x: (N, ...) data.
            generator: source of the codes and of stochastic networks.

        Returns:
            Scores of (x, E(x)) and of (G(z), z), z from the prior.
        """
        code = draw_code(self.encoder(x), generator)
        z = torch.randn(len(x), self.code_dim, generator=generator, dtype=code.dtype, device=code.device)
        made = draw_code(self.decoder(z), generator)
        return self.critic(x, code), self.critic(made, z)

    def critic_loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Eq. (1) on a batch; step only the critic on it.

        Args:
            x: (N, ...).
            generator: source of the codes.

        Returns:
            Scalar; encoder and decoder get no gradient.
        """
        with torch.no_grad():
            code = draw_code(self.encoder(x), generator)
            z = torch.randn(len(x), self.code_dim, generator=generator, dtype=code.dtype, device=code.device)
            made = draw_code(self.decoder(z), generator)
        return gan_critic_loss(self.critic(x, code), self.critic(made, z), "non_saturating")  # eq. (1)

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Eq. (2), (3) or (4) on a batch; step only encoder and decoder on it (the critic's .grad is filled too).

        Args:
            x: (N, ...).
            generator: source of the codes.

        Returns:
            Scalar.
        """
        return ali_loss(*self.scores(x, generator), self.kind)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Decoded draws of the prior; of a stochastic decoder the mean.

        Args:
            n: draws.
            generator: source of the draws.
            temperature: factor of the prior's deviation, >= 0.

        Returns:
            (n, ...) without a graph.
        """
        like = next(self.decoder.parameters())
        with evaluation_mode(self):
            z = torch.randn(n, self.code_dim, generator=generator, dtype=like.dtype, device=like.device)
            return _mean(self.decoder(temperature * z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through encoder and decoder, their means, without a graph.

        Args:
            x: (N, ...).

        Returns:
            The shape of x.
        """
        with evaluation_mode(self):
            return _mean(self.decoder(_mean(self.encoder(x))))


def _mean(given: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return given if isinstance(given, Tensor) else given[0]
