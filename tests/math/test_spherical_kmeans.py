"""Spherical k-means: all partitions, fixed points, scale and rotation, empty clusters, precisions, messages."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from danlu.math import spherical_kmeans


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_finds_the_best_of_all_partitions(k):
    """The best centre of a group is its sum's direction, so a partition is worth the sum of the lengths."""
    x = F.normalize(draw(7, 2, seed=3), dim=1)
    worth = max(
        sum(x[[i for i in range(7) if labels[i] == c]].sum(0).norm().item() for c in range(k))
        for labels in itertools.product(range(k), repeat=7)
    )
    found = spherical_kmeans(x, k, starts=20, generator=seeded())
    assert found.cohesion.item() * 7 == pytest.approx(worth, abs=1e-12)


def test_is_a_fixed_point():
    x = F.normalize(draw(60, 5), dim=1)
    labels, centres, cohesion = spherical_kmeans(x, 4, generator=seeded())
    assert torch.equal((x @ centres.T).argmax(1), labels)
    for c in range(4):
        torch.testing.assert_close(centres[c], F.normalize(x[labels == c].sum(0), dim=0))
    torch.testing.assert_close(cohesion, (x * centres[labels]).sum(1).mean())


def test_more_steps_and_starts_are_no_worse():
    x = draw(80, 6)
    few = [spherical_kmeans(x, 5, starts=1, max_steps=n, generator=seeded()).cohesion.item() for n in (1, 2, 4, 50)]
    assert few == sorted(few)
    assert spherical_kmeans(x, 5, starts=8, generator=seeded()).cohesion >= few[-1]


def test_lengths_do_not_count_and_rotation_goes_along():
    x = draw(40, 5)
    turn = torch.linalg.qr(draw(5, 5, seed=1))[0]
    lengths = draw(40, 1, seed=2).exp()
    plain = spherical_kmeans(x, 3, generator=seeded())
    other = spherical_kmeans(lengths * x @ turn, 3, generator=seeded())
    assert torch.equal(plain.labels, other.labels)
    torch.testing.assert_close(plain.centres @ turn, other.centres)


def test_the_library_agrees_on_clear_clusters():
    cluster = pytest.importorskip("sklearn.cluster")
    means = F.normalize(draw(4, 8), dim=1)
    x = F.normalize(means.repeat_interleave(15, 0) + 0.1 * draw(60, 8, seed=1), dim=1)
    ours = spherical_kmeans(x, 4, generator=seeded()).labels
    theirs = torch.from_numpy(cluster.KMeans(4, n_init=5, random_state=0).fit(x.numpy()).labels_)
    assert torch.equal(ours[:, None] == ours, theirs[:, None] == theirs)


def test_clusters_are_never_empty():
    x = torch.cat([torch.ones(20, 2), torch.tensor([[1.0, 0.9], [0.9, 1.0]])])
    for seed in range(5):
        labels = spherical_kmeans(x, 3, starts=1, generator=seeded(seed)).labels
        assert labels.unique().tolist() == [0, 1, 2]
    same = spherical_kmeans(torch.ones(4, 3), 4, generator=seeded())
    assert sorted(same.labels.tolist()) == [0, 1, 2, 3]


def test_first_centres_are_sought_where_none_is_near():
    """A direction that has its centre weighs nothing, so each of five heaps gets one whatever the draw."""
    x = torch.eye(5).repeat_interleave(torch.tensor([40, 40, 10, 5, 1]), 0)
    for seed in range(8):
        found = spherical_kmeans(x, 5, starts=1, max_steps=1, generator=seeded(seed))
        assert found.cohesion.item() == pytest.approx(1)


def test_opposite_items_leave_no_nan():
    _, centres, cohesion = spherical_kmeans(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 1, generator=seeded())
    assert torch.isfinite(centres).all() and centres.norm().item() == pytest.approx(1)
    assert cohesion.item() == pytest.approx(0, abs=1e-7)


def test_precisions_sizes_and_layouts():
    x = draw(30, 4, dtype=torch.float32)
    found = spherical_kmeans(x.bfloat16(), 3, generator=seeded())
    assert found.centres.dtype == torch.float32
    assert spherical_kmeans(x.double(), 3, generator=seeded()).centres.dtype == torch.float64
    for scale in (1e-30, 1e30):
        assert torch.equal(spherical_kmeans(scale * x, 3, generator=seeded()).labels,
                           spherical_kmeans(x, 3, generator=seeded()).labels)  # fmt: skip
    strided = x.T.contiguous().T
    assert torch.equal(spherical_kmeans(strided, 3, generator=seeded()).labels,
                       spherical_kmeans(x, 3, generator=seeded()).labels)  # fmt: skip


def test_generator_leaves_the_global_stream_alone():
    state = torch.get_rng_state()
    spherical_kmeans(draw(9, 2), 2, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_messages():
    with pytest.raises(ValueError, match=r"got \(2, 3\), k=3"):
        spherical_kmeans(torch.ones(2, 3), 3)
    x = torch.ones(3, 2)
    x[1] = 0
    with pytest.raises(ValueError, match="row 1 is zero or not finite; leave it out"):
        spherical_kmeans(x, 2)
    x[1] = torch.nan
    with pytest.raises(ValueError, match="row 1 is zero or not finite"):
        spherical_kmeans(x, 2)
