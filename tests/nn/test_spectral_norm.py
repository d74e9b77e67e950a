"""Spectral normalisation: true norms after training, gradient, state, copies, compile, half precision, processes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from two_processes import in_two_processes

from danlu.math import conv_norm, reshaped_norm
from danlu.nn import SpectralNorm, spectral_norm

D = torch.float64


def seeded(*shape, seed=0, dtype=D):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def linear(**options):
    torch.manual_seed(0)
    return spectral_norm(nn.Linear(4, 5, dtype=D), **options)


def norm_of(layer):
    return torch.linalg.matrix_norm(layer.weight.detach(), 2).item()


def drift(layer, steps=60, size=0.02):
    """Stands for training: the weight wanders, each step one forward."""
    original = layer.parametrizations.weight.original
    for i in range(steps):
        with torch.no_grad():
            original.add_(size * seeded(*original.shape, seed=i))
        layer.weight  # noqa: B018


def layers():
    yield nn.Conv1d(3, 4, 3, padding=1), 9
    yield nn.Conv2d(3, 4, 3, stride=2, padding=1), (6, 7)
    yield nn.Conv2d(4, 4, 3, groups=2, padding=1, padding_mode="circular"), 6
    yield nn.Conv3d(2, 3, 2, dilation=2), 4
    yield nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), 4


def operator_norm(layer, shape):
    """The norm of what the layer does, by every unit vector."""
    with torch.no_grad():
        x = torch.eye(torch.Size(shape).numel(), dtype=D).view(-1, *shape)
        return torch.linalg.matrix_norm((layer(x) - layer(0 * x)).flatten(1), 2).item()


@pytest.mark.parametrize("coeff", [1.0, 2.5])
def test_a_matrix_has_the_norm_asked_for_and_keeps_it(coeff):
    layer = linear(coeff=coeff)
    assert norm_of(layer.eval()) == pytest.approx(coeff)
    drift(layer.train())
    assert norm_of(layer.eval()) == pytest.approx(coeff, rel=1e-3)


@pytest.mark.parametrize(("layer", "size"), list(layers()), ids=lambda x: repr(x)[:40])
def test_a_convolution_has_the_true_norm_asked_for(layer, size):
    layer = spectral_norm(layer.double(), input_size=size).eval()
    axes = layer.parametrizations.weight.original.ndim - 2
    shape = (layer.in_channels, *((size,) * axes if isinstance(size, int) else size))
    assert operator_norm(layer, shape) == pytest.approx(1.0, rel=1e-6)
    drift(layer.train(), steps=20, size=0.002)
    assert operator_norm(layer.eval(), shape) == pytest.approx(1.0, rel=0.02)


def test_reshaped_is_not_the_true_norm_and_bound_stays_below():
    def true(method):
        layer = nn.Conv2d(3, 4, 3, padding=1).double()
        nn.init.ones_(layer.weight)
        return conv_norm(spectral_norm(layer, method=method).eval().weight, 16, padding=1).item()

    assert 2.8 < true("reshaped") < 3
    assert 0.9 < true("bound") < 1


def test_random_pairs_keep_their_distance_through_a_network():
    torch.manual_seed(0)
    net = nn.Sequential(
        spectral_norm(nn.Conv2d(1, 3, 3, padding=1), input_size=6),
        nn.ReLU(),
        nn.Flatten(),
        linear_to(108, 4),
        nn.Tanh(),
    )
    net = net.double().eval()
    a, b = seeded(200, 1, 6, 6), seeded(200, 1, 6, 6, seed=1)
    assert ((net(a) - net(b)).norm(dim=1) <= (a - b).flatten(1).norm(dim=1)).all()


def linear_to(inputs, outputs):
    return spectral_norm(nn.Linear(inputs, outputs))


def test_cap_leaves_small_weights_alone():
    layer = nn.Linear(3, 3, dtype=D)
    layer.weight.data = torch.diag(torch.tensor([0.5, 0.2, 0.1], dtype=D))
    spectral_norm(layer, mode="cap")
    torch.testing.assert_close(layer.weight, layer.parametrizations.weight.original, rtol=0, atol=0)
    layer.parametrizations.weight.original.data *= 4
    torch.testing.assert_close(layer.weight, torch.diag(torch.tensor([1.0, 0.4, 0.2], dtype=D)))


def test_embeddings_are_divided_by_their_longest_row():
    table = nn.Embedding(3, 2, dtype=D)
    table.weight.data = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], dtype=D)
    spectral_norm(table)
    torch.testing.assert_close(table(torch.tensor([0, 2])), torch.tensor([[0.6, 0.8], [0.0, 0.4]], dtype=D))
    assert norm_of(table) > 1.05


def test_gradient_is_the_formula():
    layer = linear(coeff=2.0).eval()
    w, g = layer.parametrizations.weight.original, seeded(5, 4, seed=3)
    normalised = layer.weight
    (got,) = torch.autograd.grad(normalised, w, g)
    u, s, vh = torch.linalg.svd(w.detach())
    expected = 2 / s[0] * (g - (g * normalised).sum() / 2 * torch.outer(u[:, 0], vh[0]))
    torch.testing.assert_close(got, expected)
    exact = w.detach().clone().requires_grad_()  # and that of dividing by the SVD
    (want,) = torch.autograd.grad(2 * exact / torch.linalg.matrix_norm(exact, 2), exact, g)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("mode", ["normalize", "cap"])
def test_gradcheck_of_a_convolution(mode):
    layer = spectral_norm(nn.Conv1d(2, 3, 3, padding=1, dtype=D), coeff=0.2, input_size=5, mode=mode).eval()
    norm, w = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    norm.v.copy_(power(norm, w))

    def moved(w):  # v is the top vector of the moved weight too, so the numbers are those of the true norm
        with torch.no_grad():
            norm.v.copy_(power(norm, w))
        return norm(w)

    assert torch.autograd.gradcheck(moved, w.detach().clone().requires_grad_())


def power(norm, w):
    v = norm.v.clone()
    for _ in range(150):
        v = norm.map.adjoint(w.detach(), norm.map.forward(w.detach(), v))
        v = v / v.norm()
    return v


def test_evaluation_does_not_iterate_and_has_gradients():
    layer = linear().eval()
    before = layer.parametrizations.weight[0].v.clone()
    layer.parametrizations.weight.original.data += 1
    layer(seeded(2, 4)).sum().backward()
    torch.testing.assert_close(layer.parametrizations.weight[0].v, before, rtol=0, atol=0)
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0
    layer.train().weight  # noqa: B018
    assert not torch.equal(layer.parametrizations.weight[0].v, before)


def test_two_forwards_before_a_backward():
    layer = linear()
    (layer(seeded(2, 4)) + layer(seeded(2, 4, seed=1))).sum().backward()
    assert torch.isfinite(layer.parametrizations.weight.original.grad).all()


def test_removing_bakes_the_normalised_weight():
    layer = linear().eval()
    expected = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=0)
    assert isinstance(layer.weight, nn.Parameter)


def test_state_dict_deepcopy_and_both_lead_to_the_same_training():
    def train(layer):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for i in range(5):
            optimizer.zero_grad()
            layer(seeded(3, 4, seed=i)).square().sum().backward()
            optimizer.step()
        return layer

    first = train(linear())
    copied, loaded = copy.deepcopy(first), linear()
    loaded.load_state_dict(first.state_dict())
    expected = train(first).weight
    for other in (copied, loaded):
        torch.testing.assert_close(train(other).weight, expected, rtol=0, atol=0)
    assert "parametrizations.weight.0.v" in first.state_dict()


def test_compiled_training_is_eager():
    layer = spectral_norm(nn.Conv1d(2, 3, 3, padding=1), input_size=6)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for i in range(3):
        x = seeded(2, 2, 6, seed=i, dtype=torch.float32)
        for net in (layer, compiled):
            net(x).square().sum().backward()
    torch.testing.assert_close(other.parametrizations.weight[0].v, layer.parametrizations.weight[0].v)
    torch.testing.assert_close(other.parametrizations.weight.original.grad, layer.parametrizations.weight.original.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_wide_vector(dtype):
    layer = linear().to(dtype)
    assert layer.parametrizations.weight[0].v.dtype == torch.float64
    drift(layer, steps=30)
    assert layer(seeded(2, 4, dtype=dtype)).dtype == dtype
    assert norm_of(layer.eval().double()) == pytest.approx(1.0, rel=2 * torch.finfo(dtype).eps)
    fresh = spectral_norm(nn.Linear(4, 4, dtype=dtype))
    assert fresh.parametrizations.weight[0].v.dtype == torch.float32


def test_autocast_measures_in_float32():
    layer = spectral_norm(nn.Conv2d(2, 3, 3, padding=1), input_size=6)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(20):
            assert layer(seeded(1, 2, 6, 6, dtype=torch.float32)).dtype == torch.bfloat16
    assert conv_norm(layer.eval().weight, 6, padding=1).item() == pytest.approx(1.0, rel=1e-3)


def test_a_zero_weight_is_harmless_and_a_stuck_vector_gets_free():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    spectral_norm(layer)(torch.ones(1, 3)).sum().backward()
    assert layer.weight.abs().sum() == 0
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.diag(torch.tensor([1.0, 2.0]))
    spectral_norm(layer)
    layer.parametrizations.weight.original.data = torch.diag(torch.tensor([3.0, 2.0]))  # v is orthogonal to the new top
    for _ in range(40):
        layer.weight  # noqa: B018
    assert norm_of(layer) == pytest.approx(1.0)


def test_refresh_finds_the_vector_at_once():
    layer = linear().eval()
    layer.parametrizations.weight.original.data = seeded(5, 4, seed=9)
    assert norm_of(layer) != pytest.approx(1.0, abs=1e-4)
    layer.parametrizations.weight[0].refresh(layer.parametrizations.weight.original)
    assert norm_of(layer) == pytest.approx(1.0)


def test_an_orthogonal_weight_stays_and_any_matrix_by_its_name():
    layer = nn.Linear(4, 4, dtype=D)
    layer.weight.data = 3 * torch.linalg.qr(seeded(4, 4)).Q
    spectral_norm(layer)
    torch.testing.assert_close(layer.weight, layer.parametrizations.weight.original / 3)
    attention = spectral_norm(nn.MultiheadAttention(4, 2, dtype=D), "in_proj_weight").eval()
    assert torch.linalg.matrix_norm(attention.in_proj_weight.detach(), 2).item() == pytest.approx(1.0)


def test_a_critic_finds_the_distance_of_two_points():  # Wasserstein-1 of two point masses is their distance
    class GroupSort(nn.Module):
        def forward(self, x):
            return x.unflatten(1, (-1, 2)).sort(dim=2).values.flatten(1)

    torch.manual_seed(0)
    critic = nn.Sequential(linear_to(2, 16), GroupSort(), linear_to(16, 16), GroupSort(), linear_to(16, 1))
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
    a, b = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    for _ in range(120):
        optimizer.zero_grad()
        (critic(a) - critic(b)).sum().backward()
        optimizer.step()
    found = (critic.eval()(b) - critic(a)).item()
    assert 0.9 * 5 < found <= 5 * (1 + 1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_norm(nn.Linear(2, 2), "kernel"), "Linear has no parameter 'kernel'; its parameters: weight"),
        (lambda: spectral_norm(spectral_norm(nn.Linear(2, 2))), "it is parametrized already"),
        (lambda: spectral_norm(nn.Linear(2, 2), coeff=0), "coeff > 0 and steps >= 1, got coeff=0"),
        (lambda: spectral_norm(nn.Linear(2, 2), steps=0), "steps=0"),
        (lambda: spectral_norm(nn.Linear(2, 2), method="fft"), "'true', 'bound' or 'reshaped'.*got 'fft'"),
        (lambda: spectral_norm(nn.Linear(2, 2), mode="clip"), "mode 'normalize' or 'cap', got 'true', 'clip'"),
        (lambda: spectral_norm(nn.Conv2d(2, 2, 3)), r"give input_size=\(H, W\).*or method='bound'"),
        (lambda: spectral_norm(nn.Conv2d(2, 2, 3), input_size=2), "does not fit inputs"),
        (lambda: spectral_norm(nn.LayerNorm(2)), "two axes or more"),
    ],
)  # fmt: skip
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_reshaped_by_groups_and_repr():
    layer = spectral_norm(nn.Conv1d(4, 4, 3, groups=2), method="reshaped").eval()
    assert reshaped_norm(layer.weight, 2).item() == pytest.approx(1.0)
    assert "method='reshaped'" in repr(layer)
    assert isinstance(layer.parametrizations.weight[0], SpectralNorm)


def process(rank):
    torch.manual_seed(rank)  # other first vectors in each process; DistributedDataParallel sends those of the first
    layer = spectral_norm(nn.Linear(4, 5))
    model = nn.parallel.DistributedDataParallel(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for i in range(5):
        optimizer.zero_grad()
        F.mse_loss(model(seeded(4, 4, seed=10 * i + rank, dtype=torch.float32)), torch.ones(4, 5)).backward()
        optimizer.step()
    return layer.state_dict()


@pytest.mark.slow
def test_two_processes_stay_the_same(tmp_path):
    a, b = in_two_processes(process, tmp_path)
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=0, atol=0)
