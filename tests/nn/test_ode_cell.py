"""Cells and the scan: torch's RNN with the same weights, solvers, masks, a loop that learns, clipping, messages."""

import math

import pytest
import torch

from danlu.math import solve_ode
from danlu.nn import Logistic, ODECell, SolverRNN, scan


def seeded(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("masked", [False, True])
def test_a_tanh_cell_is_torchs_rnn(masked):
    rnn = torch.nn.RNN(3, 4, batch_first=True).double()
    w_in, w_state, b_in, b_state = (p for p in rnn.parameters())
    u, y0 = seeded(2, 5, 3), seeded(2, 4)

    def step(u, y, k):
        return torch.tanh(u @ w_in.T + b_in + y @ w_state.T + b_state)

    if not masked:
        torch.testing.assert_close(scan(step, y0, u), rnn(u, y0[None])[0])
        return
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    found = scan(step, y0, u, mask=mask)
    short = rnn(u[1:, :3], y0[None, 1:])[0]
    torch.testing.assert_close(found[1, :3], short[0])
    torch.testing.assert_close(found[1, 3:], short[0, -1:].expand(2, -1))
    torch.testing.assert_close(found[0], rnn(u, y0[None])[0][0])


def test_a_scan_of_no_steps_and_of_a_matrix_state():
    assert scan(lambda u, y, k: y, torch.ones(2, 3), steps=0).shape == (2, 0, 3)
    found = scan(lambda u, y, k: y + k, torch.zeros(2, 3, 4), steps=3, mask=torch.tensor([[True] * 3, [False] * 3]))
    assert found[0, :, 0, 0].tolist() == [0.0, 1.0, 3.0]
    assert not found[1].any()


@pytest.mark.parametrize("method", ["euler", "rk4", "trapezoid"])
def test_the_layer_is_the_solver(method):
    field = lambda t, x: torch.cos(torch.tensor(t)) * x.flip(-1) - 0.1 * x  # noqa: E731
    x0 = seeded(2, 3)
    found = SolverRNN(field, h=0.25, method=method, start=1.0)(x0, steps=6)
    whole = solve_ode(field, x0, [1.0 + 0.25 * k for k in range(7)], method)
    torch.testing.assert_close(found, whole[1:].movedim(0, 1))


def test_inputs_are_constant_during_a_step():
    # x' = u - x from 0 with u = 1 for ln 2, then u = 0 for ln 2: 1/2, 1/4
    found = SolverRNN(lambda t, x, u: u - x, h=math.log(2) / 20)(
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([1.0] * 20 + [0.0] * 20, dtype=torch.float64)[None, :, None],
    )
    assert found[0, 19, 0].item() == pytest.approx(0.5, abs=1e-8)
    assert found[0, 39, 0].item() == pytest.approx(0.25, abs=1e-8)


def test_clip_bounds_each_component_of_the_slope():
    found = ODECell(lambda t, x: 100 * x, h=0.1, method="euler", clip=3.0)(None, torch.tensor([[1.0, -1.0, 0.01]]))
    assert found[0].tolist() == pytest.approx([1.3, -1.3, 0.11])


def test_a_users_loop_recovers_the_growth_rate():
    times = torch.arange(2.0, 31.0, 2.0, dtype=torch.float64)
    observed = Logistic.solution(times, 1.0, 0.3, 8.0)[None, :, None]
    seen = torch.zeros(1, 15, 1, dtype=torch.bool)
    seen[:, [0, 2, 4, 7, 12]] = True
    model = SolverRNN(Logistic(r=0.1, capacity=4.0).double(), h=2.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    x0 = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(80):
        optimizer.zero_grad()
        loss = (model(x0, steps=15) - observed)[seen].square().sum()
        loss.backward()
        optimizer.step()
    assert model.cell.rhs.values().tolist() == pytest.approx([0.3, 8.0], rel=0.02)
    assert set(model.state_dict()) == {"cell.rhs.raw"}


def test_gradcheck_through_time_with_inputs_and_a_mask():
    mask = torch.tensor([[True, True, True], [True, False, True]])

    def run(w, u, x0):
        return SolverRNN(lambda t, x, u: torch.tanh(x @ w) + u, h=0.5)(x0, u, mask=mask)

    arguments = [t.requires_grad_() for t in (seeded(2, 2), seeded(2, 3, 2), seeded(3, 2)[:2].contiguous())]
    assert torch.autograd.gradcheck(run, arguments)


def test_under_autocast_the_state_stays_in_its_dtype():
    linear = torch.nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = SolverRNN(lambda t, x: torch.tanh(linear(x)), h=0.1)(torch.ones(2, 3), steps=20)
    plain = SolverRNN(lambda t, x: torch.tanh(linear(x)), h=0.1)(torch.ones(2, 3), steps=20)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, rtol=0, atol=0.02)


def test_messages():
    cell = ODECell(lambda t, x: x)
    x = torch.ones(2, 1)
    with pytest.raises(ValueError, match="either inputs"):
        scan(cell, x)
    with pytest.raises(ValueError, match="either inputs"):
        scan(cell, x, torch.ones(2, 3, 1), steps=3)
    with pytest.raises(ValueError, match=r"inputs must be \(2, T, U\).*got \(3, 3, 1\)"):
        scan(cell, x, torch.ones(3, 3, 1))
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 3\).*got torch.float32 \(2, 3\)"):
        scan(cell, x, steps=3, mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        scan(cell, x, steps=-1)
    with pytest.raises(ValueError, match=r"h=0\.0, clip=None"):
        ODECell(lambda t, x: x, h=0.0)
    with pytest.raises(ValueError, match="clip=0"):
        ODECell(lambda t, x: x, clip=0.0)
    with pytest.raises(ValueError, match="got 'leapfrog'"):
        SolverRNN(lambda t, x: x, method="leapfrog")
