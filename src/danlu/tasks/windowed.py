"""Examples as numbered tokens, cut into windows, padded into batches; what both text tasks train and predict on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from danlu.data.batching import windows
from danlu.text import CharVocab

__all__ = ["Windowed"]


class Windowed:
    """Windows over examples.

    Args:
        vocab: numbers tokens and their pairs.
        sequences: tokens of every example.
        max_len: tokens of a window.
        context: tokens a window sees of its neighbours on each side.
        tags: a number for every token, or None; a batch's weight is then its tokens.
        labels: a number for every example, or None; a batch's weight is then its windows.
    """

    def __init__(
        self,
        vocab: CharVocab,
        sequences: Sequence[Sequence[str]],
        max_len: int,
        context: int = 0,
        tags: Sequence[Sequence[int]] | None = None,
        labels: Sequence[int] | None = None,
    ) -> None:
        nothing = torch.zeros(0, dtype=torch.int64)
        self.sizes = [len(s) for s in sequences]
        ids, pairs = vocab.encode(sequences)
        self.tokens, self.bigrams = torch.cat([*ids, nothing]).numpy(), torch.cat([*pairs, nothing]).numpy()
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.tags = None if tags is None else np.fromiter((t for row in tags for t in row), np.int64, len(self.tokens))
        self.labels = None if labels is None else np.array(labels, np.int64)
        self.windows = windows(self.sizes, max_len, min(context, (max_len - 1) // 2))
        self.lengths = [len(w) for w in self.windows]

    @property
    def steps(self) -> list[int]:
        """Tags of every example: one a token."""
        return self.sizes

    def bounds(self, number: int) -> tuple[int, int]:
        """Steps [start, stop) of its example that a window holds."""
        return self.windows[number].start, self.windows[number].stop

    def kept(self, number: int) -> tuple[int, int]:
        """Steps [start, stop) of its example that a window answers for."""
        return self.windows[number].keep_start, self.windows[number].keep_stop

    def weight(self, indices: Sequence[int]) -> float:
        """What a batch's loss is divided by: its windows where labels are learned, else its tokens."""
        return float(len(indices) if self.labels is not None else sum(self.lengths[i] for i in indices))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Padded batch of windows: tokens, bigrams, mask (B, T), and tags (B, T) or label (B,)."""
        chosen = [self.windows[i] for i in indices]
        begin = np.array([self.offsets[w.index] + w.start for w in chosen])[:, None]
        length = np.array([len(w) for w in chosen])[:, None]
        step = np.arange(length.max())[None]
        mask = step < length
        place = np.where(mask, begin + step, 0)
        batch = {"tokens": np.where(mask, self.tokens[place], 0), "bigrams": np.where(mask, self.bigrams[place], 0)}
        batch["mask"] = mask
        if self.tags is not None:
            batch["tags"] = np.where(mask, self.tags[place], -100)
        if self.labels is not None:
            batch["label"] = self.labels[[w.index for w in chosen]]
        return {name: torch.from_numpy(value) for name, value in batch.items()}
