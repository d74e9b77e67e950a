"""The joint KL: a linear-Gaussian model in closed form, the bound by enumeration, tables against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from danlu.generative.joint_kl import free_energy, joint_kl
from danlu.generative.joint_table import adversarial_terms, kl_chain, proximal_step
from danlu.generative.latent import draw_normal, normal_log_prob


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(*shape: int, seed: int = 0) -> Tensor:
    t = torch.rand(*shape, generator=seeded(seed), dtype=torch.float64) + 0.05
    return t / t.sum()


def test_with_the_posterior_it_is_the_exact_likelihood():
    """x = 2 z + 0.5 noise: posterior and marginal are normal; every single sample gives -log B(x)."""
    x = torch.randn(7, 1, dtype=torch.float64, generator=seeded())
    precision = 1 + 4 / 0.25
    mean, std = (2 / 0.25) / precision * x, torch.full_like(x, precision**-0.5)
    z = draw_normal(mean, std, 3, generator=seeded(1))  # (3, 7, 1)
    got = joint_kl(normal_log_prob(z, mean, std), normal_log_prob(z), normal_log_prob(x, 2 * z, 0.5))
    marginal = -normal_log_prob(x, 0.0, math.sqrt(4.25))
    torch.testing.assert_close(got.distortion + got.rate, marginal.expand(3, 7))
    torch.testing.assert_close(got.loss, marginal.mean())


def test_another_encoder_costs_its_divergence_from_the_posterior():
    x = torch.full((200_000, 1), 0.7, dtype=torch.float64)
    precision = 1 + 4 / 0.25
    mean, std = torch.full_like(x, 0.2), torch.full_like(x, 0.4)
    z = draw_normal(mean, std, generator=seeded())[0]
    got = joint_kl(normal_log_prob(z, mean, std), normal_log_prob(z), normal_log_prob(x, 2 * z, 0.5))
    p, q = (torch.distributions.Normal(m, s) for m, s in ((0.2, 0.4), (8 / precision * 0.7, precision**-0.5)))
    expected = -normal_log_prob(x[:1], 0.0, math.sqrt(4.25)) + torch.distributions.kl_divergence(p, q)
    values = got.distortion + got.rate
    assert got.loss.item() == pytest.approx(expected.item(), abs=4 * values.std().item() / math.sqrt(len(x)))


def test_the_bound_by_enumeration():
    """eq. (1) and (3) for all x and z of a small world, with Python floats."""
    data, encoder, decoder = table(6), table(6, 3, seed=1), table(3, 6, seed=2)
    encoder, decoder = encoder / encoder.sum(1, keepdim=True), decoder / decoder.sum(1, keepdim=True)
    prior = table(3, seed=3)
    joint = (prior[:, None] * decoder).T  # (6, 3)
    values = free_energy(joint.log(), encoder.log())
    for i in range(6):
        by_hand = sum(
            float(encoder[i, k]) * (math.log(encoder[i, k]) - math.log(prior[k]) - math.log(decoder[k, i]))
            for k in range(3)
        )
        assert values[i].item() == pytest.approx(by_hand, abs=1e-12)
    chain = kl_chain(data[:, None] * encoder, joint)
    entropy = -(data * data.log()).sum()
    torch.testing.assert_close((data * values).sum(), chain.joint + entropy)
    assert chain.joint > chain.marginal
    posterior = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close(free_energy(joint.log(), posterior.log()), -joint.sum(1).log())


def test_the_chain_rule_by_loops():
    p, q = table(6, 3), table(6, 3, seed=5)
    marginal = sum(float(p[i].sum()) * math.log(p[i].sum() / q[i].sum()) for i in range(6))
    conditional = sum(
        float(p[i, k]) * math.log((p[i, k] / p[i].sum()) / (q[i, k] / q[i].sum())) for i in range(6) for k in range(3)
    )
    chain = kl_chain(p, q)
    assert chain.marginal.item() == pytest.approx(marginal, abs=1e-12)
    assert chain.conditional.item() == pytest.approx(conditional, abs=1e-12)
    assert chain.joint.item() == pytest.approx(marginal + conditional, abs=1e-12)


def test_the_chain_rule_with_zeros():
    p, q = table(3, 2), table(3, 2, seed=1)
    p[0], q[1, 0] = 0.0, 0.0
    p, q = p / p.sum(), q / q.sum()
    chain = kl_chain(p, q)
    assert chain.joint == chain.conditional == math.inf
    assert chain.marginal.isfinite()
    q[1] = 0.0
    assert kl_chain(p, q / q.sum()).marginal == math.inf
    p[1] = 0.0
    chain = kl_chain(p / p.sum(), q / q.sum())  # only the last row is left in p
    torch.testing.assert_close(chain.joint, chain.marginal + chain.conditional)


@pytest.mark.parametrize("case", ["gan", "aae", "ali"])
def test_the_derivation_in_numbers(case):
    """The left side by a loop over (x, z, y); a GAN's and an AAE's real side stands still."""
    shape = (6, 3) if case == "ali" else (6,) if case == "gan" else (3,)
    a, b, a_old, b_old = (table(*shape, seed=s) for s in range(4))
    if case != "ali":
        a_old = a
    terms = adversarial_terms(a, b, a_old, b_old)
    joint = 0.0
    for ai, bi, ao, bo in zip(*(t.flatten().tolist() for t in (a, b, a_old, b_old)), strict=True):
        d = ao / (ao + bo)
        joint += ai / 2 * math.log((ai / 2) / (d * ai)) + bi / 2 * math.log((bi / 2) / ((1 - d) * ai))
    assert terms.joint.item() == pytest.approx(2 * joint + 2 * math.log(2), abs=1e-12)
    assert terms.joint.item() == pytest.approx(sum(t.item() for t in terms[1:]), abs=1e-12)
    assert (terms.target == 0) == (case != "ali")


def test_identity_of_the_generators_step():
    """E_q[log q / ((1 - D) data)] = -E_q log D + KL(q || q_old)."""
    p, q, old = (table(8, seed=s) for s in range(3))
    d = p / (p + old)
    left = (q * (q / ((1 - d) * p)).log()).sum()
    terms = adversarial_terms(p, q, p, old)
    torch.testing.assert_close(left, terms.fake + terms.step, atol=1e-12, rtol=0)


def test_the_proximal_step_is_the_minimum():
    p, old = table(5), table(5, seed=1)
    best = proximal_step(p, old)

    def loss(q: Tensor) -> Tensor:
        terms = adversarial_terms(p, q, p, old)
        return terms.fake + terms.step

    for seed in range(20):
        direction = torch.randn(5, dtype=torch.float64, generator=seeded(seed))
        other = (best.log() + 1e-3 * direction).softmax(0)
        assert loss(other) > loss(best)


def test_exact_generators_go_to_the_data_and_without_the_term_collapse():
    for seed in range(4):
        p, q = table(8, seed=seed), table(8, seed=seed + 10)
        distances = []
        while not distances or distances[-1] > 1e-6:
            q = proximal_step(p, q)
            distances.append(float((q - p).abs().sum() / 2))
        assert 15 <= len(distances) <= 25
        assert distances[-1] / distances[-2] == pytest.approx(0.5, abs=0.01)
    d = p / (p + table(8, seed=30))
    point = torch.zeros(8, dtype=torch.float64)
    point[d.argmax()] = 1.0
    assert all(-(point * d.log()).sum() <= -(table(8, seed=s) * d.log()).sum() for s in range(20))


def test_what_the_model_lost_stays_lost():
    got = proximal_step(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5]))
    assert got.tolist() == [0.0, 1.0, 0.0]


def test_narrow_and_zero_weights_in_free_energy():
    log_joint = torch.tensor([[-1.0, -torch.inf]])
    assert free_energy(log_joint, torch.tensor([[0.0, -torch.inf]])).tolist() == [1.0]
    assert free_energy(log_joint, torch.tensor([[0.5, 0.5]]).log()).tolist() == [math.inf]
    x = torch.randn(4, 3, dtype=torch.float64, generator=seeded(), requires_grad=True)
    e = torch.randn(4, 3, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: free_energy(a.log_softmax(1), b.log_softmax(1)), (x, e))


def test_half_precision_is_summed_in_float32():
    big = torch.full((4096,), 300.0, dtype=torch.float16)
    got = joint_kl(big, -big, -big)
    assert got.loss.dtype == torch.float32
    assert got.loss.item() == pytest.approx(900.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: joint_kl(torch.zeros(2), torch.zeros(2), torch.zeros(3)),
            r"of one shape.*got \(2,\), \(2,\) and \(3,\)",
        ),
        (lambda: joint_kl(*[torch.zeros(0)] * 3), "one number for each example"),
        (lambda: free_energy(torch.zeros(2), torch.zeros(2)), r"\(N, K\); got \(2,\).*use joint_kl"),
        (lambda: kl_chain(torch.zeros(2), torch.zeros(2)), r"two tables \(X, Z\), got \(2,\)"),
        (lambda: adversarial_terms(*[torch.tensor([1.0, 0.0])] * 4), "four tables of one shape with probabilities > 0"),
        (lambda: proximal_step(torch.ones(2, 2), torch.ones(2, 2)), r"two tables \(S,\), got \(2, 2\)"),
        (lambda: proximal_step(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])), "share no state"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
