"""Tangent kernel: against the Jacobian by autograd, ghosts against explicit gradients, closed form of one layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.probe import tangent_kernel

D = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def by_autograd(model, x1, x2):
    """Oracle: one backward pass for every output of every row, and products by hand."""

    def jacobian(x):
        lines = []
        for i in range(len(x[0])):
            out = model(*(t[i : i + 1] for t in x)).reshape(-1)
            parameters = [p for p in model.parameters() if p.requires_grad]
            for value in out:
                g = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                given = zip(parameters, g, strict=True)
                lines.append(torch.cat([torch.zeros(p.numel()) if q is None else q.flatten() for p, q in given]))
        return torch.stack(lines).reshape(len(x[0]), -1, len(lines[0]))

    return torch.einsum("nap,mbp->nmab", jacobian(x1), jacobian(x2))


class Words(nn.Module):
    """Embeddings, a layer over the words of a text, a layer used twice, a norm, dropout, and attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.word = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4, bias=False)
        self.norm = nn.LayerNorm(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.head.bias.requires_grad_(False)

    def forward(self, ids, mask):
        h = self.embed(ids)
        h = h + self.attend(h, h, h, need_weights=False)[0]
        h = self.twice(torch.tanh(self.twice(self.norm(self.word(h)))))
        return self.head(self.drop((h * mask[..., None]).sum(1)))


def words():
    torch.manual_seed(0)
    ids = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(1))
    return Words().double(), (ids, (ids != 0).double())


def mlp(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


@pytest.mark.parametrize("ghost", [False, True])
def test_equals_the_jacobian_times_itself(ghost):
    model, x, y = mlp(), seeded(5, 4), seeded(3, 4, seed=1)
    torch.testing.assert_close(tangent_kernel(model, x, y, ghost), by_autograd(model, (x,), (y,)), rtol=1e-10, atol=0)
    torch.testing.assert_close(tangent_kernel(model, x, ghost=ghost), by_autograd(model, (x,), (x,)))


@pytest.mark.parametrize("ghost", [False, True])
def test_attention_norms_tied_calls_and_embeddings(ghost):
    model, x = words()
    model.train()
    got = tangent_kernel(model, x, tuple(t[:2] for t in x), ghost)
    assert model.training and model.drop.training and not any(m._forward_hooks for m in model.modules())
    torch.testing.assert_close(got, by_autograd(model.eval(), x, tuple(t[:2] for t in x)), rtol=1e-10, atol=1e-12)


def test_ghosts_equal_explicit_gradients():
    model, x = words()
    explicit, ghost = tangent_kernel(model, x), tangent_kernel(model, x, ghost=True)
    assert (explicit - ghost).abs().max() < 1e-10
    assert explicit.abs().max() > 1


def test_a_weight_that_two_modules_share_is_no_ghost():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.embed(ids).sum(1)))

    torch.manual_seed(0)
    model, ids = Tied().double(), torch.tensor([[0, 1], [2, 2], [4, 1]])
    torch.testing.assert_close(tangent_kernel(model, ids, ghost=True), by_autograd(model, (ids,), (ids,)))


def test_one_linear_layer_has_a_closed_form():
    x = seeded(4, 3)
    kernel = tangent_kernel(nn.Linear(3, 2).double(), x)
    expected = (x @ x.T + 1)[:, :, None, None] * torch.eye(2, dtype=D)
    torch.testing.assert_close(kernel, expected)
    one = tangent_kernel(nn.Linear(3, 1).double(), x)
    torch.testing.assert_close(one, x @ x.T + 1)
    torch.testing.assert_close(tangent_kernel(nn.Linear(3, 1, bias=False).double(), x), x @ x.T)


def test_symmetric_and_positive_semidefinite():
    kernel = tangent_kernel(mlp(), seeded(5, 4))
    matrix = kernel.permute(0, 2, 1, 3).reshape(15, 15)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-10


@pytest.mark.parametrize("ghost", [False, True])
def test_blocks_of_rows_change_nothing(ghost):
    model, x = words()
    whole = tangent_kernel(model, x, tuple(t[:5] for t in x), ghost)
    torch.testing.assert_close(tangent_kernel(model, x, tuple(t[:5] for t in x), ghost, room=1200), whole)
    torch.testing.assert_close(tangent_kernel(model, x, ghost=ghost, room=1200)[:, :5], whole)


def test_a_small_step_moves_the_outputs_by_it():
    model, x, y = mlp(1), seeded(6, 4), seeded(6, 1, seed=2)
    kernel = tangent_kernel(model, x)
    before = model(x).detach()
    (F.mse_loss(model(x), y, reduction="sum") / 2).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-6 * p.grad
    torch.testing.assert_close((model(x).detach() - before) / 1e-6, -kernel @ (before - y), rtol=1e-4, atol=1e-4)


def test_frozen_parameters_are_left_out():
    model, x = mlp(1), seeded(3, 4)
    model[0].requires_grad_(False)
    hidden = torch.tanh(model[0](x))
    torch.testing.assert_close(tangent_kernel(model, x), hidden @ hidden.T + 1)
    torch.testing.assert_close(tangent_kernel(model, x, ghost=True), hidden @ hidden.T + 1)


@pytest.mark.parametrize("ghost", [False, True])
def test_half_precision_gives_float32(ghost):
    model, x = mlp(), seeded(3, 4)
    exact = tangent_kernel(model, x)
    got = tangent_kernel(model.bfloat16(), x.bfloat16(), ghost=ghost)
    assert got.dtype == torch.float32
    assert ((got - exact).abs() / exact.abs().max()).max() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        inside = tangent_kernel(mlp().float(), x.float(), ghost=ghost)
    torch.testing.assert_close(inside, exact.float(), rtol=1e-4, atol=1e-4)


def test_messages():
    with pytest.raises(ValueError, match=r"at least one row on each side, got 0 and 3"):
        tangent_kernel(mlp(), torch.zeros(0, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"no parameter of the model requires a gradient"):
        tangent_kernel(mlp().requires_grad_(False), seeded(2, 4))
    with pytest.raises(ValueError, match=r"room must be >= 1, the numbers held of a block of rows; got 0"):
        tangent_kernel(mlp(), seeded(2, 4), room=0)
