"""Games from a ratio and a weight: closed forms, exact gradients, domains, far scores, the ratio read back."""

import math

import pytest
import torch
from torch import nn

from danlu.losses import (
    GanGame,
    check_game,
    game_log_ratio,
    gan_critic_loss,
    gan_game,
    least_squares_game,
    power_game,
    ratio_balance,
    ratio_game,
)

S = torch.tensor([-15.0, -3.0, -0.4, 0.0, 0.7, 2.0, 11.0], dtype=torch.float64)


def same_up_to_a_constant(mine, other, s, rtol=1e-11):
    difference = mine(s) - other(s)
    torch.testing.assert_close(
        difference, difference[3].expand(len(s)), rtol=0, atol=rtol * float(other(s).abs().max())
    )


@pytest.mark.parametrize(
    ("weight", "game"),
    [
        (lambda t: torch.sigmoid(-t), gan_game("gan")),
        (lambda t: (-t / 2).exp(), power_game(-0.5)),
        (torch.ones_like, power_game(-1.0)),
        (lambda t: (-2 * t).exp(), power_game(1.0)),
    ],
)
def test_weights_of_the_log_ratio_give_the_known_games(weight, game):
    mine = ratio_game(lambda t: t, weight)
    for name in ("real", "fake", "generator", "generator_real"):
        same_up_to_a_constant(getattr(mine, name), getattr(game, name), S)
    torch.testing.assert_close(mine.real(torch.zeros(1).double()), torch.zeros(1).double())


def logit(t):
    return t.log() - torch.log1p(-t)


def test_the_source_without_activation_is_the_same_game():  # omega = r / (1 + r), phi = log(1 - t), psi = log t
    mine = ratio_game(logit, lambda t: 1 / t, domain=(0.0, 1.0))
    for name in ("real", "fake"):
        same_up_to_a_constant(getattr(mine, name), getattr(gan_game("gan"), name), S)


def test_least_squares_from_its_ratio():  # u = (1 + t) / (1 - t), w = 2 (1 - t)
    mine = ratio_game(lambda t: torch.log1p(t) - torch.log1p(-t), lambda t: 2 * (1 - t), "real", domain=(-1.0, 1.0))
    game = least_squares_game()
    for name in ("real", "fake", "generator"):
        same_up_to_a_constant(getattr(mine, name), lambda s, n=name: getattr(game, n)(2 * torch.sigmoid(s) - 1), S)


@pytest.mark.parametrize(
    ("domain", "log_ratio", "inverse"),
    [
        ((0.0, math.inf), torch.log, lambda s: torch.log1p(s.exp()).log()),  # uLSIF: t is the ratio itself
        ((-math.inf, 1.0), lambda t: -torch.log(1 - t), lambda s: -torch.log1p((-s).exp()).log()),
    ],
)
def test_half_lines_are_reached_through_a_softplus(domain, log_ratio, inverse):
    game = ratio_game(log_ratio, torch.ones_like, domain=domain)
    torch.testing.assert_close(game_log_ratio(S, game), inverse(S), rtol=1e-9, atol=1e-9)
    u = torch.tensor(3.0, dtype=torch.float64)
    s = torch.linspace(-6, 6, 12_001, dtype=torch.float64)
    best = s[(u * game.real(s) + game.fake(s)).argmin()]
    assert game_log_ratio(best, game).item() == pytest.approx(math.log(3), abs=2e-3)


def test_slope_of_the_inner_value_is_the_loss_on_real():  # envelope: d/du min (u a + b) = a(s*)
    game = ratio_game(lambda t: t + t**3, lambda t: torch.exp(-t.square()), limit=4.0)
    u = torch.tensor([0.2, 0.9, 1.0, 5.0], dtype=torch.float64)
    s = torch.linspace(-2, 2, 40_001, dtype=torch.float64)[:, None]
    real, fake = game.real(s), game.fake(s)
    h = 1e-3
    low, here, high = ((x * real + fake).min(0) for x in (u - h, u, u + h))
    torch.testing.assert_close((high.values - low.values) / (2 * h), real[here.indices, 0], atol=1e-4, rtol=0)
    assert here.values[2].abs().item() < 1e-9  # a = b = 0 where u = 1
    assert (here.values[[0, 1, 3]] < 0).all()


def test_shifted_start_is_found():
    game = ratio_game(lambda t: t - 1.5, torch.ones_like)
    at = torch.tensor([1.5], dtype=torch.float64)
    assert game.real(at).item() == pytest.approx(0, abs=1e-12)
    assert game.fake(at).item() == pytest.approx(0, abs=1e-12)
    assert game_log_ratio(at, game).item() == pytest.approx(0, abs=1e-12)


def test_gradients_are_exact_to_second_order():
    game = ratio_game(lambda t: 2 * t, lambda t: 1 / (1 + t.square()), "kl")
    s = S[1:-1].clone().requires_grad_()
    for fn in (game.real, game.fake, game.generator):
        assert torch.autograd.gradcheck(fn, s)
        assert torch.autograd.gradgradcheck(fn, s)
    single = S.float().requires_grad_()
    (slope,) = torch.autograd.grad(game.fake(single).sum(), single)
    torch.testing.assert_close(slope.double(), (2 * S).exp() / (1 + S.square()), rtol=1e-5, atol=0)


