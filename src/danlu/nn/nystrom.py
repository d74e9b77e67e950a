r"""Nyström attention: softmax attention at linear cost, out of three small softmaxes and a pseudo-inverse.

    double_softmax    O = softmax(Q) [softmax(K^T) V]                                                          (1)
    landmark          O = softmax(s Q K~^T) [softmax(s Q~ K^T) V]                                              (2)
    nystrom           O = F A^+ [G V],  F = softmax(s Q K~^T),  A = softmax(s Q~ K~^T),  G = softmax(s Q~ K^T) (3)
    segment of the token of rank r among the n tokens of its sequence    floor(r min(m, n) / n)                (4)
    A A^+ A = A;  with A^+ = A^{-1} and m = n, (3) is softmax(s Q K^T) V                                       (5)

s is 1 / sqrt(K), Q~ and K~ are m landmarks, the means over the segments (4) of Q and K. Each step of the derivation is
a mode: in (1) no query meets a key; in (2) all weights are products and the rows of what they multiply to sum to one;
(3) puts in between the matrix for which m = n gives exact attention, so it is exact there, and signed elsewhere. Since
G V and F W are themselves attention, (2) and (3) are two calls of the fused kernel, and no matrix of n columns is kept.

Padding takes no part: ranks in (4) count tokens, so that left, right and interior padding is alike, landmarks are means
over tokens, and what is hidden has no weight. A sequence with at most m tokens (of queries or of keys) gets exact
attention, whatever its neighbours. Each sequence gets what it would get alone; the public implementations average
padding into the landmarks or weigh empty landmarks. Causal use is refused: a landmark holds later tokens.

A full inverse is not the best: it multiplies what tokens differ from their landmarks by. "auto" inverts what stands out
of a noise of 3e-3, in up to eight steps of `danlu.math.pseudo_inverse`, each matrix as many as it needs, in float32 or
better. On random queries and keys that vary along the sequence this erred less than the paper's six steps where weights
were soft, somewhat more where they were sharp, and less than full inverses in most cases. Attention dropout has no
place here: F A^+ cancels, and a dropped weight would not.

Source: Xiong et al., 2021, arXiv:2102.03902; Su, kexue.fm/archives/8180, whose derivation the modes are; (1) is Shen et
al., 2018, arXiv:1812.01243, and kexue.fm/archives/7546. The treatment of padding is ours.
Shapes: B sequences, H heads, T queries, S keys, K features of a key, V of a value, m landmarks, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.precision import wide
from danlu.math.pseudo_inverse import iterative_pinv
from danlu.nn.attention import attend, some_key
from danlu.nn.landmarks import member_means, segment_means, segment_members

__all__ = ["nystrom_attention"]

MODES = ("nystrom", "landmark", "double_softmax")
PAPER_STEPS = 6
NOISE = 3e-3  # of what a landmark stands for


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_landmarks: int = 64,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    mode: str = "nystrom",
    pinv: int | float | str = "auto",
    scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention outputs of eq. (3), or (1) or (2), each sequence as if it were alone.

    Args:
        query: (B, H, T, K), any float dtype.
        key: (B, H, S, K).
        value: (B, H, S, V).
        num_landmarks: m, at least 1; where T or S is no larger, "nystrom" is exact attention.
        mask: (B, S) bool, True for tokens among the keys; None: all.
        query_mask: (B, T) bool, True for tokens among the queries; None: that of the keys if T = S, else all.
        mode: "nystrom", "landmark" or "double_softmax".
        pinv: how A^+ is found: "auto", the noise in (0, 1) below which nothing is inverted (3e-3 in "auto"), a number
            of steps, "paper" (6 steps) or "exact" (a singular value decomposition).
        scale: factor s of the products, None: 1 / sqrt(K). Eq. (1) has none.
        causal: refused where True.

    Returns:
        (B, H, T, V) in the dtype of value; zeros for queries that are no tokens and where no key is one.

    Raises:
        ValueError: shapes, masks, mode, pinv or landmarks that do not fit; causal use.

    >>> value = torch.tensor([[[[0.0], [1.0], [2.0], [9.0]]]])
    >>> nystrom_attention(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), value, 2)  # all alike: the mean
    tensor([[[[3.],
              [3.],
              [3.],
              [3.]]]])
    """
    query_mask = checked_query_mask(query, key, value, num_landmarks, mask, query_mask, mode, pinv, scale, causal)
    queries, keys = query.shape[2], key.shape[2]
    if _may_ask(query):
        mask = None if mask is not None and bool(mask.all()) else mask
        query_mask = None if query_mask is not None and bool(query_mask.all()) else query_mask
    if mask is not None:
        key, value = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (key, value))  # NaN there stays there
    if query_mask is not None:
        query = query.masked_fill(~query_mask[:, None, :, None], 0.0)
    if mode == "double_softmax":
        output = _double_softmax(query, key, value, mask)
    else:
        s = query.shape[3] ** -0.5 if scale is None else scale
        seen = None if mask is None else some_key(mask)[:, None, None, :]
        if mode == "nystrom" and min(queries, keys) <= num_landmarks:
            output = attend(query, key, value, mask=seen, scale=s)[0]
        elif mask is None and query_mask is None:
            m = min(num_landmarks, queries, keys)
            q, k = segment_means(query, m), segment_means(key, m)  # (B, H, m, K)
            middle = attend(q, key, value, scale=s)[0]  # (B, H, m, V), G V
            if mode == "nystrom":
                middle = _times_inverse(landmark_softmax(q, k, s), middle, pinv, query.dtype)
            output = attend(query, k, middle, scale=s)[0]  # eqs. (2), (3)
        else:
            output = _masked(query, key, value, num_landmarks, mask, query_mask, mode, pinv, s)
    if query_mask is not None:
        output = output.masked_fill(~query_mask[:, None, :, None], 0.0)
    if mask is not None and mask is not query_mask:
        output = output.masked_fill(~mask.any(1)[:, None, None, None], 0.0)
    return output


