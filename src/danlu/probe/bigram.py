r"""Transition matrices of bigram models: from token sequences, and as a truncating decoder sees them.

    P_ij = (c_ij + s) / (c_i + s (n + 1))                                                                   (1)
    p -> p^{1/T} / sum p^{1/T},   then the k largest,   then the fewest whose sum reaches top_p             (2)

c_ij counts j right after i, c_i all occurrences of i, s is the smoothing. What a row lacks to 1 is the probability that
the sequence ends there: the end token is an outcome of (1) and (2), but no row or column of P. `consistent` keeps it a
candidate whatever the truncation (Welleck et al., 2020, arXiv:2002.02492): sampling then ends with probability 1.

Sequences may also be samples of any language model; P then is the bigram model nearest to it.

Source: kexue.fm/archives/8128; Fu et al., 2021, arXiv:2012.14660.
Shapes: n tokens.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["decoder_matrix", "transition_matrix"]


def transition_matrix(
    sequences: Iterable[Sequence[int]], vocab_size: int | None = None, smoothing: float = 0.0, sparse: bool = False
) -> Tensor:
    """Bigram probabilities of token sequences, eq. (1); nothing crosses from one sequence to the next.

    Args:
        sequences: ids of the tokens of each sequence, without start and end tokens.
        vocab_size: n; None takes the largest id + 1.
        smoothing: s, added to every count, at least 0; 1 is Laplace's rule, which flattens the rows of a small text.
        sparse: return a sparse COO tensor, for large vocabularies.

    Returns:
        (n, n) float64, rows sum to at most 1; rows of tokens that never occur are 0 without smoothing.

    Raises:
        ValueError: no token, an id outside [0, n), smoothing below 0, or smoothing of a sparse matrix.

    >>> transition_matrix([[0, 1, 0], [1, 0]])  # 0 ends twice of three times
    tensor([[0.0000, 0.3333],
            [1.0000, 0.0000]], dtype=torch.float64)
    """
    if not smoothing >= 0 or (smoothing and sparse):
        raise ValueError(
            f"smoothing must be at least 0, and 0 with sparse=True (it leaves no entry empty); got {smoothing}, "
            f"sparse={sparse}"
        )
    tokens, before_end = [], []
    for sequence in sequences:
        if len(sequence):
            tokens.append(torch.as_tensor(sequence, dtype=torch.int64))
            before_end.append(len(sequence))
    if not tokens:
        raise ValueError("transition_matrix needs at least one token, got empty sequences only")
    ids = torch.cat(tokens)
    n = int(ids.max()) + 1 if vocab_size is None else vocab_size
    if int(ids.min()) < 0 or int(ids.max()) >= n:
        raise ValueError(f"ids must lie in [0, {n}), got {int(ids.min())} to {int(ids.max())}; raise vocab_size")
    within = torch.ones(len(ids), dtype=torch.bool)
    within[torch.tensor(before_end).cumsum(0) - 1] = False  # the last token of a sequence has no next one
    place = within.nonzero()[:, 0]
    pairs = torch.stack([ids[place], ids[place + 1]]) if len(place) else torch.zeros(2, 0, dtype=torch.int64)
    counts = torch.sparse_coo_tensor(
        pairs, torch.ones(len(place), dtype=torch.float64), (n, n), check_invariants=False
    ).coalesce()
    total = torch.bincount(ids, minlength=n).double() + smoothing * (n + 1)  # (n,)
    if sparse:
        rows = counts.indices()[0]
        return torch.sparse_coo_tensor(
            counts.indices(), counts.values() / total[rows], (n, n), is_coalesced=True, check_invariants=False
        )
    return (counts.to_dense() + smoothing) / total.clamp_min(torch.finfo(torch.float64).tiny)[:, None]  # eq. (1)


def decoder_matrix(
    P: Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    consistent: bool = False,
) -> Tensor:
    """The transition matrix that is left when sampling is tempered and truncated, eq. (2); top_k=1 is greedy search.

    Args:
        P: (n, n) probabilities without the end token, dense or sparse; rows sum to at most 1.
        top_k: candidates of each row, the end among them; of equal ones the lower id stays, the end goes first.
        top_p: least sum of the candidates, in (0, 1].
        temperature: T > 0.
        consistent: the end stays a candidate whatever top_k and top_p say.

    Returns:
        (n, n) float64, dense or sparse as P.

    Raises:
        ValueError: P is no such matrix, or a setting is out of range.

    >>> decoder_matrix(torch.tensor([[0.5, 0.3], [0.1, 0.7]]), top_k=1)
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    if (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1) or not temperature > 0:
        raise ValueError(
            f"decoder_matrix needs top_k >= 1, top_p in (0, 1] and temperature > 0; got {top_k}, {top_p}, "
            f"{temperature}. Greedy search is top_k=1."
        )
    tiny = 64 * torch.finfo(P.dtype if P.is_floating_point() else torch.float64).eps  # rounding, no probability
    P = checked_transitions("decoder_matrix", P)
    n = len(P)
    entries = P if P.is_sparse else P.to_sparse()
    end = 1 - entries.sum(1).to_dense()  # (n,)
    ends = (end > tiny).nonzero()[:, 0]
    rows = torch.cat([entries.indices()[0], ends])
    columns = torch.cat([entries.indices()[1], torch.full_like(ends, n)])  # column n is the end
    values = torch.cat([entries.values(), end[ends]])
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]  # by row, the likely ones first
    rows, columns, values = rows[order], columns[order], values[order]
    first = torch.searchsorted(rows, torch.arange(n))  # (n,) where each row begins
    values = values / values[first.clamp_max(max(len(rows) - 1, 0))][rows]  # the largest is 1: powers cannot underflow
    values = _share(values ** (1 / temperature), rows, n)  # eq. (2)
    is_end = (columns == n) & consistent
    if top_k is not None:
        keep = (torch.arange(len(rows)) - first[rows] < top_k) | is_end
        values = _share(values.masked_fill(~keep, 0.0), rows, n)
    if top_p is not None:
        before = values.cumsum(0) - values
        before = before - before[first.clamp_max(max(len(rows) - 1, 0))][rows]  # sum of the likelier ones of the row
        values = _share(values.masked_fill(~((before < top_p - tiny) | is_end), 0.0), rows, n)
    keep = (columns < n) & (values > 0)
    found = torch.sparse_coo_tensor(
        torch.stack([rows, columns])[:, keep], values[keep], (n, n), check_invariants=False
    ).coalesce()
    return found if P.is_sparse else found.to_dense()


