r"""Linear-chain conditional random field: a distribution over whole tag paths, trained exactly, and a layer around it.

    score(y) = s[y_1] + sum_t f_t[y_t] + sum_{t>=2} g[y_{t-1}, y_t] + e[y_n]                              (1)
    NLL = log Z - score(y),   log Z = log sum_y exp score(y)                                              (2)
    dNLL/df_t[j] = p(y_t = j) - [y_t = j]                                                                 (3)
    dNLL/dg[i, j] = sum_t p(y_{t-1} = i, y_t = j) - count(i, j)                                           (4)

f are the emissions of an encoder, g the transitions i -> j, s and e scores of the first and last tag. The gradient is
not traced through the recursion: (3) and (4) come from one forward and one backward sweep. Three engines compute it:

    "kernel"    compiled (numba, pip install "danlu[fast]"), CPU tensors: the default there for up to 512 tags
    "torch"     the same sweeps as one matrix product a step, any device: the default elsewhere
    "autograd"  plain operations in log space (danlu.math.semiring): the reference, also for torch.func

The first two take exp of all scores once and rescale at each step:

    F_t = exp(f_t - max f_t), E = exp(g - max g);  v_t = (a_{t-1} E) * F_t, c_t = sum v_t, a_t = v_t / c_t  (5)
    u_t = F_t * b_t / c_t,  b_{t-1} = E u_t,  p(y_t = j) = a_t[j] b_t[j]                                  (6)
    p(y_{t-1} = i, y_t = j) = a_{t-1}[i] E[i, j] u_t[j]                                                   (7)

Rows whose scores spread too far for that (weights of +-200, -1e4 for "never" where never is all there is) are noticed
and computed in log space. All engines can be differentiated twice: `create_graph=True` recomputes through "autograd".
DANLU_KERNELS=off in the environment switches the kernel off.

A masked step, wherever it stands, is skipped as if the sequence did not have it; its tag may hold any number, such as
-100. Half precision and autocast do not reach the recursion: results are float32, or float64 for float64 scores. With
the learning rate of a pretrained encoder the transitions hardly move: give them 100 times more (optim.param_groups).

Source: Lafferty et al., 2001; Lample et al., 2016, arXiv:1603.01360; kexue.fm/archives/5542 and 7196 (no s and e there:
    start_end=False).
Shapes: B batch, T steps, K tags.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from danlu.math.reduce import reduce_loss
from danlu.math.semiring import chain_entropy, chain_forward, chain_inputs, chain_marginals
from danlu.nn._chain import engine, full_precision, pack
from danlu.nn.crf_decode import sample_paths, viterbi, viterbi_nbest

__all__ = ["CRF", "crf_log_partition", "crf_marginals", "crf_nll"]


def crf_nll(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Negative log-likelihood of tag paths in nats, eq. (2).

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        tags: (B, T) integers in [0, K) at kept steps, anything at masked ones.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        reduction: "mean" over the rows, "sum", "none", or "token" (sum divided by the number of kept steps).
        backend: "auto", "kernel", "torch" or "autograd", see above.

    Returns:
        Scalar, or (B,) for "none"; a row without kept steps has 0. float32, float64 for float64 scores.

    Raises:
        ValueError: shapes do not fit, a kept tag is outside [0, K), or a gold path is forbidden by -inf (row and step
            are named); an unknown reduction or backend.

    >>> loss = crf_nll(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long), torch.zeros(2, 2))
    >>> round(loss.exp().item(), 4)  # one of 8 equal paths
    8.0
    """
    if reduction not in ("mean", "sum", "none", "token"):
        raise ValueError(f"crf_nll has the reductions 'mean', 'sum', 'none' and 'token', got {reduction!r}")
    f, g, s, e, keep = chain_inputs("crf_nll", emissions, transitions, start, end, mask)
    if tags.shape != keep.shape or tags.is_floating_point() or tags.dtype == torch.bool:
        raise ValueError(
            f"crf_nll needs integer tags of shape {tuple(keep.shape)}, one for each step of the emissions; got "
            f"{tags.dtype} {tuple(tags.shape)}"
        )
    tags = tags.long()
    kernel = engine("crf_nll", backend, f)
    with full_precision(f):
        if kernel is not None and f.numel():
            nll = _Sweep.apply(f, g, s, e, tags, keep, kernel)
        elif backend == "autograd" or not f.numel():
            nll = chain_forward(f, g, s, e, keep)[1] - _gold_score(f, g, s, e, tags, keep)
        else:
            nll = _Sweep.apply(f, g, s, e, None, keep, None) - _gold_score(f, g, s, e, tags, keep)
        nll = nll.to(f.dtype)
        if reduction == "token":
            return nll.sum() / keep.sum().clamp_min(1)
        return reduce_loss(nll, reduction)


