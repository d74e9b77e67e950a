r"""A feature space of one's own: a small classifier trained on labelled images, whose last hidden layer is the space.

    pixels -> convolutions of stride 2 -> D features h >= 0 -> logits of the classes                           (1)
    features = (h - mean) / deviation, both over the training images; a feature that never moves stays 0        (2)
    a float image in [0, 1] is rounded to the levels that stored images have, and passes its gradient straight  (3)

Distances between sets of images are distances in some space. A published network would have to be downloaded, knows
photographs only and cannot be trained again; this one takes seconds to a minute, from labels that are at hand, and is
the same for the same images and generator (on one machine and build). Its numbers compare with those of the same
network alone: `fingerprint` names it. Without (2) a kernel would see little but the largest feature; without (3) a
network could tell samples from data by their being no whole levels, and every metric would measure that.

The images it was trained on are no reference to compare with: they are spread wider in its space than fresh ones.

Source: own design; distances in a trained classifier's features after Heusel et al., 2017, arXiv:1706.08500.
Shapes: N images (N, C, H, W), K classes, D features.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.vae_networks import conv_encoder
from danlu.math.moments import merge_moments, moments
from danlu.math.precision import wide
from danlu.math.smooth_step import hard_forward

__all__ = ["FeatureNet", "FeatureNetConfig", "train_feature_net"]

OUTSIDE = 1e-3  # of [0, 1], what rounding in half precision may do


@dataclass(frozen=True)
class FeatureNetConfig:
    """What rebuilds a FeatureNet; plain numbers, as JSON holds them.

    shape: (C, H, W). levels: values a stored pixel can have. hidden: channels of the stages, each halves the sides.
    dim: features, even.
    """

    shape: tuple[int, ...]
    num_classes: int
    levels: int = 256
    hidden: tuple[int, ...] = (32, 64)
    dim: int = 64

    def __post_init__(self) -> None:
        """Lists of a JSON file become tuples; what cannot be built raises."""
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.num_classes < 2 or self.levels < 2 or self.dim < 2 or self.dim % 2:
            raise ValueError(
                "a FeatureNet needs num_classes >= 2, levels >= 2 and an even dim >= 2; got "
                f"{self.num_classes}, {self.levels} and {self.dim}"
            )


class FeatureNet(nn.Module):
    """The network of eq. (1): images to logits, and `features` to the space of eq. (2).

    Args:
        config: what it is built from.

    >>> net = FeatureNet(FeatureNetConfig((1, 8, 8), num_classes=10, levels=17))
    >>> net(torch.zeros(3, 1, 8, 8)).shape, net.features(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape
    (torch.Size([3, 10]), torch.Size([3, 64]))
    """

    center: Tensor
    scale: Tensor

    def __init__(self, config: FeatureNetConfig) -> None:
        super().__init__()
        self.config = config
        self.body = conv_encoder(config.shape, config.dim // 2, config.hidden)  # it ends in twice that
        self.to_logits = nn.Linear(config.dim, config.num_classes)
        self.register_buffer("center", torch.zeros(config.dim))
        self.register_buffer("scale", torch.ones(config.dim))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W), levels or floats in [0, 1]
        return self.to_logits(self._hidden(x))  # (N, K)  eq. (1)

    def features(self, x: Tensor) -> Tensor:
        """The images in the space, eq. (2).

        Args:
            x: (N, C, H, W), whole numbers from 0 to levels - 1, or floats in [0, 1].

        Returns:
            (N, D), float32 or better, with gradient for floats by eq. (3).

        Raises:
            ValueError: images of another shape or range.
        """
        return (wide(self._hidden(x)) - self.center) / self.scale  # eq. (2)

    def classify(self, x: Tensor) -> Tensor:
        """The most likely classes.

        Args:
            x: as of `features`.

        Returns:
            (N,) int64.
        """
        return self(x).argmax(1)

    @property
    def fingerprint(self) -> str:
        """Eight characters that name configuration and weights, to be printed beside every distance in this space."""
        mark = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, value in self.state_dict().items():
            mark.update(name.encode())
            mark.update(value.detach().double().cpu().numpy().tobytes())
        return mark.hexdigest()[:8]

    def _hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.body(self._pixels(x)))  # (N, D)

    def _pixels(self, x: Tensor) -> Tensor:
        """From -1 to 1 in the dtype of the weights."""
        top, dtype = self.config.levels - 1, self.to_logits.weight.dtype
        if x.ndim != 4 or tuple(x.shape[1:]) != self.config.shape:
            raise ValueError(f"this FeatureNet takes images (N, *{self.config.shape}), got {tuple(x.shape)}")
        if not x.numel():
            return x.to(dtype)
        if not x.is_floating_point():
            low, high = x.min().item(), x.max().item()
            if low < 0 or high > top:
                raise ValueError(f"whole pixels must be in 0 .. {top} (levels={top + 1}), got {low} .. {high}")
            return 2 * (x.to(dtype) / top) - 1
        low, high = x.detach().amin().item(), x.detach().amax().item()
        if not (low >= -OUTSIDE and high <= 1 + OUTSIDE):  # true for nan
            raise ValueError(
                f"float pixels must be in [0, 1], got {low:.4g} .. {high:.4g}; a generator that ends in tanh gives "
                "2 x - 1: pass (sample + 1) / 2"
            )
        x = x.to(dtype).clamp(0, 1)
        return 2 * hard_forward((x * top).round() / top, x) - 1  # eq. (3)


def train_feature_net(
    images: Tensor,
    labels: Tensor,
    config: FeatureNetConfig | None = None,
    steps: int = 1_000,
    batch_size: int = 128,
    lr: float = 2e-3,
    generator: torch.Generator | None = None,
) -> FeatureNet:
    """A FeatureNet trained to tell the classes apart, in evaluation mode.

    Args:
        images: (N, C, H, W), whole numbers from 0 to levels - 1, or floats in [0, 1]; a part kept for training.
        labels: (N,) int64 in [0, num_classes).
        config: of the network; None for the images' shape, the labels' classes and 256 levels.
        steps: of Adam, whose rate falls to 0 along a cosine.
        batch_size: images in a step, with replacement.
        lr: at the start.
        generator: for weights and batches, on the CPU; None for one of seed 0, so that the space is the same each time.

    Returns:
        The network, on the device of the images.

    Raises:
        ValueError: images and labels that do not fit each other or the config, or numbers out of range.

    >>> x = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    >>> x[4:] = 255
    >>> y = torch.arange(8) // 4
    >>> net = train_feature_net(x, y, FeatureNetConfig((1, 4, 4), 2, hidden=(4,), dim=8), steps=30)
    >>> bool((net(x).argmax(1) == y).all())
    True
    """
    if images.ndim != 4 or not len(images) or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"train_feature_net needs images (N, C, H, W), N >= 1, and labels (N,) int64; got {tuple(images.shape)} "
            f"and {tuple(labels.shape)} of {labels.dtype}"
        )
    if not (steps >= 1 and batch_size >= 1 and lr > 0):
        raise ValueError(f"steps and batch_size must be >= 1 and lr > 0, got {steps}, {batch_size} and {lr}")
    if config is None:
        config = FeatureNetConfig(tuple(images.shape[1:]), int(labels.max()) + 1)
    if labels.min() < 0 or labels.max() >= config.num_classes:
        raise ValueError(f"labels must be in [0, {config.num_classes}), got {int(labels.min())} .. {int(labels.max())}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from the global stream; ours replaces it
        net = FeatureNet(config)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    net.to(images.device)
    adam = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,), generator=generator).to(images.device)
        adam.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
        adam.step()
        schedule.step()
    with evaluation_mode(net):
        found = moments(net.center.new_zeros(0, config.dim))
        for part in images.split(512):
            found = merge_moments(found, moments(net.features(part)))
        deviation = found.covariance.diagonal().clamp_min(0).sqrt()
        net.center.copy_(found.mean)
        net.scale.copy_(torch.where(deviation > 1e-6 * deviation.max().clamp_min(1e-30), deviation, 1.0))  # eq. (2)
    return net.eval()
