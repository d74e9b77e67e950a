r"""One backward pass for several tasks: their gradients on the shared weights are combined, not merely added.

    g_i = grad of L_i by the shared weights,   Q_ij = <g_i, g_j>                                        (1)
    u   = sum_i w_i g_i,   w computed from Q                                                            (2)
    "sum": w_i = 1                                "normalized": w_i = 1 / ||g_i||
    "mgda": the shortest weighted mean            "pcgrad": conflicts projected off pair by pair
    "dual_cone": each g_i moved the least that    "primary": the vector nearest to g_1, the first
                 harms no task, then the sum                 task's, that harms no other
    (danlu.math has each as a function of Q, with its equations; a function of your own from Q to w serves as well)
    normalize=True: the same for g_i / ||g_i||                                                          (3)

-u is a step that, to first order, makes no task worse with "mgda" and "dual_cone", and no auxiliary one with "primary".
All but "sum" ignore a shift L_i + b, "normalized" and normalize=True also the units. It costs one backward pass a task
and the memory of the K gradients; nothing longer than K numbers is stacked. With few shared weights given (the last
shared layer) only those are combined and all others get the plain sum.

heads: what only some tasks use (all leaves of the graph that are not shared) gets the gradient of the plain sum of the
losses, as backward() would leave it, or, with "weighted", of sum w_i L_i. "normalized" means weights of the losses, so
there it is the default; "mgda" gives weights 0, with which a head would learn nothing.

Shared representation instead of weights: give the tensor z that all losses are computed from. Q is then that of the
gradients by z, and one pass goes through the encoder, whatever K. For "mgda" this is the minimum of an upper bound,
||J'|| times the norm by z, not of (2); the author of the post shows that the paper's proof of more does not hold.

Micro-batches: the direction of a sum is not the sum of directions. `MultiTask.accumulate` adds up each task's gradient
and `backward` combines once; calling the function once a micro-batch combines each by itself. Loss scaling: scale all
losses alike and pass `scale`, which "normalized" needs in order to leave a gradient the scaler can unscale. A gradient
with inf or nan makes all weights 1, so that .grad shows it as backward() would. Several processes: DDP's hooks do not
run here; give `reduce`, which means every task's gradient before (1), so that all processes find the same w. Neither do
hooks of other libraries that wait for .grad. A graph of torch.compile is walked once a task: should it refuse for its
"donated buffers", switch them off as torch's message says.

Source: kexue.fm/archives/8870, 8896 and 8907 (2022); Sener and Koltun, 2018, arXiv:1810.04650; Yu et al., 2020,
arXiv:2001.06782.
Shapes: K tasks, losses are scalars.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from danlu.math.gradient_gram import gram_matrix
from danlu.math.task_direction import Weighting, check_weighting, direction_weights
from danlu.train.task_gradients import (
    add_to_grad,
    added,
    check_cut,
    check_processes,
    checked_loss,
    checked_shared,
    leaves,
    reduced,
    weighted_sum,
)

__all__ = ["MultiTask", "multitask_backward"]


def multitask_backward(
    losses: Sequence[Tensor | None],
    shared: Tensor | Iterable[Tensor],
    weighting: Weighting = "mgda",
    normalize: bool = False,
    heads: str | None = None,
    scale: float | Tensor = 1.0,
    reduce: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Stand in for `sum(losses).backward()`: gradients of all weights, those of the shared ones combined by eq. (2).

    Args:
        losses: K scalars; None for a task that this batch does not hold (or whose loss is nan and to be left out).
            For "primary" the first is the primary one. Gradients add to what .grad holds; the graph is freed.
        shared: the shared weights, frozen ones among them are skipped; or the shared representation.
        weighting: "sum", "normalized", "mgda", "pcgrad", "dual_cone", "primary", or a function from Q (K, K) to w (K,).
        normalize: combine the directions g_i / ||g_i||, eq. (3).
        heads: "plain" or "weighted"; None is "weighted" for "normalized" and "plain" for the others.
        scale: the factor that a loss scaler has put on all losses: scaler.get_scale().
        reduce: with several processes, the mean of a tensor over them (Accelerate: lambda g: accelerator.reduce(g,
            "mean")); called for every task and for the heads.
        generator: the source of PCGrad's orders, with more than two tasks; the same in all processes.

    Returns:
        (K,) float64 w of eq. (2), on the CPU; 0 for a task without gradient.

    Raises:
        ValueError: a loss that is no scalar with a graph, no shared weight to train, a sharded one, weights mixed with
            representations, unknown weighting or heads, several processes without `reduce`.

    >>> w = torch.nn.Parameter(torch.tensor([0.0, 0.0, 0.0]))
    >>> multitask_backward([w[0], w[1] - 2 * w[0]], w)  # the gradients are (1, 0, 0) and (-2, 1, 0)
    tensor([0.7000, 0.3000], dtype=torch.float64)
    >>> w.grad
    tensor([0.1000, 0.3000, 0.0000])
    """
    return MultiTask(shared, weighting, normalize, heads, reduce, generator).backward(losses, scale)


