"""EGDD: against a scalar loop, SGD, hand-checked steps, closed forms, its invariances, and what it must survive."""

import io
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from two_processes import in_two_processes

from danlu.optim import EGDD

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


def by_hand(series, lr, mu, beta, gp, gs, signs, directions, scale, align, decay):  # Python floats, no tensor
    sizes = [g.numel() for g in series[0]]
    flat = [[g.flatten().tolist() for g in grads] for grads in series]
    x, h, m = ([[1.0] * n for n in sizes], [[0.0] * n for n in sizes], [[0.0] * n for n in sizes])
    p, s = [[1.0] * n for n in sizes], [1.0] * len(sizes)

    def norm(v):
        return math.sqrt(sum(a * a for a in v))

    for t, grads in enumerate(flat, 1):
        old = h if align == "momentum" else m
        parts = [range(len(sizes))] * len(sizes) if scale == "global" else [[i] for i in range(len(sizes))]
        new = []
        for i, members in enumerate(parts):
            g_all = [a for j in members for a in grads[j]]
            h_all = [a for j in members for a in old[j]]
            c = sum(a * b for a, b in zip(g_all, h_all, strict=True))
            if directions:
                c /= (norm(g_all) + 1e-10) * (norm(h_all) + 1e-10)
            new.append(min(max(s[i] * math.exp(gs * c), 0.1), 10.0))
        s = new
        for i, g in enumerate(grads):
            for k, a in enumerate(g):
                e = (a > 0) - (a < 0)
                e *= (m[i][k] > 0) - (m[i][k] < 0)
                if not signs:
                    e = a * m[i][k] / (1 - beta ** max(t - 1, 1))
                p[i][k] = min(max(p[i][k] * math.exp(gp * e), 0.01), 100.0)
                h[i][k] = mu * h[i][k] + lr * p[i][k] * a
                m[i][k] = beta * m[i][k] + (1 - beta) * a
                x[i][k] = x[i][k] * (1 - lr * decay) - s[i] * h[i][k]
    return x, p, s


@pytest.mark.parametrize("scale", ["global", "tensor"])
@pytest.mark.parametrize("align", ["momentum", "mean"])
@pytest.mark.parametrize(("signs", "directions"), [(True, True), (False, False), (True, False), (False, True)])
def test_equals_the_scalar_loop(scale, align, signs, directions):
    shapes = [(2, 3), (4,)]
    series = gradients(12, shapes)
    params = [nn.Parameter(torch.ones(shape, dtype=D)) for shape in shapes]
    optimizer = EGDD(params, 0.05, 0.8, 0.7, 0.1, 0.2, signs=signs, directions=directions, scale=scale, align=align,
                     weight_decay=0.3)  # fmt: skip
    feed(optimizer, params, series)
    x, p, s = by_hand(series, 0.05, 0.8, 0.7, 0.1, 0.2, signs, directions, scale, align, 0.3)
    for param, a, b, c in zip(params, x, p, s, strict=True):
        torch.testing.assert_close(param.detach().flatten(), torch.tensor(a, dtype=D))
        torch.testing.assert_close(optimizer.state[param]["gain"].flatten(), torch.tensor(b, dtype=D))
        assert float(optimizer.state[param]["scale"]) == pytest.approx(c, rel=1e-12)
    assert len({round(c, 9) for c in s}) == (1 if scale == "global" else 2)


def test_without_learning_it_is_sgd_with_momentum():
    shapes, series = [(3,), (2, 2)], gradients(8, [(3,), (2, 2)])
    ours, theirs = zeros(shapes), zeros(shapes)
    feed(EGDD(ours, 0.1, gain_lr=0, scale_lr=0), ours, series)
    feed(torch.optim.SGD(theirs, 0.1, momentum=0.9), theirs, series)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_unlike_sgd_the_momentum_holds_the_rate_of_its_time():
    series = gradients(2, [(3,)])
    (ours,), (theirs,) = zeros([(3,)]), zeros([(3,)])
    a, b = EGDD([ours], 0.1, gain_lr=0, scale_lr=0), torch.optim.SGD([theirs], 0.1, momentum=0.9)
    for optimizer, p in ((a, ours), (b, theirs)):
        feed(optimizer, [p], series[:1])
        optimizer.param_groups[0]["lr"] = 0.01
        feed(optimizer, [p], series[1:])
    g1, g2 = series[0][0], series[1][0]
    torch.testing.assert_close(ours.detach(), -0.1 * g1 - (0.9 * 0.1 * g1 + 0.01 * g2))
    torch.testing.assert_close(theirs.detach(), -0.1 * g1 - 0.01 * (0.9 * g1 + g2))