def test_far_scores_stay_finite_and_lead_back():
    game = ratio_game(logit, lambda t: 1 / t, "real", domain=(0.0, 1.0))
    far = torch.tensor([-1e4, -300.0, 300.0, 1e4], requires_grad=True)
    for loss, sign in ((game.real(far), -1), (game.fake(far), 1)):
        (slope,) = torch.autograd.grad(loss.sum(), far)
        assert loss.isfinite().all()
        assert (slope.sign() == sign).all()
    assert game_log_ratio(far, game).tolist() == pytest.approx([-20, -20, 20, 20], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_shapes_and_empty(dtype):
    game = ratio_game(lambda t: t, lambda t: torch.sigmoid(-t))
    scores = torch.arange(6.0).reshape(2, 3).t().to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    loss = gan_critic_loss(scores, scores, game)
    assert loss.dtype == wide
    torch.testing.assert_close(loss, gan_critic_loss(scores, scores, "gan") - 2 * math.log(2))
    assert game_log_ratio(scores, game).dtype == wide
    assert game.real(torch.empty(0, 2)).shape == (0, 2)


def test_ratio_without_a_closed_form_is_differentiated():
    known = gan_game("gan")
    for flip in (1, -1):
        game = GanGame(lambda s: known.real(flip * s), lambda s: known.fake(flip * s), lambda s: -s)  # noqa: B023
        s = S.clone().requires_grad_()
        log_u = game_log_ratio(s, game)
        torch.testing.assert_close(log_u, flip * S)
        (slope,) = torch.autograd.grad(log_u.sum(), s)
        torch.testing.assert_close(slope, torch.full_like(S, flip))
        assert not game_log_ratio(S, game).requires_grad
        with torch.no_grad():
            torch.testing.assert_close(game_log_ratio(S.float(), game), flip * S.float(), rtol=1e-4, atol=1e-4)
    midpoint = least_squares_game(target=0.0)  # its generator fails, its critic is right
    assert game_log_ratio(
        torch.tensor([0.5]), GanGame(midpoint.real, midpoint.fake, torch.square, domain=(-1, 1))
    ).item() == pytest.approx(math.log(3))


def test_balance_by_enumeration():
    p, q = torch.tensor([1, 3, 4]), torch.tensor([2, 2, 4])  # of 8 examples each
    score = (p / q).log()
    balance = ratio_balance(score.repeat_interleave(p), score.repeat_interleave(q))
    assert balance.real.item() == pytest.approx(1)
    assert balance.fake.item() == pytest.approx(1)
    both = [math.log(0.5)] * 3 + [math.log(1.5)] * 5 + [0.0] * 8
    assert balance.spread.item() == pytest.approx(torch.tensor(both).std(correction=0).item())
    blind = ratio_balance(score.repeat_interleave(p) + 1, score.repeat_interleave(q) + 1)
    assert blind.real.item() == pytest.approx(math.exp(-1))
    assert blind.fake.item() == pytest.approx(math.e)


@pytest.mark.parametrize("game", ["gan", "hellinger", "kliep", "chi2", "forward_kl"])
def test_trained_critics_tell_the_ratio_of_two_gaussians(game):
    draw = torch.Generator().manual_seed(0)
    real, fake = 0.5 + torch.randn(4000, 1, generator=draw), torch.randn(4000, 1, generator=draw)
    critic = nn.Linear(1, 1)
    with torch.no_grad():
        critic.weight.zero_()
        critic.bias.zero_()
    optimizer = torch.optim.LBFGS(critic.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = gan_critic_loss(critic(real), critic(fake), game)
        loss.backward()
        return loss

    optimizer.step(closure)
    x = torch.linspace(-1, 1.5, 6)[:, None]
    log_u = game_log_ratio(critic(x), game)
    torch.testing.assert_close(log_u, 0.5 * x - 0.125, atol=0.15, rtol=0)
    balance = ratio_balance(critic(real), critic(fake), game)
    assert balance.real.item() == pytest.approx(1, abs=0.1)
    assert balance.fake.item() == pytest.approx(1, abs=0.1)


def test_messages():
    for domain, limit in (((1.0, 0.0), 20.0), ((0.0, 1.0), 0.0), ((0.0, 1.0), math.inf), ((math.nan, 1.0), 2.0)):
        with pytest.raises(ValueError, match=r"low < high and a finite limit > 0, got domain \("):
            ratio_game(lambda t: t, torch.ones_like, domain=domain, limit=limit)
    refused = [
        (lambda t: -t, torch.ones_like, "minimax", "rise strictly with the score, but falls"),
        (lambda t: t, lambda t: t.square(), "minimax", "never be 0"),
        (lambda t: t, lambda t: -torch.ones_like(t) * t.cos(), "minimax", "keep opposite signs"),
        (lambda t: t + 100, torch.ones_like, "minimax", "no score says p = q|nan|inf"),
        (lambda t: t, torch.ones_like, torch.ones_like, "generator must want"),
        (lambda t: t, torch.ones_like, "best", "generator must be 'minimax'"),
    ]
    for log_ratio, weight, generator, text in refused:
        with pytest.raises(ValueError, match=text):
            ratio_game(log_ratio, weight, generator)
    for name in ("hinge", "wasserstein", "total_variation"):
        with pytest.raises(ValueError, match=r"do not tell p/q: .*take 'non_saturating' or ratio_game\(\)"):
            game_log_ratio(torch.zeros(2), name)
    with pytest.raises(ValueError, match=r"a score in each batch, got \(0,\) and \(2,\)"):
        ratio_balance(torch.empty(0), torch.zeros(2))
    assert check_game(ratio_game(lambda t: t, torch.ones_like, limit=5.0)).critic
