"""Divergences of many pairs of Gaussians: ours in one batch, a loop of scipy's matrix functions, pair by pair.

Run: python benchmarks/gaussian_distances.py [--pairs 1000] [--dim 32] [--threads 1] [--json FILE]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve, sqrtm

from _machine import milliseconds, record, write
from danlu.math import gaussian_bhattacharyya, gaussian_kl, gaussian_wasserstein

Pair = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def log_det(factor: np.ndarray) -> float:
    """log det of a matrix from its Cholesky factor."""
    return 2 * float(np.log(np.diag(factor)).sum())


def scipy_kl(m_p: np.ndarray, s_p: np.ndarray, m_q: np.ndarray, s_q: np.ndarray) -> float:
    """KL(p||q) of one pair."""
    p, q = cho_factor(s_p, lower=True), cho_factor(s_q, lower=True)
    d = m_p - m_q
    trace = np.trace(cho_solve(q, s_p))
    return float(d @ cho_solve(q, d) + trace - len(d) + log_det(q[0]) - log_det(p[0])) / 2


def scipy_bhattacharyya(m_p: np.ndarray, s_p: np.ndarray, m_q: np.ndarray, s_q: np.ndarray) -> float:
    """The Bhattacharyya distance of one pair."""
    p, q, both = (cho_factor(s, lower=True) for s in (s_p, s_q, (s_p + s_q) / 2))
    d = m_p - m_q
    return float(d @ cho_solve(both, d)) / 8 + (log_det(both[0]) - (log_det(p[0]) + log_det(q[0])) / 2) / 2


def scipy_wasserstein(m_p: np.ndarray, s_p: np.ndarray, m_q: np.ndarray, s_q: np.ndarray) -> float:
    """W^2 of one pair, as Frechet distances are commonly computed."""
    return float(((m_p - m_q) ** 2).sum() + np.trace(s_p) + np.trace(s_q) - 2 * np.trace(sqrtm(s_p @ s_q)).real)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch", "scipy"), options.threads)
    g = torch.Generator().manual_seed(0)
    f = torch.randn(2, options.pairs, options.dim, 2 * options.dim, dtype=torch.float64, generator=g)
    s = f @ f.mT / f.shape[-1]
    m = torch.randn(2, options.pairs, options.dim, dtype=torch.float64, generator=g)
    args = (m[0], s[0], m[1], s[1])
    pairs: list[Pair] = list(zip(*(x.numpy() for x in args), strict=True))

    def measured(ours: Callable[..., torch.Tensor], theirs: Callable[..., float]) -> dict[str, float]:
        gap = (ours(*args) - torch.tensor([theirs(*pair) for pair in pairs], dtype=torch.float64)).abs().max().item()
        batch, loop = milliseconds(
            lambda: ours(*args), lambda: [theirs(*pair) for pair in pairs], rounds=options.rounds
        )
        return {"ours_ms": batch, "scipy_loop_ms": loop, "ratio": loop / batch, "largest_gap": gap}

    row: dict[str, object] = {"pairs": options.pairs, "dim": options.dim}
    row["kl"] = measured(gaussian_kl, scipy_kl)
    row["bhattacharyya"] = measured(gaussian_bhattacharyya, scipy_bhattacharyya)
    row["wasserstein"] = measured(gaussian_wasserstein, scipy_wasserstein)
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
