r"""Paths of a linear chain: the best one (Viterbi), the n best, and random ones.

    d_1 = s + f_1,   d_t[j] = max_i (d_{t-1}[i] + g[i, j]) + f_t[j],   best = max_j (d_n[j] + e[j])       (1)
    y_n = argmax_j (d_n[j] + e[j]),   y_{t-1} = argmax_i (d_{t-1}[i] + g[i, y_t])                         (2)
    y_n ~ exp(a_n + e),   y_{t-1} ~ exp(a_{t-1} + g[:, y_t])                                              (3)

No back-pointers are kept: (2) looks for the predecessor again, along the best path only, which leaves nothing but
additions and maxima in the inner loop. The n-best recursion keeps n scores per tag instead of one. Sampling (3) walks
back through the forward values a of `danlu.math.semiring` and is exact.

Any chain of scores will do, also one that is no CRF: a maximum-entropy Markov model, or an independent softmax under
constraints (transitions 0 and -inf). A masked step is skipped as if the sequence did not have it.

Source: Viterbi, 1967; n-best: Schwartz & Chow, 1990; the chain: kexue.fm/archives/5542.
Shapes: B batch, T steps, K tags, N paths a row.
"""

import torch
from torch import Tensor

from danlu.math.semiring import chain_inputs
from danlu.nn._chain import Packed, eager, engine, full_precision, pack

__all__ = ["sample_paths", "viterbi", "viterbi_nbest"]


def viterbi(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The best tag path of every row and its score, eq. (1) and (2).

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        backend: "auto", "kernel" (numba, CPU) or "torch".

    Returns:
        Path (B, T) int64, -1 at masked steps, and score (B,), 0 for rows without kept steps; no gradient.

    Raises:
        ValueError: shapes do not fit, or a row has no allowed path (named) or holds nan.

    >>> viterbi(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[0.0, -3.0], [0.0, 0.0]]))
    (tensor([[0, 0]]), tensor([2.]))
    """
    f, g, s, e, keep = chain_inputs("viterbi", emissions, transitions, start, end, mask)
    return _best_path(f, g, s, e, keep, backend)


def viterbi_nbest(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    n: int = 2,
) -> tuple[Tensor, Tensor]:
    """The n best different tag paths of every row, best first, and their scores.

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        n: paths a row, at least 1.

    Returns:
        Paths (B, n, T) int64, -1 at masked steps, and scores (B, n). Where fewer than n allowed paths exist the
        scores left over are -inf and their paths -1. A row without kept steps has one path, empty, of score 0.

    Raises:
        ValueError: shapes do not fit, n < 1, or a score is nan.

    >>> viterbi_nbest(torch.tensor([[[2.0, 0.0, -1.0]]]), torch.zeros(3, 3), n=2)
    (tensor([[[0],
             [1]]]), tensor([[2., 0.]]))
    """
    if n < 1:
        raise ValueError(f"viterbi_nbest needs n >= 1, got {n}; for the best path alone use viterbi")
    f, g, s, e, keep = chain_inputs("viterbi_nbest", emissions, transitions, start, end, mask)
    return _best_paths(f, g, s, e, keep, n)


def sample_paths(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tag paths drawn from p(y) = exp(score(y) - log Z), eq. (3).

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        num_samples: independent paths a row.
        generator: source of randomness on the device of the emissions; None takes torch's own.

    Returns:
        (B, num_samples, T) int64, -1 at masked steps.

    Raises:
        ValueError: shapes do not fit, num_samples < 1, or a row has no allowed path (named) or holds nan.

    >>> sample_paths(torch.tensor([[[0.0, -torch.inf], [-torch.inf, 0.0]]]), torch.zeros(2, 2))  # only one is possible
    tensor([[[0, 1]]])
    """
    if num_samples < 1:
        raise ValueError(f"sample_paths needs num_samples >= 1, got {num_samples}")
    f, g, s, e, keep = chain_inputs("sample_paths", emissions, transitions, start, end, mask)
    return _random_paths(f, g, s, e, keep, num_samples, generator)


