r"""What every decoder takes and returns: end tokens and limits checked in one place, answers in one form.

Shapes: B prompts, N answers each (1 of greedy decoding), T tokens of the longest answer, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Generated", "demand_logits", "end_ids"]


@dataclass(frozen=True)
class Generated:
    """Answers of a decoder.

    Args:
        tokens: (B, N, T) int64, without the prompts, the end token included, -1 behind it.
        lengths: (B, N) int64, tokens of each answer; 0: fewer than N answers exist, this is none.
        scores: (B, N) log-probabilities of the answers; those of beam search are divided by length ** length_penalty.
        finished: (B, N) bool, whether an end token came; False: cut at the greatest length.

    >>> two = torch.tensor([[[5, 2]], [[6, 7]]])
    >>> Generated(two, torch.tensor([[2], [2]]), torch.zeros(2, 1), torch.tensor([[True], [False]])).best()
    [[5], [6, 7]]
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    finished: Tensor

    def answers(self, with_end: bool = False) -> list[list[list[int]]]:
        """The answers of every prompt as lists of ids; those that do not exist are left out.

        Args:
            with_end: keep the end token.

        Returns:
            B lists of up to N lists of ids.
        """
        cut = self.lengths if with_end else self.lengths - self.finished.long()
        prompts = zip(self.tokens.tolist(), self.lengths.tolist(), cut.tolist(), strict=True)
        return [[ids[:stop] for ids, length, stop in zip(*prompt, strict=True) if length] for prompt in prompts]

    def best(self, with_end: bool = False) -> list[list[int]]:
        """The first answer of every prompt as a list of ids: the best one, or the first drawn.

        Args:
            with_end: keep the end token.

        Returns:
            B lists of ids.
        """
        return [answers[0] if answers else [] for answers in self.answers(with_end)]


def end_ids(
    name: str, end_id: int | Sequence[int] | None, vocab_size: int, min_new_tokens: int, max_new_tokens: int
) -> Tensor:
    """The end tokens as a tensor, after a look at them and at the limits of length.

    Args:
        name: the decoder that asks, for its messages.
        end_id: one id, several, or None.
        vocab_size: V.
        min_new_tokens: tokens that an answer has before its end token at least.
        max_new_tokens: tokens that it has at most.

    Returns:
        (n,) int64.

    Raises:
        ValueError: an id outside [0, V), or limits that leave no length.

    >>> end_ids("greedy", 2, 10, 0, 5)
    tensor([2])
    """
    ids = [] if end_id is None else [end_id] if isinstance(end_id, int) else list(end_id)
    if any(not 0 <= i < vocab_size for i in ids):
        raise ValueError(
            f"{name}: end_id {end_id} lies outside the vocabulary of {vocab_size}; give the tokenizer's id of the end "
            "token, several, or None to write on to the greatest length"
        )
    if max_new_tokens < 1 or not 0 <= min_new_tokens <= max_new_tokens:
        raise ValueError(
            f"{name} needs max_new_tokens >= 1 and min_new_tokens between 0 and it; got {max_new_tokens} and "
            f"{min_new_tokens}"
        )
    return torch.tensor(ids, dtype=torch.int64)


def demand_logits(name: str, top: Tensor, step: int, rows: Tensor) -> None:
    """Stop with a message where the largest logit of a row says that nothing can be chosen.

    Args:
        name: the decoder that asks.
        top: (R,) the largest logit of every row.
        step: tokens written before this one.
        rows: (R,) what to call the rows.

    Raises:
        ValueError: nan (the model's numbers broke) or -inf (every token is forbidden) in a row; the first is named.

    >>> demand_logits("greedy", torch.tensor([0.5]), step=0, rows=torch.tensor([0]))
    """
    bad = top.isnan() | (top == -torch.inf)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        why = (
            "hold nan: look at the model's weights and at its precision"
            if bool(top[first].isnan())
            else "forbid every token: loosen the filters or the minimum length"
        )
        raise ValueError(f"{name}: the logits of row {int(rows[first])} at step {step} {why}")
