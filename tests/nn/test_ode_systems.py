"""Systems of equations: right-hand sides by hand, closed form, invariants, positivity, batches, messages."""

import math

import pytest
import torch

from danlu.math import solve_ode
from danlu.nn import Aquarium, Competition, Logistic, ODESystem, Pendulum, PredatorPrey, as_nitrogen, first_crossing

ALL = [
    Logistic(r=0.1, capacity=500.0),
    Competition(r1=0.1, r2=0.3, a1=1e-4, a2=2e-4, b1=0.002, b2=0.003),
    PredatorPrey(alpha=0.55, beta=0.028, gamma=0.8, delta=0.024),
    Pendulum(stiffness=9.81, damping=0.2),
    Aquarium(),
]
BY_NAME = [type(system).__name__ for system in ALL]


def f64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_right_hand_sides_by_hand():
    assert ALL[0](0.0, torch.tensor([100.0])).tolist() == pytest.approx([8.0])
    x1, x2 = 100.0, 150.0
    expected = [0.1 * x1 * (1 - 0.002 * x1) - 1e-4 * x1 * x2, 0.3 * x2 * (1 - 0.003 * x2) - 2e-4 * x1 * x2]
    assert ALL[1](0.0, torch.tensor([x1, x2])).tolist() == pytest.approx(expected, rel=1e-5)
    assert ALL[2](0.0, torch.tensor([30.0, 4.0])).tolist() == pytest.approx(
        [(0.55 - 0.028 * 4) * 30, (0.024 * 30 - 0.8) * 4], rel=1e-4
    )
    assert ALL[3](0.0, torch.tensor([0.5, 2.0])).tolist() == pytest.approx([2.0, -9.81 * math.sin(0.5) - 0.4], rel=1e-5)
    ua, un = 0.6 * 2 / 3 * 0.1, 0.5 * 0.5 / 1.5 * 0.2
    expected = [0.4 - ua / 0.24, ua / 0.24 - un / 0.08, un / 0.08, ua - 0.005, un - 0.01]
    assert ALL[4](0.0, torch.tensor([2.0, 0.5, 7.0, 0.1, 0.2])).tolist() == pytest.approx(expected, rel=1e-5)


def test_logistic_closed_form():
    times = f64(0.0, 3.0, 50.0)
    found = solve_ode(ALL[0].double(), f64(100.0), times, "dopri5", rtol=1e-9)[:, 0]
    torch.testing.assert_close(found, Logistic.solution(times, 100.0, 0.1, 500.0), rtol=1e-6, atol=0)
    ALL[0].float()


@pytest.mark.parametrize("system", ALL, ids=BY_NAME)
def test_a_batch_of_parameters_is_each_alone(system):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3, len(system.parameter_names), dtype=torch.float64, generator=generator) + 0.1
    x = torch.rand(3, len(system.states), dtype=torch.float64, generator=generator) + 0.1
    whole = system.field(0.0, x, p)
    for i in range(3):
        torch.testing.assert_close(system.field(0.0, x[i], p[i]), whole[i])
        torch.testing.assert_close(system.field(0.0, x, p[i])[i], whole[i])
        torch.testing.assert_close(system.field(0.0, x[i], p)[i], whole[i])
    assert torch.autograd.gradcheck(lambda x, p: system.field(0.0, x, p), (x.requires_grad_(), p.requires_grad_()))


@pytest.mark.parametrize("system", ALL, ids=BY_NAME)
def test_parameters_come_back_and_stay_positive(system):
    again = type(system)(**dict(zip(system.parameter_names, system.values().tolist(), strict=True)))
    torch.testing.assert_close(again.values(), system.values())
    optimizer = torch.optim.SGD(again.parameters(), lr=100.0)
    for _ in range(3):
        optimizer.zero_grad()
        again.values().sum().backward()
        optimizer.step()
    assert (again.values() >= 0).all()
    assert [name for name, _ in again.named_parameters()] == ["raw"]
    assert system.parameter_names[0] + "=" in repr(system)


