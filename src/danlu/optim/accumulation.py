r"""Gradient accumulation that equals the big batch: small batches count by what their losses are means of.

    g = sum_i n_i g_i / sum_i n_i                                                                            (1)

g_i is the gradient of the mean loss of small batch i, n_i what that mean is over: examples, or the tokens that the mask
keeps. Then g is the gradient of the mean over everything in the big batch, to rounding. The usual loss / k gives each
small batch the same say: right only for equal n_i, wrong for masked losses (and for the last, shorter batch of an
epoch). With several processes whose gradients are averaged (DDP, W of them),

    g = W sum_i n_i g_i / sum over processes and i of n_i                                                    (2)

where n_i g_i is averaged over the processes by DDP as it is: `distributed=True`, and the loss is multiplied by its n.

Layers that look across the batch (batch norm, in-batch negatives) still see small batches; noise is drawn per batch.
bert4keras does something else: the mean gathered in the k batches *before* is applied at batches 0, k, 2k, ... (so a
step without any gradient comes first), and Adam's bias correction and schedules count small batches. That is
`compat="bert4keras"`, for parity alone.

Source: the identity (1); bojone/bert4keras, optimizers.py, extend_with_gradient_accumulation.
Shapes: of the parameters.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from danlu.math.precision import wide_dtype

__all__ = ["GradientAccumulation"]


class GradientAccumulation:
    r"""Any optimizer, stepping once for every `steps` small batches on their joint gradient, eq. (1).

        accumulation = GradientAccumulation(optimizer, steps=4)
        for batch in batches:
            accumulation.zero_grad()
            loss, n = masked_mean_loss(model, batch), batch.mask.sum()
            loss.backward()
            if accumulation.step(n):        # True after every fourth
                scheduler.step()            # a scheduler of the optimizer within
        accumulation.flush()                # the rest of an epoch

    The loop is that without accumulation; it costs a second copy of the gradients. With fp16 give the scaled loss's
    gradients unscaled: scaler.unscale_(optimizer) before step().
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps: int,
        *,
        max_norm: float | None = None,
        distributed: bool = False,
        compat: str | None = None,
    ) -> None:
        """Wrap an optimizer.

        Args:
            optimizer: any torch optimizer; schedulers and EMA go to it, not to this wrapper.
            steps: small batches in a big one, >= 1.
            max_norm: clip the joint gradient to this norm, > 0; clipping the small ones would be another thing.
            distributed: the n of all processes are added up, eq. (2); every process makes the same number of steps,
                and calls (loss * n).backward().
            compat: "bert4keras" for its stale steps.

        Raises:
            ValueError: steps or max_norm out of range, an unknown compat, distributed without processes.
        """
        if steps < 1 or (max_norm is not None and not max_norm > 0):
            raise ValueError(f"accumulation needs steps >= 1 and max_norm > 0 or None, got {steps} and {max_norm}")
        if compat not in (None, "bert4keras"):
            raise ValueError(f"compat must be None or 'bert4keras', got {compat!r}")
        if distributed and not torch.distributed.is_initialized():
            raise ValueError(
                "distributed=True needs torch.distributed.init_process_group first; leave it for one process"
            )
        self.optimizer, self.steps, self.max_norm = optimizer, steps, max_norm
        self.distributed, self.compat = distributed, compat
        self.count = 0  # small batches since the last step; under compat since the beginning
        self.weight: Tensor | float = 0.0  # sum of n
        self.sums: dict[int, Tensor] = {}  # number of the parameter -> sum of n g

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the small batch's gradients; what was gathered stays.

        Args:
            set_to_none: as torch's.
        """
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, weight: float | Tensor = 1.0) -> bool:
        """Take in the gradients of one small batch; on the last of a big batch step the optimizer.

        Args:
            weight: n of eq. (1), what the batch's mean loss is over (tokens, examples), >= 0; for 0 there is nothing to
                learn from, and gradients of 0 / 0 are left out.

        Returns:
            Whether the optimizer made a step.

        Raises:
            ValueError: a weight below 0.

        >>> x = torch.nn.Parameter(torch.zeros(1))
        >>> accumulation = GradientAccumulation(torch.optim.SGD([x], lr=1.0), steps=2)
        >>> for g, n in ((1.0, 3), (5.0, 1)):
        ...     x.grad = torch.tensor([g])
        ...     print(accumulation.step(n))
        False
        True
        >>> x.data  # (3 * 1 + 1 * 5) / 4
        tensor([-2.])
        """
        if not float(weight) >= 0:
            raise ValueError(f"the weight of a batch must be >= 0, got {float(weight)}; give the number of its tokens")
        if self.compat == "bert4keras":
            return self._stale_step()
        if self.distributed or float(weight) > 0:
            self._gather(1.0 if self.distributed else weight)  # under eq. (2) the gradients hold their n
        self.weight = self.weight + weight
        self.count += 1
        return self.count >= self.steps and self.flush()

    @torch.no_grad()
    def flush(self) -> bool:
        """Step on what has been gathered, if anything: at the end of an epoch whose batches are no multiple of `steps`.

        Returns:
            Whether the optimizer made a step.
        """
        if self.compat is not None:
            return False
        total = self._total()
        if not total > 0:
            self._forget()
            return False
        for number, p in self._parameters():
            p.grad = (self.sums[number] / total).to(p.dtype) if number in self.sums else None  # eqs. (1), (2)
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_([p for _, p in self._parameters()], self.max_norm)
        self.optimizer.step()
        self._forget()
        return True

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and what has been gathered."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "count": self.count,
            "weight": float(self.weight),
            "sums": {number: s.clone() for number, s in self.sums.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()`, also in the middle of a big batch.

        Args:
            state: what `state_dict()` returned.

        Raises:
            ValueError: it is another thing, as the state of a bare optimizer.
        """
        missing = {"optimizer", "count", "weight", "sums"} - state.keys()
        if missing:
            raise ValueError(
                f"this is no state of GradientAccumulation, {sorted(missing)} missing; a bare optimizer's goes into "
                "accumulation.optimizer.load_state_dict"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.count, self.weight = int(state["count"]), float(state["weight"])
        known = dict(self._parameters())
        self.sums = {int(i): s.to(known[int(i)].device, copy=True) for i, s in state["sums"].items()}

    def _parameters(self) -> Iterator[tuple[int, Tensor]]:
        return enumerate(p for group in self.optimizer.param_groups for p in group["params"])

    def _gather(self, weight: float | Tensor) -> None:
        """Add n g, in float32 or better."""
        for number, p in self._parameters():
            if p.grad is None:
                continue
            wide = wide_dtype(p)
            if number in self.sums:
                self.sums[number] = self.sums[number] + p.grad.to(wide) * weight  # sparse ones too
            else:
                self.sums[number] = p.grad.to(wide) * weight

    def _total(self) -> float:
        """The sum of n; with several processes its mean over them, which undoes DDP's mean of the gradients."""
        if not self.distributed:
            return float(self.weight)
        total = torch.as_tensor(self.weight, dtype=torch.float64).clone()
        device = next(p.device for _, p in self._parameters())
        total = total.to(device)
        torch.distributed.all_reduce(total)
        return float(total) / torch.distributed.get_world_size()  # eq. (2)

    def _forget(self) -> None:
        self.count, self.weight, self.sums = 0, 0.0, {}

    def _stale_step(self) -> bool:
        """At batches 0, k, 2k, ... the mean of the k before; then this batch begins the next sum."""
        due = self.count % self.steps == 0
        if due:
            fresh = {number: p.grad for number, p in self._parameters()}
            for number, p in self._parameters():
                if p.grad is None:
                    continue
                p.grad = (self.sums[number] / self.steps).to(p.dtype) if number in self.sums else torch.zeros_like(p)
                if self.count and "step" in self.optimizer.state[p]:
                    self.optimizer.state[p]["step"] += self.steps - 1  # bias correction counts small batches
            self.optimizer.step()
            for number, p in self._parameters():
                p.grad = fresh[number]
            self.sums = {}
        self._gather(1.0)
        self.count += 1
        return due
