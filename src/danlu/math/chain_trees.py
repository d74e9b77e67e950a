r"""Trees that one has for nothing: chains, stars, branches. What any parser is to be held against.

Every word below the next one is right more often than many parsers that were trained on nothing, so scores without
these beside them say little.

Source: own definitions; "next" is the baseline of Wu et al., 2020, arXiv:2004.14786, where its last word hung nowhere.
Shapes: no tensors; heads count from 1, 0 is the root.
"""

from danlu.math.constituency_tree import Tree

__all__ = ["CHAINS", "chain_heads", "chain_tree"]

CHAINS = ("next", "previous", "to_root", "star")


def chain_heads(length: int, kind: str = "next", root: int | None = None) -> list[int]:
    """Heads that need no model: what any parser is to be held against.

    Args:
        length: words, n.
        kind: "next" (each word below the next), "previous", "to_root" (each below its neighbour on the root's side),
            "star" (all below the root).
        root: number of the root from 1; None: the last word for "next", else the first. Under "next" and "previous"
            a word at the end that is not the root has nothing to hang on: it hangs on the root.

    Returns:
        n heads.

    Raises:
        ValueError: another kind, or no such root.

    >>> chain_heads(4), chain_heads(4, "to_root", 2)
    ([2, 3, 4, 0], [2, 0, 2, 3])
    """
    if kind not in CHAINS or length < 0 or (root is not None and not 1 <= root <= length):
        raise ValueError(
            f"kind must be one of {', '.join(CHAINS)}, length at least 0 and root in [1, length]; got {kind!r}, "
            f"{length} and {root}"
        )
    top = root or (length if kind == "next" else 1)
    heads = []
    for d in range(1, length + 1):
        to_root = d + 1 if d < top else d - 1
        head = {"next": d + 1, "previous": d - 1, "to_root": to_root, "star": top}[kind]
        heads.append(0 if d == top else head if 1 <= head <= length else top)
    return heads


def chain_tree(length: int, kind: str = "right") -> Tree:
    """Tree that needs no model: right-branching, left-branching or halved again and again.

    Args:
        length: words.
        kind: "right", "left" or "balanced".

    Returns:
        Nested pairs of word numbers; () for no words.

    Raises:
        ValueError: another kind.

    >>> chain_tree(3), chain_tree(3, "left"), chain_tree(4, "balanced")
    ((0, (1, 2)), ((0, 1), 2), ((0, 1), (2, 3)))
    """
    if kind not in ("right", "left", "balanced"):
        raise ValueError(f"kind must be right, left or balanced, got {kind!r}")
    level: list[Tree] = list(range(length))
    if kind == "balanced":

        def halves(start: int, end: int) -> Tree:
            middle = (start + end) // 2
            return start if end - start == 1 else (halves(start, middle), halves(middle, end))

        return halves(0, length) if length else ()
    if not level:
        return ()
    tree = level.pop(-1 if kind == "right" else 0)
    for word in reversed(level) if kind == "right" else level:
        tree = (word, tree) if kind == "right" else (tree, word)
    return tree
