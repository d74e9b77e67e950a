r"""FGM, PGD and noise on a layer's output: each example is moved by itself, as in the paper.

    delta_i = epsilon g_i / ||g_i||,    g_i = dL/dx_i                          FGM   (1)
    delta_i <- P(delta_i + alpha g_i / ||g_i||)   K times                      PGD   (2)
    delta_i = epsilon z_i / ||z_i||,    z_i ~ N(0, 1)                          noise (3)
    step on dL/dtheta at x + delta, for all parameters theta                         (4)

x_i is what the layer (an embedding, or an nn.Identity for the input itself) gives for example i, ||.|| runs over all of
the example. Against `fgm_backward`, which moves the matrix: no weight is touched, so frozen, sharded and half precision
weights are fine; occurrences of a token move apart; a batch in two halves gives the gradients of the whole; several
processes need not talk. To keep in mind: noise also falls on padding, which has no gradient and is spared by FGM.

Source: Miyato, Dai, Goodfellow, 2016, arXiv:1605.07725; kexue.fm/archives/7234, which names it as the honest form.
Shapes: layer output (B, ...), B examples.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from danlu.math.precision import wide, wide_dtype
from danlu.train.adversarial import check_epsilon, check_mode, checked_loss

__all__ = ["fgm_output_backward", "noise_output_backward", "output_perturbed", "pgd_output_backward"]


def fgm_output_backward(
    loss_fn: Callable[[], Tensor], module: nn.Module, epsilon: float = 0.5, mode: str = "adv"
) -> Tensor:
    """Stand in for `loss_fn().backward()`: gradients with the module's output moved uphill, eqs. (1) and (4).

    Args:
        loss_fn: computes the scalar loss of the current batch through `module`; called twice.
        module: the layer whose output moves; it returns one tensor with the examples along dimension 0.
        epsilon: length of each example's delta, > 0.
        mode: "adv" trains on the moved loss alone, "both" on the sum of clean and moved loss.

    Returns:
        The loss that was trained on, detached.

    Raises:
        ValueError: epsilon is not > 0, an unknown mode, a loss that does not go through the module.
        TypeError: the module returns something else than one tensor.

    >>> x, layer = torch.tensor([[3.0], [-1.0]]), nn.Identity()
    >>> w = nn.Parameter(torch.tensor(1.0))
    >>> fgm_output_backward(lambda: (w * layer(x)).square().sum(), layer, 0.5)  # 3.5 and -1.5
    tensor(14.5000)
    """
    return pgd_output_backward(loss_fn, module, epsilon, alpha=epsilon, steps=1, mode=mode)


def pgd_output_backward(
    loss_fn: Callable[[], Tensor],
    module: nn.Module,
    epsilon: float = 1.0,
    alpha: float = 0.3,
    steps: int = 3,
    mode: str = "adv",
) -> Tensor:
    """Stand in for `loss_fn().backward()`: gradients after projected steps uphill, eqs. (2) and (4).

    Args:
        loss_fn: computes the scalar loss of the current batch through `module`; called steps + 1 times.
        module: the layer whose output moves; it returns one tensor with the examples along dimension 0.
        epsilon: greatest length of each example's delta, > 0.
        alpha: length of one step, > 0.
        steps: K of eq. (2), >= 1.
        mode: "adv" trains on the moved loss alone, "both" on the sum of clean and moved loss.

    Returns:
        The loss that was trained on, detached.

    Raises:
        ValueError: epsilon or alpha is not > 0, steps < 1, and as `fgm_output_backward`.
        TypeError: the module returns something else than one tensor.

    >>> x, layer = torch.tensor([[3.0]]), nn.Identity()
    >>> w = nn.Parameter(torch.tensor(1.0))
    >>> pgd_output_backward(lambda: (w * layer(x)).square().sum(), layer, 1.0, alpha=0.4)  # 3.4, 3.8, 4.2 -> 4
    tensor(16.)
    """
    check_epsilon(epsilon, "the attack")
    check_mode(mode)
    if not 0 < alpha < math.inf or steps < 1:
        raise ValueError(f"pgd_output_backward needs alpha > 0 and steps >= 1, got alpha={alpha}, steps={steps}")
    clean, grads = output_gradient(loss_fn, module, [], keep=mode == "both")
    deltas = [shorten(lengthen(g, alpha), epsilon) for g in grads]  # eq. (1), or (2) from delta = 0
    for _ in range(steps - 1):
        _, grads = output_gradient(loss_fn, module, deltas, keep=False)
        finite = [per_example(torch.isfinite(g).flatten(1).all(dim=1), g) for g in grads]
        moved = [shorten(d + lengthen(g, alpha), epsilon) for d, g in zip(deltas, grads, strict=True)]  # eq. (2)
        deltas = [torch.where(f, d, 0.0) for f, d in zip(finite, moved, strict=True)]
    with output_perturbed(module, deltas):
        loss = checked_loss(loss_fn)
        loss.backward()  # eq. (4)
    return loss.detach() + clean if mode == "both" else loss.detach()


def noise_output_backward(
    loss_fn: Callable[[], Tensor],
    module: nn.Module,
    epsilon: float = 0.5,
    delta_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Stand in for `loss_fn().backward()`: gradients with the module's output moved at random, eqs. (3) and (4).

    Args:
        loss_fn: computes the scalar loss of the current batch through `module`; called once.
        module: the layer whose output moves; it returns one tensor with the examples along dimension 0.
        epsilon: length of each example's delta, > 0.
        delta_mask: bool, the leading dimensions of the layer's output, such as (B, T); True = may move. Padding that
            moves would take its part of the length. None: all may.
        generator: the source of z.

    Returns:
        The loss that was trained on, detached.

    Raises:
        ValueError: epsilon is not > 0, a mask that does not fit, or the loss does not go through the module.
        TypeError: the module returns something else than one tensor.

    >>> x, layer = torch.tensor([[3.0]]), nn.Identity()
    >>> w = nn.Parameter(torch.tensor(1.0))
    >>> noise_output_backward(lambda: (w * layer(x)).sum(), layer, 0.5).item() in (2.5, 3.5)
    True
    """
    check_epsilon(epsilon, "noise_output_backward")

    def moved(i: int, x: Tensor) -> Tensor:
        dtype = wide_dtype(x)
        z = torch.randn(x.shape, generator=generator, device=x.device, dtype=dtype)
        return (x + lengthen(keep_positions(z, delta_mask), epsilon)).to(x.dtype)  # eq. (3)

    with outputs_through(module, moved):
        loss = checked_loss(loss_fn)
        loss.backward()
    return loss.detach()


