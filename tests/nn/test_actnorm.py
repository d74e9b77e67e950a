"""Actnorm: the first batch becomes standard once, the log-determinant counts positions, states survive."""

import copy

import pytest
import torch

from danlu.nn import ActNorm, standardize_channels


def images(n=6):
    x = torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 5.0, 0.2])[:, None, None] + torch.tensor([0.0, -3.0, 9.0])[:, None, None]


def test_the_first_batch_becomes_standard_and_no_other_does():
    layer, x = ActNorm(3).double(), images()
    y, log_det = layer(x)
    rows = y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(rows.std(1, correction=0), torch.ones(3).double(), atol=1e-12, rtol=0)
    assert log_det.shape == (6,)
    before = copy.deepcopy(layer.state_dict())
    layer(10 * x)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_log_det_is_the_jacobians():
    layer, x = ActNorm(3).double(), images()
    y, log_det = layer(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0][0], x[0]).reshape(12, 12)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1], atol=1e-10, rtol=0)
    back, negative = layer.inverse(y)
    torch.testing.assert_close(back, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(negative, -log_det)


def test_in_evaluation_nothing_starts_and_a_start_survives_the_state_dict():
    layer, x = ActNorm(3).double(), images()
    layer.eval()
    torch.testing.assert_close(layer(x)[0], x)
    layer.train()
    y, _ = layer(x)
    other = ActNorm(3).double()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(5 * x)[0], layer(5 * x)[0])
    other(x)
    other.load_state_dict(ActNorm(3).double().state_dict())  # from before the first batch: it starts again
    torch.testing.assert_close(other(x)[0], y)


def test_constant_channels_are_floored():
    log_scale, shift = standardize_channels(torch.full((4, 2), 3.0), min_std=0.25)
    assert log_scale.exp().tolist() == [4, 4]
    assert shift.tolist() == [-3, -3]


def test_without_shift_it_is_nices_scaling_layer():
    layer = ActNorm(2, init="zeros", shift=False)
    layer.log_scale.data = torch.tensor([0.0, 2.0]).log1p()
    y, log_det = layer(torch.tensor([[1.0, 1.0]]))
    assert y.tolist() == [[1, 3]]
    assert log_det.item() == pytest.approx(1.0986, abs=1e-4)
    assert set(layer.state_dict()) == {"log_scale", "initialized"}
    torch.testing.assert_close(layer.inverse(y)[0], torch.ones(1, 2))


def test_an_empty_batch_passes_and_starts_nothing():
    layer = ActNorm(3)
    assert layer(torch.zeros(0, 3, 2, 2))[0].shape == (0, 3, 2, 2)
    assert not layer.initialized


def test_half_precision_keeps_its_dtype_and_gradients_are_right():
    layer = ActNorm(3, init="zeros").bfloat16()
    y, log_det = layer(images().bfloat16())
    assert (y.dtype, log_det.dtype) == (torch.bfloat16, torch.float32)
    layer = ActNorm(3).double()
    layer(images())
    assert torch.autograd.gradcheck(layer, images(2).requires_grad_())


def test_messages():
    with pytest.raises(ValueError, match=r"this actnorm takes \(N, 3, \.\.\.\), got \(2, 4\)"):
        ActNorm(3, init="zeros")(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="init must be 'data' or 'zeros' and min_std > 0, got 'ones'"):
        ActNorm(3, init="ones")
    with pytest.raises(ValueError, match="must be finite"):
        ActNorm(1)(torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match=r"with numbers in it and min_std > 0, got \(0, 2\)"):
        standardize_channels(torch.zeros(0, 2))
