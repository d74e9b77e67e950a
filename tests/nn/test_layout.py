"""Layouts: packing by hand, round trips, views without copies, and what cannot be packed."""

import pytest
import torch

from danlu.nn.layout import packed_layout, padded_layout

KEEP = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)


def test_packed_by_hand():
    layout = packed_layout(KEEP)
    assert layout.rows.tolist() == [1, 0, 0, 0, 2, 2, 2]  # the shortest first, equal ones in their order
    assert layout.positions.tolist() == [0, 0, 1, 2, 0, 1, 2]
    assert layout.index.tolist() == [4, 0, 1, 2, 8, 9, 10]
    assert [(g.count, g.length) for g in layout.groups] == [(1, 1), (2, 3)]
    assert layout.longest == 3


def test_gather_then_scatter_keeps_tokens_and_clears_padding():
    x = torch.arange(4 * 4 * 2.0).view(4, 4, 2) + 1
    layout = packed_layout(KEEP)
    tokens = layout.gather(x)
    assert tokens.shape == (7, 2)
    torch.testing.assert_close(layout.scatter(tokens), x * KEEP[..., None])


def test_split_gives_views_of_equal_lengths():
    layout = packed_layout(KEEP)
    tokens = torch.arange(7)
    parts = layout.split(tokens)
    assert [part.tolist() for part in parts] == [[[0]], [[1, 2, 3], [4, 5, 6]]]
    assert all(part.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr() for part in parts)


def test_padded_layout_is_the_batch_itself():
    layout = padded_layout(2, 3, KEEP[:2, :3])
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(layout.scatter(layout.gather(x)), x)
    assert layout.rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert layout.longest == 3


@pytest.mark.parametrize("row", [[0, 1, 1], [1, 0, 1]])
def test_gaps_cannot_be_packed(row):
    with pytest.raises(ValueError, match="only right-padded batches can be packed"):
        packed_layout(torch.tensor([row], dtype=torch.bool))


def test_gradients_reach_kept_tokens_only():
    x = torch.randn(4, 4, 2, requires_grad=True)
    layout = packed_layout(KEEP)
    layout.scatter(torch.cat([part.flatten(0, 1) for part in layout.split(layout.gather(x))])).sum().backward()
    torch.testing.assert_close(x.grad, KEEP[..., None].expand_as(x).to(x.dtype))


def test_join_is_the_way_back_from_split():
    for layout in (packed_layout(KEEP), padded_layout(4, 4, KEEP)):
        tokens = layout.gather(torch.arange(16).view(4, 4))
        assert layout.join(layout.split(tokens)).tolist() == tokens.tolist()


def test_an_empty_batch_of_tokens():
    layout = packed_layout(torch.zeros(2, 3, dtype=torch.bool))
    assert layout.groups == () and layout.longest == 0
    assert layout.scatter(torch.zeros(0, 5)).shape == (2, 3, 5)
