"""Synthetic scores: each equation by loops, frozen keys and queries, colliding columns, mixtures, messages."""

import math

import pytest
import torch

from danlu.nn import dense_scores, factorized_dense_scores, factorized_random_scores, mix_scores
from danlu.nn.synthetic_scores import factor_pair


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tables(heads=2, hidden=3, dim=4, places=7):
    return normal(heads, hidden, dim), normal(heads, hidden), normal(heads, hidden, places), normal(heads, places)


def test_dense_equals_the_formula():
    x, (w, c, v, b) = normal(2, 5, 4, seed=1), tables()
    got = dense_scores(x, w, c, v, b)
    for n in range(2):
        for h in range(2):
            for i in range(5):
                hidden = [max(0.0, sum(float(w[h, f, k] * x[n, i, k]) for k in range(4)) + float(c[h, f]))
                          for f in range(3)]  # fmt: skip
                for j in range(5):
                    expected = sum(float(v[h, f, j]) * hidden[f] for f in range(3)) + float(b[h, j])
                    assert got[n, h, i, j].item() == pytest.approx(expected, abs=1e-12)


def test_dense_is_attention_with_frozen_keys():  # an identity as hidden layer: S = X W_2, the product with constants
    x, keys = normal(2, 5, 4).abs(), normal(2, 4, 7)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    got = dense_scores(x, eye, torch.zeros(2, 4).double(), keys, torch.zeros(2, 7).double())
    torch.testing.assert_close(got, x[:, None] @ keys[..., :5])


def test_factorized_dense_equals_the_formula():
    a, c = normal(2, 3, 6, 2), normal(2, 3, 6, 3)  # (B, H, T, m), (B, H, T, n)
    for combine in ("product", "sum"):
        got = factorized_dense_scores(a, c, combine=combine)
        for j in range(6):
            left, right = a[..., j // 3], c[..., j % 3]
            torch.testing.assert_close(got[..., j], left * right if combine == "product" else left + right)
    torch.testing.assert_close(factorized_dense_scores(a, c, 4), factorized_dense_scores(a, c)[..., :4])
    assert factorized_dense_scores(a, c, 0).shape == (2, 3, 6, 0)


def test_interleaved_scores_are_an_outer_product():  # of rank one in every token
    a, c = normal(1, 4), normal(1, 8, seed=1)
    table = factorized_dense_scores(a, c, 32).view(4, 8)
    torch.testing.assert_close(table, a.T @ c)
    assert torch.linalg.matrix_rank(table) == 1


@pytest.mark.parametrize(
    ("m", "n", "distinct"), [(8, 8, 8), (16, 16, 16), (16, 32, 32), (4, 8, 8), (3, 5, 15), (5, 7, 35)]
)
def test_columns_collide_only_where_both_are_tiled_alike(m, n, distinct):
    a, c = normal(3, m), normal(3, n, seed=1)
    same = factorized_dense_scores(a, c, m * n, "same")
    period = math.lcm(m, n)
    assert torch.equal(same[:, period:], same[:, : m * n - period])
    assert len(torch.unique(same, dim=1).T) == distinct == period
    assert len(torch.unique(factorized_dense_scores(a, c, m * n), dim=1).T) == m * n


def test_a_sum_parts_into_two_softmaxes():
    a, c = normal(2, 3), normal(2, 4, seed=1)
    weights = factorized_dense_scores(a, c, 12, combine="sum").softmax(-1).view(2, 3, 4)
    torch.testing.assert_close(weights, a.softmax(-1)[:, :, None] * c.softmax(-1)[:, None, :])


def test_factorized_random_is_attention_with_frozen_keys_and_queries():
    queries, keys = normal(2, 7, 3), normal(2, 7, 3, seed=1)
    got = factorized_random_scores(queries, keys, 5)
    expected = [[[sum(float(queries[h, i, k] * keys[h, j, k]) for k in range(3)) for j in range(5)] for i in range(5)]
                for h in range(2)]  # fmt: skip
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64))


def test_random_products_stay_exact_under_autocast():
    queries, keys = normal(2, 7, 3).float(), normal(2, 7, 3, seed=1).float()
    expected = factorized_random_scores(queries, keys, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(factorized_random_scores(queries, keys, 7), expected)
    assert factorized_random_scores(queries.bfloat16(), keys.bfloat16(), 7).dtype == torch.float32


def test_mixtures():
    scores = [normal(2, 3, 4, 4), normal(1, 3, 4, 4, seed=1)]
    logits = normal(2, 3, seed=2)
    alpha = logits.exp() / logits.exp().sum(0)
    expected = alpha[0][:, None, None] * scores[0] + alpha[1][:, None, None] * scores[1]
    torch.testing.assert_close(mix_scores(scores, logits), expected)
    torch.testing.assert_close(mix_scores(scores), scores[0] + scores[1])
    one_hot = torch.tensor([[200.0], [-200.0]], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(mix_scores(scores, one_hot), scores[0])
    torch.testing.assert_close(mix_scores([scores[0]] * 2, logits), scores[0])  # shares sum to 1
    assert mix_scores(scores[1:] * 2, logits.bfloat16()).shape == (1, 3, 4, 4)


def test_gradients():
    x, weights = normal(2, 5, 4, seed=3).requires_grad_(), [t.requires_grad_() for t in tables()]
    assert torch.autograd.gradcheck(dense_scores, (x, *weights))
    a, c = normal(2, 4, 2).requires_grad_(), normal(2, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(factorized_dense_scores, (a, c))
    assert torch.autograd.gradcheck(lambda a, c: factorized_dense_scores(a, c, 5, "same", "sum"), (a, c))
    r, s = normal(2, 5, 3).requires_grad_(), normal(2, 5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, s: factorized_random_scores(r, s, 4), (r, s))
    logits = normal(2, 2).requires_grad_()
    parts = [normal(2, 2, 3, 3).requires_grad_(), normal(1, 2, 3, 3, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda z, *s: mix_scores(s, z), (logits, *parts))


@pytest.mark.parametrize(("length", "pair"), [(1, (1, 1)), (4, (2, 2)), (12, (3, 4)), (48, (6, 8)), (512, (16, 32))])
def test_factor_pair(length, pair):
    assert factor_pair(length) == pair


def test_messages():
    with pytest.raises(ValueError, match=r"8 tokens, and the scores are made for max_len=7 places; .*max_len=8"):
        dense_scores(normal(1, 8, 4), *tables())
    with pytest.raises(ValueError, match="7 tokens, and the scores are made for max_len=6"):
        factorized_dense_scores(normal(1, 7, 2), normal(1, 7, 3))
    with pytest.raises(ValueError, match="6 tokens, and the scores are made for max_len=5"):
        factorized_random_scores(normal(1, 5, 3), normal(1, 5, 3), 6)
    with pytest.raises(ValueError, match=r"tiling must be .* got 'tiled' and 'product'"):
        factorized_dense_scores(normal(1, 4, 2), normal(1, 4, 3), tiling="tiled")
    with pytest.raises(ValueError, match="got 'interleaved' and 'mean'"):
        factorized_dense_scores(normal(1, 4, 2), normal(1, 4, 3), combine="mean")
    with pytest.raises(ValueError, match=r"a row of logits \(kinds, heads\) for each kind; got 2 and \(3, 1\)"):
        mix_scores([normal(1, 1, 1, 1)] * 2, normal(3, 1))
    with pytest.raises(ValueError, match="got 0 and none"):
        mix_scores([])
    with pytest.raises(ValueError, match=r"13 is prime.*take max_len=14, or give factors="):
        factor_pair(13)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        factor_pair(0)
