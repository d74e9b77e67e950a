r"""The networks inside couplings and conditional priors: they start at zero, so that a flow starts near the identity.

    conv 3 x 3 - ReLU - conv 1 x 1 - ReLU - conv 3 x 3 that is zero                                           (1)
    y_c = exp(k l_c) (conv(x)_c + b_c)                                                                        (2)

Every convolution is (2): inside, k = 1 and (l, b) make the first batch standard (actnorm, floor 1e-2); the last one
starts with zero weights and k = 3, which speeds its scale up. The scale is folded into the kernel, so (2) costs no pass
over the activations; ReLU works in place, and images are kept channels_last, which is what convolutions of bfloat16
want. Padding is with zeros; the released code also tells the network where the border is, which is left out here.

Source: Kingma and Dhariwal, 2018, arXiv:1807.03039; kexue.fm/archives/5807.
Shapes: N batch, C channels, D dimensions, H and W pixels.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from danlu.nn.actnorm import standardize_channels

__all__ = ["ConvNet", "DenseNet", "ScaledConv2d"]


class ScaledConv2d(nn.Module):
    """A convolution with a scale for each channel it gives, eq. (2).

    Args:
        in_channels: it reads.
        out_channels: it gives.
        kernel_size: odd; the padding keeps the size.
        zero: whether it starts at zero, with k = 3; else from the first training batch, with k = 1.
        data_init: False leaves the start from the first batch out.
        generator: source of the weights.
    """

    initialized: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        zero: bool = False,
        data_init: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        device = generator.device if generator else None
        start = torch.zeros(shape) if zero else 0.05 * torch.randn(shape, generator=generator, device=device)
        self.weight = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.zeros(out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.speed = 3.0 if zero else 1.0
        self._known = zero or not data_init
        self.register_buffer("initialized", torch.tensor(self._known))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, K, H, W)
        if not torch.is_autocast_enabled(x.device.type):  # which would cast back what is cast here
            x = x.to(self.weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        if self.training and not self._known:
            self._prepare(x)
        scale = (self.speed * self.log_scale).exp()  # (K,)
        return F.conv2d(x, self.weight * scale[:, None, None, None], self.bias * scale, padding="same")  # eq. (2)

    @torch.no_grad()
    def _prepare(self, x: Tensor) -> None:
        if not bool(self.initialized):
            if not x.numel():
                return
            log_scale, shift = standardize_channels(F.conv2d(x, self.weight, padding="same"))
            self.log_scale.copy_(log_scale)
            self.bias.copy_(shift)
            self.initialized.fill_(True)
        self._known = True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._known = False


class ConvNet(nn.Module):
    """Eq. (1) for images.

    Args:
        in_channels: it reads.
        out_channels: it gives.
        width: channels inside.
        data_init: whether the inner convolutions start from the first training batch.
        generator: source of the weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        data_init: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.input = ScaledConv2d(in_channels, width, 3, data_init=data_init, generator=generator)
        self.inner = ScaledConv2d(width, width, 1, data_init=data_init, generator=generator)
        self.output = ScaledConv2d(width, out_channels, 3, zero=True)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, K, H, W)  eq. (1)
        return self.output(F.relu_(self.inner(F.relu_(self.input(x)))))


class DenseNet(nn.Module):
    """Linear layers with ReLU between them for vectors; the last one starts at zero.

    Args:
        in_dim: it reads.
        out_dim: it gives.
        width: units inside.
        hidden_layers: >= 1.
        generator: source of the weights.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        width: int,
        hidden_layers: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = [in_dim, *[width] * hidden_layers, out_dim]
        layers = [skip_init(nn.Linear, a, b) for a, b in itertools.pairwise(sizes)]
        for layer, size in zip(layers, sizes, strict=False):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(size**-0.5), size**-0.5, generator)
        for parameter in layers[-1].parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, K)
        x = x.to(next(self.parameters()).dtype)
        *inner, last = self.layers
        for layer in inner:
            x = F.relu_(layer(x))
        return last(x)
