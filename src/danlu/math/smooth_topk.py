r"""Smooth top-k: weights in [0, 1] that sum to k, near 1 for the k largest items and near 0 for the rest.

    p_i = F(K x_i - t),     t such that sum_i p_i = k                                                        (1)
    "sigmoid"   F(u) = 1 / (1 + e^-u);   t by Newton's method inside a bracket                               (2)
    "laplace"   F(u) = 1 - e^-u / 2 for u >= 0, e^u / 2 for u < 0                                            (3)
    "minexp"    F(u) = min(1, e^u);   softmax at k = 1                                                       (4)
    e^t = b / (r + sqrt(r^2 + a b)) for (3),   b / r for (4),   r = k - m                                    (5)
    dp/dx = K (diag d - d d^T / sum d),   d = F' = p (1 - p), min(p, 1 - p), or p where p < 1                (6)
    "grad"      p = grad log Z_k,   Z_k = sum over k-subsets S of exp(K sum_{i in S} x_i);   softmax at k = 1  (7)
    "recursive" y = K (x - min x);   k times:  p <- p + softmax((1 - p) y)                                   (8)

m items lie above t; a is the sum of e^{-K x} over them, b that of e^{K x} over the others, both from cumulated sums of
the sorted items; m is the number of items at which F, set to start there, gives no more than k in all. (5) has no
loop, (2) a few passes over the items; (6) is the same for all three, so the backward pass needs nothing but p.
(7) is exact by products over the items before and after each (no subtraction; the source's own recursion subtracts
close numbers and gives nan from k = 10 on), in n k memory. (8) is the first form of the source, kept for comparison:
it is neither monotone nor below 1, and fails where items tie with the smallest.

-inf is an item that is not there: weight 0. A row with no more than k items gives each of them 1. Where the gap is so
wide that d underflows, the gradient is 0.

Source: kexue.fm/archives/10373 (2024) for (3) to (5), (7), (8) and, without the gradient of (6), (2).
Shapes: any; n items along `dim`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from danlu.math.smooth_step import check_sharpness, wide

__all__ = ["TOPK_METHODS", "smooth_topk"]

TOPK_METHODS = ("sigmoid", "laplace", "minexp", "grad", "recursive")
FAR = 1e30  # stands for infinity where two infinities would be subtracted
NEWTON, NEWTON_COMPILED = 64, 24  # steps at most; ten are usual; a compiled graph has no way out of its loop


def smooth_topk(x: Tensor, k: float, sharpness: float = 1.0, dim: int = -1, method: str = "sigmoid") -> Tensor:
    """How much each item belongs to the k largest, eq. (1); differentiable, twice too.

    Args:
        x: any float dtype; -inf for items that are not there.
        k: how many, in [0, n]; a fraction is allowed but for "grad" and "recursive".
        sharpness: K > 0; the larger, the harder.
        dim: the dimension of the items.
        method: "sigmoid", "laplace", "minexp", "grad" or "recursive", see the module.

    Returns:
        The shape and dtype of x; computed in float32 or better.

    Raises:
        ValueError: k outside [0, n] or no whole number where it must be, sharpness not > 0, or an unknown method.

    >>> smooth_topk(torch.tensor([3.0, 1.0, 2.0, 0.0]), k=2, sharpness=2.0)
    tensor([0.9526, 0.2689, 0.7311, 0.0474])
    """
    check_sharpness(sharpness)
    if method not in TOPK_METHODS:
        raise ValueError(f"method must be one of {', '.join(TOPK_METHODS)}; got {method!r}")
    n = x.shape[dim] if x.ndim else 0
    if not 0 <= k <= n:
        raise ValueError(f"k must lie in [0, {n}] for {n} items along dim={dim}, got {k}")
    if method in ("grad", "recursive") and k != int(k):
        raise ValueError(f"method {method!r} counts items: k must be whole, got {k}; 'sigmoid' takes fractions")
    y = wide(x).movedim(dim, -1)  # (..., n)
    there = y > -torch.inf
    some = there.sum(-1, keepdim=True) > k  # rows with something to leave out
    if k in (0, n):
        p = torch.where(torch.ones_like(there), there.to(y.dtype) * (k > 0), y)  # y: for the sake of its graph
    else:
        safe = torch.where(some, y, 0.0)  # rows that are overwritten below
        # what remains near 0, where floats are dense, are the items near the last one that is chosen
        pivot = safe.detach().kthvalue(n + 1 - math.ceil(k), -1, keepdim=True).values
        u = (safe - pivot) * sharpness
        if method == "grad":
            p = _subsets(u, there, int(k))
        elif method == "recursive":
            p = _recursive(u, there & some, int(k))
        else:
            p = _Threshold.apply(u, float(k), method)
        p = torch.where(some, p, there.to(y.dtype))
    return p.movedim(-1, dim).to(x.dtype)


class _Threshold(torch.autograd.Function):
    """Eq. (1) with its gradient, eq. (6)."""

    @staticmethod
    def forward(u: Tensor, k: float, method: str) -> Tensor:
        t = _bracketed(u, k) if method == "sigmoid" else _closed_form(u, k, method)
        return _weights(u - t, method)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.method = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (p,) = ctx.saved_tensors
        d = _slope(p, ctx.method)
        total = d.sum(-1, keepdim=True)
        mean = (d * grads[0]).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
        return d * (grads[0] - mean), None, None  # eq. (6)


def _weights(u: Tensor, method: str) -> Tensor:
    if method == "sigmoid":
        return torch.sigmoid(u)  # eq. (2)
    if method == "laplace":
        half = 0.5 * (-u.abs()).exp()
        return torch.where(u >= 0, 1 - half, half)  # eq. (3)
    return u.clamp_max(0.0).exp()  # eq. (4)


def _slope(p: Tensor, method: str) -> Tensor:
    if method == "sigmoid":
        return p * (1 - p)
    return torch.minimum(p, 1 - p) if method == "laplace" else torch.where(p < 1, p, 0.0)


def _bracketed(u: Tensor, k: float) -> Tensor:
    """t of eq. (2), (..., 1): Newton's method that halves the bracket wherever it would leave it or crawl."""
    n, above = u.shape[-1], math.ceil(k)
    share = k - above + 1  # in (0, 1]: what the last chosen item must give
    high = torch.full_like(u[..., :1], math.log((n - above + 1) / share - 1))  # the sum is below k from here on
    after = math.floor(k) + 1
    low = u.kthvalue(n + 1 - after, -1, keepdim=True).values - math.log(k / (after - k))  # and above k up to here
    t, step, rounding = (low + high) / 2, high - low, 2 * torch.finfo(u.dtype).eps * k
    for _ in range(NEWTON_COMPILED if torch.compiler.is_compiling() else NEWTON):
        p = torch.sigmoid(u - t)
        excess = p.sum(-1, keepdim=True) - k
        low, high = torch.where(excess > 0, t, low), torch.where(excess < 0, t, high)
        newton = excess / (p * (1 - p)).sum(-1, keepdim=True)
        inside = (t + newton > low) & (t + newton < high) & (newton.abs() < step / 2)  # nan is not inside
        step = torch.where(inside, newton.abs(), (high - low) / 2)
        closer = torch.where(inside, t + newton, (low + high) / 2)
        done = (excess.abs() <= rounding) | (closer == t)
        if not torch.compiler.is_compiling() and bool(done.all()):
            break
        t = torch.where(done, t, closer)
    return t


