"""Spectral regularisation: the SVD, gradient, the author's code by hand, kept vectors, loops, messages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.losses import SpectralPenalty, spectral_penalty
from danlu.math import conv_norm, reshaped_norm

D = torch.float64
A = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=D)


def seeded(*shape, seed=0, dtype=D):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def author(weight, steps):
    """The post's code with plain loops: u of ones on the inputs, both normalised, sigma = u W v^T."""
    w = weight.flatten(1).T  # (in, out), as Keras keeps it
    u = torch.ones(1, len(w), dtype=w.dtype)
    for _ in range(steps):
        v = u @ w
        v = v / (v * v).sum().sqrt()
        u = v @ w.T
        u = u / (u * u).sum().sqrt()
    return ((u @ w @ v.T).sum()) ** 2


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.LayerNorm(4)
    ).double()


def test_the_sum_of_squared_norms():
    weights = [A, seeded(5, 3), seeded(3, 2, 3)]
    expected = sum(torch.linalg.matrix_norm(w.flatten(1), 2).square() for w in weights)
    torch.testing.assert_close(spectral_penalty(weights, steps=200), expected)
    assert spectral_penalty(A, steps=100).item() == pytest.approx(45.0)


def test_gradient_is_twice_sigma_u_v():
    w = seeded(5, 4).requires_grad_()
    spectral_penalty(w, steps=300).backward()
    u, s, vh = torch.linalg.svd(w.detach())
    torch.testing.assert_close(w.grad, 2 * s[0] * torch.outer(u[:, 0], vh[0]))
    assert torch.linalg.matrix_rank(w.grad, rtol=1e-8) == 1  # one direction alone is pulled


def test_gradcheck_once_converged():
    assert torch.autograd.gradcheck(lambda w: spectral_penalty(w, steps=300), seeded(4, 3).requires_grad_())


@pytest.mark.parametrize("steps", [1, 5])
def test_the_authors_mode_is_his_code_with_its_gradient(steps):
    w, other = seeded(4, 3, 2).requires_grad_(), seeded(4, 3, 2).requires_grad_()
    found, expected = spectral_penalty(w, steps, mode="author"), author(other, steps)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss, x in ((found, w), (expected, other))))
    assert torch.autograd.gradcheck(lambda w: spectral_penalty(w, steps, mode="author"), w.detach().requires_grad_())


def test_ones_can_miss_the_top_and_the_pattern_does_not():
    w = torch.tensor([[2.0, -2.0], [1.0, 1.0]], dtype=D)  # the top vector (1, -1) is orthogonal to ones
    assert spectral_penalty(w, 50, mode="author").item() == pytest.approx(2.0)
    assert spectral_penalty(w, 50).item() == pytest.approx(8.0)


def test_frobenius_is_larger_and_the_spectral_radius_is_something_else():
    for seed in range(5):
        w = seeded(4, 6, seed=seed)
        assert spectral_penalty(w, 300) <= w.square().sum()
    nilpotent = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=D)
    assert spectral_penalty(nilpotent).item() == pytest.approx(1.0)
    assert torch.linalg.eigvals(nilpotent).abs().max() == 0


