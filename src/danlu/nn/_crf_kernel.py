r"""Compiled recursions of `danlu.nn.crf` on CPU tensors: scaled forward-backward and Viterbi, a few rows a thread.

The forward recursion runs outside the logarithm. With F_t = exp(f_t - max f_t) and E = exp(g - max g) computed once,

    v_t[j] = (sum_i a_{t-1}[i] E[i, j]) F_t[j],   c_t = sum_j v_t[j],   a_t = v_t / c_t                   (1)
    log Z = sum_t log c_t + the maxima taken out                                                          (2)
    u_t[j] = F_t[j] b_t[j] / c_t,   b_{t-1}[i] = sum_j E[i, j] u_t[j],   p(y_t = j) = a_t[j] b_t[j]       (3)
    p(y_{t-1} = i, y_t = j) = a_{t-1}[i] E[i, j] u_t[j]                                                   (4)

so a step is one row times a matrix, without exp or log. What this can lose, and how it is noticed: when an entry of
v_t lies below TINY although some path leads there, a backward pass looks how much b_t would have made of it. While
b_t <= LARGE the lost probability is at most TINY * LARGE = 1e-12; otherwise, or if c_t vanishes, the row is marked
unsafe and the caller repeats it in log space. Scores that differ by hundreds therefore cost time, not truth.

The rows of a batch are dealt to a fixed number of shares, each with its own sum for the transitions, so the result does
not depend on the number of threads. Threads are Python's: the compiled code runs without the GIL, and a forked child
starts a pool of its own, where OpenMP would end the process.

Source: the scaling of Rabiner, 1989, A tutorial on hidden Markov models; the bound is ours.
Shapes: B batch, T steps, K tags, S shares.
"""

import itertools
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from danlu.math._machine_code import with_own_files

__all__ = ["forward", "backward", "viterbi"]

MAX_SHARES = 16
OUT_OF_RANGE, FORBIDDEN = 1, 2  # what may be wrong with a gold path
LIMITS: dict[torch.dtype, Any] = {  # TINY, the smallest normal number, LARGE
    torch.float32: np.array([1e-28, 1.2e-38, 1e16], dtype=np.float32),
    torch.float64: np.array([1e-280, 2.3e-308, 1e260], dtype=np.float64),
}


def forward(
    f: Tensor, g: Tensor, start: Tensor, end: Tensor, tags: Tensor | None, mask: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """log Z minus the gold score of each row, its flaw (0: none), and what `backward` needs; tags None: log Z alone."""
    batch, steps, size = f.shape
    f_top, s_top, e_top = _top(f, -1), _top(start, 0), _top(end, 0)
    g_top = _top(g.flatten(), 0)
    big_f, big_s, big_e = (f - f_top).exp_(), (start - s_top).exp_(), (end - e_top).exp_()
    big_g = (g - g_top).exp_()
    big_g.masked_fill_(big_g < float(LIMITS[f.dtype][1]), 0.0)
    a, c = torch.empty_like(f), f.new_empty(batch, steps)
    nll, flaw = f.new_empty(batch, dtype=torch.float64), torch.zeros(batch, dtype=torch.int8)
    unsafe = torch.zeros(batch, dtype=torch.bool)
    with_tags = tags is not None
    gold = tags if tags is not None else torch.empty(0, 0, dtype=torch.int64)
    tops = np.array([s_top.item(), g_top.item(), e_top.item()])
    arrays = _arrays(f, g, start, end, gold, mask, big_f, f_top[..., 0], big_g, big_g.T.contiguous(), big_s, big_e)
    _split(
        _run_forward, batch, batch * steps * size * size,
        (*arrays, tops, with_tags, LIMITS[f.dtype], *_arrays(a, c, nll, flaw, unsafe)),
    )  # fmt: skip
    return nll.to(f.dtype), flaw, (a, c, big_f, big_g, big_e, unsafe)


def backward(
    state: tuple[Tensor, ...], weight: Tensor, tags: Tensor | None, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of sum_b weight_b nll_b over the safe rows with respect to f, g, start and end."""
    a, c, big_f, big_g, big_e, unsafe = state
    batch, steps, size = a.shape
    shares = _shares(batch)
    grad_f = torch.zeros_like(a)
    edge, count = a.new_zeros(shares, size, size), a.new_zeros(shares, size, size)
    first, last = a.new_zeros(shares, size), a.new_zeros(shares, size)
    gold = tags if tags is not None else torch.empty(0, 0, dtype=torch.int64)
    _split(
        _run_backward, batch, 2 * batch * steps * size * size,
        (*_arrays(a, c, big_f, big_g.T.contiguous(), big_e, unsafe, weight.contiguous(), gold, mask), tags is not None,
         *_arrays(grad_f, edge, count, first, last)),
    )  # fmt: skip
    return grad_f, torch.addcmul(-count.sum(0), edge.sum(0), big_g), first.sum(0), last.sum(0)  # eq. (4)


def viterbi(f: Tensor, g: Tensor, start: Tensor, end: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The best path of each row, -1 at masked steps, and its score."""
    batch, steps, size = f.shape
    path, best = torch.full((batch, steps), -1, dtype=torch.int64), f.new_zeros(batch)
    _split(
        _run_viterbi, batch, batch * steps * size * size,
        _arrays(f, g, g.T.contiguous(), start, end, mask, path, best),
    )  # fmt: skip
    return path, best


def _top(x: Tensor, dim: int) -> Tensor:
    """Maximum to be taken out before exp: finite even where all is -inf."""
    return x.amax(dim, keepdim=True).clamp_min(torch.finfo(x.dtype).min)


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().numpy() for t in tensors)


def _shares(batch: int) -> int:
    return max(1, min(MAX_SHARES, batch))


# --- threads and compilation -------------------------------------------------------------------------------------

_pool: list[ThreadPoolExecutor] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.clear)  # the parent's threads do not exist in the child


