r"""The sum of token, segment and position vectors that enters a transformer.

    x = project(dropout(norm(token + segment + position)))                                                    (1)

Each part but the tokens is absent in some family. Positions beyond the table are refused, or reached by the table's
hierarchical decomposition where the configuration asks for it.

Source: Devlin et al., 2018, arXiv:1810.04805; hierarchical positions: kexue.fm/archives/7947.
Shapes: N tokens, E features of the tables, D of the hidden states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.nn.dropout import dropout
from danlu.nn.positions import hierarchical_positions
from danlu.text.blocks import norm_of
from danlu.text.config import TransformerConfig

__all__ = ["Embeddings"]


class Embeddings(nn.Module):
    """Eq. (1) with tables `token`, `segment`, `position`, a `norm` and a `project`, each where the family has it.

    Source: see the module. Shapes: see the module.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        family, dim = config.traits, config.embedding_dim
        self.config = config
        self.token = nn.Embedding(config.vocab_size, dim)
        self.segment: nn.Embedding | None = None
        self.position: nn.Embedding | None = None
        if family.segments and config.segment_vocab_size and not config.shared_segment_embeddings:
            self.segment = nn.Embedding(config.segment_vocab_size, dim)
        if family.positions == "learned":
            self.position = nn.Embedding(config.max_positions + config.position_offset, dim)
        eps = config.norm_eps if config.embedding_norm_eps is None else config.embedding_norm_eps
        self.norm = norm_of(config, dim, eps) if family.embedding_norm else None
        self.project = nn.Linear(dim, config.hidden_size, bias=family.bias) if dim != config.hidden_size else None

    def forward(
        self,
        ids: Tensor,  # (N,)
        segment_ids: Tensor | None,  # (N,), None: zeros
        positions: Tensor,  # (N,)
        last: int,
        condition: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (N, D); `last` is the largest position, known without looking at the tensor."""
        x = self.token(ids)
        segments = self._segments(ids, segment_ids)
        if segments is not None:
            x = x + segments
        if self.position is not None:
            x = x + F.embedding(positions, self._table(last + 1))
        if self.norm is not None:
            x = self.norm(x, condition, rows)
        x = dropout(x, self.config.hidden_dropout, self.training)
        return x if self.project is None else self.project(x)  # eq. (1)

    def _segments(self, ids: Tensor, segment_ids: Tensor | None) -> Tensor | None:
        config = self.config
        if not config.traits.segments or not config.segment_vocab_size:
            return None
        table = self.token if config.shared_segment_embeddings else self.segment
        assert table is not None
        if segment_ids is None:
            return table.weight[0]
        return table(segment_ids)

    def _table(self, count: int) -> Tensor:
        """Position vectors 0 ... count - 1, at least."""
        assert self.position is not None
        table, config = self.position.weight[self.config.position_offset :], self.config
        if count <= len(table):
            return table
        if config.hierarchical_position is None:
            raise ValueError(
                f"a sequence of {count} tokens; the position table has {len(table)} rows. Truncate the text, or give "
                "hierarchical_position=0.4, which extends the table to its square without training"
            )
        return hierarchical_positions(table, config.hierarchical_position, count)


def check_batch(ids: Tensor, mask: Tensor | None) -> None:
    """Refuse what is no batch of token ids, and a mask of another convention than True for tokens.

    Args:
        ids: should be (B, T) with at least one token a row.
        mask: bool or integers, or None.

    Raises:
        TypeError: ids is no tensor, or the mask holds floats, which would be added to scores elsewhere.
        ValueError: another shape.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"ids must be an int64 tensor (batch, tokens), got {type(ids).__name__}; torch.tensor(ids) makes one"
        )
    if ids.ndim != 2 or not ids.shape[1]:
        raise ValueError(
            f"ids must be (batch, tokens) with a token at least, got {tuple(ids.shape)}; for one sequence give "
            "ids[None]"
        )
    if mask is not None and mask.is_floating_point():
        raise TypeError(
            f"mask must be bool, True for tokens; got {mask.dtype}. From a mask that is added to scores: mask >= 0"
        )


def check_ids(ids: Tensor, rows: int, what: str) -> None:
    """Refuse ids outside of a table; on the CPU only, where looking costs nothing.

    Args:
        ids: any shape, int64.
        rows: rows of the table.
        what: the name of the ids in the message.

    Raises:
        ValueError: an id is negative or not below `rows`; ids are not integers.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{what} must be int64, got {ids.dtype}")
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    low, high = (int(value) for value in torch.aminmax(ids))
    if low < 0 or high >= rows:
        wrong = low if low < 0 else high
        raise ValueError(
            f"{what} holds {wrong}, the table has {rows} rows (0 to {rows - 1}); the tokenizer and the "
            "model do not belong together"
            + (", or keep_tokens was given to one of them alone" if what == "ids" else "")
        )
