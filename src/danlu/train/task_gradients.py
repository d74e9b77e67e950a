r"""What `multitask_backward` asks of autograd: leaves of a loss, sums of gradients, .grad as backward() leaves it.

    g = sum_i w_i g_i,   .grad <- .grad + g                                                             (1)

The graph is read, never hooked: gradients come from torch.autograd.grad, so that nothing lands in .grad until all tasks
are done and an exception half way leaves no trace.

Source: the accumulation rules of torch.autograd.backward.
Shapes: those of the parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["leaves"]


def leaves(loss: Tensor, shared: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that a loss depends on by a way that does not pass through `shared`, in the order of the graph.

    Args:
        loss: a tensor with a graph.
        shared: parameters, or intermediate tensors, at which the search ends.

    Returns:
        Leaves that require gradients, each once.

    >>> w, head = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> [leaf is head for leaf in leaves((head * w.exp()).sum(), [w])]
    [True]
    """
    known = {id(t) for t in shared}
    if loss.grad_fn is None:
        return [] if id(loss) in known else [loss]
    nodes = dict.fromkeys(node for node, _ in edges(loss, shared))
    found = [node.variable for node in nodes if node.name().endswith("AccumulateGrad")]
    return [leaf for leaf in found if id(leaf) not in known]


def edges(start: Tensor, ends: Sequence[Tensor] = ()) -> Iterator[tuple[Any, int]]:
    """The edges of the graph behind a tensor, each as (node, which of its outputs), not going on at `ends`."""
    stop = {(t.grad_fn, t.output_nr) for t in ends if t.grad_fn is not None}
    stack: list[tuple[Any, int]] = [(start.grad_fn, start.output_nr)]
    seen: set[Any] = set()  # holds the Python objects of the nodes, and with them their identity
    while stack:
        edge = stack.pop()
        if edge[0] is None or edge in stop:
            continue
        yield edge
        if edge[0] not in seen:
            seen.add(edge[0])
            stack.extend(reversed(edge[0].next_functions))


def added(total: Tensor | None, g: Tensor | None) -> Tensor | None:
    """Their sum, None standing for zeros; dense, never in place (autograd may hand out one tensor twice)."""
    if g is None:
        return total
    g = g.detach().to_dense() if g.is_sparse else g.detach()
    return g if total is None else total + g


def weighted_sum(terms: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor | None:
    """Eq. (1) in float32 or better; None if all terms are."""
    total: Tensor | None = None
    for g, w in zip(terms, weights, strict=True):
        if g is None:
            continue
        total = wide(g) * w if total is None else total.add_(wide(g), alpha=w)
    return total


def add_to_grad(leaf: Tensor, g: Tensor | None) -> None:
    """Add to .grad, as backward() does."""
    if g is None:
        return
    with torch.no_grad():
        if leaf.grad is None:
            leaf.grad = g.to(leaf.dtype)
        else:
            leaf.grad = leaf.grad.add_(g) if not leaf.grad.is_sparse else g + leaf.grad


def reduced(
    grads: Sequence[Tensor | None], like: Sequence[Tensor], reduce: Callable[[Tensor], Tensor]
) -> list[Tensor | None]:
    """The gradients after one call of `reduce` on all of them in one vector."""
    if not like:
        return []
    full = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, like, strict=True)]
    flat = reduce(torch.cat([g.reshape(-1) for g in full]))
    parts = flat.split([g.numel() for g in full])
    return [part.view(g.shape) for part, g in zip(parts, full, strict=True)]


def checked_loss(loss: Tensor, index: int) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        if isinstance(loss, Tensor) and loss.numel() == 1:
            got = "a detached one"
        raise ValueError(f"losses[{index}] must be a scalar tensor with a graph, got {got}; None for an absent task")
    return loss


def checked_shared(shared: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The shared weights or representations as a list, each once, without frozen ones."""
    given = [shared] if isinstance(shared, Tensor) else list(shared)
    trained = list({id(t): t for t in given if t.requires_grad}.values())
    if not trained:
        raise ValueError(
            f"none of the {len(given)} shared tensors requires a gradient, so there is nothing to combine; give "
            "weights that train, or call sum(losses).backward()"
        )
    if len({t.is_leaf for t in trained}) > 1:
        raise ValueError("shared must be weights or representations, not both; give one of the two")
    if not trained[0].is_leaf and len(trained) > 1:
        outputs = {(t.grad_fn, t.output_nr) for t in trained}
        if any(len(outputs & set(edges(t))) > 1 for t in trained):
            raise ValueError(
                "one of the representations is computed from another, so its gradient would be counted twice; give the "
                "encoder's weights as shared"
            )
    if any(hasattr(t, "placements") for t in trained):
        raise ValueError(
            "a sharded weight (DTensor) holds a part of its gradient only, so inner products would be wrong; use "
            "DistributedDataParallel, or sum(losses).backward() with weights of the losses"
        )
    return trained


def check_cut(heads: Sequence[Tensor], shared: Sequence[Tensor]) -> None:
    """A weight before the representation that a loss also reaches around it would be counted twice."""
    before = {id(leaf) for z in shared for leaf in leaves(z, [])}
    around = [tuple(leaf.shape) for leaf in heads if id(leaf) in before]
    if around:
        raise ValueError(
            f"a loss reaches the weight {around[0]} of the encoder by a way around the representation (a skip "
            "connection, a tied weight); give the encoder's weights as shared"
        )


def check_processes(reduce: Callable[[Tensor], Tensor] | None, by_weights: bool) -> None:
    """Several processes must agree on the weights, which a representation of each of them does not allow."""
    if not by_weights and reduce is not None:
        raise ValueError("every process has its own representation, so `reduce` cannot mean them; give shared weights")
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and reduce is None:
        raise ValueError(
            f"{dist.get_world_size()} processes would each combine their own gradients; give reduce=, the mean over "
            'them (Accelerate: lambda g: accelerator.reduce(g, "mean")), or lambda g: g to combine locally on purpose'
        )