def test_three_steps_on_a_parabola():
    """Worked by hand: a = 1, eta = 0.1, gamma = 0.5, no momentum."""
    x = nn.Parameter(torch.tensor([1.0], dtype=D))
    optimizer = EGDD([x], 0.1, momentum=0, beta=0, gain_lr=0.5, scale_lr=0, signs=False)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        (x.square() / 2).sum().backward()
        optimizer.step()
        seen += [x.item(), optimizer.state[x]["gain"].item()]
    assert seen == pytest.approx([0.9, 1.0, 0.758852, 1.568312, 0.591399, 2.206667], abs=1e-6)


def test_gain_is_the_exponential_of_summed_products():
    series = gradients(9, [(4,)])
    (x,) = zeros([(4,)])
    optimizer = EGDD([x], 0.1, momentum=0, beta=0, gain_lr=0.03, scale_lr=0, signs=False)
    feed(optimizer, [x], series)
    g = torch.stack([grads[0] for grads in series])
    torch.testing.assert_close(optimizer.state[x]["gain"], (0.03 * (g[1:] * g[:-1]).sum(0)).exp())


def test_the_gain_moves_against_the_hypergradient():
    """d loss(x - eta nu g) / d nu by autograd is -eta g' g; the gain takes gamma g' g."""
    a = torch.tensor([1.0, 3.0, -0.5], dtype=D)

    def loss(x: Tensor) -> Tensor:
        return (a * x.square() / 2 + x.cos()).sum()

    start, eta, gamma = torch.tensor([1.0, -0.3, 0.7], dtype=D), 0.2, 0.05
    x = nn.Parameter(start.clone())
    optimizer = EGDD([x], eta, momentum=0, beta=0, gain_lr=gamma, scale_lr=0, signs=False)
    for _ in range(2):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
    nu = torch.ones(3, dtype=D, requires_grad=True)
    first = start.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(first), first)
    (hyper,) = torch.autograd.grad(loss(start - eta * nu * g), nu)
    torch.testing.assert_close(optimizer.state[x]["gain"].log(), -gamma * hyper / eta)


@pytest.mark.parametrize("scale", ["global", "tensor"])
def test_the_scale_of_the_loss_does_not_matter(scale):
    series = gradients(10, [(3,), (2,)])
    plain, scaled = zeros([(3,), (2,)]), zeros([(3,), (2,)])
    feed(EGDD(plain, 0.1, gain_lr=0.1, scale_lr=0.1, scale=scale), plain, series)
    feed(EGDD(scaled, 1e-3, gain_lr=0.1, scale_lr=0.1, scale=scale), scaled, [[100 * g for g in s] for s in series])
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, b)


def test_order_and_sign_of_the_weights_do_not_matter():
    series = gradients(10, [(5,)])
    order = torch.tensor([3, 0, 4, 1, 2])
    (plain,), (permuted,), (flipped,) = zeros([(5,)]), zeros([(5,)]), zeros([(5,)])
    for p, changed in (
        (plain, series),
        (permuted, [[s[0][order]] for s in series]),
        (flipped, [[-s[0]] for s in series]),
    ):
        feed(EGDD([p], 0.1, gain_lr=0.1, scale_lr=0.1), [p], changed)
    torch.testing.assert_close(permuted.detach(), plain.detach()[order])
    torch.testing.assert_close(flipped.detach(), -plain.detach())


def test_alternating_gradients_brake_and_constant_ones_speed_up_to_the_bound():
    (x,), (y,) = zeros([(1,)]), zeros([(1,)])
    down = EGDD([x], 0.1, beta=0, gain_lr=0.05)
    feed(down, [x], [[torch.tensor([(-1.0) ** t], dtype=D)] for t in range(11)])
    assert down.state[x]["gain"].item() == pytest.approx(math.exp(-0.05 * 10))
    up = EGDD([y], 0.1, gain_lr=0.5, scale_lr=0.5)
    feed(up, [y], [[torch.tensor([1.0], dtype=D)]] * 30)
    assert up.diagnostics() == {"scale": 10.0, "log_gain": pytest.approx(math.log(100)), "at_bounds": 1.0}


def test_huge_unnormalised_products_end_at_the_bounds():
    (x,) = zeros([(2,)], torch.float32)
    optimizer = EGDD([x], 1e-9, gain_lr=1.0, scale_lr=1.0, signs=False, directions=False)
    feed(optimizer, [x], [[torch.tensor([1e15, -1e15])]] * 3)
    assert optimizer.state[x]["gain"].tolist() == [100.0, 100.0]
    assert optimizer.state[x]["scale"].item() == 10.0 and x.isfinite().all()


