r"""The numbers that make a flow: which kind, how deep, what it mixes with, what it is a density of.

    "nice"      additive couplings of vectors, even against odd entries, then a scale for each dimension          (1)
    "realnvp"   a level: `steps` checkerboard couplings, squeeze, `steps` couplings of channel halves             (2)
    "glow"      a level: squeeze, then `steps` times actnorm, mixing of the channels, coupling of their halves    (3)

Source: Dinh et al., 2014, arXiv:1410.8516 (1); Dinh et al., 2016, arXiv:1605.08803 (2); Kingma and Dhariwal, 2018,
    arXiv:1807.03039 (3); kexue.fm/archives/5776 and 5807.
Shapes: (D,) for vectors, (C, H, W) for images.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["FlowConfig"]

CHOICES = {
    "kind": ("nice", "realnvp", "glow"),
    "mixing": ("conv1x1", "shuffle", "reverse"),
    "prior": ("standard", "learned", "conditional"),
    "actnorm": ("data", "zeros"),
    "scale": ("bounded", "exp", "sigmoid"),
    "dequantization": ("uniform", "variational"),
}


@dataclass(frozen=True)
class FlowConfig:
    """Everything a `Flow` is built from; `FlowConfig(**json.loads(text))` reads what `json.dumps(c.as_dict())` wrote.

    Args:
        shape: of one item, (D,) or (C, H, W).
        kind: "glow", "realnvp" or "nice".
        levels: of the multi-scale architecture, >= 1; vectors and NICE have one.
        steps: of a level (glow), couplings of each kind in a level (realnvp), couplings in all (nice, and vectors).
        width: channels or units inside the coupling networks.
        hidden_layers: inside dense coupling networks; convolutional ones have two.
        additive: couplings without a scale; those of nice never have one.
        mixing: of the channels between couplings of glow.
        prior: "standard"; "learned", a mean and a scale for each channel of the last latent; "conditional", this and
            latents that leave at a level are Gaussian given what goes on.
        actnorm: how it starts.
        scale: form of the affine scale, see danlu.nn.coupling.
        limit: of the "bounded" form.
        num_bins: grey levels n of integer data, 2 to 2^16; None for data that are continuous only.
        dequantization: the noise inside a level.
        alpha: in [0, 0.5); above 0 the data first pass logit(alpha + (1 - 2 alpha)(v + 1/2)), 0.05 in RealNVP.
        checkpoint: recompute each step in the backward pass and keep only its input, memory for a third more time.
    """

    shape: tuple[int, ...]
    kind: str = "glow"
    levels: int = 1
    steps: int = 4
    width: int = 64
    hidden_layers: int = 2
    additive: bool = False
    mixing: str = "conv1x1"
    prior: str = "conditional"
    actnorm: str = "data"
    scale: str = "bounded"
    limit: float = 2.0
    num_bins: int | None = None
    dequantization: str = "uniform"
    alpha: float = 0.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))  # JSON has lists
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ValueError(f"shape must be (D,) for vectors or (C, H, W) for images, got {self.shape}")
        if min(self.levels, self.steps, self.width, self.hidden_layers) < 1:
            raise ValueError(
                "levels, steps, width and hidden_layers must be >= 1, got "
                f"{self.levels}, {self.steps}, {self.width} and {self.hidden_layers}"
            )
        if self.num_bins is not None and not 2 <= self.num_bins <= 2**16:
            raise ValueError(f"num_bins must be in 2 .. 65536, got {self.num_bins}; None: the data are continuous only")
        if not 0 <= self.alpha < 0.5 or not 0 < self.limit < math.inf:
            raise ValueError(f"alpha must be in [0, 0.5) and limit > 0, got {self.alpha} and {self.limit}")
        self._check_levels()

    def _check_levels(self) -> None:
        if self.kind == "nice" or len(self.shape) == 1:
            if self.levels != 1:
                raise ValueError(
                    f"levels must be 1 for vectors and for NICE, got {self.levels} with kind={self.kind!r} and "
                    f"shape={self.shape}"
                )
            if math.prod(self.shape) < 2:
                raise ValueError("a coupling needs at least 2 dimensions, got 1; for one dimension fit it directly")
        elif self.shape[1] % 2**self.levels or self.shape[2] % 2**self.levels:
            raise ValueError(
                f"{self.levels} levels halve an image {self.levels} times: height and width must be multiples of "
                f"{2**self.levels}, got {self.shape[1]} x {self.shape[2]}; pad the images or take fewer levels"
            )

    @property
    def num_dims(self) -> int:
        """D, numbers in one item."""
        return math.prod(self.shape)

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON.

        Returns:
            A dict; the shape is a list.
        """
        return asdict(self) | {"shape": list(self.shape)}
