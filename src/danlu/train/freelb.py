r"""FreeLB: train on the mean loss over the whole path of an attack, not on its end alone.

    delta_0 = u start / sqrt(N),   u uniform in (-1, 1)                                  (1)
    g_t     = dL/dtheta at x + delta_t,    a_t = dL/d delta at x + delta_t               (2)
    delta_(t+1) = P(delta_t + alpha a_t / ||a_t||)                                       (3)
    step on (1 / K) sum_{t < K} g_t                                                      (4)

x is what the layer (the embedding) gives for one example, N the numbers of x that may move (tokens x features), P
scales delta back to length epsilon if it is longer; ||.|| and P run over one example. Each backward pass yields both
gradients of (2), so K passes make K - 1 steps uphill and cost K plain steps: "free" against PGD, whose passes for the
attack train nothing. It is as if the batch were K times as large, hence the name. With K = 1 it trains on noise.

To keep in mind. The paper keeps one dropout mask for all K passes, else the attack climbs another network than the one
it started on; `same_dropout` does, by giving every pass the same random numbers. Only the direction of a_t counts, so
`loss_fn` may return a scaled loss. delta_0 lies in a cube, and its length is about start / sqrt(3). The paper has
start = epsilon; the authors' program sets the two apart, so here both are named.

Source: Zhu et al., 2019, arXiv:1909.11764.
Shapes: layer output (B, T, D) or (B, ...), B examples.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from danlu.math.precision import wide_dtype
from danlu.train.adversarial import check_epsilon, checked_loss
from danlu.train.adversarial_output import (
    keep_positions,
    lengthen,
    output_gradient,
    outputs_through,
    per_example,
    shorten,
)
from danlu.train.attacks import attacking

__all__ = ["FreeLB", "freelb_backward"]


def freelb_backward(
    loss_fn: Callable[[], Tensor],
    module: nn.Module,
    epsilon: float = 0.5,
    alpha: float = 0.1,
    steps: int = 3,
    start: float | None = None,
    delta_mask: Tensor | None = None,
    same_dropout: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Stand in for `loss_fn().backward()`: the gradients of eq. (4), averaged along the attack.

    Args:
        loss_fn: computes the scalar loss of the current batch through `module`; called K times. Gradients add to what
            .grad holds.
        module: the layer whose output moves; it returns one tensor with the examples along dimension 0.
        epsilon: greatest length of each example's delta, > 0.
        alpha: length of one step uphill, > 0.
        steps: K, passes, >= 1.
        start: scale of delta_0, >= 0; None: epsilon, as in the paper.
        delta_mask: bool, the leading dimensions of the layer's output, such as (B, T); True = may move. None: all may.
            Padding that the loss does not see needs it for eq. (1) only.
        same_dropout: every pass draws the same random numbers from torch's global stream, which ends where one pass
            would have left it.
        generator: the source of u; None: a seed drawn from torch's global stream.

    Returns:
        The mean of the K losses, detached.

    Raises:
        ValueError: epsilon or alpha is not > 0, steps < 1, start < 0, a mask that does not fit, a loss that does not go
            through the module.
        TypeError: the module returns something else than one tensor.

    >>> x, layer = torch.tensor([[3.0]]), nn.Identity()
    >>> w = nn.Parameter(torch.tensor(1.0))
    >>> freelb_backward(lambda: (w * layer(x)).sum(), layer, 1.0, alpha=0.5, steps=2, start=0)  # at 3 and 3.5
    tensor(3.2500)
    >>> w.grad
    tensor(3.2500)
    """
    check_epsilon(epsilon, "freelb_backward")
    start = epsilon if start is None else start
    if not 0 < alpha < math.inf or steps < 1 or not 0 <= start < math.inf:
        raise ValueError(
            f"freelb_backward needs alpha > 0, steps >= 1 and start >= 0, got alpha={alpha}, steps={steps}, "
            f"start={start}"
        )
    deltas: list[Tensor] = []
    source = NoiseSource(generator)

    def moved(i: int, x: Tensor) -> Tensor:
        if step == 0:
            deltas.append(start_delta(x, start, delta_mask, source))  # eq. (1)
        if i >= len(deltas) or deltas[i].shape != x.shape:
            raise ValueError(
                f"call {i + 1} of the perturbed module gives {tuple(x.shape)} in pass {step + 1}, in the first it was "
                f"{[tuple(d.shape) for d in deltas]}; loss_fn must compute the same batch in the same way every time"
            )
        return (x + deltas[i]).to(x.dtype)

    losses = []
    for step in range(steps):
        with forked(same_dropout and step + 1 < steps), outputs_through(module, moved):
            loss, grads = output_gradient(lambda: checked_loss(loss_fn) / steps, module, [], keep=True)  # eqs. (2), (4)
        losses.append(loss)
        if step + 1 < steps:
            finite = [per_example(torch.isfinite(g).flatten(1).all(dim=1), g) for g in grads]
            climbed = [
                shorten(d + lengthen(keep_positions(g, delta_mask), alpha), epsilon)  # eq. (3)
                for d, g in zip(deltas, grads, strict=True)
            ]
            deltas = [torch.where(f, d, 0.0) for f, d in zip(finite, climbed, strict=True)]  # overflow: start over
    return torch.stack(losses).sum()


