r"""How much a convolution can amplify its input: the true norm, the usual value and a bound.

    ||conv|| = max_x ||conv(x)|| / ||x||                                             (1)
    circular, stride s | n:   ||conv|| = max_f sigma_max([K(f + a n / s)]_a) / sqrt(s)                       (2)
    K(f) = sum_j W_j exp(-2 pi i f . (d j) / n)                                      (3)
    usual:    sigma_r = sigma_max(W as (out, in k))                                  (4)
    bound:    ||conv|| <= min(sqrt(m) sigma_r, sqrt(k) min over unfoldings of W)     (5)
    tr(G^2p) / tr(G^p) <= sigma_max^(2p) <= tr(G^2p)^(1/2),   G = K^H K              (6)

n are the sizes of the input, f its frequencies, a = 0 .. s - 1 those that a stride folds into one, d the dilation, k
the number of places of the kernel, m = prod ceil(k / s) the number of windows a pixel can be in. For several axes s, n
are per axis and s under the root is the product. Groups are blocks: the largest counts.

(2) is exact for circular padding that keeps the size (out = n / s). With zeros (1) is found by Lanczos steps through
the convolution and its transpose (`top_singular`), from below; (2) on the grid of the padded input is a bound from
above, because padding by zeros and cropping have norm 1. (6) rules out most frequencies of (2) by a few batched matrix
squarings, so that only a handful are decomposed. What many libraries divide by is (4), which can be sqrt(k) too small:
a kernel of equal numbers attains that. The gradient is that of u^T A v with both vectors fixed, exact where the largest
singular value stands alone; second derivatives are not.

Source: Sedghi, Gupta, Long, 2018, arXiv:1805.10408 (2); Singla and Feizi, 2019, arXiv:1911.10258 (5); Delattre et al.,
2023, arXiv:2305.16173 (6); kexue.fm/archives/6051 (4).
Shapes: W is (O, I / groups, *k).
"""

import math
from itertools import combinations

import torch
from torch import Tensor

from danlu.math.linear_map import ConvMap, Size, conv_map, each_axis
from danlu.math.precision import wide
from danlu.math.singular import TINY, top_singular

__all__ = ["conv_norm", "conv_norm_bound", "reshaped_norm"]

FEW = 1 << 17  # numbers in the blocks that are left: from here on decomposing is quicker than ruling out
SQUARINGS = 10  # of eq. (6)