def test_invariants():
    x = solve_ode(ALL[2], f64(30.0, 4.0), torch.linspace(0, 20, 30), "dopri5", rtol=1e-9, atol=1e-9)
    a, b, c, d = ALL[2].values().double()
    level = d * x[:, 0] - c * x[:, 0].log() + b * x[:, 1] - a * x[:, 1].log()
    torch.testing.assert_close(level, level[:1].expand_as(level), rtol=1e-5, atol=1e-6)
    swing = Pendulum(stiffness=9.0, damping=0.0)
    y = solve_ode(swing, f64(1.0, 0.5), torch.linspace(0, 10, 20), step=0.005)
    energy = y[:, 1] ** 2 / 2 - 9.0 * y[:, 0].cos()
    torch.testing.assert_close(energy, energy[:1].expand_as(energy), rtol=0, atol=1e-6)
    damped = solve_ode(ALL[3], f64(1.0, 0.5), torch.linspace(0, 10, 20), step=0.01)
    loss = (damped[:, 1] ** 2 / 2 - 9.81 * damped[:, 0].cos()).diff()
    assert (loss < 0).all()


def test_a_small_swing_has_the_period_of_the_book():
    period = 2 * math.pi / 3
    y = solve_ode(Pendulum(stiffness=9.0, damping=0.0), f64(1e-4, 0.0), [0.0, period / 4, period], step=0.002)
    assert y[1, 0].item() == pytest.approx(0.0, abs=1e-9)
    assert y[2, 0].item() == pytest.approx(1e-4, rel=1e-6)


def test_signed_parameters_and_a_huge_one():
    class Drift(ODESystem):
        states, parameter_names, signed = ("x",), ("speed", "decay"), ("speed",)

        def field(self, t, x, p):
            return p[..., :1] - p[..., 1:] * x

    drift = Drift(speed=-3.0, decay=0.5)
    assert drift(0.0, torch.tensor([2.0])).item() == pytest.approx(-4.0)
    far = Drift(speed=2000.0, decay=0.5)  # exp of it would overflow
    far.values().sum().backward()
    assert far.raw.grad.tolist() == pytest.approx([1.0, 0.5])


def test_messages():
    with pytest.raises(ValueError, match=r"Logistic has the parameters r, capacity; missing: \['capacity'\], unknown"):
        Logistic(r=0.1)
    with pytest.raises(ValueError, match=r"unknown: \['K'\]"):
        Logistic(r=0.1, capacity=1.0, K=2.0)
    with pytest.raises(ValueError, match="r of Logistic must be finite and >= 0, got -1"):
        Logistic(r=-1.0, capacity=1.0)
    with pytest.raises(NotImplementedError, match="says no field"):
        ODESystem()(0.0, torch.ones(1))


# the aquarium

DAYS = [0, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 42, 60]
AMMONIA = [2.822, 3.804, 4.190, 2.557, 0.131, 0.113, 0.109, 0.106, 0.104, 0.102, 0.097, 0.093]
NITRITE = [0.077, 0.295, 1.105, 3.926, 7.507, 8.579, 9.292, 8.859, 4.873, 0.078, 0.087, 0.100]
NITRATE = [5.000, 5.001, 5.005, 5.017, 5.062, 5.209, 5.699, 7.335, 12.524, 18.520, 22.116, 29.307]