class FreeLB:
    """`freelb_backward` on the model's embedding layer: `FreeLB(model).backward(loss_fn)` in place of `.backward()`.

    layer: "embeddings" (`get_input_embeddings()`, or the only nn.Embedding there is), a module's dotted name, or the
    module. Batch norm counts the batch once, in the last pass.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module = "embeddings",
        epsilon: float = 0.5,
        alpha: float = 0.1,
        steps: int = 3,
        start: float | None = None,
        same_dropout: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        check_epsilon(epsilon, "FreeLB")
        self.model, self.layer = model, find_layer(model, layer)
        self.epsilon, self.alpha, self.steps, self.start = epsilon, alpha, steps, start
        self.same_dropout, self.generator = same_dropout, generator

    def backward(self, loss_fn: Callable[[], Tensor], delta_mask: Tensor | None = None) -> Tensor:
        """Leave the gradients in .grad and return the loss, as `freelb_backward`."""
        return freelb_backward(
            last_pass_counts(self.model, loss_fn, self.steps), self.layer, self.epsilon, self.alpha, self.steps,
            self.start, delta_mask, self.same_dropout, self.generator,
        )  # fmt: skip


class NoiseSource:
    """Noise from one generator, or from a seed drawn now, so that drawing it later moves nothing global."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.seed = int(torch.randint(2**62, (1,), device="cpu")) if generator is None else 0

    def on(self, device: torch.device) -> torch.Generator:
        if self.generator is None:
            self.generator = torch.Generator(device).manual_seed(self.seed)
        return self.generator


def start_delta(x: Tensor, start: float, delta_mask: Tensor | None, source: NoiseSource) -> Tensor:
    """Uniform noise of the examples, eq. (1), 0 where nothing may move."""
    dtype = wide_dtype(x)
    u = torch.rand(x.shape, generator=source.on(x.device), device=x.device, dtype=dtype) * 2 - 1
    movable = keep_positions(torch.ones_like(u), delta_mask).flatten(1).sum(dim=1)  # (B,)  N
    return keep_positions(u, delta_mask) * per_example(start / movable.clamp_min(1).sqrt(), x)  # eq. (1)


def forked(on: bool) -> AbstractContextManager[None]:
    """Inside the block random numbers may be drawn; on exit torch's streams stand where they stood."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices, enabled=on)


def last_pass_counts(model: nn.Module, loss_fn: Callable[[], Tensor], passes: int) -> Callable[[], Tensor]:
    """`loss_fn` of which only the last of so many calls moves the statistics of batch norm."""
    calls = 0

    def run() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == passes:
            return loss_fn()
        with attacking(model, "train"):
            return loss_fn()

    return run


def find_layer(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    """The layer that is meant; nothing found, or no way to choose, is an error that lists what there is."""
    if isinstance(layer, nn.Module):
        return layer
    modules = dict(model.named_modules())
    if layer != "embeddings":
        if layer in modules:
            return modules[layer]
        known: Sequence[str] = [name for name in modules if name]
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise ValueError(f"layer={layer!r} names no module; the names are {', '.join(known[:20])}{more}")
    if callable(get := getattr(model, "get_input_embeddings", None)):
        found = get()
        if isinstance(found, nn.Module):
            return found
    tables = {name: m for name, m in modules.items() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    if len(tables) != 1:
        raise ValueError(
            "the model has no get_input_embeddings() and not exactly one embedding layer (found: "
            f"{', '.join(tables) or 'none'}); name the layer by layer=, such as 'encoder.embed'"
        )
    return next(iter(tables.values()))
