"""ModulatedNorm: torch's norms at the start, loops by hand, classes, half precision, torch's own tools, messages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.nn import ModulatedNorm

X = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
C = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def trained(norm):
    """The norm with other heads than those of the start."""
    seed = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seed, dtype=p.dtype))
    return norm


@pytest.mark.parametrize("hidden", [None, 8])
@pytest.mark.parametrize("condition_dim", [None, 6])
def test_starts_as_torchs_norms(condition_dim, hidden):
    condition = None if condition_dim is None else C
    batch, theirs = ModulatedNorm(3, condition_dim, hidden=hidden), nn.BatchNorm2d(3, affine=False)
    for _ in range(3):
        torch.testing.assert_close(batch(X, condition), theirs(X), rtol=0, atol=1e-6)
    one = None if condition is None else C[:1]
    torch.testing.assert_close(batch.eval()(X[:1] + 2, one), theirs.eval()(X[:1] + 2))
    assert torch.equal(batch.norm.running_mean, theirs.running_mean)
    instance = ModulatedNorm(3, condition_dim, "instance", hidden)
    torch.testing.assert_close(instance(X, condition), nn.InstanceNorm2d(3)(X), rtol=0, atol=1e-6)
    layer = ModulatedNorm(3, condition_dim, "layer", hidden)
    torch.testing.assert_close(layer(X, condition), F.layer_norm(X, X.shape[1:]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["batch", "instance", "layer"])
def test_is_the_formula(kind):
    norm = trained(ModulatedNorm(3, 6, kind, hidden=8, eps=0.1).double())
    x, c = X.double(), C.double()
    dims = {"batch": (0, 2, 3), "instance": (2, 3), "layer": (1, 2, 3)}[kind]
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    y = norm(x, c)
    for n in range(4):  # the heads image by image and channel by channel
        h = [max(0.0, (norm.to_hidden.weight[m] @ c[n] + norm.to_hidden.bias[m]).item()) for m in range(8)]
        for k in range(3):
            gain = sum(w * v for w, v in zip(norm.to_gain.weight[k].tolist(), h, strict=True)) + norm.to_gain.bias[k]
            shift = sum(w * v for w, v in zip(norm.to_shift.weight[k].tolist(), h, strict=True)) + norm.to_shift.bias[k]
            x_hat = ((x - mean) / (var + 0.1).sqrt())[n, k]
            torch.testing.assert_close(y[n, k], gain * x_hat + shift)


def test_one_hot_conditions_are_an_affine_for_each_class():
    norm = trained(ModulatedNorm(3, 2, hidden=None))
    labels = torch.tensor([0, 1, 1, 0])
    y = norm(X, F.one_hot(labels, 2).float())
    x_hat = F.batch_norm(X, None, None, training=True)
    for k in (0, 1):
        gain, shift = norm.to_gain.weight[:, k] + norm.to_gain.bias, norm.to_shift.weight[:, k] + norm.to_shift.bias
        expected = x_hat[labels == k] * gain[:, None, None] + shift[:, None, None]
        torch.testing.assert_close(y[labels == k], expected)


@pytest.mark.parametrize("kind", ["batch", "instance", "layer"])
def test_gradcheck_and_both_heads_learn_from_the_start(kind):
    norm = ModulatedNorm(3, 6, kind, hidden=4).double()
    assert torch.autograd.gradcheck(
        lambda x, c: trained(copy.deepcopy(norm))(x, c),
        (X[:2, :, :, :2].double().requires_grad_(), C[:2].double().requires_grad_()),
    )
    norm(X.double(), C.double()).pow(3).sum().backward()
    assert norm.to_gain.weight.grad.abs().sum() > 0
    assert norm.to_shift.weight.grad.abs().sum() > 0


def test_evaluation_does_not_see_the_neighbours():
    norm = trained(ModulatedNorm(3, 6))
    norm(X, C)
    norm.eval()
    torch.testing.assert_close(norm(X, C)[1:2], norm(X[1:2], C[1:2]))


def test_torchs_tools_find_the_statistics():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), ModulatedNorm(3))
    torch.optim.swa_utils.update_bn([X, 3 * X], net)
    h = torch.cat([net[0](X).mean((0, 2, 3))[None], net[0](3 * X).mean((0, 2, 3))[None]]).mean(0)
    torch.testing.assert_close(net[1].norm.running_mean, h)
    found = nn.SyncBatchNorm.convert_sync_batchnorm(ModulatedNorm(3, 6))
    assert isinstance(found.norm, nn.SyncBatchNorm)


def test_autocast_and_half_modules():
    norm = trained(ModulatedNorm(3, 6))
    full = norm(X, C)
    with torch.autocast("cpu", torch.bfloat16):
        low = norm(X.bfloat16(), C.bfloat16())
        assert all(part.dtype == torch.float32 for part in norm.gain_and_shift(C.bfloat16()))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), full, rtol=0.03, atol=0.06)
    for kind in ("batch", "instance", "layer"):
        assert trained(ModulatedNorm(3, 6, kind)).bfloat16()(X.bfloat16(), C.bfloat16()).dtype == torch.bfloat16


def test_strides_huge_and_constant_values():
    norm = trained(ModulatedNorm(3, 6, "instance"))
    strided = X.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    torch.testing.assert_close(norm(strided, C), norm(X, C))
    assert norm(X * 1e15, C).isfinite().all()
    flat = torch.ones(4, 3, 2, 2)
    torch.testing.assert_close(norm(flat, C), norm.gain_and_shift(C)[1][:, :, None, None].expand_as(flat))


def test_messages():
    with pytest.raises(ValueError, match="kind must be one of batch, instance, layer; got 'group'"):
        ModulatedNorm(3, kind="group")
    with pytest.raises(ValueError, match=r"at least 1.*got 0, None and 32"):
        ModulatedNorm(0)
    with pytest.raises(ValueError, match="eps must be above 0, got 0"):
        ModulatedNorm(3, eps=0.0)
    with pytest.raises(ValueError, match=r"takes x \(N, 3, H, W\), got \(4, 6\)"):
        ModulatedNorm(3)(C)
    with pytest.raises(ValueError, match="takes no condition; build it with condition_dim"):
        ModulatedNorm(3)(X, C)
    with pytest.raises(ValueError, match="takes no condition"):
        ModulatedNorm(3).gain_and_shift(C)
    with pytest.raises(ValueError, match=r"\(N, 6\) with one row for each of 4 images, got none"):
        ModulatedNorm(3, 6)(X)
    with pytest.raises(ValueError, match=r"got \(1, 6\); for one condition for all write condition.expand"):
        ModulatedNorm(3, 6)(X, C[:1])
    with pytest.raises(ValueError, match=r"\(1, 3, 1, 1\) would be those of 1 value.*call eval"):
        ModulatedNorm(3)(X[:1, :, :1, :1])
    with pytest.raises(ValueError, match="of 0 value"):
        ModulatedNorm(3)(X[:0])
    with pytest.raises(ValueError, match=r"instance statistics.*take kind='batch'"):
        ModulatedNorm(3, kind="instance")(X[:, :, :1, :1])
    assert ModulatedNorm(3).eval()(X[:0]).shape == (0, 3, 2, 5)