def test_the_tank_is_the_one_of_lsoda():
    from scipy.integrate import solve_ivp

    tank = Aquarium().double()
    p = f64(*(Aquarium.defaults[name] for name in Aquarium.parameter_names))

    def field(t, x):
        return tank.field(t, x, p)

    days = torch.tensor(DAYS, dtype=torch.float64)
    found = solve_ode(field, Aquarium.start(), days, step=0.1)
    other = solve_ivp(
        lambda t, x: field(t, torch.from_numpy(x)).numpy(),
        (0, 60),
        Aquarium.start().numpy(),
        t_eval=DAYS,
        method="LSODA",
        rtol=1e-10,
        atol=1e-12,
    )
    torch.testing.assert_close(found, torch.from_numpy(other.y.T.copy()), rtol=0, atol=4e-5)
    for column, expected in enumerate((AMMONIA, NITRITE, NITRATE)):
        assert found[1:, column].tolist() == pytest.approx(expected, abs=0.00051)
    total = found[:, :3].sum(1)
    torch.testing.assert_close(total, 5.5 + 0.4 * days, rtol=0, atol=1e-12)


def test_quasi_steady_levels_are_approached():
    tank = Aquarium(load=0.4)
    x = solve_ode(tank, Aquarium.start(), [0.0, 200.0], step=0.5)[-1]
    assert x[0].item() == pytest.approx(1.0 * 0.05 / 0.55, abs=1e-4)
    assert x[1].item() == pytest.approx(1.0 * 0.05 / 0.45, abs=1e-4)
    assert x[0] > 0.0909
    assert x[1] < 0.1112


def test_a_step_too_long_keeps_the_balance_and_comes_back():
    start = Aquarium.start() * f64(1, 1, 1, 3000, 3000)  # filters far too large for steps of two days
    x = solve_ode(Aquarium().double(), start, [float(t) for t in range(0, 41, 2)])
    assert x[:, :2].min() < 0
    assert x.isfinite().all()
    torch.testing.assert_close(x[:, :3].sum(1), 5.5 + 0.4 * torch.arange(0, 41, 2).double(), rtol=0, atol=1e-6)


def test_only_the_ratio_of_seed_and_yield_is_seen():
    days = [0.0, 10.0, 25.0, 40.0]
    plain = solve_ode(Aquarium().double(), Aquarium.start(), days, step=0.1)
    more = Aquarium.start() * f64(1, 1, 1, 2, 2)
    double = solve_ode(Aquarium(y_a=0.48, y_n=0.16).double(), more, days, step=0.1)
    torch.testing.assert_close(double[:, :3], plain[:, :3], rtol=0, atol=2e-5)  # raw was stored in float32


def test_water_changes_hold_nitrate_at_load_over_removal():
    x = solve_ode(Aquarium(removal=0.05), Aquarium.start(), [0.0, 200.0], step=0.5)[-1]
    assert x[2].item() == pytest.approx(0.4 / 0.05, rel=1e-3)


def test_nitrogen_of_ions():
    assert 1 / as_nitrogen(f64(1.0), "NH4").item() == pytest.approx(1.2878, abs=2e-4)
    assert 1 / as_nitrogen(f64(1.0), "NO2").item() == pytest.approx(3.2844, abs=2e-4)
    assert as_nitrogen(f64(50.0), "NO3").item() == pytest.approx(11.3, abs=0.01)
    assert as_nitrogen(f64(17.031), "NH3").item() == pytest.approx(14.007)
    with pytest.raises(ValueError, match="one of NH3, NH4, NO2, NO3; got 'N'"):
        as_nitrogen(f64(1.0), "N")


def test_first_crossing_up_down_and_never():
    times = f64(0.0, 1.0, 3.0, 4.0)
    values = torch.stack((f64(0, 2, 4, 0), f64(5, 1, 1, 9), f64(0, 0, 0, 0)), -1)
    assert first_crossing(times, values, 3.0).tolist() == [2.0, 0.0, math.inf]
    assert first_crossing(times, values, 3.0, falling=True).tolist() == [3.25, 0.5, math.inf]
    assert first_crossing(times, values.float(), 2.0).tolist() == [1.0, 0.0, math.inf]
    assert first_crossing(f64(2.0), f64(9.0), 3.0).item() == 2.0
    with pytest.raises(ValueError, match=r"times \(T,\) and values \(T, \.\.\.\), got \(4,\) and \(3,\)"):
        first_crossing(times, f64(0, 0, 0), 1.0)
