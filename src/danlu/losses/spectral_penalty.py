r"""Spectral regularisation: a term that shrinks what a layer amplifies most and leaves its other directions alone.

    L = strength sum_l sigma(W_l)^2,   sigma = ||A v||,  v <- A^T A v / ||A^T A v||  (1)
    dL/dW = 2 strength sigma u v^T,    u = A v / ||A v||                             (2)
    sigma(W) <= ||W||_F                                                              (3)

A is the map that a layer makes of its weight W, the matrix or a convolution; v is held fixed in the gradient, so (2) is
exact where v is the top vector and sigma_1 stands alone. By (3) L2 regularisation, the sum of ||W||_F^2, bounds the
same constant, but pulls on every singular value. The source says that for a square W sigma is the largest |eigenvalue|;
that holds for normal matrices only ([[0, 1], [0, 0]] has norm 1 and no eigenvalue but 0).

The author's code starts 5 steps from ones in each call and differentiates through them (mode "author"). Ones can be
orthogonal to the top vector, and the graph of all steps costs time and memory; by default ("fixed") the start is a
fixed pattern in the function and the v of the last call in the object, for which one step a call is enough.

Source: Yoshida and Miyato, 2017, arXiv:1705.10941; kexue.fm/archives/6051.
Shapes: W is (O, ...); kernels are reshaped to (O, I k) unless the input size of their layer is given.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from danlu.math.linear_map import CONV, TRANSPOSED, ConvMap, MatrixMap, Size, layer_map
from danlu.math.precision import wide
from danlu.math.singular import power_iteration, stirred, top_singular, unit

__all__ = ["SpectralPenalty", "spectral_penalty"]


def spectral_penalty(weights: Tensor | Sequence[Tensor], steps: int = 15, mode: str = "fixed") -> Tensor:
    """The sum of the squared largest singular values, eq. (1) without strength, from a fresh start.

    Args:
        weights: one weight or several, each with two axes or more, taken as matrix (O, the rest).
        steps: of power iteration, >= 1.
        mode: "fixed" (v held fixed in the gradient) or "author" (from ones, differentiated through; he takes 5 steps).

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: an unknown mode, steps < 1, no weight, or one with less than two axes.

    >>> round(spectral_penalty(torch.tensor([[3.0, 0.0], [4.0, 5.0]])).item(), 4)
    45.0
    """
    weights = [weights] if isinstance(weights, Tensor) else list(weights)
    if mode not in ("fixed", "author") or steps < 1:
        raise ValueError(f"mode must be 'fixed' or 'author' and steps >= 1, got {mode!r}, {steps}")
    if not weights or min(w.ndim for w in weights) < 2:
        raise ValueError(
            f"spectral_penalty needs weights with two axes or more, got {[tuple(w.shape) for w in weights]}; leave out "
            "biases and norms"
        )
    total = []
    for weight in weights:
        with torch.autocast(weight.device.type, enabled=False):
            w = wide(weight).flatten(1)  # (O, M)
            if mode == "fixed":
                v = power_iteration(w.detach().mv, w.detach().T.mv, stirred(torch.zeros_like(w[0])), steps)
                total.append((w @ v).square().sum())  # eq. (1)
            else:
                x = torch.ones_like(w[0])
                for _ in range(steps):
                    y = unit(w @ x)
                    x = unit(w.T @ y)
                total.append((y @ w @ x).square())
    return torch.stack([t.to(total[0]) for t in total]).sum()


class SpectralPenalty(nn.Module):
    """Eq. (1) of a model's layers with kept vectors: `loss + penalty()` in anybody's loop.

    The model is not a part of this module: only the vectors are in its state dict. They move in training mode, once a
    call. Under gradient accumulation over n batches add penalty() / n to each loss.

    Args:
        model: whose Linear layers, convolutions and their transposes are regularised; frozen weights are left out.
            Make the penalty once the model is on its device.
        strength: of eq. (1), >= 0.
        include: regular expression; of the layers' names those in which it is found.
        input_sizes: layer name -> sizes of one input (H, W), for convolutions whose true norm is to be penalised; the
            others are reshaped.
        steps: of power iteration in a call, >= 1.

    Raises:
        ValueError: no layer is left, strength < 0, steps < 1, or input_sizes names a layer that is not regularised.

    >>> layer = nn.Linear(2, 2)
    >>> layer.weight.data = torch.tensor([[3.0, 0.0], [4.0, 5.0]])
    >>> round(SpectralPenalty(nn.Sequential(layer), strength=0.1)().item(), 4)
    4.5
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 1e-2,
        include: str = "",
        input_sizes: Mapping[str, Size] | None = None,
        steps: int = 1,
    ) -> None:
        super().__init__()
        if not strength >= 0 or steps < 1:
            raise ValueError(f"SpectralPenalty needs strength >= 0 and steps >= 1, got {strength} and {steps}")
        sizes = dict(input_sizes or {})
        self.strength, self.steps = strength, steps
        self.parts: list[tuple[str, nn.Module, MatrixMap | ConvMap]] = []  # in a list, so the model is no submodule
        seen: set[int] = set()
        for name, layer in model.named_modules():
            weight = layer._parameters.get("weight")
            known = isinstance(layer, (nn.Linear, *CONV, *TRANSPOSED)) and re.search(include, name)
            if not known or weight is None or not weight.requires_grad or id(weight) in seen:
                continue
            seen.add(id(weight))
            part = layer_map(layer, weight, sizes.pop(name, None))
            w = wide(weight.detach())
            start = stirred(torch.zeros(part.shape, dtype=w.dtype, device=w.device))
            buffer = f"v{len(self.parts)}"
            self.parts.append((name, layer, part))
            self.register_buffer(buffer, top_singular(partial(part.forward, w), partial(part.adjoint, w), start)[1])
        if not self.parts or sizes:
            layers = ", ".join(n for n, m in model.named_modules() if isinstance(m, (nn.Linear, *CONV, *TRANSPOSED)))
            raise ValueError(
                f"input_sizes names {', '.join(sizes)}, which is not regularised" if sizes
                else f"no layer with a trained weight matches include={include!r}; layers: {layers or 'none'}"
            )  # fmt: skip

    def sigmas(self) -> dict[str, Tensor]:
        """Layer name -> its largest singular value as the kept vectors see it, with a gradient; moves nothing."""
        found = {}
        for i, (name, layer, part) in enumerate(self.parts):
            w = wide(layer.weight)  # type: ignore[arg-type]
            with torch.autocast(w.device.type, enabled=False):
                v = unit(self.get_buffer(f"v{i}").to(w))
                found[name] = torch.linalg.vector_norm(part.forward(w, v))  # eq. (1)
        return found

    def forward(self) -> Tensor:
        if self.training:
            for i, (_, layer, part) in enumerate(self.parts):
                w = wide(layer.weight.detach())  # type: ignore[operator]
                with torch.autocast(w.device.type, enabled=False):
                    v = self.get_buffer(f"v{i}")
                    forward, adjoint = partial(part.forward, w), partial(part.adjoint, w)
                    v.copy_(power_iteration(forward, adjoint, stirred(v.to(w)), self.steps))  # eq. (1)
        sigmas = list(self.sigmas().values())
        return self.strength * torch.stack([s.to(sigmas[0]) for s in sigmas]).square().sum()  # eq. (1)

    def extra_repr(self) -> str:
        return f"strength={self.strength}, layers={len(self.parts)}"
