r"""The repetition index: how often a bigram decoder says what it just said, computed exactly and without a sample.

P holds the transition probabilities without the end token, so rows sum to at most 1. To repeat a cycle at once, the
chain has to go round it twice, which squares its probability. With Q = P o P (entry by entry)

    R_i = sum_{k>=1} (Q^k)_ii = [Q (I - Q)^{-1}]_ii                                                         (1)
    R   = sum_i R_i = Tr Q (I - Q)^{-1} = sum_i l_i / (1 - l_i),   l_i the eigenvalues of Q                 (2)
    R  <= n l_1 / (1 - l_1),   min_i sum_j P_ij^2 <= l_1 <= max_i sum_j P_ij^2,   l_1 = rho(Q)              (3)
    R_i = inf on a cycle of certain transitions (P_ij = 1 all the way), where greedy search always ends up  (4)

R_i is an expectation, not a probability: the expected number of loop lengths k with x_0 .. x_k = x_k .. x_2k for a
chain that starts at token i. The paper has Tr P^{2k} with estimates of the number of cycles instead; the post shows
that as a slip, (P^2k)_ii for the square of (P^k)_ii, and (1) is its correction. The row collision sum_j P_ij^2 of (3)
is the bound's explanation of repetition (peaky rows); on real text it can point the wrong way, since a rare word's only
successor does not lead back. Trust R.

Source: kexue.fm/archives/8128; Fu et al., 2021, arXiv:2012.14660.
Shapes: n tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.math.repetition_metrics import loop_counts
from danlu.probe.bigram import checked_transitions

__all__ = [
    "SparseIndex",
    "deterministic_cycles",
    "repetition_bound",
    "repetition_index",
    "repetition_index_sparse",
    "repetition_radius",
    "row_collision",
    "sampled_repetition_index",
]

DENSE_TOKENS = 5000  # a matrix of this size is inverted in seconds and takes 200 MB
CERTAIN = 1e-12  # a transition this near to 1 is certain


def repetition_index(P: Tensor, per_token: bool = False) -> float | Tensor:
    """R of eq. (2), or R_i of eq. (1), by one dense inverse.

    Args:
        P: (n, n) transition probabilities without the end token, dense or sparse, n up to 5000.
        per_token: return R_i of every token; their mean weighted by start frequencies is what a reader sees.

    Returns:
        R, or (n,) float64; inf by eq. (4), where `deterministic_cycles` names the cycles.

    Raises:
        ValueError: P is no such matrix, or is larger.

    >>> round(repetition_index(torch.tensor([[0.0, 1.0], [0.5, 0.0]])), 4)  # Q has the eigenvalues 1/2 and -1/2
    0.6667
    """
    P = checked_transitions("repetition_index", P)
    if len(P) > DENSE_TOKENS:
        raise ValueError(
            f"repetition_index inverts a dense matrix of up to {DENSE_TOKENS} tokens, got {len(P)}; "
            "repetition_index_sparse states its error and takes any size"
        )
    certain = [token for cycle in _certain_cycles(P) for token in cycle]
    Q = (P.to_dense() if P.is_sparse else P) ** 2
    index = torch.full((len(P),), torch.inf, dtype=torch.float64)
    rest = torch.ones(len(P), dtype=torch.bool)
    rest[certain] = False  # closed: no way leads back from them
    Q = Q[rest][:, rest]
    eye = torch.eye(len(Q), dtype=torch.float64)
    index[rest] = torch.linalg.inv(eye - Q).diagonal() - 1  # eq. (1), as (I - Q)^{-1} = I + Q (I - Q)^{-1}
    return index if per_token else float(index.sum())  # eq. (2)


@dataclass(frozen=True)
class SparseIndex:
    """R_i of a large vocabulary and how much each may be too small: per_token[i] <= R_i <= per_token[i] + error[i]."""

    per_token: Tensor
    error: Tensor

    @property
    def index(self) -> float:
        """Lower bound of R."""
        return float(self.per_token.sum())

    @property
    def index_error(self) -> float:
        """R is at most index + index_error."""
        return float(self.error.sum())


def repetition_index_sparse(P: Tensor, threshold: float = 1e-5) -> SparseIndex:
    """R_i of eq. (1) for large sparse matrices, with a bound of the error.

    The series of (1) is summed column by column, entries below the threshold are dropped and what they could have
    added is bounded from above. A diagonal scaling, which keeps the weight of every closed walk, makes entries small.

    Args:
        P: (n, n) transition probabilities without the end token, dense or sparse.
        threshold: what is dropped, above 0; a tenth of it takes about three times as long and has a tenth of the error.

    Returns:
        Indices and error bounds, each (n,) float64.

    Raises:
        ValueError: P is no such matrix, or the threshold is not positive.
        ImportError: scipy is not installed.

    >>> found = repetition_index_sparse(torch.tensor([[0.0, 1.0], [0.5, 0.0]]).to_sparse())
    >>> abs(found.index - 2 / 3) <= found.index_error + 1e-12 < 1e-3
    True
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be > 0, got {threshold}; repetition_index computes without one")
    from danlu.probe._repetition_series import loop_series

    P = checked_transitions("repetition_index_sparse", P)
    certain = [token for cycle in _certain_cycles(P) for token in cycle]
    index, error = loop_series(P.to_sparse(), certain, threshold)
    return SparseIndex(index, error)


