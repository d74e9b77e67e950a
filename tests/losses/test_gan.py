"""GAN losses: formulas by hand, exact finite games with the best critic, alpha-divergences, extremes, a user's loop."""

import math

import pytest
import torch
from torch import nn

from danlu.losses import (
    GanGame,
    gan_critic_loss,
    gan_game,
    gan_generator_loss,
    least_squares_game,
    power_game,
)

P = torch.tensor([0.1, 0.25, 0.4, 0.25], dtype=torch.float64)
Q = torch.tensor([0.3, 0.05, 0.4, 0.25], dtype=torch.float64)
LOG_RATIO = (P / Q).log()


def softplus(x):
    return math.log(1 + math.exp(x))


FORMULAS = {  # a, b, c with Python's numbers
    "gan": (lambda s: softplus(-s), softplus, lambda s: -softplus(s)),
    "non_saturating": (lambda s: softplus(-s), softplus, lambda s: softplus(-s)),
    "kl_generator": (lambda s: softplus(-s), softplus, lambda s: -s),
    "least_squares": (lambda s: (s - 1) ** 2, lambda s: (s + 1) ** 2, lambda s: (s - 1) ** 2),
    "hellinger": (
        lambda s: 2 * math.exp(-s / 2) - 2,
        lambda s: 2 * math.exp(s / 2) - 2,
        lambda s: 2 - 2 * math.exp(s / 2),
    ),
    "kliep": (lambda s: math.exp(-s) - 1, lambda s: s, lambda s: -s),
    "chi2": (lambda s: math.exp(-2 * s) / 2 - 0.5, lambda s: 1 - math.exp(-s), lambda s: math.exp(-s) - 1),
    "forward_kl": (lambda s: -s, lambda s: math.exp(s) - 1, lambda s: 1 - math.exp(s)),
    "hinge": (lambda s: max(0, 1 - s), lambda s: max(0, 1 + s), lambda s: -s),
    "total_variation": (lambda s: -math.tanh(s), math.tanh, lambda s: -math.tanh(s)),
    "wasserstein": (lambda s: -s, lambda s: s, lambda s: -s),
}
REAL, FAKE = [0.3, -1.7, 2.2], [[0.5, -0.4], [1.3, -3.0]]


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_the_formula(name):
    real, fake, generator = FORMULAS[name]
    flat = [s for row in FAKE for s in row]
    got = gan_critic_loss(torch.tensor(REAL, dtype=torch.float64), torch.tensor(FAKE, dtype=torch.float64), name)
    assert got.item() == pytest.approx(sum(map(real, REAL)) / 3 + sum(map(fake, flat)) / 4, rel=1e-12)
    each = gan_generator_loss(torch.tensor(FAKE, dtype=torch.float64), name, "none")
    assert each.flatten().tolist() == pytest.approx([generator(s) for s in flat], rel=1e-12)


def value(game, scores):  # of a finite game: expectations instead of means
    return (P * game.real(scores) + Q * game.fake(scores)).sum()


def lowest(game):  # the best critic by search, no formula
    grid = torch.linspace(-8, 8, 160_001, dtype=torch.float64)[:, None]
    return (P * game.real(grid) + Q * game.fake(grid)).min(0)


VALUES = {  # at the best critic, from the divergences' own definitions
    "gan": 2 * math.log(2) - float((P * (2 * P / (P + Q)).log() + Q * (2 * Q / (P + Q)).log()).sum()),
    "least_squares": float((4 * P * Q / (P + Q)).sum()),
    "hellinger": float(-2 * (P.sqrt() - Q.sqrt()).square().sum()),
    "kliep": float(-(Q * (Q / P).log()).sum()),
    "chi2": float(-((Q - P).square() / P).sum() / 2),
    "forward_kl": float(-(P * (P / Q).log()).sum()),
    "hinge": float(2 * torch.minimum(P, Q).sum()),
}


@pytest.mark.parametrize("name", VALUES)
def test_finite_game_is_worth_its_divergence(name):
    best = lowest(gan_game(name))
    assert best.values.sum().item() == pytest.approx(VALUES[name], abs=1e-8)


def test_total_variation_is_worth_the_distance_at_the_ends():
    scores = torch.where(P > Q, 50.0, -50.0).double()
    assert value(gan_game("total_variation"), scores).item() == pytest.approx(-(P - Q).abs().sum().item())


