"""AAE, ALI and the proximity term: values by hand, who gets gradients, small trainings, the term that does nothing."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from danlu.generative.aae import AAE, aae_loss
from danlu.generative.ali import ALI, ali_loss
from danlu.generative.codes import draw_code
from danlu.generative.joint_table import adversarial_terms
from danlu.generative.proximity import ProximalGenerator, proximity_penalty
from danlu.losses import gan_critic_loss, gan_generator_loss


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sigmoid(s: float) -> float:
    return 1 / (1 + math.exp(-s))


class Pair(nn.Module):
    def __init__(self, x_dim: int, z_dim: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(x_dim + z_dim, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.body(torch.cat([x, z], 1))[:, 0]


class Gaussian(nn.Module):
    def __init__(self, mean: nn.Module, std: float) -> None:
        super().__init__()
        self.mean, self.log_std = mean, nn.Parameter(torch.tensor(math.log(std)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(x)
        return mean, self.log_std.exp().expand_as(mean)


def test_ali_losses_by_hand():
    up, down = [0.3, -1.0], [2.0, 0.1]
    d, f = [sigmoid(s) for s in up], [sigmoid(s) for s in down]
    expected = {
        "minimax": sum(map(math.log, d)) / 2 + sum(math.log(1 - v) for v in f) / 2,
        "non_saturating": -sum(math.log(1 - v) for v in d) / 2 - sum(map(math.log, f)) / 2,
        "kl": -sum(map(math.log, d)) / 2 - sum(map(math.log, f)) / 2,
    }
    for kind, value in expected.items():
        assert ali_loss(torch.tensor(up), torch.tensor(down), kind).item() == pytest.approx(value, rel=1e-5)


def test_ali_agrees_with_the_games():
    up, down = torch.randn(2, 5, generator=seeded())
    torch.testing.assert_close(ali_loss(up, down, "minimax"), -gan_critic_loss(up, down, "gan"))
    torch.testing.assert_close(
        ali_loss(up, down), gan_generator_loss(-up, "non_saturating") + gan_generator_loss(down, "non_saturating")
    )


def test_the_kl_version_is_two_terms_of_the_derivation():
    tables = [torch.rand(4, 3, generator=seeded(s), dtype=torch.float64) + 0.1 for s in range(4)]
    a, b, a_old, b_old = (t / t.sum() for t in tables)
    terms = adversarial_terms(a, b, a_old, b_old)
    score = (a_old / b_old).log().flatten()  # of the best critic
    counts = 200_000
    up = score[torch.multinomial(a.flatten(), counts, replacement=True, generator=seeded(9))]
    down = score[torch.multinomial(b.flatten(), counts, replacement=True, generator=seeded(8))]
    assert ali_loss(up, down, "kl").item() == pytest.approx((terms.real + terms.fake).item(), abs=0.01)


def test_losses_survive_extreme_scores_and_half_precision():
    for kind in ("kl", "non_saturating", "minimax"):
        s = torch.tensor([1e4, -1e4], requires_grad=True)
        ali_loss(s, s, kind).backward()
        assert s.grad.isfinite().all()
        assert (
            ali_loss(torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16), kind).dtype
            == torch.float32
        )


def test_aae_loss_by_hand_and_gradcheck():
    scores = torch.tensor([0.5, -1.0])
    x, y = torch.zeros(2, 1, 2), torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]])
    expected = -(math.log(sigmoid(0.5)) + math.log(sigmoid(-1.0))) / 2 + 0.1 * (5 + 9) / 2
    assert aae_loss(scores, x, y, 0.1).item() == pytest.approx(expected, rel=1e-5)
    nats = aae_loss(scores, x, y, 0.0, "kl_generator")  # the mean of log A(z) / prior
    assert nats.item() == pytest.approx(0.25)
    s = torch.randn(2, dtype=torch.float64, generator=seeded(), requires_grad=True)
    r = torch.randn(2, 3, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: aae_loss(a, torch.zeros(2, 3).double(), b, 0.7), (s, r))


def test_a_perfect_critic_reads_the_divergence_of_codes():
    """Codes N(m, 1) against N(0, 1): the best score is -log A / prior, its mean KL = m^2 / 2."""
    z = 0.8 + torch.randn(100_000, generator=seeded())
    score = -(0.8 * z - 0.32)
    got = aae_loss(score, torch.zeros(1, 1), torch.zeros(1, 1), game="kl_generator")
    assert got.item() == pytest.approx(0.32, abs=4 * 0.8 / math.sqrt(100_000))


def build_aae() -> AAE:
    torch.manual_seed(0)
    return AAE(nn.Linear(3, 2), nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)), 2)


def build_ali(kind: str = "non_saturating") -> ALI:
    torch.manual_seed(0)
    return ALI(Gaussian(nn.Linear(1, 1), 0.5), Gaussian(nn.Linear(1, 1), 0.5), Pair(1, 1), 1, kind)


@pytest.mark.parametrize(("model", "dim"), [(build_aae, 3), (build_ali, 1)])
def test_the_critics_step_leaves_the_others_alone(model, dim):
    net = model()
    net.critic_loss(torch.randn(5, dim, generator=seeded()), generator=seeded(1)).backward()
    assert all(p.grad is None for part in (net.encoder, net.decoder) for p in part.parameters())
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.critic.parameters())
    net.loss(torch.randn(5, dim, generator=seeded()), generator=seeded(1)).backward()
    assert all(p.grad.abs().sum() > 0 for part in (net.encoder, net.decoder) for p in part.parameters())


def test_critics_call_the_right_side_real():
    """AAE: the prior scores high. ALI: the encoder's pairs do."""
    aae = build_aae()
    aae.critic = nn.Linear(2, 1)
    x = torch.full((400, 3), 5.0)
    with torch.no_grad():
        aae.encoder.weight.fill_(1.0)  # codes far up
    optimizer = torch.optim.SGD(aae.critic.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        aae.critic_loss(x, seeded()).backward()
        optimizer.step()
    assert aae.critic(torch.zeros(1, 2)) > aae.critic(aae.encoder(x[:1]))
    ali = build_ali()
    data = torch.full((200, 1), 4.0)
    optimizer = torch.optim.Adam(ali.critic.parameters(), 0.05)
    for _ in range(20):
        optimizer.zero_grad()
        ali.critic_loss(data, seeded()).backward()
        optimizer.step()
    up, down = ali.scores(data, seeded(1))
    assert up.mean() > down.mean() + 1


def train(net: AAE | ALI, data: Tensor, steps: int, lr: float = 0.01) -> None:
    critic = torch.optim.Adam(net.critic.parameters(), lr, betas=(0.5, 0.999))
    others = torch.optim.Adam([*net.encoder.parameters(), *net.decoder.parameters()], lr, betas=(0.5, 0.999))
    g = seeded(5)
    for _ in range(steps):
        x = data[torch.randint(len(data), (128,), generator=g)]
        critic.zero_grad()
        net.critic_loss(x, generator=g).backward()
        critic.step()
        others.zero_grad()
        net.loss(x, generator=g).backward()
        others.step()


@pytest.mark.slow
def test_aae_codes_go_to_the_prior_and_decode():
    net = build_aae()
    net.weight = 0.2
    mixing = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    data = torch.randn(2000, 2, generator=seeded()) @ mixing * 3 + 2
    before = (net.reconstruct(data) - data).square().mean()
    for _ in range(3):
        train(net, data, 250, 1e-2)
    assert (net.reconstruct(data) - data).square().mean() < 0.05 * before
    code = net.encoder(data).detach()
    assert code.mean(0).abs().max() < 0.5
    assert ((code.std(0) - 1).abs() < 0.5).all()
    made = net.sample(2000, seeded(1))
    assert (made.mean(0) - data.mean(0)).abs().max() < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["non_saturating", "minimax"])
