"""MALA: exact on a normal, detailed balance, walls, warm-up; diagnostics on chains known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from danlu.generative.chain_diagnostics import chain_ess, split_r_hat
from danlu.generative.langevin import latent_energy
from danlu.generative.mala import mala


def normal(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1) / 2


def quartic(x: Tensor) -> Tensor:
    return x[:, 0] ** 4 / 4 - x[:, 0].square() / 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_quartic(n: int, temperature: float) -> Tensor:
    """Draws of exp(-U / T) by the inverse of a cumulative table."""
    grid = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    weight = (-quartic(grid[:, None]) / temperature).exp()
    cumulative = weight.cumsum(0) / weight.sum()
    u = torch.rand(n, generator=seeded(9), dtype=torch.float64)
    return grid[torch.searchsorted(cumulative, u).clamp_max(20_000)][:, None]


def test_acceptance_is_the_ratio_of_the_proposal_densities():
    """One step by hand: k written out as the density of the proposal, eq. (2), not (3)."""
    x = torch.randn(500, 2, dtype=torch.float64, generator=seeded())
    step, temperature = 0.7, 1.7
    energy = lambda v: (v**4).sum(1) / 4 + v[:, 0] * v[:, 1]  # noqa: E731

    def slope(v: Tensor) -> Tensor:
        return v**3 + v.flip(1)

    g = seeded(1)
    n = torch.randn(500, 2, dtype=torch.float64, generator=g)
    coin = torch.rand(500, dtype=torch.float64, generator=g)
    y = x - step / 2 * slope(x) + math.sqrt(step * temperature) * n

    def log_k(b: Tensor, a: Tensor) -> Tensor:
        return -(b - a + step / 2 * slope(a)).square().sum(1) / (2 * step * temperature)

    chance = ((energy(x) - energy(y)) / temperature + log_k(x, y) - log_k(y, x)).clamp_max(0).exp()
    got = mala(energy, x, step, 1, temperature=temperature, generator=seeded(1))
    torch.testing.assert_close(got.acceptance, chance)
    torch.testing.assert_close(got.x, torch.where((coin < chance)[:, None], y, x))
    torch.testing.assert_close(got.energy, energy(got.x))
    assert 0.2 < chance.mean() < 0.9


def test_no_bias_on_a_standard_normal():
    x = torch.randn(100_000, 1, generator=seeded())
    result = mala(normal, 3 * x, 0.5, 40, generator=seeded(1))
    assert result.x.var().item() == pytest.approx(1.0, rel=4 * 0.0045)  # the printed k gives 2.66
    assert result.x.mean().item() == pytest.approx(0.0, abs=4 / math.sqrt(100_000))
    assert result.acceptance.mean().item() == pytest.approx(0.97, abs=0.01)


@pytest.mark.parametrize("grad_clip", [None, 0.3])
def test_detailed_balance_between_cells(grad_clip):
    n, temperature = 200_000, 1.5
    x = exact_quartic(n, temperature)
    y = mala(quartic, x, 1.2, 1, temperature=temperature, grad_clip=grad_clip, generator=seeded(3)).x
    edges = torch.tensor([-1.2, -0.5, 0.0, 0.5, 1.2], dtype=torch.float64)
    cells = len(edges) + 1
    flow = torch.zeros(cells, cells)
    flow.index_put_((torch.bucketize(x[:, 0], edges), torch.bucketize(y[:, 0], edges)), torch.ones(n), accumulate=True)
    z = (flow - flow.T) / (flow + flow.T).clamp_min(1).sqrt()  # about normal if both ways are equally frequent
    assert z.abs().max() < 4.2
    assert (flow - flow.diag().diag()).sum() > 0.3 * n


def test_walls_cut_the_density_and_nothing_else():
    result = mala(
        lambda v: v.sum(1), torch.rand(40_000, 1, generator=seeded()), 0.4, 60, bounds=(0, 2), generator=seeded(1)
    )
    expected = 1 - 2 / (math.e**2 - 1)  # mean of an exponential cut at 2
    assert result.x.mean().item() == pytest.approx(expected, abs=4 * 0.53 / math.sqrt(40_000))
    assert result.x.min() >= 0 and result.x.max() <= 2


def test_forbidden_points_are_refused():
    energy = lambda v: torch.where(v[:, 0] > 0, v[:, 0], torch.inf)  # noqa: E731
    result = mala(energy, torch.rand(20_000, 1, generator=seeded()) + 0.1, 1.0, 60, generator=seeded(1))
    assert result.x.min() > 0
    assert result.x.mean().item() == pytest.approx(1.0, abs=0.04)


def test_product_of_two_gaussians():
    energy = lambda v: (v[:, 0] - 1).square() / (2 * 0.5) + (v[:, 0] + 1).square() / (2 * 2.0)  # noqa: E731
    x = mala(energy, torch.zeros(40_000, 1), 0.4, 60, generator=seeded()).x
    variance = 1 / (1 / 0.5 + 1 / 2.0)
    mean = variance * (1 / 0.5 - 1 / 2.0)
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000))
    assert x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))


def test_latent_energy_samples_the_posterior_of_codes():
    """U = |x|^2 / (2 v) of x = 2 z with a normal prior: z has precision 1 + 4 / v."""
    z = mala(
        latent_energy(lambda x: normal(x) / 0.5, lambda v: 2 * v), torch.zeros(20_000, 1), 0.1, 60, generator=seeded()
    )
    assert z.x.var().item() == pytest.approx(1 / 9, rel=4 * math.sqrt(2 / 20_000))


def test_warmup_finds_the_acceptance_and_then_stands_still():
    x = torch.randn(400, 8, generator=seeded())
    result = mala(normal, x, 1e-3, 50, warmup=200, generator=seeded(1))
    assert result.acceptance.mean().item() == pytest.approx(0.574, abs=0.05)
    assert mala(normal, x, 0.37, 50, generator=seeded(1)).step == 0.37
    later = mala(normal, result.x, result.step, 20, generator=seeded(2))
    again = mala(normal, result.x, result.step, 20, target_acceptance=0.1, generator=seeded(2))
    assert torch.equal(later.x, again.x)  # no tuning without a warm-up


def test_draws_are_kept_after_the_warmup_only():
    result = mala(normal, torch.zeros(3, 2), 0.5, 7, warmup=4, keep_every=2, generator=seeded())
    assert result.draws.shape == (3, 3, 2)
    assert mala(normal, torch.zeros(3, 2), 0.5, 6, keep_every=6, generator=seeded()).draws.shape == (1, 3, 2)
    one = mala(normal, torch.zeros(3, 2), 0.5, 6, keep_every=6, generator=seeded())
    assert torch.equal(one.draws[0], one.x)
    assert mala(normal, torch.zeros(3, 2), 0.5, 0).acceptance.isnan().all()


def test_shapes_dtypes_and_no_chains():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.zeros(2, 1, 3, 3, dtype=dtype)
        result = mala(normal, x, 0.1, 2, generator=seeded(), keep_every=1)
        assert result.x.dtype == result.draws.dtype == dtype
        assert (x == 0).all()
    flat = mala(lambda v: v.square() / 2, torch.zeros(4), 0.1, 2, generator=seeded())  # chains of single numbers
    assert flat.x.shape == (4,)
    empty = mala(normal, torch.zeros(0, 2), 0.1, 2, warmup=2)
    assert empty.x.shape == (0, 2)
    assert math.isfinite(empty.step)


def test_far_starts_and_overflow_do_not_break_the_chain():
    x = torch.tensor([[1e4], [1.0]])
    result = mala(lambda v: (v**4).sum(1), x, 1.0, 5, generator=seeded())
    assert result.x.isfinite().all()
    assert result.x[0].item() == 1e4  # every proposal is absurd and refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, r"temperature > 0.*got 0.0.*langevin\(noise=0\)"),
        ({"target_acceptance": 1.0}, r"target_acceptance in \(0, 1\)"),
        ({"warmup": -1}, "warmup >= 0"),
        ({"energy": lambda x: x.sum(1) / 0}, "2 of 2 starts have an energy that is not"),
        ({"bounds": (-1.0, 0.5)}, "mala starts inside the bounds"),
    ],
)
def test_messages(arguments, message):
    given = {"energy": normal, "x": torch.ones(2, 1), "step": 0.1, "num_steps": 1} | arguments
    with pytest.raises(ValueError, match=message):
        mala(**given)


def test_nan_and_minus_infinity_are_reported_with_the_step():
    for bad in (math.nan, -math.inf):
        calls = []

        def energy(x: Tensor, bad: float = bad, calls: list[int] = calls) -> Tensor:
            calls.append(0)
            return torch.where(torch.tensor(len(calls) == 4), bad + 0 * x.sum(1), x.square().sum(1))

        with pytest.raises(RuntimeError, match="no number at step 2 of 6"):
            mala(energy, torch.ones(2, 1), 0.1, 6, generator=seeded())


def autoregressive(rho: float, length: int, chains: int) -> Tensor:
    noise = torch.randn(length, chains, dtype=torch.float64, generator=seeded(4))
    x = [noise[0]]
    for t in range(1, length):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise[t])
    return torch.stack(x)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_effective_sample_size_of_an_autoregression(rho):
    draws = autoregressive(rho, 4000, 4)
    expected = draws.numel() * (1 - rho) / (1 + rho)
    assert chain_ess(draws).item() == pytest.approx(expected, rel=0.15)
    assert split_r_hat(draws).item() == pytest.approx(1.0, abs=0.01)


def test_effective_sample_size_by_a_plain_loop():
    draws = autoregressive(0.6, 40, 3)
    halves = [draws[:20, j].tolist() for j in range(3)] + [draws[20:, j].tolist() for j in range(3)]
    length, count = 20, 6
    means = [sum(c) / length for c in halves]

    def covariance(lag: int) -> float:
        total = 0.0
        for chain, mean in zip(halves, means, strict=True):
            total += sum((chain[i] - mean) * (chain[i + lag] - mean) for i in range(length - lag)) / length
        return total / count

    within = covariance(0) * length / (length - 1)
    grand = sum(means) / count
    mixed = (length - 1) / length * within + sum((m - grand) ** 2 for m in means) / (count - 1)
    rho = [1.0] + [1 - (within - covariance(t)) / mixed for t in range(1, length)]
    tau, last = -1.0, math.inf
    for k in range(length // 2):
        pair = rho[2 * k] + rho[2 * k + 1]
        if pair <= 0:
            break
        last = min(last, pair)
        tau += 2 * last
    assert chain_ess(draws).item() == pytest.approx(length * count / tau, rel=1e-9)
    assert split_r_hat(draws).item() == pytest.approx(math.sqrt(mixed / within), rel=1e-9)


def test_chains_that_disagree_and_chains_that_drift():
    draws = autoregressive(0.0, 200, 4)
    assert split_r_hat(draws + torch.tensor([0.0, 0.0, 0.0, 5.0])) > 1.5
    assert split_r_hat(draws + torch.linspace(0, 5, 200)[:, None]) > 1.3
    assert chain_ess(draws + torch.tensor([0.0, 0.0, 0.0, 5.0])) < 20


def test_diagnostics_per_coordinate_constants_and_messages():
    draws = torch.stack([autoregressive(0.0, 20, 2), torch.ones(20, 2, dtype=torch.float64)], -1).float()
    ess, r_hat = chain_ess(draws), split_r_hat(draws)
    assert ess.shape == r_hat.shape == (2,)
    assert ess.dtype == torch.float32
    assert ess[1].isnan() and r_hat[1].isnan() and ess[0].isfinite()
    bad = draws.clone()
    bad[3, 0, 0] = torch.nan
    assert chain_ess(bad)[0].isnan()
    with pytest.raises(ValueError, match=r"T >= 8 and N >= 1, got \(20,\); one chain is draws\[:, None\]"):
        chain_ess(torch.zeros(20))
    with pytest.raises(ValueError, match=r"got \(7, 2\)"):
        split_r_hat(torch.zeros(7, 2))
