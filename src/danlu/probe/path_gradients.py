r"""The three quantities of a step that path attribution multiplies: parameters, example gradients, mean Jacobian.

    g_i   = w_i grad_theta l(f_theta(x_i), y_i)        one row an example, sum_i g_i is the gradient of the batch  (1)
    J_bar = int_0^1 J(theta + s (theta' - theta)) ds,  J(theta) = d f_theta(x) / d theta                          (2)
    f_theta'(x) - f_theta(x) = J_bar (theta' - theta)                                                             (3)

(3) is exact for any length of step. (2) is summed by Gauss and Legendre with Q nodes, exact where f is a polynomial of
degree 2 Q in the parameters along the way; 0 nodes is the left end, the first-order formula of TracIn. All parameters
that require a gradient stand in one flat vector, in the order of `model.parameters()`.

f is the model in evaluation mode, outside autocast; g_i are taken in the mode and the autocast that the model is in, as
training takes them, with masks of dropout drawn for every example. Batch norm in training has no gradient of one
example and is refused. Models with LSTM, GRU or RNN layers go row by row, all others in one pass of torch.func.vmap.

Source: the fundamental theorem of calculus; kexue.fm/archives/8009; Pruthi et al., 2020, arXiv:2002.08484 (TracIn).
Shapes: P parameters in all, B examples of a batch, m rows to explain, c outputs of a row.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from danlu.math.precision import wide, wide_dtype
from danlu.probe._path_model import (
    Inputs,
    LossFn,
    Values,
    called,
    exact_dtype,
    explained,
    flat,
    outside_autocast,
    rows,
    trainable,
    unflat,
)
from danlu.probe.lipschitz import evaluating

__all__ = ["example_gradients", "flat_parameters", "path_jacobian"]

Row = Callable[[Values, Inputs, Any], Tensor]  # (parameters, row, its target) -> what is differentiated
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def flat_parameters(model: nn.Module) -> Tensor:
    """A copy of all parameters that require a gradient, as one vector.

    Args:
        model: any module; a tied parameter counts once.

    Returns:
        (P,) float32 or better.

    Raises:
        ValueError: no parameter requires a gradient.

    >>> flat_parameters(nn.Linear(2, 3)).shape
    torch.Size([9])
    """
    return flat(dict(trainable(model)), 0).detach().clone()


def example_gradients(
    model: nn.Module,
    loss_fn: LossFn,
    x: Inputs,
    target: Any,
    weight: float | Tensor | None = None,
    parameters: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and weighted gradient of every example of a batch, eq. (1).

    Args:
        model: in the mode of training; its outputs for a row may depend on that row only.
        loss_fn: (outputs, target) -> loss; it is asked for one example at a time, so mean, sum and "none" are the same,
            and class weights cancel in its mean: give them as `weight`.
        x: (B, ...) inputs, or a tuple of them.
        target: (B, ...) tensor, or a tuple of them.
        weight: w_i, a number or (B,); None is 1 / B, the mean loss, 1.0 the sum.
        parameters: (P,) where to take them; None is where the model is.

    Returns:
        (losses (B,), gradients (B, P)), detached.

    Raises:
        ValueError: no example, rows that do not match, batch norm in training, or a loss that is not one number.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> model.weight.data.fill_(2.0)
    tensor([[2.]])
    >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [6.0]])
    >>> example_gradients(model, nn.functional.mse_loss, x, y, weight=1.0)  # 2 (2 x - y) x
    (tensor([4., 0.]), tensor([[4.],
            [0.]]))
    """
    size = rows(x)
    if size == 0 or {len(t) for t in tree_leaves((x, target))} != {size}:
        lengths = [tuple(t.shape) for t in tree_leaves((x, target))]
        raise ValueError(f"example_gradients needs a batch of at least one row, alike in x and target; got {lengths}")
    for name, module in model.named_modules():
        if module.training and isinstance(module, NORMS) and (module.track_running_stats or is_batch_norm(module)):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) mixes the examples of a batch in training, so none "
                "has a gradient of its own; put it into eval(), or use layer or group norm"
            )
    weights = example_weights(weight, size, next(trainable(model))[1])

    def loss_of(values: Values, row: Inputs, wanted: Any) -> Tensor:
        loss = loss_fn(called(model, values, row), tree_map(lambda t: t[None], wanted))
        if loss.numel() != 1:
            raise ValueError(
                f"loss_fn returned {tuple(loss.shape)} for one example, which is to have one loss; sum it over the "
                "outputs of a row"
            )
        return wide(loss.reshape(()))

    start = dict(trainable(model)) if parameters is None else unflat(model, parameters)
    values = {name: value.detach() for name, value in start.items()}
    if is_recurrent(model):
        gradients, losses = one_by_one(loss_of, values, x, target)
        gradients, losses = {name: g[:, 0] for name, g in gradients.items()}, losses[:, 0]
    else:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule for examples side by side
            gradients, losses = vmap(grad_and_value(loss_of), (None, 0, 0), randomness="different")(values, x, target)
    return losses.detach(), flat(gradients, 1).detach() * weights[:, None]  # eq. (1)