def test_ali_matches_the_pairs(kind):
    """x ~ N(2, 1): both marginals come out, and E draws codes that G turns back into x."""
    net = build_ali(kind)
    net.critic = Pair(1, 1, 32)
    data = 2 + torch.randn(4000, 1, generator=seeded())
    train(net, data, 1500, 5e-3)
    with torch.no_grad():
        code = draw_code(net.encoder(data), seeded(1))
        made = draw_code(net.decoder(torch.randn(4000, 1, generator=seeded(2))), seeded(3))
    assert code.mean().abs() < 0.4
    assert 0.6 < code.std() < 1.5
    assert abs(made.mean().item() - 2) < 0.4
    assert 0.6 < made.std() < 1.5


def test_methods_are_uniform_and_leave_modes():
    aae, ali = build_aae(), build_ali()
    for net, dim in ((aae, 3), (ali, 1)):
        net.train()
        x = torch.randn(4, dim, generator=seeded())
        assert net.reconstruct(x).shape == x.shape
        assert not net.reconstruct(x).requires_grad
        first = net.sample(3, seeded(1))
        assert first.shape == (3, dim)
        assert torch.equal(first, net.sample(3, seeded(1)))
        assert torch.equal(net.sample(2, temperature=0.0)[0], net.sample(2, temperature=0.0)[1])
        assert all(m.training for m in net.modules())
        again = copy.deepcopy(net)
        again.load_state_dict(net.state_dict())
        assert torch.equal(again.sample(3, seeded(1)), first)


