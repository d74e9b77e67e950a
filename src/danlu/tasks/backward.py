"""One backward pass of the loop, plain or as an attack, a penalty or a virtual adversary asks; gradients end in .grad.

All of them move the table of token embeddings, or what it gives. The gradient penalty is that of the author's program,
one norm over all occurrences of a batch. The virtual adversary moves the table as the author's program does (xi 10,
one step, one norm over the matrix), because a transformer reads its batches without padding and an example's own share
of the embeddings' output is then not a row of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from danlu.data.errors import InputError
from danlu.tasks.tricks import Plan
from danlu.train import fgm_backward, noise_backward, penalized_loss, pgd_backward, vat_loss

__all__ = ["Backward"]
XI = 10.0  # length of the trial move of the virtual adversary
ALONE = ("gp", "vat")  # differentiate a gradient or call the model past DistributedDataParallel


@dataclass
class Backward:
    """The backward pass that a plan asks for.

    model: the model itself, not wrapped. weights: what attacks move, empty without one.
    """

    plan: Plan
    model: nn.Module
    weights: list[nn.Parameter]
    accelerator: Accelerator

    def __post_init__(self) -> None:
        """Refuse what several processes cannot do."""
        if self.plan.attack in ALONE and self.accelerator.num_processes > 1:
            raise InputError(f"trick {self.plan.attack} works in one process; start without accelerate launch")

    def __call__(self, loss_fn: Callable[[], Tensor], batch: dict[str, Tensor], seed: int) -> Tensor:
        """The loss, its gradients in .grad.

        Args:
            loss_fn: the mean loss of the batch.
            batch: what it is computed from.
            seed: of the noise, the same in every process.
        """
        plan, engine = self.plan, self.accelerator
        if plan.attack in (None, *ALONE):
            loss = self._loss(loss_fn, batch, seed)
            engine.backward(loss)
            return loss
        reduce = partial(engine.reduce, reduction="mean") if engine.num_processes > 1 else None
        if plan.attack == "noise":  # the same direction in every process
            generator = torch.Generator(engine.device).manual_seed(seed)
            return noise_backward(loss_fn, self.weights, epsilon=plan.epsilon, reduce=reduce, generator=generator)
        attack = fgm_backward if plan.attack == "fgm" else pgd_backward
        return attack(loss_fn, self.weights, epsilon=plan.epsilon, reduce=reduce)

    def _loss(self, loss_fn: Callable[[], Tensor], batch: dict[str, Tensor], seed: int) -> Tensor:
        if self.plan.attack == "gp":
            return penalized_loss(loss_fn, self._table(), epsilon=self.plan.epsilon)
        if self.plan.attack == "vat":
            return loss_fn() + self._virtual_adversary(batch, seed)
        return loss_fn()

    def _virtual_adversary(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """How far the predictions move with the table, in nats."""
        reader = LogitsOf(self.model)
        table = self.weights[0]
        name = next(name for name, weight in reader.named_parameters() if weight is table)

        def logits(delta: Tensor) -> Tensor:
            with self.accelerator.autocast():
                return functional_call(reader, {name: table + delta[0]}, (batch,))

        generator = torch.Generator(table.device).manual_seed(seed)
        return vat_loss(logits, table[None], epsilon=self.plan.epsilon, xi=XI, generator=generator)

    def _table(self) -> nn.Module:
        """The layer whose weight the attacks move."""
        return next(m for m in self.model.modules() if getattr(m, "weight", None) is self.weights[0])


class LogitsOf(nn.Module):
    """A model whose call gives its logits, for calls with other weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, K)."""
        return self.model.logits(batch)
