r"""Binary constituency trees out of a matrix of impacts: cut from the top, or the best sum over all trees (CKY).

From the top, a block of words 0..n-1 with impacts F is cut at one k, and both parts again:

    author:        node = (0..k-1, (k, k+1..n-1)),  k = argmax_{1<=k<=n-2} mean F[:k,:k] + mean F[k:,k:]
                                                            - mean F[:k,k:] - mean F[k:,:k]                     (1)
    paper:         the same node,  k = argmin_{1<=k<=n-1} sum G[:k,:k] / 2k + sum G[k+1:,k+1:] / 2(n - k)
                                             - (sum G[:k,k+1:] + sum G[k+1:,:k]) / k(n - k)                     (2)
                   G = 1 - softmax over each column of F, with a zero diagonal
    mean_offdiag:  node = (0..k-1, k..n-1),  k = argmax_{1<=k<=n-1} W_k - C_k + bias (n - 2k) / n               (3)
                   W_k mean impact over ordered pairs within the same part, C_k over pairs across the cut

Blocks of (1) hold the zero diagonal, so that parts of one word score 0 and long ones are favoured; in (2), the form
that was coded, word k is in no block and divisors are no areas. (3) is ours: no diagonal, a part of one word is
neutral, any tree can come out. A cut within rounding of the best is equal to it, and the leftmost wins: constant
impacts give a right-branching tree under (3).

CKY finds the tree whose spans have the largest sum of

    v[i, j] = mean of F over pairs within i..j  -  mean of F over pairs of one word within and one outside       (4)
    best[i, j] = v[i, j] + max_{i<=k<j} best[i, k] + best[k+1, j] + bias (right - left) / (right + left)         (5)

with left and right the words of the two parts; a positive bias leans to right-branching trees.

Source: kexue.fm/archives/7476 and its code (1); Wu et al., 2020, arXiv:2004.14786 and its code (2); (3) to (5) ours.
Shapes: B sentences, n words; a tree is nested pairs of word numbers from 0, a lone word its number.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["CUT_RULES", "Tree", "cky", "span_values", "spans_tree", "top_down_tree"]

CUT_RULES = ("author", "paper", "mean_offdiag")
Tree = Any  # int, or a pair of trees; () for a sentence without words
_TIES = 1e-10  # of the largest impact


def top_down_tree(impact: Tensor, rule: str = "mean_offdiag", right_bias: float = 0.0) -> Tree:
    """Tree of one sentence, cut from the top by eq. (1), (2) or (3).

    Args:
        impact: (n, n), row i how much each other word matters to word i.
        rule: "author", "paper" or "mean_offdiag".
        right_bias: bias of eq. (3), in units of the mean impact of the sentence; 0 for the other two rules.

    Returns:
        Nested pairs of word numbers; a number for one word, () for none.

    Raises:
        ValueError: impact is not a square matrix of finite numbers, an unknown rule, or a bias where none belongs.

    >>> top_down_tree(torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]]))
    ((0, 1), 2)
    """
    F = _checked("top_down_tree", impact, 2)
    if rule not in CUT_RULES or (right_bias and rule != "mean_offdiag"):
        raise ValueError(
            f"rule must be one of {', '.join(CUT_RULES)}, and right_bias goes with mean_offdiag only; got {rule!r} "
            f"and {right_bias}"
        )
    n = len(F)
    if not n:
        return ()
    bias = right_bias * (float(F.sum() - F.diagonal().sum()) / max(n * (n - 1), 1))
    if rule == "paper":
        F = (1 - F.softmax(0)).fill_diagonal_(0.0)
    sums = _prefix(F)
    diagonal = torch.cat([F.new_zeros(1), F.diagonal().cumsum(0)])
    tie = _TIES * float(F.abs().max())
    cuts: dict[tuple[int, int], int] = {}
    blocks = [(0, n)]
    while blocks:
        start, end = blocks.pop()
        size = end - start
        if size < 2:
            continue
        if size == 2 or (rule == "author" and size == 3):
            cut = 1  # all that the rule allows
        else:
            gain = _gains(sums, diagonal, start, end, rule, bias)
            cut = 1 + int((gain >= gain.max() - tie).to(torch.uint8).argmax())
        cuts[start, end] = cut
        blocks += [(start, start + cut), (start + cut, end)]
        if rule != "mean_offdiag" and size - cut > 1:  # word k is parted from what follows it
            cuts[start + cut, end] = 1
            blocks[-1] = (start + cut + 1, end)
    return _nested(cuts, n)


def span_values(impact: Tensor) -> Tensor:
    """Value of every span as a constituent, eq. (4).

    Args:
        impact: (B, n, n) impacts.

    Returns:
        (B, n, n) float64, [i, j] the value of words i to j; 0 for single words, for the whole sentence, below the
        diagonal, and where only rounding is left.

    Raises:
        ValueError: impact is not (B, n, n) of finite numbers.

    >>> span_values(torch.tensor([[[0.0, 2.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]]]))[0, 0, 1]
    tensor(1., dtype=torch.float64)
    """
    F = _checked("span_values", impact, 3)
    n = F.shape[1]
    if not n:
        return F
    F = F - torch.diag_embed(F.diagonal(dim1=1, dim2=2))
    sums = _prefix(F)
    i, j = torch.arange(n, device=F.device)[:, None], torch.arange(n, device=F.device)[None, :] + 1
    size = (j - i).clamp_min(0)  # (n, n)
    start, end = i.expand(n, n), j.expand(n, n)
    within = _block(sums, start, end, start, end)
    zero, whole = torch.zeros_like(start), torch.full_like(start, n)
    touching = _block(sums, start, end, zero, whole) + _block(sums, zero, whole, start, end) - 2 * within
    value = within / (size * (size - 1)).clamp_min(1) - touching / (2 * size * (n - size)).clamp_min(1)  # eq. (4)
    value = torch.where((size > 1) & (size < n), value, torch.zeros_like(value))
    small = _TIES * F.abs().flatten(1).amax(1)[:, None, None]
    return torch.where(value.abs() <= small, torch.zeros_like(value), value)


def cky(values: Tensor, lengths: Tensor | None = None, right_bias: float = 0.0) -> Tensor:
    """Spans of the binary tree with the largest sum of values, eq. (5); of equal trees the one cut further left.

    Args:
        values: (B, n, n) value of the span from word i to word j >= i; what stands below the diagonal is not read.
        lengths: (B,) int64 words of each sentence, at least 0; None: n.
        right_bias: bias of eq. (5).

    Returns:
        (B, n, n) bool, True at the spans of the tree, single words included; False where there is no word.

    Raises:
        ValueError: a shape does not fit, a length is out of range, or a value is nan or infinite.

    >>> cky(torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]]))[0].nonzero().tolist()
    [[0, 0], [0, 2], [1, 1], [1, 2], [2, 2]]
    """
    x = _checked("cky", values.triu() if values.ndim == 3 else values, 3)
    batch, n = x.shape[:2]
    if lengths is None:
        lengths = torch.full((batch,), n, dtype=torch.int64, device=x.device)
    if lengths.shape != (batch,) or (batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= n):
        raise ValueError(f"cky needs lengths ({batch},) in [0, {n}], one a sentence; got {lengths.tolist()}")
    by_start, by_end = torch.zeros_like(x), torch.zeros_like(x)  # [b, word, width]
    splits = torch.zeros(x.shape, dtype=torch.int64, device=x.device)
    if n:
        by_start[:, :, 0] = by_end[:, :, 0] = x.diagonal(0, 1, 2)
    for w in range(1, n):  # spans i .. i + w
        c = n - w
        left = torch.arange(1, w + 1, device=x.device, dtype=x.dtype)  # words of the left part
        lean = right_bias * (w + 1 - 2 * left) / (w + 1)
        best, splits[:, :c, w] = (by_start[:, :c, :w] + by_end[:, w:, :w].flip(2) + lean).max(2)
        by_start[:, :c, w] = by_end[:, w:, w] = x.diagonal(w, 1, 2) + best  # eq. (5)
    used = torch.zeros(batch, n * n, dtype=torch.int32, device=x.device)  # by word and width
    if n:
        used[:, :n] = (torch.arange(n, device=x.device) == lengths[:, None] - 1).int()
    for w in range(n - 1, 0, -1):
        c = n - w
        i, k = torch.arange(c, device=x.device), splits[:, :c, w]
        live = used.view(batch, n, n)[:, :c, w].clone()
        used.scatter_add_(1, i * n + k, live)
        used.scatter_add_(1, (i + k + 1) * n + w - 1 - k, live)
    spans = torch.zeros(batch, n, n, dtype=torch.bool, device=x.device)
    for w in range(n):
        spans.diagonal(w, 1, 2).copy_(used.view(batch, n, n)[:, : n - w, w] > 0)
    return spans


def spans_tree(spans: Tensor) -> Tree:
    """The nested form of a binary tree given by its spans.

    Args:
        spans: (n, n) bool, one sentence of what `cky` returns.

    Returns:
        Nested pairs of word numbers.

    Raises:
        ValueError: the spans are not those of one binary tree.

    >>> spans_tree(cky(torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]]))[0])
    (0, (1, 2))
    """
    found = {(i, j + 1) for i, j in spans.nonzero().tolist()}
    n = sum(j - i == 1 for i, j in found)
    cuts: dict[tuple[int, int], int] = {}
    for start, end in found:
        inner = [k for k in range(start + 1, end) if (start, k) in found and (k, end) in found]
        if end - start > 1 and len(inner) == 1:
            cuts[start, end] = inner[0] - start
    if len(found) != max(2 * n - 1, 0) or len(cuts) != max(n - 1, 0) or (n and (0, n) not in found):
        raise ValueError(f"{len(found)} spans over {n} words are not those of a binary tree; cky returns such spans")
    return _nested(cuts, n) if n else ()


def _checked(name: str, x: Tensor, ndim: int) -> Tensor:
    """The matrix in float64 (float32 where there is none), or an error that says what it is."""
    if x.ndim != ndim or x.shape[-1] != x.shape[-2]:
        wanted = "(n, n), one sentence" if ndim == 2 else "(B, n, n)"
        raise ValueError(f"{name} needs a matrix {wanted}; got {tuple(x.shape)}")
    x = x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} needs finite numbers; {int((~x.isfinite()).sum())} are nan or infinite")
    return x


def _prefix(F: Tensor) -> Tensor:
    """Sums of F[..., :i, :j] at [..., i, j]: every block sum is then four look-ups."""
    return torch.nn.functional.pad(F.cumsum(-1).cumsum(-2), (1, 0, 1, 0))


def _block(sums: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Sum of F over rows top..bottom-1 and columns left..right-1, elementwise in the four."""
    at = sums if sums.ndim == 3 else sums[None]
    total = at[:, bottom, right] - at[:, top, right] - at[:, bottom, left] + at[:, top, left]
    return total if sums.ndim == 3 else total[0]


