"""Certificates: constants of layers against dense Jacobians and slopes, both sides of a network, radius, messages."""

import math

import pytest
import torch
from torch import nn

from danlu.math import conv_norm
from danlu.nn import spectral_norm
from danlu.probe import certified_radius, lipschitz_bound, lipschitz_report, local_lipschitz

D = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def jacobian_norm(fn, x):
    """Of one input, by the whole Jacobian."""
    j = torch.autograd.functional.jacobian(lambda z: fn(z[None])[0].flatten(), x)
    return torch.linalg.matrix_norm(j.flatten(1), 2).item()


ACTIVATIONS = [
    nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.Tanh(), nn.Sigmoid(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(),
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.SELU(), nn.CELU(0.5),
    nn.Softplus(), nn.LeakyReLU(1.5), nn.LeakyReLU(0.1), nn.PReLU(init=-2.0), nn.ELU(1.7), nn.Hardtanh(), nn.Flatten(),
]  # fmt: skip


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_slopes_of_activations(layer):
    layer = layer.double()
    x = torch.linspace(-30, 30, 200_001, dtype=D, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x[:, None]).sum(), x)
    (found,) = lipschitz_bound(layer, (1,))
    assert slope.abs().max().item() <= found.bound * (1 + 1e-9)
    assert found.bound <= slope.abs().max().item() * 1.0025 + (1e-3 if isinstance(layer, nn.Softsign) else 0)


LAYERS = [  # layer, shape of an input, how close the bound comes
    (nn.Linear(4, 3), (4,), 1.0),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5), 1.0),
    (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5), 1.3),
    (nn.Conv1d(2, 4, 3, stride=2, groups=2), (2, 9), 1.3),
    (nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 5), 1.3),
    (nn.AvgPool2d(2), (2, 4, 4), 1.0),
    (nn.AvgPool2d(3, stride=1, padding=1), (1, 5, 5), 1.3),
    (nn.AvgPool1d(3, stride=1, padding=1, count_include_pad=False), (1, 5), 2.0),
    (nn.AvgPool2d(2, divisor_override=1), (1, 4, 4), 1.0),
    (nn.AdaptiveAvgPool2d(1), (2, 4, 5), 1.0),
    (nn.Dropout(0.5), (4,), 1.0),
]


@pytest.mark.parametrize(("layer", "shape", "close"), LAYERS, ids=lambda x: repr(x)[:50])
def test_linear_layers_against_their_jacobian(layer, shape, close):
    exact = jacobian_norm(layer.double().eval(), seeded(*shape))
    (found,) = lipschitz_bound(layer, shape)
    assert exact * (1 - 1e-9) <= found.bound <= close * exact * (1 + 1e-9)


def test_max_pooling():
    assert lipschitz_bound(nn.MaxPool2d(2), (1, 4, 4))[0].bound == 1
    (found,) = lipschitz_bound(nn.MaxPool1d(3, stride=1), (1, 5))
    x = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0], dtype=D)[None]
    assert found.bound == pytest.approx(jacobian_norm(nn.MaxPool1d(3, stride=1), x)) == pytest.approx(math.sqrt(3))


def test_norm_layers():
    batch = nn.BatchNorm1d(3).double()
    batch(seeded(20, 3) * torch.tensor([0.1, 1.0, 3.0]))
    nn.init.normal_(batch.weight)
    assert lipschitz_bound(batch, (3,))[0].bound == pytest.approx(jacobian_norm(batch.eval(), seeded(3)))
    for layer in (nn.LayerNorm(4, eps=1e-2), nn.GroupNorm(1, 4, eps=1e-2), nn.RMSNorm(4, eps=1e-2)):
        layer = layer.double()
        (found,) = lipschitz_bound(layer, (4,))
        assert found.bound == pytest.approx(jacobian_norm(layer, torch.zeros(4, dtype=D)))
        assert "constant inputs" in found.remark
        for seed in range(5):
            assert jacobian_norm(layer, seeded(4, seed=seed)) < found.bound


def test_softmax_and_log_softmax():
    (soft,), (log,) = (lipschitz_bound(layer, (3,)) for layer in (nn.Softmax(1), nn.LogSoftmax(1)))
    assert (soft.bound, log.bound) == (0.5, pytest.approx(math.sqrt(3)))
    assert jacobian_norm(nn.Softmax(1), torch.tensor([0.0, 0.0, -50.0], dtype=D)) == pytest.approx(0.5)
    assert jacobian_norm(nn.LogSoftmax(1), torch.tensor([50.0, 0.0, 0.0], dtype=D)) == pytest.approx(math.sqrt(3))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.LeakyReLU(0.2), nn.AvgPool2d(2)),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(27, 8), nn.GELU(), nn.Linear(8, 4),
    ).double()  # fmt: skip


