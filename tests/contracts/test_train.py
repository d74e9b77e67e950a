"""What every stand-in for backward() promises: weights untouched, gradients added, nothing global moved."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import danlu.train
from danlu.train import (
    FGM,
    PGD,
    FreeLB,
    ManifoldMixup,
    MultiTask,
    Noise,
    capture,
    draw_mix,
    fgm_backward,
    fgm_output_backward,
    freelb_backward,
    multitask_backward,
    noise_backward,
    noise_output_backward,
    output_mixed,
    output_perturbed,
    perturbed,
    pgd_backward,
    pgd_output_backward,
)


class Net(nn.Module):
    """Embeddings and a linear layer: small, with everything an attack can aim at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 3)
        self.linear = nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.embed(ids)).mean(1))


IDS, LABEL = torch.tensor([[1, 2], [3, 1], [5, 5]]), torch.tensor([0, 1, 1])
Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Row:
    """backward(net, loss_fn) is the public name in use; epsilon=0 builds it switched off, which it must refuse."""

    name: str
    backward: Callable[..., Tensor]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def inside(context: Callable[..., Any], net: Net, loss_fn: Loss, epsilon: float = 0.5) -> Tensor:
    if not epsilon > 0:
        raise ValueError("epsilon must be > 0; a context manager takes any delta")
    weight = context is perturbed
    with context(net.embed.weight if weight else net.embed, torch.full((6, 3) if weight else (3, 2, 3), epsilon)):
        loss = loss_fn()
        loss.backward()
    return loss.detach()


def captured(net: Net, loss_fn: Loss, epsilon: float = 0.5) -> Tensor:
    if not epsilon > 0:
        raise ValueError("epsilon must be > 0; a capture has none")
    with capture(net, ["embed", "linear:in", "**:attention", ":locals.ids"], grad=True) as caught:
        loss = loss_fn()
        loss.backward()
    assert all(caught[name].grad.any() for name in ("embed:out", "linear:in"))
    return loss.detach()


def two_tasks(weighting: str, net: Net, loss_fn: Loss, epsilon: float = 0.5) -> Tensor:
    if not epsilon > 0:
        raise ValueError("epsilon must be > 0; a weighting of tasks has none")
    losses = [loss_fn(), loss_fn() / 2]
    if weighting == "accumulated":
        tasks = MultiTask(net.embed.weight)
        tasks.accumulate(losses)
        tasks.backward()
    else:
        multitask_backward(losses, net.embed.weight, weighting)
    return losses[0].detach()


def mixing(layers: str, net: Net, loss_fn: Loss, epsilon: float = 0.5) -> Tensor:
    if not epsilon > 0:
        raise ValueError("epsilon must be > 0; a mixture has none")
    if layers == "one":
        context = output_mixed(net.embed, draw_mix(3, 1.0, generator=seeded()))
    else:
        context = ManifoldMixup([net.embed, net.linear], generator=seeded()).mixing(LABEL)
    with context:
        loss = loss_fn()
    loss.backward()
    return loss.detach()


ROWS = [
    Row("fgm_backward", lambda net, fn, **k: fgm_backward(fn, net.embed.weight, **k)),
    Row("fgm_backward[both]", lambda net, fn, **k: fgm_backward(fn, net.embed.weight, mode="both", **k)),
    Row("fgm_backward[all weights]", lambda net, fn, **k: fgm_backward(fn, list(net.parameters()), **k)),
    Row("pgd_backward", lambda net, fn, **k: pgd_backward(fn, net.embed.weight, **k)),
    Row("noise_backward", lambda net, fn, **k: noise_backward(fn, net.embed.weight, generator=seeded(), **k)),
    Row("fgm_output_backward", lambda net, fn, **k: fgm_output_backward(fn, net.embed, **k)),
    Row("pgd_output_backward", lambda net, fn, **k: pgd_output_backward(fn, net.embed, **k)),
    Row("noise_output_backward", lambda net, fn, **k: noise_output_backward(fn, net.embed, generator=seeded(), **k)),
    Row("freelb_backward", lambda net, fn, **k: freelb_backward(fn, net.embed, generator=seeded(), **k)),
    Row("FGM", lambda net, fn, **k: FGM(net, **k).backward(fn)),
    Row("FGM[eval]", lambda net, fn, **k: FGM(net, attack_mode="eval", **k).backward(fn)),
    Row("PGD", lambda net, fn, **k: PGD(net, **k).backward(fn)),
    Row("Noise", lambda net, fn, **k: Noise(net, generator=seeded(), **k).backward(fn)),
    Row("FreeLB", lambda net, fn, **k: FreeLB(net, generator=seeded(), **k).backward(fn)),
    Row("multitask_backward", partial(two_tasks, "mgda")),
    Row("multitask_backward[pcgrad]", partial(two_tasks, "pcgrad")),
    Row("multitask_backward[primary]", partial(two_tasks, "primary")),
    Row("MultiTask", partial(two_tasks, "accumulated")),
    Row("perturbed", partial(inside, perturbed)),
    Row("capture", captured),
    Row("output_perturbed", partial(inside, output_perturbed)),
    Row("output_mixed", partial(mixing, "one")),
    Row("ManifoldMixup", partial(mixing, "several")),
]
rows = pytest.mark.parametrize("row", ROWS, ids=[r.name for r in ROWS])


