r"""Inner products of several tasks' gradients over all parameters, without laying the gradients side by side.

    Q_ij = <g_i, g_j> = sum over parameters p of  <g_ip, g_jp>                                          (1)

Summed block by block in float64 (float32 where a device has none), so that neither bfloat16 gradients nor loss-scaled
ones lose the small product that decides whether two tasks are in conflict. Beyond the gradients themselves the memory
is that of one block.

Source: the Gram matrix that kexue.fm/archives/8896 and 8907 solve on.
Shapes: K tasks; parameters of any shape.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gram_matrix"]

BLOCK = 1 << 17  # numbers of each gradient at a time


def gram_matrix(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Inner products of K gradients, each a list of tensors, one a parameter, eq. (1).

    Args:
        gradients: K lists of the same length with the same shapes at the same places; None stands for zeros, as
            torch.autograd.grad gives it.

    Returns:
        (K, K) float64, on the device of the gradients; zeros if all are None.

    Raises:
        ValueError: no gradient, or lists that differ in length or shapes.

    >>> a, b = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])
    >>> gram_matrix([[a, None], [-a, b]])
    tensor([[ 5., -5.],
            [-5., 14.]], dtype=torch.float64)
    """
    size = len(gradients)
    if not size or len({len(g) for g in gradients}) != 1:
        raise ValueError(
            f"gram_matrix needs lists of one length, one for each task; got lengths {[len(g) for g in gradients]}"
        )
    device = next((g.device for task in gradients for g in task if g is not None), torch.device("cpu"))
    wide = torch.float32 if device.type == "mps" else torch.float64
    gram = torch.zeros(size, size, dtype=wide, device=device)
    for columns in zip(*gradients, strict=True):
        found = [(i, g) for i, g in enumerate(columns) if g is not None]
        if len({g.shape for _, g in found}) > 1:
            raise ValueError(
                f"gram_matrix needs one shape a parameter; got {[tuple(g.shape) for _, g in found]} at one place"
            )
        if not found:
            continue
        rows = torch.tensor([i for i, _ in found], device=device)
        flat = [g.detach().reshape(-1) for _, g in found]
        part = torch.zeros(len(found), len(found), dtype=wide, device=device)
        for start in range(0, flat[0].numel(), BLOCK):
            block = torch.stack([f[start : start + BLOCK].to(wide) for f in flat])  # (found, <= BLOCK)
            part += block @ block.T
        gram[rows[:, None], rows] += part  # eq. (1)
    return gram if wide is torch.float64 else gram.cpu().double()
