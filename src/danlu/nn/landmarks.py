r"""Means over equal shares of a sequence's tokens: the landmarks of Nyström attention, and a pooling of its own.

    segment of the token of rank r among n tokens, m segments asked for    floor(r min(m, n) / n)              (1)

Ranks count tokens only, so padding on either side or in between changes nothing.

Source: Xiong et al., 2021, arXiv:2102.03902, for n divisible by m; kexue.fm/archives/8180.
Shapes: B sequences, H heads, T tokens, K features, m segments.
"""

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["member_means", "segment_means", "segment_members"]


def segment_means(x: Tensor, num_segments: int, mask: Tensor | None = None) -> Tensor:
    """Means over stretches of about equal numbers of tokens, eq. (1).

    Args:
        x: (B, H, T, K), any float dtype.
        num_segments: m, at least 1.
        mask: (B, T) bool, True for tokens, the others count in nothing; None: all.

    Returns:
        (B, H, m, K) in the dtype of x; zeros behind the last segment of a sequence with fewer than m tokens.

    Raises:
        ValueError: num_segments below 1, or x without tokens.

    >>> segment_means(torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]).view(1, 1, 5, 1), 2).flatten()
    tensor([3., 8.])
    """
    length, m = x.shape[2], num_segments
    if m < 1 or not length:
        raise ValueError(f"segment_means needs at least 1 segment and 1 token; got {m} segments of {tuple(x.shape)}")
    if mask is None and length % m == 0:
        return x.unflatten(2, (m, length // m)).mean(3)
    if mask is None and length > m:
        ends = (torch.arange(m + 1, device=x.device) * length + m - 1) // m  # ceil(j n / m)
        first, size, base = ends[:-1], ends.diff(), length // m
        rows = (first[:, None] + torch.arange(base, device=x.device)).flatten()
        sums = wide(x.index_select(2, rows).unflatten(2, (m, base))).sum(3)  # sizes are base or base + 1
        last = x.index_select(2, (first + base).clamp_max(length - 1))
        sums = torch.where((size > base)[:, None], sums + last, sums)
        return (sums / size[:, None]).to(x.dtype)
    keep = torch.ones(len(x), length, dtype=torch.bool, device=x.device) if mask is None else mask
    members = segment_members(keep, keep.sum(1).clamp_max(m), m)
    return member_means(x.masked_fill(~keep[:, None, :, None], 0.0), members)


def segment_members(keep: Tensor, used: Tensor, num_segments: int) -> Tensor:
    """Which tokens make up which segment, eq. (1).

    Args:
        keep: (B, T) bool, True for tokens.
        used: (B,) int64, how many segments a sequence is cut into, at most its tokens.
        num_segments: m, at least used.

    Returns:
        (B, m, T) bool.

    >>> segment_members(torch.tensor([[True, False, True, True]]), torch.tensor([2]), 2).int()[0]
    tensor([[1, 0, 1, 0],
            [0, 0, 0, 1]], dtype=torch.int32)
    """
    tokens = keep.sum(1, keepdim=True)
    segment = (keep.cumsum(1) - 1) * used[:, None] // tokens.clamp_min(1)  # (B, T)  eq. (1)
    return (segment[:, None] == torch.arange(num_segments, device=keep.device)[:, None]) & keep[:, None]


def member_means(x: Tensor, members: Tensor) -> Tensor:
    """The mean of each segment, in float32 or better and given back in the dtype of x; zeros for an empty one.

    Args:
        x: (B, H, T, K), finite at every place.
        members: (B, m, T) bool, from `segment_members`.

    Returns:
        (B, H, m, K).

    >>> x = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
    >>> member_means(x, torch.tensor([[[True, True], [False, False]]])).flatten()
    tensor([2., 0.])
    """
    with torch.autocast(x.device.type, enabled=False):
        exact = wide(x)
        sums = members[:, None].to(exact.dtype) @ exact  # (B, H, m, K)
        return (sums / members.sum(-1).clamp_min(1)[:, None, :, None]).to(x.dtype)
