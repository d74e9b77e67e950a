"""The one loop: batches of like length, tricks through functions of the lower floors, exact resume.

The loss of a step is a sum over the step's kept items divided by their number in the whole batch, whatever the number
of processes; gradients of one process and of many are therefore the same.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from danlu.data.batching import bucketed_batches
from danlu.data.errors import WorkError
from danlu.optim import EMA, piecewise_linear
from danlu.tasks.backward import Backward
from danlu.tasks.objective import Objective
from danlu.tasks.optimizers import build_optimizers
from danlu.tasks.settings import LoopSettings
from danlu.tasks.state import FitResult, TrainingState
from danlu.tasks.tricks import Plan

__all__ = ["TrainingSet", "fit"]


class TrainingSet(Protocol):
    """What the loop needs of a task's training data."""

    lengths: Sequence[int]

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Padded tensors of some items."""
        ...

    def weight(self, indices: Sequence[int]) -> float:
        """What the loss of a batch is divided by (tokens, or sequences)."""
        ...


def fit(
    model: nn.Module,
    training: TrainingSet,
    settings: LoopSettings,
    plan: Plan,
    accelerator: Accelerator,
    seed: int,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    metric: str = "f1",
    state: Path | None = None,
    resume: bool = False,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> FitResult:
    """Train `model` in place and leave the kept weights in it.

    Args:
        model: maps a batch (and `objective`) to the sum of its losses; may have `attack_weights()` and
            `sparse_parameters()`.
        training: lengths, collate and weight of the training items.
        settings: numbers of the loop.
        plan: what the switched-on tricks ask for.
        accelerator: device, precision and processes.
        seed: of the order of the data and of dropout.
        evaluate: scores of the model as it stands, without gradient; None trains without looking.
        metric: the score that selects.
        state: folder for the training state; None keeps none.
        resume: go on from the newest complete state, if there is one.
        on_event: is told of every step and evaluation.

    Returns:
        Steps, best score, seconds and the log.

    Raises:
        WorkError: the loss is not finite.
    """
    torch.manual_seed(seed + 7919 * accelerator.process_index)
    model.to(accelerator.device)
    batches_an_epoch = len(bucketed_batches(training.lengths, settings.batch_size, seed, 0))
    epochs = settings.epochs or min(max(2_000 / batches_an_epoch, 2.0), 30.0)
    total = max(1, math.ceil(epochs * batches_an_epoch))
    optimizers = build_optimizers(model, settings, plan)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    schedule = piecewise_linear({0: 0.0, max(1, round(settings.warmup * total)): 1.0, total + 1: 0.0})
    attack_weights = model.attack_weights() if plan.attack else []  # type: ignore[operator]
    backward = Backward(plan, model, attack_weights, accelerator)
    dense = [p for group in optimizers[0].param_groups for p in group["params"]]
    average = EMA(model, decay=plan.ema, warmup=True) if plan.ema else None
    wrapped, *prepared = accelerator.prepare(model, *optimizers)
    stored = TrainingState(model, prepared, average, accelerator)
    result = FitResult()
    position = stored.load(state, result) if resume and state is not None else 0
    if position:
        on_event({"event": "phase", "text": f"going on from step {position:,} of {total:,}"})
    every = max(1, round(total / settings.evaluations)) if settings.evaluations else batches_an_epoch
    started, before, waited = time.perf_counter(), result.seconds, 0.0
    loss_sum, loss_steps, without_gain = (
        torch.zeros((), device=accelerator.device),
        0,
        result.evaluations_without_gain(),
    )

    model.train()
    for step, indices in _steps(training.lengths, settings.batch_size, seed, total, position):
        for optimizer, base in zip(prepared, rates, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * schedule(step + 1)
        mine = indices[accelerator.process_index :: accelerator.num_processes]
        batch = {k: v.to(accelerator.device) for k, v in training.collate(mine or indices[:1]).items()}
        scale = (
            accelerator.num_processes / training.weight(indices) if mine else 0.0
        )  # the mean over processes undoes it
        objective = _objective(plan, step, total, seed)

        def loss_fn(
            forward: nn.Module = wrapped,
            batch: dict[str, Tensor] = batch,
            scale: float = scale,
            objective: Objective | None = objective,
        ) -> Tensor:
            with accelerator.autocast():
                return forward(batch, objective) * scale

        for optimizer in prepared:
            optimizer.zero_grad(set_to_none=True)
        loss = backward(loss_fn, batch, seed * 1_000_003 + step)
        if settings.clip:
            accelerator.clip_grad_norm_(dense, settings.clip)
        for optimizer in prepared:
            optimizer.step()
        if average is not None:
            average.update()
        loss_sum, loss_steps = loss_sum + loss.detach(), loss_steps + 1
        result.steps = step + 1
        on_event({"event": "step", "step": step + 1, "total": total})

        saving = state is not None and (step + 1) % settings.save_every == 0 and step + 1 < total
        if (step + 1) % 20 == 0 or step + 1 == total or saving:
            mean = float(accelerator.reduce(loss_sum, "mean")) / loss_steps
            if not math.isfinite(mean):
                raise WorkError(
                    f"the loss became {mean} between steps {step + 2 - loss_steps} and {step + 1}; "
                    f"lower the rate with --set lr={settings.lr / 3:.1g}"
                    " or train in --precision fp32 (results of earlier runs are untouched)"
                )
            result.seconds = before + time.perf_counter() - started - waited
            result.log.append(
                {
                    "step": step + 1,
                    "epoch": (step + 1) / batches_an_epoch,
                    "loss": mean,
                    "lr": settings.lr * schedule(step + 1),
                    "seconds": round(result.seconds, 3),
                }
            )
            on_event({"event": "loss", **result.log[-1]})
            loss_sum, loss_steps = torch.zeros_like(loss_sum), 0
        if evaluate is not None and ((step + 1) % every == 0 or step + 1 == total):
            pause = time.perf_counter()
            with stored.averaged():
                model.eval()
                scores = dict(evaluate())
                model.train()
                if scores[metric] > result.best:
                    result.best, result.best_step, without_gain = scores[metric], step + 1, 0
                    if settings.select == "best":
                        stored.keep()
                else:
                    without_gain += 1
            waited += time.perf_counter() - pause
            result.log.append({"step": step + 1, "epoch": (step + 1) / batches_an_epoch, "dev": scores})
            on_event({"event": "dev", **result.log[-1]})
            if settings.patience and without_gain >= settings.patience:
                on_event({"event": "stop", "step": step + 1, "best": result.best, "best_step": result.best_step})
                break
        if saving and state is not None:
            result.seconds = before + time.perf_counter() - started - waited
            stored.save(state, result)
    result.seconds = before + time.perf_counter() - started - waited
    stored.restore()
    model.eval()
    return result


def _objective(plan: Plan, step: int, total: int, seed: int) -> Objective | None:
    """What this step trains on instead of the task's own loss."""
    if plan.metric_loss and step >= plan.metric_loss_from * total:
        return Objective(plan.metric_loss)
    return None if plan.objective is None else Objective(*plan.objective, seed * 1_000_003 + step)


def _steps(
    lengths: Sequence[int], batch_size: int, seed: int, total: int, position: int
) -> Iterator[tuple[int, list[int]]]:
    """(step, indices of its global batch) from `position` to `total`, the same whatever the number of processes."""
    step, epoch = 0, 0
    while step < total:
        for indices in bucketed_batches(lengths, batch_size, seed, epoch):
            if step >= total:
                return
            if step >= position:
                yield step, indices
            step += 1
        epoch += 1
