r"""The engines of `danlu.nn.crf`: forward and backward sweeps with their own gradient, in torch or compiled.

With F_t = exp(f_t - max f_t) and E = exp(g - max g), computed once, the recursions need neither exp nor log:

    v_t = (a_{t-1} E) * F_t,   c_t = sum_j v_t[j],   a_t = v_t / c_t                                      (1)
    log Z = sum_t log c_t + the maxima taken out                                                          (2)
    u_t = F_t * b_t / c_t,   b_{t-1} = E u_t,   p(y_t = j) = a_t[j] b_t[j]                                (3)
    p(y_{t-1} = i, y_t = j) = a_{t-1}[i] E[i, j] u_t[j]                                                   (4)

One step of a batch is one matrix product. An entry of a_t below 1e-28 (float32) that some path leads to, or a vanishing
c_t, marks its row as unsafe: that row is computed again by `danlu.math.semiring` in log space, gradient included. The
compiled engine asks twice before it gives up a row, see `danlu.nn._crf_kernel`.

Source: the scaling of Rabiner, 1989, A tutorial on hidden Markov models.
Shapes: B batch, T steps, K tags, N longest number of kept steps.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from danlu.math.semiring import chain_forward, chain_marginals
from danlu.nn._chain import eager, engine, full_precision, pack

__all__ = ["chain_probabilities", "chain_value"]


@eager
def chain_value(
    name: str, f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor | None, keep: Tensor, backend: str
) -> Tensor:
    """Log Z, or the negative log-likelihood where tags are given, (B,), by the engine that fits."""
    kernel = engine(name, backend, f)
    with full_precision(f):
        if backend == "autograd" or not f.numel():
            value = chain_forward(f, g, s, e, keep)[1]
        elif kernel is not None:
            return _Sweep.apply(f, g, s, e, tags, keep, kernel).to(f.dtype)
        else:
            value = _Sweep.apply(f, g, s, e, None, keep, None)
        return (value if tags is None else value - _gold_score(f, g, s, e, tags, keep)).to(f.dtype)


@eager
def chain_probabilities(f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor, backend: str) -> Tensor:
    """Marginals (B, T, K) by the engine that fits."""
    kernel = engine("crf_marginals", backend, f)
    with full_precision(f):
        if backend == "autograd" or not f.numel():
            return chain_marginals(f, g, s, e, keep)
        return _Marginals.apply(f, g, s, e, keep, kernel)


class _Sweep(torch.autograd.Function):
    """Log Z (B,) in float64, minus the gold score when tags are given (kernel only), with its gradient behind."""

    @staticmethod
    def forward(
        ctx: Any, f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor | None, keep: Tensor,
        kernel: ModuleType | None,
    ) -> Tensor:  # fmt: skip
        value, state = _run_forward(f, g, s, e, tags, keep, kernel)
        if any(ctx.needs_input_grad):
            ctx.kernel = kernel
            ctx.save_for_backward(f, g, s, e, tags, keep, *state)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        f, g, s, e, tags, keep, *state = ctx.saved_tensors
        weight = grads[0].to(f.dtype)
        if torch.is_grad_enabled():  # create_graph=True: the gradient itself must be differentiable
            return *_through_autograd(f, g, s, e, tags, keep, weight, create_graph=True), None, None, None
        return *_run_backward(f, g, s, e, tags, keep, ctx.kernel, tuple(state), weight), None, None, None


class _Marginals(torch.autograd.Function):
    """The quick marginals; their gradient goes through the log-space recursion."""

    @staticmethod
    def forward(
        ctx: Any, f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor, kernel: ModuleType | None
    ) -> Tensor:
        ctx.save_for_backward(f, g, s, e, keep)
        _, state = _run_forward(f, g, s, e, None, keep, kernel)
        return _run_backward(f, g, s, e, None, keep, kernel, state, f.new_ones(f.shape[0]))[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        f, g, s, e, keep = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = _leaves(f, g, s, e, fresh=not again)
            out = chain_marginals(*inputs, keep)
            return *torch.autograd.grad(out, inputs, grads[0], create_graph=again), None, None


def _leaves(f: Tensor, g: Tensor, s: Tensor, e: Tensor, fresh: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors to differentiate by: themselves while their own graph is wanted, else copies that start one."""
    a, b, c, d = (x if x.requires_grad and not fresh else x.detach().requires_grad_() for x in (f, g, s, e))
    return a, b, c, d


