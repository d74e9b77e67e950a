r"""The factors of Nyström attention, for pictures and reports.

    left @ middle @ right @ value = output,    F, A^+ and G of `danlu.nn.nystrom`                              (1)

Source: Xiong et al., 2021, arXiv:2102.03902; kexue.fm/archives/8180.
Shapes: B sequences, H heads, T queries, S keys, K features of a key, m landmarks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.precision import wide
from danlu.nn.landmarks import member_means, segment_members
from danlu.nn.nystrom import (
    checked_query_mask,
    inverse_of,
    landmark_counts,
    landmark_softmax,
    masked_softmax,
    softmax_over_tokens,
)

__all__ = ["NystromFactors", "nystrom_factors"]


class NystromFactors(NamedTuple):
    """What multiplies to the matrix that Nyström attention stands for; there is none of n x n.

    Args:
        left: (B, H, T, m), F: what each query has of each landmark.
        middle: (B, H, m, m), A^+; the identity in modes without it.
        right: (B, H, m, S), G: what each landmark has of each key.
    """

    left: Tensor
    middle: Tensor
    right: Tensor


@torch.no_grad()
def nystrom_factors(
    query: Tensor,
    key: Tensor,
    num_landmarks: int = 64,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    mode: str = "nystrom",
    pinv: int | float | str = "auto",
    scale: float | None = None,
) -> NystromFactors:
    """The three factors whose product is the matrix that the attention stands for, eq. (1); none is of n x n.

    Args:
        query: (B, H, T, K), any float dtype.
        key: (B, H, S, K).
        num_landmarks: m; "double_softmax" has K columns instead.
        mask: (B, S) bool, as of `nystrom_attention`.
        query_mask: (B, T) bool, likewise.
        mode: "nystrom", "landmark" or "double_softmax".
        pinv: as of `nystrom_attention`.
        scale: factor s of the products, None: 1 / sqrt(K).

    Returns:
        left, middle and right in float32 or better, without a graph. A sequence with at most m tokens has units
        instead of weights on one side and the identity in the middle.

    Raises:
        ValueError: as of `nystrom_attention`.

    >>> left, middle, right = nystrom_factors(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), 2, mode="landmark")
    >>> (left @ middle @ right)[0, 0, 0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    query_mask = checked_query_mask(query, key, key, num_landmarks, mask, query_mask, mode, pinv, scale, False)
    batch, _, queries, dim = query.shape
    m, s = num_landmarks, dim**-0.5 if scale is None else scale
    noise = query.dtype
    keep_k = query.new_ones(batch, key.shape[2], dtype=torch.bool) if mask is None else mask
    keep_q = query.new_ones(batch, queries, dtype=torch.bool) if query_mask is None else query_mask
    query = wide(query).masked_fill(~keep_q[:, None, :, None], 0.0)
    key = wide(key).masked_fill(~keep_k[:, None, :, None], 0.0)
    with torch.autocast(query.device.type, enabled=False):
        if mode == "double_softmax":
            eye = torch.eye(dim, dtype=query.dtype, device=query.device).expand(*query.shape[:2], -1, -1)
            left, right = query.softmax(-1), softmax_over_tokens(key, keep_k)
            return NystromFactors(left.masked_fill(~keep_q[:, None, :, None], 0.0), eye, right)
        tokens_q, tokens_k = keep_q.sum(1), keep_k.sum(1)  # (B,)
        used_q, used_k = landmark_counts(tokens_q, tokens_k, m, mode)
        member_q, member_k = segment_members(keep_q, used_q, m), segment_members(keep_k, used_k, m)  # (B, m, T or S)
        q, k = member_means(query, member_q), member_means(key, member_k)
        place = torch.arange(m, device=query.device)
        hidden = (place >= used_k[:, None])[:, None, None, :]
        left = masked_softmax(s * query @ k.mT, ~hidden)
        right = masked_softmax(s * q @ key.mT, keep_k[:, None, None, :])
        right = right.masked_fill((place >= used_q[:, None])[:, None, :, None], 0.0)
        middle = torch.eye(m, dtype=query.dtype, device=query.device).expand(*query.shape[:2], -1, -1)
        if mode == "nystrom":
            few_keys = (tokens_k <= m)[:, None, None, None]
            few_queries = (tokens_q <= m)[:, None, None, None] & ~few_keys
            exact = few_keys | few_queries
            inverse = inverse_of(torch.where(exact, middle, landmark_softmax(q, k, s)), pinv, noise)
            middle = torch.where(exact, middle, inverse)
            right = torch.where(few_keys, member_k[:, None].to(right.dtype), right)
            left = torch.where(few_queries, member_q.mT[:, None].to(left.dtype), left)
        return NystromFactors(left.masked_fill(~keep_q[:, None, :, None], 0.0), middle, right)