def test_weights_without_a_gradient_rest_and_late_ones_get_the_scale_of_all():
    x, y = zeros([(2,), (2,)])
    optimizer = EGDD([y, x], 0.1, scale_lr=0.3)  # the one that comes late stands first
    for _ in range(4):
        x.grad = torch.ones(2, dtype=D)
        optimizer.step()
    scale = float(optimizer.state[x]["scale"])
    assert scale > 1.5 and y.tolist() == [0, 0] and not optimizer.state[y]
    y.grad = torch.zeros(2, dtype=D)
    optimizer.step()
    assert float(optimizer.state[y]["scale"]) == float(optimizer.state[x]["scale"]) >= scale
    rested = {k: v.clone() for k, v in optimizer.state[x].items() if k != "scale"}
    x.grad = None
    optimizer.step()
    assert all(torch.equal(optimizer.state[x][k], v) for k, v in rested.items())


def test_a_warm_up_holds_the_scale():
    (x,) = zeros([(2,)])
    optimizer = EGDD([x], 0.1, gain_lr=0.1, scale_lr=0.1)
    optimizer.param_groups[0].update(gain_lr=0.0, scale_lr=0.0)
    feed(optimizer, [x], [[torch.ones(2, dtype=D)]] * 3)
    assert optimizer.diagnostics()["scale"] == 1 and optimizer.diagnostics()["log_gain"] == 0


def test_half_precision_weights_keep_a_wide_state_over_a_checkpoint():
    (x,), (y,) = zeros([(64,)], torch.bfloat16), zeros([(64,)], torch.bfloat16)
    series = [[g[0].bfloat16()] for g in gradients(6, [(64,)])]
    optimizer = EGDD([x], 0.1)
    feed(optimizer, [x], series[:3])
    file = io.BytesIO()
    torch.save({"x": x.detach(), "state": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    other = EGDD([y], 0.1)
    y.data.copy_(saved["x"])
    other.load_state_dict(saved["state"])
    feed(optimizer, [x], series[3:])
    feed(other, [y], series[3:])
    assert torch.equal(x, y) and x.dtype == torch.bfloat16
    for key in ("gain", "momentum", "mean", "scale"):
        assert other.state[y][key].dtype == torch.float32
        assert torch.equal(other.state[y][key], optimizer.state[x][key])


def test_a_step_that_the_scaler_skips_teaches_nothing():
    (x,) = zeros([(2,)], torch.float32)
    optimizer, scaler = EGDD([x], 0.1), torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, 1.0, torch.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((x * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert int(optimizer.state[x]["step"]) == 3
    assert optimizer.state[x]["gain"].tolist() == pytest.approx([math.exp(0.02)] * 2)


def test_a_plain_loop_with_accumulation_equals_the_big_batch():
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    ends = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = nn.Linear(3, 1, dtype=D)
        optimizer = EGDD(model.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            for part in data.chunk(parts):
                (model(part).sub(1).square().mean() / parts).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr >= 0, got -1.0"),
        ({"lr": 0.1, "momentum": 1.0}, r"momentum in \[0, 1\), got 1.0"),
        ({"lr": 0.1, "gain_bounds": (2.0, 3.0)}, r"gain_bounds .*got \(2.0, 3.0\)"),
        ({"lr": 0.1, "scale": "layer"}, r"'global'.*'tensor'.*got 'layer'"),
        ({"lr": 0.1, "align": "adam"}, r"'momentum'.*'mean'.*got 'adam'"),
    ],
)
def test_messages(options, message):
    with pytest.raises(ValueError, match=message):
        EGDD(zeros([(2,)]), **options)


def test_a_sparse_gradient_is_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"weight \(4, 2\) has a sparse one.*sparse=False"):
        EGDD(embedding.parameters(), 0.1).step()


# two processes, each with one half of the weights


def shard(rank: int) -> Tensor:
    def reduce(t: Tensor) -> Tensor:
        dist.all_reduce(t)
        return t

    (x,) = zeros([(3,)])
    feed(EGDD([x], 0.1, scale_lr=0.3, reduce=reduce), [x], [[s[rank]] for s in gradients(10, [(3,), (3,)])])
    return x.detach()


@pytest.mark.slow
def test_sharded_weights_share_one_scale(tmp_path: Path) -> None:
    found = in_two_processes(shard, tmp_path)
    whole = zeros([(3,), (3,)])
    feed(EGDD(whole, 0.1, scale_lr=0.3), whole, gradients(10, [(3,), (3,)]))
    for rank in range(2):
        torch.testing.assert_close(found[rank], whole[rank].detach())
