"""EM: scikit-learn step for step, monotone by half steps, E is the best encoder, M the best decoder, edges."""

import math

import pytest
import torch
from torch import Tensor

from danlu.generative.em import GaussianMixture, em_step, gaussian_mixture_fit, mixture_log_joint
from danlu.generative.joint_kl import free_energy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int = 200, dim: int = 2) -> Tensor:
    x = torch.randn(n, dim, dtype=torch.float64, generator=seeded())
    x[: n // 2] = x[: n // 2] * 0.3 + 2.0
    return x


def start(x: Tensor, k: int = 3) -> GaussianMixture:
    chosen = x[torch.randperm(len(x), generator=seeded(1))[:k]]
    covariance = torch.cov(x.T).reshape(x.shape[1], x.shape[1])
    return GaussianMixture(torch.full((k,), 1 / k, dtype=x.dtype), chosen, covariance.repeat(k, 1, 1))


@pytest.mark.parametrize("dim", [1, 3])
def test_equals_scikit_learn_step_for_step(dim):
    mixture = pytest.importorskip("sklearn.mixture")
    x = blobs(dim=dim)
    first = start(x)
    peer = mixture.GaussianMixture(
        3,
        max_iter=15,
        tol=0.0,
        reg_covar=1e-4,
        weights_init=first.weights.numpy(),
        means_init=first.means.numpy(),
        precisions_init=torch.linalg.inv(first.covariances).numpy(),
    )
    with pytest.warns(UserWarning, match="converge"):
        peer.fit(x.numpy())
    got = gaussian_mixture_fit(x, 3, 15, floor=1e-4, tolerance=0.0, start=first)
    tight = {"rtol": 0.0, "atol": 1e-10}
    torch.testing.assert_close(got.model.weights, torch.from_numpy(peer.weights_), **tight)
    torch.testing.assert_close(got.model.means, torch.from_numpy(peer.means_), **tight)
    torch.testing.assert_close(got.model.covariances, torch.from_numpy(peer.covariances_), **tight)
    torch.testing.assert_close(got.model.log_prob(x), torch.from_numpy(peer.score_samples(x.numpy())))
    assert len(got.history) == 30


def test_every_half_step_goes_down():
    x = blobs()
    result = gaussian_mixture_fit(x, 4, 60, floor=0.0, tolerance=0.0, start=start(x, 4))
    steps = [after - before for before, after in zip(result.history, result.history[1:], strict=False)]
    assert max(steps) < 1e-12
    assert len(result.history) == 120
    assert result.history[0] - result.history[-1] > 0.2


def test_after_the_e_step_it_is_the_likelihood():
    x = blobs()
    first = start(x)
    result = gaussian_mixture_fit(x, 3, 1, floor=0.0, start=first)
    assert result.history[0] == pytest.approx(-first.log_prob(x).mean().item(), abs=1e-12)
    assert not result.converged


def test_each_block_is_at_its_minimum():
    """Moving e, or any parameter, from what a half step found only raises F."""
    x = blobs(40)
    model = start(x)
    encoder, *state = em_step(x, model.weights, model.means, model.covariances)
    f_encoder = free_energy(model.log_joint(x), encoder.log()).mean()
    f_decoder = free_energy(mixture_log_joint(x, *state), encoder.log()).mean()
    for seed in range(10):
        noise = torch.randn(40, 3, dtype=torch.float64, generator=seeded(seed))
        other = (encoder.log() + 0.05 * noise).log_softmax(1)
        assert free_energy(model.log_joint(x), other).mean() > f_encoder
        weights = (state[0].log() + 0.05 * noise[0]).softmax(0)
        means = state[1] + 0.05 * noise[1:4, :2]
        spread = state[2] * (1 + 0.1 * noise[5, 0].abs())
        for changed in ((weights, *state[1:]), (state[0], means, state[2]), (*state[:2], spread)):
            assert free_energy(mixture_log_joint(x, *changed), encoder.log()).mean() > f_decoder


def test_log_joint_against_torch_distributions():
    x = blobs(10)
    model = start(x)
    normal = torch.distributions.MultivariateNormal(model.means, model.covariances)
    torch.testing.assert_close(model.log_joint(x), normal.log_prob(x[:, None]) + model.weights.log())
    torch.testing.assert_close(model.encode(x).sum(1), torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(model.reconstruct(x), model.encode(x) @ model.means)


def test_density_integrates_to_one():
    model = gaussian_mixture_fit(blobs(), 2, generator=seeded()).model
    side = torch.linspace(-7, 7, 281, dtype=torch.float64)
    total = model.log_prob(torch.cartesian_prod(side, side)).exp().sum() * 0.05**2
    assert total.item() == pytest.approx(1.0, abs=1e-6)


def test_it_finds_two_blobs_and_stops():
    x = blobs(4000)
    result = gaussian_mixture_fit(x, 2, generator=seeded(3))
    assert result.converged
    order = result.model.means[:, 0].argsort()
    torch.testing.assert_close(
        result.model.means[order], torch.tensor([[0.0, 0.0], [2.0, 2.0]]).double(), atol=0.1, rtol=0
    )
    torch.testing.assert_close(result.model.weights, torch.tensor([0.5, 0.5]).double(), atol=0.05, rtol=0)


def test_samples_have_the_moments():
    model = GaussianMixture(
        torch.tensor([0.25, 0.75]),
        torch.tensor([[0.0, 0.0], [3.0, 1.0]]),
        torch.tensor([[[1.0, 0.5], [0.5, 1.0]], [[0.2, 0.0], [0.0, 2.0]]]),
    )
    x = model.sample(100_000, seeded())
    torch.testing.assert_close(x.mean(0), torch.tensor([2.25, 0.75]), atol=0.03, rtol=0)
    within = 0.25 * model.covariances[0] + 0.75 * model.covariances[1]
    gap = model.means - torch.tensor([2.25, 0.75])
    expected = within + 0.25 * torch.outer(gap[0], gap[0]) + 0.75 * torch.outer(gap[1], gap[1])
    torch.testing.assert_close(torch.cov(x.T), expected, atol=0.05, rtol=0)
    cold = model.sample(50, seeded(), temperature=0.0)
    assert set(map(tuple, cold.tolist())) <= set(map(tuple, model.means.tolist()))


def test_a_component_without_points_keeps_its_place():
    x = blobs(20)
    means = torch.stack([x.mean(0), torch.full((2,), 1e6, dtype=torch.float64)])
    state = (torch.tensor([0.5, 0.5]).double(), means, torch.eye(2).double().repeat(2, 1, 1))
    _, weights, centre, spread = em_step(x, *state)
    assert weights.tolist() == [1.0, 0.0]
    assert torch.equal(centre[1], means[1])
    assert torch.equal(spread[1], torch.eye(2).double())
    again = em_step(x, weights, centre, spread)
    assert all(t.isfinite().all() for t in again)


def test_one_point_one_component_and_dtypes():
    result = gaussian_mixture_fit(torch.tensor([[1.0, 2.0]]), 1)
    assert result.model.means.tolist() == [[1.0, 2.0]]
    assert result.model.means.dtype == torch.float64
    low = gaussian_mixture_fit(blobs().bfloat16(), 2, 5, generator=seeded())
    assert low.model.log_prob(blobs().bfloat16()).isfinite().all()


def test_state_round_trip():
    model = gaussian_mixture_fit(blobs(), 2, 3, generator=seeded()).model
    other = GaussianMixture(torch.zeros(2).double(), torch.zeros(2, 2).double(), torch.zeros(2, 2, 2).double())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(blobs()), model.log_prob(blobs()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_mixture_fit(torch.zeros(3), 1), r"finite points \(N, D\), got torch.float32 \(3,\)"),
        (lambda: gaussian_mixture_fit(torch.full((3, 1), math.nan), 1), "finite points"),
        (lambda: gaussian_mixture_fit(torch.zeros(3, 1), 4), "from 1 to the number of points.*got 4 for 3 points"),
        (lambda: gaussian_mixture_fit(torch.zeros(3, 1), 1, floor=0.0), "covariance 0 of 1 is not positive definite"),
        (lambda: start(blobs()).log_prob(torch.zeros(2, 3)), r"takes x \(N, 2\), got \(2, 3\)"),
        (
            lambda: em_step(torch.zeros(0, 1), torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1)),
            "at least one point",
        ),
        (lambda: GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2)), r"covariances \(K, D, D\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
