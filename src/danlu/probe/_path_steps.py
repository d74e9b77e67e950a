r"""One step of training with an account: gradients of the batch from those of its examples, moves from the optimizer.

    g = sum_i g_i                                                                                           (1)

`backward` takes the place of `loss.backward()`, `step` that of `optimizer.step()`; between the two a loop may clip. So
what moves the parameters is, to the bit, the sum of what is attributed.

Source: own definitions.
Shapes: B examples of a batch, P parameters, R = rows times outputs explained, N training examples.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from danlu.probe._path_model import Inputs, LossFn, outside_autocast, rows, some_rows, trainable
from danlu.probe._path_rules import Rule, buffers_exist, check_optimizer, clip_scale, read_rule
from danlu.probe.path_gradients import example_gradients, example_weights, flat_parameters, path_jacobian, predictions

NUMBERS = 1 << 25  # of a Jacobian at a time: 128 MB in float32
MOST_NODES = 32


class PathSteps:
    """What the online and the recorded account of a path have in common."""

    def __init__(self, model: nn.Module, loss_fn: LossFn, optimizer: torch.optim.Optimizer, num_train: int) -> None:
        """Made by its subclasses."""
        model = getattr(model, "_orig_mod", model)  # the module behind torch.compile
        if num_train < 1:
            raise ValueError(f"num_train must be >= 1, the number of training examples; got {num_train}")
        check_optimizer(optimizer, model)
        self.model, self.loss_fn, self.optimizer, self.num_train = model, loss_fn, optimizer, num_train
        self._parameters = [p for _, p in trainable(model)]
        self._sizes = torch.tensor([p.numel() for p in self._parameters], device=self._parameters[0].device)
        self._own: list[Tensor] = []  # what backward() has added to each .grad since the last step

    def backward(self, x: Inputs, target: Any, index: Tensor, weight: float | Tensor | None = None) -> Tensor:
        """Add the gradients of a batch to .grad, as `loss.backward()` does; several calls accumulate.

        Args:
            x: (B, ...) inputs, or a tuple of them.
            target: (B, ...) tensor, or a tuple of them.
            index: (B,) int64 number of each training example, in [0, num_train).
            weight: of the examples in the loss, a number or (B,); None is 1 / B, the mean; 1.0 the sum. Class weights
                belong here, they cancel in the mean of one example.

        Returns:
            The weighted loss of the batch, detached.

        Raises:
            ValueError: index is no such tensor, or as `example_gradients`.
        """
        size = rows(x)
        if index.shape != (size,) or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(
                f"index must be ({size},) int64, one number for each row of x; got {tuple(index.shape)} {index.dtype}"
            )
        if size and not 0 <= int(index.min()) <= int(index.max()) < self.num_train:
            raise ValueError(
                f"index must lie in [0, {self.num_train}), got {int(index.min())} to {int(index.max())}; raise "
                "num_train"
            )
        replay, weights = self._before_batch(), example_weights(weight, size, self._parameters[0])
        losses, gradients = example_gradients(self.model, self.loss_fn, x, target, weights)
        pieces = gradients.sum(dim=0).split(self._sizes.tolist())  # eq. (1)
        shaped = [piece.view(p.shape).to(p.dtype) for p, piece in zip(self._parameters, pieces, strict=True)]
        for p, piece in zip(self._parameters, shaped, strict=True):
            p.grad = piece.clone() if p.grad is None else p.grad + piece
        self._own = [a + b for a, b in zip(self._own, shaped, strict=True)] if self._own else shaped
        self._keep_batch(x, target, index.detach().to(losses.device, torch.int64), weights, gradients, replay)
        return (losses * weights).sum()

    def step(self) -> None:
        """Let the optimizer step and take the move into the account.

        Raises:
            ValueError: nothing was added by `backward` since the last step.
        """
        if not self._own:
            raise ValueError(
                "step() needs a backward(x, target, index) before it, which knows whose gradients these are"
            )
        scale = clip_scale([p.grad for p in self._parameters], self._own)
        alive = [p.grad is not None for p in self._parameters]
        buffered = buffers_exist(self.optimizer, self._parameters)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        before = flat_parameters(self.model)
        self.optimizer.step()
        rule = read_rule(self.optimizer, self._parameters, scale, alive, buffered, settings)
        self._own = []
        with outside_autocast(before):
            self._account(before, flat_parameters(self.model), rule)

    def _before_batch(self) -> Any:
        """What a replay of the batch needs of the state in which it begins."""

    def _keep_batch(
        self, x: Inputs, target: Any, index: Tensor, weight: Tensor, gradients: Tensor, replay: Any
    ) -> None:
        raise NotImplementedError

    def _account(self, before: Tensor, after: Tensor, rule: Rule) -> None:
        raise NotImplementedError


def step_jacobian(
    model: nn.Module,
    before: Tensor,
    after: Tensor,
    x: Inputs,
    target: Any,
    loss_fn: LossFn | None,
    nodes: int,
    tolerance: float | None,
) -> Tensor:
    """Mean Jacobian of a step (m, c, P), its nodes doubled until it explains the change of every number that well."""
    found = path_jacobian(model, before, after, x, nodes, target, loss_fn)
    if tolerance is None:
        return found
    change = predictions(model, after, x, target, loss_fn) - predictions(model, before, x, target, loss_fn)
    while nodes < MOST_NODES and bool((change - found @ (after - before)).abs().max() > tolerance):
        nodes = min(max(1, 2 * nodes), MOST_NODES)
        found = path_jacobian(model, before, after, x, nodes, target, loss_fn)
    return found


def pieces_of(x: Inputs, target: Any, outputs: int, parameters: int) -> Iterator[tuple[slice, Inputs, Any]]:
    """The rows to explain, as many at a time as a Jacobian has room for."""
    most = max(1, NUMBERS // (outputs * parameters))
    for start in range(0, rows(x), most):
        stop = min(start + most, rows(x))
        yield slice(start, stop), some_rows(x, start, stop), some_rows(target, start, stop)


def check_explained(x: Inputs, target: Any, nodes: int, tolerance: float | None) -> None:
    """Raises ValueError where there is nothing to explain, or no way to."""
    sizes = {len(t) for t in (*(x if isinstance(x, tuple) else (x,)), *(target if isinstance(target, tuple) else ()))}
    if isinstance(target, Tensor):
        sizes.add(len(target))
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"x, and target if given, must have the same number of rows, at least one; got {sorted(sizes)}"
        )
    if nodes < 0 or nodes != int(nodes):
        raise ValueError(f"nodes must be a whole number >= 0 (0: the left end of the step), got {nodes}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(
            f"tolerance must be > 0, in units of what is explained, got {tolerance}; None takes the nodes given"
        )
