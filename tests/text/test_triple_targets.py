"""Tables of triples: lists of cells against a double loop, repeats, nothing, what lies outside."""

import pytest
import torch

from danlu.text.triple_targets import check_triples, pointer_targets


def test_lists_equal_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    batch, types, tokens = 3, 4, 5
    cells = torch.stack([torch.randint(n, (60,), generator=generator) for n in (batch, types, tokens, tokens)], 1)
    ids = pointer_targets(cells, batch, types, tokens)
    for b in range(batch):
        for h in range(types):
            expected = sorted({i * tokens + j for x, y, i, j in cells.tolist() if (x, y) == (b, h)})
            row = ids[b, h].tolist()
            assert row == expected + [-1] * (len(row) - len(expected))
    assert (ids[..., -1] >= 0).any()  # no longer than the longest list


def test_a_cell_named_twice_counts_once():
    cells = torch.tensor([[1, 0, 2, 2], [1, 0, 2, 2]])
    assert pointer_targets(cells, 2, 1, 3).tolist() == [[[-1]], [[8]]]


def test_nothing_gives_empty_lists():
    assert pointer_targets(torch.zeros(0, 4, dtype=torch.int64), 2, 3, 4).shape == (2, 3, 0)


@pytest.mark.parametrize(
    "row", [[2, 0, 1, 0, 0, 1], [-1, 0, 1, 0, 0, 1], [0, 0, 1, 3, 0, 1], [0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 3, 5],
            [0, -1, 1, 0, 0, 1], [0, 0, 1, -1, 0, 1]]
)  # fmt: skip
def test_a_triple_outside_is_named(row):
    good = [0, 0, 4, 2, 3, 4]
    check_triples(torch.tensor([good]), 2, 4, 3)
    with pytest.raises(
        ValueError, match=rf"triple \[{', '.join(map(str, row))}\] does not lie in a batch of 2 .*3 pred"
    ):
        check_triples(torch.tensor([good, row]), 2, 4, 3)


def test_message_names_the_form():
    with pytest.raises(ValueError, match=r"int64 table \(N, 6\).*got torch.int64 \(2, 5\)"):
        check_triples(torch.zeros(2, 5, dtype=torch.int64), 1, 1, 1)
    with pytest.raises(ValueError, match=r"got torch.float32 \(0, 6\). For none write"):
        check_triples(torch.zeros(0, 6), 1, 1, 1)
