"""InfoNCE and FlatNCE: formulas by hand, gradients by formula, low precision, masks, layouts, lightly's number."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from danlu.losses import ContrastiveLoss, contrastive_scores, contrastive_stats, flat_nce, info_nce

GENERATOR = torch.Generator().manual_seed(0)
S = 2 * torch.randn(5, 7, dtype=torch.float64, generator=GENERATOR)
T = torch.tensor([0, 6, 3, 3, 1])
SEVERAL = torch.zeros(5, 7, dtype=torch.bool)
SEVERAL[0, [1, 4]] = SEVERAL[1, 0] = SEVERAL[2, [0, 2, 5]] = SEVERAL[3, 6] = SEVERAL[4, [2, 3]] = True
KEEP = torch.rand(5, 7, generator=GENERATOR) > 0.3
KEEP |= F.one_hot(T, 7).bool() | SEVERAL
BOTH = pytest.mark.parametrize("loss", [flat_nce, info_nce])


def by_hand(loss, scores, positives, keep=None):  # oracle: eqs. (1), (2), (4) with Python floats
    rows = []
    for i, s in enumerate(scores.tolist()):
        kept = [k for k in range(len(s)) if keep is None or keep[i][k]]
        right = [k for k in kept if k in positives[i]]
        xi = [sum(math.exp(s[k] - s[t]) for k in kept if k not in positives[i]) for t in right]
        rows.append(statistics.fmean(math.log(x) if loss is flat_nce else math.log1p(x) for x in xi))
    return torch.tensor(rows, dtype=torch.float64)


def grads(function, scores, *rest):
    s = scores.clone().requires_grad_()
    return torch.autograd.grad(function(s, *rest).sum(), s)[0]


@BOTH
def test_equals_the_formula(loss):
    one = [[t] for t in T.tolist()]
    torch.testing.assert_close(loss(S, T, reduction="none"), by_hand(loss, S, one))
    torch.testing.assert_close(loss(S, T, KEEP, "none"), by_hand(loss, S, one, KEEP.tolist()))
    several = [row.nonzero()[:, 0].tolist() for row in SEVERAL]
    torch.testing.assert_close(loss(S, SEVERAL, reduction="none"), by_hand(loss, S, several))
    torch.testing.assert_close(loss(S, SEVERAL, KEEP, "none"), by_hand(loss, S, several, KEEP.tolist()))
    torch.testing.assert_close(loss(S, F.one_hot(T, 7).bool()), loss(S, T))
    torch.testing.assert_close(loss(S, T, None, "sum"), 5 * loss(S, T))


def test_info_nce_is_cross_entropy():
    for scale in (0.1, 1.0, 30.0):  # torch's softplus stops at 20
        expected = F.cross_entropy(scale * S, T, reduction="none")
        torch.testing.assert_close(info_nce(scale * S, T, reduction="none"), expected, rtol=1e-12, atol=1e-12)
    lost = torch.tensor([[0.0, 20.5]], dtype=torch.float64)
    expected = 20.5 + math.log1p(math.exp(-20.5))
    assert info_nce(lost, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-13)


def test_flat_gradient_is_the_papers_and_that_of_info_nce_without_its_factor():
    def paper(s, t):
        xi = (s - s.gather(1, t[:, None])).exp().sum(1) - 1
        return xi / xi.detach()

    flat, info = grads(flat_nce, S, T, None, "none"), grads(info_nce, S, T, None, "none")
    torch.testing.assert_close(flat, grads(paper, S, T), rtol=1e-12, atol=1e-12)
    p = S.softmax(1).gather(1, T[:, None])
    torch.testing.assert_close(info, (1 - p) * flat, rtol=1e-12, atol=1e-12)
    assert torch.equal(flat.gather(1, T[:, None]), -torch.ones(5, 1, dtype=torch.float64))
    negative = S.masked_fill(F.one_hot(T, 7).bool(), -torch.inf).softmax(1)  # q
    torch.testing.assert_close(flat.scatter(1, T[:, None], 0.0), negative)


def test_two_candidates_are_linear_and_its_softplus():
    s = S[:, :2]
    t = torch.tensor([0, 1, 0, 0, 1])
    gap = s.gather(1, 1 - t[:, None])[:, 0] - s.gather(1, t[:, None])[:, 0]
    torch.testing.assert_close(flat_nce(s, t, reduction="none"), gap)
    torch.testing.assert_close(info_nce(s, t, reduction="none"), F.softplus(gap))


def cosines(temperature, anchors=64, negatives=7):
    """Scores of anchors that are nearly solved, as in training: the positive near 0.9, the others around 0.1."""
    g = torch.Generator().manual_seed(1)
    cos = 0.1 + 0.15 * torch.randn(anchors, negatives, generator=g, dtype=torch.float64)
    right = 0.9 + 0.03 * torch.randn(anchors, 1, generator=g, dtype=torch.float64)
    return torch.cat([right, cos], 1) / temperature, torch.zeros(anchors, dtype=torch.long)


@pytest.mark.parametrize("temperature", [0.2, 0.1, 0.07, 0.05])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 8e-3)])
def test_the_pull_on_the_positive_survives_low_precision(temperature, dtype, bound):
    """The reason to exist: against float64 on the same rounded scores, where cross_entropy loses the pull."""
    scores, t = cosines(temperature)
    low = scores.to(dtype)
    exact = grads(info_nce, low.double(), t, None, "none")[:, 0]

    def error(function):
        return ((grads(function, low, t)[:, 0].double() - exact) / exact).abs().median().item()

    if dtype == torch.float16 and temperature == 0.05:
        bound = 0.5  # the gradient itself lies among float16's last subnormals; scale the loss
    ours = error(lambda s, t: info_nce(s, t, None, "none"))
    torchs = error(lambda s, t: F.cross_entropy(s, t, reduction="none"))
    assert ours < bound
    assert torchs > ours
    if temperature <= 0.07 and dtype != torch.float32:
        assert torchs > 0.5  # most anchors are not pulled at all
    assert torch.equal(grads(flat_nce, low, t, None, "none")[:, 0], -torch.ones(64, dtype=dtype))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pull_and_pushes_cancel(loss, dtype):
    scores, t = cosines(0.05)
    for target in (t, torch.arange(8).lt(2).repeat(64, 1)):
        g = grads(loss, scores.to(dtype), target, None, "none")
        assert (g.sum(1).abs() <= 4 * torch.finfo(dtype).eps * g.abs().sum(1)).all()


def test_large_offsets_do_not_spoil_the_gradient():
    """logsumexp's own backward pass is off by 3e-5 there: its rounded result is compared with the scores."""
    s = (S * 2).round().float()  # whole numbers stay exact beside 3e4
    expected = grads(flat_nce, s, T)
    torch.testing.assert_close(grads(flat_nce, s + 3e4, T), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(flat_nce(s + 3e4, T), flat_nce(s, T), rtol=1e-6, atol=1e-6)


@BOTH
def test_shift_permutation_and_copies(loss):
    value = loss(S, T, reduction="none")
    shift = torch.arange(5.0, dtype=torch.float64)[:, None] * 10
    torch.testing.assert_close(loss(S + shift, T, reduction="none"), value)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(loss(S[:, order], order.argsort()[T], reduction="none"), value)
    copies = torch.cat([S, S, S], 1)
    keep = torch.cat([torch.ones_like(KEEP), *[~F.one_hot(T, 7).bool()] * 2], 1)
    got = flat_nce(copies, T, keep, "none")
    torch.testing.assert_close(got, flat_nce(S, T, reduction="none") + math.log(3))


def test_several_positives_are_each_against_the_negatives_alone():
    for loss in (flat_nce, info_nce):
        for i, row in enumerate(SEVERAL):
            places = row.nonzero()[:, 0]
            each = [loss(S[i : i + 1], t[None], (~row | (torch.arange(7) == t))[None]) for t in places]
            torch.testing.assert_close(loss(S[i : i + 1], row[None]), torch.stack(each).mean())


@BOTH
def test_what_is_masked_has_no_influence_whatever_it_is(loss):
    for target in (T, SEVERAL):
        expected, g = loss(S, target, KEEP), grads(loss, S, target, KEEP)
        for junk in (math.nan, math.inf, -math.inf, 1e9):
            s = S.masked_fill(~KEEP, junk)
            torch.testing.assert_close(loss(s, target, KEEP), expected)
            torch.testing.assert_close(grads(loss, s, target, KEEP), g)
        assert not g[~KEEP].any()
        torch.testing.assert_close(loss(S.masked_fill(~KEEP, -torch.inf), target), expected)  # -inf is a mask too


@BOTH
def test_anchors_without_a_positive_do_not_count(loss):
    positives, keep = SEVERAL.clone(), torch.ones_like(SEVERAL)
    positives[1] = False
    keep[1] = False  # nothing at all in this row
    left = [0, 2, 3, 4]
    torch.testing.assert_close(loss(S, positives, keep), loss(S[left], SEVERAL[left]))
    assert loss(S, positives, keep, "none")[1] == 0
    g = grads(loss, S.masked_fill(~keep, math.nan), positives, keep)
    assert g.isfinite().all() and not g[1].any()
    hidden = ~F.one_hot(T, 7).bool()  # every positive masked
    assert loss(S, T, hidden).item() == 0
    g = grads(loss, S.masked_fill(~hidden, math.nan), T, hidden)
    assert g.isfinite().all() and not g.any()
    assert loss(S[:0], T[:0]).item() == 0


@BOTH
def test_gradcheck(loss):
    s = S.clone().requires_grad_()
    for target, mask in ((T, None), (T, KEEP), (SEVERAL, KEEP)):
        assert torch.autograd.gradcheck(lambda x, t=target, m=mask: loss(x, t, m, "none"), s)
        assert torch.autograd.gradgradcheck(lambda x, t=target, m=mask: loss(x, t, m, "none"), s)


def test_extreme_scores():
    s = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=torch.float32, requires_grad=True)
    t = torch.tensor([0, 0])
    torch.testing.assert_close(flat_nce(s, t, reduction="none"), torch.tensor([-1e4, 2e4]))
    torch.testing.assert_close(info_nce(s, t, reduction="none"), torch.tensor([0.0, 2e4]))
    (g,) = torch.autograd.grad(info_nce(s, t, reduction="none").sum(), s)
    torch.testing.assert_close(g, torch.tensor([[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]))
    (g,) = torch.autograd.grad(flat_nce(s, t, reduction="none").sum(), s)
    torch.testing.assert_close(g, torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 1.0, 0.0]]))  # solved, and still pulled