@eager
def _best_path(f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    kernel = engine("viterbi", backend, f)
    with torch.no_grad(), full_precision(f):
        if not f.numel():
            return torch.full(f.shape[:2], -1, dtype=torch.int64, device=f.device), f.new_zeros(f.shape[0])
        if kernel is not None:
            path, best = kernel.viterbi(*(x.contiguous() for x in (f, g, s, e, keep)))
        else:
            path, best = _viterbi(f, g, s, e, keep)
        _demand_a_path("viterbi", best, keep)
        return path, best


@eager
def _best_paths(f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor, n: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), full_precision(f):
        batch, steps, size = f.shape
        packed = pack(f, keep)
        d = f.new_full((batch, size, n), -torch.inf)  # n best scores of paths into each tag
        back = []
        for t, rows in enumerate(packed.counts):
            if t == 0:
                d[:rows, :, 0] = s + packed.f[0, :rows]
                continue
            into = (d[:rows, :, :, None] + g[:, None, :]).flatten(1, 2)  # (rows, K n, K)
            best, where = into.topk(n, dim=1)  # (rows, n, K)
            d[:rows] = best.transpose(1, 2) + packed.f[t, :rows, :, None]
            back.append(where.transpose(1, 2).flatten(1))  # (rows, K n): the tag and rank before this tag and rank
        scores, here = (d + e[:, None]).flatten(1).topk(n, dim=1)  # (B, n), position tag * n + rank
        if bool(scores.isnan().any()):
            _demand_a_path("viterbi_nbest", packed.unsort(scores[:, 0]), keep)
        path = torch.full((len(packed.counts), batch, n), -1, dtype=torch.int64, device=f.device)
        for t in reversed(range(len(packed.counts))):
            rows = packed.counts[t]
            if t + 1 < len(packed.counts):
                again = packed.counts[t + 1]
                here[:again] = back[t].gather(1, here[:again])
            path[t, :rows] = here[:rows] // n
        empty = packed.lengths == 0
        scores[empty] = -torch.inf
        scores[empty, 0] = 0.0
        path = path.masked_fill(scores == -torch.inf, -1)
        return packed.unpack(path, steps, -1).transpose(1, 2), packed.unsort(scores)


@eager
def _random_paths(
    f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor, num_samples: int, generator: torch.Generator | None
) -> Tensor:
    with torch.no_grad(), full_precision(f):
        packed = pack(f, keep)
        a = _prefix(packed, g, s, maximum=False)
        steps = len(packed.counts)
        logits = packed.last(a) + e if steps else f.new_zeros(f.shape[0], f.shape[2])  # (B, K)
        _demand_a_path("sample_paths", packed.unsort(logits.logsumexp(1)), keep)
        here = _draw(logits[:, None].expand(-1, num_samples, -1), generator)  # (B, S)
        path = torch.full((steps, f.shape[0], num_samples), -1, dtype=torch.int64, device=f.device)
        for t in reversed(range(steps)):
            if t + 1 < steps:
                again = packed.counts[t + 1]
                here[:again] = _draw(a[t, :again, None] + g.T[here[:again]], generator)  # (again, S, K)  eq. (3)
            path[t, : packed.counts[t]] = here[: packed.counts[t]]
        return packed.unpack(path, f.shape[1], -1).transpose(1, 2)


def _viterbi(f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    packed = pack(f, keep)
    steps = len(packed.counts)
    path = torch.full((steps, f.shape[0]), -1, dtype=torch.int64, device=f.device)
    if not steps:
        return packed.unpack(path, f.shape[1], -1), f.new_zeros(f.shape[0])
    d = _prefix(packed, g, s, maximum=True)
    best, here = (packed.last(d) + e).max(1)  # (B,) each
    into = g.T.contiguous()
    for t in reversed(range(steps)):
        if t + 1 < steps:
            again = packed.counts[t + 1]
            here[:again] = (d[t, :again] + into[here[:again]]).argmax(1)  # eq. (2)
        path[t, : packed.counts[t]] = here[: packed.counts[t]]
    best = torch.where(packed.lengths > 0, best, torch.zeros_like(best))
    return packed.unpack(path, f.shape[1], -1), packed.unsort(best)


def _prefix(packed: Packed, g: Tensor, s: Tensor, maximum: bool) -> Tensor:
    """Forward values (N, B, K) of a packed batch, max (d) or logsumexp (a); 0 behind the end of a row."""
    a = torch.zeros_like(packed.f)
    for t, rows in enumerate(packed.counts):
        if t == 0:
            a[0, :rows] = s + packed.f[0, :rows]
            continue
        into = a[t - 1, :rows, :, None] + g  # (rows, K, K)
        a[t, :rows] = (into.amax(1) if maximum else into.logsumexp(1)) + packed.f[t, :rows]  # eq. (1)
    return a


def _draw(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index a row of the last dimension, with probability softmax(logits): the largest after Gumbel noise."""
    noise = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device).exponential_(generator=generator)
    return (logits - noise.log()).argmax(-1)


def _demand_a_path(name: str, best: Tensor, keep: Tensor) -> None:
    bad = ((best == -torch.inf) | best.isnan()) & keep.any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        steps = int(keep[row].sum())
        if bool(best[row].isnan()):
            raise ValueError(f"{name}: the scores of row {row} hold nan; look at the emissions and the transitions")
        raise ValueError(
            f"{name}: row {row} has no allowed path over its {steps} kept steps: every one meets a score of -inf (or "
            "nan). Loosen the constraints, or mask the row."
        )