def test_object_equals_the_svd_and_the_true_norm_where_asked():
    model = net()
    w, matrix = model[0].weight, model[3].weight
    plain, true = SpectralPenalty(model, 0.5), SpectralPenalty(model, 0.5, input_sizes={"0": (4, 4)})
    square = torch.linalg.matrix_norm(matrix, 2) ** 2
    torch.testing.assert_close(plain(), 0.5 * (reshaped_norm(w) ** 2 + square), rtol=1e-4, atol=0)
    torch.testing.assert_close(true(), 0.5 * (conv_norm(w, 4, padding=1) ** 2 + square), rtol=1e-4, atol=0)
    assert list(true.sigmas()) == ["0", "3"]
    grads = torch.autograd.grad(true.eval()(), [w, matrix])
    exact = 0.5 * (conv_norm(w, 4, padding=1, tol=1e-9) ** 2 + torch.linalg.matrix_norm(matrix, 2) ** 2)
    for found, expected in zip(grads, torch.autograd.grad(exact, [w, matrix]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_transposed_and_grouped_convolutions():
    model = nn.Sequential(nn.ConvTranspose1d(4, 2, 3, stride=2), nn.Conv1d(2, 2, 3, groups=2)).double()
    penalty = SpectralPenalty(model, 1.0, input_sizes={"0": 5, "1": 11}, steps=3)
    expected = conv_norm(model[0].weight, 11, stride=2) ** 2 + conv_norm(model[1].weight, 11, groups=2) ** 2
    torch.testing.assert_close(penalty(), expected, rtol=1e-3, atol=0)


def train(model, penalty, steps=40, accumulate=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = seeded(8, 1, 4, 4, seed=1), torch.arange(8) % 4
    for _ in range(steps):
        optimizer.zero_grad()
        for a, b in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
            loss = F.cross_entropy(model(a), b)
            ((loss + (penalty() if penalty else 0)) / accumulate).backward()
        optimizer.step()
    return model


def test_one_step_a_call_follows_a_training_and_holds_sigma_down():
    model = net()
    penalty = SpectralPenalty(model, 0.2, include="3")
    train(model, penalty)
    sigma = penalty.sigmas()["3"]
    exact = torch.linalg.matrix_norm(model[3].weight, 2)
    torch.testing.assert_close(sigma, exact, rtol=0.05, atol=0)
    assert exact < 0.8 * torch.linalg.matrix_norm(train(net(), None)[3].weight, 2)


def test_accumulation_of_two_halves_is_the_whole_batch():
    whole, halves = net(), net()
    train(whole, SpectralPenalty(whole, 0.1, steps=60), steps=3)
    train(halves, SpectralPenalty(halves, 0.1, steps=60), steps=3, accumulate=2)
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_vectors_move_in_training_alone_and_are_the_whole_state():
    model = net()
    penalty = SpectralPenalty(model)
    assert list(penalty.state_dict()) == ["v0", "v1"]
    assert list(penalty.parameters()) == []
    with torch.no_grad():
        model[3].weight.add_(0.3 * seeded(4, 48))
    before = copy.deepcopy(penalty.state_dict())
    penalty.eval()()
    torch.testing.assert_close(penalty.state_dict(), before, rtol=0, atol=0)
    penalty.train()()
    assert not torch.equal(penalty.v1, before["v1"])
    other = SpectralPenalty(model)
    other.load_state_dict(penalty.state_dict())
    torch.testing.assert_close(other.eval()(), penalty.eval()(), rtol=0, atol=0)


def test_tied_frozen_and_parametrized_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Embedding(4, 3))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    assert list(SpectralPenalty(model).sigmas()) == ["0"]
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match="no layer with a trained weight"):
        SpectralPenalty(nn.Sequential(model[0], model[2]))


def test_a_top_vector_that_changes_places_is_found():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data = torch.diag(torch.tensor([2.0, 1.0]))
    penalty = SpectralPenalty(model, 1.0)
    model[0].weight.data = torch.diag(torch.tensor([1.0, 2.0]))
    for _ in range(20):
        value = penalty()
    assert value.item() == pytest.approx(4.0)


def test_half_precision_autocast_and_zeros():
    w = seeded(8, 8)
    half = nn.Linear(8, 8).bfloat16()
    half.weight.data = w.bfloat16()
    expected = torch.linalg.matrix_norm(half.weight.double(), 2).square().item()
    penalty = SpectralPenalty(nn.Sequential(half), 1.0, steps=20)
    assert penalty().dtype == torch.float32
    assert penalty().item() == pytest.approx(expected, rel=1e-4)
    penalty().backward()
    assert half.weight.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert penalty().item() == pytest.approx(expected, rel=1e-4)
        assert spectral_penalty(half.weight, 300).item() == pytest.approx(expected, rel=1e-4)
    zero = torch.zeros(2, 2, requires_grad=True)
    for mode in ("fixed", "author"):
        (grad,) = torch.autograd.grad(spectral_penalty(zero, mode=mode), zero)
        assert torch.equal(grad, torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_penalty(A, mode="unrolled"), "mode must be 'fixed' or 'author'.*got 'unrolled'"),
        (lambda: spectral_penalty(A, steps=0), "steps >= 1, got 'fixed', 0"),
        (lambda: spectral_penalty([A, A[0]]), r"got \[\(2, 2\), \(2,\)\]; leave out biases"),
        (lambda: spectral_penalty([]), "needs weights"),
        (lambda: SpectralPenalty(net(), -1.0), "strength >= 0 and steps >= 1, got -1.0 and 1"),
        (lambda: SpectralPenalty(net(), include="attention"), "matches include='attention'; layers: 0, 3"),
        (lambda: SpectralPenalty(net(), include="3", input_sizes={"0": 4}), "input_sizes names 0, which is not"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_model_is_no_part_of_it():
    model = net()
    penalty = SpectralPenalty(model)
    assert list(penalty.children()) == []
    assert "strength=0.01, layers=2" in repr(penalty)
