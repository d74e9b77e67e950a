"""FGM in two processes under DistributedDataParallel: with an all-reduced attack gradient it equals one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

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


def process(rank: int) -> dict[str, dict[str, Tensor]]:
    def reduce(g: Tensor) -> Tensor:
        dist.all_reduce(g)
        return g

    found = {}
    for form in ("weight", "output"):
        net = Net()
        found[form] = attack(form, net, DistributedDataParallel(net), slice(2 * rank, 2 * rank + 2), reduce)
    return found


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    found = in_two_processes(process, tmp_path)
    for form in ("weight", "output"):
        net = Net()
        expected = attack(form, net, net, slice(0, 4))
        for rank in range(2):
            got = found[rank][form]
            assert got.keys() == expected.keys()
            for name in got:
                torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-12)
