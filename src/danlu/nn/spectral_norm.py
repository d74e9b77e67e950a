r"""Spectral normalisation: a layer that lengthens no difference of inputs by more than c, also a convolution.

    W' = c W / sigma(W)                               "normalize"                    (1)
    W' = W min(1, c / sigma(W))                       "cap"                          (2)
    sigma(W) = ||A v||,  v <- A^T A v / ||A^T A v||   one step for each training forward                     (3)
    dL/dW = c / sigma (G - <G, W'> / c u v^T),  G = dL/dW',  for (1)                 (4)
    embeddings: sigma = max_i ||row_i||                                              (5)

A is the map that the layer makes of W: the matrix, or for convolutions the convolution of inputs of the given size
(method "true"). Many libraries normalise the reshaped kernel instead, which leaves a true norm of up to sqrt(k) c
(method "reshaped", for comparison); "bound" divides by that root too and needs no input size. v is a buffer, moves only
in training and keeps float32 in half-precision models; in (4) it is held fixed. A token goes in as a one-hot vector,
so what a table can amplify is its longest row (5), not its singular value.

What to know. The constraint sits in the forward, so gradients see the division; overwriting weights after each update
hides it from them. Weight decay of the scale of W does nothing under (1) but change the step size. A norm layer behind
the layer undoes the constraint. sigma rises with the input size under zero padding: give the largest. W' is computed on
every access of the weight; `torch.nn.utils.parametrize.cached()` shares it, and remove_parametrizations bakes it in.

Source: Miyato et al., 2018, arXiv:1802.05957; kexue.fm/archives/6051; the true norm: `danlu.math.conv_norm`.
Shapes: those of the weight; v as in `danlu.math.linear_map`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from danlu.math.conv_norm import windows_of_a_pixel
from danlu.math.linear_map import CONV, TRANSPOSED, Size, layer_map
from danlu.math.precision import wide, wide_dtype
from danlu.math.singular import TINY, power_iteration, stirred, top_singular, unit

__all__ = ["SpectralNorm", "spectral_norm"]


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    coeff: float = 1.0,
    method: str = "true",
    input_size: Size | None = None,
    mode: str = "normalize",
    steps: int = 1,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Make a weight of a layer spectrally normalised, in place, eqs. (1) to (5).

    Args:
        module: Linear, Conv1d to Conv3d, their transposes, Embedding, or any module with a matrix of that name.
        name: the parameter.
        coeff: c > 0, the norm that (1) gives and (2) allows.
        method: for convolutions: "true", "bound" (never above c, usually below) or "reshaped" (not the layer's norm).
        input_size: sizes of one input of a convolution, without channels; method "true" needs them.
        mode: "normalize" or "cap" (weights below the constraint are left alone).
        steps: of power iteration in each training forward, >= 1.
        generator: source of the first v.

    Returns:
        The module, its weight parametrized; the trained parameter is `parametrizations.<name>.original`.

    Raises:
        ValueError: no such parameter, coeff <= 0, steps < 1, an unknown method or mode, a convolution by its true norm
            without input size, sizes that do not fit.

    >>> layer = spectral_norm(nn.Linear(3, 3, bias=False), coeff=2.0).eval()
    >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 4)
    2.0
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, nn.Parameter):
        known = ", ".join(n for n, _ in module.named_parameters(recurse=False)) or "none"
        hint = "; it is parametrized already" if parametrize.is_parametrized(module, name) else ""
        raise ValueError(f"{type(module).__name__} has no parameter {name!r}; its parameters: {known}{hint}")
    norm = SpectralNorm(module, weight, coeff, method, input_size, mode, steps, generator)
    parametrize.register_parametrization(module, name, norm, unsafe=True)
    return module


class SpectralNorm(nn.Module):
    """The parametrization that `spectral_norm` registers: W -> W'.

    Args:
        layer: whose weight it is; not kept.
        weight: the weight, for its shape, device and the first v; not kept.
        coeff: c.
        method: "true", "bound" or "reshaped".
        input_size: sizes of one input.
        mode: "normalize" or "cap".
        steps: of power iteration in each training forward.
        generator: source of the first v.
    """

    v: Tensor

    def __init__(
        self,
        layer: nn.Module,
        weight: Tensor,
        coeff: float = 1.0,
        method: str = "true",
        input_size: Size | None = None,
        mode: str = "normalize",
        steps: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < coeff < math.inf or steps < 1:
            raise ValueError(f"spectral_norm needs coeff > 0 and steps >= 1, got coeff={coeff}, steps={steps}")
        if method not in ("true", "bound", "reshaped") or mode not in ("normalize", "cap"):
            raise ValueError(
                f"method must be 'true', 'bound' or 'reshaped' and mode 'normalize' or 'cap', got {method!r}, {mode!r}"
            )
        is_conv = isinstance(layer, (*CONV, *TRANSPOSED)) and weight.ndim > 2
        if is_conv and method == "true" and input_size is None:
            raise ValueError(
                "the true norm of a convolution depends on the size of its input: give input_size=(H, W), the largest "
                "that will come; or method='bound', which holds for every size"
            )
        self.coeff, self.steps, self.mode, self.method = coeff, steps, mode, method
        self.rows = isinstance(layer, nn.Embedding)
        self.map = layer_map(layer, weight, input_size if method == "true" else None)
        self.factor = 1.0
        if is_conv and method == "bound":
            settings: Any = layer
            self.factor = math.sqrt(windows_of_a_pixel(tuple(weight.shape[2:]), settings.stride, settings.dilation))
        w = wide(weight.detach())
        shape = (0,) if self.rows else self.map.shape
        start = torch.randn(shape, generator=generator, device=generator.device if generator else "cpu").to(w)
        self.register_buffer("v", start)
        if not self.rows and not w.is_meta:
            self.refresh(weight)

    def refresh(self, weight: Tensor) -> None:
        """Find v anew from the weight, as after loading, pruning or another change by hand.

        Args:
            weight: the unconstrained one, `parametrizations.<name>.original`.
        """
        w = wide(weight.detach())
        if not self.rows:
            v = stirred(self.v.to(w))
            self.v.copy_(top_singular(partial(self.map.forward, w), partial(self.map.adjoint, w), v)[1])

    def sigma(self, weight: Tensor) -> Tensor:
        """sigma(W), eqs. (3) and (5), with a gradient; does not move v.

        Args:
            weight: the unconstrained one.

        Returns:
            Scalar, float32 or better.
        """
        w = wide(weight)
        with torch.autocast(weight.device.type, enabled=False):
            if self.rows:
                return torch.linalg.vector_norm(w, dim=-1).max()  # eq. (5)
            return torch.linalg.vector_norm(self.map.forward(w, unit(self.v.to(w)))) * self.factor  # eq. (3)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training and not self.rows:
            with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                w = wide(weight)
                v, forward, adjoint = stirred(self.v.to(w)), partial(self.map.forward, w), partial(self.map.adjoint, w)
                self.v.copy_(power_iteration(forward, adjoint, v, self.steps))  # eq. (3)
        sigma = self.sigma(weight).clamp_min(TINY)
        if self.mode == "cap":
            return (wide(weight) * (self.coeff / sigma).clamp_max(1.0)).to(weight.dtype)  # eq. (2)
        return (wide(weight) * (self.coeff / sigma)).to(weight.dtype)  # eq. (1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpectralNorm":
        before = self.v
        super()._apply(fn, recurse)
        if self.v.dtype in (torch.float16, torch.bfloat16):  # the layer goes to half precision, v does not
            self.v = before.to(self.v.device, wide_dtype(before))
        return self

    def extra_repr(self) -> str:
        return f"coeff={self.coeff}, method={self.method!r}, mode={self.mode!r}, steps={self.steps}"
