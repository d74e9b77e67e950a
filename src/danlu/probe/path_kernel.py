r"""A model trained by gradient descent as a vote of its training examples, exactly, while it is trained.

    df_t(x)/dt = -sum_i l'_i(t) K_t(x, x_i),     K_t(x, x') = <grad f_t(x), grad f_t(x')>                   (1)
    f_{k+1}(x) - f_k(x) = <J_bar_k(x), theta_{k+1} - theta_k>                                               (2)
    C_ik(x) = -lr_k s_k w_i l'_i <J_bar_k(x), grad f_k(x_i)> = -lr_k s_k <J_bar_k(x), g_ik>                 (3)
    f_T(x) = f_0(x) + sum_k sum_i C_ik(x)                                                                   (4)

(1) is gradient flow: what a model says is what it said at first, plus a sum over the training set weighted by the
tangent kernel along the path. Real steps have a length, and the sum of first-order terms misses by O(lr), by more than
the prediction itself where training oscillates. (2) has no such error, J_bar being the mean Jacobian along the step
(`path_jacobian`, Q nodes), and (4) closes to rounding as Q grows; `PathAttribution.error` says how far it does. s_k is
the factor of clipping, g_i with its weight w_i the gradient of example i (`example_gradients`).

For plain SGD, mini-batches, schedules, clipping by norm and weight decay included, (3) is known when the step is made:
`PathKernel` keeps sums only. With momentum or Adam a gradient goes on moving the parameters in later steps: see
`RecordedPath`. The coefficients depend on x, and no example has coefficient 0 as those beside support vectors do: this
is retrieval, not a support vector machine. Another seed is another path with other contributions.

Source: kexue.fm/archives/8009; Domingos, 2020, arXiv:2012.00152; (2) to (4) for steps of finite length are ours.
Shapes: m rows explained, c outputs of each, N training examples, B of a batch, P parameters.
"""

from typing import Any

import torch
from torch import Tensor, nn

from danlu.probe._path_model import Inputs, LossFn, exact_dtype
from danlu.probe._path_rules import Rule, needs_history
from danlu.probe._path_steps import PathSteps, check_explained, pieces_of, step_jacobian
from danlu.probe.path_attribution import PathAttribution
from danlu.probe.path_gradients import flat_parameters, predictions

__all__ = ["PathKernel"]


class PathKernel(PathSteps):
    """Attribution of fixed rows to training examples, online, for SGD without momentum.

    for x, y, index in loader:
        optimizer.zero_grad()
        path.backward(x, y, index)  # in place of loss.backward()
        path.step()  # in place of optimizer.step()
    print(path.result())

    >>> model = nn.Linear(1, 1, bias=False)
    >>> model.weight.data.fill_(0.0)
    tensor([[0.]])
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> path = PathKernel(model, nn.functional.mse_loss, optimizer, torch.tensor([[2.0]]), num_train=2)
    >>> path.backward(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
    tensor(5.)
    >>> path.step()  # lr 1/B 2 (y - f) x x': 0.5 * 0.5 * 2 * 1 * 2 and three times that
    >>> path.result().contributions
    tensor([[[1., 3.]]], dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        optimizer: torch.optim.Optimizer,
        x: Inputs,
        num_train: int,
        target: Any = None,
        nodes: int = 4,
        tolerance: float | None = None,
    ) -> None:
        """Notes what the model says before training.

        Args:
            model: any module whose output for a row depends on that row only; called with x, or with its tensors.
            loss_fn: (outputs, target) -> loss, the one that training lowers; it is asked for one example at a time.
            optimizer: torch.optim.SGD without momentum.
            x: (m, ...) inputs to explain, or a tuple of them.
            num_train: N.
            target: (m, ...) targets of these rows: then their losses are explained, else the outputs.
            nodes: Q of the quadrature in every step; 0 is the first-order sum of TracIn, over every step.
            tolerance: nodes are doubled, up to 32, until each step explains the change of every number that well.

        Raises:
            ValueError: an optimizer with momentum or of another kind, nothing to explain, or a setting out of range.
        """
        super().__init__(model, loss_fn, optimizer, num_train)
        self._check_plain()
        check_explained(x, target, nodes, tolerance)
        self.x, self.target, self.nodes, self.tolerance = x, target, nodes, tolerance
        self._explained = None if target is None else loss_fn
        self._first = self._now()
        dtype, device = exact_dtype(self._first), self._first.device
        self._contributions = torch.zeros(*self._first.shape, num_train, dtype=dtype, device=device)  # (m, c, N)
        self._decay, self._moved = torch.zeros_like(self._first), torch.zeros_like(self._first)
        self._batches: list[tuple[Tensor, Tensor]] = []

    def step(self) -> None:
        """Let the optimizer step and take the move into the account, eq. (3).

        Raises:
            ValueError: nothing was added by `backward` since the last step, or momentum was switched on.
        """
        self._check_plain()
        super().step()

    def result(self) -> PathAttribution:
        """The account up to now, eq. (4)."""
        sums = self._contributions.clone(), self._decay.clone(), self._first.clone()
        return PathAttribution(*sums, after=self._now(), moved=self._moved.clone())

    def _now(self) -> Tensor:
        return predictions(self.model, flat_parameters(self.model), self.x, self.target, self._explained)

    def _check_plain(self) -> None:
        if needs_history(self.optimizer):
            raise ValueError(
                f"PathKernel is for SGD without momentum, got {type(self.optimizer).__name__} that goes on using a "
                "gradient after its step; RecordedPath takes momentum, Adam and AdamW"
            )

    def _keep_batch(
        self, x: Inputs, target: Any, index: Tensor, weight: Tensor, gradients: Tensor, replay: Any
    ) -> None:
        self._batches.append((index, gradients))

    def _account(self, before: Tensor, after: Tensor, rule: Rule) -> None:
        direct, scale, coupled, decoupled = (
            rule.column(name, self._sizes) for name in ("direct", "scale", "coupled", "decoupled")
        )
        settings = self._explained, self.nodes, self.tolerance
        for part, x, target in pieces_of(self.x, self.target, self._first.shape[1], len(before)):
            mean = step_jacobian(self.model, before, after, x, target, *settings)  # (m, c, P)
            self._moved[part] += mean @ (after - before)  # eq. (2)
            for index, gradients in self._batches:
                credit = (mean * (direct * scale)) @ gradients.T  # (m, c, B)
                self._contributions[part].index_add_(2, index, -credit.to(self._moved.dtype))  # eq. (3)
            self._decay[part] -= (mean * (direct * coupled + decoupled)) @ before
        self._batches = []