@contextmanager
def output_perturbed(module: nn.Module, deltas: Tensor | Sequence[Tensor]) -> Iterator[None]:
    """Inside the block the module's first output has deltas[0] added, that of a second call deltas[1], and so on.

    Args:
        module: a module that returns one tensor.
        deltas: one tensor, or one for each call.

    Raises:
        ValueError: the module is called more often than there are deltas, or not at all.

    >>> layer = nn.Identity()
    >>> with output_perturbed(layer, torch.tensor([0.5])):
    ...     print(layer(torch.tensor([1.0])))
    tensor([1.5000])
    """
    given = [deltas] if isinstance(deltas, Tensor) else list(deltas)

    def moved(i: int, x: Tensor) -> Tensor:
        if i >= len(given) or given[i].shape != x.shape:
            shapes = [tuple(d.shape) for d in given]
            raise ValueError(
                f"call {i + 1} of the perturbed module gives {tuple(x.shape)}, the deltas are {shapes}; "
                "loss_fn must compute the same batch in the same way every time"
            )
        return (x + given[i]).to(x.dtype)

    with outputs_through(module, moved):
        yield


@contextmanager
def outputs_through(module: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Inside the block the i-th output x of the module becomes change(i, x)."""
    calls = 0

    def hook(_: nn.Module, __: object, output: object) -> Tensor:
        nonlocal calls
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the module to change must return one tensor, {type(module).__name__} returned "
                f"{type(output).__name__}; choose the layer inside it that does"
            )
        calls += 1
        return change(calls - 1, output)

    # a hook traced into a compiled graph would hide x from autograd.grad and outlive its removal
    compiler = sys.modules.get("torch._dynamo")
    handle = module.register_forward_hook(compiler.disable(hook) if compiler is not None else hook)
    try:
        yield
        if not calls:
            raise ValueError(
                f"loss_fn never called the {type(module).__name__} to change; give a layer of its model (a model "
                "compiled before does not see the change: compile the parts after the layer instead)"
            )
    finally:
        handle.remove()


def output_gradient(
    loss_fn: Callable[[], Tensor], module: nn.Module, deltas: Sequence[Tensor], keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradient at each output of the module; with keep also that of every parameter, into .grad."""
    outputs: list[Tensor] = []
    caught: dict[int, Tensor] = {}

    def watched(i: int, x: Tensor) -> Tensor:
        x = (x + deltas[i]).to(x.dtype) if deltas else x
        x = x if x.requires_grad else x.detach().requires_grad_()
        outputs.append(x)
        if keep:
            x.register_hook(lambda g: caught.__setitem__(i, g))
        return x.clone()  # the next layer may work in place

    with outputs_through(module, watched):
        loss = checked_loss(loss_fn)
    if keep:
        loss.backward()
        grads: Sequence[Tensor | None] = [caught.get(i) for i in range(len(outputs))]
    else:
        grads = torch.autograd.grad(loss, outputs, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g.detach() for g, x in zip(grads, outputs, strict=True)]
    return loss.detach(), [wide(g) for g in found]


def per_example(v: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped so that it spreads over x (B, ...)."""
    return v.view(-1, *[1] * (x.ndim - 1))


def lengthen(g: Tensor, length: float) -> Tensor:
    """Each example's g scaled to that length; 0 for an example whose g is 0 or not finite."""
    greatest = g.abs().flatten(1).amax(dim=1)  # (B,)
    scaled = g / per_example(greatest, g)
    norm = torch.linalg.vector_norm(scaled.flatten(1), dim=1)  # (B,)
    usable = torch.isfinite(greatest) & (greatest > 0)  # (B,)
    return torch.where(per_example(usable, g), scaled * (length / per_example(norm, g)), 0.0)


def shorten(delta: Tensor, epsilon: float) -> Tensor:
    """Each example's delta back into the ball of radius epsilon, P of eq. (2)."""
    norm = torch.linalg.vector_norm(delta.flatten(1), dim=1)  # (B,)
    return delta * per_example((epsilon / norm).clamp(max=1.0), delta)


def keep_positions(x: Tensor, delta_mask: Tensor | None) -> Tensor:
    """x with 0 where the mask of its leading dimensions is False."""
    if delta_mask is None:
        return x
    if delta_mask.dtype != torch.bool or delta_mask.shape != x.shape[: delta_mask.ndim] or not delta_mask.ndim:
        raise ValueError(
            f"delta_mask must be bool with the leading dimensions of the layer's output {tuple(x.shape)} (True = may "
            f"move); got {delta_mask.dtype} {tuple(delta_mask.shape)}; write mask.bool()"
        )
    return x.masked_fill(~delta_mask.view(*delta_mask.shape, *[1] * (x.ndim - delta_mask.ndim)), 0.0)
