"""FGM in two processes under DistributedDataParallel: with an all-reduced attack gradient it equals one process."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from danlu.train import fgm_backward, fgm_output_backward

IDS, LABEL = torch.tensor([[1, 2], [3, 1], [5, 5], [2, 4]]), torch.tensor([0, 1, 1, 0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.linear = nn.Embedding(6, 3, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.embed(ids)).mean(1))


def attack(form: str, net: Net, model: nn.Module, rows: slice, reduce=None) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    def loss_fn() -> Tensor:
        return F.cross_entropy(model(IDS[rows]), LABEL[rows])

    for _ in range(2):  # the second step would meet what the first left behind
        net.zero_grad()
        if form == "weight":
            fgm_backward(loss_fn, net.embed.weight, reduce=reduce)
        else:
            fgm_output_backward(loss_fn, net.embed)
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def reduce(g: Tensor) -> Tensor:
        dist.all_reduce(g)
        return g

    for form in ("weight", "output"):
        net = Net()
        grads = attack(form, net, DistributedDataParallel(net), slice(2 * rank, 2 * rank + 2), reduce)
        torch.save(grads, f"{folder}/{form}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(process, args=(port, str(tmp_path)), nprocs=2)
    for form in ("weight", "output"):
        net = Net()
        expected = attack(form, net, net, slice(0, 4))
        for rank in range(2):
            got = torch.load(tmp_path / f"{form}-{rank}.pt")
            assert got.keys() == expected.keys()
            for name in got:
                torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-12)
