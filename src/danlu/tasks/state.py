"""The state of a training run: stored whole, found again bit for bit.

One folder a state: weights, averaged weights, best weights, optimizers and random streams as safetensors, the rest as
JSON. It is written under a temporary name and renamed; the older one goes when the new one is complete.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.optim import EMA
from danlu.optim.state_tensors import flat_state, nested_state
from danlu.tasks.folder import read_json, read_tensors, write_json, write_tensors

__all__ = ["FitResult", "TrainingState"]


@dataclass
class FitResult:
    """What training came to so far."""

    steps: int = 0
    best: float = -math.inf
    best_step: int = 0
    seconds: float = 0.0
    earlier: float = 0.0  # of `seconds`, those before the last resume
    log: list[dict[str, Any]] = field(default_factory=list)

    def evaluations_without_gain(self) -> int:
        """Evaluations since the best one; what `patience` counts."""
        return sum("dev" in record and record["step"] > self.best_step for record in self.log)


class TrainingState:
    """Everything that changes while training: model, averaged and best weights, optimizers, random streams."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Any], average: EMA | None, accelerator: Accelerator
    ) -> None:
        self.model, self.optimizers, self.average, self.accelerator = model, optimizers, average, accelerator
        self.best: dict[str, Tensor] = {}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the model holds the averaged weights, if there are any."""
        with ExitStack() as stack:
            if self.average is not None:
                stack.enter_context(self.average.swap())
            yield

    def keep(self) -> None:
        """Remember the weights as they stand (the averaged ones inside `averaged`)."""
        self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def restore(self) -> None:
        """Put the kept weights into the model; without any, the last (averaged) ones."""
        if not self.best:
            with self.averaged():
                self.keep()
        self.model.load_state_dict(self.best)

    def save(self, folder: Path, result: FitResult) -> None:
        """Write folder/step-N; every process calls it, the main one writes."""
        random = self._random_streams()
        if self.accelerator.is_main_process:
            target, temporary = folder / f"step-{result.steps:09d}", folder / "writing"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_tensors(temporary / "model.safetensors", self.model.state_dict())
            write_tensors(temporary / "best.safetensors", self.best)
            if self.average is not None:
                write_tensors(temporary / "average.safetensors", flat_state(self.average.state_dict()))
            for number, optimizer in enumerate(self.optimizers):
                entries = flat_state(optimizer.state_dict()["state"])
                write_tensors(temporary / f"optimizer-{number}.safetensors", entries)
            write_tensors(temporary / "random.safetensors", random)
            progress = {
                "steps": result.steps,
                "best_step": result.best_step,
                "seconds": result.seconds,
                "log": result.log,
            }
            progress["best"] = None if math.isinf(result.best) else result.best
            write_json(temporary / "progress.json", progress)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            for old in folder.glob("step-*"):
                if old != target:
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path, result: FitResult) -> int:
        """Take up the newest state; returns the step to go on from, 0 when there is none."""
        found = sorted(folder.glob("step-*"))
        if not found:
            return 0
        newest = found[-1]
        progress = read_json(newest / "progress.json")
        try:
            self.model.load_state_dict(read_tensors(newest / "model.safetensors"))
            for number, optimizer in enumerate(self.optimizers):
                whole = optimizer.state_dict()
                entries = nested_state(read_tensors(newest / f"optimizer-{number}.safetensors"))
                whole["state"] = {int(parameter): values for parameter, values in entries.items()}
                optimizer.load_state_dict(whole)
            if self.average is not None:
                self.average.load_state_dict(nested_state(read_tensors(newest / "average.safetensors")))
            random = read_tensors(newest / "random.safetensors")
            torch.set_rng_state(random["cpu"][self.accelerator.process_index])
            if "cuda" in random and torch.cuda.is_available():
                torch.cuda.set_rng_state(random["cuda"][self.accelerator.process_index])
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{newest} does not fit this run ({reason}); start again with --overwrite") from None
        self.best = {k: v.to(self.accelerator.device) for k, v in read_tensors(newest / "best.safetensors").items()}
        result.earlier = progress["seconds"]
        result.steps, result.seconds, result.log = progress["steps"], progress["seconds"], progress["log"]
        result.best = -math.inf if progress["best"] is None else progress["best"]
        result.best_step = progress["best_step"]
        return int(result.steps)

    def _random_streams(self) -> dict[str, Tensor]:
        """State of the random streams of every process, one a row."""
        streams = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            streams["cuda"] = torch.cuda.get_rng_state()
        device = self.accelerator.device
        return {name: self.accelerator.gather(state[None].to(device)).cpu() for name, state in streams.items()}
