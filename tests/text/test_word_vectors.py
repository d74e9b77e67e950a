"""Word vectors in use: cosines by hand, gensim's analogies, ties of the vocabulary, extremes, messages."""

import importlib.util
import math

import pytest
import torch

from danlu.text import WordVectors, analogy_scores, nearest_rows, word_similarity


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def cosine(x, y):
    dot = lambda a, b: sum(p * q for p, q in zip(a, b, strict=True))  # noqa: E731
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


def names(count):
    return [f"w{i}" for i in range(count)]


def test_nearest_rows_by_hand():
    vectors, queries = draw(9, 4), draw(3, 4, seed=1)
    cosines, rows = nearest_rows(queries, vectors, k=4)
    for q in range(3):
        expected = sorted(((cosine(queries[q].tolist(), v), i) for i, v in enumerate(vectors.tolist())), reverse=True)
        assert rows[q].tolist() == [i for _, i in expected[:4]]
        assert cosines[q].tolist() == pytest.approx([c for c, _ in expected[:4]], abs=1e-14)


@pytest.mark.parametrize("method", ["3CosAdd", "3CosMul"])
def test_analogy_scores_by_hand(method):
    vectors = draw(8, 3)
    a, b, c = torch.tensor([0, 5]), torch.tensor([1, 2]), torch.tensor([2, 7])
    found = analogy_scores(vectors, a, b, c, method)
    for q in range(2):
        for w in range(8):
            if w in (a[q], b[q], c[q]):
                assert found[q, w] == -torch.inf
                continue
            s = [cosine(vectors[w].tolist(), vectors[i].tolist()) for i in (int(a[q]), int(b[q]), int(c[q]))]
            up = [(1 + v) / 2 for v in s]
            expected = s[1] - s[0] + s[2] if method == "3CosAdd" else up[1] * up[2] / (up[0] + 1e-3)
            assert found[q, w].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.skipif(importlib.util.find_spec("gensim") is None, reason="needs gensim")
def test_gensim_answers_the_same():
    from gensim.models import KeyedVectors

    vectors = draw(50, 6, dtype=torch.float32)
    theirs = KeyedVectors(6)
    theirs.add_vectors(names(50), vectors.numpy())
    ours = WordVectors(names(50), vectors)
    for i in range(0, 40, 4):
        a, b, c = f"w{i}", f"w{i + 1}", f"w{i + 2}"
        assert ours.analogy(a, b, c)[0][0] == theirs.most_similar(positive=[b, c], negative=[a], topn=1)[0][0]
        assert (
            ours.analogy(a, b, c, method="3CosMul")[0][0]
            == theirs.most_similar_cosmul(positive=[b, c], negative=[a], topn=1)[0][0]
        )
        assert [w for w, _ in ours.nearest(a, 5)] == [w for w, _ in theirs.most_similar(a, topn=5)]


def test_a_word_is_neither_its_neighbour_nor_its_analogy():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.1], [0.0, 1.0]])  # the second has the first's direction
    x = WordVectors(names(4), vectors)
    assert [w for w, _ in x.nearest("w0", 9)] == ["w1", "w2", "w3"]
    assert [w for w, _ in x.nearest("w1", 1)] == ["w0"]
    assert [w for w, _ in x.nearest(vectors[0], 2)] in (["w0", "w1"], ["w1", "w0"])
    assert x.analogy("w0", "w1", "w2", k=4) == [("w3", pytest.approx(x.similarity("w3", "w2")))]


def test_analogy_accuracy_counts_what_is_covered():
    vectors = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 1]])
    x = WordVectors(["a", "b", "c", "d", "e"], vectors)
    asked = [("a", "b", "c", "d"), ("A", "B", "C", "D"), ("a", "b", "c", "e"), ("a", "b", "c", "?")]
    assert x.analogy_accuracy(asked) == (pytest.approx(2 / 3), 3, 4)
    assert x.analogy_accuracy([]) == (0, 0, 0)
    small = WordVectors(["a", "b", "c"], vectors[:3])
    assert small.analogy_accuracy([("a", "b", "c", "a")]) == (0, 1, 1)  # no word is left to answer with


def test_many_queries_are_answered_in_parts(monkeypatch):
    from danlu.text import word_vectors

    vectors, queries = draw(20, 5), draw(13, 5, seed=1)
    whole = nearest_rows(queries, vectors, 3)
    monkeypatch.setattr(word_vectors, "_chunk", lambda size: 4)
    parts = nearest_rows(queries, vectors, 3)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])


def test_agreement_with_people_by_ranks():
    x = WordVectors(["a", "b", "c", "d"], torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 1.0], [0.0, 1.0]]))
    pairs = [("a", "b", 10), ("a", "c", 3), ("a", "d", 5), ("A", "zebra", 1)]
    assert word_similarity(x, pairs).rho == pytest.approx(0.5)  # ranks 3 2 1 against 3 1 2: 1 - 6 * 2 / 24
    assert word_similarity(x, pairs).covered == 3
    assert word_similarity(x, pairs[:1]) == type(word_similarity(x, pairs))(0.0, 1, 1)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_lengths_do_not_count(scale):
    vectors = draw(6, 4, dtype=torch.float32)
    x, y = WordVectors(names(6), vectors), WordVectors(names(6), scale * vectors)
    assert y.nearest("w0") == [(w, pytest.approx(c, abs=1e-6)) for w, c in x.nearest("w0")]
    assert y.similarity("w0", "w1") == pytest.approx(x.similarity("w0", "w1"), abs=1e-6)


def test_precisions_layouts_and_zero_rows():
    vectors = draw(6, 4, dtype=torch.float32)
    assert nearest_rows(vectors.bfloat16(), vectors.bfloat16(), 2)[0].dtype == torch.float32
    strided = vectors.T.contiguous().T
    assert torch.equal(nearest_rows(strided, strided, 3)[1], nearest_rows(vectors, vectors, 3)[1])
    vectors[2] = 0
    x = WordVectors(names(6), vectors)
    assert x.similarity("w2", "w1") == 0
    assert all(c == 0 for _, c in x.nearest("w2"))
    assert nearest_rows(vectors[:0], vectors)[1].shape == (0, 6)


def test_messages():
    x = WordVectors(["a", "b"], torch.eye(2))
    with pytest.raises(KeyError, match="no vector for 'A' among 2 words"):
        x["A"]
    with pytest.raises(ValueError, match="'a' comes twice"):
        WordVectors(["a", "b", "a"], torch.eye(3))
    with pytest.raises(ValueError, match=r"2 words need as many rows \(V, D\), got \(3, 3\)"):
        WordVectors(["a", "b"], torch.eye(3))
    with pytest.raises(ValueError, match=r"got \(1, 3\), \(2, 2\) and k=1"):
        nearest_rows(torch.ones(1, 3), torch.eye(2), 1)
    with pytest.raises(ValueError, match="k=0"):
        nearest_rows(torch.ones(1, 2), torch.eye(2), 0)
    with pytest.raises(ValueError, match="must be finite"):
        nearest_rows(torch.tensor([[torch.nan, 0.0]]), torch.eye(2))
    with pytest.raises(ValueError, match="one of 3CosAdd, 3CosMul, got 'add'"):
        x.analogy("a", "b", "a", method="add")
    with pytest.raises(ValueError, match="rows a, b, c"):
        analogy_scores(torch.eye(3), torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([0]))