def path_jacobian(
    model: nn.Module,
    before: Tensor,
    after: Tensor,
    x: Inputs,
    nodes: int = 4,
    target: Any = None,
    loss_fn: LossFn | None = None,
) -> Tensor:
    """Mean Jacobian of the outputs on the straight way between two vectors of parameters, eq. (2).

    Args:
        model: is put into evaluation mode for the call; its own parameters do not matter and stay.
        before: (P,) theta, as `flat_parameters` gives it.
        after: (P,) theta'.
        x: (m, ...) inputs to explain, or a tuple of them.
        nodes: Q of the quadrature; 0 takes the Jacobian at `before`.
        target: (m, ...) targets of these rows, together with `loss_fn`: then their losses are explained.
        loss_fn: (outputs, target) -> loss.

    Returns:
        (m, c, P) float32 or better; c is 1 for losses and counts the numbers that the model returns for a row.

    Raises:
        ValueError: nodes < 0, vectors that are not (P,), or one of target and loss_fn without the other.

    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[3.0]])
    >>> square = lambda out, target: (out**2).sum()
    >>> path_jacobian(model, torch.tensor([1.0]), torch.tensor([2.0]), x, 1, torch.zeros(1), square)  # (36 - 9) / 1
    tensor([[[27.]]])
    """
    if nodes < 0 or nodes != int(nodes):
        raise ValueError(f"nodes must be a whole number >= 0 (0: the left end of the step), got {nodes}")
    if (target is None) != (loss_fn is None):
        raise ValueError(
            "path_jacobian explains losses where it has both target and loss_fn, outputs where it has neither"
        )
    size = sum(p.numel() for _, p in trainable(model))
    if before.shape != (size,) or after.shape != (size,):
        raise ValueError(
            f"path_jacobian needs two vectors of the {size} parameters that require a gradient, got "
            f"{tuple(before.shape)} and {tuple(after.shape)}; flat_parameters(model) makes one"
        )
    places, weights = quadrature(nodes)
    total: Tensor | None = None
    for place, share in zip(places, weights, strict=True):
        part = jacobian(model, before + place * (after - before), x, target, loss_fn) * share
        total = part if total is None else total + part  # eq. (2)
    assert total is not None
    return total


def jacobian(model: nn.Module, parameters: Tensor, x: Inputs, target: Any, loss_fn: LossFn | None) -> Tensor:
    """d f / d theta at one vector of parameters, (m, c, P)."""

    def one(values: Values, row: Inputs, wanted: Any) -> Tensor:
        return explained(called(model, values, row), wanted, loss_fn)

    values = unflat(model, parameters)
    with outside_autocast(parameters), evaluating(model), sdpa_kernel(SDPBackend.MATH):
        if is_recurrent(model):
            return flat(one_by_one(one, values, x, target)[0], 2)
        found = vmap(jacrev(one), (None, 0, None if target is None else 0))(values, x, target)
        return flat(found, 2).detach()


def predictions(model: nn.Module, parameters: Tensor, x: Inputs, target: Any, loss_fn: LossFn | None) -> Tensor:
    """f at one vector of parameters, (m, c) float64 on a device that has it."""
    arguments = x if isinstance(x, tuple) else (x,)
    with outside_autocast(parameters), evaluating(model), torch.no_grad():
        outputs = functional_call(model, unflat(model, parameters), arguments)
        if target is None or loss_fn is None:
            found = explained(outputs, None, None).view(rows(x), -1)
        else:
            found = vmap(lambda o, t: explained(tree_map(lambda v: v[None], o), t, loss_fn))(outputs, target)
        return found.to(exact_dtype(found))


def one_by_one(function: Row, values: Values, x: Inputs, target: Any) -> tuple[Values, Tensor]:
    """Jacobians (m, c, ...) and values (m, c) of rows, each with a graph of its own."""
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    lines, results = [], []
    for i in range(rows(x)):
        pick = itemgetter(i)
        row, wanted = tree_map(pick, x), None if target is None else tree_map(pick, target)
        with torch.enable_grad():
            result = function(leaves, row, wanted).reshape(-1)
        each = [
            torch.autograd.grad(r, list(leaves.values()), retain_graph=True, materialize_grads=True) for r in result
        ]
        lines.append([torch.stack(gradients) for gradients in zip(*each, strict=True)])
        results.append(result.detach())
    stacked = (torch.stack(tensors) for tensors in zip(*lines, strict=True))
    return dict(zip(values, stacked, strict=True)), torch.stack(results)


def is_recurrent(model: nn.Module) -> bool:
    """Whether there are LSTM, GRU or RNN layers, which torch cannot run for several examples side by side."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def example_weights(weight: float | Tensor | None, size: int, like: Tensor) -> Tensor:
    """w_i of a batch, (B,)."""
    dtype = wide_dtype(like)
    if not isinstance(weight, Tensor):
        return torch.full(
            (size,), 1 / max(size, 1) if weight is None else float(weight), dtype=dtype, device=like.device
        )
    if weight.shape not in ((), (size,)):
        raise ValueError(f"weight must be a number or ({size},), one for each example; got {tuple(weight.shape)}")
    return weight.detach().to(like.device, dtype).expand(size)


def quadrature(nodes: int) -> tuple[list[float], list[float]]:
    """Places in [0, 1] and their weights."""
    if nodes == 0:
        return [0.0], [1.0]
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module takes its statistics over the batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