def test_autocast():
    net = build_aae()
    with torch.autocast("cpu", torch.bfloat16):
        loss = net.loss(torch.randn(4, 3, generator=seeded()), seeded())
        critic = net.critic_loss(torch.randn(4, 3, generator=seeded()), seeded())
    assert loss.dtype == critic.dtype == torch.float32


def test_codes_are_drawn_with_a_graph():
    mean, std = torch.ones(3, 2, requires_grad=True), torch.full((3, 2), 0.5, requires_grad=True)
    z = draw_code((mean, std), seeded())
    noise = (z - 1).detach() / 0.5
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(3, 2))
    torch.testing.assert_close(std.grad, noise)


# the proximity term


def test_penalty_is_the_divergence_of_narrow_gaussians():
    a, b = torch.randn(2, 4, 6, dtype=torch.float64, generator=seeded())
    s = 0.1
    p, q = (torch.distributions.Normal(m, s) for m in (a, b))
    expected = torch.distributions.kl_divergence(p, q).sum(1).mean()
    torch.testing.assert_close(proximity_penalty(a, b, 1 / (2 * s**2), "sum"), expected)
    torch.testing.assert_close(proximity_penalty(a, b, 1.0), (a - b).square().mean())


def test_gradient_is_zero_at_the_copy_and_known_after_a_step():
    generator = nn.Linear(2, 3, bias=False).double()
    near = ProximalGenerator(generator, weight=2.0, refresh_every=5)
    z = torch.randn(4, 2, dtype=torch.float64, generator=seeded())
    (gradient,) = torch.autograd.grad(near(z), generator.weight)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    with torch.no_grad():
        generator.weight += 0.1
    gap = z @ torch.full((2, 3), 0.1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(near(z), generator.weight)
    torch.testing.assert_close(gradient, 2 * 2.0 * gap.T @ z / gap.numel())
    assert all(not p.requires_grad for p in near.parameters())


def run_generator(weight: float, inner: int, refresh: int) -> Tensor:
    torch.manual_seed(0)
    generator, critic = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    near = ProximalGenerator(generator, weight, refresh)
    optimizer = torch.optim.Adam(generator.parameters(), 0.05)
    g = seeded(2)
    for _ in range(6):
        z = torch.randn(8, 2, generator=g)
        for _ in range(inner):
            optimizer.zero_grad()
            fake = generator(z)
            (gan_generator_loss(critic(fake)) + near(z, fake)).backward()
            optimizer.step()
            near.step()
    return generator.weight.detach()


def test_one_step_for_each_copy_makes_it_do_nothing_bit_for_bit():
    with pytest.warns(UserWarning, match="refresh_every=1.*does nothing"):
        assert torch.equal(run_generator(50.0, 1, 1), run_generator(0.0, 1, 1))
    assert not torch.allclose(run_generator(50.0, 2, 2), run_generator(0.0, 2, 2))


def test_the_copy_is_taken_when_it_is_time():
    generator = nn.Linear(1, 1)
    near = ProximalGenerator(generator, refresh_every=3)
    for i in range(1, 7):
        with torch.no_grad():
            generator.weight.fill_(float(i))
        near.step()
        assert near.old.weight.item() == (3.0 if 3 <= i < 6 else 6.0 if i == 6 else near.old.weight.item())
    assert int(near.count) == 6
    assert set(near.state_dict()) == {"count", "old.weight", "old.bias"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ali_loss(torch.zeros(2), torch.zeros(2), "js"), "'non_saturating', 'minimax' or 'kl', got 'js'"),
        (lambda: ali_loss(torch.zeros(0), torch.zeros(2)), "at least one pair of each side, got 0 and 2"),
        (lambda: aae_loss(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, 3)), r"got \(1, 3\) for \(1, 2\)"),
        (lambda: draw_code((torch.zeros(1),) * 3), r"codes or \(mean, std\), got 3 things"),
        (lambda: proximity_penalty(torch.zeros(2), torch.zeros(3)), r"one shape, got \(2,\) and \(3,\); both come"),
        (lambda: proximity_penalty(torch.zeros(2), torch.zeros(2), -1.0), "weight must be >= 0"),
        (lambda: ProximalGenerator(nn.Linear(1, 1), refresh_every=0), "refresh_every must be >= 1"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
