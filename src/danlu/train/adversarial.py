r"""FGM, PGD and their control: train on the loss at weights moved a little way uphill.

    g     = dL/dW                                                                    (1)
    delta = epsilon g / ||g||                                                  FGM   (2)
    delta <- P(delta + alpha g(W + delta) / ||g(W + delta)||)   K times        PGD   (3)
    delta = epsilon z / ||z||,   z ~ N(0, 1) on the rows where g is not 0      noise (4)
    step on dL/dtheta at W + delta, for all parameters theta; then W is put back     (5)

W is usually the input embedding matrix, or several weights; ||.|| is one Frobenius norm over all of them, and P scales
delta back to length epsilon if it is longer. mode="adv" (the post's) trains on the moved loss alone; mode="both" adds
the gradients of the loss at W, as a widely copied snippet does: the gradients are then about twice as long.
Only the direction of g counts, so `loss_fn` may return a scaled loss. Without direction (g is 0 or not finite) the
step is a clean one. The common 1e-8 beside ||g|| is left out: it would weaken the attack under small gradients.

What to know. One matrix for the whole batch: every occurrence of a token moves alike, and two half batches with
gradients accumulated are not one whole batch (`fgm_output_backward` has neither property). Tied output weights move
too. A zero row of g, such as padding's, stays. Clip gradients after, not between. The noise keeps to the rows of the
batch because spread over a whole vocabulary hardly any of it would touch the batch; that costs the pass FGM costs.

Source: Miyato, Dai, Goodfellow, 2016, arXiv:1605.07725; Madry et al., 2017, arXiv:1706.06083; kexue.fm/archives/7234.
Shapes: those of the weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["fgm_backward", "noise_backward", "perturbed", "pgd_backward"]

SPARSE_FROM = 1 << 16  # elements; below, adding everywhere is quicker than looking for the rows


@contextmanager
def perturbed(weights: Tensor | Sequence[Tensor], deltas: Tensor | Sequence[Tensor]) -> Iterator[None]:
    """Inside the block (run backward there too) the weights hold weight + delta; on any exit their old bits.

    Args:
        weights: one weight or several.
        deltas: as many tensors of the same shapes; of a sparse COO delta only the rows are changed and restored.

    Raises:
        ValueError: numbers or shapes differ.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> with perturbed(w, torch.tensor([0.5, 0.0])):
    ...     print(w.tolist())
    [1.5, 2.0]
    >>> w.tolist()
    [1.0, 2.0]
    """
    weights, deltas = as_list(weights), [d.coalesce() if d.is_sparse else d for d in as_list(deltas)]
    if [w.shape for w in weights] != [d.shape for d in deltas]:
        raise ValueError(
            "perturbed needs one delta of the same shape for each weight; got weights "
            f"{[tuple(w.shape) for w in weights]} and deltas {[tuple(d.shape) for d in deltas]}"
        )
    rows = [d.indices()[0] if d.is_sparse else None for d in deltas]
    # copies, because w + d - d is not w in floats
    saved = [w.detach().clone() if r is None else w.detach()[r] for w, r in zip(weights, rows, strict=True)]
    try:
        with torch.no_grad():
            for w, d, r, s in zip(weights, deltas, rows, saved, strict=True):
                w.add_(d) if r is None else w.index_copy_(0, r, s + d.values())
        yield
    finally:
        with torch.no_grad():
            for w, r, s in zip(weights, rows, saved, strict=True):
                w.copy_(s) if r is None else w.index_copy_(0, r, s)


def fgm_backward(
    loss_fn: Callable[[], Tensor],
    weights: Tensor | Sequence[Tensor],
    epsilon: float = 0.5,
    mode: str = "adv",
    reduce: Callable[[Tensor], Tensor] | None = None,
    attack_loss_fn: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Stand in for `loss_fn().backward()`: leave in .grad the gradients at W + delta, eqs. (1), (2) and (5).

    The pass for g computes no other gradient, so a step costs about 1.7 plain ones.

    Args:
        loss_fn: computes the scalar loss of the current batch; called twice. Gradients add to what .grad holds.
        weights: W, one weight or several, in float32 or better.
        epsilon: length of delta, > 0.
        mode: "adv" trains on the moved loss alone, "both" on the sum of clean and moved loss.
        reduce: g -> g, applied to each attack gradient (sparse for sparse embeddings). With several processes each
            would move W its own way; one that runs torch.distributed.all_reduce(g) and returns g makes them agree (the
            sum will do, only the direction counts). Accelerate: lambda g: accelerator.reduce(g).
        attack_loss_fn: the loss of the pass for g where it should differ: without dropout, say, as in the post.

    Returns:
        The loss that was trained on, detached.

    Raises:
        ValueError: epsilon is not > 0, an unknown mode, a weight that is frozen or plays no part in the loss, a loss
            that is no scalar with a graph.
        TypeError: a weight in half precision, where the move would be rounded away.

    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> fgm_backward(lambda: w.square().sum(), w, epsilon=0.5)  # at 3.5, uphill of 3
    tensor(12.2500)
    >>> w.grad, w.data
    (tensor([7.]), tensor([3.]))
    """
    check_epsilon(epsilon, "fgm_backward")
    weights = check_weights(weights)
    clean, grads = first_gradient(loss_fn, weights, mode, reduce, attack_loss_fn)  # eq. (1)
    deltas, _ = directions(grads, epsilon)  # eq. (2)
    return train_at(loss_fn, weights, deltas, clean)  # eq. (5)