def _masked(
    query: Tensor, key: Tensor, value: Tensor, m: int, mask: Tensor | None, query_mask: Tensor | None, mode: str,
    pinv: int | float | str, s: float,
) -> Tensor:  # fmt: skip
    """Eqs. (2) and (3) where sequences have different numbers of tokens; what is hidden is zero already."""
    marks = padded_landmarks(query, key, m, mask, query_mask, mode)
    means = attend(marks.query, key, value, mask=some_key(marks.keep_k)[:, None, None, :], scale=s)[0]  # G V
    middle = means  # (B, H, m, V)
    ask = _may_ask(query)
    if mode == "nystrom":
        a, exact = landmark_softmax(marks.query, marks.key, s), marks.few_keys | marks.few_queries
        if not ask or bool(exact.any()):
            a = torch.where(exact[:, None, None, None], torch.eye(m, dtype=a.dtype, device=a.device), a)
        middle = _times_inverse(a, means, pinv, query.dtype)
        if not ask or bool(marks.few_keys.any()):  # every landmark is a key: F is exact attention
            middle = torch.where(marks.few_keys[:, None, None, None], member_means(value, marks.member_k), middle)
    place = torch.arange(m, device=query.device)
    seen = place < marks.used_k.clamp_min(1)[:, None]  # (B, m)
    output = attend(query, marks.key, middle, mask=seen[:, None, None, :], scale=s)[0]  # eqs. (2), (3)
    if mode == "nystrom" and (not ask or bool(marks.few_queries.any())):  # every landmark is a query: G V is the output
        rank = (marks.keep_q.cumsum(1) - 1).clamp(0, m - 1)[:, None, :, None]
        own = means.gather(2, rank.expand(-1, means.shape[1], -1, means.shape[3]))
        output = torch.where(marks.few_queries[:, None, None, None], own, output)
    return output


