"""Pixels to [-1, 1] and back, and arcs between latents: round trips, spheres, ends, messages."""

import math

import pytest
import torch

from danlu.generative import spherical_path, to_levels, to_signed


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_level_comes_back(levels):
    pixels = torch.arange(levels, dtype=torch.uint8)
    x = to_signed(pixels, levels)
    assert x[0] == -1
    assert x[-1] == pytest.approx(1)
    assert torch.equal(to_levels(x, levels), pixels)
    assert torch.equal(to_levels(x + 0.49 * 2 / (levels - 1), levels), pixels)
    assert to_signed(pixels.double(), levels).dtype == torch.float64


def test_outside_is_held_and_empty_stays():
    assert to_levels(torch.tensor([-math.inf, 9.0])).tolist() == [0, 255]
    assert to_signed(torch.zeros(0, 1, 2, 2, dtype=torch.uint8)).shape == (0, 1, 2, 2)


def test_range_messages():
    with pytest.raises(ValueError, match=r"from 2 to 256.*got 1"):
        to_signed(torch.zeros(1), 1)
    with pytest.raises(ValueError, match="pixels from 0 to 16, got 3 to 17"):
        to_signed(torch.tensor([3, 17]), 17)
    with pytest.raises(ValueError, match="NaN in 1 of 2"):
        to_levels(torch.tensor([math.nan, 0.0]))
    with pytest.raises(ValueError, match="got 257"):
        to_levels(torch.zeros(1), 257)


def test_arc_keeps_length_and_turns_evenly():
    a, b = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = b * (a.norm(dim=1) / b.norm(dim=1))[:, None]
    path = spherical_path(a, b, 5)
    assert path.shape == (5, 5, 7)
    torch.testing.assert_close((path[0], path[-1]), (a, b))
    torch.testing.assert_close(path.norm(dim=-1), a.norm(dim=1).expand(5, -1))
    whole = torch.cosine_similarity(a, b).acos()
    for part in range(4):
        torch.testing.assert_close(torch.cosine_similarity(path[part], path[part + 1]).acos(), whole / 4)


def test_arc_between_equal_and_opposite_latents_is_the_chord():
    a = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    torch.testing.assert_close(spherical_path(a, a, 3), a.expand(3, -1, -1))
    torch.testing.assert_close(spherical_path(a, 3 * a, 3)[1], 2 * a)
    torch.testing.assert_close(spherical_path(a, -a, 3)[1], torch.zeros(2, 2))
    near = a + torch.tensor([[1e-3, 0.0]])
    torch.testing.assert_close(spherical_path(a, near, 3)[1], (a + near) / 2)


def test_path_messages():
    with pytest.raises(ValueError, match=r"steps >= 2.*got 1"):
        spherical_path(torch.zeros(1, 2), torch.zeros(1, 2), 1)
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(1, 2\)"):
        spherical_path(torch.zeros(2, 2), torch.zeros(1, 2))