def _gains(sums: Tensor, diagonal: Tensor, start: int, end: int, rule: str, bias: float) -> Tensor:
    """What each cut of the block is worth; the first entry is k = 1."""
    n = end - start
    k = torch.arange(1, n - 1 if rule == "author" else n, device=sums.device)
    a, c, b = torch.full_like(k, start), start + k, torch.full_like(k, end)
    skip = c + 1 if rule == "paper" else c  # word k is in no block of eq. (2)
    left, right = _block(sums, a, c, a, c), _block(sums, skip, b, skip, b)
    across = _block(sums, a, c, skip, b), _block(sums, skip, b, a, c)
    if rule == "author":
        return left / k**2 + right / (n - k) ** 2 - (across[0] + across[1]) / (k * (n - k))  # eq. (1)
    if rule == "paper":
        return -(left / (2 * k) + right / (2 * (n - k)) - (across[0] + across[1]) / (k * (n - k)))  # eq. (2)
    pairs = k * (k - 1) + (n - k) * (n - k - 1)
    within = (left + right - (diagonal[end] - diagonal[start])) / pairs
    return within - (across[0] + across[1]) / (2 * k * (n - k)) + bias * (n - 2 * k) / n  # eq. (3)


def _nested(cuts: dict[tuple[int, int], int], n: int) -> Tree:
    """The tree of the cuts, without recursion: sentences may be long and trees lopsided."""
    built: dict[tuple[int, int], Tree] = {(i, i + 1): i for i in range(n)}
    for start, end in sorted(cuts, key=lambda span: span[1] - span[0]):
        middle = start + cuts[start, end]
        built[start, end] = (built[start, middle], built[middle, end])
    return built[0, n]
