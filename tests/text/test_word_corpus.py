"""Documents as word numbers: vocabulary and places by hand, probabilities in closed form, Walker's table, messages."""

import numpy as np
import pytest

from danlu.text import build_corpus
from danlu.text.word_corpus import encode, keep_probability, walker_table

DOCUMENTS = [["c", "a", "b", "a"], [], ["rare"], ["b", "a", "c", "rare", "once"]]


def test_counts_order_and_places_by_hand():
    corpus = build_corpus(iter(DOCUMENTS), min_count=2)
    assert corpus.words == ["a", "b", "c", "rare"]
    assert corpus.counts.tolist() == [3, 2, 2, 2]
    assert corpus.ids.tolist() == [2, 0, 1, 0, 3, 1, 0, 2, 3]
    assert corpus.offsets.tolist() == [0, 4, 4, 5, 9]
    assert len(corpus) == 4
    assert (corpus.ids.dtype, corpus.offsets.dtype, corpus.counts.dtype) == (np.int32, np.int64, np.int64)


def test_max_words_keeps_the_most_frequent():
    corpus = build_corpus(DOCUMENTS, min_count=1, max_words=2)
    assert corpus.words == ["a", "b"]
    assert [corpus.ids[i:j].tolist() for i, j in zip(corpus.offsets, corpus.offsets[1:], strict=False)] == [
        [0, 1, 0], [], [], [1, 0],
    ]  # fmt: skip


def test_encode_leaves_unknown_words_out():
    ids, offsets = encode([["b", "?", "a"], ["?"], []], {"a": 0, "b": 1})
    assert ids.tolist() == [1, 0]
    assert offsets.tolist() == [0, 2, 2, 2]
    ids, offsets = encode([], {"a": 0})
    assert (ids.tolist(), offsets.tolist()) == ([], [0])


def test_another_corpus_has_another_digest():
    base = build_corpus(DOCUMENTS, min_count=2).digest()
    assert build_corpus(DOCUMENTS, min_count=2).digest() == base
    moved = [*DOCUMENTS[:2], ["rare", "b"], ["a", "c", "rare", "once"]]
    renamed = [[{"a": "z"}.get(w, w) for w in d] for d in DOCUMENTS]
    assert len({base, *(build_corpus(d, min_count=2).digest() for d in (moved, renamed, DOCUMENTS[::-1]))}) == 4


def test_keep_probability_in_closed_form():
    counts = np.array([900_000, 90_000, 10_000])  # of 1e6, t = 1e-2: shares 90, 9 and 1 times t
    expected = [(90**0.5 + 1) / 90, (9**0.5 + 1) / 9, 1.0]
    np.testing.assert_allclose(keep_probability(counts, 1e-2), expected, rtol=1e-14)
    assert keep_probability(counts, 0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_walker_table_draws_what_the_weights_say(size):
    """The table is exact: column i gives i with accept_i and alias_i with the rest."""
    weights = np.random.default_rng(size).pareto(0.7, size) + 1e-6
    accept, alias = walker_table(weights)
    assert ((accept > 0) & (accept <= 1)).all()
    found = accept.copy()
    np.add.at(found, alias, 1 - accept)
    np.testing.assert_allclose(found / size, weights / weights.sum(), atol=1e-12)


def test_messages():
    with pytest.raises(TypeError, match=r"got the text 'a b'; split it, say with .split\(\)"):
        build_corpus(["a b"])
    with pytest.raises(TypeError, match="split it"):
        encode(["a b"], {})
    with pytest.raises(ValueError, match="no document"):
        build_corpus([])
    with pytest.raises(ValueError, match=r"1 of 5 words occur at least min_count=3 times, 2 are needed; lower"):
        build_corpus(DOCUMENTS, min_count=3)
    with pytest.raises(ValueError, match="0 of 0 words"):
        build_corpus([[], []])
    with pytest.raises(ValueError, match="got 0 and None"):
        build_corpus(DOCUMENTS, min_count=0)
