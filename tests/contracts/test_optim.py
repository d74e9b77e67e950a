"""What everything in danlu.optim promises, a row for each public name: it leaves the path of training alone."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import safetensors.torch
import torch
from torch import nn

import danlu.optim
from danlu.optim import (
    EGDD,
    EMA,
    LAMB,
    Adafactor,
    Adam,
    GradientAccumulation,
    LayerDecay,
    Lion,
    Lookahead,
    StepSizeScale,
    Tiger,
    decay_from_half_life,
    half_life,
    param_groups,
    piecewise_linear,
)


@dataclass(frozen=True)
class Row:
    """A public name as it stands in a loop: attach(model) returns the optimizer, and what follows its steps, if any."""

    name: str
    attach: Callable[[nn.Module], tuple[torch.optim.Optimizer, object]]
    plain: Callable[[nn.Module], torch.optim.Optimizer] = lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def with_ema(**options: object) -> Callable[[nn.Module], tuple[torch.optim.Optimizer, object]]:
    def attach(m: nn.Module) -> tuple[torch.optim.Optimizer, object]:
        optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
        return optimizer, EMA(m, optimizer=optimizer, **options)  # type: ignore[arg-type]

    return attach


def with_schedule(m: nn.Module) -> tuple[torch.optim.Optimizer, object]:
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, piecewise_linear({0: 1}))


def with_step_size_scale(m: nn.Module) -> tuple[torch.optim.Optimizer, object]:
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
    return optimizer, StepSizeScale(optimizer, bounds=(1.0, 1.0))


def momentum(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9)


def with_groups(rule: float | LayerDecay) -> Callable[[nn.Module], tuple[torch.optim.Optimizer, object]]:
    return lambda m: (torch.optim.AdamW(param_groups(m, 0.01, {"": rule}, 0.01, no_decay=None)), None)


def with_lookahead(m: nn.Module) -> tuple[torch.optim.Optimizer, object]:
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
    return optimizer, Lookahead(optimizer, steps=2, alpha=1.0)


def accumulated(m: nn.Module) -> torch.optim.Optimizer:
    return GradientAccumulation(torch.optim.AdamW(m.parameters(), lr=0.01), steps=1)  # type: ignore[return-value]


def capped(m: nn.Module) -> torch.optim.Optimizer:
    return Adafactor(m.parameters(), lr=None, max_relative_step=0.01, min_dim_size_to_factor=1)


def signs(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(m.parameters(), lr=0.01, betas=(0.0, 0.0), eps=1e-20)  # g / |g|


class TigerByHand(torch.optim.SGD):
    """Half the rate for vectors, the rate times the RMS for matrices."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            m = self.state[p].get("m", torch.zeros_like(p)) * 0.965 + 0.035 * p.grad
            self.state[p]["m"] = m
            p -= 0.005 * m.sign() if p.ndim < 2 else 0.01 * p.square().mean().sqrt() * (m.sign() + 0.01 * p)


ROWS = [
    Row("EMA", with_ema(decay=0.9)),
    Row("EMA[zero]", with_ema(decay=0.9, init="zero")),
    Row("EMA[warmup]", with_ema(warmup=True)),
    Row("EMA[buffers]", with_ema(buffers=True)),
    Row("decay_from_half_life", with_ema(decay=decay_from_half_life(5))),
    Row("half_life", with_ema(decay=1 - 1 / half_life(0.9))),
    Row("param_groups", with_groups(1.0)),
    Row("LayerDecay", with_groups(LayerDecay(1.0, r"(\d)"))),
    Row("piecewise_linear", with_schedule),
    Row("EGDD", lambda m: (EGDD(m.parameters(), 0.01, gain_lr=0, scale_lr=0), None), momentum),
    Row(
        "EGDD[bounds]", lambda m: (EGDD(m.parameters(), 0.01, gain_bounds=(1, 1), scale_bounds=(1, 1)), None), momentum
    ),
    Row("StepSizeScale", with_step_size_scale),
    Row("Adam", lambda m: (Adam(m.parameters(), 0.01, eps=1e-8, weight_decay=0.01), None)),
    Row("Adam[lazy]", lambda m: (Adam(m.parameters(), 0.01, eps=1e-8, weight_decay=0.01, lazy=True), None)),
    Row("LAMB", lambda m: (LAMB(m.named_parameters(), 0.01, eps=1e-8, exclude_from_layer_adaptation=("",)), None)),
    Row("Lion", lambda m: (Lion(m.parameters(), 0.01, (0.0, 0.0), 0.01), None), signs),
    Row("Tiger", lambda m: (Tiger(m.parameters(), 0.01), None), lambda m: TigerByHand(m.parameters(), 0.01)),
    Row("Adafactor", lambda m: (capped(m), None), lambda m: torch.optim.Adafactor(m.parameters(), 0.01)),
    Row("GradientAccumulation", lambda m: (accumulated(m), None)),
    Row("Lookahead", with_lookahead),
]
# What asks for another loop (values instead of gradients, weights >= 0, rows of length 1) keeps these promises in its
# own tests.
OTHER_LOOP = {
    "ExponentiatedGradient",
    "SphereSGD",
    "ZerothOrder",
    "exponentiated_gradient_step",
    "normalize_rows_",
    "zeroth_order_backward",
}
rows = pytest.mark.parametrize("row", ROWS, ids=[r.name for r in ROWS])


def train(m: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[torch.Tensor]:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).to(next(m.parameters()).dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        m(x).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in m.parameters()]


def test_every_public_name_has_a_row() -> None:
    assert set(danlu.optim.__all__) <= {row.name.split("[")[0] for row in ROWS} | OTHER_LOOP


@rows
def test_the_optimizers_path_is_that_of_a_plain_loop(row: Row) -> None:
    """Each row is set so that it asks for nothing: factor 1, or an average beside the weights."""
    plain, other = model(), model()
    expected = train(plain, row.plain(plain))
    got = train(other, row.attach(other)[0])
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@rows
def test_attaching_changes_no_weight_and_nothing_global(row: Row) -> None:
    m = model()
    before, state = [p.detach().clone() for p in m.parameters()], torch.get_rng_state()
    row.attach(m)
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


@rows
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_train(row: Row, dtype: torch.dtype) -> None:
    m = model(dtype)
    assert all(p.isfinite().all() and p.dtype == dtype for p in train(m, row.attach(m)[0]))


@rows
def test_state_survives_saving_and_loading(row: Row, tmp_path: object) -> None:
    """Four steps, save, four steps equal the eight steps of a run that was never interrupted."""
    whole, first, second = model(), model(), model()
    expected = train(whole, (attached := row.attach(whole))[0], 8)
    optimizer, follower = row.attach(first)
    train(first, optimizer, 4)
    other, other_follower = row.attach(second)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(optimizer.state_dict())
    if isinstance(follower, EMA):
        safetensors.torch.save_file(follower.state_dict(), f"{tmp_path}/state.safetensors")
        other_follower.load_state_dict(safetensors.torch.load_file(f"{tmp_path}/state.safetensors"))  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(expected, train(second, other, 4), strict=True))
    if isinstance(other_follower, EMA) and isinstance(attached[1], EMA):
        assert all(torch.equal(other_follower.averages()[n], a) for n, a in attached[1].averages().items())