def test_stats():
    like = torch.tensor([[5.0, 1.0, 1.0, 1.0], [0.0, 50.0, -50.0, 2.0]])
    stats = contrastive_stats(like, torch.tensor([0, 0]))
    assert stats["ess"].item() == pytest.approx((3 + 1) / 2)  # alike: K - 1; one for all: 1
    assert stats["accuracy"].item() == 0.5
    assert stats["alignment"].item() == -2.5
    assert (stats["alignment"] + stats["uniformity"]).item() == pytest.approx(flat_nce(like, torch.tensor([0, 0])))
    assert stats["infonce"].item() == pytest.approx(F.cross_entropy(like, torch.tensor([0, 0])).item())
    each = [  # one number a positive, where the loss is the mean over anchors of means
        info_nce(S[i : i + 1], t[None], ((KEEP & ~SEVERAL)[i] | (torch.arange(7) == t))[None])
        for i, row in enumerate(SEVERAL)
        for t in row.nonzero()[:, 0]
    ]
    assert contrastive_stats(S, SEVERAL, KEEP)["infonce"].item() == pytest.approx(torch.stack(each).mean().item())
    scores, t = cosines(0.05)
    shares = [contrastive_stats(scores.to(d), t)["share_underflow"].item() for d in (torch.bfloat16, torch.float64)]
    assert shares == [1.0, 0.0]
    xi = (scores[:, 1:] - scores[:, :1]).exp().sum(1)
    assert contrastive_stats(scores, t)["xi_median"].item() == pytest.approx(xi.median().item())
    assert not contrastive_stats(S.clone().requires_grad_(), T)["ess"].requires_grad
    nothing = contrastive_stats(S, torch.zeros_like(SEVERAL))
    assert all(math.isnan(v) for v in nothing.values())


