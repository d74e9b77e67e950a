r"""Spectral regularisation of NVAE: the largest singular values of all convolutions and the largest gains of norms.

    S = sum_l sigma(W_l),   sigma = ||W v||,  v <- W^T W v / ||W^T W v||                                      (1)
    B = sum_n max_c |gain_nc|                                                                                 (2)
    loss + strength (S + B),   strength 0.001 to 0.1                                                          (3)

The KL of a group has no upper bound, and a posterior that jumps with its input has large KLs and gradients: (3) keeps
each layer from amplifying, so deep stacks train without nan. sigma is that of the kernel reshaped to (O, I k k), with
v held fixed in the gradient; its square, for any model, is `danlu.losses.SpectralPenalty`. Kernels of one shape are
stacked and iterated together.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898; Yoshida and Miyato, 2017, arXiv:1705.10941.
Shapes: W is (O, I, k, k).
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from danlu.generative.nvae_layers import LogNormConv2d
from danlu.math.precision import wide
from danlu.math.singular import power_iteration, stirred

__all__ = ["SpectralSum", "norm_gain_sum"]


class SpectralSum(nn.Module):
    """S of a model's convolutions with kept vectors: `loss + 1e-2 * (spectral() + norm_gain_sum(model))`.

    The model is not a part of this module: only the vectors are in its state dict. They move in training mode, once a
    call. Frozen layers are left out. Make it once the model is on its device.

    Args:
        model: whose Conv2d layers count, those of `LogNormConv2d` with the weights that convolve.
        steps: of power iteration in a call, >= 1.
        first_steps: of power iteration now, >= 0.

    Raises:
        ValueError: no convolution that trains, or steps out of range.

    >>> layer = nn.Conv2d(2, 2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, 0.0], [4.0, 5.0]])[:, :, None, None]
    >>> round(SpectralSum(layer)().item(), 4)  # sqrt(45)
    6.7082
    """

    def __init__(self, model: nn.Module, steps: int = 4, first_steps: int = 40) -> None:
        super().__init__()
        if steps < 1 or first_steps < 0:
            raise ValueError(f"SpectralSum needs steps >= 1 and first_steps >= 0, got {steps} and {first_steps}")
        self.steps = steps
        self.stacks: list[list[nn.Conv2d]] = []  # in a list, so the model is no submodule
        found: dict[tuple[int, int, torch.dtype], list[nn.Conv2d]] = {}
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
                rows = layer.weight.shape[0]
                key = (rows, layer.weight.numel() // rows, layer.weight.dtype)
                found.setdefault(key, []).append(layer)
        if not found:
            raise ValueError(f"SpectralSum found no Conv2d that trains in {type(model).__name__}; leave the term out")
        for (_, size, _), layers in found.items():
            w = self._stacked(layers).detach()
            v = stirred(w.new_zeros(size)).expand(len(layers), size).clone()
            self.register_buffer(f"v{len(self.stacks)}", _iterated(w, v, first_steps))
            self.stacks.append(layers)

    def forward(self) -> Tensor:
        """S, a scalar in float32 or better, with a gradient."""
        total = []
        for i, layers in enumerate(self.stacks):
            with torch.autocast(layers[0].weight.device.type, enabled=False):
                w, v = self._stacked(layers), self.get_buffer(f"v{i}")
                if self.training:
                    v.copy_(_iterated(w.detach(), v.to(w), self.steps))
                image = (w @ v.to(w).clone()[:, :, None])[:, :, 0]  # (B, O)
                total.append(torch.linalg.vector_norm(image, dim=1).sum())  # eq. (1)
        return torch.stack([t.to(total[0]) for t in total]).sum()

    def _stacked(self, layers: list[nn.Conv2d]) -> Tensor:
        """(B, O, I k k), float32 or better."""
        weights = [m.normed_weight() if isinstance(m, LogNormConv2d) else wide(m.weight) for m in layers]
        return torch.stack([w.flatten(1) for w in weights])


def norm_gain_sum(model: nn.Module) -> Tensor:
    """B of a model's batch norms, eq. (2).

    Args:
        model: any; norms without gains do not count.

    Returns:
        Scalar, float32 or better; 0 for a model without batch norms.

    >>> norm = nn.BatchNorm2d(2)
    >>> norm.weight.data = torch.tensor([-3.0, 2.0])
    >>> norm_gain_sum(nn.Sequential(norm, nn.BatchNorm2d(1))).item()
    4.0
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.weight is not None]
    if not norms:
        like = next(model.parameters(), torch.zeros(()))
        return wide(like.new_zeros(()))
    return torch.stack([wide(m.weight).abs().max() for m in norms]).sum()  # eq. (2)


@torch.no_grad()
def _iterated(w: Tensor, v: Tensor, steps: int) -> Tensor:
    """v (B, I) of all matrices (B, O, I) after some steps."""

    def one(w: Tensor, v: Tensor) -> Tensor:
        return power_iteration(w.mv, w.mT.mv, stirred(v), steps)

    return torch.func.vmap(one)(w, v)
