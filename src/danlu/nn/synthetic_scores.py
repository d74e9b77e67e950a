r"""Attention scores without query-key products: made from each token alone, or from nothing but the places.

    dense               S_ij = w_j . relu(W x_i + c) + b_j                                                    (1)
    random              S_ij = R_ij, learned or fixed                                                         (2)
    factorized dense    S_ij = A_i[j div n] C_i[j mod n],    A_i (m) and C_i (n) linear in relu(W x_i + c)    (3)
    factorized random   S_ij = r_i . s_j,    r_i and s_j of k numbers                                         (4)
    vanilla             S_ij = q_i . k_j / sqrt(d), the ordinary one, to mix with                             (5)
    mixture             S = sum_p alpha_p S^p,    alpha = softmax of free logits, or 1 for each               (6)

Tables are made for L places; a sequence of T <= L tokens uses their first T rows and columns. (1) is attention whose
keys are frozen to the constants w_j, (2) and (4) freeze the queries too. In (3) L = m n, and j -> (j div n, j mod n)
reaches every pair once: one factor is repeated number by number, the other tiled. Where both are tiled alike, as a
public copy has it (`tiling="same"`), column j sees (j mod m, j mod n): columns j and j + lcm(m, n) are equal whatever
the input, and of 64 columns made as 8 x 8 only 8 differ. (3) is a product, so its softmax does not part into two; that
of the sum A + C (`combine="sum"`) does.

There is no factor 1 / sqrt(d) but in (5). Every head has tables of its own. Layers that hold them are in
`danlu.nn.synthetic_layers`, the attention over such scores in `danlu.nn.synthesizer`.

Source: Tay et al., 2020, arXiv:2005.00743; the reading as frozen keys and queries, and the doubt about the tiling that
is settled here: kexue.fm/archives/7430.
Shapes: B sequences, T tokens, H heads, D features, d = D / H, F hidden features of a head, L places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide

__all__ = [
    "dense_scores",
    "factor_pair",
    "factorized_dense_scores",
    "factorized_random_scores",
    "mix_scores",
]


def dense_scores(x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scores of every token for the T first places, made from that token alone, eq. (1).

    Args:
        x: (B, T, D) tokens, any float dtype.
        hidden_weight: (H, F, D), W of eq. (1).
        hidden_bias: (H, F), c.
        weight: (H, F, L) with column j for place j, L >= T.
        bias: (H, L), b.

    Returns:
        (B, H, T, T); heads lie first in memory, since one product a head serves the whole batch.

    Raises:
        ValueError: T is beyond L.

    >>> one = torch.ones(1, 1, 1)
    >>> dense_scores(torch.tensor([[[2.0], [-1.0]]]), one, one[0], torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 2))
    tensor([[[[3., 9.],
              [0., 0.]]]])
    """
    length = x.shape[1]
    check_length(length, weight.shape[-1])
    hidden = hidden_features(x, hidden_weight, hidden_bias)  # (H, B T, F)
    scores = torch.baddbmm(bias[:, None, :length], hidden, weight[..., :length])  # (H, B T, T)  eq. (1)
    return scores.unflatten(1, x.shape[:2]).transpose(0, 1)


