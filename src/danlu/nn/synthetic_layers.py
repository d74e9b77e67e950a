r"""Layers that hold the tables of `danlu.nn.synthetic_scores`: one a kind, each takes tokens and gives scores.

    R, w_j  ~  uniform up to sqrt(6 / (rows + columns))                                                       (1)
    r, s    ~  normal with variance k^(-1/2), so that r . s has variance 1                                    (2)

Numbers drawn by (1) are small, so softmax starts near the plain mean of all tokens; heads start apart, since each has
tables of its own. Decay draws tables back to that mean: keep them out of it (`SynthesizerAttention.no_weight_decay`).

`resize_` makes the tables of another number of places, before an optimizer is built: a shorter layer keeps the first
ones and gives what the longer one gave on short texts; a longer one spreads all of them by linear interpolation, which
no training has seen and which costs accuracy.

Source: Tay et al., 2020, arXiv:2005.00743; (1): Glorot and Bengio, 2010; (2): own choice.
Shapes: B sequences, T tokens, H heads, D features, F hidden features of a head, L places.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide
from danlu.nn.synthetic_scores import (
    check_length,
    dense_scores,
    factor_pair,
    factorized_dense_scores,
    factorized_random_scores,
    hidden_features,
)

__all__ = ["DenseScores", "DotProductScores", "FactorizedDenseScores", "FactorizedRandomScores", "RandomScores"]


class DenseScores(nn.Module):
    """`dense_scores` with its weights; hidden_dim=None takes the size of a head.

    Source: see the module. Shapes: see the module.
    """

    def __init__(self, dim: int, num_heads: int, max_len: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden = dim // num_heads if hidden_dim is None else hidden_dim
        self.hidden_weight, self.hidden_bias = _hidden_weights(dim, num_heads, hidden)
        self.weight = nn.Parameter(_xavier(num_heads, hidden, max_len))
        self.bias = nn.Parameter(torch.zeros(num_heads, max_len))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, T, T) scores of tokens (B, T, D)."""
        return dense_scores(x, self.hidden_weight, self.hidden_bias, self.weight, self.bias)

    def resize_(self, max_len: int) -> None:
        """Tables for another number of places: the first ones, or all of them stretched."""
        self.weight = nn.Parameter(_stretched(self.weight.detach(), max_len, -1))
        self.bias = nn.Parameter(_stretched(self.bias.detach(), max_len, -1))


class RandomScores(nn.Module):
    """A `table` (H, L, L), a parameter, or a buffer that nothing trains.

    Source: see the module. Shapes: see the module.
    """

    table: Tensor

    def __init__(self, num_heads: int, max_len: int, trainable: bool = True) -> None:
        super().__init__()
        table = _xavier(num_heads, max_len, max_len)
        if trainable:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        """(1, H, T, T), the same for all tokens (B, T, D)."""
        length = x.shape[1]
        check_length(length, self.table.shape[-1])
        return self.table[None, :, :length, :length]

    def resize_(self, max_len: int) -> None:
        """A table for another number of places: its first rows and columns, or all of it stretched."""
        table = _stretched(_stretched(self.table.detach(), max_len, 1), max_len, 2)
        self.table = nn.Parameter(table) if isinstance(self.table, nn.Parameter) else table


