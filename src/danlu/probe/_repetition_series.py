r"""The repetition index of large sparse matrices: balanced, summed as a series with a threshold, error bounded.

For any diagonal D > 0 the matrix A = D Q D^{-1} has the same closed walks as Q. D brings each row's sum near that of
its column (Osborne, 1960): an entry c_ij^2 / c_i^2 of bigram counts then comes near c_ij^2 / (c_i c_j), small both from
a frequent to a rare token and back. With x_1 = A e_i and d_k what is dropped from x_k

    R_i = sum_k e_i' x_k + sum_k e_i' A (I - A)^{-1} d_k,   x_{k+1} = A (x_k - d_k)                         (1)
    e_i' A (I - A)^{-1} d  <=  max(d) (h_i - 1),   h = (I - A)^{-1} 1                                       (2)
    h <= g / (1 - max r)   for   g = sum_{k<K} A^k 1   with the residual   r = 1 - (I - A) g = A^K 1        (3)

Source: the bounds are elementary (A is not negative); balancing: Osborne, 1960, "On pre-conditioning of matrices".
Shapes: n tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 1000  # columns at a time
TERMS = 10_000  # of any series; what is left then goes into the error


def loop_series(P: Tensor, certain: Sequence[int], threshold: float) -> tuple[Tensor, Tensor]:
    """(R_i, error_i), float64; inf and 0 for the tokens of `certain` cycles."""
    Q, members = _looping_part(P, certain)
    A = _balanced(Q)
    h, ready = _row_sums(A)
    index, error = np.zeros(len(P)), np.zeros(len(P))
    columns = A.T.tocsr()  # row i holds A e_i
    for start in range(0, len(members), BLOCK):
        block = slice(start, start + BLOCK)
        found, dropped = _columns(columns, start, min(BLOCK, len(members) - start), threshold)
        index[members[block]] = found
        with np.errstate(invalid="ignore"):
            bound = np.where(dropped > 0, dropped * (h[block] - 1), 0.0)  # eq. (2)
        error[members[block]] = bound if ready else np.where(dropped > 0, np.inf, 0.0)
    index[list(certain)] = np.inf
    return torch.from_numpy(index), torch.from_numpy(error)


def perron_root(P: Tensor) -> float:
    """Largest eigenvalue of Q = P o P."""
    Q, members = _looping_part(P, ())
    if not len(members):
        return 0.0
    if len(members) < 10:
        return float(np.abs(np.linalg.eigvals(Q.toarray())).max())
    from scipy.sparse.linalg import eigs

    found = eigs(_balanced(Q), k=1, which="LM", return_eigenvectors=False, v0=np.ones(len(members)))
    return float(np.abs(found).max())


def _scipy() -> Any:
    try:
        import scipy.sparse
        import scipy.sparse.csgraph
    except ImportError:
        raise ImportError('large matrices need scipy, which is missing; pip install "danlu[tasks]"') from None
    return scipy.sparse


def _looping_part(P: Tensor, certain: Sequence[int]) -> tuple[Any, np.ndarray]:
    """Q without the steps that never come back, and the tokens that are left."""
    sparse = _scipy()
    rows, columns = P.indices().numpy()
    values = P.values().numpy() ** 2
    n = len(P)
    outside = np.zeros(n, bool)
    outside[list(certain)] = True
    graph = sparse.csr_matrix((values, (rows, columns)), (n, n))
    _, component = sparse.csgraph.connected_components(graph, directed=True, connection="strong")
    stays = (component[rows] == component[columns]) & ~outside[rows] & (values > 0)
    members = np.unique(rows[stays])
    Q = sparse.csr_matrix((values[stays], (rows[stays], columns[stays])), (n, n))
    return Q[members][:, members].tocsr(), members


def _balanced(Q: Any) -> Any:
    """D Q D^{-1} with row sums near column sums."""
    sparse = _scipy()
    off = Q - sparse.diags(Q.diagonal())
    log_scale = np.zeros(Q.shape[0])
    for _ in range(20):  # all tokens at once, half a step each
        scale = np.exp(log_scale)
        rows, columns = off @ (1 / scale) * scale, off.T @ scale / scale
        linked = (rows > 0) & (columns > 0)
        log_scale[linked] -= 0.25 * np.log(rows[linked] / columns[linked])
    scale = np.exp(log_scale)
    return (sparse.diags(scale) @ Q @ sparse.diags(1 / scale)).tocsr()


def _row_sums(A: Any) -> tuple[np.ndarray, bool]:
    """An upper bound of h, eq. (3), and whether there is one."""
    term = np.ones(A.shape[0])
    h = np.zeros(A.shape[0])
    for _ in range(TERMS):
        h += term
        term = A @ term
        if term.max(initial=0.0) < 1e-3:
            break
    left = term.max(initial=0.0)
    return h / max(1 - left, np.finfo(float).tiny), bool(left < 1)


def _columns(columns: Any, start: int, size: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """For `size` tokens from `start`: the sum of what comes back, and the largest entries dropped, summed; eq. (1)."""
    sparse = _scipy()
    x = columns[start : start + size]
    index, dropped = np.zeros(size), np.zeros(size)
    for term in range(TERMS):
        rows = np.repeat(np.arange(size), np.diff(x.indptr))
        home = x.indices == rows + start
        index[rows[home]] += x.data[home]
        small = x.data < (threshold if term < TERMS - 1 else np.inf)
        largest = np.zeros(size)
        np.maximum.at(largest, rows[small], x.data[small])
        dropped += largest
        kept = np.concatenate([[0], np.cumsum(np.bincount(rows[~small], minlength=size))])
        x = sparse.csr_matrix((x.data[~small], x.indices[~small], kept), x.shape)
        if not x.nnz:
            break
        x = (x @ columns).tocsr()
    return index, dropped
