r"""Path attribution with momentum, Adam and weight decay: record the path, then walk it backwards.

    f_T(x) - f_0(x) = sum_k <J_bar_k(x), theta_{k+1} - theta_k>                                             (1)
    v_k = gain_k * J_bar_k(x) + carry_{k+1} * v_{k+1},     v_T = 0                                          (2)
    u_k = direct_k * J_bar_k(x) + share_k * v_k                                                             (3)
    A_i(x) = -sum_{k: i in batch k} s_k <u_k, g_ik>                                                         (4)
    D(x)   = -sum_k <coupled_k * u_k + decoupled_k * J_bar_k, theta_k>                                      (5)

The coefficients are those of the optimizer (`danlu.probe._path_rules`): with momentum mu an example met at step k is
credited for what its gradient still does at k + 1, k + 2, ..., mu, mu^2, ... of it. v_k holds all of that for one row,
so one walk in reverse time does it, with the steps streamed from disk if they do not fit in memory. What is needed of
an example is its gradient at the parameters of then, with the mode, masks and autocast of then: it is taken again.

Adam divides by a root of its second moment. Given these divisors (3) to (5) are exact and the account closes; that the
examples made the divisors too, through the squares of their gradients, is not attributed to anybody. A question that
needs that (what would have been without example i) is answered by training without it, not by this.

Rows to explain are chosen after training, as often as wanted. In memory: steps times (parameters + batch), twice the
parameters with Adam; a folder keeps one step in memory. Time: one walk takes Q Jacobians of the rows and one gradient
of every example for each step.

Source: kexue.fm/archives/8009; Domingos, 2020, arXiv:2012.00152; (1) to (5) are ours.
Shapes: m rows explained, c outputs of each, N training examples, P parameters; * is by parameter.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.probe._path_model import Inputs, LossFn, exact_dtype, outside_autocast
from danlu.probe._path_rules import Rule
from danlu.probe._path_steps import PathSteps, check_explained, pieces_of, step_jacobian
from danlu.probe._path_store import StepStore
from danlu.probe.lipschitz import evaluating
from danlu.probe.path_attribution import PathAttribution
from danlu.probe.path_gradients import example_gradients, flat_parameters, jacobian, predictions

__all__ = ["RecordedPath"]


@dataclass(frozen=True)
class _Moment:
    """In what state a batch was differentiated: modes of the modules, autocast, and the generator of masks."""

    modes: tuple[bool, ...]
    autocast: tuple[bool, torch.dtype]
    random: Tensor


class RecordedPath(PathSteps):
    """The path of SGD, SGD with momentum, Adam or AdamW, and any number of explanations from it.

    for x, y, index in loader:
        optimizer.zero_grad()
        path.backward(x, y, index)  # in place of loss.backward()
        path.step()  # in place of optimizer.step()
    print(path.explain(x_test))

    >>> model = nn.Linear(1, 1, bias=False)
    >>> model.weight.data.fill_(0.0)
    tensor([[0.]])
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    >>> path = RecordedPath(model, lambda f, y: -(f * y).sum(), optimizer, num_train=2)
    >>> for example in (0, 1):  # gradients -1 and -1: the first one moves by 0.1, and by 0.05 at the second step
    ...     optimizer.zero_grad()
    ...     loss = path.backward(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([example]))
    ...     path.step()
    >>> path.explain(torch.ones(1, 1)).contributions.round(decimals=6)
    tensor([[[0.1500, 0.1000]]], dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        optimizer: torch.optim.Optimizer,
        num_train: int,
        folder: str | Path | None = None,
    ) -> None:
        """Record from here on.

        Args:
            model: any module whose output for a row depends on that row only; called with x, or with its tensors.
            loss_fn: (outputs, target) -> loss, the one that training lowers; it is asked for one example at a time.
            optimizer: torch.optim.SGD, Adam or AdamW, before its first step or after: what older gradients still
                move stays unattributed.
            num_train: N.
            folder: where steps are written, one file each; None keeps them in memory.

        Raises:
            ValueError: another optimizer, or a folder that holds steps already.
        """
        super().__init__(model, loss_fn, optimizer, num_train)
        self._store = StepStore(folder)
        self._moments: list[list[_Moment]] = []
        self._batches: list[dict[str, Tensor]] = []
        self._pending: list[_Moment] = []
        self._last = flat_parameters(self.model)

    def __len__(self) -> int:
        """Steps recorded."""
        return len(self._store)

    def explain(
        self, x: Inputs, target: Any = None, nodes: int = 4, tolerance: float | None = None, kernel: bool = False
    ) -> PathAttribution:
        """Walk the path backwards and account for what it did to some rows, eqs. (1) to (5).

        Args:
            x: (m, ...) inputs, or a tuple of them.
            target: (m, ...) targets of these rows: then their losses are explained, else the outputs.
            nodes: Q of the quadrature in every step; 0 is the first-order sum.
            tolerance: nodes are doubled, up to 32, until each step explains the change of every number that well.
            kernel: keep Domingos' path kernel too, which takes the Jacobians of the examples (without dropout).

        Returns:
            The account from the first recorded step to the last.

        Raises:
            ValueError: nothing to explain, or a setting out of range.
        """
        check_explained(x, target, nodes, tolerance)
        loss_fn = None if target is None else self.loss_fn
        first = self._at(self._store[0]["before"]) if len(self._store) else self._last
        before, after = (predictions(self.model, p, x, target, loss_fn) for p in (first, self._last))
        found = PathAttribution(
            torch.zeros(*before.shape, self.num_train, dtype=exact_dtype(before), device=before.device),
            torch.zeros_like(before),
            before,
            after,
            torch.zeros_like(before),
        )
        kernels: list[Tensor] = []
        for part, some, wanted in pieces_of(x, target, before.shape[1], len(self._last)):
            sums = found.contributions[part], found.decay[part], found.moved[part]
            with outside_autocast(before):
                kernels += self._walk(some, wanted, loss_fn, nodes, tolerance, kernel, sums)
        if not kernels:
            return found
        shape, size = torch.cat(kernels[::2]), torch.cat(kernels[1::2])
        return PathAttribution(found.contributions, found.decay, before, after, found.moved, shape, size)

    def _walk(
        self,
        x: Inputs,
        target: Any,
        loss_fn: LossFn | None,
        nodes: int,
        tolerance: float | None,
        kernel: bool,
        sums: tuple[Tensor, Tensor, Tensor],
    ) -> list[Tensor]:
        """One walk for some rows; adds to the sums in place and returns the kernel and its size, if wanted."""
        contributions, decay, moved = sums
        after, carry = self._last, torch.zeros_like(self._last)
        v = torch.zeros_like(self._last)
        kernels: list[Tensor] = []
        for step in reversed(range(len(self._store))):
            record = {name: self._at(t) for name, t in self._store[step].items()}
            before, rule = record["before"], Rule(record["table"], record.get("precondition"))
            column = {name: rule.column(name, self._sizes) for name in ("gain", "carry", "share", "direct", "scale")}
            coupled, decoupled = (rule.column(name, self._sizes) for name in ("coupled", "decoupled"))
            mean = step_jacobian(self.model, before, after, x, target, loss_fn, nodes, tolerance)  # (m, c, P)
            moved += mean @ (after - before)  # eq. (1)
            v = column["gain"] * mean + carry * v  # eq. (2)
            u = column["direct"] * mean + column["share"] * v  # eq. (3)
            decay -= (u * coupled + mean * decoupled) @ before  # eq. (5)
            u = u * column["scale"]
            for number, moment in enumerate(self._moments[step]):
                batch = {name.partition(".")[2]: t for name, t in record.items() if name.startswith(f"{number}.")}
                rows_of, wanted = _joined(batch, "x"), _joined(batch, "target")
                index, weight = batch["index"], batch["weight"]
                with self._replayed(moment):
                    _, gradients = example_gradients(self.model, self.loss_fn, rows_of, wanted, weight, before)
                contributions.index_add_(2, index, -(u @ gradients.T).to(moved.dtype))  # eq. (4)
                if kernel:
                    _add_kernel(kernels, u, jacobian(self.model, before, rows_of, None, None), index, weight, sums)
            carry, after = column["carry"], before
        return kernels

    def _before_batch(self) -> _Moment:
        modes = tuple(module.training for module in self.model.modules())
        kind = self._last.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        random = torch.cuda.get_rng_state(self._last.device) if kind == "cuda" else torch.get_rng_state()
        return _Moment(modes, autocast, random)

    @contextmanager
    def _replayed(self, moment: _Moment) -> Iterator[None]:
        """The state in which a batch was differentiated; afterwards the one of now."""
        kind = self._last.device.type
        devices = [self._last.device] if kind == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))  # puts the modes back
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(torch.autocast(kind, enabled=moment.autocast[0], dtype=moment.autocast[1]))
            for module, training in zip(self.model.modules(), moment.modes, strict=True):
                module.training = training
            if kind == "cuda":
                torch.cuda.set_rng_state(moment.random, self._last.device)
            else:
                torch.set_rng_state(moment.random)
            yield

    def _keep_batch(
        self, x: Inputs, target: Any, index: Tensor, weight: Tensor, gradients: Tensor, replay: Any
    ) -> None:
        self._batches.append({**_parted(x, "x"), **_parted(target, "target"), "index": index, "weight": weight})
        self._pending.append(replay)

    def _account(self, before: Tensor, after: Tensor, rule: Rule) -> None:
        tensors = {"before": before, "table": rule.table}
        if rule.precondition is not None:
            tensors["precondition"] = rule.precondition
        for number, batch in enumerate(self._batches):
            tensors |= {f"{number}.{name}": t for name, t in batch.items()}
        self._store.append(tensors)
        self._moments.append(self._pending)
        self._batches, self._pending, self._last = [], [], after

    def _at(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._last.device)


def _parted(value: Any, name: str) -> dict[str, Tensor]:
    """A tensor, or a tuple of them, under names of their own."""
    return {f"{name}.{i}": t for i, t in enumerate(value)} if isinstance(value, tuple) else {name: value}


def _joined(batch: dict[str, Tensor], name: str) -> Any:
    """What `_parted` has parted."""
    if name in batch:
        return batch[name]
    return tuple(batch[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in batch)))


def _add_kernel(
    kernels: list[Tensor], u: Tensor, examples: Tensor, index: Tensor, weight: Tensor, sums: tuple[Tensor, ...]
) -> None:
    """Add what one batch gives to the kernel (m, c, N, c) and to the sum of its absolute values."""
    contributions = sums[0]
    part = torch.einsum("mcp,bdp->mcbd", u, examples * weight[:, None, None]).to(contributions.dtype)
    if not kernels:
        kernels += [contributions.new_zeros(*contributions.shape, examples.shape[1]) for _ in range(2)]
    kernels[0].index_add_(2, index, part)
    kernels[1].index_add_(2, index, part.abs())
