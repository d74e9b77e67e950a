"""Couplings: log-determinants against autograd's Jacobian, inverses, the three scales, messages."""

import math

import pytest
import torch
from torch import nn

from danlu.nn import Coupling, affine_coupling, checkerboard, coupling_log_scale, coupling_sizes

SHAPES = {"half": (4, 2, 2), "even_odd": (5,), "checkerboard": (2, 2, 3)}
KINDS = [
    (split, swap, additive, form)
    for split in SHAPES
    for swap in (False, True)
    for additive, form in ((True, "bounded"), (False, "bounded"), (False, "exp"), (False, "sigmoid"))
]


class Net(nn.Module):
    """Reads everything, gives everything: one dense layer over the whole item."""

    def __init__(self, shape, kept, channels):
        super().__init__()
        positions = math.prod(shape[1:])
        self.out = (channels, *shape[1:])
        self.dense = nn.Linear(kept * positions, channels * positions).double()

    def forward(self, x):
        return torch.tanh(self.dense(x.flatten(1))).unflatten(1, self.out)


def build(split, swap=False, additive=False, form="bounded"):
    shape = SHAPES[split]
    kept, moved = coupling_sizes(shape[0], split, swap)
    return Coupling(Net(shape, kept, moved * (1 if additive else 2)), split, swap, additive, form)


def slogdet(fn, x):
    """log|det| of each item's own Jacobian, by autograd."""
    found = []
    for item in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: fn(v[None])[0][0], item)
        found.append(torch.linalg.slogdet(jacobian.reshape(item.numel(), item.numel()))[1])
    return torch.stack(found)


def batch(split, n=3):
    return torch.randn(n, *SHAPES[split], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("split", "swap", "additive", "form"), KINDS)
def test_log_det_is_the_jacobians_and_the_inverse_undoes(split, swap, additive, form):
    layer, x = build(split, swap, additive, form), batch(split)
    y, log_det = layer(x)
    torch.testing.assert_close(log_det, slogdet(layer, x), atol=1e-10, rtol=0)
    back, negative = layer.inverse(y)
    torch.testing.assert_close(back, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(negative, -log_det, atol=1e-12, rtol=0)
    assert (y - x).abs().max() > 1e-2
    assert (log_det != 0).any() != additive
    assert log_det.shape == (3,)


@pytest.mark.parametrize("split", SHAPES)
def test_what_is_read_passes_untouched_and_swap_exchanges(split):
    x = batch(split)
    moved = [(build(split, swap)(x)[0] != x).any(0) for swap in (False, True)]
    assert torch.equal(moved[0], ~moved[1])
    if split == "checkerboard":
        assert torch.equal(moved[0][0], ~checkerboard(2, 3))
    if split == "even_odd":
        assert moved[0].tolist() == [False, True, False, True, False]
    if split == "half":
        assert moved[0].flatten(1).any(1).tolist() == [False, False, True, True]


def test_a_checkerboard_network_does_not_see_what_moves():
    layer, x = build("checkerboard"), batch("checkerboard")
    other = x.masked_fill(~checkerboard(2, 3), 7.0)
    torch.testing.assert_close(layer(x)[1], layer(other)[1], rtol=0, atol=0)
    assert layer(x.masked_fill(~checkerboard(2, 3), torch.inf))[1].isfinite().all()


def test_scales_at_zero_and_far_out():
    zero, far = torch.zeros(1), torch.tensor([-1e30, 1e30, torch.inf])
    assert coupling_log_scale(zero).item() == 0
    assert coupling_log_scale(zero, "exp").item() == 0
    assert coupling_log_scale(zero, "sigmoid").item() == pytest.approx(-0.126928, abs=1e-6)
    assert coupling_log_scale(far, limit=3.0).tolist() == [-3, 3, 3]
    assert coupling_log_scale(torch.tensor([0.7]), limit=1.5).item() == pytest.approx(1.5 * math.tanh(0.7 / 1.5))
    assert coupling_log_scale(far.bfloat16()).dtype == torch.float32


def test_sigmoid_form_is_glows():
    raw, shift, x = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.5, 2.0]]), torch.tensor([[9.0, 9.0, 1.0, -4.0]])
    net = nn.Linear(2, 4)
    nn.init.zeros_(net.weight)
    net.bias.data = torch.cat((raw, shift), 1)[0]
    y, _ = Coupling(net, form="sigmoid")(x)
    torch.testing.assert_close(y[:, 2:], (x[:, 2:] + shift) * torch.sigmoid(raw + 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_follow_and_sums_are_wide(dtype):
    x = torch.ones(2, 4000, dtype=dtype)
    y, log_det = affine_coupling(x, torch.zeros_like(x), torch.full_like(x, 0.5))
    assert y.dtype == dtype
    assert log_det.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert log_det.tolist() == [2000, 2000]


def test_gradcheck():
    x, t, s = (torch.randn(2, 3, dtype=torch.float64).requires_grad_() for _ in range(3))
    assert torch.autograd.gradcheck(affine_coupling, (x, t, s))
    assert torch.autograd.gradcheck(lambda *a: affine_coupling(*a, inverse=True), (x, t, s))
    layer = build("checkerboard", form="sigmoid")
    assert torch.autograd.gradcheck(layer, batch("checkerboard", 2).requires_grad_())


def test_empty_batches_and_views_pass():
    layer = build("half")
    y, log_det = layer(batch("half", 0))
    assert (y.shape, log_det.shape) == ((0, 4, 2, 2), (0,))
    x = batch("half")
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(strided), layer(x))


def test_messages():
    with pytest.raises(ValueError, match=r"split must be one of .*, got 'thirds'"):
        coupling_sizes(4, "thirds")
    with pytest.raises(ValueError, match=r"at least 2 of them, got 1; squeeze the image first"):
        build("half")(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"form must be one of .*got 'tanh' and 2"):
        Coupling(nn.Identity(), form="tanh")
    with pytest.raises(ValueError, match="limit a finite number > 0, got 'bounded' and 0"):
        coupling_log_scale(torch.zeros(1), limit=0)
    with pytest.raises(ValueError, match=r"must give \(2, 4\) for \(2, 2\), got \(2, 2\)"):
        Coupling(nn.Identity())(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"one shape \(N, \.\.\.\), got \(2, 3\), \(2, 1\)"):
        affine_coupling(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"a checkerboard needs images \(N, C, H, W\), got \(2, 4\)"):
        Coupling(nn.Identity(), "checkerboard")(torch.zeros(2, 4))