def conv_norm(
    weight: Tensor,
    input_size: Size,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    method: str = "exact",
    tol: float = 1e-3,
) -> Tensor:
    """The largest factor by which a convolution lengthens an input, eq. (1).

    Args:
        weight: (O, I / groups, *k), the kernel of a Conv1d, Conv2d or Conv3d. For a transposed convolution give its
            weight as it is, and as input_size the size of its output: it has the norm of the convolution it transposes.
        input_size: sizes of one input without channels, such as (H, W); one number stands for all axes.
        stride: as in torch.
        padding: as in torch, a number, one for each axis, "same" or "valid".
        dilation: as in torch.
        groups: as in torch.
        padding_mode: "zeros" or "circular".
        method: "exact" (eq. 2 where it holds, else Lanczos) or "upper" (eq. 2 on the enlarged grid: a bound from above
            for zeros, close for inputs larger than the kernel).
        tol: where Lanczos stops, see `top_singular`.

    Returns:
        Scalar with a gradient, dtype of the weight; computed in float32 or better.

    Raises:
        ValueError: a weight that is no kernel, sizes that do not fit, another padding mode or method.

    >>> norm = conv_norm(torch.ones(1, 1, 3, 3), input_size=8, padding=1, padding_mode="circular")
    >>> round(norm.item(), 4)  # an image of ones
    9.0
    >>> conv_norm(torch.ones(1, 1, 2, 2) / 4, input_size=8, stride=2)  # the mean of 2 x 2 pixels
    tensor(0.5000)
    """
    if method not in ("exact", "upper"):
        raise ValueError(f"method must be 'exact' or 'upper', got {method!r}")
    layer = conv_map(weight, input_size, stride, padding, dilation, groups, padding_mode)
    kernel = weight.shape[2:]
    with torch.autocast(weight.device.type, enabled=False):
        w = wide(weight)
        whole = tuple(n // s if n % s == 0 else -1 for n, s in zip(layer.shape[1:], layer.stride, strict=True))
        if padding_mode == "circular" and layer.output_size(kernel) == whole:
            return by_frequency(w, layer.shape[1:], layer).to(weight.dtype)
        if method == "upper":
            return (by_frequency(w, enlarged_grid(layer, kernel), layer) * circular_pad_norm(layer)).to(weight.dtype)
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(layer.shape, generator=generator).to(w)
        fixed = w.detach()
        v = top_singular(lambda x: layer.forward(fixed, x), lambda y: layer.adjoint(fixed, y), start, tol)[1]
        return torch.linalg.vector_norm(layer.forward(w, v)).to(weight.dtype)  # eq. (1)


def reshaped_norm(weight: Tensor, groups: int = 1) -> Tensor:
    """The usual value, eq. (4): the norm on one window, for the true norm up to sqrt(k) too small.

    Args:
        weight: (O, I / groups, *k).
        groups: as in torch.

    Returns:
        Scalar with a gradient, dtype of the weight; computed in float32 or better.

    Raises:
        ValueError: a weight with less than two axes, or groups that do not divide O.

    >>> round(reshaped_norm(torch.ones(1, 1, 3, 3)).item(), 4)
    3.0
    """
    if weight.ndim < 2 or groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"reshaped_norm needs a weight (O, I, *k) with groups dividing O, got {tuple(weight.shape)} "
                         f"and groups={groups}")  # fmt: skip
    blocks = wide(weight).reshape(groups, weight.shape[0] // groups, -1)
    return torch.linalg.matrix_norm(blocks, 2).max().to(weight.dtype)  # eq. (4)


def conv_norm_bound(weight: Tensor, stride: Size = 1, dilation: Size = 1, groups: int = 1) -> Tensor:
    """A bound of the true norm for inputs of every size and both paddings, eq. (5).

    Args:
        weight: (O, I / groups, *k).
        stride: as in torch.
        dilation: as in torch.
        groups: as in torch.

    Returns:
        Scalar with a gradient, dtype of the weight; computed in float32 or better.

    Raises:
        ValueError: a weight that is no kernel, or groups that do not divide O.

    >>> round(conv_norm_bound(torch.ones(1, 1, 3, 3)).item(), 4)
    9.0
    >>> conv_norm_bound(torch.ones(1, 1, 2, 2) / 4, stride=2)  # windows that do not overlap: exact
    tensor(0.5000)
    """
    axes = weight.ndim - 2
    if axes not in (1, 2, 3):
        raise ValueError(f"a kernel is (O, I / groups, *k) with 1 to 3 axes of kernel, got {tuple(weight.shape)}")
    steps, spread = each_axis(stride, axes, "stride"), each_axis(dilation, axes, "dilation")
    bound = reshaped_norm(wide(weight), groups) * math.sqrt(windows_of_a_pixel(tuple(weight.shape[2:]), steps, spread))
    w = wide(weight).reshape(groups, weight.shape[0] // groups, *weight.shape[1:])  # (G, O / G, I / G, *k)
    norms = []
    for rows in (set(c) for r in range(axes + 1) for c in combinations(range(3, 3 + axes), r)):
        columns = [axis for axis in range(3, 3 + axes) if axis not in rows]
        m = w.permute(0, 1, *rows, 2, *columns).flatten(2 + len(rows)).flatten(1, 1 + len(rows))  # (G, O k.., I k..)
        norms.append(torch.linalg.matrix_norm(m, 2).max())
    loose = math.sqrt(weight[0, 0].numel())
    return torch.stack([bound, *(loose * norm for norm in norms)]).min().to(weight.dtype)  # eq. (5)


def windows_of_a_pixel(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> int:
    """m of eq. (5): in how many windows of a convolution or pooling one place of the input can be."""
    sizes = zip(kernel, stride, dilation, strict=True)
    return math.prod(math.ceil(k / (s // math.gcd(s, d))) for k, s, d in sizes)


def circular_pad_norm(layer: ConvMap) -> float:
    """Norm of the padding: a pixel that stands r times in the padded input is lengthened by sqrt(r)."""
    if layer.padding_mode != "circular":
        return 1.0
    repeats = (torch.bincount(torch.arange(-before, n + after) % n).max().item()
               for n, (before, after) in zip(layer.shape[1:], layer.padding, strict=True))  # fmt: skip
    return math.sqrt(math.prod(repeats))


def enlarged_grid(layer: ConvMap, kernel: torch.Size) -> tuple[int, ...]:
    """A grid on which the circular convolution holds all that the layer computes, a multiple of the stride."""
    grid = []
    for n, pad, d, k, s in zip(layer.shape[1:], layer.padding, layer.dilation, kernel, layer.stride, strict=True):
        more = sum(pad) if layer.padding_mode == "circular" else min(sum(pad), d * (k - 1))
        grid.append(math.ceil((n + more) / s) * s)
    return tuple(grid)


def by_frequency(w: Tensor, grid: tuple[int, ...], layer: ConvMap) -> Tensor:
    """Eq. (2): all frequencies without a graph, then the largest one with it."""
    # along an axis where the kernel is one place wide all frequencies are alike
    grid = tuple(s if k == 1 else n for n, s, k in zip(grid, layer.stride, w.shape[2:], strict=True))
    folds = [n // s for n, s in zip(grid, layer.stride, strict=True)]  # frequencies of the output
    folds[-1] = folds[-1] // 2 + 1  # a real kernel has K(-f) = conj K(f)
    f = torch.cartesian_prod(*(torch.arange(m, device=w.device) for m in folds)).view(-1, len(grid))  # (F, axes)
    w = w.reshape(layer.groups, w.shape[0] // layer.groups, *w.shape[1:])  # (G, O / G, I / G, *k)
    with torch.no_grad():
        u, v, index = top_block(spectrum(w, f, grid, layer).flatten(0, 1))
    group, place = divmod(index, len(f))
    block = spectrum(w[group : group + 1], f[place : place + 1], grid, layer)[0, 0]
    return (u.conj() @ block @ v).real / math.sqrt(math.prod(layer.stride))  # eq. (2)


def spectrum(w: Tensor, f: Tensor, grid: tuple[int, ...], layer: ConvMap) -> Tensor:
    """The blocks of eq. (2), (G, F, O / G, I / G S): one matrix product, cheaper than an FFT where k is small."""
    axes = zip(grid, layer.stride, layer.dilation, w.shape[3:], f.T, strict=True)
    phase = torch.zeros(len(f), 1, 1, dtype=torch.float64, device=w.device)
    for n, s, d, k, place in axes:
        folded = place[:, None] + n // s * torch.arange(s, device=w.device)  # (F, s), f + a n / s
        turns = (folded[:, None, :, None, None] * d * torch.arange(k, device=w.device)) % n  # (F, 1, s, 1, k)
        phase = (phase[:, :, None, :, None] + turns.double() / n).flatten(3).flatten(1, 2)  # (F, S s, K k)
    angle = 2 * math.pi * phase.flatten(0, 1)  # (F S, k)
    flat = w.flatten(3).permute(3, 0, 1, 2)  # (k, G, O / G, I / G)
    values = torch.complex(angle.cos().to(w) @ flat.flatten(1), -angle.sin().to(w) @ flat.flatten(1))  # eq. (3)
    return values.view(len(f), -1, *flat.shape[1:]).permute(2, 0, 3, 4, 1).flatten(3)


def top_block(blocks: Tensor) -> tuple[Tensor, Tensor, int]:
    """Singular vectors of the largest singular value among (F, O, I) complex matrices, and where it stands."""
    alive = torch.arange(len(blocks), device=blocks.device)
    wider = blocks.shape[2] >= blocks.shape[1]
    power = blocks @ blocks.mH if wider else blocks.mH @ blocks  # G, (F, C, C) with C the smaller side
    log_scale, p = power.new_zeros(len(alive), dtype=power.real.dtype), 1
    for _ in range(SQUARINGS):
        if power.numel() <= FEW:
            break
        numbers = torch.view_as_real(power).flatten(1)
        length = torch.linalg.vector_norm(numbers, dim=1).clamp_min(TINY)  # (F,) sqrt(tr G^2p), but for the scale
        trace = power.diagonal(dim1=1, dim2=2).real.sum(1).clamp_min(TINY)
        above = (length.log() + log_scale) / p  # eq. (6), logs of sigma^2
        below = (2 * length.log() - trace.log() + log_scale) / p
        keep = above >= below.max() - 1e-4  # room for rounding
        if not bool(keep.all()):
            alive, power, log_scale, length = alive[keep], power[keep], log_scale[keep], length[keep]
        power = power * length[:, None, None].reciprocal()
        log_scale, power, p = 2 * (log_scale + length.log()), power @ power, 2 * p
    u, s, vh = torch.linalg.svd(blocks[alive], full_matrices=False)
    best = int(s[:, 0].argmax())
    return u[best, :, 0], vh[best, 0].conj(), int(alive[best])
