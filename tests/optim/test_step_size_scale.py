"""StepSizeScale: around SGD it is EGDD without gains; it resumes, lets go and says what is wrong."""

import pytest
import torch
from torch import Tensor, nn

from danlu.optim import EGDD, StepSizeScale

D = torch.float64


def gradients(steps: int, shapes: list[tuple[int, ...]]) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator, dtype=D) + 0.5 for shape in shapes] for _ in range(steps)]


def feed(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], series: list[list[Tensor]]) -> None:
    for grads in series:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()


def zeros(shapes: list[tuple[int, ...]], dtype: torch.dtype = D) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def test_the_wrapper_around_sgd_is_egdd_without_gains():
    shapes = [(3,), (2, 2)]
    series = gradients(10, shapes)
    ours, theirs = zeros(shapes), zeros(shapes)
    sgd = torch.optim.SGD(ours, 0.1, momentum=0.9)
    scale = StepSizeScale(sgd, scale_lr=0.2)
    feed(sgd, ours, series)
    egdd = EGDD(theirs, 0.1, gain_lr=0, scale_lr=0.2)
    feed(egdd, theirs, series)
    assert float(scale.scale) == pytest.approx(float(egdd.state[theirs[0]]["scale"]), rel=1e-6)
    assert float(scale.scale) > 1.2
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # the factor is kept in float32


def test_the_wrapper_resumes_and_lets_go():
    series = gradients(8, [(3,)])
    (x,), (y,) = zeros([(3,)]), zeros([(3,)])
    a, b = torch.optim.Adam([x], 0.1), torch.optim.Adam([y], 0.1)
    whole, first = StepSizeScale(a, 0.1), StepSizeScale(b, 0.1)
    feed(a, [x], series)
    feed(b, [y], series[:4])
    (z,) = zeros([(3,)])
    z.data.copy_(y)
    c = torch.optim.Adam([z], 0.1)
    c.load_state_dict(b.state_dict())
    second = StepSizeScale(c, 0.1)
    second.load_state_dict(first.state_dict())
    feed(c, [z], series[4:])
    assert torch.equal(x, z) and torch.equal(whole.scale, second.scale)
    second.remove()
    before = second.scale.clone()
    feed(c, [z], series[:1])
    assert torch.equal(second.scale, before)
    with pytest.raises(ValueError, match=r"direction\.0.*no weight of their shape"):
        StepSizeScale(torch.optim.SGD(zeros([(2,)]), 0.1)).load_state_dict(first.state_dict())


def test_messages_of_the_wrapper():
    sgd = torch.optim.SGD(zeros([(2,)]), 0.1)
    with pytest.raises(ValueError, match=r"scale_lr >= 0, got -1"):
        StepSizeScale(sgd, -1)
    with pytest.raises(ValueError, match=r"low <= 1 <= high.*got \(2, 3\)"):
        StepSizeScale(sgd, bounds=(2, 3))
