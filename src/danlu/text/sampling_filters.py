r"""Which tokens a decoder may draw: filters of logits, and the draw itself.

    top-k      keep v with logit[v] >= the k-th largest                                                      (1)
    nucleus    keep v with P(everything before v in falling order) < p                                       (2)
    draw       the first v with p[0] + ... + p[v] > u,   u uniform on [0, 1)                                 (3)

A filter sets what it removes to -inf, so that the softmax of what is left is renormalised. At the edges: k beyond the
vocabulary keeps all; what ties with the k-th stays; in (2) the lower id comes first among equals, and the token that
carries the sum across p stays. `keep` names ids that are never removed: with the end token there, top-k and nucleus
sampling are consistent: they stop almost surely wherever the model's own p(end) is bounded below, which they need not
otherwise. A token of probability zero is never drawn. (3) needs one number per token, which makes a row reproducible
whatever the other rows do.

Source: top-k: Fan et al., 2018, arXiv:1805.04833; nucleus: Holtzman et al., 2019, arXiv:1904.09751; consistent forms:
Welleck et al., 2020, arXiv:2002.02492, kexue.fm/archives/7500; penalty: Keskar et al., 2019, arXiv:1909.05858; n-grams:
Paulus et al., 2017, arXiv:1705.04304.
Shapes: R rows, V vocabulary, n tokens written so far.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["draw", "forbid", "no_repeat_ngram", "repetition_penalty", "top_k_filter", "top_p_filter"]


def forbid(logits: Tensor, ids: Tensor) -> Tensor:
    """The logits with those of `ids` at -inf.

    Args:
        logits: (..., V) of any float dtype.
        ids: (n,) int64 in [0, V).

    Returns:
        (..., V), a copy.

    >>> forbid(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    tensor([[1., -inf]])
    """
    return logits.index_fill(-1, ids, -torch.inf)


def top_k_filter(logits: Tensor, k: int, keep: Tensor | None = None) -> Tensor:
    """The k largest logits of every row, eq. (1), and -inf elsewhere.

    Args:
        logits: (..., V) of any float dtype.
        k: how many to keep, at least 1; ties with the last of them stay.
        keep: (n,) int64, ids that are not removed; None: no such.

    Returns:
        (..., V), a copy.

    Raises:
        ValueError: k is below 1.

    >>> top_k_filter(torch.tensor([3.0, 1.0, 2.0, 2.0]), 2)
    tensor([3., -inf, 2., 2.])
    """
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}; for no limit leave it None")
    if k >= logits.shape[-1]:
        return logits.clone()
    least = logits.topk(k, dim=-1).values[..., -1:]
    return _remove(logits, logits < least, keep)  # eq. (1)


def top_p_filter(logits: Tensor, p: float, keep: Tensor | None = None) -> Tensor:
    """The nucleus of every row, the fewest tokens that together have probability p, eq. (2), and -inf elsewhere.

    Args:
        logits: (..., V) of any float dtype.
        p: probability to reach, in (0, 1].
        keep: (n,) int64, ids that are not removed; None: no such.

    Returns:
        (..., V), a copy.

    Raises:
        ValueError: p is outside (0, 1].

    >>> top_p_filter(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6).exp()  # 0.5 is too little, 0.8 reaches it
    tensor([0.5000, 0.3000, 0.0000])
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {p}; for no limit leave it None")
    if p == 1:
        return logits.clone()
    falling, order = logits.sort(dim=-1, descending=True, stable=True)
    total = falling.softmax(-1, dtype=torch.float64).cumsum(-1)
    beyond = F.pad(total[..., :-1], (1, 0)) >= p  # P(everything before v)
    return _remove(logits, torch.empty_like(beyond).scatter_(-1, order, beyond), keep)  # eq. (2)


def repetition_penalty(tokens: Tensor, logits: Tensor, penalty: float) -> Tensor:
    """The logits with those of tokens written before divided by `penalty` where positive, multiplied where negative.

    Args:
        tokens: (R, n) int64, what each row wrote so far.
        logits: (R, V) of any float dtype.
        penalty: above 1 discourages, 1 changes nothing.

    Returns:
        (R, V), a copy.

    Raises:
        ValueError: penalty is not positive.

    >>> repetition_penalty(torch.tensor([[0, 2]]), torch.tensor([[4.0, 4.0, -4.0]]), 2.0)
    tensor([[ 2.,  4., -8.]])
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be > 0, got {penalty}; 1 changes nothing")
    seen = logits.gather(1, tokens)
    return logits.scatter(1, tokens, torch.where(seen > 0, seen / penalty, seen * penalty))


def no_repeat_ngram(tokens: Tensor, logits: Tensor, size: int) -> Tensor:
    """The logits with -inf where a token would complete a run of `size` tokens that its row wrote before.

    It hides repetition and does not cure it: the model goes on wanting the loop.

    Args:
        tokens: (R, n) int64, what each row wrote so far.
        logits: (R, V) of any float dtype.
        size: length of the runs, at least 1.

    Returns:
        (R, V), a copy.

    Raises:
        ValueError: size is below 1.

    >>> no_repeat_ngram(torch.tensor([[0, 1, 0]]), torch.zeros(1, 3), 2)  # 0 1 stands there already
    tensor([[0., -inf, 0.]])
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if tokens.shape[1] < size:
        return logits.clone()
    runs = tokens.unfold(1, size, 1)  # (R, n - size + 1, size)
    prefix = tokens[:, tokens.shape[1] - size + 1 :]  # (R, size - 1)
    again = (runs[..., :-1] == prefix[:, None]).all(-1)  # (R, n - size + 1)
    counts = torch.zeros_like(logits).scatter_add_(1, runs[..., -1], again.to(logits))
    return logits.masked_fill(counts > 0, -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token a row with probability softmax(logits), from one uniform number a row, eq. (3).

    Args:
        logits: (R, V) of any float dtype, at least one a row above -inf.
        uniform: (R,) float64 in [0, 1).

    Returns:
        (R,) int64.

    >>> draw(torch.tensor([[0.5, 0.0, 0.5]]).log().expand(2, -1), torch.tensor([0.49, 0.5], dtype=torch.float64))
    tensor([0, 2])
    """
    total = logits.softmax(-1, dtype=torch.float64).cumsum(-1)  # (R, V)
    end = total[:, -1]
    below = torch.minimum(uniform * end, torch.nextafter(end, torch.zeros_like(end)))  # rounding must not reach the end
    return torch.searchsorted(total, below[:, None], right=True)[:, 0]  # eq. (3)


def _remove(logits: Tensor, away: Tensor, keep: Tensor | None) -> Tensor:
    return logits.masked_fill(away if keep is None else away.index_fill(-1, keep, False), -torch.inf)