def _through_autograd(
    f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor | None, keep: Tensor, weight: Tensor, create_graph: bool
) -> tuple[Tensor, ...]:
    """The gradients of sum_b weight_b NLL_b by plain autograd in log space."""
    with torch.enable_grad():
        inputs = _leaves(f, g, s, e, fresh=not create_graph)
        value = chain_forward(*inputs, keep)[1]
        if tags is not None:
            value = value - _gold_score(*inputs, tags, keep)
        return torch.autograd.grad(value, inputs, weight.to(value.dtype), create_graph=create_graph)


def _run_forward(
    f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor | None, keep: Tensor, kernel: ModuleType | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The value of `_Sweep` and what its gradient needs; the last of these marks the rows done in log space."""
    with torch.no_grad():
        if kernel is not None:
            f, g, s, e, keep = (x.contiguous() for x in (f, g, s, e, keep))
            value, flaw, state = kernel.forward(f, g, s, e, None if tags is None else tags.contiguous(), keep)
            if tags is not None and bool(flaw.any()):
                _gold_score(f, g, s, e, tags, keep)  # raises, naming row and step
        else:
            value, state = _scaled_forward(f, g, s, e, keep)
        unsafe = state[-1]
        if bool(unsafe.any()):
            rows = unsafe.nonzero()[:, 0]
            exact = chain_forward(f[rows], g, s, e, keep[rows])[1]
            if tags is not None:
                exact = exact - _gold_score(f, g, s, e, tags, keep)[rows]
            value[rows] = exact.to(value.dtype)
        return value, state


def _run_backward(
    f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor | None, keep: Tensor, kernel: ModuleType | None,
    state: tuple[Tensor, ...], weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.no_grad():
        if kernel is not None:
            grads = kernel.backward(state, weight, None if tags is None else tags.contiguous(), keep.contiguous())
        else:
            grads = _scaled_backward(f, keep, state, weight)
        unsafe = state[-1]
        if bool(unsafe.any()):
            rows = unsafe.nonzero()[:, 0]
            exact = _through_autograd(
                f[rows], g, s, e, None if tags is None else tags[rows], keep[rows], weight[rows], create_graph=False
            )
            grads[0][rows] = exact[0]
            grads = (grads[0], *(x + y for x, y in zip(grads[1:], exact[1:], strict=True)))
        return grads


def _scaled_forward(f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Eq. (1) as one matrix product a step over the rows that are still running."""
    packed = pack(f, keep)
    f, counts = packed.f, packed.counts
    limits = torch.finfo(f.dtype)
    tiny, normal = (1e-28 if f.dtype == torch.float32 else 1e-280), limits.tiny
    wide = f.dtype if f.device.type == "mps" else torch.float64
    f_top, s_top, e_top = (x.amax(-1, keepdim=True).clamp_min(limits.min) for x in (f, s, e))
    g_top = g.amax().clamp_min(limits.min)
    big_f, big_g, big_s, big_e = (f - f_top).exp(), (g - g_top).exp(), (s - s_top).exp(), (e - e_top).exp()
    big_g = big_g.masked_fill(big_g < normal, 0.0)
    a, c = torch.zeros_like(f), f.new_ones(*f.shape[:2], 1)
    for t, rows in enumerate(counts):
        into = big_s if t == 0 else a[t - 1, :rows] @ big_g  # (rows, K)
        value = into * big_f[t, :rows]
        mass = value.sum(1, keepdim=True)
        c[t, :rows] = mass
        torch.div(value, mass, out=a[t, :rows])  # eq. (1)
    kept = packed.kept()  # (N, B)
    some = packed.lengths > 0
    last = packed.last(a) if counts else f.new_zeros(f.shape[1:])
    z = (last * big_e).sum(1)  # (B,)
    tops = torch.where(kept, f_top[..., 0].to(wide) + c[..., 0].log().to(wide), 0.0).sum(0)
    value = tops + s_top.to(wide) + (packed.lengths - 1) * g_top.to(wide) + e_top.to(wide) + z.log().to(wide)
    small = (a < tiny) & kept[..., None] & (f > -torch.inf)
    unsafe = ~(z > normal) | ~(c > normal).all(0)[:, 0] | ((last * big_e < tiny) & (last > 0) & (e > -torch.inf)).any(1)
    if bool(small.any()):  # set aside although reachable?
        reach = (a[:-1] > 0).to(f.dtype) @ (g > -torch.inf).to(f.dtype) > 0  # (N - 1, B, K)
        small[0] &= s > -torch.inf
        small[1:] &= reach
        unsafe |= small.any(2).any(0)
    unsafe &= some
    clean = unsafe[:, None]
    a, c, z = a.masked_fill(clean, 0.0), c.masked_fill(clean, 1.0), z.masked_fill(unsafe | ~some, 1.0)
    value = torch.where(some & ~unsafe, value, 0.0)
    return packed.unsort(value), (a, c, big_f, big_g, big_e, z, packed.unsort(unsafe))


def _scaled_backward(
    f: Tensor, keep: Tensor, state: tuple[Tensor, ...], weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. (3) and (4): gradients of sum_b weight_b log Z_b over the rows that are safe."""
    a, c, big_f, big_g, big_e, z, _ = state
    packed = pack(f, keep)
    counts = packed.counts
    w = weight[packed.order]  # (B,)
    b = (big_e / z[:, None]).expand_as(a).clone()  # right at the last step of each row
    u = big_f / c
    for t in reversed(range(1, len(counts))):
        rows = counts[t]
        u[t, :rows] *= b[t, :rows]
        torch.mm(u[t, :rows], big_g.T, out=b[t - 1, :rows])  # eq. (3)
    kept = packed.kept()[..., None]
    p = torch.where(kept, a * b, 0.0)
    p = p / p.sum(2, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny) * w[:, None]  # (N, B, K)
    u = torch.where(kept, u, 0.0)
    edges = (a[:-1] * w[:, None]).flatten(0, 1).T @ u[1:].flatten(0, 1) * big_g  # (K, K)  eq. (4)
    ends = packed.last(p) if counts else a.new_zeros(a.shape[1:])
    ends = torch.where((packed.lengths > 0)[:, None], ends, 0.0)
    return packed.unpack(p, f.shape[1], 0.0), edges, p[:1].sum((0, 1)), ends.sum(0)


def _gold_score(f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor, keep: Tensor) -> Tensor:
    """Scores of the given paths, (B,) in float64; refuses tags that do not exist and paths that are forbidden."""
    batch, steps, size = f.shape
    wide = f.dtype if f.device.type == "mps" else torch.float64
    if not batch or not steps:
        return f.sum((1, 2)).to(wide)
    outside = keep & ((tags < 0) | (tags >= size))
    if bool(outside.any()):
        row, step = outside.nonzero()[0].tolist()
        raise ValueError(
            f"tag {int(tags[row, step])} at row {row}, step {step} is not in [0, {size}); only masked steps may hold "
            "other numbers: correct it, or set mask[row, step] = False"
        )
    y = tags.masked_fill(~keep, 0)
    here = torch.arange(steps, device=f.device).expand(batch, steps)
    seen = here.masked_fill(~keep, -1).cummax(1).values  # the last kept step up to here
    before = torch.cat([seen.new_full((batch, 1), -1), seen[:, :-1]], 1)  # the kept step before, -1 for none
    old = y.gather(1, before.clamp_min(0))  # (B, T)
    emission = f.gather(2, y[:, :, None])[:, :, 0]
    move = torch.where(before < 0, s[y], g[old, y])
    parts = torch.where(keep, (emission.to(wide) + move.to(wide)), 0.0)  # (B, T)
    close = torch.where(seen[:, -1] >= 0, e[y.gather(1, seen[:, -1:].clamp_min(0))[:, 0]].to(wide), 0.0)
    score = parts.sum(1) + close
    if bool((score == -torch.inf).any()):
        row = int((score == -torch.inf).nonzero()[0, 0])
        bad = (parts[row] == -torch.inf).nonzero()
        step = int(bad[0, 0]) if len(bad) else int(seen[row, -1])
        tag = int(y[row, step])
        if not len(bad):
            what = f"tag {tag} may not end a sequence"
        elif float(emission[row, step].detach()) == -torch.inf:
            what = f"the emission of tag {tag} is -inf"
        elif int(before[row, step]) < 0:
            what = f"tag {tag} may not open a sequence"
        else:
            what = f"tag {tag} may not follow tag {int(old[row, step])}"
        raise ValueError(
            f"the gold path of row {row} is forbidden at step {step}: {what} (its score is -inf). Repair the tags "
            "(danlu.math.repair_tags), or build the CRF without these constraints."
        )
    return score
