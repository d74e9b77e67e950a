"""Zeroth order: unbiased, exact where it must be, a policy gradient in disguise, kind to the weights it moves."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from two_processes import in_two_processes

from danlu.optim import ZerothOrder, zeroth_order_backward
from danlu.train import policy_gradient_loss

D = torch.float64
A = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]], dtype=D)
X = torch.tensor([1.0, -0.5, 0.3], dtype=D)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parabola(x: Tensor) -> Tensor:
    return x @ A @ x / 2


class Recorder:
    """A function of x that remembers where it was asked and what it said."""

    def __init__(self, x: Tensor, f) -> None:  # type: ignore[no-untyped-def]
        self.x, self.f, self.points, self.values = x, f, [], []

    def __call__(self) -> Tensor:
        self.points.append(self.x.detach().clone())
        self.values.append(self.f(self.x.detach()))
        return self.values[-1]


def estimates(f, x: Tensor, count: int, **options) -> Tensor:  # type: ignore[no-untyped-def]
    """(count, d) independent single-direction estimates."""
    p, generator, rows = nn.Parameter(x.clone()), seeded(), []
    for _ in range(count):
        p.grad = None
        zeroth_order_backward(lambda: f(p), p, generator=generator, **options)
        rows.append(p.grad.clone())
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["antithetic", "forward"])
def test_the_mean_is_the_gradient_of_a_parabola(kind):
    """Smoothing a quadratic leaves its gradient alone, so any epsilon will do."""
    rows = estimates(parabola, X, 1500, epsilon=0.5, kind=kind)
    error = (rows.mean(0) - A @ X) / (rows.std(0) / len(rows) ** 0.5)
    assert error.abs().max() < 4


def test_all_orthogonal_directions_are_exact_on_a_parabola():
    x = nn.Parameter(X.clone())
    value = zeroth_order_backward(lambda: parabola(x), x, 0.5, 3, "orthogonal", generator=seeded())
    torch.testing.assert_close(x.grad, A @ X, rtol=0, atol=1e-12)
    assert value.item() == pytest.approx((parabola(X) + 0.5**2 * 3 * A.trace() / 6).item())  # moves of length e sqrt(3)


def test_two_orthogonal_directions_are_unbiased_over_their_turns():
    rows = estimates(lambda x: x @ A[0], X, 1000, epsilon=0.1, kind="orthogonal", num_directions=2)
    error = (rows.mean(0) - A[0]) / (rows.std(0) / len(rows) ** 0.5)
    assert error.abs().max() < 4


def test_the_gradient_of_an_absolute_value_is_that_of_its_smoothing():
    rows = estimates(lambda x: x.abs().sum(), torch.tensor([0.3], dtype=D), 3000, epsilon=0.5)[:, 0]
    expected = math.erf(0.3 / 0.5 / math.sqrt(2))  # 2 Phi(x / e) - 1
    assert abs(rows.mean() - expected) < 4 * rows.std() / len(rows) ** 0.5


def test_the_variance_on_a_line_is_d_plus_one():
    g = torch.randn(10, generator=seeded(1), dtype=D)
    rows = estimates(lambda x: x @ g, torch.zeros(10, dtype=D), 3000)
    assert (rows.var(0).sum() / g.square().sum()).item() == pytest.approx(11, rel=0.15)


def test_forward_differences_are_the_policy_gradient_of_a_gaussian():
    """Same points, same rewards, the baseline f(x): equal to the last digits."""
    x = nn.Parameter(X.clone())
    f = Recorder(x, lambda x: x.sin().sum() + (x > 0).sum())
    zeroth_order_backward(f, x, 0.3, 5, "forward", generator=seeded())
    *points, centre = f.points
    assert torch.equal(centre, X)
    mean = X.clone().requires_grad_()
    log_prob = torch.distributions.Normal(mean, 0.3).log_prob(torch.stack(points)).sum(1)
    policy_gradient_loss(log_prob, -torch.stack(f.values[:-1]), -f.values[-1]).backward()
    torch.testing.assert_close(x.grad, mean.grad, rtol=1e-10, atol=1e-10)


def test_ranks_see_only_the_order():
    grads = []
    for g in (lambda v: v, lambda v: (3 * v).exp(), lambda v: 1e6 * v - 5):
        x = nn.Parameter(X.clone())
        zeroth_order_backward(lambda x=x, g=g: g(parabola(x)), x, 0.3, 6, shaping="rank", generator=seeded())
        grads.append(x.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2]) and grads[0].any()
    x = nn.Parameter(X.clone())
    values = iter([3.0, 1.0, 1.0, 1.0])  # ranks 1/2 and three times -1/6
    f = Recorder(x, lambda _: next(values))
    zeroth_order_backward(f, x, 0.5, 2, shaping="rank", generator=seeded())
    u = (f.points[0] - X) / 0.5
    torch.testing.assert_close(x.grad, (1 / 2 + 1 / 6) / (2 * 0.5 * 2) * u)


def test_a_metric_that_no_move_changes_gives_nothing():
    for shaping in ("raw", "rank"):
        x = nn.Parameter(X.clone())
        zeroth_order_backward(lambda: 0.75, x, 0.1, 4, shaping=shaping)
        assert not x.grad.any()


def test_it_adds_to_the_gradient_and_gives_the_bits_back_even_after_an_error():
    x = nn.Parameter(torch.randn(50, generator=seeded()))
    before = x.detach().clone()
    for _ in range(2):
        zeroth_order_backward(lambda: x.square().sum(), x, 0.1, 3, generator=seeded())
    twice = x.grad.clone()
    x.grad = None
    zeroth_order_backward(lambda: x.square().sum(), x, 0.1, 3, generator=seeded())
    torch.testing.assert_close(twice, 2 * x.grad)
    assert torch.equal(x, before)

    def fails() -> float:
        raise KeyError

    with pytest.raises(KeyError):
        zeroth_order_backward(fails, x, 0.1)
    assert torch.equal(x, before)
    with pytest.raises(KeyError):
        ZerothOrder([x], 0.1, 0.1).step(fails)
    torch.testing.assert_close(x.detach(), before)


def test_dropout_hits_both_sides_alike():
    x = nn.Parameter(torch.zeros(3))
    drop = nn.Dropout(0.5)
    zeroth_order_backward(lambda: drop(torch.ones(1000)).sum(), x, 0.1, 2)
    assert not x.grad.any()
    noisy = Recorder(x, lambda x: torch.rand(()))
    zeroth_order_backward(noisy, x, 0.1, 2, "forward")
    assert len({float(v) for v in noisy.values}) == 1
    zeroth_order_backward(noisy, x, 0.1)
    assert len({float(v) for v in noisy.values}) == 2  # the next step draws anew


@pytest.mark.parametrize("kind", ["antithetic", "forward"])
@pytest.mark.parametrize("restore", ["replay", "copy"])
def test_a_step_follows_the_points_it_tried(kind, restore):
    x, y = nn.Parameter(X.clone()), nn.Parameter(X[:2].clone())
    optimizer = ZerothOrder(
        [{"params": [x], "lr": 0.2}, {"params": [y], "weight_decay": 0.5}],
        0.1,
        0.3,
        3,
        kind,
        maximize=True,
        restore=restore,
    )
    f = Recorder(x, lambda x: parabola(x) + y.detach().cos().sum())
    g = Recorder(y, lambda y: 0.0)
    mean = optimizer.step(lambda: (g(), f())[1])
    ux, uy, weights = [], [], []
    for k in range(3):
        at = 2 * k if kind == "antithetic" else k
        ux.append((f.points[at] - X) / 0.3)
        uy.append((g.points[at] - X[:2]) / 0.3)
        other = f.values[at + 1] if kind == "antithetic" else f.values[-1]
        weights.append((f.values[at] - other) / (0.6 if kind == "antithetic" else 0.3) / 3)
    torch.testing.assert_close(x.detach(), X + 0.2 * sum(w * u for w, u in zip(weights, ux, strict=True)))
    torch.testing.assert_close(y.detach(), X[:2] * 0.95 + 0.1 * sum(w * u for w, u in zip(weights, uy, strict=True)))
    assert mean == pytest.approx(float(torch.stack(f.values).mean()))
    assert (ux[0] - ux[1]).abs().max() > 1e-3  # directions differ
    assert x.grad is None


def test_a_copy_leaves_no_rounding_and_a_replay_little():
    for restore, limit in (("copy", 0.0), ("replay", 1e-6)):
        x = nn.Parameter(torch.randn(1000, generator=seeded()))
        before = x.detach().clone()
        optimizer = ZerothOrder([x], 0.1, 0.05, 4, restore=restore)
        optimizer.step(lambda: 1.0)
        assert (x - before).abs().max() <= limit


def test_steps_differ_runs_repeat_and_a_checkpoint_goes_on():
    def run(steps: list[int]) -> Tensor:
        x = nn.Parameter(X.clone())
        optimizer = ZerothOrder([x], 0.05, 0.1, 2, seed=7)
        for part in steps:
            state, x = optimizer.state_dict(), nn.Parameter(x.detach().clone())
            optimizer = ZerothOrder([x], 0.05, 0.1, 2, seed=7)
            optimizer.load_state_dict(state)
            for _ in range(part):
                optimizer.step(lambda x=x: parabola(x))
        return x.detach()

    assert torch.equal(run([6]), run([2, 4]))
    x = nn.Parameter(X.clone())
    f = Recorder(x, lambda x: 0.0)
    optimizer = ZerothOrder([x], 0.0, 0.1)
    for _ in range(2):
        optimizer.step(f)
    assert (f.points[0] - f.points[2]).abs().max() > 1e-3


def test_nothing_global_moves():
    x = nn.Parameter(X.clone())
    state = torch.get_rng_state()
    zeroth_order_backward(lambda: parabola(x), x, generator=seeded())
    ZerothOrder([x], 0.1).step(lambda: parabola(x))
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


def test_hard_accuracy_rises_in_a_plain_loop():
    data = torch.randn(200, 2, generator=seeded())
    label = (data @ torch.tensor([1.0, -2.0]) > 0).long()
    model = nn.Linear(2, 2)

    def accuracy() -> float:
        assert not torch.is_grad_enabled()
        return (model(data).argmax(1) == label).float().mean().item()

    optimizer = ZerothOrder(model.parameters(), lr=0.5, epsilon=0.2, num_directions=4, maximize=True)
    for _ in range(60):
        optimizer.step(accuracy)
    with torch.no_grad():
        assert accuracy() > 0.95


def test_messages():
    x = nn.Parameter(X.clone())
    with pytest.raises(ValueError, match="epsilon must be > 0, got 0"):
        zeroth_order_backward(lambda: 0.0, x, epsilon=0)
    with pytest.raises(ValueError, match="'antithetic', 'forward' or 'orthogonal', got 'both'"):
        zeroth_order_backward(lambda: 0.0, x, kind="both")
    with pytest.raises(ValueError, match="no 4 orthogonal directions of 3 weights"):
        zeroth_order_backward(lambda: 0.0, x, num_directions=4, kind="orthogonal")
    with pytest.raises(ValueError, match="one value has no rank"):
        zeroth_order_backward(lambda: 0.0, x, kind="forward", shaping="rank")
    with pytest.raises(ValueError, match=r"one number, got a tensor \(3,\)"):
        zeroth_order_backward(lambda: x, x)
    with pytest.raises(ValueError, match="nan at a point within epsilon"):
        zeroth_order_backward(lambda: math.nan, x)
    with pytest.raises(ValueError, match="no weight to move"):
        zeroth_order_backward(lambda: 0.0, torch.zeros(2))
    with pytest.raises(TypeError, match=r"rounded away in torch.bfloat16.*autocast"):
        ZerothOrder([nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))], 0.1)
    with pytest.raises(ValueError, match="needs a closure"):
        ZerothOrder([x], 0.1).step()
    with pytest.raises(ValueError, match="use zeroth_order_backward"):
        ZerothOrder([x], 0.1, kind="orthogonal")


def process(rank: int) -> Tensor:
    def mean(values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values / 2

    x = nn.Parameter(X.clone())
    optimizer = ZerothOrder([x], 0.05, 0.1, 2, reduce=mean)
    for _ in range(5):
        optimizer.step(lambda: parabola(x) + (2 * rank - 1) * x.sum())  # each process has other data
    return x.detach()


@pytest.mark.slow
def test_processes_that_share_values_stay_one_model(tmp_path: Path) -> None:
    x = nn.Parameter(X.clone())
    optimizer = ZerothOrder([x], 0.05, 0.1, 2)
    for _ in range(5):
        optimizer.step(lambda: parabola(x))
    ends = in_two_processes(process, tmp_path)
    assert torch.equal(*ends)
    torch.testing.assert_close(ends[0], x.detach())
