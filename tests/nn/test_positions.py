"""Positions: against the formulas in loops, bert4keras, transformers; rotations, bucket bounds, the extended table."""

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.nn.positions import (
    apply_rotary,
    clipped_distances,
    hierarchical_positions,
    rotary_angles,
    sinusoidal_positions,
    t5_buckets,
)

needs_data = pytest.mark.skipif("DANLU_DATA" not in os.environ, reason="DANLU_DATA is unset; oracles/layers lie there")


@pytest.fixture(scope="module")
def functions():
    with np.load(Path(os.environ["DANLU_DATA"]) / "oracles/layers/functions.npz") as numbers:
        return {name: torch.from_numpy(numbers[name]) for name in numbers.files}


@pytest.fixture(scope="module")
def layers():
    with np.load(Path(os.environ["DANLU_DATA"]) / "oracles/layers/single_layers.npz") as numbers:
        return {name.split("/weights/")[0] + "/table" * ("/weights/" in name): torch.from_numpy(numbers[name])
                for name in numbers.files if name[:3] in ("pos", "sin", "rel", "t5r") or name == "x"}  # fmt: skip


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sinusoid_by_hand(p, dim, base=10000.0):  # eq. (1) with Python floats
    return [math.sin(p * base ** (-(j - j % 2) / dim) + math.pi / 2 * (j % 2)) for j in range(dim)]


# sinusoidal


def test_sinusoids_equal_the_formula():
    positions = torch.tensor([[0.0, 1.0, 2.5], [63.0, 511.0, 4095.0]], dtype=torch.float64)
    got = sinusoidal_positions(positions, 6, base=100.0)
    expected = [[sinusoid_by_hand(p, 6, 100.0) for p in row] for row in positions.tolist()]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-12)


def test_first_row_of_nezha():  # position 1 of a table of 6 features
    expected = torch.tensor([0.841471, 0.540302, 0.046399, 0.998923, 0.002154, 0.999998])
    torch.testing.assert_close(sinusoidal_positions(torch.tensor(1), 6), expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.bfloat16, torch.float64])
def test_table_is_float32_and_right_to_its_last_bits_far_out(dtype):
    got = sinusoidal_positions(torch.tensor([4096, 0]).to(dtype), 16)  # 4096 is exact in every dtype here
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.tensor([sinusoid_by_hand(4096, 16), sinusoid_by_hand(0, 16)], dtype=torch.float64)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=6e-8)


@needs_data
def test_bert4keras_sinusoids_agree(functions, layers):
    places = functions["sinusoidal/pos"]
    tolerance = 1e-6 + places[:, None] * 2e-7  # the reference multiplies in float32: half an ulp of the angle
    for base, dim in ((10000.0, 16), (100.0, 12)):
        expected = functions[f"sinusoidal/base{base:.0f}_dim{dim}"]
        assert ((sinusoidal_positions(places, dim, base) - expected).abs() <= tolerance).all()
    table = sinusoidal_positions(torch.arange(8), 12)
    torch.testing.assert_close(table[None], layers["sinpos_zero/out"], rtol=0, atol=2e-6)
    torch.testing.assert_close(layers["x"] + table, layers["sinpos_add/out"], rtol=0, atol=4e-6)
    torch.testing.assert_close(layers["x"] * (1 + table), layers["sinpos_mul/out"], rtol=0, atol=4e-6)


# rotary


