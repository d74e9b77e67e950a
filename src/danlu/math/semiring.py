r"""Semiring scans over a linear chain: log partition, best score, marginals and entropy of all tag paths.

A path y through kept steps 1..n of a sequence scores

    score(y) = s[y_1] + sum_t f_t[y_t] + sum_{t>=2} g[y_{t-1}, y_t] + e[y_n]                              (1)

Replace (+, x) by a semiring (plus, times) and one recursion answers several questions about all K^n paths:

    a_1 = s + f_1,   a_t[j] = PLUS_i (a_{t-1}[i] + g[i, j]) + f_t[j],   total = PLUS_j (a_n[j] + e[j])    (2)
    b_n = e,         b_t[i] = PLUS_j (g[i, j] + f_{t+1}[j] + b_{t+1}[j])                                  (3)
    M_t[i, j] = g[i, j] + f_t[j],   a_t = a_1 (x) M_2 (x) ... (x) M_t                                     (4)
    p(y_t = j) = exp(a_t[j] + b_t[j] - total)                                                             (5)
    h_t[j] = sum_i w_ij (h_{t-1}[i] - log w_ij),   w_ij = exp(a_{t-1}[i] + g[i, j] + f_t[j] - a_t[j])     (6)

PLUS is logsumexp for the log semiring (total = log Z) and max for the max semiring (total = the best score). The
product (4) is associative and can be taken in a tree: depth log n instead of n, work n K^3 instead of n K^2, worth it
for small K and long n on wide machines. Equation (6), closed by the same step over e, is the expectation semiring
reduced to what the entropy needs; unlike log Z - E[score] it subtracts no large numbers.

A masked step, wherever it stands, is the identity of the recursion: the result is that of the sequence with the step
removed. Entries of -inf forbid what they stand for and yield neither NaN values nor NaN gradients. Everything here is
plain autograd code and can be differentiated twice; `danlu.nn.crf` holds the quick forms.

Source: Goodman, 1999, Semiring Parsing; Li & Eisner, 2009 (expectation semiring); Hernando et al., 2005 (entropy);
    the chain itself: Lafferty et al., 2001, and kexue.fm/archives/5542.
Shapes: B batch, T steps, K tags; emissions f (B, T, K), transitions g (K, K) from row to column, start s, end e (K,).
"""

import torch
from torch import Tensor

__all__ = ["chain_backward", "chain_entropy", "chain_forward", "chain_inputs", "chain_marginals", "logsumexp"]