@pytest.mark.parametrize("name", ["gan", "non_saturating", "kl_generator", "hellinger", "kliep", "chi2", "forward_kl"])
def test_best_score_is_the_log_ratio(name):
    game = gan_game(name)
    found = -8 + 1e-4 * lowest(game).indices
    torch.testing.assert_close(found.double(), LOG_RATIO, atol=1e-3, rtol=0)
    s = LOG_RATIO.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(game, s), s)
    torch.testing.assert_close(slope, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(game.log_ratio(LOG_RATIO), LOG_RATIO)


@pytest.mark.parametrize(("real", "fake"), [(1.0, -1.0), (1.0, 0.0), (3.0, 2.5)])
def test_best_score_of_least_squares(real, fake):
    game = least_squares_game(real, fake)
    best = (real * P + fake * Q) / (P + Q)
    s = best.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(game, s), s)
    torch.testing.assert_close(slope, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(game.log_ratio(best), LOG_RATIO)
    outside = game.log_ratio(torch.tensor([real + 1, fake - 1]))
    assert outside.tolist() == [math.inf, -math.inf]


R = torch.tensor([0.1, 0.5, 1, 2, 7], dtype=torch.float64)  # model over data, as in the source


@pytest.mark.parametrize(
    ("name", "scale", "shift", "values"),
    [  # d(r) = max phi + r psi of the source; our functions have another factor and constants, which add a + b r
        ("hellinger", 2, 2 + 2 * R, [-0.632456, -1.414214, -2, -2.828427, -5.291503]),
        ("gan", 1, 0, [-0.335100, -0.954771, -1.386294, -1.909543, -3.014161]),
        ("least_squares", 1, 0, [-0.363636, -1.333333, -2, -2.666667, -3.5]),
        ("chi2", 1, 0.5 - R, [0.005, 0.125, 0.5, 2, 24.5]),
        ("kliep", 1, 1, [-0.330259, -0.846574, -1, -0.613706, 6.621371]),
    ],
)
def test_frozen_values_of_the_source(name, scale, shift, values):
    game = gan_game(name)
    s = (1 - R) / (1 + R) if name == "least_squares" else -R.log()
    inner = -(game.real(s) + R * game.fake(s))
    expected = scale * torch.tensor(values, dtype=torch.float64) + shift
    torch.testing.assert_close(inner, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("k", [-2.0, -0.5, 0.3, 2.0])
def test_power_game_is_the_alpha_divergence(k):
    game = power_game(k)
    u = P / Q
    f = u**-k / (k * (k + 1)) + u / (k + 1) - 1 / k
    assert -value(game, LOG_RATIO).item() == pytest.approx((Q * f).sum().item(), rel=1e-12)


@pytest.mark.parametrize("k", [0.0, -1.0])
def test_power_game_is_continuous_in_k(k):
    s = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for name in ("real", "fake", "generator"):
        near, at = getattr(power_game(k + 1e-9), name)(s), getattr(power_game(k), name)(s)
        torch.testing.assert_close(near, at, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("generator", ["minimax", "real", "kl"])
def test_generators_of_a_power_game(generator):
    game, s = power_game(1.0, generator), torch.tensor([0.7], dtype=torch.float64)
    expected = {"minimax": -game.fake(s), "real": game.real(s), "kl": -s}[generator]
    torch.testing.assert_close(game.generator(s), expected)
    on_real = {"minimax": -game.real(s), "real": game.real(s)}
    if generator == "kl":
        assert game.generator_real is None
    else:
        torch.testing.assert_close(game.generator_real(s), on_real[generator])
    mine = power_game(1.0, lambda s: s**2)
    assert mine.generator(s).item() == pytest.approx(0.49)


@pytest.mark.parametrize("name", ["hellinger", "kliep", "chi2", "forward_kl"])
def test_exponentials_run_straight_on_and_lead_back(name):
    game, far = gan_game(name), torch.tensor([-1e4, -25.0, 25.0, 1e4], requires_grad=True)
    real, fake = game.real(far), game.fake(far)
    for loss, sign in ((real, -1), (fake, 1)):
        (slope,) = torch.autograd.grad(loss.sum(), far)
        assert loss.isfinite().all()
        assert slope.isfinite().all()
        assert (slope.sign() == sign).all()
        assert slope[0] == slope[1]
        assert slope[2] == slope[3]
    edge = torch.tensor([20.0 - 1e-6, 20.0 + 1e-6], dtype=torch.float64)
    torch.testing.assert_close(game.real(edge)[0], game.real(edge)[1], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", ["gan", "non_saturating", "chi2", "hellinger"])
def test_slopes_do_not_die_early_in_float32(name):
    s = torch.tensor([-15.0, 15.0], requires_grad=True)
    exact = s.detach().double().requires_grad_()
    game = gan_game(name)
    for fn in (game.real, game.fake):
        (slope,) = torch.autograd.grad(fn(s).sum(), s)
        (expected,) = torch.autograd.grad(fn(exact).sum(), exact)
        torch.testing.assert_close(slope.double(), expected, rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(gan_game("chi2").real(exact).sum(), exact)
    assert slope.tolist() == pytest.approx([-math.exp(30), -math.exp(-30)], rel=1e-9)


@pytest.mark.parametrize("name", [n for n in FORMULAS if n != "hinge"])
def test_gradcheck(name):
    real, fake = (torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (REAL, FAKE))
    assert torch.autograd.gradcheck(lambda r, f: gan_critic_loss(r, f, name), (real, fake))
    assert torch.autograd.gradcheck(lambda f: gan_generator_loss(f, name, "none"), fake)
    assert torch.autograd.gradgradcheck(lambda r, f: gan_critic_loss(r, f, name, "sum"), (real, fake))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORMULAS)
def test_half_precision_is_read_in_float32(name, dtype):
    real, fake = torch.tensor(REAL).to(dtype), torch.tensor(FAKE).to(dtype).t()  # not contiguous
    got = gan_critic_loss(real, fake, name)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, gan_critic_loss(real.float(), fake.float(), name))
    assert gan_generator_loss(fake, name).dtype == torch.float32


def test_masks_sums_and_empty_batches():
    scores = torch.tensor([1.0, torch.nan, 3.0], requires_grad=True)
    keep = torch.tensor([True, False, True])
    loss = gan_generator_loss(scores, "wasserstein", mask=keep)
    loss.backward()
    assert loss.item() == -2
    assert scores.grad.tolist() == [-0.5, 0, -0.5]
    scores.grad = None
    gan_generator_loss(scores, "hellinger", mask=keep).backward()  # its slope is a function of the score
    assert scores.grad.tolist() == pytest.approx([-math.exp(0.5) / 2, 0, -math.exp(1.5) / 2])
    assert gan_critic_loss(torch.ones(2), torch.ones(3), "wasserstein", "sum").item() == 1
    empty = gan_critic_loss(torch.empty(0), torch.zeros(1))
    assert empty.item() == pytest.approx(math.log(2))


def test_saturation():  # the reason for the non-saturating form: a rejected fake must still pull
    for name, pull in (("gan", 0), ("non_saturating", -1), ("kl_generator", -1), ("hinge", -1)):
        s = torch.tensor([-30.0], requires_grad=True)
        gan_generator_loss(s, name).backward()
        assert s.grad.item() == pytest.approx(pull, abs=1e-9)


@pytest.mark.parametrize(("name", "lr"), [("non_saturating", 0.3), ("least_squares", 0.02), ("hinge", 0.3)])
def test_a_plain_loop_finds_the_mean(name, lr):
    draw = torch.Generator().manual_seed(0)
    shift, critic = nn.Parameter(torch.tensor(-1.0)), nn.Linear(1, 1)
    with torch.no_grad():
        critic.weight.zero_()
        critic.bias.zero_()
    steps = torch.optim.SGD(critic.parameters(), lr, weight_decay=0.3), torch.optim.SGD([shift], 0.1)
    for _ in range(300):
        real = 2 + torch.randn(64, 1, generator=draw)
        fake = shift + torch.randn(64, 1, generator=draw)
        steps[0].zero_grad()
        gan_critic_loss(critic(real), critic(fake.detach()), name).backward()
        steps[0].step()
        steps[1].zero_grad()
        gan_generator_loss(critic(fake), name).backward()
        steps[1].step()
    assert shift.item() == pytest.approx(2.0, abs=0.4)


def test_your_own_game_trains_too():
    game = GanGame(lambda s: -s, lambda s: s.exp(), lambda s: -s)
    assert gan_critic_loss(torch.ones(1), torch.zeros(1), game).item() == 0


def test_messages():
    with pytest.raises(ValueError, match=r"no game 'wgan'; there are gan, non_saturating, .*ratio_game\(\)"):
        gan_game("wgan")
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        gan_critic_loss(torch.ones(1), torch.ones(1), reduction="none")
    with pytest.raises(ValueError, match="mask must be bool"):
        gan_generator_loss(torch.ones(2), mask=torch.ones(2))
    for real, fake, target in ((0, 1, None), (1, 1, None), (math.nan, 0, None), (1, 0, math.inf)):
        with pytest.raises(ValueError, match=f"finite labels with fake < real, got real={real}.*negate the scores"):
            least_squares_game(real, fake, target)
    for k, limit in ((1.0, 0.0), (5.0, 20.0), (math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match=f"got k={k} and limit={limit}.*lower limit"):
            power_game(k, limit=limit)
    with pytest.raises(ValueError, match=r"generator must be 'minimax', 'real', 'kl' or a function.*got 'best'"):
        power_game(1.0, "best")
