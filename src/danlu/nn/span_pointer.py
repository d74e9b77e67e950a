r"""Where an answer starts and where it ends, in one window of a long context, with scores that windows can share.

    (s_t, e_t) = W x_t + b                                                                                       (1)
    P_s(t) = softmax of s over the answer positions and position 0,   P_e alike                                  (2)
    L = - (log P_s(i) + log P_e(j)) / 2,   (i, j) the answer, (0, 0) where the window does not hold it           (3)
    score(i, j) = log P_s(i) + log P_e(j),   i <= j < i + max_len                                                (4)

x_t are the encoder's vectors of [CLS] question [SEP] window [SEP]; only the window's tokens may answer, and token 0
([CLS]) takes the mass of a window without answer. Trained on such windows too, (2) is the probability that the answer
is this one and stands here, so that (4) can be compared between windows of one context and between contexts; a softmax
without position 0 would make every window equally sure.

Source: Devlin et al., 2018, arXiv:1810.04805 (1, 3 and the null answer); Clark and Gardner, 2017, arXiv:1710.10723
(why scores of separate passages need such a common measure).
Shapes: B batch, T tokens, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide
from danlu.math.reduce import reduce_loss

__all__ = ["SpanPointer", "best_spans", "span_log_probs", "span_nll"]

Span = tuple[int, int, float]


def span_log_probs(logits: Tensor, candidates: Tensor) -> Tensor:
    """Log-probabilities of starts and ends, eq. (2).

    Args:
        logits: (B, T, 2) scores of start and end, any float dtype.
        candidates: (B, T) bool, True where an answer may start or end; position 0 always takes part.

    Returns:
        (B, T, 2) float32, or float64 for float64 logits; -inf where nothing may stand.

    Raises:
        ValueError: the shapes do not fit, or candidates is not bool.

    >>> span_log_probs(torch.zeros(1, 3, 2), torch.tensor([[False, False, True]])).exp()[0, :, 0]
    tensor([0.5000, 0.0000, 0.5000])
    """
    if logits.ndim != 3 or logits.shape[2] != 2 or candidates.shape != logits.shape[:2]:
        raise ValueError(
            f"span_log_probs needs logits (batch, tokens, 2) and candidates (batch, tokens); got {tuple(logits.shape)} "
            f"and {tuple(candidates.shape)}"
        )
    _check_bool(candidates, "candidates")
    first = torch.arange(logits.shape[1], device=logits.device) == 0
    logits = wide(logits)
    return logits.masked_fill(~(candidates | first)[..., None], -torch.inf).log_softmax(dim=1)  # eq. (2)


def span_nll(logits: Tensor, target: Tensor, candidates: Tensor, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood of one answer a window, eq. (3).

    Args:
        logits: (B, T, 2) scores of start and end, any float dtype.
        target: (B, 2) int64 first and last token of the answer; (0, 0) where the window does not hold it.
        candidates: (B, T) bool, True where an answer may start or end.
        reduction: "mean", "sum" or "none".

    Returns:
        Scalar, or (B,) for "none".

    Raises:
        ValueError: the shapes do not fit, or a target is neither 0 nor a candidate.

    >>> span_nll(torch.zeros(1, 4, 2), torch.tensor([[2, 3]]), torch.tensor([[False, False, True, True]]))  # log 3
    tensor(1.0986)
    """
    log_probs = span_log_probs(logits, candidates)  # (B, T, 2)
    if target.shape != (len(logits), 2):
        raise ValueError(f"target must be ({len(logits)}, 2), first and last token; got {tuple(target.shape)}")
    if not torch.compiler.is_compiling():
        outside = (target < 0) | (target >= logits.shape[1])
        wrong = outside | ((target != 0) & ~candidates.gather(1, target.masked_fill(outside, 0)))
        if wrong.any():
            row = int(wrong.any(1).nonzero()[0])
            raise ValueError(
                f"the answer {tuple(target[row].tolist())} of row {row} is no candidate; a window that does not hold "
                "its answer has the target (0, 0)"
            )
    chosen = log_probs.gather(1, target[:, None])[:, 0]  # (B, 2)
    return reduce_loss(-chosen.sum(-1) / 2, reduction)  # eq. (3)


def best_spans(start: Tensor, end: Tensor, mask: Tensor, max_len: int, num: int = 1) -> list[list[Span]]:
    """The spans with the highest start + end, eq. (4).

    Args:
        start: (B, T) scores of starts that add up (log-probabilities, logits); -inf excludes.
        end: (B, T) the same for ends.
        mask: (B, T) bool, True where a span may start, end and pass.
        max_len: tokens that a span may have.
        num: spans wanted of each row.

    Returns:
        For each row at most `num` of (first, last, score), last inclusive, best first; equal scores by first, then by
        last token. Rows that allow none have none.

    Raises:
        ValueError: the shapes do not fit, mask is not bool, or a number is below 1.

    >>> best_spans(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[3.0, 0.0, 1.0]]), torch.ones(1, 3).bool(), 2, 2)
    [[(0, 0, 3.0), (1, 2, 3.0)]]
    """
    if start.ndim != 2 or start.shape != end.shape or mask.shape != start.shape:
        raise ValueError(
            f"best_spans needs start, end and mask (batch, tokens); got {tuple(start.shape)}, {tuple(end.shape)} and "
            f"{tuple(mask.shape)}"
        )
    _check_bool(mask, "mask")
    if max_len < 1 or num < 1:
        raise ValueError(f"max_len and num must be at least 1, got {max_len} and {num}")
    batch, tokens = start.shape
    if not batch or not tokens:
        return [[] for _ in range(batch)]
    width = min(max_len, tokens)
    start = start.detach().masked_fill(~mask, -torch.inf)
    last = F.pad(end.detach().masked_fill(~mask, -torch.inf), (0, width - 1), value=-torch.inf).unfold(1, width, 1)
    gaps = F.pad((~mask).int().cumsum(1), (0, width - 1)).unfold(1, width, 1)  # (B, T, L) excluded tokens up to there
    broken = gaps != gaps[..., :1]  # one of them inside the span
    scores = (start[..., None] + last).masked_fill(broken, -torch.inf)  # (B, T, L)  eq. (4)
    values, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    values, order = values[:, :num], order[:, :num]
    return [
        [
            (at // width, at // width + at % width, value)
            for at, value in zip(row, found, strict=True)
            if value > -torch.inf
        ]
        for row, found in zip(order.tolist(), values.tolist(), strict=True)
    ]


class SpanPointer(nn.Module):
    r"""Scores of start and end at every token, eq. (1); train with `span_nll`, read with `best_spans`.

    Args:
        dim: features D of the encoder.

    Raises:
        ValueError: dim is below 1.

    >>> SpanPointer(8)(torch.ones(2, 5, 8)).shape
    torch.Size([2, 5, 2])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.output = nn.Linear(dim, 2)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, T, 2) of start and end; x (B, T, D)."""
        return self.output(x)  # (B, T, 2)  eq. (1)


def _check_bool(mask: Tensor, name: str) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{name} must be bool, True = keep; got {mask.dtype}. Turn a 0/1 mask into one with mask.bool()"
        )
