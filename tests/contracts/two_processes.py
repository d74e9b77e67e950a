"""Two processes of `torch.distributed` on one machine, for what must be the same in both or equal to one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)` returns in each of two processes that can reach one another by gloo, one thread each.

    `work` is a function of a test file, which either process imports; it returns tensors, numbers and words, in lists,
    tuples and dicts.
    """
    mp.spawn(_one, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _one(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