# pairs of embeddings

A = torch.randn(4, 3, dtype=torch.float64, generator=GENERATOR)
C = torch.randn(4, 3, dtype=torch.float64, generator=GENERATOR)
N = torch.randn(2, 3, dtype=torch.float64, generator=GENERATOR)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.hypot(*a) / math.hypot(*b)


def nce(kind, scores, right):
    xi = sum(math.exp(s - scores[right]) for i, s in enumerate(scores) if i != right)
    return math.log(xi) if kind == "flat" else math.log1p(xi)


@pytest.mark.parametrize("kind", ["flat", "infonce"])
def test_layouts_by_scalar_loops(kind):
    a, c, n = A.tolist(), C.tolist(), N.tolist()
    rows = [nce(kind, [cosine(x, y) / 0.2 for y in c], i) for i, x in enumerate(a)]
    columns = [nce(kind, [cosine(x, y) / 0.2 for y in a], i) for i, x in enumerate(c)]
    loss = ContrastiveLoss(kind, 0.2)
    assert loss(A, C).item() == pytest.approx(statistics.fmean(rows + columns))
    assert ContrastiveLoss(kind, 0.2, symmetric=False)(A, C).item() == pytest.approx(statistics.fmean(rows))
    more = [nce(kind, [cosine(x, y) / 0.2 for y in c + n], i) for i, x in enumerate(a)]
    assert loss(A, C, N).item() == pytest.approx(statistics.fmean(more + columns))
    own = torch.stack([N + i for i in range(4)])
    more = [nce(kind, [cosine(x, y) / 0.2 for y in c + own[i].tolist()], i) for i, x in enumerate(a)]
    assert loss(A, C, own).item() == pytest.approx(statistics.fmean(more + columns))
    z = a + c
    everyone = []
    for i, x in enumerate(z):
        others = [k for k in range(8) if k != i]
        everyone.append(nce(kind, [cosine(x, z[k]) / 0.2 for k in others], others.index((i + 4) % 8)))
    assert ContrastiveLoss(kind, 0.2, "all")(A, C).item() == pytest.approx(statistics.fmean(everyone))
    everyone = []
    for i, x in enumerate(z):
        others = [k for k in range(8) if k != i]
        scores = [cosine(x, z[k]) / 0.2 for k in others] + [cosine(x, y) / 0.2 for y in own[i % 4].tolist()]
        everyone.append(nce(kind, scores, others.index((i + 4) % 8)))
    assert ContrastiveLoss(kind, 0.2, "all")(A, C, own).item() == pytest.approx(statistics.fmean(everyone))