def pgd_backward(
    loss_fn: Callable[[], Tensor],
    weights: Tensor | Sequence[Tensor],
    epsilon: float = 1.0,
    alpha: float = 0.3,
    steps: int = 3,
    mode: str = "adv",
    reduce: Callable[[Tensor], Tensor] | None = None,
    attack_loss_fn: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Stand in for `loss_fn().backward()`: gradients at the end of projected steps uphill, eqs. (3) and (5).

    With one step and alpha = epsilon it is FGM.

    Args:
        loss_fn: computes the scalar loss of the current batch; called steps + 1 times.
        weights: W, one weight or several, in float32 or better.
        epsilon: greatest length of delta, > 0.
        alpha: length of one step, > 0; delta reaches at most min(epsilon, steps * alpha).
        steps: K of eq. (3), >= 1.
        mode: "adv" trains on the moved loss alone, "both" on the sum of clean and moved loss.
        reduce: applied to each attack gradient, see `fgm_backward`.
        attack_loss_fn: the loss of the passes for g where it should differ.

    Returns:
        The loss that was trained on, detached.

    Raises:
        ValueError: epsilon or alpha is not > 0, steps < 1, and as `fgm_backward`.
        TypeError: a weight in half precision.

    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> pgd_backward(lambda: w.square().sum(), w, epsilon=1.0, alpha=0.4)  # 3.4, 3.8, 4.2 -> 4
    tensor(16.)
    """
    check_epsilon(epsilon, "pgd_backward")
    if not 0 < alpha < math.inf or steps < 1:
        raise ValueError(f"pgd_backward needs alpha > 0 and steps >= 1, got alpha={alpha}, steps={steps}")
    weights = check_weights(weights)
    clean, grads = first_gradient(loss_fn, weights, mode, reduce, attack_loss_fn)
    moves, _ = directions(grads, alpha)
    deltas = project(moves, epsilon)  # eq. (3) from delta = 0
    for _ in range(steps - 1):
        with perturbed(weights, deltas):
            grads = attack_gradient(attack_loss_fn or loss_fn, weights, reduce)
        moves, finite = directions(grads, alpha)
        moved = project([add(d, m) for d, m in zip(deltas, moves, strict=True)], epsilon)  # eq. (3)
        deltas = [like(d, torch.where(finite, values(d), 0.0)) for d in moved]  # where W + delta overflows, start over
    return train_at(loss_fn, weights, deltas, clean)  # eq. (5)


def noise_backward(
    loss_fn: Callable[[], Tensor],
    weights: Tensor | Sequence[Tensor],
    epsilon: float = 0.5,
    mode: str = "adv",
    support: str = "batch",
    reduce: Callable[[Tensor], Tensor] | None = None,
    attack_loss_fn: Callable[[], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Stand in for `loss_fn().backward()`: gradients at a random delta as long as FGM's, eqs. (4) and (5).

    The control of FGM and PGD: what it gains as well needs no adversary.

    Args:
        loss_fn: computes the scalar loss of the current batch; called twice, or once for support="all".
        weights: W, one weight or several, in float32 or better.
        epsilon: length of delta, > 0.
        mode: "adv" trains on the moved loss alone, "both" on the sum of clean and moved loss.
        support: "batch" draws on the rows that have a gradient (the control), "all" everywhere (one pass cheaper, but
            most of delta then lies on rows that the batch does not use).
        reduce: applied to each gradient that shows the rows, see `fgm_backward`.
        attack_loss_fn: the loss of the pass for the rows where it should differ.
        generator: the source of z; with several processes give each the same seed.

    Returns:
        The loss that was trained on, detached.

    Raises:
        ValueError: as `fgm_backward`, or an unknown support.
        TypeError: a weight in half precision.

    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> noise_backward(lambda: w.sum(), w, epsilon=0.5).item() in (2.5, 3.5)
    True
    """
    check_epsilon(epsilon, "noise_backward")
    if support not in ("batch", "all"):
        raise ValueError(f"support must be 'batch' (rows with a gradient) or 'all', got {support!r}")
    weights = check_weights(weights)
    if support == "batch" or mode != "adv":
        clean, places = first_gradient(loss_fn, weights, mode, reduce, attack_loss_fn)
    else:
        clean, places = None, weights
    noise = []
    for place in places if support == "batch" else weights:
        v = values(place.detach())
        z = torch.randn(v.shape, generator=generator, device=v.device, dtype=v.dtype)
        if support == "batch":
            used = v.flatten(1).any(dim=1).view(-1, *[1] * (v.ndim - 1)) if v.ndim > 1 else v != 0  # rows of g
            z = torch.where(used, z, 0.0)
        noise.append(like(place, z))
    deltas, _ = directions(noise, epsilon)  # eq. (4)
    return train_at(loss_fn, weights, deltas, clean)  # eq. (5)


def as_list(tensors: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def check_epsilon(epsilon: float, name: str) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(
            f"epsilon must be > 0, got {epsilon}; to switch the attack off call loss_fn().backward() instead of {name}"
        )


def check_mode(mode: str) -> None:
    if mode not in ("adv", "both"):
        raise ValueError(f"mode must be 'adv' (the moved loss alone) or 'both' (clean + moved), got {mode!r}")


def check_weights(weights: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The weights as a list, each once, each fit to be moved."""
    unique = list({id(w): w for w in as_list(weights)}.values())
    if not unique:
        raise ValueError("no weight to perturb was given; pass a parameter, such as the embedding's weight")
    for w in unique:
        if not w.requires_grad or not w.is_leaf:
            raise ValueError(
                f"the weight {tuple(w.shape)} to perturb is {'frozen' if w.is_leaf else 'no parameter'}, so it has no "
                "gradient to follow; unfreeze it, or perturb the layer's output by fgm_output_backward"
            )
        if w.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"a perturbation is rounded away in {w.dtype} weights; keep the weights in float32 and use "
                "torch.autocast, or perturb the layer's output by fgm_output_backward"
            )
    return unique


def checked_loss(loss_fn: Callable[[], Tensor]) -> Tensor:
    loss = loss_fn()
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        if isinstance(loss, Tensor) and loss.numel() == 1:
            got = "a detached one (is it computed under no_grad?)"
        raise ValueError(f"loss_fn must return a scalar tensor with a graph, got {got}")
    return loss


def attack_gradient(
    loss_fn: Callable[[], Tensor], weights: list[Tensor], reduce: Callable[[Tensor], Tensor] | None
) -> list[Tensor]:
    """g at the weights as they are, eq. (1), and no other gradient; embeddings' as their rows only."""
    grads = torch.autograd.grad(checked_loss(loss_fn), weights, allow_unused=True)
    return used_rows(grads, weights, reduce)


def first_gradient(
    loss_fn: Callable[[], Tensor],
    weights: list[Tensor],
    mode: str,
    reduce: Callable[[Tensor], Tensor] | None,
    attack_loss_fn: Callable[[], Tensor] | None,
) -> tuple[Tensor | None, list[Tensor]]:
    """The clean loss (mode "both": its backward has run) and g at the unmoved weights, in one pass where possible."""
    check_mode(mode)
    if mode == "adv":
        return None, attack_gradient(attack_loss_fn or loss_fn, weights, reduce)
    caught: dict[int, Tensor] = {}
    hooks = [w.register_hook(lambda g, i=i: caught.__setitem__(i, g)) for i, w in enumerate(weights)]
    try:
        loss = checked_loss(loss_fn)
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    if attack_loss_fn is not None:
        return loss.detach(), attack_gradient(attack_loss_fn, weights, reduce)
    return loss.detach(), used_rows([caught.get(i) for i in range(len(weights))], weights, reduce)


def used_rows(
    grads: Sequence[Tensor | None], weights: list[Tensor], reduce: Callable[[Tensor], Tensor] | None
) -> list[Tensor]:
    """Reduced gradients; where few rows of a big matrix are not 0, a sparse tensor of those rows."""
    result = []
    for g, w in zip(grads, weights, strict=True):
        if g is None:
            raise ValueError(
                f"the loss does not depend on the weight {tuple(w.shape)} to perturb; give a weight that loss_fn uses"
            )
        g = reduce(g) if reduce is not None else g
        if g.is_sparse:
            g = g.coalesce() if g.sparse_dim() == 1 else g.to_dense()
        elif g.ndim > 1 and g.numel() >= SPARSE_FROM and g.device.type == "cpu":
            rows = torch.linalg.vector_norm(g.flatten(1), ord=math.inf, dim=1).nonzero()[:, 0]
            if 2 * len(rows) <= len(g):
                g = torch.sparse_coo_tensor(rows[None], g[rows], g.shape, is_coalesced=True, check_invariants=False)
        result.append(g)
    return result


def values(t: Tensor) -> Tensor:
    """The numbers of a dense tensor, or of a sparse one's rows."""
    return t.values() if t.is_sparse else t


def like(t: Tensor, new: Tensor) -> Tensor:
    """`new` in place of the numbers of t."""
    if not t.is_sparse:
        return new
    return torch.sparse_coo_tensor(t.indices(), new, t.shape, is_coalesced=True, check_invariants=False)


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b, each dense or sparse."""
    total = b + a if a.is_sparse and not b.is_sparse else a + b
    return total.coalesce() if total.is_sparse else total


def joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """One Frobenius norm over all of them."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(values(t)) for t in tensors]))


def directions(grads: Sequence[Tensor], length: float) -> tuple[list[Tensor], Tensor]:
    """Gradients scaled to one joint length, zeros where they have no direction; and whether all were finite.

    Divided by the greatest entry first, so that neither tiny nor loss-scaled gradients leave float32 when squared.
    """
    numbers = [values(g) for g in grads]
    greatest = torch.stack([n.abs().amax() if n.numel() else n.sum() for n in numbers]).amax()
    finite = torch.isfinite(greatest)
    scaled = [n / greatest for n in numbers]
    factor = length / joint_norm(scaled)
    usable = finite & (greatest > 0)
    return [like(g, torch.where(usable, s * factor, 0.0)) for g, s in zip(grads, scaled, strict=True)], finite


def project(deltas: Sequence[Tensor], epsilon: float) -> list[Tensor]:
    """Back into the ball of radius epsilon, P of eq. (3)."""
    factor = (epsilon / joint_norm(deltas)).clamp(max=1.0)  # 0 / 0 does not arise: epsilon > 0, x / 0 = inf
    return [like(d, values(d) * factor) for d in deltas]


def train_at(
    loss_fn: Callable[[], Tensor], weights: list[Tensor], deltas: list[Tensor], clean: Tensor | None
) -> Tensor:
    """Gradients of all parameters at W + delta, eq. (5); returns the loss that .grad belongs to."""
    with perturbed(weights, deltas):
        loss = checked_loss(loss_fn)
        loss.backward()
    return loss.detach() if clean is None else loss.detach() + clean
