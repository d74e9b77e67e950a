"""Decoder likelihoods: torch.distributions, quadrature, enumeration of all items, closed forms, draws, messages."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, ContinuousBernoulli, Independent, Normal

from danlu.generative import (
    BernoulliLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
    LogisticLikelihood,
    LogisticMixtureLikelihood,
    make_likelihood,
)
from danlu.math import discretized_logistic_log_prob

D = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def params_of(likelihood: Likelihood, n: int, shape: tuple[int, ...], dtype: torch.dtype = D) -> Tensor:
    return normal(n, *likelihood.param_shape(shape), seed=5, dtype=dtype)


NAMES = [
    *("bernoulli", "continuous_bernoulli", "gaussian", "gaussian:global", "gaussian:pixel", "gaussian:0.5"),
    *("discretized_logistic", "logistic_mixture"),
]
SHAPES = [(6,), (1, 2, 3), (3, 2, 2), (2, 5)]


def data_for(likelihood: Likelihood, n: int, shape: tuple[int, ...]) -> Tensor:
    if likelihood.discrete:
        return torch.randint(likelihood.levels, (n, *shape), generator=seeded(), dtype=torch.uint8)
    return torch.rand(n, *shape, generator=seeded(), dtype=D)


# what all have in common


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_sample_axes(name, shape):
    likelihood = make_likelihood(name, bits=2, components=2).eval()
    x, params = data_for(likelihood, 4, shape), params_of(likelihood, 4, shape)
    value = likelihood.log_prob(params, x)
    assert value.shape == (4,) and value.dtype == D and value.isfinite().all()
    several = torch.stack([params, 2 * params, params + 1])
    rows = torch.stack([likelihood.log_prob(p, x) for p in several])
    torch.testing.assert_close(likelihood.log_prob(several, x), rows)
    one = [likelihood.log_prob(params[i : i + 1], x[i : i + 1]) for i in range(4)]  # items do not see each other
    torch.testing.assert_close(value, torch.cat(one))
    assert likelihood.mean(params).shape == (4, *shape)
    drawn = likelihood.sample(params, seeded())
    assert drawn.shape == (4, *shape) and torch.equal(drawn, likelihood.sample(params, seeded()))
    assert likelihood.log_prob(params, drawn).isfinite().all()
    assert likelihood.inputs(x).is_floating_point() and likelihood.inputs(x).abs().max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch_strides_and_half_precision(name):
    likelihood = make_likelihood(name, bits=3, components=2).eval()
    x, params = data_for(likelihood, 3, (1, 2, 2)), params_of(likelihood, 3, (1, 2, 2))
    assert likelihood.log_prob(params[:0], x[:0]).shape == (0,)
    assert likelihood.sample(params[:0]).shape == (0, 1, 2, 2)
    strided = params.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    torch.testing.assert_close(likelihood.log_prob(strided, x), likelihood.log_prob(params, x))
    for dtype in (torch.bfloat16, torch.float16):
        got = likelihood.log_prob(params.to(dtype), x)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, likelihood.log_prob(params.to(dtype).float(), x))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    likelihood = make_likelihood(name, bits=2, components=2).eval().double()
    x = data_for(likelihood, 2, (2, 1, 2))
    params = params_of(likelihood, 2, (2, 1, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(p, x), (params,))


@pytest.mark.parametrize("name", NAMES)
def test_precision_under_autocast(name):
    likelihood = make_likelihood(name).eval()
    x, params = data_for(likelihood, 3, (1, 2, 2)), params_of(likelihood, 3, (1, 2, 2), torch.float32)
    expected = likelihood.log_prob(params, x)
    with torch.autocast("cpu", torch.bfloat16):
        got = likelihood.log_prob(params, x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiles(name):
    likelihood = make_likelihood(name, bits=2, components=2).eval()
    x, params = data_for(likelihood, 3, (4,)), params_of(likelihood, 3, (4,), torch.float32)
    torch._dynamo.reset()
    got = torch.compile(likelihood.log_prob, backend="eager")(params, x)
    torch.testing.assert_close(got, likelihood.log_prob(params, x))


# Gaussian


def test_gaussian_against_torch():
    x, mean, raw = normal(3, 5), normal(3, 5, seed=1), normal(3, 5, seed=2)
    for likelihood, params, std in (
        (GaussianLikelihood(0.3), mean, torch.tensor(0.3, dtype=D)),
        (GaussianLikelihood("pixel"), torch.cat([mean, raw], 1), (7 * torch.tanh(raw / 7)).exp()),
    ):
        torch.testing.assert_close(likelihood.log_prob(params, x), Independent(Normal(mean, std), 1).log_prob(x))
        torch.testing.assert_close(likelihood.mean(params), mean)
    shared = GaussianLikelihood("global").double()
    with torch.no_grad():
        shared.log_scale.fill_(-0.4)
    width = math.exp(7 * math.tanh(-0.4 / 7))
    torch.testing.assert_close(shared.log_prob(mean, x), Normal(mean, width).log_prob(x).sum(1))


def test_squared_error_alone_is_a_width_of_root_one_half():
    x, mean = normal(4, 6), normal(4, 6, seed=1)
    value = GaussianLikelihood(math.sqrt(0.5)).log_prob(mean, x)
    torch.testing.assert_close(-value, ((x - mean) ** 2).sum(1) + 3 * math.log(math.pi))


def test_optimal_width_is_the_closed_form_and_a_minimum():
    x, mean = normal(4, 6), normal(4, 6, seed=1)
    error = ((x - mean) ** 2).mean()
    value = -GaussianLikelihood().log_prob(mean, x).mean()
    assert value.item() == pytest.approx(3 * math.log(2 * math.pi * math.e * error.item()))
    log_s = (0.5 * error.log()).clone().requires_grad_()
    loss = -Normal(mean, log_s.exp()).log_prob(x).sum(1).mean()
    assert torch.autograd.grad(loss, log_s)[0].abs() < 1e-12
    for s in (0.9, 1.1):
        assert -GaussianLikelihood(s * math.sqrt(error.item())).log_prob(mean, x).mean() > value


def test_optimal_width_has_the_gradient_of_the_closed_form():
    x, mean = normal(4, 6), normal(4, 6, seed=1).requires_grad_()
    (got,) = torch.autograd.grad(-GaussianLikelihood().log_prob(mean, x).mean(), mean)
    (expected,) = torch.autograd.grad(3 * ((x - mean) ** 2).mean().log(), mean)
    torch.testing.assert_close(got, expected)


def test_optimal_width_outside_of_training_is_the_average_of_training():
    likelihood = GaussianLikelihood()
    zero = torch.zeros(10, 3)
    likelihood.log_prob(zero, torch.full((10, 3), 2.0))
    likelihood.log_prob(zero, torch.full((10, 3), 4.0))
    assert likelihood.variance.item() == pytest.approx((4 + 16) / 2)  # the mean of the first hundred
    likelihood.eval()
    assert likelihood.log_prob(zero, zero)[0].item() == pytest.approx(-1.5 * math.log(2 * math.pi * 10))
    assert likelihood.variance.item() == pytest.approx(10) and likelihood.updates == 2  # looking changes nothing
    assert likelihood.width(zero).item() == pytest.approx(math.sqrt(10))
    other = GaussianLikelihood()
    other.load_state_dict(likelihood.state_dict())
    assert other.eval().log_prob(zero, zero)[0] == likelihood.log_prob(zero, zero)[0]


def test_optimal_width_forgets_slowly_and_survives_a_bad_batch():
    likelihood, zero = GaussianLikelihood(validate=False), torch.zeros(2, 3)
    for _ in range(150):
        likelihood.log_prob(zero, zero + 1)
    likelihood.log_prob(zero, torch.full((2, 3), torch.nan))
    assert likelihood.variance == 1 and likelihood.updates == 150
    likelihood.log_prob(zero, zero + 3)
    assert likelihood.variance.item() == pytest.approx(1 + 0.01 * 8)
    perfect = likelihood.log_prob(zero, zero)
    assert perfect.isfinite().all()  # never narrower than 0.001
    assert perfect[0].item() == pytest.approx(3 * (math.log(1000) - 0.5 * math.log(2 * math.pi)), rel=1e-5)


def test_gaussian_draws():
    params = torch.cat([torch.full((1, 4000), 3.0), torch.full((1, 4000), -1.0)], dim=1)
    x = GaussianLikelihood("pixel").sample(params, seeded())
    width = math.exp(7 * math.tanh(-1 / 7))
    assert x.mean().item() == pytest.approx(3.0, abs=4 * width / math.sqrt(4000))
    assert x.std().item() == pytest.approx(width, rel=4 / math.sqrt(8000))


# continuous Bernoulli

LOGITS = [-90.0, -5.0, -1.01, -0.99, -0.3, -1e-4, 0.0, 1e-6, 0.7, 0.999, 1.001, 3.0, 40.0, 800.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_integrates_to_one_and_has_its_mean(logit):
    """Gauss-Legendre on 64 panels."""
    likelihood = ContinuousBernoulliLikelihood()
    nodes, weights = torch.tensor([0.1127016653792583, 0.5, 0.8872983346207417], dtype=D), torch.tensor([5, 8, 5]) / 18
    x = ((torch.arange(2048, dtype=D)[:, None] + nodes) / 2048).flatten()[:, None]
    p = likelihood.log_prob(torch.full_like(x, logit), x).exp() * weights.to(D).repeat(2048) / 2048
    assert p.sum().item() == pytest.approx(1.0, abs=1e-6)
    mean = likelihood.mean(torch.tensor([[logit]], dtype=D)).item()
    assert (p * x[:, 0]).sum().item() == pytest.approx(mean, abs=1e-6)


def test_continuous_bernoulli_against_torch_and_the_constant():
    logit = torch.tensor([-4.0, -0.6, 0.5, 2.5, 9.0], dtype=D)
    x = torch.tensor([0.0, 0.3, 0.5, 0.8, 1.0], dtype=D)
    other = ContinuousBernoulli(logits=logit)
    likelihood = ContinuousBernoulliLikelihood()
    torch.testing.assert_close(likelihood.log_prob(logit[:, None], x[:, None]), other.log_prob(x))
    torch.testing.assert_close(likelihood.mean(logit[:, None])[:, 0], other.mean)
    at = likelihood.log_prob(torch.tensor([[math.log(0.25)]], dtype=D), torch.tensor([[1.0]])).item()
    assert math.exp(at) / 0.2 == pytest.approx(2.31049, abs=1e-5)  # C(0.2) = 2 atanh(0.6) / 0.6
    assert math.exp(at) / 0.2 == pytest.approx(2 * math.atanh(0.6) / 0.6)


def test_continuous_bernoulli_in_float32_near_and_far():
    logit = torch.tensor([0.0, 1e-8, 1e-3, 0.9, 1.1, 1e4, -1e4, 1e30, -1e30])
    x = torch.full_like(logit, 0.25)
    likelihood = ContinuousBernoulliLikelihood()
    double = likelihood.log_prob(logit.double()[:, None], x.double()[:, None])
    torch.testing.assert_close(likelihood.log_prob(logit[:, None], x[:, None]).double(), double, rtol=1e-6, atol=1e-6)
    logit.requires_grad_()
    likelihood.log_prob(logit[:, None], x[:, None]).sum().backward()
    assert logit.grad.isfinite().all() and logit.grad[0] == -0.25  # x - 1/2


@pytest.mark.parametrize("logit", [-1e20, -30.0, -2.0, -1e-7, 0.0, 1e-3, 2.0, 30.0, 1e20])
def test_continuous_bernoulli_draws(logit):
    likelihood = ContinuousBernoulliLikelihood()
    params = torch.full((1, 20_000), logit)
    x = likelihood.sample(params, seeded())[0]
    assert x.min() >= 0 and x.max() <= 1
    assert x.mean().item() == pytest.approx(
        likelihood.mean(params)[0, 0].item(), abs=4 * x.std().item() / math.sqrt(20_000) + 1e-6
    )
    if abs(logit) < 100:
        ranked = x.sort().values
        for q in (0.1, 0.5, 0.9):  # the distribution function (e^(l x) - 1) / (e^l - 1) at the quantiles
            at = ranked[int(q * 20_000)].item()
            below = math.expm1(logit * at) / math.expm1(logit) if logit else at
            assert below == pytest.approx(q, abs=4 * 0.5 / math.sqrt(20_000))


# discrete


def test_bernoulli_against_torch():
    logits, x = 4 * normal(3, 5), torch.bernoulli(torch.full((3, 5), 0.5), generator=seeded())
    likelihood = BernoulliLikelihood()
    expected = Bernoulli(logits=logits).log_prob(x.to(D)).sum(1)
    for given in (x, x.bool(), x.to(torch.uint8), x.long()):
        torch.testing.assert_close(likelihood.log_prob(logits, given), expected)
    torch.testing.assert_close(likelihood.mean(logits), logits.sigmoid())
    torch.testing.assert_close(BernoulliLikelihood(validate=False).log_prob(logits, x), expected)


def test_bernoulli_keeps_its_digits_and_its_gradient_at_0():
    likelihood = BernoulliLikelihood()
    sure = likelihood.log_prob(torch.tensor([[-30.0, 30.0]]), torch.tensor([[0, 1]]))
    assert sure.item() == pytest.approx(-2 * math.exp(-30), rel=1e-5)
    wrong = likelihood.log_prob(torch.tensor([[-1e30]]), torch.tensor([[1]]))
    assert wrong.item() == pytest.approx(-1e30)
    logits = torch.zeros(1, 2, requires_grad=True)
    likelihood.log_prob(logits, torch.tensor([[0, 1]])).sum().backward()
    assert logits.grad.tolist() == [[-0.5, 0.5]]


def test_greys_as_cross_entropy_when_asked_for():
    logits, x = normal(3, 5), torch.rand(3, 5, generator=seeded(), dtype=D)
    got = BernoulliLikelihood(validate=False).log_prob(logits, x)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    torch.testing.assert_close(got, -expected)


@pytest.mark.parametrize(
    ("likelihood", "shape"),
    [
        (BernoulliLikelihood(), (1, 2, 2)),
        (LogisticLikelihood(bits=2), (3,)),
        (LogisticLikelihood(bits=1), (2, 1, 2)),
        (LogisticMixtureLikelihood(3, bits=2), (3,)),
        (LogisticMixtureLikelihood(2, bits=2), (3, 1, 1)),
        (LogisticMixtureLikelihood(2, bits=2, coupled=False), (3, 1, 1)),
        (LogisticMixtureLikelihood(2, bits=1), (2, 2, 1)),
        (LogisticMixtureLikelihood(1, bits=1), (4, 1, 1)),
    ],
)
def test_all_items_sum_to_one_and_the_table_agrees(likelihood, shape):
    """Every item there is: probabilities, the table for a coder, expected values and draws."""
    size = math.prod(shape)
    items = torch.tensor(list(itertools.product(range(likelihood.levels), repeat=size))).reshape(-1, *shape)
    params = 2 * normal(1, *likelihood.param_shape(shape), seed=9)
    log_p = likelihood.log_prob(params.expand(len(items), *params.shape[1:]), items)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    table = likelihood.log_pmf(params.expand(len(items), *params.shape[1:]), items)
    assert table.shape == (*items.shape, likelihood.levels)
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(items.shape, dtype=D))
    picked = table.gather(-1, items[..., None])[..., 0]
    torch.testing.assert_close(picked.flatten(1).sum(1), log_p)
    drawn = likelihood.sample(params.expand(20_000, *params.shape[1:]), seeded()).long()
    place = likelihood.levels ** torch.arange(size - 1, -1, -1)
    share = (drawn.flatten(1) @ place).bincount(minlength=len(items)) / 20_000
    p = log_p.exp()
    assert ((share - p).abs() <= 4.5 * (p * (1 - p) / 20_000).sqrt() + 1e-4).all()
    if shape[0] == 1 or len(shape) == 1 or isinstance(likelihood, LogisticLikelihood):
        expected = (p[:, None] * items.flatten(1)).sum(0).reshape(shape)
        torch.testing.assert_close(likelihood.mean(params)[0], expected)
    else:
        first = (p[:, None] * items[:, 0].flatten(1)).sum(0)  # of the first channel: nothing before it
        torch.testing.assert_close(likelihood.mean(params)[0, 0].flatten(), first)


def test_a_coder_can_decode_channel_by_channel():
    """What stands in a channel and after it does not matter to its table."""
    likelihood = LogisticMixtureLikelihood(2, bits=2)
    params = params_of(likelihood, 3, (3, 2, 1))
    x = torch.randint(4, (3, 3, 2, 1), generator=seeded())
    whole, known = likelihood.log_pmf(params, x), torch.zeros_like(x)
    for c in range(3):
        torch.testing.assert_close(likelihood.log_pmf(params, known)[:, c], whole[:, c])
        known[:, c] = x[:, c]
    known[:, 0] = (x[:, 0] + 1) % 4
    assert not torch.allclose(likelihood.log_pmf(params, known)[:, 1], whole[:, 1])


def test_logistic_is_the_one_of_math_channel_by_channel():
    x, params = torch.randint(256, (2, 3, 4, 4), generator=seeded()), normal(2, 6, 4, 4)
    expected = discretized_logistic_log_prob(x, params[:, :3], 7 * torch.tanh(params[:, 3:] / 7))
    torch.testing.assert_close(LogisticLikelihood().log_prob(params, x), expected.flatten(1).sum(1))


def test_a_mixture_of_one_is_a_logistic():
    x, mean, raw = torch.randint(16, (3, 5), generator=seeded()), normal(3, 5), normal(3, 5, seed=1)
    mixture = torch.cat([torch.zeros(3, 5, dtype=D), mean, raw], 1)
    torch.testing.assert_close(
        LogisticMixtureLikelihood(1, bits=4).log_prob(mixture, x),
        LogisticLikelihood(bits=4).log_prob(torch.cat([mean, raw], 1), x),
    )


def test_levels_for_an_encoder_and_means_in_parts(monkeypatch):
    likelihood = LogisticLikelihood(bits=4)
    x = torch.tensor([[0, 15, 6]], dtype=torch.uint8)
    torch.testing.assert_close(likelihood.inputs(x), torch.tensor([[-1.0, 1.0, -0.2]]))
    params = normal(7, 6)
    whole = likelihood.mean(params)
    monkeypatch.setattr("danlu.generative.likelihood_discrete.AT_ONCE", 100)
    torch.testing.assert_close(likelihood.mean(params), whole)
    assert likelihood.mean(params[:0]).shape == (0, 3)


# messages


def test_messages_of_shapes():
    with pytest.raises(ValueError, match=r"GaussianLikelihood.*\(2, 6\) for x \(2, 3\); got \(2, 3\)"):
        GaussianLikelihood("pixel").log_prob(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\) for x \(2, 3\); got \(1, 3\)"):
        BernoulliLikelihood().log_prob(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(N, D\) for x \(3,\); got \(3,\)"):
        BernoulliLikelihood().log_prob(torch.zeros(3), torch.zeros(3))


def test_messages_of_values():
    with pytest.raises(ValueError, match=r"needs x of 0 and 1, got 0\.5.*continuous_bernoulli for greys"):
        BernoulliLikelihood().log_prob(torch.zeros(1, 2), torch.tensor([[1.0, 0.5]]))
    with pytest.raises(ValueError, match="needs x of 0 and 1, got nan"):
        BernoulliLikelihood().log_prob(torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"x in \[0, 1\], got values from 0.0 to 255.0; levels"):
        ContinuousBernoulliLikelihood().log_prob(torch.zeros(1, 2), torch.tensor([[0.0, 255.0]]))
    with pytest.raises(ValueError, match="finite x; one holds nan"):
        GaussianLikelihood().log_prob(torch.zeros(1, 2), torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"whole levels 0 .. 15 for bits=4, got 16"):
        LogisticLikelihood(bits=4).log_prob(torch.zeros(1, 4), torch.tensor([[0, 16]]))
    with pytest.raises(ValueError, match=r"whole levels 0 .. 15 for bits=4, got 0.5"):
        LogisticMixtureLikelihood(2, bits=4).log_prob(torch.zeros(1, 6), torch.tensor([[0.5]]))


def test_messages_of_construction():
    for scale in (0.0, -1.0, math.inf, math.nan, "best"):
        with pytest.raises(ValueError, match=f"'optimal', 'global' or 'pixel', got {scale!r}"):
            GaussianLikelihood(scale)
    with pytest.raises(ValueError, match="components >= 1, got 0"):
        LogisticMixtureLikelihood(0)
    with pytest.raises(ValueError, match="LogisticLikelihood needs bits between 1 and 16, got 17"):
        LogisticLikelihood(bits=17)
    with pytest.raises(ValueError, match="no likelihood 'gaussian:wide': scale must be"):
        make_likelihood("gaussian:wide")
    with pytest.raises(ValueError, match="no likelihood 'mse'; there are bernoulli, "):
        make_likelihood("mse")
    with pytest.raises(ValueError, match="depend on each other: log_pmf needs x, the levels of the 3 channels"):
        LogisticMixtureLikelihood(2).log_pmf(torch.zeros(1, 20, 1, 1))
    with pytest.raises(ValueError, match=r"GaussianLikelihood is a density.*has no table"):
        GaussianLikelihood().log_pmf(torch.zeros(1, 2))
