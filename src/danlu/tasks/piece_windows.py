"""Texts as the pieces of a transformer's tokenizer, cut into windows with its special tokens around each."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from danlu.data.batching import windows
from danlu.tasks.encoder import Encoder

__all__ = ["PieceWindows", "special_ids"]


def special_ids(encoder: Encoder) -> tuple[list[int], list[int]]:
    """Ids of what stands before a text, [CLS] as a rule, and behind it, [SEP]."""
    tokenizer = encoder.tokenizer
    start, end = ([] if t is None else [tokenizer.token_to_id(t)] for t in (tokenizer.token_start, tokenizer.token_end))
    return start, end


class PieceWindows:
    """Windows over texts that are already cut into pieces.

    Args:
        encoder: whose special tokens stand around a window.
        rows: ids of the pieces of every text, without special tokens; a text without pieces has no window.
        max_len: tokens of a window, special ones included.
        context: pieces a window sees of its neighbours on each side.
        labels: a number for every text, or None.
    """

    def __init__(
        self,
        encoder: Encoder,
        rows: Sequence[Sequence[int]],
        max_len: int,
        context: int = 0,
        labels: Sequence[float] | None = None,
    ) -> None:
        self.start, self.end = special_ids(encoder)
        room = encoder.room(max_len) - len(self.start) - len(self.end)
        self.sizes = [len(row) for row in rows]
        self.ids = np.fromiter(chain.from_iterable(rows), np.int64, sum(self.sizes))
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.labels = None if labels is None else torch.tensor(labels)
        self.windows = windows(self.sizes, room, min(context, (room - 1) // 2))
        self.lengths = [len(w) + len(self.start) + len(self.end) for w in self.windows]

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its windows."""
        return float(len(indices))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """ids and mask (B, T), and label (B,) where there are labels."""
        longest = max(self.lengths[i] for i in indices)
        ids, mask = np.zeros((len(indices), longest), np.int64), np.zeros((len(indices), longest), bool)
        for row, i in enumerate(indices):
            w = self.windows[i]
            begin = int(self.offsets[w.index])
            ids[row, : self.lengths[i]] = [*self.start, *self.ids[begin + w.start : begin + w.stop], *self.end]
            mask[row, : self.lengths[i]] = True
        batch = {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask)}
        if self.labels is not None:
            batch["label"] = self.labels[[self.windows[i].index for i in indices]]
        return batch