def checked_transitions(name: str, P: Tensor) -> Tensor:
    """P in float64, sparse ones coalesced; raises when its entries are not probabilities without an end token."""
    if P.ndim != 2 or P.shape[0] != P.shape[1] or not P.is_floating_point() or not len(P):
        raise ValueError(
            f"{name} needs a square matrix of transition probabilities (n, n) without the end token; got {P.dtype} "
            f"{tuple(P.shape)}. danlu.probe.transition_matrix makes one from token sequences."
        )
    tolerance = 1e3 * torch.finfo(P.dtype).eps
    P = P.detach().double()
    if P.layout != torch.strided:
        P = P.to_sparse_coo().coalesce()
    values = P.values() if P.is_sparse else P
    sums = P.sum(1).to_dense() if P.is_sparse else P.sum(1)  # (n,)
    if not bool((values >= 0).all()):
        raise ValueError(f"{name} needs probabilities, got an entry {float(values.min())} (nan or below 0)")
    if float(sums.max()) > 1 + tolerance:
        row = int(sums.argmax())
        raise ValueError(
            f"{name} needs rows that sum to at most 1 (what is missing is the end token); row {row} sums to "
            f"{float(sums[row]):.6g}. Logits need softmax first, counts transition_matrix."
        )
    return P


def _share(values: Tensor, rows: Tensor, n: int) -> Tensor:
    """Values divided by their row's sum."""
    return values / torch.zeros(n, dtype=values.dtype).index_add_(0, rows, values)[rows]
