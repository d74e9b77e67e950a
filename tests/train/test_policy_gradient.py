"""Policy gradient: its expectation by enumeration is the exact gradient; baselines, masks, and a metric that rises."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math import gumbel_max
from danlu.train import (
    RunningBaseline,
    choice_log_prob,
    expected_reward_loss,
    leave_one_out,
    policy_gradient_loss,
    sampled_reward_loss,
)

D = torch.float64
Z = torch.tensor([0.2, -0.3, 0.5], dtype=D)
R = torch.tensor([1.0, 3.0, 2.0], dtype=D)
P = Z.softmax(0)
EXACT = P * (R - P @ R)  # gradient of E R with respect to Z; (-.2932, .2325, .0608)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def over_all_tuples(draws: int, baseline) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Exact mean and trace of the variance of minus the gradient, over all tuples of draws weighted by chance."""
    mean, square = torch.zeros(3, dtype=D), torch.zeros((), dtype=D)
    for y in itertools.product(range(3), repeat=draws):
        z, index = Z.clone().requires_grad_(), torch.tensor(y)
        b = baseline(R[index]) if callable(baseline) else baseline
        policy_gradient_loss(choice_log_prob(z, index), R[index], b).backward()
        mean += P[index].prod() * -z.grad
        square += P[index].prod() * z.grad.square().sum()
    return mean, square - mean.square().sum()


def test_the_mean_over_all_draws_is_the_exact_gradient():
    torch.testing.assert_close(EXACT, torch.tensor([-0.2932, 0.2325, 0.0608], dtype=D), rtol=0, atol=5e-5)
    for baseline, variance in ((None, 2.679), (float(P @ R), 0.2866), (1.9417, 0.2830)):  # frozen: 200,000 draws
        mean, trace = over_all_tuples(1, baseline)
        torch.testing.assert_close(mean, EXACT)
        assert trace.item() == pytest.approx(variance, rel=0.01)


def test_leaving_one_out_is_unbiased_and_the_full_mean_is_not():
    mean, trace = over_all_tuples(4, "leave_one_out")
    torch.testing.assert_close(mean, EXACT)
    assert trace.item() == pytest.approx(0.1122, rel=0.02)  # frozen; without baseline .676
    assert over_all_tuples(4, None)[1].item() == pytest.approx(0.676, rel=0.02)
    shrunk, _ = over_all_tuples(4, lambda r: r.mean())
    torch.testing.assert_close(shrunk, 0.75 * EXACT)