def _may_ask(x: Tensor) -> bool:
    """Whether looking at values costs nothing: neither a graph nor an accelerator has to wait."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class PaddedLandmarks(NamedTuple):
    """Landmarks of sequences with different numbers of tokens.

    keep_q, keep_k: (B, T) and (B, S), where tokens are. used_q, used_k: (B,) landmarks that are not empty. member_q,
    member_k: (B, m, T) and (B, m, S), the tokens of each. query, key: (B, H, m, K). few_keys, few_queries: (B,), where
    (3) is exact attention: every landmark is a key or, if none of these, a query.
    """

    keep_q: Tensor
    keep_k: Tensor
    used_q: Tensor
    used_k: Tensor
    member_q: Tensor
    member_k: Tensor
    query: Tensor
    key: Tensor
    few_keys: Tensor
    few_queries: Tensor


def padded_landmarks(
    query: Tensor, key: Tensor, m: int, mask: Tensor | None, query_mask: Tensor | None, mode: str
) -> PaddedLandmarks:
    """Of queries and keys that are zero where they are no tokens; (2) pairs landmarks off, (3) need not."""
    keep_q = query.new_ones(len(query), query.shape[2], dtype=torch.bool) if query_mask is None else query_mask
    keep_k = query.new_ones(len(key), key.shape[2], dtype=torch.bool) if mask is None else mask
    tokens_q, tokens_k = keep_q.sum(1), keep_k.sum(1)  # (B,)
    few_keys = tokens_k <= m
    few_queries = (tokens_q <= m) & ~few_keys
    if mode == "landmark":
        tokens_q = tokens_k = torch.minimum(tokens_q, tokens_k)
    used_q, used_k = tokens_q.clamp_max(m), tokens_k.clamp_max(m)
    member_q, member_k = segment_members(keep_q, used_q, m), segment_members(keep_k, used_k, m)
    means = member_means(query, member_q), member_means(key, member_k)
    return PaddedLandmarks(keep_q, keep_k, used_q, used_k, member_q, member_k, *means, few_keys, few_queries)


def landmark_softmax(q: Tensor, k: Tensor, s: float) -> Tensor:
    """A of eq. (3), (B, H, m, m), in float32 or better."""
    with torch.autocast(q.device.type, enabled=False):
        return (s * wide(q) @ wide(k).mT).softmax(-1)


def inverse_of(a: Tensor, pinv: int | float | str, dtype: torch.dtype) -> Tensor:
    """A^+ of eq. (3), where the entries of A come from numbers of a dtype."""
    return torch.linalg.pinv(a) if pinv == "exact" else iterative_pinv(a, *pinv_settings(pinv, dtype))


def pinv_settings(pinv: int | float | str, dtype: torch.dtype) -> tuple[int | str, float | None]:
    """Steps and noise of `danlu.math.iterative_pinv`."""
    if pinv == "paper":
        return PAPER_STEPS, None
    if isinstance(pinv, int):
        return pinv, None
    noise = NOISE if isinstance(pinv, str) else pinv
    return "auto", max(noise, torch.finfo(dtype).eps)


def _times_inverse(a: Tensor, means: Tensor, pinv: int | float | str, dtype: torch.dtype) -> Tensor:
    """A^+ (G V), in the dtype of G V."""
    with torch.autocast(a.device.type, enabled=False):
        return (inverse_of(a, pinv, dtype) @ means.to(a.dtype)).to(means.dtype)


def _double_softmax(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        means = softmax_over_tokens(wide(key), mask) @ wide(value)  # (B, H, K, V)
        return (wide(query).softmax(-1) @ means).to(value.dtype)  # eq. (1)


def softmax_over_tokens(key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(K^T) of eq. (1), (B, H, K, S)."""
    return masked_softmax(key.mT, None if mask is None else mask[:, None, None, :])


def masked_softmax(scores: Tensor, keep: Tensor | None) -> Tensor:
    """Over the last axis; zeros where nothing is kept."""
    if keep is None:
        return scores.softmax(-1)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~keep, lowest).softmax(-1).masked_fill(~keep, 0.0)


def check_settings(num_landmarks: int, mode: str, pinv: int | float | str) -> None:
    """Refuse settings that no call can have."""
    if isinstance(num_landmarks, bool) or num_landmarks < 1:
        raise ValueError(f"num_landmarks must be at least 1, got {num_landmarks}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    steps = isinstance(pinv, int) and not isinstance(pinv, bool) and pinv >= 0
    if not steps and not (isinstance(pinv, float) and 0 < pinv < 1) and pinv not in ("auto", "exact", "paper"):
        raise ValueError(
            f"pinv must be 'auto', 'exact', 'paper', a number of steps >= 0 or a noise in (0, 1), got {pinv!r}"
        )


def checked_query_mask(
    query: Tensor, key: Tensor, value: Tensor, num_landmarks: int, mask: Tensor | None, query_mask: Tensor | None,
    mode: str, pinv: int | float | str, scale: float | None, causal: bool,
) -> Tensor | None:  # fmt: skip
    """Refuse what does not fit; the mask of the queries in use."""
    if causal:
        raise ValueError(
            "Nyström attention cannot be causal: a landmark is a mean over tokens, later ones among them, so the "
            "future would leak; use softmax attention, or danlu.nn.linear_attention with causal=True"
        )
    check_settings(num_landmarks, mode, pinv)
    four = query.ndim == key.ndim == value.ndim == 4
    if not four or not (
        query.shape[:2] == key.shape[:2] == value.shape[:2]
        and key.shape[2] == value.shape[2]
        and query.shape[3] == key.shape[3]
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ValueError(f"needs query (B, H, T, K), key (B, H, S, K) and value (B, H, S, V); got {shapes}")
    for name, x in (("query", query), ("key", key)):
        if not x.shape[2]:
            raise ValueError(f"{name} has no tokens, shape {tuple(x.shape)}; leave empty batches out")
    if mode == "double_softmax" and scale is not None:
        raise ValueError("double_softmax forms no products of queries and keys, so scale has no meaning; leave it out")
    if query_mask is None and mask is not None and query.shape[2] == key.shape[2]:
        query_mask = mask
    for name, given, x in (("mask", mask, key), ("query_mask", query_mask, query)):
        if given is not None and (given.dtype != torch.bool or given.shape != (len(x), x.shape[2])):
            raise ValueError(
                f"{name} must be bool {(len(x), x.shape[2])}, True for tokens; got {given.dtype} {tuple(given.shape)}"
            )
    return query_mask
