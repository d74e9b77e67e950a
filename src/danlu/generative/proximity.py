r"""The term that a GAN's generator loss leaves out: stay near the generator that the critic was trained on.

    L_G = E_z[-log D(G(z)) + weight |G(z) - G_old(z)|^2]                                                    (1)
    KL(N(a, s^2 I) || N(b, s^2 I)) = |a - b|^2 / (2 s^2)                                                     (2)

In the joint-KL view the generator's loss at the critic's optimum is E[-log D] + KL(q || q_old)
(`danlu.generative.joint_table`, eq. 3). The second term is bounded by the divergence of the joints with z, which for
narrow Gaussians about G(z) is (2): hence (1), G_old a frozen copy that sees the same z.

What the author's program hides: at G = G_old the gradient of the term is exactly 0. One generator step for each copy
leaves it without effect, bit for bit; it acts from the second step on. Take at least two steps for each refresh.

The weight is that of the mean over pixels (the program's: 5, images in [-1, 1]), "mean", or of the sum over an
example's, "sum", which is as many times larger as there are pixels. Networks with batch norm must see the same batch.

Source: kexue.fm/archives/5716; bojone/gan, folder vgan.
Shapes: N examples (N, ...).
"""

import copy
import warnings

import torch
from torch import Tensor, nn

from danlu.math.precision import wide

__all__ = ["ProximalGenerator", "proximity_penalty"]


def proximity_penalty(new: Tensor, old: Tensor, weight: float = 5.0, reduction: str = "mean") -> Tensor:
    """The weighted squared distance of eq. (1), averaged over the batch.

    Args:
        new: (N, ...) what the generator makes, with its graph.
        old: the same shape, what its copy makes of the same z; held fixed.
        weight: >= 0.
        reduction: over an example's elements, "mean" (the author's) or "sum" (that of (2), weight 1 / (2 s^2)).

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: unlike shapes, no examples, a negative weight or an unknown reduction.

    >>> new, old = torch.ones(2, 4), torch.zeros(2, 4)
    >>> proximity_penalty(new, old), proximity_penalty(new, old, weight=0.5, reduction="sum")
    (tensor(5.), tensor(2.))
    """
    if new.shape != old.shape or not new.numel():
        raise ValueError(f"proximity_penalty needs new and old of one shape, got {tuple(new.shape)} and "
                         f"{tuple(old.shape)}; both come from the same z")  # fmt: skip
    if not weight >= 0 or reduction not in ("mean", "sum"):
        raise ValueError(f"weight must be >= 0 and reduction 'mean' or 'sum', got {weight} and {reduction!r}")
    distance = (wide(new) - wide(old).detach()).square().flatten(1)
    return weight * (distance.mean() if reduction == "mean" else distance.sum(1).mean())  # eq. (1)


class ProximalGenerator(nn.Module):
    """Holds the frozen copy: `loss + near(z, fake)`, and `near.step()` after each step of the generator.

    Args:
        generator: the network that is trained; not a part of this module's state.
        weight: of the penalty.
        refresh_every: generator steps for each copy; with 1 the penalty does nothing.
        reduction: "mean" or "sum".
    """

    count: Tensor

    def __init__(
        self, generator: nn.Module, weight: float = 5.0, refresh_every: int = 2, reduction: str = "mean"
    ) -> None:
        super().__init__()
        if refresh_every < 1:
            raise ValueError(f"refresh_every must be >= 1 generator steps, got {refresh_every}")
        if refresh_every == 1:
            warnings.warn(
                "refresh_every=1: the penalty's gradient is exactly 0 where the copy was just taken, so it does "
                "nothing; take two generator steps or more for each copy",
                stacklevel=2,
            )
        proximity_penalty(torch.zeros(1, 1), torch.zeros(1, 1), weight, reduction)
        self.weight, self.refresh_every, self.reduction = weight, refresh_every, reduction
        self._followed = (generator,)  # in a tuple, so that it is not registered here
        self.old = copy.deepcopy(generator).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, z: Tensor, new: Tensor | None = None) -> Tensor:
        """The penalty of eq. (1) for codes z.

        Args:
            z: (N, ...) the codes of this step.
            new: what the generator makes of z, if it is computed already.

        Returns:
            Scalar.
        """
        with torch.no_grad():
            old = self.old(z)
        return proximity_penalty(self._followed[0](z) if new is None else new, old, self.weight, self.reduction)

    @torch.no_grad()
    def step(self) -> None:
        """Count a step of the generator, and take a new copy when it is time."""
        self.count += 1
        if int(self.count) % self.refresh_every == 0:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the generator as it is now, in place."""
        fresh = self._followed[0].state_dict()
        for name, value in self.old.state_dict().items():
            value.copy_(fresh[name])