def factorized_dense_scores(
    first: Tensor, second: Tensor, length: int | None = None, tiling: str = "interleaved", combine: str = "product"
) -> Tensor:
    """Scores for places 0 ... length - 1 from two short rows a token, eq. (3).

    Args:
        first: (..., T, m), A of eq. (3).
        second: (..., T, n), C.
        length: places, at most m n; None: T.
        tiling: "interleaved", eq. (3), or "same": both rows tiled, which makes columns collide.
        combine: "product", or "sum" for A + C.

    Returns:
        (..., T, length).

    Raises:
        ValueError: length is beyond m n, or an option is unknown.

    >>> a, c = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 10.0]])
    >>> factorized_dense_scores(a, c, 4), factorized_dense_scores(a, c, 4, "same")
    (tensor([[ 1., 10.,  2., 20.]]), tensor([[ 1., 20.,  1., 20.]]))
    """
    if tiling not in ("interleaved", "same") or combine not in ("product", "sum"):
        raise ValueError(
            f"tiling must be 'interleaved' or 'same' and combine 'product' or 'sum'; got {tiling!r} and {combine!r}"
        )
    length = first.shape[-2] if length is None else length
    rows, columns = first.shape[-1], second.shape[-1]
    check_length(length, rows * columns)
    if tiling == "same":
        places = torch.arange(length, device=first.device)
        left, right = first[..., places % rows], second[..., places % columns]
    else:
        left = first[..., : -(-length // columns), None]  # no more rows of the table than are read
        right = second[..., None, :]
    scores = left * right if combine == "product" else left + right  # eq. (3)
    return scores if tiling == "same" else scores.flatten(-2)[..., :length]


def factorized_random_scores(first: Tensor, second: Tensor, length: int) -> Tensor:
    """Scores that depend on the two places alone, as products of short vectors, eq. (4).

    Args:
        first: (H, L, k), r of eq. (4).
        second: (H, L, k), s.
        length: T, at most L.

    Returns:
        (1, H, T, T) in float32 or better, under autocast too.

    Raises:
        ValueError: length is beyond L.

    >>> factorized_random_scores(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [5.0]]]), 2)
    tensor([[[[ 3.,  5.],
              [ 6., 10.]]]])
    """
    check_length(length, min(first.shape[1], second.shape[1]))
    with torch.autocast(first.device.type, enabled=False):  # tables near zero lose their differences in bfloat16
        return (wide(first[:, :length]) @ wide(second[:, :length]).mT)[None]  # eq. (4)


def mix_scores(scores: Sequence[Tensor], logits: Tensor | None = None) -> Tensor:
    """Several kinds of scores in one, eq. (6).

    Args:
        scores: P tensors, each (B, H, T, T) or (1, H, T, T).
        logits: (P, H), alpha is their softmax over the kinds; None: alpha is 1, the sum.

    Returns:
        (B, H, T, T), or (1, H, T, T) where all are; float32 or better where logits are given.

    Raises:
        ValueError: no scores, or logits of another number of kinds.

    >>> mix_scores([torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)], torch.zeros(2, 1))
    tensor([[[[0.5000, 0.5000]]]])
    """
    if not scores or (logits is not None and (logits.ndim != 2 or len(logits) != len(scores))):
        given = "none" if logits is None else str(tuple(logits.shape))
        raise ValueError(
            f"mix_scores needs a row of logits (kinds, heads) for each kind; got {len(scores)} and {given}"
        )
    if logits is None:
        return sum(scores[1:], start=scores[0])
    alpha = wide(logits).softmax(0)[..., None, None]  # (P, H, 1, 1)
    parts = [weight * part for weight, part in zip(alpha, scores, strict=True)]
    return sum(parts[1:], start=parts[0])  # eq. (6)


def factor_pair(length: int) -> tuple[int, int]:
    """The two divisors of a length that lie nearest to its square root, the smaller one first.

    Args:
        length: L >= 1.

    Returns:
        (m, n) with m n = L and m <= n.

    Raises:
        ValueError: L is below 1, or a prime, which has no such factors.

    >>> factor_pair(48), factor_pair(512)
    ((6, 8), (16, 32))
    """
    if length < 1:
        raise ValueError(f"a length is at least 1, got {length}")
    small = next(m for m in range(math.isqrt(length), 0, -1) if length % m == 0)
    if small == 1 and length > 1:
        raise ValueError(f"{length} is prime, so no two factors make it; take max_len={length + 1}, or give factors=")
    return small, length // small


def check_length(length: int, max_len: int) -> None:
    """Refuse a sequence that is longer than the tables."""
    if length > max_len:
        raise ValueError(
            f"{length} tokens, and the scores are made for max_len={max_len} places; truncate the text, or build the "
            f"layer with max_len={length} (resize_({length}) stretches trained tables, with loss)"
        )


def hidden_features(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(H, B T, F) relu(W x + c) of tokens (B, T, D), one product for all heads."""
    heads, features, _ = weight.shape
    hidden = F.linear(x.flatten(0, 1), weight.flatten(0, 1), bias.flatten())  # (B T, H F)
    return F.relu(hidden).unflatten(1, (heads, features)).transpose(0, 1)
