"""Norm of convolutions: against the whole operator's SVD, the known numbers, bounds around it, gradients, messages."""

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.math import conv_norm, conv_norm_bound, reshaped_norm

D = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def operator(weight, size, stride, padding, dilation, groups, mode):
    """The whole matrix, a column for each input place: torch's own convolution of every unit vector."""
    conv = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    shape = (weight.shape[1] * groups, *size)
    x = torch.eye(torch.Size(shape).numel(), dtype=D).view(-1, *shape)
    x = F.pad(x, [padding] * 2 * len(size), mode="circular" if mode == "circular" else "constant")
    return conv(x, weight, None, stride, 0, dilation, groups).flatten(1).T


CASES = [
    # out, in, kernel, size, stride, padding, dilation, groups
    (4, 3, (3, 3), (8, 8), 1, 1, 1, 1),
    (4, 3, (3, 3), (8, 8), 2, 1, 1, 1),
    (4, 4, (3, 3), (8, 6), 1, 1, 1, 2),
    (6, 6, (3, 3), (6, 6), 1, 1, 1, 6),
    (4, 3, (3, 3), (9, 8), 1, 2, 2, 1),
    (2, 3, (4, 4), (8, 8), 4, 0, 1, 1),
    (4, 3, (1, 3), (5, 6), 1, 0, 1, 1),
    (4, 3, (1, 1), (6, 6), 2, 0, 1, 1),
    (4, 3, (5,), (12,), 3, 2, 1, 1),
    (3, 2, (9,), (6,), 1, 4, 1, 1),  # the kernel goes round
    (3, 2, (5,), (4,), 1, 4, 2, 1),
    (2, 3, (3, 3, 3), (4, 4, 4), 2, 1, 1, 1),
    (4, 3, (3, 3), (7, 8), 2, 1, 1, 1),  # no multiple of the stride
    (4, 3, (3,), (8,), 2, 0, 1, 1),
    (3, 2, (5,), (5,), 2, 3, 2, 1),
]


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_operator_and_lies_between_its_bounds(case, mode):
    out, channels, kernel, size, stride, padding, dilation, groups = case
    w = seeded(out, channels // groups, *kernel)
    geometry = (stride, padding, dilation, groups, mode)
    exact = torch.linalg.matrix_norm(operator(w, size, *geometry), 2)
    torch.testing.assert_close(conv_norm(w, size, *geometry, tol=1e-7), exact)
    assert conv_norm(w, size, *geometry, method="upper") >= exact * (1 - 1e-12)
    wraps = mode == "circular" and dilation * (kernel[0] - 1) + 1 > size[0]
    assert conv_norm_bound(w, stride, dilation, groups) >= exact * (1 - 1e-12) or wraps


def test_frozen_numbers():  # found once from the dense operators of this kernel
    w = seeded(4, 3, 3, 3)
    found = [conv_norm(w, 8, padding=1, padding_mode=mode, tol=1e-6).item() for mode in ("circular", "zeros")]
    found += [reshaped_norm(w).item(), conv_norm_bound(w).item()]
    assert found == pytest.approx([10.963871, 10.7278, 7.1319, 16.97], rel=5e-5)


def test_order_of_the_norms():
    w = seeded(4, 3, 3, 3, seed=0)
    circular = conv_norm(w, 8, padding=1, padding_mode="circular")
    zeros = conv_norm(w, 8, padding=1)
    upper = conv_norm(w, 8, padding=1, method="upper")
    assert reshaped_norm(w) < zeros < upper <= conv_norm(w, 10, padding=1, padding_mode="circular") + 1e-12
    assert zeros < circular < conv_norm_bound(w) < 3 * reshaped_norm(w)


def test_equal_numbers_attain_the_root_of_the_kernel():
    ones = torch.ones(4, 3, 3, 3, dtype=D)
    found = conv_norm(ones, 8, padding=1, padding_mode="circular"), reshaped_norm(ones), conv_norm_bound(ones)
    assert [x.item() for x in found] == pytest.approx([31.1769, 10.3923, 31.1769], abs=5e-5)


def test_torch_spectral_norm_of_a_convolution_is_not_one_lipschitz():
    conv = torch.nn.Conv2d(3, 4, 3, padding=1).double()
    torch.nn.init.ones_(conv.weight)
    conv = torch.nn.utils.parametrizations.spectral_norm(conv, n_power_iterations=50).eval()
    assert reshaped_norm(conv.weight).item() == pytest.approx(1.0)
    assert conv_norm(conv.weight, 8, padding=1).item() > 2.5


def test_a_transposed_convolution_has_the_norm_of_what_it_transposes():
    w = seeded(3, 2, 3, 3)
    x = torch.eye(3 * 16, dtype=D).view(-1, 3, 4, 4)
    matrix = F.conv_transpose2d(x, w, None, 2, 1, 1).flatten(1).T  # 4 x 4 -> 8 x 8
    torch.testing.assert_close(conv_norm(w, 8, 2, 1, tol=1e-7), torch.linalg.matrix_norm(matrix, 2))


def test_one_place_stride_and_orthogonal_kernels():
    w = seeded(4, 3)
    torch.testing.assert_close(conv_norm(w[:, :, None], 7), torch.linalg.matrix_norm(w, 2))
    q = torch.linalg.qr(seeded(27, 4)).Q.T.reshape(4, 3, 3, 3)
    assert conv_norm(q, 9, stride=3).item() == pytest.approx(1.0)  # windows that do not overlap
    assert conv_norm_bound(q, stride=3).item() == pytest.approx(1.0)
    assert conv_norm(torch.zeros(2, 2, 3), 5, padding=1).item() == 0
    assert conv_norm(torch.zeros(2, 2, 3), 5, padding=1, padding_mode="circular").item() == 0


def test_zero_padding_tends_to_the_circular_norm_from_below():
    w = seeded(3, 3, 3)
    found = [conv_norm(w, n, padding=1, tol=1e-7).item() for n in (4, 8, 16, 64)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(conv_norm(w, 256, padding=1, padding_mode="circular").item(), rel=2e-3)


def test_a_bound_from_above_needs_the_enlarged_grid():  # three places: the circle lacks the alternating frequency
    w = torch.tensor([[[-1.0, 1.0, -1.0]]], dtype=D)
    modes = ({"padding_mode": "circular"}, {"tol": 1e-6}, {"method": "upper"})
    found = [conv_norm(w, 3, padding=1, **options).item() for options in modes]
    assert found == pytest.approx([2, 1 + 2**0.5, 1 + 2 * math.cos(math.pi / 5)])


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(mode, stride):
    w = seeded(2, 2, 3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: conv_norm(w, 4, stride, 1, 1, 1, mode, tol=1e-12), w)
    assert torch.autograd.gradcheck(lambda w: conv_norm(w, 4, stride, 1, 1, 1, mode, method="upper"), w)


def test_gradcheck_of_groups_dilation_and_the_bounds():
    w = seeded(4, 2, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: conv_norm(w, 8, 1, 2, 2, 2, "circular"), w)
    assert torch.autograd.gradcheck(lambda w: conv_norm_bound(w, 1, 1, 2), w)
    assert torch.autograd.gradcheck(lambda w: reshaped_norm(w, 2), w)


def test_gradient_is_that_of_the_materialised_operator():
    w = seeded(3, 2, 3, 3).requires_grad_()
    conv_norm(w, 5, padding=1, tol=1e-10).backward()
    exact = w.detach().clone().requires_grad_()
    torch.linalg.matrix_norm(operator(exact, (5, 5), 1, 1, 1, 1, "zeros"), 2).backward()
    torch.testing.assert_close(w.grad, exact.grad)


def test_many_frequencies_and_wide_layers_in_both_directions():  # the ruling out of eq. (6) is at work here
    for shape in ((34, 36, 3, 3), (36, 34, 3, 3), (32, 32, 5, 5)):
        w = seeded(*shape)
        blocks = torch.fft.fft2(w, s=(16, 16)).permute(2, 3, 0, 1)
        exact = torch.linalg.svdvals(blocks)[..., 0].max()
        torch.testing.assert_close(
            conv_norm(w, 16, padding=shape[-1] // 2, padding_mode="circular"), exact, rtol=1e-10, atol=0
        )


def test_half_precision_is_computed_wide_also_under_autocast():
    w = seeded(3, 2, 3, 3).bfloat16()
    for mode in ("zeros", "circular"):
        exact = conv_norm(w.double(), 6, padding=1, padding_mode=mode)
        found = conv_norm(w, 6, padding=1, padding_mode=mode)
        assert found.dtype == torch.bfloat16
        assert found.item() == pytest.approx(exact.item(), rel=2**-8)
        with torch.autocast("cpu", torch.bfloat16):
            cast = conv_norm(w.float(), 6, padding=1, padding_mode=mode)
        assert cast.item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_user_holds_the_norm_of_a_convolution_down():
    w = torch.nn.Parameter(seeded(3, 2, 3))
    optimizer = torch.optim.SGD([w], lr=0.03)
    assert conv_norm(w, 6, padding=1) > 3
    for _ in range(60):
        optimizer.zero_grad()
        (conv_norm(w, 6, padding=1) - 1).clamp_min(0).square().backward()
        optimizer.step()
    assert conv_norm(w, 6, padding=1) < 1.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: conv_norm(w, 8, method="fft"), "method must be 'exact' or 'upper', got 'fft'"),
        (lambda w: conv_norm(w[0, 0], 8), r"got \(3, 3\); for a matrix use torch.linalg.matrix_norm"),
        (lambda w: conv_norm(w, 8, padding_mode="reflect"), "'zeros' or 'circular', got 'reflect'"),
        (lambda w: conv_norm_bound(w[0, 0]), r"1 to 3 axes of kernel, got \(3, 3\)"),
        (lambda w: reshaped_norm(w, 3), "groups dividing O.*groups=3"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(4, 2, 3, 3))