def test_all_against_all_equals_lightly():
    """lightly.loss.DCLLoss(temperature=0.2) of lightly 1.6.0 on these sines, float64: value and first row of grad."""
    i = torch.arange(30, dtype=torch.float64).reshape(6, 5)
    z = i.sin().requires_grad_()
    loss = ContrastiveLoss("flat", 0.2, "all")(z, (i + 0.3).sin())
    assert loss.item() == pytest.approx(-0.4614726895058181, abs=1e-12)
    first = [-0.10664834020185192, -0.0394333310304453, 0.06403650083422935, 0.10863146915136765, 0.053351165710425794]
    assert torch.autograd.grad(loss, z)[0][0].tolist() == pytest.approx(first, abs=1e-12)


def test_groups_are_no_negatives_or_are_positives():
    groups = torch.tensor([7, 1, 7, 2])
    s = contrastive_scores(A, C, 0.3, N, groups)
    left_out = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    assert torch.equal(s.mask, left_out) and torch.equal(s.target, torch.arange(4))
    s = contrastive_scores(A, C, 0.3, N, groups, supervised=True)
    right = torch.tensor([[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()
    assert torch.equal(s.target, right) and s.mask is None
    s = contrastive_scores(A, C, 0.3, N, groups, supervised=True, layout="all")
    positives, candidates = s.target & s.mask, s.mask
    assert positives.sum(1).tolist() == [3, 1, 3, 1] * 2  # both views of the group but the anchor itself
    assert candidates.sum(1).tolist() == [9] * 8 and not candidates.diagonal().any()
    s = contrastive_scores(A, C, 0.3, None, groups, layout="all")
    assert s.mask.sum(1).tolist() == [5, 7, 5, 7] * 2  # the other pair of the group is left out in both views
    assert s.mask.gather(1, s.target[:, None]).all()


def test_autocast_does_not_round_the_scores():
    a, c = A.float(), C.float()
    expected = ContrastiveLoss("infonce")(a, c)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ c.T).dtype == torch.bfloat16
        assert contrastive_scores(a, c).scores.dtype == torch.float32
        torch.testing.assert_close(ContrastiveLoss("infonce")(a, c), expected, rtol=0, atol=0)
    assert contrastive_scores(a.bfloat16(), c.bfloat16()).scores.dtype == torch.float32


@pytest.mark.parametrize("kind", ["flat", "infonce"])
def test_a_plain_loop_pulls_pairs_together(kind):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    model = nn.Linear(6, 4)
    optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=0.02), ContrastiveLoss(kind, 0.2)
    view = x + 0.5 * torch.randn(16, 6, generator=torch.Generator().manual_seed(3))
    before = loss_fn.stats(model(x), model(view))
    for _ in range(60):
        optimizer.zero_grad()
        loss_fn(model(x), model(view)).backward()
        optimizer.step()
    after = loss_fn.stats(model(x), model(view))
    assert after["infonce"] < 0.7 * before["infonce"] and after["accuracy"] > before["accuracy"]


def test_gradient_reaches_a_temperature_and_flat_warns_of_it():
    temperature = nn.Parameter(torch.tensor(0.5))
    loss = ContrastiveLoss("infonce", temperature)
    loss(A.float(), C.float()).backward()
    assert temperature.grad.abs() > 0 and list(loss.parameters()) == [temperature]
    with pytest.warns(UserWarning, match="unbounded below as its temperature falls.*kind='infonce'"):
        ContrastiveLoss("flat", temperature)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(4)}, r"K >= 2 .* got \(4,\) and torch.int64 \(5,\).*ContrastiveLoss\(\)\(anchors"),
        ({"scores": torch.zeros(5, 1)}, r"got \(5, 1\)"),
        ({"scores": torch.zeros(5, 7).long()}, "needs float scores"),
        ({"target": torch.zeros(4).long()}, r"torch.int64 \(4,\)"),
        ({"target": torch.zeros(5)}, "torch.float32"),
        ({"target": torch.zeros(5, 7).long()}, r"torch.int64 \(5, 7\)"),
        ({"target": torch.tensor([0, 1, 7, 0, 0])}, r"in \[0, 7\) for 7 candidates; to leave an anchor"),
        ({"target": torch.tensor([0, -1, 6, 0, 0])}, r"target must lie in \[0, 7\)"),
        ({"mask": torch.ones(5, 7)}, r"mask must be bool \(5, 7\), True = a candidate; got torch.float32 \(5, 7\)"),
        ({"mask": torch.ones(5, 6).bool()}, r"torch.bool \(5, 6\)"),
        ({"target": torch.ones(5, 7).bool()}, "anchor 0 has a positive and no negative, so .*_nce has nothing"),
        ({"reduction": "batch"}, "reduction must be 'mean', 'sum' or 'none', got 'batch'"),
    ],
)  # fmt: skip
@BOTH
def test_messages(loss, change, message):
    with pytest.raises(ValueError, match=message):
        loss(**{"scores": S, "target": T, **change})


