"""R-Drop: eq. (1) with Python floats, divergences against torch.distributions, the doubled batch, masks, messages."""

import math
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.train import RDrop, doubled, kl_bernoulli, kl_categorical, r_drop_loss, symmetric_divergence

G = torch.Generator().manual_seed(0)
A, B = (torch.randn(4, 3, 5, dtype=torch.float64, generator=G) for _ in range(2))  # rows, tokens, classes
TARGET = torch.tensor([[0, 4, 2], [1, 1, 3], [2, 0, 0], [4, 3, 1]])
MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, True, True]])


def probabilities(z):
    e = [math.exp(v) for v in z]
    return [v / sum(e) for v in e]


def by_hand(a, b, target, alpha, mask):
    """Eqs. (1) to (3) item by item; nothing shared with the code."""
    total, count = 0.0, 0
    for p, q, y, keep in zip(
        a.flatten(0, -2).tolist(), b.flatten(0, -2).tolist(), target.flatten().tolist(), mask.flatten().tolist(),
        strict=True,
    ):  # fmt: skip
        if not keep:
            continue
        p, q = probabilities(p), probabilities(q)
        there = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        back = sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
        total += -(math.log(p[y]) + math.log(q[y])) / 2 + alpha / 4 * (there + back)
        count += 1
    return total / count


@pytest.mark.parametrize("alpha", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_formula(alpha, masked):
    mask = MASK if masked else torch.ones_like(MASK)
    got = r_drop_loss(A, B, TARGET, alpha, mask if masked else None)
    assert got.item() == pytest.approx(by_hand(A, B, TARGET, alpha, mask), rel=1e-12)


def test_it_is_half_the_papers_loss():
    """Liang et al.: the sum of both cross entropies and alpha / 2 of the sum of both divergences."""
    a, b, y = A[:, 0], B[:, 0], TARGET[:, 0]
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    divergences = F.kl_div(log_a, log_b, log_target=True, reduction="none").sum(-1) + F.kl_div(
        log_b, log_a, log_target=True, reduction="none"
    ).sum(-1)
    paper = (
        F.cross_entropy(a, y, reduction="none") + F.cross_entropy(b, y, reduction="none") + 2.0 * divergences
    ).mean()
    torch.testing.assert_close(r_drop_loss(a, b, y, alpha=4.0), paper / 2)


def test_equal_predictions_leave_plain_training():
    logits = A[:, 0].clone().requires_grad_()
    plain = F.cross_entropy(logits, TARGET[:, 0])
    (expected,) = torch.autograd.grad(plain, logits)
    loss = r_drop_loss(logits, logits, TARGET[:, 0])
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)  # as long, not twice as long


def test_divergences_against_torch_distributions():
    one, two = (torch.distributions.Categorical(logits=z) for z in (A, B))
    torch.testing.assert_close(kl_categorical(A, B), torch.distributions.kl_divergence(one, two))
    yes, no = (torch.distributions.Bernoulli(logits=z) for z in (A, B))
    torch.testing.assert_close(kl_bernoulli(A, B), torch.distributions.kl_divergence(yes, no).sum(-1))
    there, back = (torch.distributions.kl_divergence(*pair) for pair in ((one, two), (two, one)))
    torch.testing.assert_close(symmetric_divergence(A, B, reduction="none"), (there + back) / 2)
    assert symmetric_divergence(A, B, divergence=kl_bernoulli, reduction="sum").item() == pytest.approx(
        0.5 * (kl_bernoulli(A, B) + kl_bernoulli(B, A)).sum().item()
    )


def test_divergences_where_floats_end():
    big = torch.tensor([[300.0, -300.0]])
    assert kl_bernoulli(big, -big).item() == pytest.approx(600.0)
    assert kl_categorical(big, -big).item() == pytest.approx(600.0)
    out = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    two = torch.tensor([[0.0, math.log(3.0), -math.inf]], requires_grad=True)
    loss = kl_categorical(out, two).sum()
    assert loss.item() == pytest.approx(math.log(2) - math.log(3) / 2)
    loss.backward()
    assert out.grad.isfinite().all()
    assert two.grad.isfinite().all()


@pytest.mark.parametrize("function", [kl_categorical, kl_bernoulli, lambda a, b: r_drop_loss(a, b, TARGET, 4.0, MASK)])
def test_gradcheck_by_both_predictions(function):
    assert torch.autograd.gradcheck(function, [A.clone().requires_grad_(), B.clone().requires_grad_()])


def test_what_the_mask_or_minus_100_drops_has_no_say():
    a, b = A.clone(), B.clone()
    a[~MASK], b[~MASK] = 77.0, -3.0
    b[~MASK][:, 0] = 9.0
    expected = by_hand(A, B, TARGET, 4.0, MASK)
    assert r_drop_loss(a, b, TARGET, mask=MASK).item() == pytest.approx(expected, rel=1e-12)
    assert r_drop_loss(a, b, TARGET.masked_fill(~MASK, -100)).item() == pytest.approx(expected, rel=1e-12)
    some = torch.zeros_like(MASK)
    some[0, 2] = True  # kept by the one, dropped by the other
    both = r_drop_loss(A, B, TARGET.masked_fill(some, -100), mask=MASK | some)
    assert both.item() == pytest.approx(expected, rel=1e-12)
    assert r_drop_loss(A, B, TARGET, mask=torch.zeros_like(MASK)).item() == 0


