"""soft_confusion: a triple loop, scikit-learn on hard decisions, masks, additivity, gradcheck, messages."""

import pytest
import torch
from sklearn.metrics import cohen_kappa_score, confusion_matrix, jaccard_score, matthews_corrcoef

from danlu.math.soft_confusion import soft_confusion

GENERATOR = torch.Generator().manual_seed(0)
P = torch.rand(3, 4, 5, dtype=torch.float64, generator=GENERATOR).softmax(-1)
T = torch.randint(0, 5, (3, 4), generator=GENERATOR)
MASK = torch.rand(3, 4, generator=GENERATOR) < 0.6


@pytest.mark.parametrize("mask", [None, MASK])
def test_equals_the_loop(mask):
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            if mask is None or mask[i, j]:
                for k in range(5):
                    expected[T[i, j], k] += P[i, j, k]
    torch.testing.assert_close(soft_confusion(P, T, mask), expected)


def test_hard_decisions_give_the_usual_matrix():
    hard = P.flatten(0, 1).argmax(-1)
    got = soft_confusion(torch.nn.functional.one_hot(hard, 5).float(), T.flatten())
    assert (got.numpy() == confusion_matrix(T.flatten(), hard, labels=range(5))).all()


def mcc(m):
    right, total, row, column = m.trace(), m.sum(), m.sum(1), m.sum(0)
    spread = (total**2 - row @ row) * (total**2 - column @ column)
    return (right * total - row @ column) / spread.sqrt()


def kappa(m):
    chance = m.sum(1) @ m.sum(0) / m.sum() ** 2
    return (m.trace() / m.sum() - chance) / (1 - chance)


def jaccard(m):
    return (m.diagonal() / (m.sum(1) + m.sum(0) - m.diagonal())).mean()


def test_other_measures_come_from_the_same_matrix():
    """Matthews' correlation, Cohen's kappa, mean overlap: scikit-learn's on decisions, smooth on probabilities."""
    generator = torch.Generator().manual_seed(9)
    t, h = torch.randint(0, 3, (2, 40), generator=generator)
    m = soft_confusion(torch.nn.functional.one_hot(h, 3).double(), t)
    assert mcc(m).item() == pytest.approx(matthews_corrcoef(t, h))
    assert kappa(m).item() == pytest.approx(cohen_kappa_score(t, h))
    assert jaccard(m).item() == pytest.approx(jaccard_score(t, h, average="macro"))
    for measure in (mcc, kappa, jaccard):
        p = P.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda p, f=measure: f(soft_confusion(p, T)), p)


def test_masked_items_may_hold_anything():
    p, t = P.clone(), T.clone()
    p[~MASK], t[~MASK] = float("nan"), -100
    assert torch.equal(soft_confusion(p, t, MASK), soft_confusion(P, T, MASK))


def test_batches_add():
    torch.testing.assert_close(soft_confusion(P[:1], T[:1]) + soft_confusion(P[1:], T[1:]), soft_confusion(P, T))


def test_counts_in_float32_under_bfloat16():
    many = torch.full((3000, 2), 0.5, dtype=torch.bfloat16)
    assert soft_confusion(many, torch.zeros(3000, dtype=torch.long))[0, 0].item() == 1500.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = soft_confusion(many.float() + 0.001, torch.zeros(3000, dtype=torch.long))[0, 0].item()
    assert total == pytest.approx(1503, rel=1e-5)  # bfloat16 would give 1504


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda p: soft_confusion(p, T, MASK), P.clone().requires_grad_())


def test_messages():
    with pytest.raises(ValueError, match=r"prob \(..., C\), target \(...\).*got \(3, 4, 5\), \(4,\)"):
        soft_confusion(P, T[0])
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 5\) for 5 classes, got 0 to 9; drop"):
        soft_confusion(P[0], torch.tensor([0, 9, 1, 1]))
