r"""AAE: an autoencoder whose codes are made to look like the prior by a critic of codes.

    encoder, decoder   E_A[-log D(z)] + weight E |x - G(z)|^2,   z = E(x)                                    (1)
    critic             E_prior[-log D(z)] + E_A[-log(1 - D(z))]                                              (2)

D = sigmoid(score) says "from the prior". As a case of the joint KL (`danlu.generative.joint_kl`): the rate
I(x; z) + KL(A(z) || prior) loses its mutual information, and what is left is judged by the critic. With game
"kl_generator" and the best critic the first term of (1) is exactly KL(A(z) || prior), in nats, and with weight
1 / (2 sigma^2) the second is the distortion of a Gaussian decoder up to its constant. "non_saturating" is the post's.
No density comes with it: the codes of a deterministic encoder have none.

Source: Makhzani et al., 2015, arXiv:1511.05644; kexue.fm/archives/5716.
Shapes: N examples, codes (N, K), scores (N,) or (N, 1).
"""

import torch
from torch import Tensor, nn

from danlu.generative.codes import draw_code
from danlu.generative.evaluation_mode import evaluation_mode
from danlu.losses.gan import GanGame, gan_critic_loss, gan_generator_loss
from danlu.math.precision import wide

__all__ = ["AAE", "aae_loss"]


def aae_loss(
    code_scores: Tensor,
    x: Tensor,
    reconstruction: Tensor,
    weight: float = 1.0,
    game: str | GanGame = "non_saturating",
) -> Tensor:
    """What encoder and decoder minimise, eq. (1); the critic's side is `gan_critic_loss(prior_scores, code_scores)`.

    Args:
        code_scores: the critic's scores of the encoder's codes with their graph, one a code.
        x: (N, ...) the examples.
        reconstruction: the shape of x.
        weight: >= 0, of the squared error, summed over an example.
        game: of the critic.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: shapes that differ, a negative weight, or an unknown game.

    >>> aae_loss(torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2), weight=0.5)  # log 2 and half of 2
    tensor(1.6931)
    """
    if x.shape != reconstruction.shape or not weight >= 0:
        raise ValueError(
            f"aae_loss needs a reconstruction of the shape of x and weight >= 0; got {tuple(reconstruction.shape)} for "
            f"{tuple(x.shape)} and {weight}"
        )
    error = (wide(x) - wide(reconstruction)).square().flatten(1).sum(1).mean()
    return gan_generator_loss(code_scores, game) + weight * error  # eq. (1)


class AAE(nn.Module):
    """The three networks and their losses: `critic_loss` for one optimizer, `loss` for the other.

    Args:
        encoder: from x to codes (N, K), or to (mean, std) of a Gaussian.
        decoder: from codes to the shape of x.
        critic: from codes to scores, high for the prior's.
        code_dim: K.
        weight: of the squared error.
        game: of the critic.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        critic: nn.Module,
        code_dim: int,
        weight: float = 1.0,
        game: str | GanGame = "non_saturating",
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.critic = encoder, decoder, critic
        self.code_dim, self.weight, self.game = code_dim, weight, game

    def critic_loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Eq. (2) on a batch, with as many draws of the prior; the encoder gets no gradient.

        Args:
            x: (N, ...).
            generator: source of the draws.

        Returns:
            Scalar.
        """
        with torch.no_grad():
            code = draw_code(self.encoder(x), generator)
        prior = torch.randn(code.shape, generator=generator, dtype=code.dtype, device=code.device)
        return gan_critic_loss(self.critic(prior), self.critic(code), self.game)  # eq. (2)

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Eq. (1) on a batch; step only encoder and decoder on it (the critic's .grad is filled too).

        Args:
            x: (N, ...).
            generator: source of the draws of a stochastic encoder.

        Returns:
            Scalar.
        """
        code = draw_code(self.encoder(x), generator)
        return aae_loss(self.critic(code), x, self.decoder(code), self.weight, self.game)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Decoded draws of the prior.

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
            decoded: Tensor = self.decoder(temperature * z)
            return decoded

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through encoder (its mean) and decoder, without a graph.

        Args:
            x: (N, ...).

        Returns:
            The shape of x.
        """
        with evaluation_mode(self):
            code = self.encoder(x)
            decoded: Tensor = self.decoder(code[0] if isinstance(code, tuple) else code)
            return decoded
