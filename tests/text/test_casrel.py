"""CasRel: spans by a double loop, the loss by hand, subjects without an influence at first, sampling, decoding."""

import itertools
import math

import pytest
import torch

from danlu.text import CasRel
from danlu.text.casrel import nearest_spans, sample_subject

D, K, T = 6, 3, 5
X = torch.randn(2, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TRIPLES = torch.tensor([[0, 0, 2, 1, 3, 4], [0, 0, 2, 2, 2, 4], [0, 3, 4, 0, 0, 1], [1, 1, 4, 0, 1, 4]])
MASK = torch.tensor([[True] * 5, [False, True, True, True, False]])


def model(**options):
    torch.manual_seed(1)
    made = CasRel(D, K, **options).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return made


def test_spans_equal_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    starts, ends = (torch.rand(40, 3, 7, generator=generator) > 0.6 for _ in range(2))
    expected = [
        [i, k, s, min(e for e in range(s, 7) if ends[i, k, e]) + 1]
        for i, k, s in itertools.product(range(40), range(3), range(7))
        if starts[i, k, s] and any(ends[i, k, s:])
    ]
    assert nearest_spans(starts, ends).tolist() == expected


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [([2, 5], [3, 7], [[2, 4], [5, 8]]), ([2, 3], [7], [[2, 8], [3, 8]]), ([4], [1], []), ([4], [4], [[4, 5]])],
)
def test_spans_by_hand(starts, ends, expected):
    rows = torch.zeros(2, 8, dtype=torch.bool)
    rows[0, starts] = rows[1, ends] = True
    assert nearest_spans(*rows).tolist() == expected


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


def entropy(t, y, power):
    q = sigmoid(t) ** power
    return -math.log(q if y else 1 - q)


@pytest.mark.parametrize("fusion", ["cln", "add"])
@pytest.mark.parametrize("power", [(2.0, 4.0), (1.0, 1.0)])
def test_the_loss_equals_the_formula(fusion, power):
    casrel = model(fusion=fusion, power=power)
    drawn = torch.tensor([[0, 0, 2], [1, 1, 3]])  # a subject with two triples, and a pair that is no subject
    total = 0.0
    for b, t, side in itertools.product(range(2), range(T), range(2)):
        if MASK[b, t]:
            gold = {(0, 0, 0), (0, 3, 0), (0, 1, 1), (0, 3, 1), (1, 1, 0), (1, 3, 1)}
            total += entropy(casrel.subject_logits(X)[b, t, side].item(), (b, t, side) in gold, power[0]) / 2
    objects = casrel.object_logits(X, drawn)
    gold = {(0, 3, 1, 0), (0, 3, 1, 1), (0, 2, 2, 0), (0, 3, 2, 1)}
    for n, t, p, side in itertools.product(range(2), range(T), range(K), range(2)):
        if MASK[n, t]:
            total += entropy(objects[n, t, p, side].item(), (n, t, p, side) in gold, power[1]) / 2
    assert casrel.loss(X, TRIPLES, drawn, MASK, "sum").item() == pytest.approx(total)
    assert casrel.loss(X, TRIPLES, drawn, MASK).item() == pytest.approx(total / 8)


def test_objects_follow_the_formula():
    x = X[:1]
    z = torch.cat([x[0, 1], x[0, 3]])
    casrel = model()
    norm = casrel.norm
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    g = (x - mean) / (var + 1e-7).sqrt() * (norm.weight + norm.cond_gamma.weight @ z)
    g = g + norm.bias + norm.cond_beta.weight @ z
    expected = (g @ casrel.object.weight.T + casrel.object.bias).view(1, T, K, 2)
    torch.testing.assert_close(casrel.object_logits(x, torch.tensor([[0, 1, 4]])), expected)
    casrel = model(fusion="add")
    g = x + (x[0, 1] + x[0, 3]) / 2
    expected = (g @ casrel.object.weight.T + casrel.object.bias).view(1, T, K, 2)
    torch.testing.assert_close(casrel.object_logits(x, torch.tensor([[0, 1, 4]])), expected)


def test_a_fresh_model_answers_alike_for_all_subjects_and_says_no():
    casrel = CasRel(D, K).double()
    logits = casrel.object_logits(X, torch.tensor([[0, 0, 1], [0, 2, 5]]))
    torch.testing.assert_close(logits[0], logits[1])
    assert casrel.extract(X, MASK) == [[], []]


