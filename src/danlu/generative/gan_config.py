r"""What the image networks of a GAN are built from, as a file of settings holds it, and the sides of their stages.

    side of the next stage inwards = ceil(side / 2),  until the larger side is at most `smallest`          (1)

Source: own definition.
Shapes: images (C, H, W) of any sides.
"""

from dataclasses import dataclass

__all__ = ["CriticConfig", "GeneratorConfig", "StyleConfig", "stage_sides"]

LABELLED = ("self_mod", "class")
GENERATOR_NORMS = ("batch", "layer", "none", *LABELLED)
CRITIC_NORMS = ("spectral", "batch", "none")


@dataclass(frozen=True)
class GeneratorConfig:
    """What rebuilds an ImageGenerator; plain numbers and words, as JSON holds them.

    Args:
        shape: (C, H, W) of an image.
        latent_dim: K.
        network: "dcgan" or "resnet".
        channels: of the outermost stage for "dcgan", which doubles them inwards; of every stage for "resnet".
        norm: "batch", "layer", "none", "self_mod" (follows the latent) or "class" (follows the label).
        hidden: width of self-modulation's hidden layer.
        num_classes: labels are taken, for "self_mod" and "class"; None: none.
        residual_scale: factor a of the branch in x + a f(x), for "resnet"; the post's is 0.1.
    """

    shape: tuple[int, ...]
    latent_dim: int = 128
    network: str = "dcgan"
    channels: int = 64
    norm: str = "batch"
    hidden: int = 32
    num_classes: int | None = None
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        """Lists of a JSON file become tuples; what cannot be built raises."""
        object.__setattr__(self, "shape", tuple(self.shape))
        _check("GeneratorConfig", self.shape, latent_dim=self.latent_dim, channels=self.channels, hidden=self.hidden)
        _check_network(self.network, self.norm, GENERATOR_NORMS, self.num_classes)
        if self.norm == "class" and self.num_classes is None:
            raise ValueError("norm 'class' follows labels; give num_classes")
        if self.num_classes is not None and self.norm not in LABELLED:
            raise ValueError(
                f"labels reach a generator through norm 'self_mod' or 'class'; got num_classes={self.num_classes} and "
                f"norm {self.norm!r}"
            )


@dataclass(frozen=True)
class CriticConfig:
    """What rebuilds an ImageCritic; plain numbers and words, as JSON holds them.

    Args:
        shape: (C, H, W) of an image.
        network: "dcgan" or "resnet".
        channels: of the outermost stage for "dcgan", which doubles them inwards; of every stage for "resnet".
        norm: "spectral", "none", or "batch" for "dcgan".
        spectral_method: of `danlu.nn.spectral_norm`: "reshaped" is the paper's, "true" makes each layer 1-Lipschitz.
        num_classes: scores also say how well an image fits its label; None: no labels.
        residual_scale: factor a of the branch in x + a f(x), for "resnet".
    """

    shape: tuple[int, ...]
    network: str = "dcgan"
    channels: int = 64
    norm: str = "spectral"
    spectral_method: str = "reshaped"
    num_classes: int | None = None
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        """Lists of a JSON file become tuples; what cannot be built raises."""
        object.__setattr__(self, "shape", tuple(self.shape))
        _check("CriticConfig", self.shape, channels=self.channels)
        _check_network(self.network, self.norm, CRITIC_NORMS, self.num_classes)
        if self.network == "resnet" and self.norm == "batch":
            raise ValueError("the residual critic takes norm 'spectral' or 'none'; for batch norm take network 'dcgan'")


@dataclass(frozen=True)
class StyleConfig:
    """What rebuilds a StyleGenerator; plain numbers, as JSON holds them. The paper's sizes need a GPU.

    Args:
        shape: (C, H, W) of an image.
        latent_dim: K of z.
        style_dim: S of w; 512 in the paper, as K.
        channels: of the outermost stage, doubled inwards.
        max_channels: the most that a stage has.
        mapping_layers: from z to w, at least 0 (then S = K).
        mapping_lr: learning rate of the mapping relative to the rest.
        noise: whether each layer gets noise of a learned size.
    """

    shape: tuple[int, ...]
    latent_dim: int = 128
    style_dim: int = 128
    channels: int = 32
    max_channels: int = 512
    mapping_layers: int = 8
    mapping_lr: float = 0.01
    noise: bool = True

    def __post_init__(self) -> None:
        """Lists of a JSON file become tuples; what cannot be built raises."""
        object.__setattr__(self, "shape", tuple(self.shape))
        sizes = {"latent_dim": self.latent_dim, "style_dim": self.style_dim, "channels": self.channels}
        _check("StyleConfig", self.shape, **sizes, max_channels=self.max_channels)
        if self.mapping_layers < 0 or not self.mapping_lr > 0:
            raise ValueError(
                f"StyleConfig needs mapping_layers >= 0 and mapping_lr > 0, got {self.mapping_layers} and "
                f"{self.mapping_lr}"
            )
        if not self.mapping_layers and self.latent_dim != self.style_dim:
            raise ValueError(
                f"without a mapping the style is the latent: latent_dim {self.latent_dim} must be style_dim "
                f"{self.style_dim}"
            )


def stage_sides(shape: tuple[int, ...], smallest: int = 4) -> list[tuple[int, int]]:
    """Heights and widths from the image inwards, eq. (1).

    Args:
        shape: (C, H, W).
        smallest: what the larger side is at most at the end, >= 1; one halving is always made.

    Returns:
        At least two pairs.

    >>> stage_sides((1, 28, 20))
    [(28, 20), (14, 10), (7, 5), (4, 3)]
    """
    sides = [(shape[1], shape[2])]
    while len(sides) < 2 or max(sides[-1]) > smallest:
        height, width = sides[-1]
        sides.append(((height + 1) // 2, (width + 1) // 2))  # eq. (1)
    return sides


def _check(name: str, shape: tuple[int, ...], **sizes: int) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{name} needs the shape (C, H, W) of an image, got {shape}")
    wrong = [f"{key}={value}" for key, value in sizes.items() if value < 1]
    if wrong:
        raise ValueError(f"{name} needs sizes of at least 1, got {', '.join(wrong)}")


def _check_network(network: str, norm: str, norms: tuple[str, ...], num_classes: int | None) -> None:
    if network not in ("dcgan", "resnet"):
        raise ValueError(f"network must be 'dcgan' or 'resnet', got {network!r}; StyleGenerator is a class of its own")
    if norm not in norms:
        raise ValueError(f"norm must be one of {', '.join(norms)}; got {norm!r}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1 (None: no labels), got {num_classes}")
