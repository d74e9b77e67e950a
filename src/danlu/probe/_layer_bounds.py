r"""How much each kind of layer can lengthen a difference of inputs: the constants that certificates multiply.

    activation: max |f'|;  softmax 1/2 (by Gershgorin 2 p (1 - p));  log-softmax sqrt(C), its value at p = e_1  (1)
    average pooling is a convolution; max pooling sqrt(m), m windows a pixel can be in                       (2)
    batch norm in evaluation: max |gamma| / sqrt(var + eps)                          (3)
    layer, group, RMS norm: max |gamma| / sqrt(eps), reached at constant inputs      (4)

Source: kexue.fm/archives/6051 (products over layers); Kim et al., 2020, arXiv:2006.04710 (why dot-product attention has
no constant and is missing here).
Shapes: those of the layers.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from danlu.math.conv_norm import conv_norm, reshaped_norm, windows_of_a_pixel
from danlu.math.linear_map import CONV, TRANSPOSED, each_axis, layer_map

__all__ = ["layer_bound"]

# max |f'| of activations without settings; rounded up where it is no short number
SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0, nn.Flatten: 1.0, nn.Unflatten: 1.0, nn.ReLU: 1.0, nn.ReLU6: 1.0, nn.Tanh: 1.0, nn.Sigmoid: 0.25,
    nn.Softsign: 1.0, nn.LogSigmoid: 1.0, nn.Tanhshrink: 1.0, nn.GELU: 1.1290, nn.SiLU: 1.0999, nn.Mish: 1.0885,
    nn.Hardswish: 1.5, nn.Hardsigmoid: 0.16667, nn.SELU: 1.0507009873554805 * 1.6732632423543772, nn.CELU: 1.0,
    nn.Softplus: 1.0, nn.Softmax: 0.5,
}  # fmt: skip
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVG_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
GLOBAL_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def layer_bound(layer: nn.Module, input_shape: tuple[int, ...]) -> tuple[float, float | None, str] | None:
    """The Lipschitz constant of a layer in evaluation for the L2 norm, or a bound of it.

    Args:
        layer: a module of torch.
        input_shape: of what it is given, with the batch first.

    Returns:
        The constant, what is usually taken for it in the case of convolutions, and a remark; None where none is known.
    """
    if not type(layer).forward.__module__.startswith("torch.nn.modules"):
        return None  # a class of somebody's own, which may compute something else than its parent
    usual, remark = None, ""
    weight: Any = getattr(layer, "weight", None)
    if type(layer) in SLOPES:
        value = SLOPES[type(layer)]
    elif isinstance(layer, DROPOUTS):
        value, remark = 1.0, "in evaluation"
    elif isinstance(layer, nn.LeakyReLU):
        value = max(1.0, abs(layer.negative_slope))
    elif isinstance(layer, nn.PReLU):
        value = max(1.0, weight.abs().max().item())
    elif isinstance(layer, nn.ELU):
        value = max(1.0, layer.alpha)
    elif isinstance(layer, nn.Hardtanh):
        value = 1.0
    elif isinstance(layer, nn.LogSoftmax) and layer.dim is not None:
        value = math.sqrt(input_shape[layer.dim])
    elif isinstance(layer, nn.Linear):
        value = matrix_norm(weight)
    elif isinstance(layer, (*CONV, *TRANSPOSED)):
        value, usual = conv_bound(layer, weight, input_shape), reshaped_norm(weight.double(), layer.groups).item()
    elif isinstance(layer, BATCH_NORMS) and layer.running_var is not None:
        gamma = layer.weight if layer.weight is not None else torch.ones_like(layer.running_var)
        value = (gamma.abs() / (layer.running_var + layer.eps).sqrt()).max().item()  # eq. (3)
        remark = "in evaluation"
    elif isinstance(layer, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        eps = layer.eps if layer.eps is not None else torch.finfo(torch.float32).eps
        value = (1.0 if weight is None else weight.abs().max().item()) / math.sqrt(eps)  # eq. (4)
        remark = "reached at constant inputs only"
    elif isinstance(layer, AVG_POOLS) and not layer.ceil_mode:
        value = average_bound(layer, input_shape)
    elif isinstance(layer, GLOBAL_POOLS) and pools_to_one(layer):
        value = 1 / math.sqrt(math.prod(input_shape[2:]))
    elif isinstance(layer, MAX_POOLS):
        axes = len(input_shape) - 2
        sizes = [each_axis(x, axes, "kernel_size") for x in (layer.kernel_size, layer.stride, layer.dilation)]
        value = math.sqrt(windows_of_a_pixel(*sizes))  # eq. (2)
    else:
        return None
    return value, usual, remark


def pools_to_one(layer: Any) -> bool:
    """Whether an adaptive pooling leaves one place."""
    sizes = (layer.output_size,) if isinstance(layer.output_size, int) else layer.output_size
    return all(size == 1 for size in sizes)


def matrix_norm(weight: Tensor) -> float:
    return torch.linalg.matrix_norm(weight.detach().double(), 2).item()


def conv_bound(layer: Any, weight: Tensor, input_shape: tuple[int, ...]) -> float:
    """The norm from above, so that the product stays a bound; a transposed convolution has that of its transpose."""
    shape: Any = layer_map(layer, weight, input_shape[2:])
    settings = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return conv_norm(weight.detach().double(), shape.shape[1:], *settings, method="upper").item()


def average_bound(layer: Any, input_shape: tuple[int, ...]) -> float:
    """Average pooling as a convolution of one channel."""
    axes = len(input_shape) - 2
    kernel, stride, padding = (
        each_axis(x, axes, name) for x, name in
        ((layer.kernel_size, "kernel_size"), (layer.stride, "stride"), (layer.padding, "padding"))
    )  # fmt: skip
    divisor = math.prod(kernel)
    if not layer.count_include_pad:  # at the edges the mean is of fewer pixels: at least these
        divisor = math.prod(min(n, k - p) for n, k, p in zip(input_shape[2:], kernel, padding, strict=True))
    divisor = getattr(layer, "divisor_override", None) or divisor
    weight = torch.full((1, 1, *kernel), 1 / divisor, dtype=torch.float64)
    return conv_norm(weight, input_shape[2:], stride, padding, method="upper").item()  # eq. (2)
