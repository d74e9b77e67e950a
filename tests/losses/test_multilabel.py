"""Multi-label cross-entropy: bert4keras' numbers, the sums by hand, dense against sparse, extremes, messages."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.losses import multilabel_cross_entropy, sparse_multilabel_cross_entropy

GENERATOR = torch.Generator().manual_seed(0)
S = 3 * torch.randn(4, 6, dtype=torch.float64, generator=GENERATOR)
SOFT = torch.rand(4, 6, dtype=torch.float64, generator=GENERATOR)
HARD = (SOFT > 0.6).double()
IDS = torch.tensor([[5, 0, -1], [2, -1, -1], [-1, -1, -1], [1, 3, 4]])


def by_hand(logits, target):  # oracle: eq. (2) with Python floats
    rows = [
        math.log1p(sum((1 - t) * math.exp(s) for s, t in zip(ss, ts, strict=True) if s > -math.inf))
        + math.log1p(sum(t * math.exp(-s) for s, t in zip(ss, ts, strict=True) if s > -math.inf))
        for ss, ts in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def dense(ids, classes):  # 0/1 labels from lists padded with -1
    out = torch.zeros(*ids.shape[:-1], classes + 1, dtype=torch.float64)
    out.scatter_(-1, ids.where(ids >= 0, classes), 1.0)
    return out[..., :classes]


@pytest.fixture
def stored(shared):
    with np.load(shared / "oracles" / "layers" / "multilabel_loss.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.data
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_dense_equals_bert4keras(stored, kind):
    s = stored["logits"].requires_grad_()
    loss = multilabel_cross_entropy(s, stored[f"{kind}_labels"], "none")
    torch.testing.assert_close(loss, stored[f"{kind}_loss"], atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(loss.mean(), s)
    torch.testing.assert_close(grad, stored[f"{kind}_grad_of_mean"], atol=1e-6, rtol=1e-5)


@pytest.mark.data
def test_masked_equals_bert4keras(stored):
    loss = multilabel_cross_entropy(stored["masked_logits"], stored["masked_labels"], "none")
    torch.testing.assert_close(loss, stored["masked_loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.data
def test_sparse_equals_bert4keras(stored):
    s = stored["logits"].requires_grad_()
    loss = sparse_multilabel_cross_entropy(s, stored["sparse_labels"], reduction="none")
    torch.testing.assert_close(loss, stored["sparse_loss"], atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(loss.mean(), s)
    torch.testing.assert_close(grad, stored["sparse_grad_of_mean"], atol=1e-6, rtol=1e-5)
    loss = sparse_multilabel_cross_entropy(s, stored["sparse_mask_zero_labels"], mask_zero=True, reduction="none")
    torch.testing.assert_close(loss, stored["sparse_mask_zero_loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", [HARD, SOFT, HARD.bool(), HARD.long()])
def test_equals_the_formula(target):
    torch.testing.assert_close(multilabel_cross_entropy(S, target, "none"), by_hand(S, target.double()))


def test_a_case_by_hand():  # the dossier's: logits 1, -2, 0.5, 3 with classes 0 and 3 right
    s = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    assert multilabel_cross_entropy(s, torch.tensor([[1, 0, 0, 1]])).item() == pytest.approx(1.3729212729480946)
    assert sparse_multilabel_cross_entropy(s, torch.tensor([[3, 0]])).item() == pytest.approx(1.3729212729480946)


def test_is_the_logarithm_of_all_pairs():
    """Where the loss comes from: every wrong class, and the class of logit 0, is to stand below every right one, and 0.

    log(1 + sum_{n, p} e^{s_n - s_p} + sum_n e^{s_n} + sum_p e^{-s_p}), every pair written out.
    """
    for s, labels, ids in zip(S, dense(IDS, 6).bool(), IDS, strict=True):
        right, wrong = [0.0, *s[labels].tolist()], [0.0, *s[~labels].tolist()]
        expected = math.log(sum(math.exp(n - p) for n in wrong for p in right))  # the pair (0, 0) is the 1
        assert multilabel_cross_entropy(s, labels).item() == pytest.approx(expected, rel=1e-12)
        assert sparse_multilabel_cross_entropy(s, ids).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_two_softmaxes_with_the_class_of_logit_0():
    """dL/ds_n = softmax over N and 0, dL/ds_p = - softmax of -s over P and 0; from torch.softmax, not by autograd."""
    s, labels = S.clone().requires_grad_(), dense(IDS, 6).bool()
    (got,) = torch.autograd.grad(multilabel_cross_entropy(s, labels, "none").sum(), s)
    zero = torch.zeros(4, 1, dtype=torch.float64)
    pushed = torch.cat([S.masked_fill(labels, -torch.inf), zero], 1).softmax(1)[:, :-1]
    pulled = torch.cat([(-S).masked_fill(~labels, -torch.inf), zero], 1).softmax(1)[:, :-1]
    torch.testing.assert_close(got, pushed - pulled, rtol=1e-12, atol=1e-12)


def test_one_right_class_above_and_the_others_below_zero_costs_nothing():
    s = torch.tensor([[-50.0, 50.0, -50.0]])
    assert multilabel_cross_entropy(s, torch.tensor([[0, 1, 0]])).item() < 1e-20
    assert sparse_multilabel_cross_entropy(s, torch.tensor([[1]])).item() < 1e-20


def test_two_classes_are_softplus_twice():  # identity: one class is logistic regression
    s = S[:, :1]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(s, HARD[:, :1], reduction="none")[:, 0]
    torch.testing.assert_close(multilabel_cross_entropy(s, HARD[:, :1], "none"), expected)


def test_sparse_equals_dense_with_its_gradient():
    s, d = S.clone().requires_grad_(), S.clone().requires_grad_()
    a, b = sparse_multilabel_cross_entropy(s, IDS, reduction="none"), multilabel_cross_entropy(d, dense(IDS, 6), "none")
    torch.testing.assert_close(a, b)
    (a * torch.arange(1, 5)).sum().backward()
    (b * torch.arange(1, 5)).sum().backward()
    torch.testing.assert_close(s.grad, d.grad)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=5),
    st.lists(st.integers(-1, 4), max_size=6),
    st.sets(st.integers(0, 4)),
    st.booleans(),
)
def test_sparse_equals_dense_on_anything(logits, ids, masked, mask_zero):
    """Empty and full lists, names given twice, masked classes, class 0 as padding; against labels written out."""
    count = len(logits)
    s = torch.tensor([[-math.inf if i in masked else v for i, v in enumerate(logits)]], dtype=torch.float64)
    ids = torch.tensor([[i for i in ids if i < count]], dtype=torch.long)
    target = torch.tensor([[float(i in ids) for i in range(count)]], dtype=torch.float64)
    if mask_zero:
        expected = by_hand(s[:, 1:], target[:, 1:])
    else:
        expected = by_hand(s, target)
    got = sparse_multilabel_cross_entropy(s, ids, mask_zero, "none")
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    if not mask_zero:
        torch.testing.assert_close(multilabel_cross_entropy(s, target, "none"), expected, atol=1e-9, rtol=1e-9)


def test_wrong_classes_are_not_lost_behind_a_sure_right_one():
    """The reason for cutting P out: the difference of two sums, clipped at 1e-7, gives 3.9 and no gradient here."""
    s = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)
    loss = sparse_multilabel_cross_entropy(s, torch.tensor([[0]]))
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)
    loss.backward()
    torch.testing.assert_close(s.grad, torch.tensor([[0.0, 1 / 3, 1 / 3]]), atol=1e-6, rtol=0)


def test_what_is_masked_takes_no_part():
    masked = torch.tensor([[False, True, False, False, True, False]] * 4)
    s = S.masked_fill(masked, -torch.inf).requires_grad_()
    left = [0, 2, 3, 5]
    out = multilabel_cross_entropy(s, SOFT.masked_fill(masked, 1.0), "none")
    torch.testing.assert_close(out, by_hand(S[:, left], SOFT[:, left]))
    assert not torch.autograd.grad(out.sum(), s)[0][masked].any()
    multilabel_cross_entropy(s, SOFT.masked_fill(masked, -100))  # whatever a masked class is labelled
    out = sparse_multilabel_cross_entropy(s, IDS, reduction="none")
    torch.testing.assert_close(out, by_hand(S[:, left], dense(IDS, 6)[:, left]))
    (grad,) = torch.autograd.grad(out.sum(), s)
    assert not grad[masked].any()
    assert grad.isfinite().all()


def test_nothing_left_is_zero_with_gradient_zero():
    s = torch.full((2, 3), -torch.inf, requires_grad=True)
    for loss in (
        multilabel_cross_entropy(s, torch.tensor([[1, 0, 1]] * 2)),
        sparse_multilabel_cross_entropy(s, torch.tensor([[0, 2]] * 2)),
        sparse_multilabel_cross_entropy(s, torch.zeros(2, 0, dtype=torch.long)),
    ):
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, s)[0].any()
    assert multilabel_cross_entropy(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0
    assert sparse_multilabel_cross_entropy(torch.zeros(0, 3), torch.zeros(0, 2).long()).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_logits_stay_finite(dtype):
    s = torch.tensor([[6e4, -6e4, 6e4, -6e4]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([[0, 1, 1, 0]])
    size = s[0, 0].item()
    for loss in (multilabel_cross_entropy(s, labels), sparse_multilabel_cross_entropy(s, torch.tensor([[1, 2]]))):
        assert loss.dtype == torch.float32
        assert loss.item() == 2 * size  # the worst wrong class and the worst right one, nothing else
        torch.testing.assert_close(torch.autograd.grad(loss, s)[0], torch.tensor([[1, -1, 0, 0]], dtype=dtype))


def test_half_precision_is_read_in_float32():
    s = S.bfloat16()
    torch.testing.assert_close(multilabel_cross_entropy(s, HARD), multilabel_cross_entropy(s.float(), HARD.float()))
    torch.testing.assert_close(
        sparse_multilabel_cross_entropy(s, IDS), sparse_multilabel_cross_entropy(s.float(), IDS), rtol=0, atol=0
    )


def test_shapes_and_reductions():
    s = S.reshape(2, 2, 6)
    each = by_hand(S, HARD)
    torch.testing.assert_close(multilabel_cross_entropy(s, HARD.reshape(2, 2, 6), "none"), each.reshape(2, 2))
    torch.testing.assert_close(multilabel_cross_entropy(S, HARD), each.mean())
    torch.testing.assert_close(multilabel_cross_entropy(S, HARD, "sum"), each.sum())
    each = by_hand(S, dense(IDS, 6))
    got = sparse_multilabel_cross_entropy(s, IDS.reshape(2, 2, 3), reduction="none")
    torch.testing.assert_close(got, each.reshape(2, 2))
    torch.testing.assert_close(sparse_multilabel_cross_entropy(S, IDS), each.mean())
    assert sparse_multilabel_cross_entropy(S[0], IDS[0].int()).item() == pytest.approx(each[0].item())


def test_gradcheck():
    s = S.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: multilabel_cross_entropy(x, SOFT, "none"), s)
    assert torch.autograd.gradcheck(lambda x: multilabel_cross_entropy(x, HARD, "none"), s)
    assert torch.autograd.gradcheck(lambda x: sparse_multilabel_cross_entropy(x, IDS, reduction="none"), s)
    assert torch.autograd.gradcheck(lambda x: sparse_multilabel_cross_entropy(x, IDS, True, "none"), s)


def test_sparse_keeps_one_copy_of_the_logits_and_leaves_them_alone():
    """What autograd holds until the backward pass: the logits themselves, the copy without P, and little else."""
    held: dict[int, int] = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    s = torch.zeros(4, 10_000, requires_grad=True)
    ids = torch.tensor([[7, -1]] * 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sparse_multilabel_cross_entropy(s, ids)
    held.pop(s.untyped_storage().data_ptr(), None)
    assert sum(held.values()) < 1.1 * s.untyped_storage().nbytes()
    loss.backward()
    assert not s.any()
    assert ids.tolist() == [[7, -1]] * 4


def test_messages():
    with pytest.raises(
        ValueError, match=r"a label for every logit.*\(4, 6\) and target \(4, 3\).*use sparse_multilabel"
    ):
        multilabel_cross_entropy(S, IDS)
    for label in (-100.0, 1.5, math.nan):
        target = HARD.clone()
        target[2, 4] = label
        with pytest.raises(
            ValueError, match=rf"in \[0, 1\], got {label:g} at \(2, 4\); mask a class by a logit of -inf"
        ):
            multilabel_cross_entropy(S, target)
    for ids in (IDS[:2], IDS[0], IDS.float()):
        with pytest.raises(ValueError, match=r"positive_ids \(..., P\).*got \(4, 6\) and torch.*use multilabel_cross"):
            sparse_multilabel_cross_entropy(S, ids)
    for wrong in (6, -2, -100):
        with pytest.raises(ValueError, match=rf"in \[0, 6\) for 6 classes, got {wrong} at \(1, 0\); pad with -1"):
            sparse_multilabel_cross_entropy(S, torch.tensor([[0], [wrong], [9], [1]]))
    with pytest.raises(ValueError, match=r"a class besides the padding; got \(4, 1\)"):
        sparse_multilabel_cross_entropy(S[:, :1], IDS, mask_zero=True)
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'token'"):
        multilabel_cross_entropy(S, HARD, "token")
