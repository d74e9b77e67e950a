"""Exact finite GANs: scores in closed form, gradients by autograd, who finds the data and who does not, messages."""

import pytest
import torch

from danlu.generative import best_scores, finite_game_gradient, play_finite_game
from danlu.losses import gan_game, least_squares_game, ratio_game

GOOD = ["gan", "non_saturating", "kl_generator", "least_squares", "hellinger", "kliep", "forward_kl"]
MIDPOINT = least_squares_game(1.0, -1.0, target=0.0)
U = torch.tensor([1e-2, 0.5, 1.0, 3.0, 40.0], dtype=torch.float64)


@pytest.mark.parametrize("name", GOOD)
def test_scores_in_closed_form(name):
    want = (U - 1) / (U + 1) if name == "least_squares" else U.log()
    torch.testing.assert_close(best_scores(U.log(), name), want, atol=1e-9, rtol=0)


def test_scores_of_a_game_from_its_ratio_minimise_its_losses():
    game = ratio_game(lambda t: 2 * t, lambda t: torch.sigmoid(-t), "kl")
    score = best_scores(U.log(), game)
    torch.testing.assert_close(score, U.log() / 2, atol=1e-9, rtol=0)
    for shift in (-0.01, 0.01):
        worse = U * game.real(score + shift) + game.fake(score + shift)
        assert (worse > U * game.real(score) + game.fake(score)).all()


@pytest.mark.parametrize("game", [*map(gan_game, GOOD), MIDPOINT])
def test_gradient_is_that_of_the_mean_loss_at_a_fixed_critic(game):
    draw = torch.Generator().manual_seed(0)
    p = torch.randn(6, dtype=torch.float64, generator=draw).softmax(0)
    logits = torch.randn(6, dtype=torch.float64, generator=draw, requires_grad=True)
    scores = best_scores(p.log() - logits.detach().log_softmax(0), game)
    (logits.softmax(0) * game.generator(scores)).sum().backward()
    torch.testing.assert_close(finite_game_gradient(p, logits.detach(), game), logits.grad)


def starts(seed, k=8):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(k, generator=draw).softmax(0), torch.randn(k, generator=draw)


@pytest.mark.parametrize("name", ["non_saturating", "kl_generator", "least_squares"])
def test_games_whose_loss_falls_with_the_ratio_find_the_data(name):
    found = play_finite_game(*starts(0), name, lr=2.0, steps=150)
    assert found.distances[-1] < 0.02
    assert found.distances[0] > 0.2
    assert found.probabilities.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_midpoint_does_not(seed):
    found = play_finite_game(*starts(seed), MIDPOINT, lr=2.0, steps=150)
    assert found.distances[-1] > 0.2
    assert found.distances[-1] > found.distances[0] * 0.9


def test_one_outcome_and_impossible_ones():
    assert play_finite_game(torch.ones(1), torch.zeros(1), steps=3).distances.abs().max() == 0
    far = finite_game_gradient(torch.tensor([0.5, 0.5]), torch.tensor([0.0, -200.0]))
    assert far.isfinite().all()


def test_messages():
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        finite_game_gradient(p, torch.zeros(3))
    with pytest.raises(ValueError, match=r"sum 1, got \[1.0, 0.0\]; leave out"):
        play_finite_game(torch.tensor([1.0, 0.0]), torch.zeros(2))
    with pytest.raises(ValueError, match="do not tell p/q"):
        play_finite_game(p, torch.zeros(2), "wasserstein")
    with pytest.raises(ValueError, match="lr > 0 and steps >= 0, got 0 and 5"):
        play_finite_game(p, torch.zeros(2), lr=0, steps=5)