def loss_of(net: nn.Module, scale: float = 1.0) -> Loss:
    return lambda: scale * nn.functional.cross_entropy(net(IDS).float(), LABEL)


def grads(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_every_public_name_has_a_row() -> None:
    public = {
        n
        for n in danlu.train.__all__
        if n.endswith(("_backward", "perturbed")) or n in ("FGM", "PGD", "Noise", "FreeLB", "ManifoldMixup")
    }
    assert public <= {row.name.split("[")[0] for row in ROWS}


@rows
def test_weights_come_back_to_the_bit_and_all_have_gradients(row: Row) -> None:
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    loss = row.backward(net, loss_of(net))
    assert loss.shape == () and not loss.requires_grad and loss.isfinite()
    assert all(torch.equal(a, p) for a, p in zip(before, net.parameters(), strict=True))
    assert len(grads(net)) == len(before)
    assert all(g.isfinite().all() and g.any() for g in grads(net))


@rows
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_weights_hooks_and_modes_come_back_after_an_exception(row: Row, failing: int) -> None:
    net, calls = Net(), []
    before = [p.detach().clone() for p in net.parameters()]

    def loss_fn() -> Tensor:
        calls.append(1)
        if len(calls) == failing:
            raise KeyError
        return loss_of(net)()

    try:
        row.backward(net, loss_fn)
        assert len(calls) < failing
    except KeyError:
        assert all(torch.equal(a, p) for a, p in zip(before, net.parameters(), strict=True))
    assert torch.is_grad_enabled()
    assert all(m.training and not m._forward_hooks for m in net.modules())
    assert not any(p._backward_hooks for p in net.parameters())


@rows
def test_it_adds_to_the_gradients_that_are_there(row: Row) -> None:
    once, twice = Net(), Net()
    row.backward(once, loss_of(once))
    for _ in range(2):
        row.backward(twice, loss_of(twice))
    for a, b in zip(grads(once), grads(twice), strict=True):
        torch.testing.assert_close(2 * a, b)


@rows
def test_a_scaled_loss_gives_scaled_gradients(row: Row) -> None:
    plain, scaled = Net(), Net()
    row.backward(plain, loss_of(plain))
    row.backward(scaled, loss_of(scaled, 1024.0))
    for a, b in zip(grads(plain), grads(scaled), strict=True):
        torch.testing.assert_close(1024.0 * a, b, rtol=1e-5, atol=1e-4)


@rows
def test_nothing_global_moves(row: Row) -> None:
    net, state = Net(), None
    state = torch.get_rng_state()
    row.backward(net, loss_of(net))
    assert torch.equal(torch.get_rng_state(), state), "the global random stream moved; take generator="
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


@rows
def test_bfloat16_autocast_comes_close(row: Row) -> None:
    exact, net = Net(), Net()

    def loss_fn() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_of(net)()

    expected = row.backward(exact, loss_of(exact))
    torch.testing.assert_close(row.backward(net, loss_fn), expected, rtol=0.03, atol=0.03)
    assert all(g.dtype == torch.float32 for g in grads(net))


@rows
def test_compiled_models_are_perturbed_too(row: Row) -> None:
    """The compiled graph must read the moved weight, not a constant, and run the hook."""
    plain, net = Net(), Net()
    expected = row.backward(plain, loss_of(plain))
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(2):
        net.zero_grad()
        torch.testing.assert_close(row.backward(net, loss_of(compiled)), expected)
        for a, b in zip(grads(plain), grads(net), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(loss_of(compiled)(), loss_of(plain)())  # nothing of the attack stays behind


@rows
@pytest.mark.parametrize("epsilon", [0.0, -0.5])
def test_epsilon_must_be_positive(row: Row, epsilon: float) -> None:
    net = Net()
    with pytest.raises(ValueError, match="epsilon must be > 0"):
        row.backward(net, loss_of(net), epsilon=epsilon)
