"""Parts of NVAE: residual normals, layers, cells, balance, warm-up, spectral sum, borrowed statistics; the contract."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from contract import CHECKS, Row
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.utils import parametrizations

from danlu.generative import draw_normal
from danlu.generative.nvae_cells import MakingCell, ReadingCell
from danlu.generative.nvae_config import NVAE_CONFIGS, NVAEConfig, adaptive_groups
from danlu.generative.nvae_layers import FactorizedReduce, LogNormConv2d, SqueezeExcitation
from danlu.generative.nvae_objective import group_alphas, group_balance, kl_warmup
from danlu.generative.nvae_penalty import SpectralSum, norm_gain_sum
from danlu.generative.residual_normal import (
    DiagonalNormal,
    channel_kl,
    clamped_normal,
    residual_log_ratio,
    residual_normal,
)
from danlu.generative.sampling_statistics import sampling_statistics


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


PRIOR, CHANGE = 3 * normal(2, 6, 2, 3), 2 * normal(2, 6, 2, 3, seed=1)


def by_hand(raw: Tensor) -> Normal:
    mean = 5 * torch.tanh(raw[:, :3] / 5)
    return Normal(mean, torch.exp(5 * torch.tanh(raw[:, 3:] / 5)) + 0.01)


def test_kl_is_that_of_torch_on_the_final_normals():
    kl = channel_kl(residual_normal(PRIOR, CHANGE), clamped_normal(PRIOR))
    expected = kl_divergence(by_hand(PRIOR + CHANGE), by_hand(PRIOR)).sum((2, 3))
    torch.testing.assert_close(kl, expected)
    assert kl.shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_posterior_that_changes_nothing_costs_nothing(dtype):
    prior = PRIOR.to(dtype)
    posterior = residual_normal(prior, torch.zeros_like(prior))
    assert torch.equal(channel_kl(posterior, clamped_normal(prior)), torch.zeros(2, 3, dtype=posterior.mean.dtype))
    noise = torch.randn_like(posterior.mean)
    ratio = residual_log_ratio(noise, posterior.mean + posterior.std * noise, posterior, clamped_normal(prior))
    torch.testing.assert_close(ratio, torch.zeros_like(ratio), rtol=0, atol=1e-4)
    assert ratio.dtype == torch.promote_types(dtype, torch.float32)


def test_away_from_clamp_and_floor_the_change_is_relative():
    """s ds and mean + dm, the form of the paper, to first order."""
    small, change = 1e-3 * PRIOR, torch.zeros_like(PRIOR)
    change[:, 3:] = 1e-3
    ratio = (residual_normal(small, change).std - 0.01) / (clamped_normal(small).std - 0.01)
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.exp(1e-3)), rtol=1e-6, atol=0)


def test_log_ratio_is_that_of_torch_and_its_mean_is_minus_kl():
    posterior, prior = residual_normal(PRIOR[:1], 0.3 * CHANGE[:1]), clamped_normal(PRIOR[:1])
    many = [
        DiagonalNormal(t.mean.expand(20_000, -1, -1, -1), t.std.expand(20_000, -1, -1, -1)) for t in (posterior, prior)
    ]
    noise = draw_normal(torch.zeros_like(many[0].mean), torch.ones_like(many[0].std), generator=seeded())[0]
    z = many[0].mean + many[0].std * noise
    ratio = residual_log_ratio(noise, z, *many)
    exact = by_hand(PRIOR[:1]).log_prob(z[:5]) - by_hand(PRIOR[:1] + 0.3 * CHANGE[:1]).log_prob(z[:5])
    torch.testing.assert_close(ratio[:5], exact.flatten(1).sum(1))
    kl = channel_kl(posterior, prior).sum()
    assert abs(ratio.mean() + kl) < 4 * ratio.std() / math.sqrt(20_000)


def test_networks_that_blow_up_stay_finite():
    raw = torch.tensor([[1e30, -1e30, 1e30, -1e30]])[..., None, None].requires_grad_()
    posterior = residual_normal(raw, -0.5 * raw.detach())
    kl = channel_kl(posterior, clamped_normal(torch.zeros(1, 4, 1, 1))).sum()
    kl.backward()
    assert kl.isfinite() and raw.grad.isfinite().all()
    assert posterior.std.min().item() == pytest.approx(math.exp(-5) + 0.01)


def test_gradcheck_of_normals():
    def values(prior, change):
        posterior, given = residual_normal(prior, change), clamped_normal(prior)
        z = posterior.mean + posterior.std * NOISE
        return channel_kl(posterior, given), residual_log_ratio(NOISE, z, posterior, given)

    assert torch.autograd.gradcheck(values, (PRIOR[:1].clone().requires_grad_(), CHANGE[:1].clone().requires_grad_()))


NOISE = normal(1, 3, 2, 3, seed=2)


def test_log_norm_convolution_is_weight_normalisation():
    torch.manual_seed(0)
    layer = LogNormConv2d(3, 4, 3, stride=2).double()
    x = normal(2, 3, 5, 6)
    plain = F.conv2d(x, layer.weight, layer.bias, 2, 1)
    torch.testing.assert_close(layer(x), plain)  # a fresh layer is the plain one
    other = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    other.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    parametrizations.weight_norm(other, dim=0)
    with torch.no_grad():
        layer.log_length += math.log(3.0)
        layer.weight *= torch.tensor([0.1, 1.0, 7.0, 1e3])[:, None, None, None]  # lengths of V do not count
        other.parametrizations.weight.original0 *= 3
    torch.testing.assert_close(layer(x), other(x))
    assert torch.autograd.gradcheck(lambda w, g: _with(layer, w, g)(x), (layer.weight, layer.log_length))


def _with(layer: nn.Module, weight: Tensor, log_length: Tensor):
    values = {"weight": weight, "log_length": log_length}
    return lambda x: torch.func.functional_call(layer, values, (x,))


def test_squeeze_excitation_by_hand():
    torch.manual_seed(0)
    layer = SqueezeExcitation(5)
    x = normal(2, 5, 3, 4, dtype=torch.float32)
    means = torch.tensor([[x[n, c].mean() for c in range(5)] for n in range(2)])
    hidden = (means @ layer.squeeze.weight.T + layer.squeeze.bias).clamp_min(0)
    gate = 1 / (1 + (-(hidden @ layer.excite.weight.T + layer.excite.bias)).exp())
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])
    assert layer.squeeze.out_features == 4 and SqueezeExcitation(160).squeeze.out_features == 10


def test_factorized_reduce_reads_every_pixel_once():
    torch.manual_seed(0)
    layer = FactorizedReduce(1, 7)
    x = normal(1, 1, 4, 6, dtype=torch.float32)
    y = layer(x)
    assert y.shape == (1, 7, 2, 3)
    s = F.silu(x)
    first = layer.phases[0]
    expected = s[0, 0, 2, 4] * first.weight[0, 0, 0, 0] + first.bias[0]
    torch.testing.assert_close(y[0, 0, 1, 2], expected)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0, :, 1, 2], x)[:, 0, 0]  # (7, 4, 6)
    read = jacobian.abs().sum(0) > 0
    assert read.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]
    with pytest.raises(ValueError, match="needs out >= 4 channels, got 3"):
        FactorizedReduce(2, 3)


def test_reading_cell_by_hand():
    torch.manual_seed(0)
    cell = ReadingCell(4, 8, down=True).double()
    x = normal(3, 4, 4, 4)
    h = F.silu(F.batch_norm(x, None, None, training=True))
    h = F.conv2d(h, cell.conv1.weight, cell.conv1.bias, 2, 1)
    h = F.silu(F.batch_norm(h, None, None, training=True))
    h = cell.gate(F.conv2d(h, cell.conv2.weight, cell.conv2.bias, 1, 1))
    torch.testing.assert_close(cell(x), cell.skip(x) + 0.1 * h)
    plain = ReadingCell(4, gate=False).double()
    assert isinstance(plain.gate, nn.Identity) and plain.norm1.momentum == 0.05
    with torch.no_grad():
        plain.conv2.bias.zero_()
        plain.conv2.log_length.fill_(-60)
    torch.testing.assert_close(plain(x), x)


def test_making_cell_by_hand():
    torch.manual_seed(0)
    cell = MakingCell(4, 2, up=True, expansion=3).double()
    x = normal(3, 4, 2, 2)

    def norm(h):
        return (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    h = norm(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    h = F.silu(norm(torch.einsum("nchw,oc->nohw", h, cell.widen.weight[:, :, 0, 0])))
    h = torch.cat([F.conv2d(h[:, c : c + 1], cell.depthwise.weight[c : c + 1], padding=2) for c in range(12)], 1)
    h = torch.einsum("nchw,oc->nohw", F.silu(norm(h)), cell.narrow.weight[:, :, 0, 0])
    grown = F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=True)
    torch.testing.assert_close(cell(x), cell.skip(grown) + 0.1 * cell.gate(norm(h)))
    plain = MakingCell(4).double()
    nn.init.zeros_(plain.norm4.weight)
    torch.testing.assert_close(plain(x) - x, 0.1 * plain.gate(torch.zeros_like(x)))
    assert plain.widen.out_channels == 24


def test_balance():
    kl = torch.tensor([[1.0, 3.0], [0.0, 0.0], [0.5, 0.5]])
    alphas = torch.tensor([1.0, 1.0, 2.0])
    weights = group_balance(kl, alphas)
    raw = torch.tensor([2.01, 0.01, 0.51 / 2])
    torch.testing.assert_close(weights, raw / raw.mean())
    torch.testing.assert_close(group_balance(kl.mean(1), alphas), weights)
    assert weights.mean().item() == pytest.approx(1.0)
    equal = group_balance(torch.full((3, 2), 0.7), torch.ones(3))
    torch.testing.assert_close(equal, torch.ones(3))  # the sum of equal groups is as it was
    torch.testing.assert_close(group_balance(torch.zeros(3, 2), torch.ones(3)), torch.ones(3))
    assert not group_balance(kl.requires_grad_(), alphas).requires_grad
    with pytest.raises(ValueError, match=r"group_kl \(L, N\) or \(L,\).*got \(3, 2\) and \(2,\)"):
        group_balance(kl, torch.ones(2))
    with pytest.raises(ValueError, match=r"got \(3, 0\)"):
        group_balance(kl[:, :0], alphas)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [((2, 4), [1, 1, 2, 2, 2, 2]), ((1,), [1]), ((3,), [1, 1, 1]), ((8, 1), [1] * 8 + [32]), ((1, 8), [2] + [1] * 8)],
)
def test_alphas(groups, expected):
    """For (8, 1): 1/8 and 4, so 1 and 32; for (1, 8): 1 and 4/8."""
    assert group_alphas(groups).tolist() == expected


def test_warm_up():
    assert kl_warmup(0, 1000) == 1e-4 == kl_warmup(0, 10)
    assert kl_warmup(160, 1000) == pytest.approx((160 - 0.1) / 300)
    assert kl_warmup(301, 1000) == 1.0 == kl_warmup(10**9, 1000)
    values = [kl_warmup(step, 50) for step in range(50)]
    assert values == sorted(values)
    for bad in ((0, 0), (0, 10, 0.0), (0, 10, 0.3, 2.0)):
        with pytest.raises(ValueError, match="for no warm-up take beta=1"):
            kl_warmup(*bad)


def test_spectral_sum_is_that_of_the_svd():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), LogNormConv2d(3, 4, 3), LogNormConv2d(4, 2, 1), nn.Conv2d(6, 6, 5, groups=6)]
    model = nn.Sequential(*layers, nn.Linear(2, 2)).double()
    with torch.no_grad():
        layers[1].log_length += 1.0
    penalty = SpectralSum(model, first_steps=200)
    assert len(penalty.stacks) == 3 and not list(penalty.parameters())
    used = [layers[0].weight, layers[1].normed_weight(), layers[2].normed_weight(), layers[3].weight]
    sigmas = [torch.linalg.svdvals(w.flatten(1))[0] for w in used]
    assert penalty().item() == pytest.approx(sum(sigmas).item(), rel=1e-4)
    (got,) = torch.autograd.grad(penalty(), layers[3].weight)
    (expected,) = torch.autograd.grad(torch.linalg.matrix_norm(layers[3].weight.flatten(1), 2), layers[3].weight)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert torch.autograd.grad(penalty(), layers[1].log_length)[0].abs().sum() > 0


def test_a_stack_is_its_layers_one_by_one():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(4)])
    together = SpectralSum(model, steps=2, first_steps=1)
    alone = [SpectralSum(layer, steps=2, first_steps=1) for layer in model]
    for _ in range(2):
        torch.testing.assert_close(together(), sum(part() for part in alone))
    still = together.eval()()
    torch.testing.assert_close(together(), still, rtol=0, atol=0)  # vectors rest in evaluation
    before = together.v0.clone()
    together.train()()
    assert not torch.equal(together.v0, before)


def test_spectral_sum_follows_training_and_may_be_called_twice():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3)
    penalty = SpectralSum(layer)
    (penalty() + penalty()).backward()  # vectors move in place between the calls
    assert layer.weight.grad.isfinite().all()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    start = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    for _ in range(3):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    end = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    assert end[0] < start[0] - 0.05 and end[-1] == pytest.approx(start[-1].item(), rel=0.05)
    nn.init.zeros_(layer.weight)
    penalty().backward()
    assert layer.weight.grad.isfinite().all()


def test_spectral_sum_leaves_frozen_layers_out_and_says_when_none_is_left():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    model[0].requires_grad_(False)
    assert SpectralSum(model)().item() == pytest.approx(model[1].weight.abs().item())
    with pytest.raises(ValueError, match="no Conv2d that trains in Linear; leave the term out"):
        SpectralSum(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="steps >= 1 and first_steps >= 0, got 0 and 40"):
        SpectralSum(model, steps=0)


def test_norm_gains():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(2), nn.BatchNorm2d(2, affine=False))
    model[0].weight.data = torch.tensor([1.0, -4.0, 2.0])
    total = norm_gain_sum(model)
    assert total.item() == 5.0
    total.backward()
    assert model[0].weight.grad.tolist() == [0.0, -1.0, 0.0]
    assert norm_gain_sum(nn.Linear(1, 1)).item() == 0.0


def test_borrowed_statistics_are_means_over_batches_and_go_back():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5)).eval()
    before = copy.deepcopy(model.state_dict())
    batches = [normal(3, 2, 2, 2, seed=s, dtype=torch.float32) for s in range(3)]
    queue = iter(batches)
    with sampling_statistics(model, lambda: model(next(queue)), steps=3):
        assert not model[0].training and not model[1].training
        means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
        widths = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
        torch.testing.assert_close(model[0].running_mean, means)
        torch.testing.assert_close(model[0].running_var, widths)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].momentum == 0.1
    with pytest.raises(RuntimeError, match="stop"), sampling_statistics(model, lambda: model(batches[0]), steps=1):
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="steps >= 1, got 0"), sampling_statistics(model, lambda: None, steps=0):
        pass


def test_configuration():
    paper = NVAE_CONFIGS["mnist"]
    assert paper.padded == (32, 32) and paper.groups == (5, 10) and paper.sides(0) == (4, 4)
    assert [paper.width(s) for s in (0, 1)] == [256, 128]
    assert NVAE_CONFIGS["small"].latent_size == 2 * 16 * 8 + 3 * 64 * 8 == 1792
    faces = NVAEConfig((3, 256, 256), adaptive_groups(16, 5, 4), 30, 20, pre_blocks=1)
    assert faces.latent_size == 6_005_760  # the post's count
    assert adaptive_groups(20, 3) == (5, 10, 20) and adaptive_groups(1, 3) == (1, 1, 1)
    odd = NVAEConfig((1, 5, 9), (1, 1), pre_blocks=1)
    assert odd.padded == (8, 12) and odd.sides(1) == (4, 6)
    for shape, groups, match in (
        ((8, 8), (1,), r"images \(C, H, W\), got shape \(8, 8\); for vectors take VAE"),
        ((1, 8, 8), (2, 0), r"got \(2, 0\); \(1,\) is a plain autoencoder"),
        ((1, 8, 8), (), r"groups must hold a number"),
    ):
        with pytest.raises(ValueError, match=match):
            NVAEConfig(shape, groups)
    with pytest.raises(ValueError, match="channels >= 2, pre_blocks >= 0"):
        NVAEConfig((1, 8, 8), channels=1)
    with pytest.raises(ValueError, match="numbers >= 1, got 0, 2 and 1"):
        adaptive_groups(0, 2)


def test_messages_of_normals():
    with pytest.raises(ValueError, match=r"means and then log-stds; got \(2, 3\)"):
        clamped_normal(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"prior and change of one shape, got \(1, 2\) and \(2, 2\)"):
        residual_normal(torch.zeros(1, 2), torch.zeros(2, 2))
    same = clamped_normal(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1\) and \(2, 1\)"):
        residual_log_ratio(torch.zeros(1, 1), torch.zeros(2, 1), same, same)
    with pytest.raises(ValueError, match="no identity to add; set down=True"):
        ReadingCell(4, 8)
    with pytest.raises(ValueError, match="from 4 to 8 channels has no identity to add; set up=True"):
        MakingCell(4, 8)


def _image(channels: int):
    return lambda dtype: (normal(4, channels, 4, 4, dtype=torch.float32).to(dtype),)


ROWS = [
    Row("LogNormConv2d", lambda: LogNormConv2d(3, 4, 3), _image(3), (4, 4, 4, 4)),
    Row("SqueezeExcitation", lambda: SqueezeExcitation(5), _image(5), (4, 5, 4, 4)),
    Row("ReadingCell", lambda: ReadingCell(4, 8, down=True), _image(4), (4, 8, 2, 2)),
    Row("MakingCell", lambda: MakingCell(4, 2, up=True, expansion=2), _image(4), (4, 2, 8, 8)),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_contract(row, check):
    check(row)
