"""Soft accuracy and soft F1: scikit-learn on hard decisions, the bound, sampling, gradcheck, masks, messages."""

import warnings

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, fbeta_score

from danlu.losses import soft_accuracy_loss, soft_f1_loss

G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(9, 4, dtype=torch.float64, generator=G)
TARGET = torch.tensor([0, 1, 2, 3, 0, 1, 1, 2, 0])
HUGE = 1e5  # sigmoid and softmax of it are exactly 0 and 1


def sure(hard, classes):
    """Logits whose softmax is exactly one-hot at `hard`."""
    return torch.nn.functional.one_hot(hard, classes).double() * HUGE


def quiet(fn, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fn(*args, **kwargs)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("average", ["macro", "micro"])
def test_hard_decisions_give_sklearns_f1(seed, average):
    """Few items and five classes: classes that are not there, not predicted, or neither."""
    generator = torch.Generator().manual_seed(seed)
    t, h = torch.randint(0, 5, (6,), generator=generator), torch.randint(0, 5, (6,), generator=generator)
    for division in (0.0, 1.0):
        expected = quiet(f1_score, t, h, labels=range(5), average=average, zero_division=division)
        got = soft_f1_loss(sure(h, 5), t, average, zero_division=division)
        assert got.item() == pytest.approx(1 - expected, abs=1e-12)
    expected = quiet(fbeta_score, t, h, beta=2.0, labels=range(5), average=average, zero_division=0)
    assert soft_f1_loss(sure(h, 5), t, average, beta=2.0).item() == pytest.approx(1 - expected, abs=1e-12)


@pytest.mark.parametrize("t", [[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("h", [[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_binary_equals_sklearn_in_both_forms(t, h):
    t, h = torch.tensor(t), torch.tensor(h)
    for division in (0.0, 1.0):
        expected = 1 - quiet(f1_score, t, h, zero_division=division)
        for logits in ((2.0 * h.double() - 1) * HUGE, sure(h, 2)):
            got = soft_f1_loss(logits, t, "binary", zero_division=division)
            assert got.item() == pytest.approx(expected, abs=1e-12)
    expected = 1 - quiet(fbeta_score, t, h, beta=0.5, zero_division=0)
    assert soft_f1_loss((2.0 * h.double() - 1) * HUGE, t, "binary", beta=0.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_labels_equal_sklearn(average):
    generator = torch.Generator().manual_seed(4)
    t, h = (torch.randint(0, 2, (6, 3), generator=generator) for _ in range(2))
    t[:, 2] = h[:, 2] = 0  # a label that never occurs
    expected = quiet(f1_score, t, h, average=average, zero_division=0)
    assert soft_f1_loss((2.0 * h.double() - 1) * HUGE, t, average).item() == pytest.approx(1 - expected)


def test_hard_decisions_give_sklearns_accuracy():
    h = torch.tensor([0, 1, 1, 3, 2, 1, 0, 2, 0])
    assert soft_accuracy_loss(sure(h, 4), TARGET).item() == pytest.approx(1 - accuracy_score(TARGET, h))


def test_micro_over_classes_is_the_accuracy():
    torch.testing.assert_close(soft_f1_loss(LOGITS, TARGET, "micro"), soft_accuracy_loss(LOGITS, TARGET))


def test_soft_f1_by_hand():
    """Eq. (3) with Python floats."""
    p = LOGITS.softmax(-1).tolist()
    for beta in (1.0, 0.5, 2.0):
        fs = []
        for c in range(4):
            hits = sum(p[i][c] for i, t in enumerate(TARGET.tolist()) if t == c)
            row, column = TARGET.tolist().count(c), sum(row[c] for row in p)
            precision, recall = hits / column, hits / row
            fs.append((1 + beta**2) * precision * recall / (beta**2 * precision + recall))
        assert soft_f1_loss(LOGITS, TARGET, "macro", beta=beta).item() == pytest.approx(1 - sum(fs) / 4, rel=1e-12)


def test_soft_accuracy_is_the_accuracy_of_sampled_labels():
    draws = torch.multinomial(LOGITS.softmax(-1), 20_000, replacement=True, generator=G)  # (9, draws)
    sampled = (draws == TARGET[:, None]).double().mean()
    assert abs(1 - soft_accuracy_loss(LOGITS, TARGET) - sampled) < 4 * 0.5 / (9 * 20_000) ** 0.5


def test_the_bound_holds_on_random_cases_and_is_not_idle():
    """Eq. (4): 3 sum|p - h| / (sum t + sum p); some case comes within half of it."""
    generator, closest = torch.Generator().manual_seed(1), 0.0
    for _ in range(2000):
        n = int(torch.randint(1, 8, (1,), generator=generator))
        scale = 10 ** (2 * torch.rand(1, generator=generator).double())
        z = scale * torch.randn(n, dtype=torch.float64, generator=generator)
        t = (torch.rand(n, generator=generator) < 0.4).long()
        p, h = torch.sigmoid(z), (z > 0).double()
        soft = soft_f1_loss(z, t, "binary")
        hard = soft_f1_loss((2 * h - 1) * HUGE, t, "binary")
        bound = 3 * (p - h).abs().sum() / (t.sum() + p.sum())
        if t.sum() + h.sum() == 0:
            continue  # the hard F1 is 0/0
        assert (soft - hard).abs() <= bound + 1e-12
        closest = max(closest, float((soft - hard).abs() / bound))
    assert closest > 0.3


def test_the_bound_of_accuracy_holds_and_is_met():
    """|soft accuracy - accuracy| <= mean(1 - max p), with equality where all are right."""
    generator = torch.Generator().manual_seed(2)
    for sharpness in (0.3, 1.0, 5.0):
        z = torch.randn(500, 12, 4, dtype=torch.float64, generator=generator)
        t = torch.randint(0, 4, (500, 12), generator=generator)
        soft = torch.stack([soft_accuracy_loss(a, b, sharpness=sharpness) for a, b in zip(z, t, strict=True)])
        hard = 1 - (z.argmax(-1) == t).double().mean(-1)
        bound = (1 - (sharpness * z).softmax(-1).amax(-1)).mean(-1)
        assert ((soft - hard).abs() <= bound + 1e-12).all()
        right = soft_accuracy_loss(z, z.argmax(-1), sharpness=sharpness)
        assert right.item() == pytest.approx(bound.mean().item(), rel=1e-12)


def test_soft_accuracy_is_half_the_absolute_error():
    """1 - p_y = sum_k |[k = y] - p_k| / 2: bounded, so that wrong labels cannot pull for ever."""
    onehot = torch.nn.functional.one_hot(TARGET, 4)
    expected = (onehot - LOGITS.softmax(-1)).abs().sum(-1).mean() / 2
    torch.testing.assert_close(soft_accuracy_loss(LOGITS, TARGET), expected)


def test_f1_of_a_batch_is_not_the_mean_of_its_parts():
    """A ratio of sums: the loss of the whole, from sums that add, differs from the mean over parts."""
    t = torch.tensor([1, 0, 0, 0, 1, 1])
    z = LOGITS[:6, 0]
    p = torch.sigmoid(z)
    whole = 1 - 2 * (t * p).sum() / (t.sum() + p.sum())
    torch.testing.assert_close(soft_f1_loss(z, t, "binary"), whole)
    parts = (soft_f1_loss(z[:3], t[:3], "binary") + soft_f1_loss(z[3:], t[3:], "binary")) / 2
    assert (parts - whole).abs() > 0.01


def test_sharpness_leads_to_the_hard_metric():
    hard = LOGITS.argmax(-1)
    expected = 1 - f1_score(TARGET, hard, average="macro")
    losses = [soft_f1_loss(LOGITS, TARGET, sharpness=k).item() for k in (1, 10, 1000)]
    errors = [abs(loss - expected) for loss in losses]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
    sharp = soft_accuracy_loss(LOGITS, TARGET, sharpness=1000).item()
    assert sharp == pytest.approx(1 - accuracy_score(TARGET, hard), abs=1e-6)


def test_gradient_of_soft_accuracy_by_hand():
    """p_t ([k = t] - p_k) / N with the sign of a loss."""
    z = LOGITS.clone().requires_grad_()
    soft_accuracy_loss(z, TARGET).backward()
    p = LOGITS.softmax(-1)
    pt = p.gather(1, TARGET[:, None])
    onehot = torch.nn.functional.one_hot(TARGET, 4)
    torch.testing.assert_close(z.grad, -pt * (onehot - p) / 9)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_gradcheck(average):
    z = LOGITS.clone().requires_grad_()
    labels = torch.nn.functional.one_hot(TARGET, 4)
    mask = TARGET != 3
    assert torch.autograd.gradcheck(lambda z: soft_f1_loss(z, TARGET, average, 1.5, mask), z)
    assert torch.autograd.gradcheck(lambda z: soft_f1_loss(z, labels, average), z)
    assert torch.autograd.gradcheck(lambda z: soft_f1_loss(z[:, 0], TARGET % 2, "binary"), z)
    assert torch.autograd.gradcheck(lambda z: soft_accuracy_loss(z, TARGET, sharpness=2.0), z)


@pytest.mark.parametrize("form", ["accuracy", "classes", "labels"])
def test_dropped_items_do_not_count_whatever_they_hold(form):
    keep = torch.tensor([True, True, False, True, True, False, True, True, True])
    z, t = LOGITS.clone(), TARGET.clone()
    if form == "labels":
        t = torch.nn.functional.one_hot(t, 4)
    loss = soft_accuracy_loss if form == "accuracy" else soft_f1_loss
    expected = loss(z[keep], t[keep])
    mask = keep if form != "labels" else keep[:, None].expand(9, 4)
    torch.testing.assert_close(loss(z, t, mask=mask), expected)
    t[~keep] = -100
    torch.testing.assert_close(loss(z, t), expected)
    z[~keep] = float("nan")
    z.requires_grad_()
    loss(z, t).backward()
    assert z.grad.isfinite().all()
    assert not z.grad[~keep].any()


def test_sequences_are_batches_of_items():
    torch.testing.assert_close(soft_f1_loss(LOGITS.view(3, 3, 4), TARGET.view(3, 3)), soft_f1_loss(LOGITS, TARGET))
    torch.testing.assert_close(
        soft_accuracy_loss(LOGITS.view(3, 3, 4), TARGET.view(3, 3)), soft_accuracy_loss(LOGITS, TARGET)
    )


def test_nothing_to_count_trains_nothing():
    z = LOGITS.clone().requires_grad_()
    nothing = torch.full((9,), -100)
    loss = soft_accuracy_loss(z, nothing) + soft_f1_loss(z, nothing)
    loss.backward()
    assert loss.item() == 1.0  # accuracy loss 0, F1 by zero_division 0
    assert not z.grad.any()


def test_messages():
    with pytest.raises(ValueError, match=r"needs logits \(..., C\) and target \(...\); got \(9, 4\) and \(8,\)"):
        soft_accuracy_loss(LOGITS, TARGET[:8])
    with pytest.raises(ValueError, match=r"or both of one shape; got \(9, 4\) and \(8,\)"):
        soft_f1_loss(LOGITS, TARGET[:8])
    with pytest.raises(ValueError, match="average must be 'binary', 'macro' or 'micro', got 'weighted'"):
        soft_f1_loss(LOGITS, TARGET, "weighted")
    with pytest.raises(ValueError, match="needs two classes, got 4; use 'macro' or 'micro'"):
        soft_f1_loss(LOGITS, TARGET, "binary")
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        soft_f1_loss(LOGITS, TARGET, beta=0)
    with pytest.raises(ValueError, match="sharpness must be > 0, got -1"):
        soft_accuracy_loss(LOGITS, TARGET, sharpness=-1)
    with pytest.raises(ValueError, match=r"mask must be bool .*\(9,\).*got torch.int64"):
        soft_f1_loss(LOGITS, TARGET, mask=TARGET)
