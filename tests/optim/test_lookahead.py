"""Lookahead: against the recursion by hand, its ends, resuming, messages."""

import pytest
import torch
from torch import nn

from danlu.optim import Lookahead


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def feed(p, optimizer, steps):
    for step in steps:
        p.grad = draw(*p.shape, seed=10 + step)
        optimizer.step()


@pytest.mark.parametrize(("compat", "due"), [(None, (2, 5, 8)), ("bert4keras", (0, 3, 6, 9))])
def test_equals_the_recursion(compat, due):
    p = nn.Parameter(draw(4))
    optimizer = torch.optim.SGD([p], 0.1)
    Lookahead(optimizer, 3, 0.3, compat)
    x, slow = draw(4), draw(4) if compat is None else torch.zeros(4, dtype=torch.float64)
    for step in range(10):
        feed(p, optimizer, [step])
        x = x - 0.1 * draw(4, seed=10 + step)
        if step in due:
            slow = slow + 0.3 * (x - slow)
            x = slow
        torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=1e-13)


def test_steps_of_one_scale_the_rate():
    p, q = nn.Parameter(draw(4)), nn.Parameter(draw(4))
    one, two = torch.optim.SGD([p], 0.1), torch.optim.SGD([q], 0.03)
    Lookahead(one, 1, 0.3)
    feed(p, one, range(5))
    feed(q, two, range(5))
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_a_resumed_run_repeats_and_remove_stops():
    def fresh(value):
        p = nn.Parameter(value.clone())
        optimizer = torch.optim.SGD([p], 0.1)
        return p, optimizer, Lookahead(optimizer, 3, 0.3)

    p, optimizer, lookahead = fresh(draw(4))
    feed(p, optimizer, range(9))
    half, first, follower = fresh(draw(4))
    feed(half, first, range(4))
    other, second, loaded = fresh(half.detach())
    loaded.load_state_dict(follower.state_dict())
    feed(other, second, range(4, 9))
    assert torch.equal(p, other)
    lookahead.remove()
    before = p.detach().clone()
    feed(p, optimizer, [1])
    torch.testing.assert_close(p.detach(), before - 0.1 * draw(4, seed=11))
    assert lookahead.count == 9


def test_slow_weights_of_bfloat16_are_float32():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([p], 2.0**-7)
    lookahead = Lookahead(optimizer, 1, 2.0**-4)
    for _ in range(64):  # each slow step is below the weights' resolution
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert all(value.dtype == torch.float32 for name, value in lookahead.state_dict().items() if name != "count")
    assert p[0].item() < 1


def test_messages():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], 0.1)
    with pytest.raises(ValueError, match=r"steps >= 1 and alpha in \(0, 1\], got 0 and 0.5"):
        Lookahead(optimizer, 0)
    with pytest.raises(ValueError, match="compat must be None or 'bert4keras', got 'tf'"):
        Lookahead(optimizer, compat="tf")
    lookahead = Lookahead(optimizer)
    with pytest.raises(ValueError, match=r"has 1 weights, the state does not fit: \['slow.0', 'slow.1'\]"):
        lookahead.load_state_dict({"slow.0": torch.ones(3), "slow.1": torch.ones(1), "count": torch.tensor(1)})
    assert torch.equal(lookahead.state_dict()["slow.0"], torch.ones(2))
