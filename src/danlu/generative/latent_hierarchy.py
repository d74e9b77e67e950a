r"""A hierarchy of latents for images: reading an image, drawing latents from coarse to fine, making an image of them.

    p(x) = integral of  prod_l prior_l(z_l; z_<l)  likelihood(x; decoder(z))                                  (1)
    posterior_l(z_l; z_<l, x) is prior_l moved by what the image changes: `danlu.generative.residual_normal`  (2)

The one walk from coarse to fine serves all: what differs is who chooses z. Images whose sides cannot be halved often
enough are padded; what the model says about the margin counts nowhere.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898.
Shapes: N images (C, H, W), L groups, K latent channels, h x w the sides of a group's scale.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.latent import draw_normal
from danlu.generative.likelihoods import make_likelihood
from danlu.generative.nvae_config import NVAEConfig
from danlu.generative.nvae_networks import BottomUp, TopDown
from danlu.generative.residual_normal import DiagonalNormal, residual_log_ratio

__all__ = ["GroupDraw", "LatentHierarchy"]


class GroupDraw(NamedTuple):
    """A latent (N, K, h, w) of the posterior, the noise it is made of, and both normals."""

    z: Tensor
    noise: Tensor
    posterior: DiagonalNormal
    prior: DiagonalNormal

    @property
    def log_ratio(self) -> Tensor:
        """(N,) log prior(z) - log posterior(z)."""
        return residual_log_ratio(self.noise, self.z, self.posterior, self.prior)


class LatentHierarchy(nn.Module):
    """What `NVAE` is made of, eqs. (1) and (2), without its losses and samples.

    read, descend, decode and prior_params compute in the mode that the model is in; infer is of evaluation mode.

    Args:
        config: what to build.

    >>> model = LatentHierarchy(NVAEConfig((1, 6, 6), groups=(1, 1), channels=2, latent_channels=2))
    >>> [tuple(z.shape) for z in model.infer(torch.zeros(5, 1, 6, 6))]
    [(5, 2, 2, 2), (5, 2, 4, 4)]
    """

    def __init__(self, config: NVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.likelihood = make_likelihood(config.likelihood, config.bits, config.components)
        self.encoder = BottomUp(config)
        self.decoder = TopDown(config, self.likelihood.param_shape(config.shape)[0])

    def read(self, x: Tensor) -> list[Tensor]:
        """What the encoder knows at each group's scale, coarse to fine.

        Args:
            x: (N, *shape).

        Returns:
            L tensors (N, channels, h, w).

        Raises:
            ValueError: x has another shape.
        """
        if x.shape[1:] != self.config.shape:
            raise ValueError(f"this NVAE takes x (N, {', '.join(map(str, self.config.shape))}), got {tuple(x.shape)}")
        top, left, height, width = self._margin()
        inputs = self.likelihood.inputs(F.pad(x, (left, width - left, top, height - top)))
        return self.encoder(inputs.to(self.decoder.start.dtype))

    def descend(
        self, taps: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[GroupDraw]]:
        """One draw of all latents from their posteriors, coarse to fine.

        Args:
            taps: of `read`.
            generator: source of the noise.

        Returns:
            Parameters of the likelihood (N, *param_shape), and what was drawn.
        """
        draws: list[GroupDraw] = []

        def choose(index: int, prior: DiagonalNormal, posterior: DiagonalNormal | None) -> Tensor:
            assert posterior is not None
            zero, one = torch.zeros_like(posterior.mean), torch.ones_like(posterior.std)
            noise = draw_normal(zero, one, generator=generator)[0]
            draws.append(GroupDraw(posterior.mean + posterior.std * noise, noise, posterior, prior))
            return draws[-1].z

        return self._cropped(self.decoder(len(taps[0]), taps, choose)), draws

    def infer(self, x: Tensor, groups: int | None = None) -> list[Tensor]:
        """The latents of images: means of the posteriors, each given the means before it.

        Args:
            x: (N, *shape).
            groups: how many, from the coarsest; the others have the means of their priors. None: all.

        Returns:
            L tensors (N, K, h, w).

        Raises:
            ValueError: groups outside of 0 .. L.
        """
        count = sum(self.config.groups)
        if groups is not None and not 0 <= groups <= count:
            raise ValueError(f"groups must lie between 0 and {count}, the number of this model, got {groups}")
        found: list[Tensor] = []

        def choose(index: int, prior: DiagonalNormal, posterior: DiagonalNormal | None) -> Tensor:
            found.append((prior if posterior is None else posterior).mean)
            return found[-1]

        with evaluation_mode(self):
            self.decoder(len(x), self.read(x)[:groups], choose)
        return found

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Parameters of the likelihood for given latents.

        Args:
            latents: L tensors (N, K, h, w), coarse to fine.

        Returns:
            (N, *param_shape).

        Raises:
            ValueError: too few or too many groups, or shapes that do not fit.
        """
        if len(latents) != sum(self.config.groups):
            raise ValueError(
                f"decode needs the latents of all {sum(self.config.groups)} groups, got {len(latents)}; "
                "prior_params(n, latents=...) draws those that are missing"
            )
        return self.prior_params(len(latents[0]), latents=latents)

    def prior_params(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        latents: Sequence[Tensor] = (),
    ) -> Tensor:
        """Parameters of the likelihood for latents of the prior.

        Args:
            n: how many.
            generator: source of the draws.
            temperature: factor of every group's std, >= 0.
            latents: those of the coarsest groups, (n, K, h, w) each, where they are given.

        Returns:
            (n, *param_shape).

        Raises:
            ValueError: a temperature out of range, more latents than groups, or shapes that do not fit.
        """
        if not 0 <= temperature < math.inf or len(latents) > sum(self.config.groups):
            raise ValueError(
                f"temperature must be finite and >= 0 and latents those of at most {sum(self.config.groups)} groups, "
                f"got {temperature} and {len(latents)}"
            )

        def choose(index: int, prior: DiagonalNormal, posterior: DiagonalNormal | None) -> Tensor:
            if index >= len(latents):
                return draw_normal(prior.mean, temperature * prior.std, generator=generator)[0]
            if latents[index].shape != prior.mean.shape:
                raise ValueError(
                    f"the latent of group {index} must be {tuple(prior.mean.shape)}, got {tuple(latents[index].shape)}"
                )
            return latents[index]

        return self._cropped(self.decoder(n, (), choose))

    def _margin(self) -> tuple[int, int, int, int]:
        """Rows above, columns to the left, rows and columns in all that pad an image."""
        (height, width), (_, h, w) = self.config.padded, self.config.shape
        return (height - h) // 2, (width - w) // 2, height - h, width - w

    def _cropped(self, params: Tensor) -> Tensor:
        top, left, _, _ = self._margin()
        return params[:, :, top : top + self.config.shape[1], left : left + self.config.shape[2]]