def repetition_radius(P: Tensor) -> float:
    """The largest eigenvalue l_1 of Q; the index diverges where it reaches 1.

    Args:
        P: (n, n) transition probabilities without the end token, dense or sparse; above 1000 tokens scipy is needed.

    Returns:
        l_1 in [0, 1]; exactly 1 with a cycle of certain transitions.

    Raises:
        ValueError: P is no such matrix.
        ImportError: scipy is not installed and needed.

    >>> round(repetition_radius(torch.full((4, 4), 0.25)), 6)  # uniform: 1 / n
    0.25
    """
    P = checked_transitions("repetition_radius", P)
    if _certain_cycles(P):
        return 1.0
    if len(P) > 1000:
        from danlu.probe._repetition_series import perron_root

        return perron_root(P.to_sparse())
    return float(torch.linalg.eigvals((P.to_dense() if P.is_sparse else P) ** 2).abs().max())


def repetition_bound(P: Tensor) -> float:
    """The upper bound n l_1 / (1 - l_1) of R, eq. (3).

    Args:
        P: (n, n) transition probabilities without the end token, dense or sparse.

    Returns:
        The bound; inf with a cycle of certain transitions.

    Raises:
        ValueError: P is no such matrix.

    >>> round(repetition_bound(torch.tensor([[0.0, 1.0], [0.5, 0.0]])), 6)
    2.0
    """
    radius = repetition_radius(P)
    return torch.inf if radius >= 1 else len(P) * radius / (1 - radius)


def row_collision(P: Tensor) -> Tensor:
    """Probability that two draws from a row agree, sum_j P_ij^2; its extremes enclose l_1, eq. (3).

    Args:
        P: (n, n) transition probabilities without the end token, dense or sparse.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        ValueError: P is no such matrix.

    >>> row_collision(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    P = checked_transitions("row_collision", P)
    squared = (P * P).sum(1)
    return squared.to_dense() if squared.is_sparse else squared


def deterministic_cycles(P: Tensor) -> list[tuple[int, ...]]:
    """The cycles of certain transitions, eq. (4), each as its tokens in order.

    Args:
        P: (n, n) transition probabilities without the end token, dense or sparse.

    Returns:
        Every cycle once, from its lowest token on; empty when R is finite.

    Raises:
        ValueError: P is no such matrix.

    >>> deterministic_cycles(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    [(1, 2)]
    """
    return _certain_cycles(checked_transitions("deterministic_cycles", P))


def sampled_repetition_index(
    sequences: Iterable[Sequence[int]], vocab_size: int | None = None, max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """R_i as samples show it: the mean number of loops that begin at an occurrence of a token; any model's samples do.

    Args:
        sequences: ids of generated sequences; one that was cut before its end shows its last loops only in part.
        vocab_size: n; None takes the largest id + 1.
        max_length: longest loop looked for, in tokens.

    Returns:
        (R_i (n,), 0 where a token does not occur, and occurrences (n,)), float64.

    Raises:
        ValueError: an id is outside [0, n).

    >>> index, counts = sampled_repetition_index([[0, 0, 0, 1]])  # one loop at one of three zeros
    >>> index[0].item(), counts.tolist()
    (0.3333333333333333, [3.0, 1.0])
    """
    ids: list[int] = []
    loops: list[int] = []
    for sequence in sequences:
        ids += sequence
        loops += loop_counts(sequence, max_length)
    n = max(ids, default=-1) + 1 if vocab_size is None else vocab_size
    if ids and not 0 <= min(ids) <= max(ids) < n:
        raise ValueError(f"ids must lie in [0, {n}), got {min(ids)} to {max(ids)}; raise vocab_size")
    tokens = torch.tensor(ids, dtype=torch.int64)
    counts = torch.bincount(tokens, minlength=n).double()
    total = torch.bincount(tokens, torch.tensor(loops, dtype=torch.float64), minlength=n)
    return total / counts.clamp_min(1), counts


def _certain_cycles(P: Tensor) -> list[tuple[int, ...]]:
    """Cycles of entries that are 1; P is checked."""
    n = len(P)
    follow = torch.full((n + 1,), n)  # token -> its certain successor; n: none
    if P.is_sparse:
        certain = P.values() >= 1 - CERTAIN
        follow[P.indices()[0][certain]] = P.indices()[1][certain]
    else:
        largest, at = P.max(1)
        follow[:n] = torch.where(largest >= 1 - CERTAIN, at, n)
    far = follow
    for _ in range(n.bit_length()):
        far = far[far]  # after 2^m >= n steps only tokens on cycles are left, and n
    left = set(far.tolist()) - {n}
    cycles = []
    while left:
        token = start = min(left)
        cycle: list[int] = []
        while token != start or not cycle:
            cycle.append(token)
            token = int(follow[token])
        cycles.append(tuple(cycle))
        left -= set(cycle)
    return cycles
