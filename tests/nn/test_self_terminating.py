"""Self-terminating heads: against the papers' plain probabilities, the bound, restart, steps, gradcheck, long runs."""

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.nn import SelfTerminatingHead, guaranteed_steps, self_terminating_log_probs

G = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, 4, dtype=torch.float64, generator=G)
MASK = torch.tensor([[True] * 5, [False, False, True, True, False], [False] * 5])
END, EPS = 2, 0.1
kinds = pytest.mark.parametrize("kind", ["nmst", "st"])


def sigma(z):
    return 1 / (1 + math.exp(-z))


def by_hand(x, kind, mask=None, eps=EPS):
    """Oracle: the papers' formulas with Python floats, one step after the other; p(end) = 1 - alpha, or the mixture."""
    out = []
    for b, row in enumerate(x.tolist()):
        alpha, t, out_row = 1.0, 0, []
        for s, u in enumerate(row):
            inside = mask is None or bool(mask[b, s])
            z = u[END]
            if not inside:
                p_end = 0.0
            elif kind == "st":
                alpha *= (1 - eps) * sigma(-z)
                p_end = 1 - alpha
            else:
                f = 1 - (1 - eps) ** (t + 1)
                p_end = (1 - sigma(z)) * f + sigma(z)
            t += inside
            total = sum(math.exp(v) for i, v in enumerate(u) if i != END)
            out_row.append([p_end if i == END else (1 - p_end) * math.exp(v) / total for i, v in enumerate(u)])
        out.append(out_row)
    return torch.tensor(out, dtype=x.dtype)


@kinds
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_equals_the_papers_formulas(kind, mask):
    got = self_terminating_log_probs(X, END, EPS, kind, mask)
    torch.testing.assert_close(got.exp(), by_hand(X, kind, mask))
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(3, 5, dtype=torch.float64))


@kinds
def test_outside_the_target_the_end_is_impossible_and_does_not_count(kind):
    got = self_terminating_log_probs(X, END, EPS, kind, MASK)
    assert (got[..., END][~MASK] == -torch.inf).all()
    others = X[..., [0, 1, 3]].log_softmax(-1)
    torch.testing.assert_close(got[..., [0, 1, 3]][~MASK], others[~MASK])
    alone = self_terminating_log_probs(X[1:2, 2:4], END, EPS, kind)  # the target by itself
    torch.testing.assert_close(got[1, 2:4], alone[0])