def crf_log_partition(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log of the sum of exp(score) over all paths, log Z of eq. (2); its gradient are the marginals.

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        backend: "auto", "kernel", "torch" or "autograd".

    Returns:
        (B,); 0 for a row without kept steps, -inf for one without any allowed path.

    Raises:
        ValueError: shapes do not fit, or an unknown backend.

    >>> round(crf_log_partition(torch.zeros(1, 3, 2), torch.zeros(2, 2)).exp().item(), 4)
    8.0
    """
    f, g, s, e, keep = chain_inputs("crf_log_partition", emissions, transitions, start, end, mask)
    kernel = engine("crf_log_partition", backend, f)
    with full_precision(f):
        if backend == "autograd" or not f.numel():
            return chain_forward(f, g, s, e, keep)[1]
        return _Sweep.apply(f, g, s, e, None, keep, kernel).to(f.dtype)


def crf_marginals(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Probability of each tag at each step, all other steps summed out; differentiable.

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores of the first kept tag; None is zeros.
        end: (K,) scores of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        backend: "auto", "kernel", "torch" or "autograd".

    Returns:
        (B, T, K): kept steps sum to 1, masked steps are 0.

    Raises:
        ValueError: shapes do not fit, or an unknown backend.

    >>> crf_marginals(torch.zeros(1, 2, 2), torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]))
    tensor([[[1., 0.],
             [1., 0.]]])
    """
    f, g, s, e, keep = chain_inputs("crf_marginals", emissions, transitions, start, end, mask)
    kernel = engine("crf_marginals", backend, f)
    with full_precision(f):
        if backend == "autograd" or not f.numel():
            return chain_marginals(f, g, s, e, keep)
        return _Marginals.apply(f, g, s, e, keep, kernel)


class CRF(nn.Module):
    r"""`crf_nll` with its scores as parameters; decoding, marginals and sampling beside it.

    State dict: transitions (K, K), and with start_end also start (K,) and end (K,). Constraints are not stored.

    Args:
        num_tags: K.
        constraints: None, or bool tensors (allowed (K, K), start (K,), end (K,)), True = allowed, such as
            `danlu.math.allowed_transitions` returns. Forbidden pairs score -inf in training and decoding.
        start_end: learn scores of the first and the last tag; False is the form of kexue.fm/archives/5542.
        init: "zeros", "glorot" (uniform within sqrt(6 / 2K), bert4keras) or "uniform" (within 0.1, pytorch-crf).
        generator: source of randomness for init; None takes torch's own.

    >>> crf = CRF(2)
    >>> loss = crf(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]), torch.tensor([[True, True, False]]))
    >>> round(loss.exp().item(), 4)  # one of the 4 paths over two steps
    4.0
    """

    allowed: Tensor | None
    allowed_start: Tensor | None
    allowed_end: Tensor | None

    def __init__(
        self,
        num_tags: int,
        constraints: tuple[Tensor, Tensor, Tensor] | None = None,
        start_end: bool = True,
        init: str = "zeros",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_tags < 1:
            raise ValueError(f"num_tags must be at least 1, got {num_tags}")
        self.num_tags = num_tags
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))
        self.start = nn.Parameter(torch.zeros(num_tags)) if start_end else None
        self.end = nn.Parameter(torch.zeros(num_tags)) if start_end else None
        bounds = {"zeros": 0.0, "glorot": (3 / num_tags) ** 0.5, "uniform": 0.1}
        if init not in bounds:
            raise ValueError(f"init must be one of {', '.join(bounds)}; got {init!r}")
        if init != "zeros":
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -bounds[init], bounds[init], generator=generator)
        shapes = [(num_tags, num_tags), (num_tags,), (num_tags,)]
        given = [None] * 3 if constraints is None else list(constraints)
        if constraints is not None and [(t.dtype, tuple(t.shape)) for t in constraints] != [
            (torch.bool, shape) for shape in shapes
        ]:
            raise ValueError(
                f"constraints must be three bool tensors of shapes {shapes}, allowed pairs, first and last tags; got "
                f"{[(t.dtype, tuple(t.shape)) for t in constraints]}. danlu.math.allowed_transitions makes them."
            )
        for name, tensor in zip(("allowed", "allowed_start", "allowed_end"), given, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.num_tags}, constraints={self.allowed is not None}, start_end={self.start is not None}"

    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Transitions, start and end as they count: with -inf where the constraints forbid."""
        zeros = self.transitions.new_zeros(self.num_tags)
        values = (
            (self.transitions, self.allowed),
            (zeros if self.start is None else self.start, self.allowed_start),
            (zeros if self.end is None else self.end, self.allowed_end),
        )
        g, s, e = (v if allowed is None else v.masked_fill(~allowed, -torch.inf) for v, allowed in values)
        return g, s, e

    def forward(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The loss, see `crf_nll`: emissions (B, T, K), tags (B, T), mask (B, T) bool."""
        return crf_nll(emissions, tags, *self.scores(), mask, reduction)

    def log_prob(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probability of the paths, (B,)."""
        return -crf_nll(emissions, tags, *self.scores(), mask, "none")

    def log_partition(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log Z, (B,), see `crf_log_partition`."""
        return crf_log_partition(emissions, *self.scores(), mask)

    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probability of each tag at each step, (B, T, K), see `crf_marginals`."""
        return crf_marginals(emissions, *self.scores(), mask)

    def entropy(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Entropy of the distribution over paths in nats, (B,), see `danlu.math.chain_entropy`."""
        with full_precision(emissions):
            return chain_entropy(emissions, *self.scores(), mask)

    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """The best path, (B, T) int64, -1 at masked steps, see `viterbi`."""
        return viterbi(emissions, *self.scores(), mask)[0]

    def decode_nbest(self, emissions: Tensor, mask: Tensor | None = None, n: int = 2) -> tuple[Tensor, Tensor]:
        """The n best paths (B, n, T) and their scores (B, n), see `viterbi_nbest`."""
        return viterbi_nbest(emissions, *self.scores(), mask, n)

    def sample(
        self,
        emissions: Tensor,
        mask: Tensor | None = None,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Random paths (B, num_samples, T), see `sample_paths`."""
        return sample_paths(emissions, *self.scores(), mask, num_samples, generator)


class _Sweep(torch.autograd.Function):
    """Log Z (B,) in float64, minus the gold score when tags are given (kernel only), with eq. (3) and (4) behind."""

    @staticmethod
    def forward(
        ctx: Any, f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor | None, keep: Tensor, kernel: ModuleType | None
    ) -> Tensor:
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
    def forward(ctx: Any, f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor, kernel: ModuleType | None) -> Tensor:
        ctx.save_for_backward(f, g, s, e, keep)
        _, state = _run_forward(f, g, s, e, None, keep, kernel)
        return _run_backward(f, g, s, e, None, keep, kernel, state, f.new_ones(f.shape[0]))[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        f, g, s, e, keep = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [x if again else x.detach().requires_grad_() for x in (f, g, s, e)]
            inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in inputs]
            out = chain_marginals(*inputs, keep)
            return *torch.autograd.grad(out, inputs, grads[0], create_graph=again), None, None


def _through_autograd(
    f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor | None, keep: Tensor, weight: Tensor, create_graph: bool
) -> tuple[Tensor, ...]:
    """The gradients of sum_b weight_b NLL_b by plain autograd in log space."""
    with torch.enable_grad():
        inputs = [x if create_graph and x.requires_grad else x.detach().requires_grad_() for x in (f, g, s, e)]
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
    """Eq. (5) as one matrix product a step over the rows that are still running."""
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
        torch.div(value, mass, out=a[t, :rows])  # eq. (5)
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
    """Eq. (6) and (7): gradients of sum_b weight_b log Z_b over the rows that are safe."""
    a, c, big_f, big_g, big_e, z, _ = state
    packed = pack(f, keep)
    counts = packed.counts
    w = weight[packed.order]  # (B,)
    b = (big_e / z[:, None]).expand_as(a).clone()  # right at the last step of each row
    u = big_f / c
    for t in reversed(range(1, len(counts))):
        rows = counts[t]
        u[t, :rows] *= b[t, :rows]
        torch.mm(u[t, :rows], big_g.T, out=b[t - 1, :rows])  # eq. (6)
    kept = packed.kept()[..., None]
    p = torch.where(kept, a * b, 0.0)
    p = p / p.sum(2, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny) * w[:, None]  # (N, B, K)
    u = torch.where(kept, u, 0.0)
    edges = (a[:-1] * w[:, None]).flatten(0, 1).T @ u[1:].flatten(0, 1) * big_g  # (K, K)  eq. (7)
    ends = packed.last(p) if counts else a.new_zeros(a.shape[1:])
    ends = torch.where((packed.lengths > 0)[:, None], ends, 0.0)
    return packed.unpack(p, f.shape[1], 0.0), edges, p[:1].sum((0, 1)), ends.sum(0)


def _gold_score(f: Tensor, g: Tensor, s: Tensor, e: Tensor, tags: Tensor, keep: Tensor) -> Tensor:
    """Eq. (1) for the given paths, (B,) in float64; refuses tags that do not exist and paths that are forbidden."""
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