def test_rotation_turns_neighbours():  # oracle: complex multiplication
    x, positions = normal(2, 3, 5, 8), torch.tensor([0.0, 1.0, 2.5, 7.0, 100.0], dtype=torch.float64)
    got = apply_rotary(x, *rotary_angles(positions, 8, base=50.0))
    frequencies = torch.tensor([50.0 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    turns = torch.exp(1j * positions[:, None] * frequencies)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()) * turns).flatten(-2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_products_depend_on_the_distance_only():
    q, k = normal(6, 8), normal(6, 8, seed=1)
    scores = []
    for shift in (0, 37):
        angles = rotary_angles(torch.arange(6, dtype=torch.float64) + shift, 8)
        scores.append(apply_rotary(q, *angles) @ apply_rotary(k, *angles).T)
    torch.testing.assert_close(*scores, rtol=0, atol=1e-12)
    assert (scores[0] - q @ k.T).abs().max() > 0.1


def test_lengths_are_kept_and_the_inverse_turn_undoes():
    x = normal(4, 6)
    cos, sin = rotary_angles(torch.arange(4, dtype=torch.float64), 6)
    torch.testing.assert_close(apply_rotary(x, cos, sin).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(apply_rotary(apply_rotary(x, cos, sin), cos, -sin), x)


@needs_data
def test_bert4keras_rotations_agree(functions):
    cos, sin = rotary_angles(torch.arange(5), 8)
    for name in ("q", "k"):  # (batch, positions, heads, features)
        got = apply_rotary(functions[f"rotary/{name}"], cos[:, None], sin[:, None])
        torch.testing.assert_close(got, functions[f"rotary/{name}_out"], rtol=0, atol=2e-6)
    got = apply_rotary(functions["rotary/x"], cos, sin)
    torch.testing.assert_close(got, functions["rotary/x_out"], rtol=0, atol=2e-6)


def test_transformers_roformer_agrees():
    roformer = pytest.importorskip("transformers.models.roformer.modeling_roformer")
    q, k = normal(2, 3, 7, 8).float(), normal(2, 3, 7, 8, seed=1).float()
    table = roformer.RoFormerSinusoidalPositionalEmbedding(7, 8)
    table.weight.data.copy_(table.create_weight())
    theirs = roformer.RoFormerSelfAttention.apply_rotary_position_embeddings(table((2, 7))[None, None], q, k)
    angles = rotary_angles(torch.arange(7), 8)
    torch.testing.assert_close(apply_rotary(q, *angles), theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(apply_rotary(k, *angles), theirs[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_turned_in_float32(dtype):
    x, angles = normal(300, 8).to(dtype), rotary_angles(torch.arange(300), 8)
    got = apply_rotary(x, *angles)
    assert got.dtype == dtype
    assert torch.equal(got, apply_rotary(x.float(), *angles).to(dtype))


def test_rotary_gradcheck():
    angles = rotary_angles(torch.arange(3, dtype=torch.float64), 4)
    assert torch.autograd.gradcheck(lambda x: apply_rotary(x, *angles), normal(2, 3, 4).requires_grad_())


# clipped and bucketed distances


def test_clipped_distances_equal_a_loop():
    queries, keys = [3, 4, 0], [0, 1, 2, 3, 9]
    expected = [[min(max(k - q, -2), 2) + 2 for k in keys] for q in queries]
    assert clipped_distances(torch.tensor(queries), torch.tensor(keys), 2).tolist() == expected
    rows = clipped_distances(torch.tensor([queries, [7, 8, 9]]), torch.tensor([keys, keys]), 2)
    assert rows.shape == (2, 3, 5) and rows[0].tolist() == expected and rows.dtype == torch.int64


@needs_data
def test_bert4keras_clipped_distances_agree(layers):
    rows = clipped_distances(torch.arange(8), torch.arange(11), 4)
    assert torch.equal(layers["relpos/table"][rows], layers["relpos/out"])


@needs_data
@pytest.mark.parametrize(
    "name, both, buckets, farthest",
    [("t5rel_bi", True, 32, 128), ("t5rel_uni", False, 32, 128), ("t5rel_bi16_40", True, 16, 40)],
)
def test_bert4keras_buckets_agree(layers, name, both, buckets, farthest):
    table, expected = layers[f"{name}/table"], layers[f"{name}/out"]  # distances [::7, ::5] of a square
    distances = torch.arange(0, 5 * expected.shape[1], 5) - torch.arange(0, 7 * expected.shape[0], 7)[:, None]
    assert torch.equal(table[t5_buckets(distances, both, buckets, farthest)], expected)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("buckets, farthest", [(32, 128), (16, 40), (32, 256), (64, 1000), (8, 27), (4, 3)])
def test_buckets_equal_the_definition_in_whole_numbers(both, buckets, farthest):
    count = buckets // 2 if both else buckets
    exact = count // 2
    if farthest <= exact:
        pytest.skip("these sizes leave no shared bucket")

    def by_hand(distance):  # eq. (4) without logarithms: (n / m)^(B - m) >= (M / m)^j
        n = abs(distance) if both else max(-distance, 0)
        if n >= exact:
            power = Fraction(n, exact) ** (count - exact)
            j = max(j for j in range(count - exact + 1) if power >= Fraction(farthest, exact) ** j)
            n = min(exact + j, count - 1)
        return n + count * (both and distance > 0)

    distances = [*range(-300, 300), -1000, -999, 999, 1000, -(10**6), 10**6]
    got = t5_buckets(torch.tensor(distances), both, buckets, farthest)
    assert got.tolist() == [by_hand(d) for d in distances]
    assert got.dtype == torch.int64 and got.max() < buckets


@pytest.mark.parametrize("both", [True, False])
def test_transformers_buckets_agree(both):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = torch.arange(-3000, 3001).reshape(1, -1)
    theirs = t5.T5Attention._relative_position_bucket(distances, bidirectional=both, num_buckets=32, max_distance=128)
    assert torch.equal(t5_buckets(distances, both), theirs)


def test_known_buckets():
    both = t5_buckets(torch.tensor([-128, -64, -40, -20, -16, -8, -1, 0, 1, 7, 8, 16, 20, 64, 128]), True)
    assert both.tolist() == [15, 14, 12, 10, 10, 8, 1, 0, 17, 23, 24, 26, 26, 30, 31]
    past = t5_buckets(torch.tensor([-200, -64, -40, -20, -16, -15, -1, 0, 5]), False)
    assert past.tolist() == [31, 26, 23, 17, 16, 15, 1, 0, 0]


# hierarchical


def hierarchical_by_hand(table, alpha, t):  # eq. (5) for one position, Python floats
    n, rows = len(table), table.tolist()
    u = [[(v - alpha * first) / (1 - alpha) for v, first in zip(row, rows[0], strict=True)] for row in rows]
    return [alpha * a + (1 - alpha) * b for a, b in zip(u[t // n], u[t % n], strict=True)]


@pytest.mark.parametrize("alpha", [0.4, 0.3, 0.7])
def test_extended_table_equals_the_formula_and_begins_with_itself(alpha):
    table = normal(5, 3)
    got = hierarchical_positions(table, alpha, 25)
    expected = torch.tensor([hierarchical_by_hand(table, alpha, t) for t in range(25)], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
    assert torch.equal(got[:5], table)
    assert torch.equal(hierarchical_positions(table, alpha, 4), table[:4])
    assert torch.equal(hierarchical_positions(table, alpha, 9), got[:9])
    assert len({tuple(row) for row in got.tolist()}) == 25


@needs_data
def test_bert4keras_hierarchical_positions_agree(layers):
    for name, alpha in (("pos_hier", 0.4), ("pos_hier0.2", 0.2)):
        got = layers["x"] + hierarchical_positions(layers[f"{name}/table"], alpha, 8)
        torch.testing.assert_close(got, layers[f"{name}/out"], rtol=0, atol=1e-6)


def test_hierarchical_gradcheck_and_half_precision():
    assert torch.autograd.gradcheck(lambda p: hierarchical_positions(p, 0.4, 8), normal(3, 2).requires_grad_())
    half = normal(4, 6).bfloat16()
    got = hierarchical_positions(half, 0.4, 16)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, hierarchical_positions(half.float(), 0.4, 16).bfloat16())


# messages


def test_messages():
    with pytest.raises(ValueError, match=r"dim must be a positive even number .*; got dim=5, base=10000"):
        sinusoidal_positions(torch.arange(3), 5)
    with pytest.raises(ValueError, match=r"got dim=4, base=0"):
        rotary_angles(torch.arange(3), 4, base=0)
    with pytest.raises(ValueError, match=r"got \(2, 6\), \(3, 4\) and \(3, 4\).*rotary_angles\(positions, 6\)"):
        apply_rotary(torch.zeros(2, 6), *rotary_angles(torch.arange(3), 4))
    with pytest.raises(ValueError, match=r"clip must be at least 1, got 0; NEZHA has 64"):
        clipped_distances(torch.arange(3), torch.arange(3), 0)
    with pytest.raises(ValueError, match=r"at least 4 buckets and a max_distance above 8 .*num_buckets=32, max_d.*=8"):
        t5_buckets(torch.arange(3), True, max_distance=8)
    with pytest.raises(ValueError, match=r"at least 2 buckets .*got num_buckets=1"):
        t5_buckets(torch.arange(3), False, num_buckets=1)
    with pytest.raises(ValueError, match=r"17 positions asked for; a table of 4 rows reaches 4\^2 = 16; cut the text"):
        hierarchical_positions(torch.zeros(4, 2), 0.4, 17)
    with pytest.raises(ValueError, match=r"alpha inside \(0, 1\), e.g. 0.4; got \(4, 2\) and 1.0"):
        hierarchical_positions(torch.zeros(4, 2), 1.0, 8)
