"""Tasks combined in two processes under DistributedDataParallel: with a mean over both they equal one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from danlu.losses import LossRatio
from danlu.train import multitask_backward

X = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FORMS = ("mgda", "normalized", "pcgrad", "primary", "ratio")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.heads = nn.Linear(5, 4).double(), nn.ModuleList(nn.Linear(4, 2).double() for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        z = torch.tanh(self.trunk(x))
        return [head(z) for head in self.heads]


def step(form: str, net: Net, model: nn.Module, rows: slice, reduce=None) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    generator, ratio = torch.Generator().manual_seed(1), LossRatio(3, momentum=0.5, reduce=reduce).double()
    for _ in range(2):  # the second step would meet what the first left behind
        net.zero_grad()
        outputs = model(X[rows])
        losses = [F.mse_loss(out, c * X[rows][:, i : i + 2]) for i, (c, out) in enumerate(zip((1, -9, 3), outputs))]  # noqa: B905
        if form == "ratio":
            ratio(losses).backward()
        else:
            multitask_backward(losses, net.trunk.parameters(), form, reduce=reduce, generator=generator)
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def process(rank: int) -> tuple[dict[str, dict[str, Tensor]], str]:
    def mean(g: Tensor) -> Tensor:
        dist.all_reduce(g)
        return g / 2

    found = {}
    for form in FORMS:
        net = Net()
        found[form] = step(form, net, DistributedDataParallel(net), slice(4 * rank, 4 * rank + 4), mean)
    net = Net()
    message = ""
    try:
        step("mgda", net, net, slice(0, 4))
    except ValueError as error:
        message = str(error)
    return found, message


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    found = in_two_processes(process, tmp_path)
    for form in FORMS:
        net = Net()
        expected = step(form, net, net, slice(0, 8))
        for rank in range(2):
            got = found[rank][0][form]
            assert got.keys() == expected.keys()
            for name in got:
                torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-11)
    for _, message in found:
        assert "2 processes would each combine their own gradients; give reduce=" in message
