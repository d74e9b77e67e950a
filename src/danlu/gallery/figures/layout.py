r"""Where things stand in a picture, as numbers: pooled matrices, thinned labels, levels of arcs, trees, planes.

    block mean      P_ab = mean of the cells of block (a, b) that are numbers, blocks of k x k                (1)
    level of an arc = 1 + the highest level of the arcs inside it, 1 if there are none                        (2)
    tree            leaves at 0, 1, 2, ...; a node at the mean of its first and last child,
                    as high as its highest child + 1                                                          (3)
    merged pieces   the mean over the rows of a word, the sum over its columns: rows still sum to 1           (4)
    plane           x - mean, on the two directions of largest variance, the largest entry of each positive   (5)

Source: own definitions. Shapes: R rows, C columns, N points, D features, W words.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["arc_levels", "merge_pieces", "plane", "pool_matrix", "thin", "tree_places"]


def pool_matrix(values: Any, largest: int = 256) -> tuple[Any, int]:
    """A matrix of at most that many rows and columns, eq. (1).

    Args:
        values: (R, C) array, nan where there is no number.
        largest: rows or columns left.

    Returns:
        The matrix, and k: 1 if it was small enough.

    >>> pool_matrix(np.arange(16.0).reshape(4, 4), 2)[0].tolist()
    [[2.5, 4.5], [10.5, 12.5]]
    """
    k = max(1, math.ceil(max(values.shape, default=1) / largest))
    if k == 1:
        return values, 1
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0.0), known.astype(np.float64)
    for axis in (0, 1):
        starts = np.arange(0, values.shape[axis], k)
        sums, counts = np.add.reduceat(sums, starts, axis), np.add.reduceat(counts, starts, axis)
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan), k  # eq. (1)


def thin(count: int, most: int = 60) -> list[int]:
    """Which of some labels to show: all, or every k-th.

    Args:
        count: of the labels.
        most: that have room.

    Returns:
        Rising numbers from 0.

    >>> thin(5, 3)
    [0, 2, 4]
    """
    return list(range(0, count, max(1, math.ceil(count / most))))


def arc_levels(arcs: Sequence[tuple[int, int]]) -> list[int]:
    """How high each arc must be to pass over those inside it, eq. (2); arcs that cross may have one level.

    Args:
        arcs: pairs of places, either order.

    Returns:
        A level from 1 for each.

    >>> arc_levels([(0, 3), (1, 2), (3, 4)])
    [2, 1, 1]
    """
    ends = [(min(a), max(a)) for a in arcs]
    levels = [0] * len(arcs)
    for i in sorted(range(len(arcs)), key=lambda i: ends[i][1] - ends[i][0]):
        low, high = ends[i]
        inside = [
            levels[j] for j, (a, b) in enumerate(ends)
            if j != i and levels[j] and low <= a and b <= high and (a, b) != (low, high)
        ]  # fmt: skip
        levels[i] = 1 + max(inside, default=0)  # eq. (2)
    return levels


def tree_places(tree: Any) -> tuple[list[Any], list[tuple[float, int, list[int]]]]:
    """Leaves and nodes of a nested tree with their places, eq. (3).

    Args:
        tree: a leaf (anything but a tuple or list), or a tuple or list of trees.

    Returns:
        The leaves in order, and for every node, leaves first: its x, its height (0 for leaves), its children's numbers.

    Raises:
        ValueError: a node without children.

    >>> tree_places((("a", "b"), "c"))[1][3:]
    [(0.5, 1, [0, 1]), (1.25, 2, [3, 2])]
    """
    leaves: list[Any] = []
    inner: list[list[tuple[str, int]]] = []  # children of each node, inner nodes after their own
    done: list[tuple[str, int]] = []
    todo: list[tuple[str, Any]] = [("visit", tree)]
    while todo:  # without recursion: a chain of a thousand words is a tree too
        what, node = todo.pop()
        if what == "close":
            children = done[len(done) - node :]
            del done[len(done) - node :]
            inner.append(children)
            done.append(("node", len(inner) - 1))
        elif isinstance(node, tuple | list):
            if not node:
                raise ValueError("a node of the tree has no children; leave it out, or write the leaf itself")
            todo.append(("close", len(node)))
            todo.extend(("visit", child) for child in reversed(node))
        else:
            leaves.append(node)
            done.append(("leaf", len(leaves) - 1))
    places: list[tuple[float, int, list[int]]] = [(float(i), 0, []) for i in range(len(leaves))]
    for keys in inner:
        below = [i if kind == "leaf" else len(leaves) + i for kind, i in keys]
        x = (places[below[0]][0] + places[below[-1]][0]) / 2
        places.append((x, 1 + max(places[c][1] for c in below), below))  # eq. (3)
    return leaves, places


def merge_pieces(weights: Any, units: Sequence[Sequence[int]]) -> Any:
    """Weights between words out of weights between their pieces, eq. (4).

    Args:
        weights: (..., T, T) array, queries by keys.
        units: positions of the pieces of each of W words; rows sum to 1 as before if every position is in one.

    Returns:
        (..., W, W).

    Raises:
        ValueError: a word without pieces, or a position that is not there.

    >>> merge_pieces(np.full((3, 3), 1 / 3), [(0,), (1, 2)]).round(3).tolist()
    [[0.333, 0.667], [0.333, 0.667]]
    """
    length = weights.shape[-1]
    if not all(len(u) and min(u) >= 0 and max(u) < length for u in units):
        raise ValueError(f"every word needs pieces at positions in [0, {length}), got {list(map(list, units))}")
    columns = np.stack([weights[..., list(u)].sum(-1) for u in units], axis=-1)  # (..., T, W)
    return np.stack([columns[..., list(u), :].mean(-2) for u in units], axis=-2)  # eq. (4)


def plane(points: Any) -> tuple[Any, float]:
    """Points on the plane of their largest variance, eq. (5).

    Args:
        points: (N, D) finite numbers, N and D at least 1.

    Returns:
        (N, 2), and the share of the variance that the plane holds (1 where there is none).

    >>> plane(np.array([[0.0, 0.0, 3.0], [0.0, 0.0, -3.0]]))[0].tolist()
    [[3.0, 0.0], [-3.0, 0.0]]
    """
    centred = points - points.mean(0)
    size = float(np.abs(centred).max()) or 1.0
    _, lengths, axes = np.linalg.svd(centred / size, full_matrices=False)
    axes = axes[:2] * np.where(np.take_along_axis(axes[:2], np.abs(axes[:2]).argmax(1)[:, None], 1) < 0, -1.0, 1.0)
    flat = centred @ axes.T  # eq. (5)
    total = float((lengths**2).sum())
    share = float((lengths[:2] ** 2).sum()) / total if total > 0 else 1.0
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))) + 0.0, share
