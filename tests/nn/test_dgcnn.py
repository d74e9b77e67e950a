"""Gated convolutions: against a loop over taps, padding, closed gates, reach of a stack, dropout, messages."""

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.nn import DGCNN, DilatedGatedConv1d


def make(dim=3, **settings):
    torch.manual_seed(1)
    layer = DilatedGatedConv1d(dim, **settings).double().eval()
    torch.nn.init.normal_(layer.conv.bias)
    return layer


def values(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(layer, x, mask):  # oracle: eq. (1) to (3) with Python floats, tap by tap
    weight, bias = layer.conv.weight.tolist(), layer.conv.bias.tolist()
    size, taps = len(weight) // 2, len(weight[0][0])
    rows = []
    for row, kept in zip(x.tolist(), mask.tolist(), strict=True):
        out = []
        for t in range(len(row)):
            both = list(bias)
            for o in range(2 * size):
                for j in range(taps):
                    s = t + (j - taps // 2) * layer.dilation
                    if 0 <= s < len(row) and kept[s]:
                        both[o] += sum(w[j] * v for w, v in zip(weight[o], row[s], strict=True))
            skip = row[t]
            if layer.skip is not None:
                skip = [
                    b + sum(w * v for w, v in zip(ws, row[t], strict=True))
                    for ws, b in zip(layer.skip.weight.tolist(), layer.skip.bias.tolist(), strict=True)
                ]
            gates = [1 / (1 + math.exp(-h)) for h in both[size:]]
            y = [old + g * (u - old) for old, g, u in zip(skip, gates, both[:size], strict=True)]
            out.append(y if kept[t] else [0.0] * size)
        rows.append(out)
    return torch.tensor(rows, dtype=x.dtype)


@pytest.mark.parametrize(
    "settings",
    [{}, {"dilation": 2}, {"dilation": 3, "kernel_size": 5}, {"kernel_size": 1}, {"out_dim": 2}, {"dilation": 9}],
)
def test_equals_the_loop_over_taps(settings):
    layer, x = make(**settings), values(2, 7, 3)
    mask = torch.tensor([[True] * 7, [True, False, True, True, True, False, False]])
    torch.testing.assert_close(layer(x, mask), by_hand(layer, x, mask))
    torch.testing.assert_close(layer(x), by_hand(layer, x, torch.ones(2, 7, dtype=torch.bool)))


@pytest.mark.parametrize("garbage", [1e3, math.nan, math.inf])
def test_masked_positions_have_no_influence_to_the_last_bit(garbage):
    model = DGCNN(4, dilations=(1, 2, 1)).eval()
    x = values(2, 6, 4).float()
    mask = torch.tensor([[True] * 4 + [False] * 2, [False, True, True, False, True, True]])
    dirty = x.masked_fill(~mask[..., None], garbage).requires_grad_()
    clean = model(x.masked_fill(~mask[..., None], 0), mask)
    out = model(dirty, mask)
    assert torch.equal(out, clean)
    assert not out[~mask].any()
    out.sum().backward()
    assert not dirty.grad[~mask].any()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_padding_changes_nothing():
    model, x = DGCNN(4, dilations=(1, 2, 4)).double().eval(), values(2, 6, 4)
    mask = torch.arange(10) < 6
    torch.testing.assert_close(model(F.pad(x, (0, 0, 0, 4)), mask.expand(2, 10))[:, :6], model(x))


@pytest.mark.parametrize(("bias", "expected"), [(-1e4, "input"), (1e4, "convolution")])
def test_closed_gate_passes_and_open_gate_convolves(bias, expected):
    layer, x = make(dilation=2), values(2, 7, 3)
    with torch.no_grad():
        layer.conv.bias[3:] = bias
    convolution = F.conv1d(x.mT, layer.conv.weight[:3], layer.conv.bias[:3], padding=2, dilation=2).mT
    torch.testing.assert_close(layer(x), x if expected == "input" else convolution)


def test_a_stack_sees_its_receptive_field_and_no_further():
    model, x = DGCNN(2).double().eval(), values(1, 90, 2).requires_grad_()
    assert model.receptive_field == 65
    (grad,) = torch.autograd.grad(model(x)[0, 45].sum(), x)
    reached = (grad[0] != 0).any(-1)
    assert torch.equal(reached, (torch.arange(90) - 45).abs() <= 32)


def test_dropped_gates_stand_at_one_half_and_the_rest_keeps_its_mean():
    layer = make(dim=1, gate_dropout=0.25).train()
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.bias.copy_(torch.tensor([1.0, 3.0]))
    gates = layer(torch.zeros(1, 40_001, 1, dtype=torch.float64)).flatten()  # y = g because u = 1, x = 0
    dropped = (gates - 0.5).abs() < 1e-9
    torch.testing.assert_close(gates[~dropped], torch.full_like(gates[~dropped], 3 / 0.75).sigmoid())
    assert abs(dropped.double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 40_001)
    again = layer(torch.zeros(1, 40_001, 1, dtype=torch.float64)).flatten()
    assert not torch.equal(gates, again)
    pairs = (dropped[1:] & dropped[:-1]).double().mean()
    assert abs(pairs - 0.0625) < 6 * math.sqrt(0.0625 / 40_000)  # neighbours are independent
    torch.testing.assert_close(
        layer.eval()(torch.zeros(1, 2, 1).double()).flatten(), torch.tensor([3.0] * 2).double().sigmoid()
    )


def test_dropout_follows_the_seed():
    layer, x = make(gate_dropout=0.5).train(), values(2, 5, 3)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(first, layer(x))


def test_gradcheck_in_first_and_second_order():
    layer, x = make(dilation=2, out_dim=2), values(1, 4, 3).requires_grad_()
    mask = torch.tensor([[True, True, False, True]])
    assert torch.autograd.gradcheck(lambda v: layer(v, mask), x)
    assert torch.autograd.gradgradcheck(lambda v: layer(v, mask), x)


def test_state_dict_has_the_layout_of_conv1d():
    layer = DilatedGatedConv1d(4, out_dim=6, kernel_size=5)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {"conv.weight": (12, 4, 5), "conv.bias": (12,), "skip.weight": (6, 4), "skip.bias": (6,)}
    assert set(DilatedGatedConv1d(4).state_dict()) == {"conv.weight", "conv.bias"}


def test_bfloat16_autocast_stays_close_and_keeps_float32_weights():
    model, x = DGCNN(16).eval(), values(2, 20, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, torch.ones(2, 20, dtype=torch.bool))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), atol=0.1, rtol=0.1)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 1, 3)])
def test_nothing_and_one_position(shape):
    assert make(dilation=4).train()(torch.zeros(shape).double()).shape == shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_size": 4}, r"kernel_size must be odd.*got 4; use 5"),
        ({"dilation": 0}, r"dilation must be at least 1, got 0"),
        ({"gate_dropout": 1.0}, r"gate_dropout must lie in \[0, 1\), got 1.0; 0 switches it off"),
        ({"out_dim": 0}, r"dim and out_dim must be at least 1, got 3 and 0"),
    ],
)
def test_messages_of_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        DilatedGatedConv1d(3, **settings)


def test_messages_of_inputs():
    with pytest.raises(ValueError, match=r"needs x \(batch, positions, 3\); got \(2, 3, 7\).*x.transpose"):
        make()(values(2, 3, 7))
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 7\).*got torch.float32 \(2, 7\).*mask.bool"):
        make()(values(2, 7, 3), torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"dilations must name at least one layer"):
        DGCNN(3, dilations=())
