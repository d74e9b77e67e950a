"""f-GAN losses: the paper's pairs by hand, exact finite games, what each generator descends, a plain loop, extremes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.losses import FGANLoss, f_gan_critic_loss, f_gan_generator_loss
from danlu.math import F_DIVERGENCES, alpha_divergence, f_bound, f_divergence

G = torch.Generator().manual_seed(0)
REAL = torch.randn(7, 1, dtype=torch.float64, generator=G)
FAKE = torch.randn(5, 1, dtype=torch.float64, generator=G)
P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
LOGITS = torch.tensor([0.2, -0.4, 0.9, 0.1], dtype=torch.float64)
RECORDS = [*F_DIVERGENCES.values(), alpha_divergence(1.5)]
SMOOTH = [r for r in RECORDS if r.name != "total_variation"]


def by_hand(name, real, fake):  # oracle: E_P[T] - E_Q[f*(T)] with Python floats
    terms = {
        "kl": (lambda v: 1 + v, lambda v: math.exp(v)),
        "gan": (lambda v: math.log(1 / (1 + math.exp(-v))), lambda v: math.log(1 + math.exp(v)) - 2 * math.log(2)),
        "squared_hellinger": (lambda v: 1 - math.exp(-v / 2), lambda v: math.exp(v / 2) - 1),
        "pearson": (lambda v: 2 * math.exp(v) - 2, lambda v: (math.exp(v) - 1) ** 2 + 2 * (math.exp(v) - 1)),
    }[name]
    (a, b), r, f = terms, real.flatten().tolist(), fake.flatten().tolist()
    return sum(map(a, r)) / len(r), sum(map(b, f)) / len(f), sum(map(a, f)) / len(f)


@pytest.mark.parametrize("name", ["kl", "gan", "squared_hellinger", "pearson"])
def test_equals_the_formula(name):
    t_real, g_fake, t_fake = by_hand(name, REAL, FAKE)
    assert f_gan_critic_loss(REAL, FAKE, name).item() == pytest.approx(g_fake - t_real, rel=1e-12)
    assert f_gan_generator_loss(FAKE, name).item() == pytest.approx(-t_fake, rel=1e-12)
    assert f_gan_generator_loss(FAKE, name, "saturating").item() == pytest.approx(-g_fake, rel=1e-12)


def test_gan_is_binary_cross_entropy():
    ones, zeros = torch.ones_like(REAL), torch.zeros_like(FAKE)
    bce = F.binary_cross_entropy_with_logits
    expected = bce(REAL, ones) + bce(FAKE, zeros) - 2 * math.log(2)
    torch.testing.assert_close(f_gan_critic_loss(REAL, FAKE, "gan"), expected)
    torch.testing.assert_close(2 * f_gan_critic_loss(REAL, FAKE, "js"), expected)
    torch.testing.assert_close(f_gan_generator_loss(FAKE, "gan"), bce(FAKE, 1 - zeros))


def game(record, mode, logits):
    """Gradient of the generator's loss for a softmax generator and the best critic, by enumeration of samples."""
    logits = logits.clone().requires_grad_()
    q = logits.softmax(0)
    v = (P / q).log().detach()
    losses = torch.stack([f_gan_generator_loss(x, record, mode) for x in v])  # one sample each
    (q @ losses).backward()
    return logits.grad


def gradient(divergence, logits):
    logits = logits.clone().requires_grad_()
    divergence(logits.softmax(0)).backward()
    return logits.grad


@pytest.mark.parametrize("record", SMOOTH, ids=[r.name for r in SMOOTH])
def test_the_saturating_generator_descends_the_divergence(record):  # the envelope theorem
    torch.testing.assert_close(
        game(record, "saturating", LOGITS), gradient(lambda q: f_divergence(P, q, record), LOGITS)
    )


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("kl", lambda q: (q * (q / P).log()).sum()),
        ("reverse_kl", lambda q: ((q - P).square() / P).sum() / 2),
        ("gan", lambda q: ((P + q) * ((P + q) / P).log() - q).sum()),  # D' = log(1 + r)
    ],
)
def test_what_the_other_generator_descends(name, other):
    torch.testing.assert_close(game(F_DIVERGENCES[name], "non_saturating", LOGITS), gradient(other, LOGITS))


@pytest.mark.parametrize("mode", ["saturating", "non_saturating"])
@pytest.mark.parametrize("record", SMOOTH, ids=[r.name for r in SMOOTH])
def test_the_game_ends_at_the_data(record, mode):
    assert game(record, mode, P.log()).abs().max() < 1e-12
    logits = LOGITS.clone()
    before = (logits.softmax(0) - P).abs().sum()
    for _ in range(60):
        logits = logits - 0.3 * game(record, mode, logits)
    assert (logits.softmax(0) - P).abs().sum() < 0.7 * before


