r"""Normalization of images whose gain and shift may follow a vector: self-modulation, class-conditional, AdaIN.

    y = gamma(c) (x - mean) / sqrt(var + eps) + beta(c)                                                   (1)
    batch      mean and var over (N, H, W), running ones in evaluation                                    (2)
    instance   over (H, W) of each channel,    layer   over (C, H, W)                                     (3)
    h = relu(U c + u),   gamma = 1 + G h,   beta = B h                                                    (4)

Self-modulation is (2) with (4) and c = z, the latent, in every norm of a generator; class-conditional batch norm is (2)
with h = c one-hot; AdaIN is instance statistics with h = c a style. G and B start at zero, so that at first every kind
is the plain norm, whatever c; the 1 in (4) is a trained bias, and so is a 0 of beta. The post prints the outer bias
inside the relu, where the inner one is meant, and has a U for each of gamma and beta; here they share it, as in the
program of the paper's authors.

The batch kind holds a torch.nn.BatchNorm2d without gain and shift: what looks for batch norms (SyncBatchNorm's
conversion, `torch.optim.swa_utils.update_bn`) finds it. It lets one image see its neighbours in training.

Source: Chen, Lucic, Houlsby and Gelly, 2018, arXiv:1810.01365; kexue.fm/archives/6549; de Vries et al., 2017,
    arXiv:1707.00683 (classes); Huang and Belongie, 2017, arXiv:1703.06868 (AdaIN).
Shapes: N images of C channels, H x W; K size of the condition c, M of h.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide, wide_dtype

__all__ = ["ModulatedNorm"]

_KINDS = ("batch", "instance", "layer")


class ModulatedNorm(nn.Module):
    """Normalization of (N, C, H, W), eqs. (1) to (4), with or without a condition.

    Args:
        channels: C.
        condition_dim: K; None: gain and shift are plain parameters `weight` and `bias`.
        kind: "batch", "instance" or "layer".
        hidden: M of eq. (4); None: h = c.
        eps: guard inside the root, > 0.
        momentum: of the running statistics of kind "batch".

    Raises:
        ValueError: an unknown kind, a size below 1, or eps not above 0.

    >>> norm = ModulatedNorm(1, condition_dim=2, kind="instance")
    >>> norm(torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1, 2)).detach()  # before training: a plain instance norm
    tensor([[[[-1.0000,  1.0000]]]])
    """

    def __init__(
        self,
        channels: int,
        condition_dim: int | None = None,
        kind: str = "batch",
        hidden: int | None = 32,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}; got {kind!r}")
        if any(size is not None and size < 1 for size in (channels, condition_dim, hidden)):
            raise ValueError(
                "channels, condition_dim and hidden must be at least 1 (None: no condition, no hidden layer); got "
                f"{channels}, {condition_dim} and {hidden}"
            )
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}: a constant channel would be divided by zero")
        self.channels, self.condition_dim, self.kind, self.eps = channels, condition_dim, kind, eps
        self.norm = nn.BatchNorm2d(channels, eps, momentum, affine=False) if kind == "batch" else None
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.to_hidden: nn.Linear | None = None
        self.to_gain: nn.Linear | None = None
        self.to_shift: nn.Linear | None = None
        if condition_dim is None:
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
            return
        if hidden is not None:
            self.to_hidden = nn.Linear(condition_dim, hidden)
        self.to_gain = _constant_linear(hidden or condition_dim, channels, 1.0)
        self.to_shift = _constant_linear(hidden or condition_dim, channels, 0.0)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The normalized x.

        Args:
            x: (N, C, H, W).
            condition: (N, K), one for each image; only for a norm with condition_dim.

        Returns:
            The shape and dtype of x.

        Raises:
            ValueError: x or condition of another shape, a condition missing or not expected, or statistics of a single
                value.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"this norm takes x (N, {self.channels}, H, W), got {tuple(x.shape)}")
        x_hat = wide(self._standardized(x))
        if self.condition_dim is None:
            if condition is not None:
                raise ValueError("this norm takes no condition; build it with condition_dim")
            assert self.weight is not None and self.bias is not None
            gain, shift = self.weight[:, None, None].to(x_hat.dtype), self.bias[:, None, None].to(x_hat.dtype)
        else:
            if condition is None or condition.shape != (len(x), self.condition_dim):
                given = "none" if condition is None else str(tuple(condition.shape))
                raise ValueError(
                    f"it follows a condition (N, {self.condition_dim}) with one row for each of {len(x)} images, "
                    f"got {given}; for one condition for all write condition.expand(len(x), -1)"
                )
            gain, shift = (part[:, :, None, None].to(x_hat.dtype) for part in self.gain_and_shift(condition))
        return torch.addcmul(shift, x_hat, gain).to(x.dtype)  # eq. (1)

    def gain_and_shift(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """gamma(c) and beta(c) of eq. (4).

        Args:
            condition: (N, K).

        Returns:
            Two (N, C) in float32 or better.

        Raises:
            ValueError: the norm takes no condition.
        """
        if self.to_gain is None or self.to_shift is None:
            raise ValueError("this norm takes no condition; build it with condition_dim")
        with torch.autocast(condition.device.type, enabled=False):
            h = condition.to(wide_dtype(self.to_gain.weight))
            if self.to_hidden is not None:
                h = F.relu(_linear(h, self.to_hidden))  # eq. (4)
            return _linear(h, self.to_gain), _linear(h, self.to_shift)  # eq. (4)

    def _standardized(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.norm is not None:
            if self.training and len(x) * height * width < 2:
                raise ValueError(
                    f"batch statistics of x {tuple(x.shape)} would be those of {len(x) * height * width} value(s) for "
                    "each channel; give more images, or call eval() to use the running ones"
                )
            return self.norm(x)  # eq. (2)
        values = height * width * (self.channels if self.kind == "layer" else 1)
        if values < 2:
            raise ValueError(
                f"{self.kind} statistics of x {tuple(x.shape)} would be those of {values} value(s), which leaves 0; "
                "take kind='batch' for features of one place"
            )
        groups = 1 if self.kind == "layer" else self.channels
        return F.group_norm(wide(x), groups, eps=self.eps)  # eq. (3)

    def extra_repr(self) -> str:
        """Sizes and kind, as print(model) shows them."""
        condition = "" if self.condition_dim is None else f", condition_dim={self.condition_dim}"
        return f"{self.channels}, kind={self.kind!r}, eps={self.eps:g}{condition}"


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _constant_linear(size: int, channels: int, value: float) -> nn.Linear:
    """A linear layer that gives `value` whatever comes in, until it is trained."""
    linear = nn.Linear(size, channels)
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, value)
    return linear
