"""A training run stored whole and taken up bit for bit: modules, optimizers, averages and random streams in one file.

One safetensors file, written under a temporary name and renamed: kill -9 leaves the last complete one. Nothing is
pickled. Param groups are those of the program that resumes; learning rates in them are stored and put back.

Source: own definition.
Shapes: those of the states.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from danlu.data.atomic import write_whole
from danlu.optim.ema import EMA
from danlu.optim.state_tensors import flat_state, nested_state

__all__ = ["load_state", "save_state"]
FORMAT, VERSION = "danlu-training", 1


def save_state(
    path: str | Path,
    step: int,
    modules: Mapping[str, nn.Module | EMA],
    optimizers: Mapping[str, Optimizer] | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write everything that changes while training.

    Args:
        path: of the file; an earlier one is replaced when the new one is complete.
        step: how many steps were taken.
        modules: by name, those that train and the averages (`danlu.optim.EMA`) of their weights.
        optimizers: by name.
        generators: by name; the global stream of torch is stored as well.
        notes: anything JSON can hold, such as a log.

    Raises:
        OSError: the file cannot be written.
        ValueError: notes that JSON cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= flat_state(module.state_dict(), f"module/{name}/")
    groups: dict[str, list[dict[str, float]]] = {}
    for name, optimizer in (optimizers or {}).items():
        whole = optimizer.state_dict()
        tensors |= flat_state(whole["state"], f"optimizer/{name}/")
        groups[name] = [{k: v for k, v in g.items() if isinstance(v, int | float)} for g in whole["param_groups"]]
    tensors |= {f"random/{name}": generator.get_state() for name, generator in (generators or {}).items()}
    tensors["random"] = torch.get_rng_state()
    about = {"format": FORMAT, "version": str(VERSION), "step": str(step)}
    about |= {"names": json.dumps(_names(modules, optimizers, generators)), "groups": json.dumps(groups)}
    about["notes"] = json.dumps(dict(notes or {}), allow_nan=False)
    write_whole(path, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata=about))


def load_state(
    path: str | Path,
    modules: Mapping[str, nn.Module | EMA],
    optimizers: Mapping[str, Optimizer] | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Take up what `save_state` wrote, under the same names; the run goes on as if it had never stopped.

    Args:
        path: of the file.
        modules: by name, of the same architecture.
        optimizers: by name, over the same parameters in the same order.
        generators: by name.

    Returns:
        (step, notes); (0, {}) where there is no file.

    Raises:
        ValueError: a damaged or foreign file, or one of other modules; nothing was changed by a damaged one.
    """
    path = Path(path)
    if not path.exists():
        return 0, {}
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from None
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is no training state of danlu; give another file")
    if int(about["version"]) > VERSION:
        raise ValueError(f"{path} has version {about['version']}, this danlu reads {VERSION}; install a newer one")
    given, stored = _names(modules, optimizers, generators), json.loads(about["names"])
    if given != stored:
        raise ValueError(f"{path} holds {_told(stored)}; this run has {_told(given)}: another program wrote it")
    for name, module in modules.items():
        try:
            module.load_state_dict(nested_state(_below(tensors, f"module/{name}/")))
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} does not fit module {name}: {' '.join(str(error).split())}") from None
    groups = json.loads(about["groups"])
    for name, optimizer in (optimizers or {}).items():
        whole = optimizer.state_dict()
        entries = nested_state(_below(tensors, f"optimizer/{name}/"))
        whole["state"] = {int(parameter): values for parameter, values in entries.items()}
        whole["param_groups"] = [group | kept for group, kept in zip(whole["param_groups"], groups[name], strict=True)]
        optimizer.load_state_dict(whole)
    for name, generator in (generators or {}).items():
        generator.set_state(tensors[f"random/{name}"])
    torch.set_rng_state(tensors["random"])
    return int(about["step"]), json.loads(about["notes"])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _names(*kinds: Mapping[str, Any] | None) -> dict[str, list[str]]:
    return {kind: sorted(held or {}) for kind, held in zip(("modules", "optimizers", "generators"), kinds, strict=True)}


def _told(names: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{kind} {' '.join(held) or 'none'}" for kind, held in names.items())
