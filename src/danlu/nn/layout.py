r"""How the tokens of a batch lie in memory: padded rows, or packed without any padding.

Layers of a transformer act on single tokens, all but attention. So hidden states travel as (N, D), one row a token,
and a `Layout` says which tokens form a sequence. A padded batch is one group of B rows of T tokens with a mask; a
packed one holds the real tokens alone, sorted by length, so that every run of equally long sequences is a view (count,
length, ...) and attention needs neither a mask nor a copy. Short texts padded to the longest waste two thirds of all
work; packed, none.

Source: packing without padding is common practice, e.g. Zeng et al., 2022, arXiv:2208.08124; the groups of views are
ours.
Shapes: B sequences, T tokens of the longest, N tokens kept in all, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Group", "Layout", "packed_layout", "padded_layout"]


@dataclass(frozen=True)
class Group:
    """Equally long sequences that lie side by side: `count` of `length` tokens."""

    count: int
    length: int


@dataclass(frozen=True)
class Layout:
    """Which of N tokens form sequences.

    Args:
        groups: runs of equally long sequences, in the order of the tokens.
        positions: (N,) int64, each token's place in its sequence.
        rows: (N,) int64, each token's row of the batch.
        index: (N,) int64, each token's place in the flattened (B * T) batch; None: tokens are the whole batch in order.
        keep: (B, T) bool, True where a key may be seen; None: everywhere. Only of a padded layout.
        shape: (B, T).
    """

    groups: tuple[Group, ...]
    positions: Tensor
    rows: Tensor
    index: Tensor | None
    keep: Tensor | None
    shape: tuple[int, int]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max((group.length for group in self.groups), default=0)

    def gather(self, batch: Tensor) -> Tensor:
        """Tokens (N, ...) out of a padded batch (B, T, ...)."""
        flat = batch.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def scatter(self, tokens: Tensor) -> Tensor:
        """The padded batch (B, T, ...) of tokens (N, ...); zeros where no token was kept."""
        if self.index is None:
            return tokens.unflatten(0, self.shape)
        flat = tokens.new_zeros((self.shape[0] * self.shape[1], *tokens.shape[1:]))
        return flat.index_copy(0, self.index, tokens).unflatten(0, self.shape)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Views (count, length, ...) of tokens (N, ...), one a group."""
        sizes = [group.count * group.length for group in self.groups]
        parts = (tokens,) if len(sizes) == 1 else tokens.split(sizes)
        return [part.unflatten(0, (group.count, group.length)) for part, group in zip(parts, self.groups, strict=True)]

    def join(self, parts: list[Tensor]) -> Tensor:
        """Tokens (N, ...) out of sequences (count, length, ...), one tensor a group: the way back from `split`."""
        return parts[0].flatten(0, 1) if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])


def padded_layout(batch: int, length: int, keep: Tensor | None = None, device: torch.device | None = None) -> Layout:
    """The layout of a padded batch: one group, every position a token.

    Args:
        batch: rows, B.
        length: tokens of each row, T.
        keep: (B, T) bool, True where a key may be seen; None: everywhere.
        device: where the index tensors are made.

    Returns:
        A layout of B * T tokens.

    >>> padded_layout(2, 3).positions
    tensor([0, 1, 2, 0, 1, 2])
    """
    positions = torch.arange(length, device=device).repeat(batch)
    rows = torch.arange(batch, device=device)[:, None].expand(batch, length).flatten()  # ONNX has no repeat_interleave
    return Layout((Group(batch, length),), positions, rows, None, keep, (batch, length))


def packed_layout(keep: Tensor) -> Layout:
    """The layout of the kept tokens alone, shortest sequences first.

    Args:
        keep: (B, T) bool, True for tokens; every row is a run of True, then False.

    Returns:
        A layout of keep.sum() tokens; rows without a token do not occur in it.

    Raises:
        ValueError: a row has a gap, so that places in the row and in the packed sequence would differ.

    >>> packed_layout(torch.tensor([[True, True], [True, False]])).rows
    tensor([1, 0, 0])
    """
    batch, length = keep.shape
    lengths = keep.sum(1)
    if not is_prefix(keep):
        raise ValueError("only right-padded batches can be packed: a mask has a gap or starts with padding")
    order = lengths.argsort(stable=True)
    ordered = lengths[order]
    place = torch.arange(length, device=keep.device)
    taken = place < ordered[:, None]  # (B, T), rows in order of length
    rows = order[:, None].expand(batch, length)[taken]  # (N,)
    positions = place.expand(batch, length)[taken]  # (N,)
    sizes, counts = torch.unique_consecutive(ordered[ordered > 0], return_counts=True)
    groups = [Group(count, size) for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)]
    return Layout(tuple(groups), positions, rows, rows * length + positions, None, (batch, length))


def is_prefix(keep: Tensor) -> bool:
    """Whether every row of a (B, T) mask is True up to its length and False after."""
    return not bool((keep[:, 1:] & ~keep[:, :-1]).any())
