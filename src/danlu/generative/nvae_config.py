"""What an NVAE is built from, as a file of settings holds it; a small configuration and those of the paper.

    latent numbers of an image = sum over scales  groups * latent_channels * sides of the scale               (1)

Groups are counted from the coarsest scale. The sides of scale s of S are those of the image, padded to a multiple of
2^(pre_blocks + S - 1), divided by 2^(pre_blocks + S - 1 - s); its channels are multiplied by as much.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898; "small" is an own definition.
Shapes: none.
"""

from dataclasses import dataclass

__all__ = ["NVAE_CONFIGS", "NVAEConfig", "adaptive_groups"]


@dataclass(frozen=True)
class NVAEConfig:
    """What rebuilds an NVAE; plain numbers and words, as JSON holds them.

    shape: (C, H, W) of one image. groups: of latents at each scale, coarse to fine. channels: of the stem.
    latent_channels: of every group. pre_blocks, pre_cells: halvings before the finest scale, and cells in each; as many
    doublings behind it. encoder_cells, decoder_cells: for each group. expansion, post_expansion: E of the decoder's
    cells and of those behind the latents. gate: squeeze and excitation. residual: posteriors relative to the prior;
    False for absolute ones. likelihood, bits, components: of `make_likelihood`.
    """

    shape: tuple[int, ...]
    groups: tuple[int, ...] = (2, 3)
    channels: int = 16
    latent_channels: int = 8
    pre_blocks: int = 1
    pre_cells: int = 2
    encoder_cells: int = 1
    decoder_cells: int = 1
    expansion: int = 3
    post_expansion: int = 3
    gate: bool = True
    residual: bool = True
    likelihood: str = "bernoulli"
    bits: int = 8
    components: int = 10

    def __post_init__(self) -> None:
        """Lists of a JSON file become tuples; what cannot be built raises."""
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "groups", tuple(self.groups))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"an NVAE is of images (C, H, W), got shape {self.shape}; for vectors take VAE")
        if not self.groups or min(self.groups) < 1:
            raise ValueError(
                f"groups must hold a number >= 1 for every scale, coarse to fine, got {self.groups}; (1,) is a plain "
                "autoencoder"
            )
        counts: tuple[int, ...] = (self.latent_channels, self.pre_cells, self.encoder_cells, self.decoder_cells)
        counts += (self.expansion, self.post_expansion)
        if self.channels < 2 or self.pre_blocks < 0 or min(counts) < 1:
            raise ValueError(
                "an NVAE needs channels >= 2, pre_blocks >= 0 and one or more of latent_channels, pre_cells, "
                f"encoder_cells, decoder_cells, expansion and post_expansion; got {self.channels}, {self.pre_blocks} "
                f"and {', '.join(map(str, counts))}"
            )

    @property
    def padded(self) -> tuple[int, int]:
        """Sides that can be halved often enough."""
        unit = 2 ** (self.pre_blocks + len(self.groups) - 1)
        return -(-self.shape[1] // unit) * unit, -(-self.shape[2] // unit) * unit

    def width(self, scale: int) -> int:
        """Channels of a scale, counted from the coarsest."""
        return self.channels * 2 ** (self.pre_blocks + len(self.groups) - 1 - scale)

    def sides(self, scale: int) -> tuple[int, int]:
        """Sides of a scale, counted from the coarsest."""
        unit = 2 ** (self.pre_blocks + len(self.groups) - 1 - scale)
        return self.padded[0] // unit, self.padded[1] // unit

    @property
    def latent_size(self) -> int:
        """Numbers of all latents of one image, eq. (1)."""
        areas = [count * self.sides(s)[0] * self.sides(s)[1] for s, count in enumerate(self.groups)]
        return self.latent_channels * sum(areas)  # eq. (1)


def adaptive_groups(finest: int, scales: int, smallest: int = 1) -> tuple[int, ...]:
    """Groups of every scale: each has half of those of the next finer one.

    Args:
        finest: groups of the finest scale, >= 1.
        scales: how many.
        smallest: groups of any scale at least.

    Returns:
        Groups from coarse to fine, for `NVAEConfig`.

    Raises:
        ValueError: a number below 1.

    >>> adaptive_groups(16, 5, smallest=4)
    (4, 4, 4, 8, 16)
    """
    if min(finest, scales, smallest) < 1:
        raise ValueError(f"adaptive_groups needs numbers >= 1, got {finest}, {scales} and {smallest}")
    return tuple(max(finest // 2**i, smallest) for i in reversed(range(scales)))


NVAE_CONFIGS = {
    "small": NVAEConfig((1, 14, 14)),
    "mnist": NVAEConfig((1, 28, 28), adaptive_groups(10, 2), 32, 20, 2, 3, 2, 2, expansion=6),
    "cifar10": NVAEConfig((3, 32, 32), (30,), 128, 20, 1, 2, 2, 2, expansion=6, likelihood="logistic_mixture"),
}