def test_gradcheck():
    casrel = model()
    drawn = torch.tensor([[0, 0, 2]])
    assert torch.autograd.gradcheck(lambda x: casrel.loss(x, TRIPLES, drawn, MASK), X.clone().requires_grad_())


def test_sentences_without_a_subject_train_the_subjects_alone():
    casrel = model()
    casrel.loss(X, TRIPLES[:0], torch.zeros(0, 3, dtype=torch.int64), MASK).backward()
    assert casrel.object.weight.grad is None
    assert casrel.subject.weight.grad.abs().sum() > 0


def test_masked_tokens_count_nothing():
    casrel = model()
    other = X.clone()
    other[1, 0], other[1, 4] = 7.0, -3.0
    drawn = torch.tensor([[1, 1, 4]])
    torch.testing.assert_close(casrel.loss(X, TRIPLES, drawn, MASK), casrel.loss(other, TRIPLES, drawn, MASK))


def decoded_by_hand(casrel, x, mask, start, end):  # oracle: loops over one subject at a time
    m, power = casrel.power
    found = []
    for b in range(len(x)):

        def spans(logits, power, b=b):
            q = torch.sigmoid(logits) ** power
            for s in range(T):
                if mask[b, s] and q[s, 0] > start:
                    ends = [e for e in range(s, T) if mask[b, e] and q[e, 1] > end]
                    if ends:
                        yield s, ends[0] + 1

        triples = set()
        for s, t in spans(casrel.subject_logits(x[b : b + 1])[0], m):
            logits = casrel.object_logits(x, torch.tensor([[b, s, t]]))[0]
            for p in range(K):
                triples |= {(s, t, p, o, u) for o, u in spans(logits[:, p], power)}
        found.append(sorted(triples))
    return found


@pytest.mark.parametrize("max_subjects", [1, 64])
def test_decoding_equals_loops(max_subjects):
    casrel = model()
    sizes = 0
    for seed in range(12):
        x = 2 * torch.randn(2, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        expected = decoded_by_hand(casrel, x, MASK, 0.15, 0.1)
        assert casrel.extract(x, MASK, 0.15, 0.1, max_subjects) == expected
        sizes += sum(map(len, expected))
    assert sizes > 20


def test_what_gold_tags_cannot_say():
    """Of two spans with one start the nearer end wins; all else comes back, over every two spans of 4 tokens."""
    spans = [(a, b) for a in range(4) for b in range(a + 1, 5)]
    for pair in itertools.combinations(spans, 2):
        rows = torch.zeros(2, 4, dtype=torch.bool)
        for a, b in pair:
            rows[0, a] = rows[1, b - 1] = True
        found = {tuple(row) for row in nearest_spans(*rows).tolist()}
        (a, b), (c, d) = sorted(pair)
        blocked = a == c or (c < b and d < b) or a <= d - 1 < b - 1 or (c <= b - 1 < d - 1)
        assert (found == set(pair)) or blocked


def test_sampling_mixes_starts_and_ends():
    subjects = [(0, 2), (3, 4), (3, 6)]
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_subject(subjects, generator) for _ in range(3000)]
    shares = {pair: drawn.count(pair) / 3000 for pair in set(drawn)}
    # start 0 with 1/3, then each of three ends; start 3 with 2/3, then the two ends behind it
    expected = {(0, 2): 1 / 9, (0, 4): 1 / 9, (0, 6): 1 / 9, (3, 4): 1 / 3, (3, 6): 1 / 3}
    assert shares.keys() == expected.keys()
    for pair, share in expected.items():
        assert abs(shares[pair] - share) < 4 * math.sqrt(share * (1 - share) / 3000)
    again = torch.Generator().manual_seed(0)
    assert [sample_subject(subjects, again) for _ in range(20)] == drawn[:20]


def test_messages():
    with pytest.raises(ValueError, match="fusion must be one of cln, add; got 'sum'"):
        CasRel(4, 2, fusion="sum")
    with pytest.raises(ValueError, match="dim and num_predicates must be at least 1; got 4 and 0"):
        CasRel(4, 0)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        model().loss(X, TRIPLES, TRIPLES[:0, :3], MASK, "none")
    with pytest.raises(ValueError, match=r"starts and ends of one shape, both bool; got torch.int64 \(2,\)"):
        nearest_spans(torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="does not lie in a batch of 2 sentences of 5 tokens with 3 pred"):
        model().loss(X, torch.tensor([[0, 0, 6, 0, 0, 1]]), TRIPLES[:0, :3], MASK)
