"""Recorded paths: momentum and Adam in reverse time against forward sums by hand, the path kernel, storage, replays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.probe import PathKernel, RecordedPath, example_gradients, flat_parameters, path_jacobian, tangent_kernel

D = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def mlp(outputs=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


X, Y, T = seeded(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1]), seeded(5, 4, seed=1)
BATCHES = [[0, 1, 2], [3, 4], [1, 5, 6], [0, 7], [2, 3, 4], [6, 1]]


def train(path, batches=BATCHES, x=X, y=Y, weight=None, after_backward=lambda: None, after_step=lambda: None):
    for rows in batches:
        path.optimizer.zero_grad()
        path.backward(x[rows], y[rows], torch.as_tensor(rows), weight)
        after_backward()
        path.step()
        after_step()
    return path


def recorded(optimizer, model=None, **settings):
    model = mlp() if model is None else model
    return RecordedPath(model, F.cross_entropy, optimizer(model.parameters()), 8, **settings)


def forward_account(optimizer, nodes=6):
    """Oracle: push what every example has put into the moments forward, one vector an example, no reverse time."""
    model = mlp()
    optimizer = optimizer(model.parameters())
    group = optimizer.param_groups[0]
    size = len(flat_parameters(model))
    held = torch.zeros(8 + 1, size, dtype=D)  # parts of the moment by example; the last row is weight decay
    account = torch.zeros(5, 3, 9, dtype=D)
    for step, rows in enumerate(BATCHES):
        before = flat_parameters(model)
        _, g = example_gradients(model, F.cross_entropy, X[rows], Y[rows])
        optimizer.zero_grad()
        F.cross_entropy(model(X[rows]), Y[rows]).backward()
        optimizer.step()
        new = torch.zeros_like(held).index_add(0, torch.tensor(rows), g)
        moves = torch.zeros_like(held)
        if isinstance(optimizer, torch.optim.SGD):
            new[8] = group["weight_decay"] * before
            mu, rest = group["momentum"], 1 - group["dampening"] if step else 1.0
            held = mu * held + rest * new
            moves = -group["lr"] * (new + mu * held if group["nesterov"] else held)
        else:
            apart = isinstance(optimizer, torch.optim.AdamW)
            if not apart:
                new[8] = group["weight_decay"] * before
            beta1, beta2 = group["betas"]
            held = beta1 * held + (1 - beta1) * new
            name = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
            second = torch.cat([optimizer.state[p][name].flatten() for p in model.parameters()])
            root = (second / (1 - beta2 ** (step + 1))).sqrt() + group["eps"]
            moves = -group["lr"] / (1 - beta1 ** (step + 1)) * held / root
            if apart:
                moves[8] -= group["lr"] * group["weight_decay"] * before
        after = flat_parameters(model)
        torch.testing.assert_close(moves.sum(0), after - before, rtol=1e-9, atol=1e-12)
        account += path_jacobian(model, before, after, T, nodes) @ moves.T
    return account


OPTIMIZERS = {
    "plain": lambda p: torch.optim.SGD(p, 0.3),
    "plain decay": lambda p: torch.optim.SGD(p, 0.3, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "momentum decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "dampening": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
    "adam": lambda p: torch.optim.Adam(p, 0.02),
    "adam decay": lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.2),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.02, betas=(0.8, 0.6), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reverse_time_equals_forward_sums(name):
    path = train(recorded(OPTIMIZERS[name]))
    found, expected = path.explain(T, nodes=6), forward_account(OPTIMIZERS[name])
    torch.testing.assert_close(found.contributions, expected[..., :8], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.decay, expected[..., 8], rtol=1e-9, atol=1e-12)
    assert found.error < 1e-8
    assert (found.decay.abs().max() > 1e-3) == ("decay" in name or name in ("nesterov", "adamw"))


def test_without_momentum_it_is_the_online_account():
    model = mlp()
    online = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8, nodes=2)
    expected = train(online).result()
    found = train(recorded(OPTIMIZERS["plain"])).explain(T, nodes=2)
    for name in ("contributions", "before", "after", "moved"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_momentum_at_a_practical_rate_is_accounted_for_with_three_nodes():
    model = mlp()
    path = RecordedPath(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), 8)
    found = train(path, [range(8)] * 40).explain(T, nodes=3)
    assert found.error < 1e-6


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw"])
def test_schedules_of_rate_and_momentum_and_clipping(name):
    path = recorded(OPTIMIZERS[name])
    schedule = torch.optim.lr_scheduler.OneCycleLR(path.optimizer, 0.05, total_steps=len(BATCHES))
    clip = lambda: nn.utils.clip_grad_norm_(path.model.parameters(), 0.1)  # noqa: E731
    found = train(path, after_backward=clip, after_step=schedule.step).explain(T, nodes=8)
    assert found.error < 1e-9
    assert found.unattributed.abs().max() < 1e-11
    assert found.contributions.abs().max() > 1e-3


def test_an_example_goes_on_working_after_its_step():
    path = train(recorded(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)), [[0], [1], [2], [3]])
    few = train(recorded(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)), [[0]])
    longer, shorter = path.explain(T).contributions[..., 0], few.explain(T).contributions[..., 0]
    assert longer.norm() > 2 * shorter.norm()
    assert not path.explain(T).contributions[..., 4:].any()


def test_frozen_groups_and_parameters_without_a_gradient():
    model = mlp()
    model[0].weight.requires_grad_(False)
    path = RecordedPath(model, F.cross_entropy, torch.optim.SGD([*model[2].parameters()], 0.1, momentum=0.9), 8)
    start = model[0].bias.clone()

    def drop():
        if len(path) in (2, 3):
            model[2].bias.grad = None  # torch then leaves the bias and its momentum alone

    found = train(path, after_backward=drop).explain(T)
    assert torch.equal(start, model[0].bias)
    assert found.error < 1e-12  # linear in what moves


def test_the_path_kernel_and_its_coefficients():
    """A = sum_b (-l'_b) K_b for one step; on a path of a linear model a_i is the mean of -l' by hand."""
    path = train(recorded(OPTIMIZERS["plain"]), [[0, 1, 2]])
    found = path.explain(T, kernel=True)
    slopes = torch.softmax(mlp()(X[:3]), 1).detach() - F.one_hot(Y[:3], 3)
    expected = -torch.einsum("mcbd,bd->mcb", found.kernel[:, :, :3], slopes)
    torch.testing.assert_close(found.contributions[..., :3], expected)
    assert not found.kernel[:, :, 3:].any()
    with pytest.raises(ValueError, match="with 3 outputs the path kernel is a matrix"):
        found.coefficients()

    torch.manual_seed(0)
    line, y = nn.Linear(4, 1).double(), seeded(8, 1, seed=3)
    path = RecordedPath(line, lambda f, t: (f - t).square().sum() / 2, torch.optim.SGD(line.parameters(), 0.05), 8)
    slopes = []
    for _ in range(6):
        slopes.append((line(X) - y).detach()[:, 0])
        train(path, [range(7)], X, y, 1.0)
    found = path.explain(T, kernel=True)
    torch.testing.assert_close(found.kernel[:, 0, :7, 0], 6 * 0.05 * (T @ X[:7].T + 1))
    torch.testing.assert_close(found.kernel_size, found.kernel.abs())
    a = found.coefficients()
    torch.testing.assert_close(a[:, :7], -torch.stack(slopes).mean(0)[:7].expand(5, 7))
    assert a[:, 7].isnan().all()


def test_coefficients_are_withheld_where_the_kernel_cancels():
    path = recorded(lambda p: torch.optim.SGD(p, 0.5), mlp(1))
    path.loss_fn = nn.BCEWithLogitsLoss()
    found = train(path, [range(8)] * 10, y=(Y > 0).double()[:, None]).explain(T, kernel=True)
    assert (found.kernel_size >= found.kernel.abs() - 1e-12).all()
    share = found.kernel[:, 0, :, 0].abs() / found.kernel_size[:, 0, :, 0]
    for least in (0.0, 0.9, 0.999):
        assert torch.equal(found.coefficients(least).isnan(), ~(share > least))
    assert found.coefficients(0.999).isnan().any()
    torch.testing.assert_close(found.coefficients(0.0) * found.kernel[:, 0, :, 0], found.contributions[:, 0])


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_steps_on_disk_are_those_in_memory(name, tmp_path):
    here = train(recorded(OPTIMIZERS[name])).explain(T)
    path = train(recorded(OPTIMIZERS[name], folder=tmp_path / "steps"))
    assert len(list((tmp_path / "steps").iterdir())) == len(path) == 6
    torch.testing.assert_close(path.explain(T).contributions, here.contributions, rtol=0, atol=0)
    with pytest.raises(ValueError, match="holds the steps of another path"):
        recorded(OPTIMIZERS[name], folder=tmp_path / "steps")


def test_rows_in_pieces_and_rows_alone(monkeypatch):
    path, target = train(recorded(OPTIMIZERS["adam"])), torch.tensor([0, 1, 2, 1, 0])
    whole = path.explain(T, target, kernel=True)
    alone = [path.explain(T[i : i + 1], target[i : i + 1], kernel=True) for i in range(5)]
    monkeypatch.setattr("danlu.probe._path_steps.NUMBERS", 51 * 2)
    parts = path.explain(T, target, kernel=True)
    assert whole.kernel.shape == (5, 1, 8, 3)
    for name in ("contributions", "decay", "kernel", "kernel_size", "moved"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
        torch.testing.assert_close(torch.cat([getattr(a, name) for a in alone]), getattr(whole, name))


def test_losses_tuples_and_accumulated_batches():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

        def forward(self, x, y):
            return self.b(torch.tanh(self.a(x * y)))

    torch.manual_seed(0)
    model = Pair()
    path = RecordedPath(model, F.cross_entropy, torch.optim.Adam(model.parameters(), 0.02), 8)
    for _ in range(3):
        path.optimizer.zero_grad()
        for rows in ([0, 1, 2], [3, 4, 5, 6, 7]):
            path.backward((X[rows], X[rows] + 1), Y[rows], torch.tensor(rows), 1 / 8)
        path.step()
    found = path.explain((T, T), torch.tensor([0, 1, 2, 1, 0]), nodes=6)
    assert found.contributions.shape == (5, 1, 8)
    assert found.error < 1e-8


def test_masks_modes_and_autocast_of_then_are_taken_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double().train()
    path = RecordedPath(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3, momentum=0.9), 8)
    model.eval()
    train(path, BATCHES[:2])
    model.train()
    train(path, BATCHES[2:])
    model.eval()
    state = torch.get_rng_state()
    found = path.explain(T, nodes=2)
    assert found.error < 1e-12  # both layers linear: masks of another draw would show
    assert torch.equal(state, torch.get_rng_state()) and not model.training

    small = mlp().float()
    path = RecordedPath(small, F.cross_entropy, torch.optim.SGD(small.parameters(), 0.3, momentum=0.9), 8)
    with torch.autocast("cpu", torch.bfloat16):
        train(path, x=X.float())
    found = path.explain(T.float())
    assert found.unattributed.abs().max() < 1e-5  # gradients of float32 would miss by 1e-3


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_go_one_by_one(kind):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = kind(4, 3, batch_first=True).double(), nn.Linear(3, 3).double()
            self.spare = nn.Parameter(torch.ones(1, dtype=D))  # has no part in the outputs

        def forward(self, x):
            return self.head(self.layer(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Reader(), seeded(8, 2, 4)
    _, gradients = example_gradients(model, F.cross_entropy, x, Y)
    F.cross_entropy(model(x), Y).backward()
    whole = torch.cat([torch.zeros(1) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradients.sum(0), whole)
    path = RecordedPath(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.2, momentum=0.9), 8)
    found = train(path, x=x).explain(x[:3], kernel=True)
    assert found.error < 1e-6 and found.kernel.shape == (3, 3, 8, 3)
    kernel = tangent_kernel(model, x[:2], ghost=True)
    torch.testing.assert_close(kernel, tangent_kernel(model, x[:2]))
    torch.testing.assert_close(kernel[0, 1, 2, 0], kernel[1, 0, 0, 2])


def test_batches_may_come_in_a_buffer_that_is_used_again():
    path, x, y = recorded(OPTIMIZERS["momentum"]), torch.zeros(2, 4, dtype=D), torch.zeros(2, dtype=torch.int64)
    for rows in ([0, 1], [2, 3], [4, 5]):
        x.copy_(X[rows])
        y.copy_(Y[rows])
        path.optimizer.zero_grad()
        path.backward(x, y, torch.tensor(rows))
        path.step()
    whole = train(recorded(OPTIMIZERS["momentum"]), [[0, 1], [2, 3], [4, 5]]).explain(T)
    torch.testing.assert_close(path.explain(T).contributions, whole.contributions)


def test_parameters_set_from_outside_are_told():
    path = train(recorded(OPTIMIZERS["momentum"]), BATCHES[:3])
    with torch.no_grad():
        path.model[2].bias.add_(0.3)
    found = train(path, BATCHES[3:]).explain(T, nodes=8)
    assert found.quadrature_error.abs().max() < 1e-6
    torch.testing.assert_close(found.unattributed, torch.full_like(found.unattributed, 0.3), rtol=0, atol=1e-6)


def test_what_older_gradients_still_move_is_told():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    found = train(RecordedPath(model, F.cross_entropy, optimizer, 8)).explain(T, nodes=8)
    assert found.unattributed.abs().max() > 1e-3 and found.quadrature_error.abs().max() < 1e-8


def test_a_path_of_no_steps():
    found = recorded(OPTIMIZERS["adam"]).explain(T, kernel=True)
    assert not found.contributions.any() and found.error == 0 and found.kernel is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: recorded(lambda p: torch.optim.RMSprop(p)),
            r"path of RMSprop cannot be attributed.*SGD, Adam and AdamW",
        ),
        (lambda: recorded(lambda p: torch.optim.Adam(p, maximize=True)), "maximize=True climbs"),
        (lambda: recorded(OPTIMIZERS["adam"]).explain(T[:0]), "at least one"),
        (lambda: recorded(OPTIMIZERS["adam"]).explain(T, nodes=-2), "nodes must be a whole number"),
        (lambda: recorded(OPTIMIZERS["adam"]).explain(T, tolerance=-1.0), "tolerance must be > 0"),
        (lambda: recorded(OPTIMIZERS["adam"]).step(), r"step\(\) needs a backward"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
