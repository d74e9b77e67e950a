r"""Dependency and constituency trees out of an impact matrix.

    arc from head h to dependent d scores F_dh: the head is what a dependent misses most                         (1)
    normalize="head":  exp(F_dh) / sum_k exp(F_hk)                                                              (2)

(2) is what the paper's code computes: a sum over the wrong axis divides by the row of the head instead of that of the
dependent, which lowers words that depend much on others. It is kept for comparison. Impacts say nothing of which word
is the root: "mass" takes the word that the others miss most, `root=` one that is known, None leaves it to the tree.

Source: Wu et al., 2020, arXiv:2004.14786 and its code; kexue.fm/archives/7476. "mass" is ours.
Shapes: W words.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.math.chu_liu_edmonds import chu_liu_edmonds
from danlu.math.constituency_tree import CUT_RULES, Tree, cky, span_values, spans_tree, top_down_tree
from danlu.math.eisner import eisner

__all__ = ["TREE_RULES", "ImpactMatrix", "impact_heads", "impact_tree"]

TREE_RULES = (*CUT_RULES, "cky")


def impact_heads(
    impact: Tensor, root: int | str | None = None, algorithm: str = "eisner", normalize: str | None = None
) -> list[int]:
    """Heads of the best dependency tree with one root, eq. (1).

    Args:
        impact: (W, W) of `impact_matrix`.
        root: number of the root from 1, "mass" for the word with the largest column sum, or None for whichever root
            the best tree has.
        algorithm: "eisner" (projective) or "mst" (Chu-Liu/Edmonds, arcs may cross).
        normalize: None or "head", eq. (2).

    Returns:
        0 for the root, else the head's number from 1.

    Raises:
        ValueError: impact is no square matrix of numbers, or an option is none of those allowed.

    >>> impact_heads(torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [1.0, 3.0, 0.0]]))
    [2, 0, 2]
    """
    if impact.ndim != 2 or impact.shape[0] != impact.shape[1]:
        raise ValueError(f"impact_heads needs one sentence's impacts (W, W); got {tuple(impact.shape)}")
    words = len(impact)
    known = isinstance(root, int) and not isinstance(root, bool) and 1 <= root <= words
    if not (root is None or root == "mass" or known):
        raise ValueError(f"root must be None, 'mass' or a number in [1, {words}], got {root!r}")
    if algorithm not in ("eisner", "mst") or normalize not in (None, "head"):
        raise ValueError(
            f"algorithm must be eisner or mst, normalize None or 'head'; got {algorithm!r} and {normalize!r}"
        )
    if not words:
        return []
    scores = impact.detach().double().clone()
    if root == "mass":
        root = int((scores.sum(0) - scores.diagonal()).argmax()) + 1
    if normalize == "head":
        scores = (scores - scores.logsumexp(1)).clamp_max(700.0).exp()  # eq. (2): [d, h] over the row of h
    scores.fill_diagonal_(0.0 if root is None else -torch.inf)
    if root is not None:
        scores[int(root) - 1, int(root) - 1] = 0.0
    decode = eisner if algorithm == "eisner" else chu_liu_edmonds
    return decode(scores[None])[0].tolist()


def impact_tree(impact: Tensor, rule: str = "mean_offdiag", right_bias: float = 0.0) -> Tree:
    """Binary constituency tree of one sentence (`danlu.math.constituency_tree`).

    Args:
        impact: (W, W) of `impact_matrix`.
        rule: "author", "paper", "mean_offdiag" (all from the top) or "cky".
        right_bias: leaning to right-branching trees in units of the mean impact; "mean_offdiag" and "cky" only.

    Returns:
        Nested pairs of word numbers from 0.

    Raises:
        ValueError: impact is no square matrix of finite numbers, or an option is none of those allowed.

    >>> impact_tree(torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), "cky")
    ((0, 1), 2)
    """
    if rule != "cky":
        if rule not in CUT_RULES:
            raise ValueError(f"rule must be one of {', '.join(TREE_RULES)}, got {rule!r}")
        return top_down_tree(impact, rule, right_bias)
    if impact.ndim != 2 or impact.shape[0] != impact.shape[1]:
        raise ValueError(f"impact_tree needs one sentence's impacts (W, W); got {tuple(impact.shape)}")
    words = len(impact)
    mean = float(impact.double().sum() - impact.double().diagonal().sum()) / max(words * (words - 1), 1)
    return spans_tree(cky(span_values(impact[None]), right_bias=right_bias * mean)[0])


@dataclass(frozen=True)
class ImpactMatrix:
    """Impacts with the words they are between: what pictures and reports take."""

    values: Tensor  # (W, W)
    words: tuple[str, ...]

    def heads(
        self, root: int | str | None = None, algorithm: str = "eisner", normalize: str | None = None
    ) -> list[int]:
        """`impact_heads` of the values.

        Args:
            root: as there.
            algorithm: as there.
            normalize: as there.

        Returns:
            Heads.
        """
        return impact_heads(self.values, root, algorithm, normalize)

    def tree(self, rule: str = "mean_offdiag", right_bias: float = 0.0) -> Tree:
        """`impact_tree` of the values, with words for numbers.

        Args:
            rule: as there.
            right_bias: as there.

        Returns:
            Nested pairs of words.
        """

        def named(node: Tree) -> Tree:
            return self.words[node] if isinstance(node, int) else tuple(named(child) for child in node)

        return named(impact_tree(self.values, rule, right_bias))