def test_a_network_lies_between_both_sides():
    model = net()
    model(seeded(50, 1, 6, 6))  # running statistics
    x = seeded(20, 1, 6, 6, seed=1)
    report = lipschitz_report(model, x, steps=200)
    model.eval()
    exact = [jacobian_norm(model, one) for one in x]
    assert report.local.tolist() == pytest.approx(exact, rel=1e-3)
    assert report.lower == report.local.max() <= report.upper
    a, b = x[:10], x[10:]
    assert ((model(a) - model(b)).norm(dim=1) / (a - b).flatten(1).norm(dim=1)).max() <= report.upper
    assert report.upper == pytest.approx(math.prod(layer.bound for layer in report.layers))
    assert [layer.name for layer in report.layers] == ["0.0", "0.1", "0.2", "0.3", "1", "2", "3", "4", "5"]
    assert report.layers[0].usual < report.layers[0].bound
    table = str(report)
    assert all(word in table for word in ("Conv2d", "usual value", f"{report.upper:.4g}"))


def test_a_linear_network_is_tight_and_a_spectral_norm_shows():
    q = [torch.linalg.qr(seeded(4, 4, seed=s)).Q for s in range(2)]
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    for layer, value in zip(model, q, strict=True):
        layer.weight.data = 3 * value
    report = lipschitz_report(model, seeded(2, 4))
    assert (report.lower, report.upper) == (pytest.approx(9.0), pytest.approx(9.0))
    conv = spectral_norm(nn.Conv2d(1, 2, 3, padding=1), input_size=8).eval()
    (found,) = lipschitz_bound(conv, (1, 8, 8))
    assert found.kind == "Conv2d"
    assert found.bound == pytest.approx(conv_norm(conv.weight, 8, padding=1, method="upper").item())
    assert 1 <= found.bound < 1.1


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def test_rules_speak_for_modules_of_ones_own():
    model = nn.Sequential(Residual(nn.Sequential(nn.Linear(3, 3), nn.ReLU())), nn.Linear(3, 2)).double()
    rules = {Residual: lambda module, bound: 1 + bound(module.inner)}
    layers = lipschitz_bound(model, (3,), rules)
    expected = 1 + torch.linalg.matrix_norm(model[0].inner[0].weight, 2).item()
    assert layers[0].bound == pytest.approx(expected)
    assert lipschitz_report(model, seeded(9, 3), rules).lower <= math.prod(x.bound for x in layers)


def test_a_layer_used_with_two_sizes_has_the_larger_constant():
    conv = nn.Conv1d(1, 1, 3).double()
    nn.init.ones_(conv.weight)
    found = lipschitz_bound(nn.Sequential(conv, conv), (1, 7))
    assert found[0].bound == found[1].bound == pytest.approx(lipschitz_bound(conv, (1, 7))[0].bound)


def test_modes_hooks_and_weights_are_as_before():
    model = net()
    model[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lipschitz_report(model, seeded(2, 1, 6, 6))
    assert [m.training for m in model] == [False, True, True, True, True, True]
    assert not any(m._forward_pre_hooks for m in model.modules())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_local_norm_of_functions_and_dead_inputs():
    x = torch.tensor([[1.0, 2.0], [0.5, -3.0]], dtype=D)
    torch.testing.assert_close(local_lipschitz(lambda z: z.square(), x), 2 * x.abs().amax(1))
    assert local_lipschitz(nn.ReLU(), -torch.ones(2, 3)).tolist() == [0, 0]
    few = local_lipschitz(lambda z: z @ seeded(2, 5), x, steps=0)
    assert (few <= local_lipschitz(lambda z: z @ seeded(2, 5), x)).all()


def test_no_move_within_the_radius_changes_the_class():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = seeded(30, 4)
    bound = math.prod(layer.bound for layer in lipschitz_bound(model, (4,)))
    with torch.no_grad():
        radius = certified_radius(model(x), bound)
        for seed in range(20):
            move = seeded(30, 4, seed=seed)
            moved = x + move / move.norm(dim=1, keepdim=True) * radius[:, None] * 0.999
            assert torch.equal(model(moved).argmax(1), model(x).argmax(1))


def test_the_radius_is_tight_for_a_linear_classifier():
    w = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=D)  # norm sqrt(2); the margin moves by 2 a unit
    x = torch.tensor([[0.3, 1.0]], dtype=D)
    assert certified_radius(x @ w.T, math.sqrt(2)).item() == pytest.approx(0.3)
    target = torch.tensor([1])
    assert certified_radius(x @ w.T, 1.0, target).item() == 0


class Mine(nn.Linear):
    def forward(self, x):
        return super().forward(x).square()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lipschitz_bound(nn.Sequential(Residual(nn.ReLU())), (3,)), r"0 \(Residual\).*rules=\{Residual: "),
        (lambda: lipschitz_bound(Mine(2, 2), (2,)), r"the model \(Mine\)"),
        (lambda: lipschitz_bound(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5)), "'zeros'"),
        (lambda: local_lipschitz(nn.ReLU(), torch.ones(3)), r"needs x \(N, ...\).*got \(3,\)"),
        (lambda: local_lipschitz(nn.ReLU(), torch.ones(3, 1).half()), "float16"),
        (lambda: certified_radius(torch.ones(3), 1.0), r"got \(3,\), 1.0 and None"),
        (lambda: certified_radius(torch.ones(3, 2), 0.0), r"bound > 0.*0.0"),
        (lambda: certified_radius(torch.ones(3, 2), 1.0, torch.zeros(2)), r"and \(2,\)"),
    ],
)  # fmt: skip
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