class MultiTask:
    """`multitask_backward` with its settings kept, and the way to accumulate micro-batches: add first, combine once.

    `backward(losses)` in place of `sum(losses).backward()`; or `accumulate(losses)` for each micro-batch (each loss
    divided by their number, as usual) and then `backward()`. `gram` (K, K) and `weights` (K,) are those of the last
    `backward`; `danlu.math.gradient_cosines(gram)` shows which tasks are in conflict.
    """

    gram: Tensor
    weights: Tensor

    def __init__(
        self,
        shared: Tensor | Iterable[Tensor],
        weighting: Weighting = "mgda",
        normalize: bool = False,
        heads: str | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if heads not in (None, "plain", "weighted"):
            raise ValueError(f"heads must be 'plain', 'weighted' or None (by the weighting), got {heads!r}")
        check_weighting(weighting)
        self.shared = checked_shared(shared)
        self.weighting, self.normalize, self.reduce, self.generator = weighting, normalize, reduce, generator
        self.weighted_heads = heads == "weighted" or (heads is None and weighting == "normalized")
        self.by_weights = self.shared[0].is_leaf
        self.clear()

    def clear(self) -> None:
        """Forget what was accumulated."""
        self.rows: list[list[Tensor | None]] = []  # g_i by parameter
        self.heads: list[dict[Tensor, Tensor]] = []  # of each task, or of their sum

    def accumulate(self, losses: Sequence[Tensor | None]) -> None:
        """Add the gradients of each task's loss to those of the micro-batches before; .grad is not touched."""
        losses = list(losses)
        if self.rows and len(losses) != len(self.rows):
            raise ValueError(
                f"{len(losses)} losses follow micro-batches of {len(self.rows)}; give None for an absent task"
            )
        if self.rows and not self.by_weights:
            raise ValueError(
                "gradients by a representation cannot be accumulated, each micro-batch has its own; give the shared "
                "weights instead"
            )
        present = [(i, checked_loss(loss, i)) for i, loss in enumerate(losses) if loss is not None]
        if not present:
            raise ValueError("multitask_backward needs at least one loss that is not None")
        if self.reduce is not None and len(present) < len(losses):
            raise ValueError(
                "a task may be absent in one process and present in another, so with `reduce` every task needs a loss; "
                "give 0 times a loss that uses the same weights"
            )
        self.rows = self.rows or [[None] * len(self.shared) for _ in losses]
        self.heads = self.heads or [{} for _ in (losses if self.weighted_heads else [0])]
        try:
            self.differentiate(present)
        except BaseException:
            self.clear()  # half a micro-batch would be worse than none
            raise

    def differentiate(self, losses: Sequence[tuple[int, Tensor]]) -> None:
        """Add each loss's gradients, given with its number, to its row and to the heads."""
        for place, (i, loss) in enumerate(losses):
            others = leaves(loss, self.shared)
            if not self.by_weights:
                check_cut(others, self.shared)
            keep = place + 1 < len(losses) or not self.by_weights
            grads = torch.autograd.grad(loss, [*self.shared, *others], retain_graph=keep, allow_unused=True)  # eq. (1)
            row, head = self.rows[i], self.heads[i if self.weighted_heads else 0]
            for k, g in enumerate(grads[: len(self.shared)]):
                row[k] = added(row[k], g)
            for leaf, g in zip(others, grads[len(self.shared) :], strict=True):
                total = added(head.get(leaf), g)
                if total is not None:
                    head[leaf] = total

    def backward(self, losses: Sequence[Tensor | None] | None = None, scale: float | Tensor = 1.0) -> Tensor:
        """Combine what was accumulated and these losses; leave the result in .grad and return the weights."""
        check_processes(self.reduce, self.by_weights)
        if losses is not None:
            self.accumulate(losses)
        if not self.rows:
            raise ValueError("nothing to combine: give losses, or call accumulate(losses) before backward()")
        rows, heads = self.rows, self.heads
        self.clear()
        if self.reduce is not None:
            rows = [reduced(row, self.shared, self.reduce) for row in rows]
        self.gram = gram_matrix(rows).cpu()
        self.weights = direction_weights(self.gram, self.weighting, self.normalize, self.generator)
        if (self.normalize or self.weighting == "normalized") and bool(torch.isfinite(self.gram).all()):
            self.weights = float(scale) * self.weights  # they hold 1 / (scale * length): put the scale back
        w = self.weights.tolist()
        if self.weighted_heads:
            found = list(dict.fromkeys(leaf for head in heads for leaf in head))
            plain = {leaf: weighted_sum([head.get(leaf) for head in heads], w) for leaf in found}
        else:
            plain = {leaf: g.clone() for leaf, g in heads[0].items()}  # autograd may hand out one tensor twice
        others = reduced(list(plain.values()), list(plain), self.reduce) if self.reduce is not None else plain.values()
        for leaf, g in zip(plain, others, strict=True):
            add_to_grad(leaf, g)
        parts: list[Tensor | None] = []
        for k, tensor in enumerate(self.shared):
            u = weighted_sum([row[k] for row in rows], w)  # eq. (2)
            for row in rows:
                row[k] = None
            if self.by_weights:
                add_to_grad(tensor, u)
            else:
                parts.append(torch.zeros_like(tensor) if u is None else u.to(tensor.dtype))
        if not self.by_weights:
            torch.autograd.backward(self.shared, parts)
        return self.weights
