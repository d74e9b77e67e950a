r"""Word vectors without training: singular vectors of the positive pointwise mutual information of neighbours.

    PMI(w, c) = log( n_wc sum_c' n_c'^p / (n_w n_c^p) )                                                       (1)
    max(PMI, 0) = U S V^T,   e_w = U_w S^{1/2}, the first D columns                                           (2)

n_wc counts how often c stands within `window` words of w, n_w and n_c are its sums over rows and columns; p < 1 takes
some weight from rare neighbours. (2) by subspace iteration with random starts (generator=).

Source: Levy and Goldberg, NIPS 2014; Levy, Goldberg and Dagan, 2015, doi:10.1162/tacl_a_00134.
Shapes: V words, D features.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ppmi_vectors"]

SPARE = 20  # columns beyond D that make the subspace iteration converge
ROUNDS = 4


@torch.no_grad()
def ppmi_vectors(
    sentences: Sequence[Sequence[str]],
    dim: int = 300,
    window: int = 5,
    min_count: int = 3,
    max_words: int = 30_000,
    power: float = 0.75,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, int], Tensor]:
    """Vectors of the words of some sentences, eqs. (1) and (2).

    Args:
        sentences: each a list of words.
        dim: D; with fewer words fewer columns come back.
        window: neighbours on each side, within the sentence, >= 1; rarer words keep their place in it.
        min_count: rarer words get no vector.
        max_words: of the others only so many, the most frequent; of equals the first in alphabetical order.
        power: p of eq. (1), in (0, 1].
        generator: of the random starts, on the CPU.

    Returns:
        word -> row, the most frequent word first, and the table (V, D) float32.

    Raises:
        ValueError: an option out of its range, or no two words of them ever stand together.

    >>> rows, table = ppmi_vectors([["a", "b"], ["a", "b"], ["c", "d"], ["c", "d"]], dim=2, min_count=1)
    >>> list(rows), table.shape
    (['a', 'b', 'c', 'd'], torch.Size([4, 2]))
    """
    if dim < 1 or window < 1 or max_words < 1 or not 0 < power <= 1:
        raise ValueError(
            f"dim, window and max_words must be >= 1 and power in (0, 1]; got {dim}, {window}, {max_words} and {power}"
        )
    counts = Counter(word for sentence in sentences for word in sentence)
    kept = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
    rows = {word: i for i, word in enumerate(kept[:max_words])}
    pairs, times = _neighbours(sentences, rows, window)
    if not len(times):
        raise ValueError(
            f"none of the {len(rows)} words that occur at least {min_count} times stand within {window} words of one "
            "another; give more sentences or a lower min_count"
        )
    size = len(rows)
    n_w, n_c = (torch.zeros(size, dtype=torch.float64).index_add(0, axis, times) for axis in pairs)
    n_c = n_c**power
    pmi = (times * n_c.sum() / (n_w[pairs[0]] * n_c[pairs[1]])).log()  # eq. (1)
    positive = pmi > 0
    matrix = torch.sparse_coo_tensor(pairs[:, positive], pmi[positive].float(), (size, size), check_invariants=True)
    matrix = matrix.coalesce()
    return rows, _left_vectors(matrix, min(dim, size), generator)


def _neighbours(sentences: Sequence[Sequence[str]], rows: dict[str, int], window: int) -> tuple[Tensor, Tensor]:
    """Ordered pairs (2, P) of rows that occur within the window, and how often (P,) float64."""
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    if not rows:
        return lengths.new_zeros(2, 0), torch.zeros(0, dtype=torch.float64)
    flat = torch.tensor([rows.get(word, -1) for sentence in sentences for word in sentence], dtype=torch.long)
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    size, keys = len(rows), []
    for step in range(1, min(window, len(flat) - 1) + 1):
        a, b = flat[:-step], flat[step:]
        together = (owner[:-step] == owner[step:]) & (a >= 0) & (b >= 0)
        keys += [a[together] * size + b[together], b[together] * size + a[together]]
    key, times = torch.cat(keys).unique(return_counts=True) if keys else (flat[:0], flat[:0])
    return torch.stack([key // size, key % size]), times.double()


def _left_vectors(matrix: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """U S^{1/2} (V, D) of eq. (2), the largest entry of each column positive."""
    size = matrix.shape[0]
    width = min(size, dim + SPARE)
    across = matrix.t().coalesce()
    basis = torch.linalg.qr(matrix @ torch.randn(size, width, generator=generator)).Q
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(across @ basis).Q).Q
    u, s, _ = torch.linalg.svd((across @ basis).mT, full_matrices=False)  # (width, width), (width,)
    vectors = (basis @ u)[:, :dim] * s[:dim].sqrt()  # eq. (2)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)
