"""Lion and Tiger: against Python floats, each other, the mean gradient of a big batch; NaN, names, state, messages."""

import math

import pytest
import torch
from torch import nn

from danlu.optim import Lion, Tiger


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sign(v):
    return (v > 0) - (v < 0)


def test_lion_by_hand():
    p = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = Lion([p], 0.1, (0.7, 0.9), 0.5)
    x, m = [2.0, -1.0], [0.0, 0.0]
    for grad in ((1.0, -2.0), (-0.5, 0.1), (0.01, 3.0), (-1.0, 0.0)):
        u = [sign(0.7 * a + 0.3 * g) for a, g in zip(m, grad, strict=True)]
        x = [a - 0.1 * (b + 0.5 * a) for a, b in zip(x, u, strict=True)]
        m = [0.9 * a + 0.1 * g for a, g in zip(m, grad, strict=True)]
        p.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        assert p.tolist() == pytest.approx(x, rel=1e-12)


def test_tiger_by_hand():
    w, b = nn.Parameter(draw(2, 2)), nn.Parameter(draw(2, seed=1))
    optimizer = Tiger([w, b], 0.1, 0.6, 0.3)
    x, y, m, k = draw(2, 2).flatten().tolist(), draw(2, seed=1).tolist(), [0.0] * 4, [0.0] * 2
    for step in range(4):
        g, h = draw(2, 2, seed=20 + step), draw(2, seed=30 + step)
        m = [0.6 * a + 0.4 * c for a, c in zip(m, g.flatten().tolist(), strict=True)]
        k = [0.6 * a + 0.4 * c for a, c in zip(k, h.tolist(), strict=True)]
        rms = math.sqrt(sum(a * a for a in x) / 4)
        x = [a - 0.1 * rms * (sign(c) + 0.3 * a) for a, c in zip(x, m, strict=True)]
        y = [a - 0.05 * sign(c) for a, c in zip(y, k, strict=True)]  # half the rate, no decay
        w.grad, b.grad = g, h
        optimizer.step()
        assert w.flatten().tolist() == pytest.approx(x, rel=1e-12)
        assert b.tolist() == pytest.approx(y, rel=1e-12)


def test_tiger_on_vectors_is_lion_with_one_beta():
    p, q = nn.Parameter(draw(7)), nn.Parameter(draw(7))
    tiger, lion = Tiger([p], 0.2, 0.9), Lion([q], 0.1, (0.9, 0.9))
    for step in range(6):
        p.grad = q.grad = draw(7, seed=step + 1)
        tiger.step()
        lion.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("k", [2, 3])
def test_tiger_gathers_batches_in_its_momentum(k):
    """k small batches end where one step on their mean ends, and in between nothing moves."""
    small, big = [nn.Parameter(draw(3, 4)), nn.Parameter(draw(4))], [nn.Parameter(draw(3, 4)), nn.Parameter(draw(4))]
    one, two = Tiger(small, 0.1, accumulate=k), Tiger(big, 0.1)
    for step in range(4):
        before = [p.detach().clone() for p in small]
        for i in range(k):
            assert all(torch.equal(a, p) for a, p in zip(before, small, strict=True))
            for j, p in enumerate(small):
                p.grad = draw(*p.shape, seed=100 * step + 10 * i + j)
            one.step()
        for j, p in enumerate(big):
            p.grad = sum(draw(*p.shape, seed=100 * step + 10 * i + j) for i in range(k)) / k
        two.step()
        for p, q in zip(small, big, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(one.state[p]["exp_avg"], two.state[q]["exp_avg"])  # its sign hides a factor
    assert sum(len(s) for s in one.state.values()) == 4  # a count and a momentum each, nothing gathered beside


def test_embeddings_are_scaled_row_by_row():
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 4), "out": nn.Linear(4, 3, bias=False)}).double()
    start = torch.tensor([[1.0], [2.0], [5.0]], dtype=torch.float64).expand(3, 4)
    for p in model.parameters():
        p.data.copy_(start if p.shape == start.shape else start.T)
        p.grad = torch.ones_like(p)
    Tiger(model.named_parameters(), 0.1, weight_decay=0.0).step()
    torch.testing.assert_close(model["embedding"].weight.detach(), 0.9 * start)
    torch.testing.assert_close(model["out"].weight.detach(), start - 0.1 * 10**0.5)  # RMS of 1, 2, 5


def test_a_nan_is_skipped_and_shrinks_towards_the_start():
    model = nn.ModuleDict({"linear": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    optimizer = Tiger(model.named_parameters(), 0.1, shrink=0.5)
    for p in model.parameters():
        nn.init.constant_(p, 3.0)
        p.grad = torch.ones_like(p)
        p.grad.view(-1)[0] = torch.nan
    optimizer.step()
    assert [p.flatten()[0].item() for p in model.parameters()] == [1.5, 1.5, 2.0, 1.5]  # the gain towards 1
    assert all((optimizer.state[p]["exp_avg"] == 0).all() for p in model.parameters())


def test_without_names_vectors_do_not_shrink():
    w, b = nn.Parameter(torch.full((2, 2), 4.0)), nn.Parameter(torch.full((2,), 4.0))
    w.grad, b.grad = torch.full((2, 2), torch.nan), torch.full((2,), torch.nan)
    Tiger([w, b], shrink=0.5).step()
    assert w[0, 0].item() == 2
    assert b[0].item() == 4


@pytest.mark.parametrize("make", [lambda p: Lion(p, 0.1, weight_decay=0.1), lambda p: Tiger(p, 0.1, accumulate=2)])
def test_a_resumed_bfloat16_run_repeats(make):
    def feed(params, optimizer, steps):
        for step in steps:
            for p in params:
                p.grad = draw(*p.shape, seed=step).to(p.dtype)
            optimizer.step()

    whole, part = ([nn.Parameter(draw(3, 4).bfloat16()), nn.Parameter(draw(4).bfloat16())] for _ in range(2))
    one, two = make(whole), make(part)
    feed(whole, one, range(7))
    feed(part, two, range(3))
    rest = [nn.Parameter(p.detach().clone()) for p in part]
    three = make(rest)
    three.load_state_dict(two.state_dict())
    feed(rest, three, range(3, 7))
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))
    assert all(s["exp_avg"].dtype == torch.float32 for s in three.state.values())


@pytest.mark.parametrize("make", [lambda m: Lion(m.parameters(), 3e-3), lambda m: Tiger(m.named_parameters(), 1e-2)])
def test_a_plain_loop_with_a_closure_learns(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    x = draw(64, 8)
    optimizer = make(model)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1] * x[:, 1:2]).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(200)]
    assert min(losses[-10:]) < 0.3 * losses[0]


def test_messages():
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"Lion needs lr >= 0.*got lr=-1"):
        Lion([p], -1)
    with pytest.raises(ValueError, match=r"Tiger needs .*betas=\(1.0,\)"):
        Tiger([p], beta=1.0)
    with pytest.raises(ValueError, match=r"accumulate >= 1 and 0 < shrink <= 1, got 0 and 0.99"):
        Tiger([p], accumulate=0)
    with pytest.raises(ValueError, match=r"gains takes a list of patterns, got 'norm'; write \('norm',\)"):
        Tiger([p], gains="norm")
    table = nn.Embedding(5, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    for name, optimizer in (("Lion", Lion(table.parameters())), ("Tiger", Tiger(table.parameters()))):
        with pytest.raises(ValueError, match=f"{name} needs dense real gradients, got torch.sparse_coo.*sparse=False"):
            optimizer.step()
