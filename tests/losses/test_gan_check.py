"""The test of GAN games: what it accepts, what it refuses and why, and that its verdict is what training does."""

import math

import pytest
import torch

from danlu.losses import GanGame, check_game, game_report, gan_game, least_squares_game, power_game

GOOD = ["gan", "non_saturating", "kl_generator", "least_squares", "hellinger", "kliep", "chi2", "forward_kl"]
MIDPOINT = least_squares_game(1.0, -1.0, target=0.0)


@pytest.mark.parametrize("name", GOOD)
def test_known_games_pass(name):
    report = check_game(name)
    assert report.critic
    assert report.fixed_critic
    assert report.minimax
    assert report.faults == ()
    assert report.ratio_range[0] < 1e-4
    assert report.ratio_range[1] > 1e4


@pytest.mark.parametrize("k", [-2.5, -0.9, 0.01, 1.7])
def test_power_games_pass(k):
    for generator in ("minimax", "kl"):
        assert game_report(power_game(k, generator)).faults == ()
    report = game_report(power_game(k, "real"))  # f = (1 + u) (u^-(k+1) - 1) / (k + 1)
    assert report.fixed_critic
    assert report.minimax == (k > 0)  # f'' has the sign of (k + 2) u^-1 + k


def test_midpoint_passes_the_post_and_fails_training():
    report = game_report(MIDPOINT)
    assert report.critic
    assert report.minimax
    assert not report.fixed_critic
    with pytest.raises(ValueError, match=r"generator'\(s\) = 2 at s = 1.*held fixed it leaves such places"):
        check_game(MIDPOINT)


def best_score(game, u):  # by bisection on the slope of u a + b, in the domain
    low, high = (torch.full_like(u, x) for x in (max(game.domain[0], -30.0), min(game.domain[1], 30.0)))
    for _ in range(40):
        s = ((low + high) / 2).requires_grad_()
        (slope,) = torch.autograd.grad((u * game.real(s) + game.fake(s)).sum(), s)
        low, high = torch.where(slope < 0, s.detach(), low), torch.where(slope < 0, high, s.detach())
    return (low + high) / 2


def closed_score(game, u):
    return (u - 1) / (u + 1) if game.domain == (-1, 1) else u.log()


@pytest.mark.parametrize("game", [*(gan_game(name) for name in GOOD), MIDPOINT])
def test_the_only_stationary_score_is_the_closed_form(game):
    u = torch.tensor([1e-2, 0.5, 1.0, 3.0, 40.0], dtype=torch.float64)
    torch.testing.assert_close(best_score(game, u), closed_score(game, u), atol=1e-6, rtol=0)


def left_over(game, seed):  # tabular game: a softmax generator of 5 states against the best critic, plain steps
    draw = torch.Generator().manual_seed(seed)
    p = torch.randn(5, dtype=torch.float64, generator=draw).softmax(0)
    logits = torch.randn(5, dtype=torch.float64, generator=draw)
    for _ in range(500):
        q = logits.softmax(0)
        pay = game.generator(closed_score(game, p / q))
        logits = logits - 0.5 * q * (pay - (q * pay).sum())  # gradient of E_q[c(s)] at fixed s
    return (p - logits.softmax(0)).abs().sum().item() / 2


@pytest.mark.parametrize("name", ["gan", "non_saturating", "kl_generator", "least_squares", "hellinger", "forward_kl"])
def test_where_the_report_says_so_the_generator_finds_the_data(name):
    assert left_over(gan_game(name), 0) < 0.02


@pytest.mark.parametrize("seed", [0, 1])
def test_where_it_does_not_the_generator_leaves_the_data(seed):
    assert left_over(MIDPOINT, seed) > 0.2


def test_gradient_on_generated_examples_is_the_tabular_one():
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    p, game = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), gan_game("non_saturating")
    q = theta.softmax(0)
    s = best_score(game, (p / q).detach())
    (q * game.generator(s)).sum().backward()
    by_hand = [
        sum(q[x].item() * ((x == i) - q[i].item()) * math.log(1 + math.exp(-s[x].item())) for x in range(3))
        for i in range(3)
    ]
    assert theta.grad.tolist() == pytest.approx(by_hand)


def swapped(game):  # every function of -s: fakes score high
    alpha = game.generator_real
    return GanGame(
        lambda s: game.real(-s),
        lambda s: game.fake(-s),
        lambda s: game.generator(-s),
        alpha and (lambda s: alpha(-s)),
        (-game.domain[1], -game.domain[0]),
    )


@pytest.mark.parametrize("game", [gan_game("gan"), gan_game("kl_generator"), gan_game("chi2"), MIDPOINT])
def test_flipped_labels_change_no_verdict(game):
    one, other = game_report(game), game_report(swapped(game))
    assert (one.critic, one.fixed_critic, one.minimax) == (other.critic, other.fixed_critic, other.minimax)
    assert one.ratio_range == pytest.approx(other.ratio_range)


