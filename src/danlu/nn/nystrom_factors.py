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
from danlu.nn.nystrom import (
    checked_query_mask,
    inverse_of,
    landmark_softmax,
    masked_softmax,
    padded_landmarks,
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
    dim, m, s = query.shape[3], num_landmarks, query.shape[3] ** -0.5 if scale is None else scale
    noise, query, key = query.dtype, wide(query), wide(key)
    if mask is not None:
        key = key.masked_fill(~mask[:, None, :, None], 0.0)
    if query_mask is not None:
        query = query.masked_fill(~query_mask[:, None, :, None], 0.0)
    with torch.autocast(query.device.type, enabled=False):
        if mode == "double_softmax":
            middle = torch.eye(dim, dtype=query.dtype, device=query.device).expand(*query.shape[:2], -1, -1)
            left, right = query.softmax(-1), softmax_over_tokens(key, mask)
        else:
            marks = padded_landmarks(query, key, m, mask, query_mask, mode)
            place = torch.arange(m, device=query.device)
            left = masked_softmax(s * query @ marks.key.mT, (place < marks.used_k[:, None])[:, None, None, :])
            right = masked_softmax(s * marks.query @ key.mT, marks.keep_k[:, None, None, :])
            right = right.masked_fill((place >= marks.used_q[:, None])[:, None, :, None], 0.0)
            middle = torch.eye(m, dtype=query.dtype, device=query.device).expand(*query.shape[:2], -1, -1)
            if mode == "nystrom":
                few_keys, few_queries = (few[:, None, None, None] for few in (marks.few_keys, marks.few_queries))
                exact = few_keys | few_queries
                a = torch.where(exact, middle, landmark_softmax(marks.query, marks.key, s))
                middle = torch.where(exact, middle, inverse_of(a, pinv, noise))
                right = torch.where(few_keys, marks.member_k[:, None].to(right.dtype), right)
                left = torch.where(few_queries, marks.member_q.mT[:, None].to(left.dtype), left)
        if query_mask is not None:
            left = left.masked_fill(~query_mask[:, None, :, None], 0.0)
        return NystromFactors(left, middle, right)