def _closed_form(u: Tensor, k: float, method: str) -> Tensor:
    """t of eq. (5), (..., 1), polished by one Newton step."""
    falling = u.sort(-1, descending=True).values
    nothing = torch.full_like(u[..., :1], -torch.inf)
    log_a = torch.cat([nothing, torch.logcumsumexp(-falling, -1)], -1)  # (..., n + 1), over the first m items
    log_b = torch.cat([torch.logcumsumexp(falling.flip(-1), -1).flip(-1), nothing], -1)  # over the others
    m = torch.arange(1, u.shape[-1] + 1, dtype=u.dtype, device=u.device)
    if method == "laplace":  # what F gives in all when it starts at the m-th item
        total = m - 0.5 * (falling + log_a[..., 1:]).exp() + 0.5 * (log_b[..., 1:] - falling).exp()
    else:
        total = m + (log_b[..., 1:] - falling).exp()
    count = (total <= k).sum(-1, keepdim=True)
    if method == "minexp":
        count = count.clamp_max(math.ceil(k) - 1)
        t = log_b.gather(-1, count) - (k - count).log()  # eq. (5)
    else:
        r, log_a, log_b = k - count, log_a.gather(-1, count), log_b.gather(-1, count)
        root = ((r.square() + (log_a + log_b).exp()).sqrt() + r.abs()).log()
        root = torch.where(r == 0, (log_a + log_b) / 2, root)  # a b may underflow
        t = torch.where(r >= 0, log_b - root, root - log_a)  # eq. (5); the same without cancellation
    p = _weights(u - t, method)
    slope = _slope(p, method).sum(-1, keepdim=True)
    return t + torch.where(slope > 0, (p.sum(-1, keepdim=True) - k) / slope.clamp_min(1e-30), 0.0).clamp(-0.1, 0.1)


def _subsets(u: Tensor, there: Tensor, k: int) -> Tensor:
    """Eq. (7): sum over j of (j items before i) e^{u_i} (k - 1 - j items after i), over Z_k; u is 0 at the k-th."""
    sure = 80.0 if u.dtype == torch.float32 else 300.0  # so far from the k-th an item is in, or out
    y = torch.where(there, u.clamp(-sure, sure), -FAR)
    impossible = torch.full_like(y[..., :1], -FAR).expand(*y.shape[:-1], k)
    empty = torch.cat([torch.zeros_like(y[..., :1]), impossible], -1)  # (..., k + 1): log Z_0 = 0
    before, after = [empty], [empty]
    for items, tables in ((y.unbind(-1), before), (y.flip(-1).unbind(-1), after)):
        for item in items:
            last = tables[-1]
            both = torch.stack((last[..., 1:], last[..., :-1] + item[..., None]))  # without the item, and with it
            tables.append(torch.cat([last[..., :1], both.logsumexp(0)], -1))
    log_z = before[-1][..., k]
    rest = [b[..., :k] + a[..., :k].flip(-1) for b, a in zip(before[:-1], reversed(after[:-1]), strict=True)]
    return (torch.stack(rest, -2).logsumexp(-1) + y - log_z[..., None]).clamp_max(0.0).exp()


def _recursive(y: Tensor, there: Tensor, k: int) -> Tensor:
    """Eq. (8); where an item is taken from is of no matter, the smallest becomes 0."""
    lowest = torch.where(there, y, torch.inf).amin(-1, keepdim=True)
    y = torch.where(there, y, 0.0) - torch.where(lowest < torch.inf, lowest, 0.0)
    p = torch.zeros_like(y)
    lowest_float = torch.finfo(y.dtype).min
    for _ in range(k):
        p = p + torch.where(there, (1 - p) * y, lowest_float).softmax(-1)
    return p