def chain_inputs(
    name: str,
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of a chain with shapes that fit, one dtype of at least float32, and no None.

    Args:
        name: the function that asks, for its messages.
        emissions: (B, T, K) scores f.
        transitions: (K, K) scores g.
        start: (K,) scores s; None is zeros.
        end: (K,) scores e; None is zeros.
        mask: (B, T) bool, True = keep; None keeps all.

    Returns:
        (f, g, s, e, mask).

    Raises:
        ValueError: a shape does not fit, or the mask is not bool.

    >>> f, g, s, e, mask = chain_inputs("demo", torch.zeros(1, 2, 3, dtype=torch.bfloat16), torch.zeros(3, 3))
    >>> f.dtype, s.tolist(), mask.tolist()
    (torch.float32, [0.0, 0.0, 0.0], [[True, True]])
    """
    if emissions.ndim != 3 or emissions.shape[2] < 1 or transitions.shape != emissions.shape[2:] * 2:
        raise ValueError(
            f"{name} needs emissions (B, T, K) with K >= 1 and transitions (K, K); got {tuple(emissions.shape)} and "
            f"{tuple(transitions.shape)}. For one sequence pass emissions[None]."
        )
    for what, vector in (("start", start), ("end", end)):
        if vector is not None and vector.shape != emissions.shape[2:]:
            raise ValueError(
                f"{name} needs {what} of shape ({emissions.shape[2]},), one score a tag, got {tuple(vector.shape)}; "
                "None stands for zeros"
            )
    if mask is None:
        mask = torch.ones(emissions.shape[:2], dtype=torch.bool, device=emissions.device)
    elif mask.dtype != torch.bool or mask.shape != emissions.shape[:2]:
        raise ValueError(
            f"{name} needs a bool mask {tuple(emissions.shape[:2])}, True = keep; got {mask.dtype} "
            f"{tuple(mask.shape)}. Turn numbers into one with mask.bool()."
        )
    dtype = torch.promote_types(torch.promote_types(emissions.dtype, transitions.dtype), torch.float32)
    f, g = emissions.to(dtype), transitions.to(dtype)
    s = g.new_zeros(g.shape[0]) if start is None else start.to(dtype)
    e = g.new_zeros(g.shape[0]) if end is None else end.to(dtype)
    return f, g, s, e, mask


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """Logsumexp over one dimension; a slice of nothing but -inf gives -inf and the gradient 0, not NaN.

    Args:
        x: any shape, float; -inf allowed.
        dim: the dimension to sum over; it must not be empty.

    Returns:
        x's shape without `dim`.

    >>> x = torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]], requires_grad=True)
    >>> logsumexp(x, 1).tolist()[1], torch.autograd.grad(logsumexp(x, 1).sum(), x)[0].tolist()
    (-inf, [[0.5, 0.5], [0.0, 0.0]])
    """
    top = x.detach().amax(dim, keepdim=True)
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    total = (x - top).exp().sum(dim)
    empty = total == 0
    log = torch.where(empty, torch.ones_like(total), total).log().masked_fill(empty, -torch.inf)
    return log + top.squeeze(dim)


def chain_forward(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    semiring: str = "log",
    method: str = "loop",
) -> tuple[Tensor, Tensor]:
    """Prefix values a_t of eq. (2) and the total over all paths.

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores s of the first kept tag; None is zeros.
        end: (K,) scores e of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        semiring: "log" (total = log Z) or "max" (total = best score).
        method: "loop" (n steps) or "scan" (associative product of matrices, depth log n, eq. (4)).

    Returns:
        a (B, T, K), 0 at masked steps, and total (B,); a row without kept steps has total 0, one without any
        allowed path -inf.

    Raises:
        ValueError: shapes do not fit, or an unknown semiring or method.

    >>> a, total = chain_forward(torch.zeros(1, 3, 2), torch.zeros(2, 2))
    >>> total.exp()  # 2 ** 3 paths
    tensor([8.])
    """
    f, g, s, e, keep = chain_inputs("chain_forward", emissions, transitions, start, end, mask)
    if semiring not in ("log", "max") or method not in ("loop", "scan"):
        raise ValueError(
            f"chain_forward has semiring 'log' or 'max' and method 'loop' or 'scan', got {semiring!r} and {method!r}"
        )
    if method == "scan":
        return _scan(f, g, s, e, keep, semiring)
    state = torch.zeros_like(f[:, 0]) if f.shape[1] else f.new_zeros(f.shape[0], f.shape[2])
    started = torch.zeros_like(keep[:, :1]) if f.shape[1] else keep.new_zeros(f.shape[0], 1)
    values = []
    for t in range(f.shape[1]):
        into = torch.where(started, _plus(state[:, :, None] + g, 1, semiring), s)  # (B, K)
        now = keep[:, t, None]  # (B, 1)
        state = torch.where(now, into + f[:, t], state)  # eq. (2)
        started = started | now
        values.append(torch.where(now, state, torch.zeros_like(state)))
    total = torch.where(started[:, 0], _plus(state + e, 1, semiring), f.new_zeros(()))
    return (torch.stack(values, 1) if values else f), total


def chain_backward(
    emissions: Tensor,
    transitions: Tensor,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    semiring: str = "log",
) -> Tensor:
    """Suffix values b_t of eq. (3): the total over all continuations after step t.

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        end: (K,) scores e of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        semiring: "log" or "max".

    Returns:
        b (B, T, K), 0 at masked steps.

    Raises:
        ValueError: shapes do not fit, or an unknown semiring.

    >>> chain_backward(torch.zeros(1, 3, 2), torch.zeros(2, 2)).exp()[0, :, 0]  # 2 ** (steps still to come)
    tensor([4., 2., 1.])
    """
    f, g, _, e, keep = chain_inputs("chain_backward", emissions, transitions, None, end, mask)
    if semiring not in ("log", "max"):
        raise ValueError(f"chain_backward has semiring 'log' or 'max', got {semiring!r}")
    values: list[Tensor] = []
    after, ended = f.new_zeros(f.shape[0], f.shape[2]), keep.new_zeros(f.shape[0], 1)
    for t in reversed(range(f.shape[1])):
        now = keep[:, t, None]  # (B, 1)
        state = torch.where(ended, _plus(g + after[:, None, :], 2, semiring), e)  # (B, K)  eq. (3)
        values.append(torch.where(now, state, torch.zeros_like(state)))
        after = torch.where(now, state + f[:, t], after)  # what the step before will see
        ended = ended | now
    return torch.stack(values[::-1], 1) if values else f


def chain_marginals(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Probability of every tag at every step under exp(score), eq. (5); differentiable.

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores s of the first kept tag; None is zeros.
        end: (K,) scores e of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.

    Returns:
        (B, T, K), rows of kept steps sum to 1; 0 at masked steps and in rows without any allowed path.

    Raises:
        ValueError: shapes do not fit.

    >>> chain_marginals(torch.zeros(1, 2, 2), torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]))
    tensor([[[1., 0.],
             [1., 0.]]])
    """
    f, g, s, e, keep = chain_inputs("chain_marginals", emissions, transitions, start, end, mask)
    a, total = chain_forward(f, g, s, e, keep)
    b = chain_backward(f, g, e, keep)
    possible = (total > -torch.inf)[:, None, None] & keep[:, :, None]
    log = a + b - torch.where(total > -torch.inf, total, torch.zeros_like(total))[:, None, None]
    return torch.where(possible, log, torch.full_like(log, -torch.inf)).exp()