def test_constants_and_factors_of_the_game_change_nothing():
    game = gan_game("non_saturating")
    moved = GanGame(
        lambda s: 3 * game.real(s) + 5, lambda s: 3 * game.fake(s) - 7, lambda s: 0.1 * game.generator(s) + 2
    )
    assert game_report(moved).ratio_range == pytest.approx(game_report(game).ratio_range)
    assert game_report(moved).fixed_critic


def test_the_perfect_critics_condition_is_its_own():
    game = gan_game("gan")
    concave = GanGame(game.real, game.fake, lambda s: -(2 * s).exp(), None)  # f = -u^2, yet every step helps
    report = game_report(concave)
    assert report.fixed_critic
    assert not report.minimax
    assert report.faults == ("u alpha(s) + c(s) is not strictly convex in u = p/q at the best score",)
    square = GanGame(game.real, game.fake, lambda s: (2 * s).exp(), None)  # f = u^2: convex, and every step hurts
    assert game_report(square).minimax
    assert not game_report(square).fixed_critic
    linear = GanGame(game.real, game.fake, lambda s: -s.exp(), None)  # f = -u: no divergence at all
    assert not game_report(linear).minimax
    helped = GanGame(game.real, game.fake, lambda s: -s.exp(), lambda s: s)  # u log u - u
    assert game_report(helped).minimax


def softplus(s):
    return -torch.nn.functional.logsigmoid(-s)


@pytest.mark.parametrize(
    ("real", "fake", "text"),
    [
        (lambda s: -s, lambda s: s, r"rise strictly with the score, but stays at 1 near s = -12"),
        (lambda s: -s, lambda s: -(-s).exp() * -1, r"keep opposite signs.*but fake'\(s\) = -1\.63e\+05 at s = -12"),
        (lambda s: -s.exp(), lambda s: s, r"rise strictly with the score, but falls at 1\.63e\+05 near s = -12"),
        (lambda s: s.exp(), lambda s: -((2 + s.sin()) * s.exp()), r"fall strictly with the score, but rises at"),
        (lambda s: s.square(), lambda s: s, r"real'\(s\) = .* at s = 0\.024"),
        (lambda s: torch.relu(1 - s), lambda s: torch.relu(1 + s), r"never be 0, but real'\(s\) = -0 at s = 1\.01"),
        (softplus, softplus, r"opposite signs and never be 0, but fake'\(s\)"),
        (lambda s: -s, lambda s: s.exp() * torch.where(s > 5, torch.nan, 1.0), r"but fake'\(s\) = nan at s = 5\.0"),
        (lambda s: -s, lambda s: 3 * s + s.exp(), r"no score says p = q: p/q runs from 3 to 1\.63e\+05 only"),
        (lambda s: -s, lambda s: (60 * s).exp(), r"but fake'\(s\) = inf at s = 11\.8"),
        (torch.ones_like, lambda s: s, r"real'\(s\) = 0 at s = -12"),
        (lambda s: -s, lambda s: s.detach().exp(), r"fake'\(s\) = 0 at s = -12"),
    ],
)
def test_broken_critics_are_refused_with_the_place(real, fake, text):
    game = GanGame(real, fake, lambda s: -s)
    report = game_report(game)
    assert not (report.critic or report.fixed_critic or report.minimax)
    assert math.isnan(report.ratio_range[0])
    with pytest.raises(ValueError, match=f"^not a likelihood-ratio game: .*{text}"):
        check_game(game)


@pytest.mark.parametrize("generator", [torch.ones_like, lambda s: s, lambda s: s.square(), lambda s: s * torch.nan])
def test_broken_generators_are_refused(generator):
    game = gan_game("gan")
    with pytest.raises(ValueError, match="the generator must want what is scored as real"):
        check_game(GanGame(game.real, game.fake, generator))


@pytest.mark.parametrize("domain", [(0.0, 1.0), (0.0, math.inf), (-math.inf, 2.0)])
def test_scores_are_tried_inside_the_domain_only(domain):
    seen = []

    def real(s):
        seen.append(s.detach())
        return -s

    game_report(GanGame(real, lambda s: s.square(), lambda s: -s, None, domain))
    assert all(bool((s >= domain[0]).all() and (s <= domain[1]).all()) for s in seen)
    assert seen[0].max() - seen[0].min() > 0.99


def test_works_without_grad_mode_and_leaves_it():
    with torch.no_grad():
        assert check_game("gan").critic
        assert not torch.is_grad_enabled()


def test_messages():
    for fn, got in ((lambda s: s.sum(), r"gives \(\)"), (lambda s: 1.0, "gives float")):
        with pytest.raises(ValueError, match=f"real of a game must work item by item: .*{got}; leave means to"):
            game_report(GanGame(fn, lambda s: s, lambda s: s))
    for span, points in ((0.0, 11), (math.inf, 11), (1.0, 2)):
        with pytest.raises(ValueError, match=f"span > 0 and points >= 3, got {span} and {points}"):
            game_report("gan", span, points)
    with pytest.raises(ValueError, match="no game 'no'"):
        check_game("no")