class FactorizedDenseScores(nn.Module):
    """`factorized_dense_scores` of two linear maps of one hidden layer; factors are (m, n) with m n = L.

    Source: see the module. Shapes: see the module.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        max_len: int,
        hidden_dim: int | None = None,
        factors: tuple[int, int] | None = None,
        tiling: str = "interleaved",
        combine: str = "product",
    ) -> None:
        super().__init__()
        m, n = factor_pair(max_len) if factors is None else factors
        if m < 1 or n < 1 or m * n != max_len:
            raise ValueError(f"factors must multiply to max_len={max_len}, got {m} x {n} = {m * n}")
        hidden = dim // num_heads if hidden_dim is None else hidden_dim
        self.factors, self.tiling, self.combine = (m, n), tiling, combine
        self.hidden_weight, self.hidden_bias = _hidden_weights(dim, num_heads, hidden)
        self.weight = nn.Parameter(torch.cat([_xavier(num_heads, hidden, size) for size in (m, n)], -1))  # (H, F, m+n)
        self.bias = nn.Parameter(torch.zeros(num_heads, m + n))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, T, T) scores of tokens (B, T, D)."""
        hidden = hidden_features(x, self.hidden_weight, self.hidden_bias)  # (H, B T, F)
        rows = torch.baddbmm(self.bias[:, None], hidden, self.weight).unflatten(1, x.shape[:2])  # (H, B, T, m + n)
        first, second = rows.split(self.factors, dim=-1)
        return factorized_dense_scores(first, second, None, self.tiling, self.combine).transpose(0, 1)

    def resize_(self, max_len: int) -> None:
        """Another m, the first or all of A's columns stretched; n stays, so max_len must be a multiple of it."""
        m, n = self.factors
        if max_len % n:
            raise ValueError(f"the second factor stays {n}, so max_len must be a multiple of it; got {max_len}")
        for name in ("weight", "bias"):
            first, second = getattr(self, name).detach().split((m, n), dim=-1)
            setattr(self, name, nn.Parameter(torch.cat([_stretched(first, max_len // n, -1), second], -1)))
        self.factors = (max_len // n, n)


class FactorizedRandomScores(nn.Module):
    """`factorized_random_scores` of a `row_table` and a `column_table` (H, L, k).

    Source: see the module. Shapes: see the module.
    """

    def __init__(self, num_heads: int, max_len: int, rank: int = 8) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}; the paper takes 8")
        self.row_table = nn.Parameter(torch.randn(num_heads, max_len, rank) * rank**-0.25)  # eq. (2)
        self.column_table = nn.Parameter(torch.randn(num_heads, max_len, rank) * rank**-0.25)

    def forward(self, x: Tensor) -> Tensor:
        """(1, H, T, T), the same for all tokens (B, T, D)."""
        return factorized_random_scores(self.row_table, self.column_table, x.shape[1])

    def resize_(self, max_len: int) -> None:
        """Tables for another number of places: their first rows, or all of them stretched."""
        self.row_table = nn.Parameter(_stretched(self.row_table.detach(), max_len, 1))
        self.column_table = nn.Parameter(_stretched(self.column_table.detach(), max_len, 1))


class DotProductScores(nn.Module):
    """Scaled products of queries and keys, for any length; `query`, `key` are named as in `nn.MultiHeadAttention`.

    Source: see the module. Shapes: see the module.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, T, T) scores of tokens (B, T, D)."""
        query, key = (part(x).unflatten(-1, (self.num_heads, -1)) for part in (self.query, self.key))  # (B, T, H, d)
        query = query * query.shape[-1] ** -0.5
        return (query.permute(2, 0, 1, 3) @ key.permute(2, 0, 3, 1)).transpose(0, 1)


def _hidden_weights(dim: int, num_heads: int, hidden: int) -> tuple[nn.Parameter, nn.Parameter]:
    if hidden < 1:
        raise ValueError(f"hidden_dim must be at least 1, got {hidden}; None takes the size of a head")
    return nn.Parameter(_xavier(num_heads, hidden, dim)), nn.Parameter(torch.zeros(num_heads, hidden))


def _xavier(num_heads: int, rows: int, columns: int) -> Tensor:
    """(H, rows, columns), in every head eq. (1)."""
    return torch.empty(num_heads, rows, columns).uniform_(-1, 1) * math.sqrt(6 / (rows + columns))  # eq. (1)


def _stretched(table: Tensor, length: int, dim: int) -> Tensor:
    """The first entries along an axis, or all of them spread over a longer one by linear interpolation."""
    if length <= table.shape[dim]:
        return table.narrow(dim, 0, length).clone()
    moved = table.movedim(dim, -1)
    flat = wide(moved).reshape(1, -1, moved.shape[-1])
    longer = F.interpolate(flat, size=length, mode="linear", align_corners=True)[0].to(table.dtype)
    return longer.reshape(*moved.shape[:-1], length).movedim(-1, dim).contiguous()
