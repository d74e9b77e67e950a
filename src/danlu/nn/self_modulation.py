r"""Self-modulation for a generator that exists already: every batch norm follows the latent; at first nothing changes.

    y = (gamma + G h) (x - mean) / sqrt(var + eps) + (beta + B h),   h = relu(U z + u),   G = B = 0 at the start  (1)

gamma and beta are the gain and shift that the batch norm had, so images stay those of the old generator until training
moves G and B; running statistics are kept.

Source: Chen, Lucic, Houlsby and Gelly, 2018, arXiv:1810.01365; kexue.fm/archives/6549 (the start).
Shapes: N latents z (N, K) or (N, K, 1, 1).
"""

from typing import Any

import torch
from torch import Tensor, nn

from danlu.nn.modulated_norm import ModulatedNorm
from danlu.nn.steering import _exchange, _follow, condition

__all__ = ["SelfModulated"]


class SelfModulated(nn.Module):
    """A generator whose BatchNorm2d follow its first argument, eq. (1); `generator` itself is changed.

    Args:
        generator: any module that takes z first and holds BatchNorm2d.
        latent_dim: K.
        hidden: width of h, one h for each norm; None: h = z.

    Raises:
        ValueError: no batch norm with gain and shift in it.

    >>> net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    >>> z = torch.ones(1, 2, 1, 1)
    >>> before = net(z)
    >>> torch.allclose(SelfModulated(net, latent_dim=2)(z), before)
    True
    """

    def __init__(self, generator: nn.Module, latent_dim: int, hidden: int | None = 32) -> None:
        super().__init__()
        found = {
            name: m
            for name, m in generator.named_modules()
            if isinstance(m, nn.BatchNorm2d) and (m.affine or not name)  # one without gain: a ModulatedNorm's, or meant
        }
        if not found or "" in found:
            raise ValueError(
                f"SelfModulated changes the BatchNorm2d with gain and shift inside a generator; "
                f"{type(generator).__name__} "
                + ("is one itself, wrap it in nn.Sequential" if "" in found else "has none")
            )
        _exchange(generator, {m: _following(m, latent_dim, hidden) for m in found.values()})
        self.generator, self.latent_dim = generator, latent_dim
        self.training = generator.training

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the generator gives for z.

        Args:
            z: (N, K) or (N, K, 1, 1), handed on as it is.
            *args: handed on.
            **kwargs: handed on.

        Returns:
            Whatever the generator returns.

        Raises:
            ValueError: z has not K numbers for each image.
        """
        if z.ndim < 2 or z.flatten(1).shape[1] != self.latent_dim:
            raise ValueError(
                f"this generator is modulated by latents of {self.latent_dim} numbers, got {tuple(z.shape)}"
            )
        with condition(z.flatten(1)):
            return self.generator(z, *args, **kwargs)


def _following(old: nn.BatchNorm2d, latent_dim: int, hidden: int | None) -> ModulatedNorm:
    """A norm that computes what `old` does, and has its condition from the block it runs in."""
    norm = ModulatedNorm(old.num_features, latent_dim, "batch", hidden, old.eps).to(old.weight)
    assert norm.to_gain is not None and norm.to_shift is not None
    with torch.no_grad():
        norm.to_gain.bias.copy_(old.weight)
        norm.to_shift.bias.copy_(old.bias)
    statistics = nn.BatchNorm2d(old.num_features, old.eps, old.momentum, False, old.track_running_stats).to(old.weight)
    statistics.load_state_dict({name: value for name, value in old.named_buffers()})
    norm.norm = statistics
    norm.register_forward_pre_hook(_follow, with_kwargs=True)
    return norm.train(old.training)