def _split(kernel: "_Kernel", batch: int, work: int, args: tuple[Any, ...]) -> None:
    """Deal the shares of a batch to as many threads as torch may use; small work stays on this one."""
    shares = _shares(batch)
    threads = min(torch.get_num_threads(), shares, 1 + work // 500_000)
    if threads == 1:
        kernel(0, shares, shares, *args)
        return
    if not _pool:
        _pool.append(ThreadPoolExecutor(max_workers=32, thread_name_prefix="danlu-crf"))
    bounds = [shares * i // threads for i in range(threads + 1)]
    kernel.compile_once(*args)
    others = [_pool[0].submit(kernel, low, high, shares, *args) for low, high in itertools.pairwise(bounds[1:])]
    kernel(0, bounds[1], shares, *args)
    for other in others:
        other.result()


class _Kernel:
    """A compiled function that keeps its machine code on disk where it can, and works where it cannot."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.known: dict[Any, Callable[..., None]] = {}  # by type of the numbers

    def _compile(self, kind: Any, cache: bool) -> Callable[..., None]:
        options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}}
        try:
            return numba.njit(cache=cache, **options)(with_own_files(self.function, kind))
        except RuntimeError:  # no folder to keep a cache in
            return numba.njit(**options)(self.function)

    def compile_once(self, *args: Any) -> None:
        """Compile for these argument types before threads ask for it together."""
        if args[0].dtype not in self.known:
            self(0, 0, 1, *args)

    def __call__(self, *args: Any) -> None:
        kind = args[3].dtype
        if kind in self.known:
            self.known[kind](*args)
            return
        compiled = self._compile(kind, cache=True)
        try:
            compiled(*args)
        except (OSError, EOFError, pickle.PickleError):  # a full disk or a damaged cache
            compiled = self._compile(kind, cache=False)
            compiled(*args)
        self.known[kind] = compiled


# --- compiled code -----------------------------------------------------------------------------------------------


def _forward(  # type: ignore[no-untyped-def]
    low, high, shares, f, g, start, end, tags, mask, big_f, f_top, big_g, big_g_t, big_s, big_e, tops, with_tags,
    limits, a, c, nll, flaw, unsafe,
):  # fmt: skip
    batch, steps, size = f.shape
    tiny, normal, large = limits[0], limits[1], limits[2]
    zero = tiny - tiny
    one = zero + 1
    four = size // 4 * 4
    into = np.empty(size, dtype=f.dtype)
    for b in range(batch):
        if b % shares < low or b % shares >= high:
            continue
        total, score = 0.0, 0.0
        before, gold_before = -1, -1
        suspicious, broken = False, False
        for t in range(steps):
            if not mask[b, t]:
                continue
            if with_tags:
                gold = tags[b, t]
                if gold < 0 or gold >= size:
                    flaw[b] = OUT_OF_RANGE
                    broken = True
                    break
                score += np.float64(f[b, t, gold])
                score += np.float64(start[gold] if before < 0 else g[gold_before, gold])
                gold_before = gold
            if before < 0:
                for j in range(size):
                    into[j] = big_s[j]
                total += tops[0]
            else:
                for j in range(size):
                    into[j] = zero
                for i in range(0, four, 4):
                    w0, w1, w2, w3 = a[b, before, i], a[b, before, i + 1], a[b, before, i + 2], a[b, before, i + 3]
                    for j in range(size):
                        into[j] += (w0 * big_g[i, j] + w1 * big_g[i + 1, j]) + (
                            w2 * big_g[i + 2, j] + w3 * big_g[i + 3, j]
                        )
                for i in range(four, size):
                    w0 = a[b, before, i]
                    for j in range(size):
                        into[j] += w0 * big_g[i, j]
                total += tops[1]
            least, mass = one, zero
            for j in range(size):
                value = into[j] * big_f[b, t, j]  # eq. (1)
                least = min(least, value)
                mass += value
                into[j] = value
            if least < tiny:
                for j in range(size):
                    if into[j] < tiny and not suspicious and f[b, t, j] > -np.inf:
                        if before < 0:
                            suspicious = start[j] > -np.inf
                        else:
                            for i in range(size):
                                if a[b, before, i] > zero and g[i, j] > -np.inf:
                                    suspicious = True
            if not mass > normal:  # also nan
                unsafe[b] = True
                broken = True
                break
            inverse = one / mass
            for j in range(size):
                value = into[j] * inverse
                a[b, t, j] = value if value > normal else zero
            c[b, t] = inverse
            total += np.log(np.float64(mass)) + f_top[b, t]  # eq. (2)
            before = t
        if with_tags and not (broken and flaw[b] != 0) and gold_before >= 0:
            score += end[gold_before]
        if broken or before < 0:
            nll[b] = 0.0
            continue
        if with_tags and score == -np.inf:
            flaw[b] = FORBIDDEN
            nll[b] = np.inf
            continue
        mass = zero
        for j in range(size):
            value = a[b, before, j] * big_e[j]
            mass += value
            if value < tiny and a[b, before, j] > zero and end[j] > -np.inf:
                suspicious = True
        if not mass > normal:
            unsafe[b] = True
            nll[b] = 0.0
            continue
        nll[b] = total + np.log(np.float64(mass)) + tops[2] - score
        if suspicious:  # would b have made much of what was set aside?
            after = big_e / mass
            u = np.empty_like(after)
            t = before
            while t >= 0:
                if not mask[b, t]:
                    t -= 1
                    continue
                for j in range(size):
                    if f[b, t, j] == -np.inf:
                        u[j] = zero
                        continue
                    if not (after[j] <= large or a[b, t, j] >= tiny):
                        unsafe[b] = True
                    u[j] = big_f[b, t, j] * after[j] * c[b, t]
                for i in range(size):
                    value = zero
                    for j in range(size):
                        value += big_g[i, j] * u[j]
                    after[i] = value
                t -= 1


def _backward(  # type: ignore[no-untyped-def]
    low, high, shares, a, c, big_f, big_g_t, big_e, unsafe, weight, tags, mask, with_tags, grad_f, edge, count, first,
    last,
):  # fmt: skip
    batch, steps, size = a.shape
    zero = weight.dtype.type(0)
    four = size // 4 * 4
    after = np.empty(size, dtype=a.dtype)
    u = np.empty(size, dtype=a.dtype)
    for b in range(batch):
        share = b % shares
        if share < low or share >= high or unsafe[b] or weight[b] == zero:
            continue
        w = weight[b]
        t, later = steps - 1, -1
        while t >= 0 and not mask[b, t]:
            t -= 1
        for j in range(size):
            after[j] = big_e[j]
        while t >= 0:
            mass = zero
            for j in range(size):
                mass += a[b, t, j] * after[j]
            scale = w / mass  # the marginals of a step sum to 1 whatever rounding did on the way
            inverse = c[b, t] / mass
            for j in range(size):
                grad_f[b, t, j] = scale * (a[b, t, j] * after[j])  # eq. (3)
                u[j] = big_f[b, t, j] * after[j] * inverse
            if with_tags:
                grad_f[b, t, tags[b, t]] -= w
                if later >= 0:
                    count[share, tags[b, t], tags[b, later]] += w
            if later < 0:
                for j in range(size):
                    last[share, j] += grad_f[b, t, j]
            later = t
            t -= 1
            while t >= 0 and not mask[b, t]:
                t -= 1
            if t < 0:
                for j in range(size):
                    first[share, j] += grad_f[b, later, j]
                break
            for j in range(size):
                after[j] = zero
            for i in range(0, four, 4):
                u0, u1, u2, u3 = u[i], u[i + 1], u[i + 2], u[i + 3]
                for j in range(size):
                    after[j] += (u0 * big_g_t[i, j] + u1 * big_g_t[i + 1, j]) + (
                        u2 * big_g_t[i + 2, j] + u3 * big_g_t[i + 3, j]
                    )
            for i in range(four, size):
                u0 = u[i]
                for j in range(size):
                    after[j] += u0 * big_g_t[i, j]
            for i in range(size):
                w0 = w * a[b, t, i]
                for j in range(size):
                    edge[share, i, j] += w0 * u[j]  # eq. (4), times E at the end


def _viterbi(low, high, shares, f, g, g_t, start, end, mask, path, best):  # type: ignore[no-untyped-def]
    batch, steps, size = f.shape
    four = size // 4 * 4
    low_value = f.dtype.type(-np.inf)
    d = np.empty((steps, size), dtype=f.dtype)
    for b in range(batch):
        if b % shares < low or b % shares >= high:
            continue
        before = -1
        for t in range(steps):
            if not mask[b, t]:
                continue
            if before < 0:
                for j in range(size):
                    d[t, j] = start[j] + f[b, t, j]
            else:
                for j in range(size):
                    d[t, j] = low_value
                for i in range(0, four, 4):
                    d0, d1, d2, d3 = d[before, i], d[before, i + 1], d[before, i + 2], d[before, i + 3]
                    for j in range(size):
                        x0, x1, x2, x3 = d0 + g[i, j], d1 + g[i + 1, j], d2 + g[i + 2, j], d3 + g[i + 3, j]
                        x0 = x0 if x0 > x1 else x1
                        x2 = x2 if x2 > x3 else x3
                        x0 = x0 if x0 > x2 else x2
                        d[t, j] = x0 if x0 > d[t, j] else d[t, j]
                for i in range(four, size):
                    d0 = d[before, i]
                    for j in range(size):
                        x0 = d0 + g[i, j]
                        d[t, j] = x0 if x0 > d[t, j] else d[t, j]
                for j in range(size):
                    d[t, j] += f[b, t, j]
            before = t
        if before < 0:
            continue
        top, tag = low_value, 0
        for j in range(size):
            x0 = d[before, j] + end[j]
            if x0 > top:
                top, tag = x0, j
        best[b] = top
        t = before
        path[b, t] = tag
        while t > 0:  # the predecessor is found again only along the best path
            t -= 1
            if not mask[b, t]:
                continue
            top, here = low_value, 0
            for i in range(size):
                x0 = d[t, i] + g_t[tag, i]
                if x0 > top:
                    top, here = x0, i
            tag = here
            path[b, t] = tag


_run_forward, _run_backward, _run_viterbi = _Kernel(_forward), _Kernel(_backward), _Kernel(_viterbi)
