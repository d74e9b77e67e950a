r"""What a decoder asks of a model: logits after the prompts, logits after one more token, rows kept or repeated.

    step(None) -> logits after the prompts;   step(y) -> logits after appending y[r] to row r;                (1)
    reorder(i): row r becomes what row i[r] was                                                               (2)

Greedy decoding, sampling and beam search need nothing else, so each works with every model that can say (1) and (2).
`FunctionSteps` makes them from any callable by recomputing all positions at each step: slow, and the reference.

Source: the split between search and model is that of Sutskever et al., 2014, arXiv:1409.3215.
Shapes: R rows, V vocabulary, T tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["FunctionSteps", "Steps"]


class Steps(Protocol):
    """A model in the middle of writing; made with its prompts, used by one decoder, once."""

    @property
    def rows(self) -> int:
        """Rows alive now: as many as prompts at first, later as the last `reorder` said."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def step(self, tokens: Tensor | None) -> Tensor:
        """Logits (R, V) of the next token, eq. (1) of the module, any float; `tokens` (R,) int64, None at first."""

    def reorder(self, rows: Tensor) -> None:
        """Keep, repeat or drop rows: `rows` (R',) int64 names for each new row the old one it goes on from."""


class FunctionSteps:
    """Steps from any callable, which sees all tokens again at each step.

    Rows of different lengths are padded on the right, where a causal model does not look: no mask is needed.

    Args:
        logits_fn: takes ids (R, T) int64 and the rows of `context`; returns logits (R, T, V), or (R, V) of the last
            position alone, which needs prompts of one length.
        prompts: token ids of each row, lists or an int64 tensor (R, T).
        pad: id that fills short rows; needed where lengths differ.
        context: tensors (R, ...) given to `logits_fn` after the ids and reordered with them (an encoder's source, say).

    Raises:
        ValueError: no prompts, lengths differ without `pad`, a context of other rows; later: logits of another shape,
            or a first step taken twice.

    >>> steps = FunctionSteps(lambda ids: torch.nn.functional.one_hot((ids + 1) % 4, 4).float(), [[0, 1], [2]], pad=0)
    >>> steps.step(None).argmax(-1)  # the next number
    tensor([2, 3])
    """

    def __init__(
        self,
        logits_fn: Callable[..., Tensor],
        prompts: Sequence[Sequence[int]] | Tensor,
        pad: int | None = None,
        context: Sequence[Tensor] = (),
    ) -> None:
        self.ids, self.lengths = pad_right(prompts, pad)
        self.logits_fn = logits_fn
        self.pad = 0 if pad is None else pad
        self.context = tuple(context)
        for tensor in self.context:
            if len(tensor) != self.rows:
                raise ValueError(
                    f"a context tensor has {len(tensor)} rows for {self.rows} prompts; give one row a prompt"
                )
        self._started = False
        self._first: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows alive now."""
        return len(self.ids)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits; asks the callable, once, if it was not asked yet."""
        if self._first is None:
            self._first = self._logits()
        return self._first.shape[-1]

    def step(self, tokens: Tensor | None) -> Tensor:
        """Logits (R, V) of the next token, of all tokens so far."""
        if tokens is None:
            if self._started:
                raise ValueError("these steps were taken before; make new ones from the prompts for another decoding")
            self._started = True
            logits = self._logits() if self._first is None else self._first
            self._first = logits[:1]  # its width is all that is asked of it later
            return logits
        if int(self.lengths.max()) == self.ids.shape[1]:
            self.ids = torch.cat([self.ids, torch.full_like(self.lengths[:, None], self.pad)], dim=1)
        self.ids.scatter_(1, self.lengths[:, None], tokens.to(self.ids)[:, None])
        self.lengths = self.lengths + 1
        return self._logits()

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from what row `rows[r]` was."""
        rows = rows.to(self.ids.device)
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]
        self.context = tuple(tensor[rows.to(tensor.device)] for tensor in self.context)

    @torch.no_grad()
    def _logits(self) -> Tensor:
        logits = self.logits_fn(self.ids, *self.context)
        rows, length = self.ids.shape
        if logits.ndim == 3 and logits.shape[:2] == (rows, length) and length:
            return logits.gather(1, (self.lengths - 1)[:, None, None].expand(-1, 1, logits.shape[2]))[:, 0]
        if logits.ndim == 2 and len(logits) == rows:
            if int(self.lengths.min()) < length:
                raise ValueError(
                    f"the prompts differ in length but logits_fn returns {tuple(logits.shape)}, the last position "
                    "alone; return logits of every position (R, T, V), or decode prompts of one length together"
                )
            return logits
        raise ValueError(
            f"logits_fn must return (R, T, V) or (R, V) for ids {(rows, length)}; got {tuple(logits.shape)}"
        )


def pad_right(prompts: Sequence[Sequence[int]] | Tensor, pad: int | None) -> tuple[Tensor, Tensor]:
    """Prompts as one tensor, short ones filled up on the right.

    Args:
        prompts: token ids of each row, lists or an int64 tensor (R, T).
        pad: id that fills short rows; None: they must not differ.

    Returns:
        Ids (R, T) int64, a copy, and lengths (R,).

    Raises:
        TypeError: prompts are text.
        ValueError: no prompts, ids of a floating dtype, or lengths that differ without `pad`.

    >>> pad_right([[1, 2], [3]], pad=0)
    (tensor([[1, 2],
            [3, 0]]), tensor([2, 1]))
    """
    if not len(prompts):
        raise ValueError("there are no prompts; give one row of token ids for each answer wanted")
    if isinstance(prompts, str) or any(isinstance(row, str) for row in prompts):
        raise TypeError("prompts are token ids, got text; a tokenizer's encode makes ids of it")
    if isinstance(prompts, Tensor):
        if prompts.ndim != 2 or prompts.is_floating_point():
            raise ValueError(
                f"prompts must be an integer tensor (R, T) or lists of ids; got {tuple(prompts.shape)} of "
                f"{prompts.dtype}"
            )
        return prompts.long().clone(), prompts.new_full((len(prompts),), prompts.shape[1], dtype=torch.int64)
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    if pad is None and min(lengths) < longest:
        raise ValueError(
            f"the prompts have {min(lengths)} to {longest} tokens; give pad=, the id that fills short rows"
        )
    filled = [[*prompt, *[pad or 0] * (longest - len(prompt))] for prompt in prompts]
    return torch.tensor(filled, dtype=torch.int64).reshape(len(prompts), longest), torch.tensor(lengths)
