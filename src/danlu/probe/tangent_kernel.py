r"""The tangent kernel of any network: inner products of the gradients of its outputs.

    K(x, x')_ab = <grad_theta f_a(x), grad_theta f_b(x')>                                                   (1)
    of a linear layer z_t = W h_t + b:    sum_{t,t'} (<h_t, h'_t'> + 1) <d_t, d'_t'>,    d_t = df / dz_t    (2)

(2) needs no gradient of the size of W: inputs and output gradients of the layer do ("ghost"). That takes less memory by
the size of the layer over the sum of its sides, and less time while the places t of an input are few. Parameters
outside such layers are summed by (1).

K is symmetric and positive semidefinite as a matrix of (row, output) pairs. A step of gradient descent with a small
rate moves f by -lr K dl/df, and K moves with the parameters (`danlu.probe.path_kernel`).

Source: Jacot, Gabriel, Hongler, 2018, arXiv:1806.07572; kexue.fm/archives/8009; (2) is elementary.
Shapes: n rows, c outputs of each, T places of an input (words, pixels; 1 if it has none), P parameters.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from danlu.math.precision import wide
from danlu.probe._path_model import Inputs, called, explained, flat, outside_autocast, rows, some_rows, trainable
from danlu.probe.lipschitz import evaluating
from danlu.probe.path_gradients import flat_parameters, is_recurrent, jacobian

__all__ = ["tangent_kernel"]


def tangent_kernel(
    model: nn.Module, x1: Inputs, x2: Inputs | None = None, ghost: bool = False, room: int = 1 << 24
) -> Tensor:
    """Tangent kernel between two sets of rows, eq. (1), in evaluation mode.

    Args:
        model: any module whose output for a row depends on that row only; called with x1, or with its tensors.
        x1: (n1, ...) inputs, or a tuple of them.
        x2: (n2, ...) inputs; None is x1.
        ghost: use eq. (2) for every nn.Linear whose weight is its own and is used by nothing but its call.
        room: numbers that are held of one block of rows, of one row at least; it bounds the memory and changes nothing.

    Returns:
        (n1, n2, c, c) float32 or better; (n1, n2) where the model returns one number a row.

    Raises:
        ValueError: no rows, no parameter that requires a gradient, or a room below 1.

    >>> tangent_kernel(nn.Linear(2, 1), torch.tensor([[1.0, 0.0], [2.0, 3.0]]))  # <x, x'> + 1 for the bias
    tensor([[ 2.,  3.],
            [ 3., 14.]])
    """
    other = x1 if x2 is None else x2
    if rows(x1) == 0 or rows(other) == 0:
        raise ValueError(f"tangent_kernel needs at least one row on each side, got {rows(x1)} and {rows(other)}")
    if room < 1:
        raise ValueError(f"room must be >= 1, the numbers held of a block of rows; got {room}")
    model = getattr(model, "_orig_mod", model)
    layers = _linear_layers(model, some_rows(x1, 0, 1)) if ghost and not is_recurrent(model) else {}
    probe = _gradients(model, some_rows(x1, 0, 1), layers)
    most = min(_block(side, room) for side in probe)
    lines = []
    for i in range(0, rows(x1), most):
        left = _gradients(model, some_rows(x1, i, i + most), layers)
        blocks = []
        for j in range(0, rows(other), most):
            same = x2 is None and i == j
            right = left if same else _gradients(model, some_rows(other, j, j + most), layers)
            with outside_autocast(left[0][1]):
                blocks.append(_products(left, right))
        lines.append(torch.cat(blocks, dim=1))
    kernel = torch.cat(lines)
    return kernel[:, :, 0, 0] if kernel.shape[2:] == (1, 1) else kernel


Side = tuple[Tensor | None, Tensor]  # (h (n, T, inputs) or None for a gradient itself, d (n, c, T, outputs))


def _gradients(model: nn.Module, x: Inputs, layers: dict[str, tuple[Any, ...]]) -> list[Side]:
    """What the products of some rows are made of: of each ghost layer inputs and output gradients, and the rest."""
    if not layers:
        return [(None, jacobian(model, flat_parameters(model), x, None, None)[:, :, None])]
    values = {name: p.detach() for name, p in trainable(model)}
    ghosts = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
    fixed = {name: p for name, p in values.items() if name in ghosts}
    free = {name: p for name, p in values.items() if name not in ghosts}
    inputs: dict[str, list[Tensor]] = {}
    now: dict[str, list[Tensor]] = {}

    def add_offset(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[name].append(arguments[0])
            return output + now[name][len(inputs[name]) - 1]

        return hook

    def one(free: dict[str, Tensor], offsets: dict[str, list[Tensor]], row: Inputs) -> tuple[Tensor, Any]:
        inputs.clear()
        inputs.update({name: [] for name in layers})
        now.update(offsets)
        outputs = explained(called(model, {**fixed, **free}, row), None, None)
        return outputs, {name: list(seen) for name, seen in inputs.items()}

    hooks = [model.get_submodule(name).register_forward_hook(add_offset(name)) for name in layers]
    try:
        like = next(iter(values.values()))
        with outside_autocast(like), evaluating(model), sdpa_kernel(SDPBackend.MATH):
            offsets = {name: [like.new_zeros(shape, dtype=dtype) for shape, dtype in s] for name, s in layers.items()}
            differentiate = jacrev(one, argnums=(0, 1), has_aux=True)
            (rest, deltas), seen = vmap(differentiate, (None, None, 0))(free, offsets, x)
    finally:
        for hook in hooks:
            hook.remove()
    found: list[Side] = []
    for name in layers:
        h = torch.cat([wide(t).reshape(len(t), -1, t.shape[-1]) for t in seen[name]], dim=1).detach()  # (n, T, inputs)
        d = torch.cat([wide(t).reshape(*t.shape[:2], -1, t.shape[-1]) for t in deltas[name]], dim=2).detach()
        bias = model.get_submodule(name).bias
        if isinstance(bias, Tensor) and bias.requires_grad:
            h = torch.cat([h, torch.ones_like(h[..., :1])], dim=-1)  # the 1 of eq. (2)
        found.append((h, d))
    if rest:
        found.append((None, flat(rest, 2).detach()[:, :, None]))
    return found


def _products(left: list[Side], right: list[Side]) -> Tensor:
    """K of two blocks, (n1, n2, c, c)."""
    total: Tensor | None = None
    for (h1, d1), (h2, d2) in zip(left, right, strict=True):
        inner = torch.tensordot(d1, d2, dims=([3], [3]))  # (n1, c, T, n2, c, T)
        if h1 is None or h2 is None:
            part = inner[:, :, 0, :, :, 0].permute(0, 2, 1, 3)  # eq. (1)
        else:
            part = torch.einsum("natmbs,ntms->nmab", inner, torch.tensordot(h1, h2, dims=([2], [2])))  # eq. (2)
        total = part if total is None else total + part
    assert total is not None
    return total


def _block(side: Side, room: int) -> int:
    """How many rows fit, from what one of them takes alone and what a pair takes."""
    h, d = side
    alone = d[0].numel() + (0 if h is None else h[0].numel())
    pair = (d.shape[1] * d.shape[2]) ** 2
    return max(1, min(room // alone, int((room // pair) ** 0.5)))


def _linear_layers(model: nn.Module, row: Inputs) -> dict[str, tuple[Any, ...]]:
    """Linear layers that eq. (2) may be used for: name -> (shape, dtype) of the output at each call for one row."""
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    fit = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and name
        and all(uses[id(p)] == 1 for p in module._parameters.values() if p is not None)
        and "weight" in module._parameters
        and module.weight.requires_grad
    }
    calls: dict[str, list[Any]] = {name: [] for name in fit}

    def note(name: str) -> Any:
        return lambda module, arguments, output: calls[name].append((output.shape, output.dtype))

    hooks = [module.register_forward_hook(note(name)) for name, module in fit.items()]
    try:
        with torch.no_grad(), evaluating(model), outside_autocast(next(trainable(model))[1]):
            model(*(row if isinstance(row, tuple) else (row,)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: tuple(seen) for name, seen in calls.items() if seen}
