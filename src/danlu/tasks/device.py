"""Where and how precisely to compute: device, precision and threads as the user asked, or as the machine offers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from danlu.data.errors import InputError

__all__ = ["accelerator", "choose", "inference", "machine"]


def choose(device: str = "auto", precision: str = "auto") -> tuple[str, str]:
    """Resolve "auto" and check that what was asked for is there.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
        precision: "auto", "fp32" or "bf16"; auto takes bf16 where it is multiplied natively.

    Returns:
        (device, precision) without "auto".

    Raises:
        InputError: the device is not present.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present[device]:
        there = ", ".join(name for name, yes in present.items() if yes)
        raise InputError(f"--device {device} is not available to this torch {torch.__version__}; there is {there}")
    if precision == "auto":
        native = (
            _amx() if device == "cpu" else device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        precision = "bf16" if native else "fp32"
    return device, precision


def accelerator(device: str, precision: str, threads: int | None = None) -> Accelerator:
    """An Accelerator for resolved settings; under `accelerate launch` it joins the other processes.

    Args:
        device: "cpu", "cuda" or "mps".
        precision: "fp32" or "bf16".
        threads: of this process; None keeps torch's number.

    Returns:
        The accelerator.
    """
    if threads:
        torch.set_num_threads(threads)
    mixed = "bf16" if precision == "bf16" else "no"
    AcceleratorState._reset_state()  # a process may train twice, in another precision; the process group stays
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed)


@contextmanager
def inference(device: str, precision: str) -> Iterator[None]:
    """No gradients, and the precision of the matrix products."""
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


def machine(device: str, precision: str) -> dict[str, Any]:
    """What a record says about where its numbers come from."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "device": name,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
    }


def _amx() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    import platform

    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, AMX" if _amx() else name