class Net(nn.Module):
    def __init__(self, dropout=0.3):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.drop = nn.Embedding(9, 6), nn.Dropout(dropout)
        self.head = nn.Linear(6, 3)
        self.seen = []

    def forward(self, ids):
        h = self.drop(self.embed(ids).mean(1))
        self.seen.append(h)
        return self.head(h)


IDS, LABEL = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([0, 1, 2])


def test_one_doubled_pass_is_two_predictions_of_every_row():
    model = Net()
    torch.manual_seed(3)
    loss = RDrop(2.0).loss(model, IDS, LABEL)
    logits = model.head(model.seen[0])
    assert len(model.seen) == 1
    assert not torch.equal(logits[:3], logits[3:])
    assert loss.item() == pytest.approx(r_drop_loss(logits[:3], logits[3:], LABEL, 2.0).item(), rel=1e-6)
    torch.manual_seed(3)
    apart = RDrop(2.0).unlabelled(model, IDS)
    assert apart.item() == pytest.approx(symmetric_divergence(logits[:3], logits[3:]).item(), rel=1e-5)
    calm = Net(dropout=0.0)
    first, second = RDrop().predictions(calm, IDS)
    torch.testing.assert_close(first, calm(IDS))  # the rows in their order, twice
    torch.testing.assert_close(second, calm(IDS))


def test_doubled_keeps_the_structure():
    Pair = namedtuple("Pair", "a b")
    batch = {"x": IDS, "more": [LABEL, (LABEL,)], "pair": Pair(LABEL, None), "scale": torch.tensor(2.0), "causal": True}
    got = doubled(batch)
    assert got["x"].tolist() == IDS.tolist() * 2
    assert got["more"][1][0].tolist() == [0, 1, 2, 0, 1, 2]
    assert isinstance(got["pair"], Pair)
    assert got["pair"].a.tolist() == [0, 1, 2, 0, 1, 2]
    assert got["scale"].ndim == 0
    assert got["causal"] is True
    with pytest.raises(TypeError, match="in dicts, lists and tuples, got str; call the model twice"):
        doubled({"text": ["a", "b"]})


def test_a_plain_users_loop_brings_the_predictions_together():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 9, (60, 4), generator=generator)
    label = torch.randint(0, 3, (60,), generator=generator)
    apart = {}
    for alpha in (0.0, 4.0):
        model = Net(0.5)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            r_drop_loss(model(ids), model(ids), label, alpha).backward()
            optimizer.step()
        apart[alpha] = symmetric_divergence(model(ids), model(ids)).item()
    assert apart[4.0] < 0.3 * apart[0.0]


def test_two_halves_make_the_whole_batch():
    a, b = A[:, 0].clone().requires_grad_(), B[:, 0].clone().requires_grad_()
    whole = torch.autograd.grad(r_drop_loss(a, b, TARGET[:, 0]), [a, b])
    parts = sum(r_drop_loss(a[s], b[s], TARGET[s, 0]) / 2 for s in (slice(0, 2), slice(2, 4)))
    for x, y in zip(whole, torch.autograd.grad(parts, [a, b]), strict=True):
        torch.testing.assert_close(x, y)


def test_half_precision_and_compile():
    low = r_drop_loss(A.to(torch.bfloat16), B.to(torch.bfloat16), TARGET)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(r_drop_loss(A, B, TARGET).item(), rel=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert RDrop().loss(Net(), IDS, LABEL).dtype == torch.float32
    torch._dynamo.reset()
    compiled = torch.compile(r_drop_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(A, B, TARGET, 4.0, MASK), r_drop_loss(A, B, TARGET, 4.0, MASK))


@pytest.mark.slow
def test_in_accelerate_and_a_hugging_face_trainer_one_line_changes(tmp_path):
    accelerate, transformers = pytest.importorskip("accelerate"), pytest.importorskip("transformers")
    accelerator = accelerate.Accelerator(cpu=True)
    model, expected = Net(), Net()
    model = accelerator.prepare(model)
    torch.manual_seed(0)
    accelerator.backward(RDrop().loss(model, IDS, LABEL))
    torch.manual_seed(0)
    RDrop().loss(expected, IDS, LABEL).backward()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return r_drop_loss(model(inputs["ids"]), model(inputs["ids"]), inputs["labels"])

    trained = Net()
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=3, max_steps=20, report_to=[], use_cpu=True, save_strategy="no",
        learning_rate=0.05, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    rows = [{"ids": i, "labels": y} for i, y in zip(IDS, LABEL, strict=True)]
    Trainer(trained, arguments, train_dataset=rows).train()
    trained.eval()
    assert F.cross_entropy(trained(IDS), LABEL) < 0.5 * F.cross_entropy(Net(0.0)(IDS), LABEL)


def test_messages():
    with pytest.raises(ValueError, match=r"alpha must be >= 0, got -1; 0 leaves the cross entropy"):
        r_drop_loss(A, B, TARGET, -1)
    with pytest.raises(ValueError, match=r"\(4, 3, 5\), \(4, 3, 5\) and \(8, 3\); labels are those of the rows before"):
        r_drop_loss(A, B, doubled(TARGET))
    with pytest.raises(ValueError, match=r"mask must be bool with the shape of target \(4, 3\).*torch.int64"):
        r_drop_loss(A, B, TARGET, mask=MASK.long())
    with pytest.raises(ValueError, match=r"must have one shape, got \(4, 3, 5\) and \(2, 3, 5\)"):
        symmetric_divergence(A, B[:2])
    with pytest.raises(ValueError, match="even number of rows, got 3"):
        RDrop().loss(lambda ids: torch.zeros(3, 2), IDS, LABEL)