def chain_entropy(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Entropy in nats of the distribution over paths, p(y) = exp(score(y) - log Z), eq. (6).

    Args:
        emissions: (B, T, K) scores f; -inf forbids a tag at a step.
        transitions: (K, K) scores g from row to column; -inf forbids a pair.
        start: (K,) scores s of the first kept tag; None is zeros.
        end: (K,) scores e of the last kept tag; None is zeros.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.

    Returns:
        (B,), at least 0; 0 for rows without kept steps or without any allowed path.

    Raises:
        ValueError: shapes do not fit.

    >>> chain_entropy(torch.zeros(1, 3, 2), torch.zeros(2, 2)) / torch.tensor(2.0).log()  # 3 free bits
    tensor([3.])
    """
    f, g, s, e, keep = chain_inputs("chain_entropy", emissions, transitions, start, end, mask)
    a = h = f.new_zeros(f.shape[0], f.shape[2])
    started = keep.new_zeros(f.shape[0], 1)
    for t in range(f.shape[1]):
        now = keep[:, t, None]
        into, spread = _mixture(a[:, :, None] + g, h[:, :, None])  # (B, K) each
        h = torch.where(now, torch.where(started, spread, torch.zeros_like(h)), h)  # eq. (6)
        a = torch.where(now, torch.where(started, into, s) + f[:, t], a)
        started = started | now
    entropy = _mixture((a + e)[:, :, None], h[:, :, None])[1][:, 0]
    return torch.where(started[:, 0], entropy, torch.zeros_like(entropy))


def _mixture(scores: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Logsumexp over dimension 1 and the entropy of the mixture with these weights; -inf counts for nothing."""
    total = logsumexp(scores, 1)
    log_w = scores - total[:, None]
    real = scores > -torch.inf
    log_w = torch.where(real, log_w, torch.zeros_like(log_w))
    return total, torch.where(real, log_w.exp() * (entropy - log_w), torch.zeros_like(log_w)).sum(1)


def _plus(x: Tensor, dim: int, semiring: str) -> Tensor:
    return logsumexp(x, dim) if semiring == "log" else x.amax(dim)


def _scan(f: Tensor, g: Tensor, s: Tensor, e: Tensor, keep: Tensor, semiring: str) -> tuple[Tensor, Tensor]:
    """Eq. (4): masked steps become the identity matrix, the first kept step a matrix whose rows are all a_1."""
    if not f.shape[1]:
        return f, f.new_zeros(f.shape[0])
    identity = torch.full_like(g, -torch.inf).fill_diagonal_(0.0)
    first = keep & (keep.cumsum(1) == 1)  # (B, T)
    matrices = torch.where(first[:, :, None, None], s, g) + f[:, :, None, :]  # (B, T, K, K)
    matrices = torch.where(keep[:, :, None, None], matrices, identity)
    a = _prefix_products(matrices, semiring)[:, :, 0]  # (B, T, K): row 0, all rows agree from the first kept step on
    total = torch.where(keep.any(1), _plus(a[:, -1] + e, 1, semiring), f.new_zeros(()))
    return torch.where(keep[:, :, None], a, torch.zeros_like(a)), total


def _prefix_products(m: Tensor, semiring: str) -> Tensor:
    """All prefix products of m (B, T, K, K): pair up, recurse on the pairs, fill in the rest. Depth log T, work 2T."""
    n = m.shape[1]
    if n == 1:
        return m
    odd = _prefix_products(_times(m[:, 0 : n - 1 : 2], m[:, 1::2], semiring), semiring)  # products of 2, 4, ... steps
    even = torch.cat([m[:, :1], _times(odd[:, : (n - 1) // 2], m[:, 2::2], semiring)], 1)  # of 1, 3, ... steps
    both = torch.stack([even[:, : odd.shape[1]], odd], 2).flatten(1, 2)
    return torch.cat([both, even[:, odd.shape[1] :]], 1)


def _times(left: Tensor, right: Tensor, semiring: str) -> Tensor:
    return _plus(left[..., :, :, None] + right[..., None, :, :], -2, semiring)