def test_messages_of_pairs():
    with pytest.raises(ValueError, match=r"two batches \(B, D\).* got \(4, 3\) and \(3, 3\)"):
        contrastive_scores(A, C[:3])
    with pytest.raises(ValueError, match=r"layout must be 'cross' .* or 'all' \(one set\), got 'both'"):
        contrastive_scores(A, C, layout="both")
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0; 0.05 is usual"):
        contrastive_scores(A, C, 0)
    for wrong in (N[:, :2], N[0], torch.zeros(3, 2, 3)):
        with pytest.raises(ValueError, match=r"negatives must be \(M, 3\), or \(4, M, 3\)"):
            contrastive_scores(A, C, negatives=wrong)
    with pytest.raises(ValueError, match=r"groups must be integers \(4,\), got torch.float32 \(4,\)"):
        contrastive_scores(A, C, groups=torch.zeros(4))
    with pytest.raises(ValueError, match=r"supervised=True .* needs groups="):
        contrastive_scores(A, C, supervised=True)
    with pytest.raises(ValueError, match="kind must be 'flat' or 'infonce', got 'nce'"):
        ContrastiveLoss("nce")
    with pytest.raises(ValueError, match=r"K >= 2 .*got \(1, 1\)"):  # a batch of one pair has no negatives
        ContrastiveLoss()(A[:1], C[:1])


def small_net():
    torch.manual_seed(0)
    return nn.Linear(3, 3, dtype=torch.float64)


def process(rank):
    rows, net = slice(2 * rank, 2 * rank + 2), small_net()
    model = DistributedDataParallel(net)
    z = model(torch.cat([A[rows], C[rows], N[rank : rank + 1]]))
    loss = ContrastiveLoss("flat", 0.3, "all", gather=True)
    value = loss(z[:2], z[2:4], z[4:], groups=torch.tensor([7, 1, 7, 2])[rows])
    value.backward()
    return [value.detach(), net.weight.grad, net.bias.grad]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    net = small_net()
    value = ContrastiveLoss("flat", 0.3, "all")(net(A), net(C), net(N), groups=torch.tensor([7, 1, 7, 2]))
    value.backward()
    for got in in_two_processes(process, tmp_path):
        for a, b in zip(got, [value.detach(), net.weight.grad, net.bias.grad], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