@kinds
@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.9])
def test_the_bound_holds_whatever_the_network_says(kind, eps):
    x = 20 * torch.randn(4, 60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[0, :, 1] = -500.0
    p_end = self_terminating_log_probs(x, 1, eps, kind)[..., 1].exp()
    bound = 1 - (1 - eps) ** torch.arange(1, 61, dtype=torch.float64)
    assert (p_end >= bound - 1e-12).all()
    torch.testing.assert_close(p_end[0], bound)


def test_st_can_only_rise_and_nmst_can_fall():
    x = torch.zeros(1, 2, 3, dtype=torch.float64)
    x[0, :, 0] = torch.tensor([5.0, -5.0])
    st, nmst = (self_terminating_log_probs(x, 0, 0.01, kind)[0, :, 0] for kind in ("st", "nmst"))
    assert st[1] > st[0]
    assert nmst[1] < nmst[0]


def test_without_eps_st_with_a_constant_score_is_geometric():
    x = torch.zeros(1, 6, 3, dtype=torch.float64)
    x[..., 1] = math.log(1 / 3)  # sigmoid = 1/4
    p_end = self_terminating_log_probs(x, 1, 0.0, "st")[0, :, 1].exp()
    torch.testing.assert_close(p_end, 1 - 0.75 ** torch.arange(1, 7, dtype=torch.float64))


def test_without_eps_nmst_is_softmax_with_a_sigmoid_for_the_end():
    got = self_terminating_log_probs(X, END, 0.0, "nmst")[..., END]
    torch.testing.assert_close(got, F.logsigmoid(X[..., END]))


@kinds
def test_ten_thousand_steps_neither_underflow_nor_lose_their_gradient(kind):
    x = torch.randn(1, 10_000, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    got = self_terminating_log_probs(x, 0, 1e-3, kind)
    assert got[..., 1:].isfinite().all()
    assert got[0, -1, 1:].max() < -9.9  # 10,000 x log(1 - 0.001), and more in ST
    target = torch.full((1, 10_000), 3)
    target[0, -1] = 0
    F.nll_loss(got.transpose(1, 2), target).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_small_probability_of_the_end_keeps_its_digits_in_float32():
    x = torch.zeros(1, 1, 3)
    x[..., 0] = -30.0
    got = self_terminating_log_probs(x, 0, 1e-6, "nmst")[0, 0, 0].item()
    assert got == pytest.approx(math.log(1e-6 + (1 - 1e-6) * sigma(-30.0)), rel=1e-6)  # 1 - keep has two digits left


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    x = X.to(dtype)
    got = self_terminating_log_probs(x, END, 1e-3, kind)
    torch.testing.assert_close(got, self_terminating_log_probs(x.float(), END, 1e-3, kind))


@kinds
def test_gradcheck_and_nothing_flows_from_outside_the_mask(kind):
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: self_terminating_log_probs(v, END, EPS, kind), x)
    target = torch.tensor([[0, 1, 3, 0, 2], [-100, -100, 1, 2, -100], [-100] * 5])

    def loss(v):
        return F.nll_loss(self_terminating_log_probs(v, END, EPS, kind, MASK).transpose(1, 2), target)

    assert torch.autograd.gradcheck(loss, x)
    loss(x).backward()
    assert x.grad is not None
    assert not x.grad[~MASK].any()


@kinds
def test_steps_equal_the_whole_and_reorder(kind):
    torch.manual_seed(0)
    head = SelfTerminatingHead(3, 4, END, EPS, kind).double()
    hidden = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = head(hidden)
    state = head.start(2)
    for t in range(6):
        if t == 3:  # as a beam search exchanges rows
            hidden, whole, state = hidden.flip(0), whole.flip(0), state.flip(0)
        got, state = head.step(hidden[:, t], state)
        torch.testing.assert_close(got, whole[:, t])


@kinds
def test_greedy_always_stops_when_promised(kind):
    head = SelfTerminatingHead(2, 3, 0, 0.05, kind)
    torch.nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([-60.0, 9.0, 0.0]))  # never wants to end
    state, step, token = head.start(1), 0, 1
    while token != 0 and step < 100:
        log_probs, state = head.step(torch.zeros(1, 2), state)
        step, token = step + 1, int(log_probs.argmax())
    assert step == guaranteed_steps(0.05) == 14


@pytest.mark.parametrize(("eps", "steps"), [(0.01, 69), (1e-3, 693), (1e-4, 6932), (1e-5, 69315), (0.5, 2)])
def test_steps_to_one_half(eps, steps):
    assert guaranteed_steps(eps) == steps
    assert 1 - (1 - eps) ** steps > 0.5 >= 1 - (1 - eps) ** (steps - 1)


def test_the_69th_step_of_eps_one_percent_is_just_above_one_half():
    x = torch.full((1, 69, 2), 0.0, dtype=torch.float64)
    x[..., 0] = -800.0
    p_end = self_terminating_log_probs(x, 0, 0.01, "nmst")[0, :, 0].exp()
    assert p_end[-1].item() == pytest.approx(0.500163, abs=1e-6)
    assert p_end[-2] < 0.5


@kinds
def test_a_new_head_ends_as_rarely_as_it_says_any_other_token(kind):
    head = SelfTerminatingHead(3, 50, END, 0.0, kind)
    p_end = head(torch.zeros(1, 4, 3))[0, :, END].exp()
    expected = [1 / 51] * 4 if kind == "nmst" else [1 - (50 / 51) ** t for t in range(1, 5)]
    assert p_end.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_output_layer_of_a_trained_model_loads():
    linear, head = torch.nn.Linear(3, 4), SelfTerminatingHead(3, 4, END)
    head.load_state_dict(linear.state_dict())
    assert torch.equal(head.weight, linear.weight)
    assert "end_id=2, eps=0.001, kind='nmst'" in repr(head)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: self_terminating_log_probs(X[0], END), r"\(batch, steps, tokens\).*\(5, 4\); for single steps use"),
        (lambda: self_terminating_log_probs(X, 4), r"end_id must be in \[0, V\).*got 4 and 4"),
        (lambda: self_terminating_log_probs(X, END, 1.0), r"eps must be in \[0, 1\), got 1.0"),
        (lambda: self_terminating_log_probs(X, END, kind="ST"), r"kind must be one of nmst, st; got 'ST'"),
        (lambda: self_terminating_log_probs(X, END, mask=MASK.int()), r"mask must be bool \(3, 5\).*got torch.int32"),
        (lambda: guaranteed_steps(0.0), r"eps in \(0, 1\).*got 0.0 and 0.5; eps = 0 promises nothing"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