def test_gaussian_shift_by_quadrature():  # d KL(N(0,1) || N(m,1)) / dm = m
    x = torch.linspace(-12, 13, 20_001, dtype=torch.float64)
    m = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    q = (-(x - m).square() / 2).exp() / math.sqrt(2 * math.pi) * (25 / 20_000)
    v = ((x - 0.7).square() - x.square()) / 2
    record = FGANLoss("kl", "saturating").divergence
    (-(q * record.activation_conjugate(v)).sum()).backward()
    assert m.grad.item() == pytest.approx(0.7, abs=1e-9)


def test_gradcheck_and_accumulation():
    for record in RECORDS:
        real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda r, f, d=record: f_gan_critic_loss(r, f, d), (real, fake))
    whole = f_gan_critic_loss(REAL[:4], FAKE[:4], "js")
    parts = [f_gan_critic_loss(REAL[i : i + 2], FAKE[i : i + 2], "js") / 2 for i in (0, 2)]
    torch.testing.assert_close(sum(parts), whole)


def test_any_f_is_a_gan():
    loss = FGANLoss(lambda u: u * u.log(), "saturating")
    torch.testing.assert_close(loss(REAL, FAKE), f_gan_critic_loss(REAL, FAKE, "kl"))
    torch.testing.assert_close(loss.generator(FAKE), f_gan_generator_loss(FAKE, "kl", "saturating"))
    assert "q f(p / q), saturating, limit=30.0" in repr(loss)
    torch.testing.assert_close(FGANLoss("js")(REAL, FAKE), -f_bound(REAL, FAKE, "js"))
    torch.testing.assert_close(FGANLoss("js").generator(FAKE), f_gan_generator_loss(FAKE, "js", "non_saturating"))


@pytest.mark.parametrize("record", RECORDS, ids=[r.name for r in RECORDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wild_critic_overflows_nothing(record, dtype):
    v = torch.tensor([-6e4, -100.0, 0.0, 100.0, 6e4], dtype=dtype, requires_grad=True)
    for loss in (f_gan_critic_loss(v, v, record), f_gan_generator_loss(v, record, "saturating")):
        (grad,) = torch.autograd.grad(loss, v)
        assert loss.isfinite() and loss.dtype == torch.float32 and not grad.isnan().any()


def test_the_limit_is_smooth_and_keeps_a_slope():
    v = torch.tensor([-50.0, -2.0, -1.9, 0.0, 2.0, 2.1, 50.0], dtype=torch.float64, requires_grad=True)
    (-f_gan_generator_loss(v, "kl", limit=2.0) * 7).backward()  # T = 1 + v: the slope of v held back
    expected = [1 / 49, 1.0, 1.0, 1.0, 1.0, 1 / 1.1, 1 / 49]
    torch.testing.assert_close(v.grad, torch.tensor(expected, dtype=torch.float64))
    held = -f_gan_generator_loss(v[:1], "kl", limit=2.0).item() - 1
    assert held == pytest.approx(-2 - math.log(49))
    free = f_gan_generator_loss(v[:1], "kl", limit=None)
    assert free.item() == pytest.approx(49.0)


def test_a_plain_loop_measures_the_divergence():  # two coins: 0.8 against 0.3
    x = torch.tensor([1.0] * 8 + [0.0] * 2)[:, None]
    y = torch.tensor([1.0] * 3 + [0.0] * 7)[:, None]
    exact = f_divergence(torch.tensor([0.8, 0.2]), torch.tensor([0.3, 0.7]), "js")
    torch.manual_seed(0)
    critic, loss = nn.Linear(1, 1), FGANLoss("js")
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(critic(x), critic(y))
        value.backward()
        optimizer.step()
    assert -loss(critic(x), critic(y)).item() == pytest.approx(exact.item(), abs=1e-3)
    assert critic(torch.ones(1, 1)).item() == pytest.approx(math.log(8 / 3), abs=0.05)  # larger is more real


def test_messages():
    with pytest.raises(ValueError, match=r"mode must be 'non_saturating' .*got 'ns'"):
        f_gan_generator_loss(FAKE, mode="ns")
    with pytest.raises(ValueError, match=r"mode must be .*got 'ns'"):
        FGANLoss(mode="ns")
    with pytest.raises(ValueError, match=r"limit must be > 0, got 0; limit=None"):
        f_gan_critic_loss(REAL, FAKE, limit=0)
    with pytest.raises(ValueError, match=r"f_gan_generator_loss needs at least one fake sample; got \(0, 1\)"):
        f_gan_generator_loss(FAKE[:0])
    with pytest.raises(ValueError, match=r"at least one real and one fake"):
        f_gan_critic_loss(REAL, FAKE[:0])
    with pytest.raises(ValueError, match=r"no f-divergence 'chi2'"):
        FGANLoss("chi2")
