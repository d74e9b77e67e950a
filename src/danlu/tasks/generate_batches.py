"""Pairs as token ids and as batches: one row for source and target under UniLM, two for an encoder-decoder.

    UniLM       input  [CLS] s_1 .. s_m [SEP] y_1 .. y_n      next  (...) y_1 .. y_n [SEP]                      (1)
    two stacks  input  start y_1 .. y_n                        next  y_1 .. y_n end,     source read apart     (2)

The loss counts the target's tokens and its end, nothing of the source. A target that is cut at `max_target` tokens has
no end token in the loss: its end was not there. Sources are cut to what is left of `max_len`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from danlu.data.pairs import Condition, Pair
from danlu.data.sequences import pad_sequences, truncate
from danlu.train.exposure_bias import corrupt_targets

if TYPE_CHECKING:
    from danlu.tasks.generate_model import GenerateModel

__all__ = ["PairRows", "Row", "encode_sources", "rows_of"]


@dataclass(frozen=True, slots=True)
class Row:
    """One example as ids."""

    source: list[int]
    target: list[int]  # the end token included, unless it was cut
    condition: Condition
    source_cut: bool
    target_cut: bool


def encode_sources(model: "GenerateModel", sources: Sequence[str]) -> list[tuple[list[int], bool]]:
    """Ids of sources with their special tokens, and whether each was cut."""
    tokenizer, room = model.encoder.tokenizer, model.source_room
    after = -1 - (tokenizer.token_end is not None)  # the end token stays when the end of the text goes
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(sources)]
    return [(truncate(ids, room, after) if len(ids) > room else ids, len(ids) > room) for ids in encoded]


def rows_of(model: "GenerateModel", examples: Sequence[Pair]) -> list[Row]:
    """Ids of pairs."""
    limit, end = model.config["max_target"], model.end_id
    rows = []
    for example, (source, cut) in zip(
        examples, encode_sources(model, [example.source for example in examples]), strict=True
    ):
        target = [*model.encoder.tokenizer.pieces(example.target)[0], end]
        rows.append(Row(source, target[:limit], example.condition, cut, len(target) > limit))
    return rows


class PairRows:
    """Rows as training items.

    Args:
        model: says how rows become inputs, eq. (1) or (2), and which trick exchanges tokens.
        rows: of `rows_of`.
        corrupt: whether that trick acts; its draws come from torch's own stream, which a training state keeps.
    """

    def __init__(self, model: "GenerateModel", rows: Sequence[Row], corrupt: bool = False) -> None:
        self.model, self.rows, self.corrupt = model, rows, corrupt and model.replacement is not None
        self.lengths = [len(row.source) + len(row.target) for row in rows]

    def weight(self, indices: Sequence[int]) -> float:
        """Target tokens of a batch, by which its loss is divided."""
        return float(sum(len(self.rows[i].target) for i in indices))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """ids, mask (B, S or T), labels and scored (B, T), what (1) or (2) needs beside, and the conditions."""
        rows = [self.rows[i] for i in indices]
        batch = self._two_stacks(rows) if self.model.two_stacks else self._unilm(rows)
        if self.model.conditions is not None:
            batch |= self.model.conditions.encode([row.condition for row in rows])
        return batch

    def _unilm(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        ids = pad_sequences([row.source + row.target[:-1] for row in rows], value=self.model.pad_id)
        labels = pad_sequences([row.source[1:] + row.target for row in rows], value=self.model.pad_id)
        begin = torch.tensor([[len(row.source)] for row in rows])
        length = begin + torch.tensor([[len(row.target) - 1] for row in rows])
        place = torch.arange(ids.shape[1])
        mask = place < length
        segments = ((place >= begin) & mask).long()
        return {
            "ids": self._corrupted(ids, segments.bool(), mask),
            "mask": mask,
            "segments": segments,
            "labels": labels,
            "scored": (place >= begin - 1) & mask,  # eq. (1)
        }

    def _two_stacks(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        source = torch.tensor([[len(row.source)] for row in rows])
        target = torch.tensor([[len(row.target)] for row in rows])
        ids = pad_sequences([row.source for row in rows], value=self.model.pad_id)
        inputs = pad_sequences([[self.model.start_id, *row.target[:-1]] for row in rows], value=self.model.pad_id)
        place = torch.arange(inputs.shape[1])
        scored = place < target
        return {
            "ids": ids,
            "mask": torch.arange(ids.shape[1]) < source,
            "inputs": self._corrupted(inputs, scored & (place > 0), scored),
            "labels": pad_sequences([row.target for row in rows], value=self.model.pad_id),
            "scored": scored,  # eq. (2)
        }

    def _corrupted(self, ids: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        if not self.corrupt or self.model.replacement is None:
            return ids
        return corrupt_targets(ids, target, p_token=self.model.replacement, mask=mask)
