"""The LU map: a rotation at first, slogdet of its matrix, triangular solves against a plain solve, bounds, messages."""

import pytest
import torch

from danlu.nn import InvertibleLinear, channel_linear, channel_solve, random_rotation


def trained(size=4, limit=5.0, seed=0):
    """A layer away from its start, in float64."""
    generator = torch.Generator().manual_seed(seed)
    layer = InvertibleLinear(size, limit, generator).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


@pytest.mark.parametrize("limit", [5.0, None])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_it_starts_as_a_rotation(size, limit):
    layer = InvertibleLinear(size, limit, torch.Generator().manual_seed(3))
    weight = layer.weight().double()
    torch.testing.assert_close(weight @ weight.mT, torch.eye(size).double(), atol=1e-5, rtol=0)
    assert layer(torch.zeros(2, size, 3, 3))[1].abs().max() < 1e-4


@pytest.mark.parametrize("limit", [5.0, None])
@pytest.mark.parametrize("shape", [(5, 7), (2, 7, 3, 2)])
def test_log_det_and_inverse(shape, limit):
    layer, x = trained(7, limit), torch.randn(shape, dtype=torch.float64)
    assert not torch.equal(layer.permutation, layer.permutation.argsort())  # or a wrong inverse would pass
    y, log_det = layer(x)
    weight = layer.weight()
    expected = torch.einsum("kc,nc...->nk...", weight, x)
    torch.testing.assert_close(y, expected)
    positions = x[0, 0].numel()
    torch.testing.assert_close(log_det, positions * torch.linalg.slogdet(weight)[1].expand(len(x)), atol=1e-10, rtol=0)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0][0], x[0])
    jacobian = jacobian.reshape(x[0].numel(), -1)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1], atol=1e-10, rtol=0)
    back, negative = layer.inverse(y)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(negative, -log_det)


def test_only_the_triangles_count():
    layer = trained()
    before = layer.weight()
    with torch.no_grad():
        layer.lower.add_(torch.ones(4, 4).triu())
        layer.upper.add_(torch.ones(4, 4).tril())
    torch.testing.assert_close(layer.weight(), before, rtol=0, atol=0)
    y = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(layer.inverse(y)[0])[0], y)


def test_pivots_stay_bounded():
    layer = InvertibleLinear(3, limit=2.0)
    layer.raw_log_scale.data = torch.tensor([1e9, -1e9, 0.0])
    assert layer.log_scale().tolist() == [2, -2, 0]
    assert layer.inverse(torch.randn(2, 3))[0].isfinite().all()


def test_under_autocast_product_and_solve_stay_float32():
    layer = trained(16).float()
    x = torch.randn(4, 16, 2, 2)
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, log_det = layer(x)
        back, _ = layer.inverse(y)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    torch.testing.assert_close(back, x, atol=1e-4, rtol=0)
    assert log_det.dtype == torch.float32


def test_channels_last_stays_so():
    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    y = channel_linear(x, torch.randn(6, 4))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_solve_is_the_plain_solve_and_empty_batches_pass():
    lower, upper = torch.randn(2, 3, 3, dtype=torch.float64)
    unit = lower.tril(-1) + torch.eye(3)
    y = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.linalg.solve(unit @ upper.triu(), y.mT).mT
    torch.testing.assert_close(channel_solve(y, lower, upper), expected)
    assert channel_solve(y[:0, :, None], lower, upper).shape == (0, 3, 1)


def test_gradcheck():
    layer = trained(3)
    names = ("lower", "upper", "raw_log_scale")
    start = tuple(getattr(layer, name).detach().clone().requires_grad_() for name in names)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        out = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return (*out, channel_solve(x, values[0], layer.upper_factor()))

    assert torch.autograd.gradcheck(run, (x, *start))


def test_rotations_are_uniform():
    """The first entry of a uniform rotation in 2-d is a cosine: mean 0, mean square 1/2."""
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([random_rotation(2, generator)[0, 0] for _ in range(2000)])
    assert abs(first.mean()) < 4 * 0.71 / 2000**0.5
    assert abs(first.square().mean() - 0.5) < 4 * 0.354 / 2000**0.5


def test_messages():
    with pytest.raises(ValueError, match=r"mixes 4 channels and takes \(N, C, \.\.\.\), got \(2, 3\)"):
        trained()(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="num_channels must be >= 1 and limit > 0 or None, got 3 and 0"):
        InvertibleLinear(3, limit=0)