class Reader(nn.Module):
    """p(y_t | y_{t-1}) from a table: an autoregressive policy one can enumerate."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3, generator=seeded(), dtype=D))  # row 3: the start

    def log_prob(self, y: Tensor) -> Tensor:  # (S, T) -> (S, T)
        before = F.pad(y[:, :-1], (1, 0), value=3).clamp_min(0)
        return choice_log_prob(self.table[before], y)


def test_all_sequences_of_an_autoregressive_policy():
    model = Reader()
    y = torch.tensor(list(itertools.product(range(3), repeat=3)))  # (27, 3)
    reward = torch.randn(27, generator=seeded(1), dtype=D)
    log_prob = model.log_prob(y)
    p = log_prob.sum(1).exp()
    torch.testing.assert_close(p.sum().detach(), torch.ones((), dtype=D))
    (exact,) = torch.autograd.grad((p * reward).sum(), model.table, retain_graph=True)
    for baseline in (None, 0.7):
        loss = policy_gradient_loss(log_prob, reward, baseline, torch.ones(27, 3, dtype=torch.bool), "none")
        (got,) = torch.autograd.grad((p.detach() * loss).sum(), model.table, retain_graph=True)
        torch.testing.assert_close(-got, exact)


def test_padding_has_no_part():
    log_prob = torch.randn(2, 3, generator=seeded(), dtype=D)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    broken = torch.where(mask, log_prob, torch.nan).requires_grad_()
    loss = policy_gradient_loss(broken, torch.tensor([1.0, 2.0]), mask=mask)
    assert loss.item() == pytest.approx((-(log_prob[0, 0] + log_prob[0, 1]) - 2 * log_prob[1, 0]).item() / 2)
    loss.backward()
    assert broken.grad.tolist() == [[-0.5, -0.5, 0], [-1, 0, 0]]


def test_gradcheck_and_no_gradient_into_rewards_or_baselines():
    log_prob = torch.randn(3, 2, generator=seeded(), dtype=D, requires_grad=True)
    reward, baseline = (torch.randn(3, 2, generator=seeded(s), dtype=D, requires_grad=True) for s in (1, 2))
    for b in (None, "leave_one_out", baseline, 0.3):
        assert torch.autograd.gradcheck(lambda x, b=b: policy_gradient_loss(x, reward.detach(), b), log_prob)
    policy_gradient_loss(log_prob, reward, baseline).backward()
    assert reward.grad is None and baseline.grad is None


def test_the_reward_of_the_greedy_answer_is_one_number_for_each_input():
    log_prob, reward = torch.randn(3, 2, generator=seeded()), torch.rand(3, 2, generator=seeded(1))
    greedy = torch.tensor([0.3, 0.6])
    loss = policy_gradient_loss(log_prob, reward, greedy, reduction="none")
    torch.testing.assert_close(loss, -(reward - torch.tensor([[0.3, 0.6]] * 3)) * log_prob)
    for other in (reward, torch.tensor(0.4), 0.4):
        expected = -(reward - other) * log_prob
        torch.testing.assert_close(policy_gradient_loss(log_prob, reward, other, reduction="none"), expected)


def test_log_probabilities_under_a_mask_and_along_a_dimension():
    logits = torch.randn(2, 3, 4, generator=seeded(), dtype=D)
    choice = torch.tensor([[1, 0, 2], [2, 2, 1]])
    torch.testing.assert_close(choice_log_prob(logits, choice), -F.cross_entropy(logits.mT, choice, reduction="none"))
    torch.testing.assert_close(choice_log_prob(logits.mT, choice, dim=1), choice_log_prob(logits, choice))
    several = torch.stack([choice, choice.flip(0)])
    torch.testing.assert_close(choice_log_prob(logits, several)[1], choice_log_prob(logits, choice.flip(0)))
    mask = torch.tensor([True, True, True, False])
    torch.testing.assert_close(choice_log_prob(logits, choice, mask), choice_log_prob(logits[..., :3], choice))
    assert choice_log_prob(logits, torch.full((2, 3), -1)).tolist() == [[0] * 3] * 2


def test_the_exact_expectation_and_its_gradient():
    z = Z.clone().requires_grad_()
    loss = expected_reward_loss(z, R)
    loss.backward()
    torch.testing.assert_close(-loss.detach(), P @ R)
    torch.testing.assert_close(-z.grad, EXACT)
    with_entropy = expected_reward_loss(Z, R, entropy_weight=0.5)
    torch.testing.assert_close(with_entropy, -(P @ R) + 0.5 * (P * P.log()).sum())
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(
        expected_reward_loss(Z, R, mask, 0.5), expected_reward_loss(Z[[0, 2]], R[[0, 2]], None, 0.5)
    )


@pytest.mark.parametrize("per_answer", [True, False])
def test_drawing_many_answers_comes_to_the_exact_gradient(per_answer):
    logits = torch.randn(2, 3, generator=seeded(), dtype=D, requires_grad=True)
    table = torch.rand(2, 3, generator=seeded(1), dtype=D)

    def reward(y: Tensor) -> Tensor:  # (K, 2) -> (K, 2) or (K,)
        each = table[torch.arange(2), y]
        return each if per_answer else each.prod(dim=1)

    p = logits.softmax(1)
    exact = (p * table).sum(1).mean() if per_answer else (p * table).sum(1).prod()
    (expected,) = torch.autograd.grad(exact, logits)
    rows, generator = [], seeded()
    for _ in range(300):
        (g,) = torch.autograd.grad(sampled_reward_loss(logits, reward, 32, generator=generator), logits)
        rows.append(-g)
    rows = torch.stack(rows)
    assert ((rows.mean(0) - expected) / (rows.std(0) / 300**0.5)).abs().max() < 4


def test_masked_positions_are_not_drawn():
    logits = torch.randn(2, 3, 4, generator=seeded(), requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    seen = []

    def reward(y: Tensor) -> Tensor:
        seen.append(y)
        return (y == 1).sum(-1).float()

    sampled_reward_loss(logits, reward, 6, mask).backward()
    assert seen[0].shape == (6, 2, 3) and (seen[0][:, ~mask] == -1).all() and (seen[0][:, mask] >= 0).all()
    assert not logits.grad[~mask].any() and logits.grad[mask].any()


def test_the_running_baseline_judges_by_the_past_and_resumes():
    baseline = RunningBaseline(0.9)
    assert baseline(torch.tensor([5.0, 7.0])) == 0
    assert baseline(torch.tensor([0.0])) == pytest.approx(6.0)
    assert baseline(torch.tensor([9.0])) == pytest.approx(0.09 * 6 / 0.19 / 0.1 * 0.1)
    other = RunningBaseline(0.9)
    other.load_state_dict(baseline.state_dict())
    assert other(torch.tensor([1.0])) == baseline(torch.tensor([1.0]))


def test_true_f1_rises_in_a_plain_loop():
    x = torch.randn(150, 3, generator=seeded())
    label = (x[:, 0] + 0.5 * torch.randn(150, generator=seeded(1)) > 1.2).long()
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    generator = seeded(2)

    def f1(y: Tensor) -> Tensor:  # (..., 150)
        return 2 * (y * label).sum(-1) / (y.sum(-1) + label.sum()).clamp_min(1)

    start = f1(model(x).argmax(1)).item()
    for _ in range(120):
        optimizer.zero_grad()
        sampled_reward_loss(model(x), lambda y: 150 * f1(y), 16, generator=generator).backward()
        optimizer.step()
    assert f1(model(x).argmax(1)).item() > max(0.6, start + 0.3)


def test_accumulated_parts_equal_the_whole_and_bfloat16_comes_close():
    model, x = nn.Linear(3, 4), torch.randn(8, 3, generator=seeded())
    reward = torch.rand(8, generator=seeded(1))
    y = gumbel_max(model(x), generator=seeded(2))

    def gradient(parts: int, autocast: bool = False) -> Tensor:
        model.zero_grad()
        for part in torch.arange(8).chunk(parts):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                logits = model(x[part])
                loss = policy_gradient_loss(choice_log_prob(logits, y[part]), reward[part], 0.4)
            assert loss.dtype == torch.float32
            (loss / parts).backward()
        return model.weight.grad.clone()

    torch.testing.assert_close(gradient(4), gradient(1))
    torch.testing.assert_close(gradient(1, autocast=True), gradient(1), rtol=0.05, atol=0.01)


def test_the_compiled_loss_is_the_loss():
    log_prob, reward = torch.randn(3, 2, generator=seeded()), torch.rand(3, 2, generator=seeded(1))
    compiled = torch.compile(policy_gradient_loss, backend="eager")
    expected = policy_gradient_loss(log_prob, reward, "leave_one_out")
    torch.testing.assert_close(compiled(log_prob, reward, "leave_one_out"), expected)


def test_messages():
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"one log_prob for each reward, got \(2,\) and \(2, 2\)"):
        policy_gradient_loss(two, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"baseline must have the shape of the rewards \(2,\).*got \(3,\)"):
        policy_gradient_loss(two, two, three)
    with pytest.raises(ValueError, match="'leave_one_out', a number or a tensor, got 'mean'"):
        policy_gradient_loss(two, two, "mean")
    with pytest.raises(ValueError, match=r"at least 2 draws.*got rewards \(1, 4\)"):
        leave_one_out(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"mask must be bool.*got torch.float32 \(2,\)"):
        policy_gradient_loss(two, two, mask=two)
    with pytest.raises(ValueError, match=r"choices \(2,\).*got \(3,\)"):
        choice_log_prob(torch.zeros(2, 5), three.long())
    with pytest.raises(ValueError, match=r"one shape \(..., C\); got \(2,\), \(3,\)"):
        expected_reward_loss(two, three)
    with pytest.raises(ValueError, match=r"num_samples >= 2.*got \(2, 3\) and 1"):
        sampled_reward_loss(torch.zeros(2, 3), lambda y: y, 1)
    with pytest.raises(ValueError, match=r"\(K, B\) = \(4, 2\) or \(K,\) = \(4,\) rewards, got \(2,\)"):
        sampled_reward_loss(torch.zeros(2, 3), lambda y: torch.zeros(2), 4)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        RunningBaseline(1)
