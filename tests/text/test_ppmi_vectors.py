"""Word vectors of PPMI: the matrix by a scalar loop, the factors by LAPACK, order of words, messages."""

import math
from collections import Counter

import pytest
import torch

from danlu.text import ppmi_vectors

TEXT = "the cat sat on the mat. a dog sat on a log. the dog saw the cat. cat."
SENTENCES = [sentence.split() for sentence in TEXT.split(".")]


def by_hand(rows: dict[str, int], window: int, power: float) -> torch.Tensor:
    counts: Counter[tuple[int, int]] = Counter()
    for sentence in SENTENCES:
        for i, word in enumerate(sentence):
            for j, other in enumerate(sentence):
                if i != j and abs(i - j) <= window and word in rows and other in rows:
                    counts[rows[word], rows[other]] += 1
    out = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    near = [sum(n for (a, _), n in counts.items() if a == i) for i in range(len(rows))]
    smooth = [sum(n for (_, b), n in counts.items() if b == i) ** power for i in range(len(rows))]
    for (a, b), n in counts.items():
        out[a, b] = max(0.0, math.log(n * sum(smooth) / (near[a] * smooth[b])))
    return out


@pytest.mark.parametrize(("window", "power", "min_count"), [(1, 1.0, 1), (2, 0.75, 1), (5, 0.75, 2), (99, 0.75, 1)])
def test_gram_matrix_of_the_factors(window, power, min_count):
    """With all columns, E E^T = U S U^T is the root of A A^T, whatever the signs."""
    rows, table = ppmi_vectors(
        SENTENCES, 50, window, min_count, power=power, generator=torch.Generator().manual_seed(0)
    )
    u, s, _ = torch.linalg.svd(by_hand(rows, window, power))
    torch.testing.assert_close((table @ table.mT).double(), u @ torch.diag(s) @ u.mT, rtol=1e-4, atol=1e-4)


def test_leading_columns():
    generator = torch.Generator().manual_seed(0)
    words = [f"w{i}" for i in torch.randint(0, 40, (3000,), generator=generator).square().sqrt().long().tolist()]
    sentences = [words[i : i + 6] for i in range(0, 3000, 6)]
    rows, whole = ppmi_vectors(sentences, 100, generator=torch.Generator().manual_seed(1))
    assert whole.shape == (len(rows), len(rows))
    _, few = ppmi_vectors(sentences, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(few, whole[:, :3], rtol=1e-3, atol=1e-3)


def test_words_in_order_and_the_same_twice():
    rows, table = ppmi_vectors(SENTENCES, 4, min_count=2, generator=torch.Generator().manual_seed(0))
    assert list(rows) == ["the", "cat", "a", "dog", "on", "sat"]
    again = ppmi_vectors(SENTENCES, 4, min_count=2, generator=torch.Generator().manual_seed(0))[1]
    assert torch.equal(table, again)
    assert list(ppmi_vectors(SENTENCES, 4, min_count=1, max_words=2)[0]) == ["the", "cat"]


def test_messages():
    with pytest.raises(ValueError, match="none of the 0 words that occur at least 9 times"):
        ppmi_vectors(SENTENCES, min_count=9)
    with pytest.raises(ValueError, match="none of the 0 words"):
        ppmi_vectors([])
    with pytest.raises(ValueError, match="none of the 1 words"):
        ppmi_vectors([["a"], ["a"]], min_count=1)
    with pytest.raises(ValueError, match=r"power in \(0, 1\]; got 300, 5, 30000 and 0"):
        ppmi_vectors(SENTENCES, power=0)
