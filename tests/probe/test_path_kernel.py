"""Path kernel online: closed forms, exact reconstruction, quadrature, plain loops of anybody, refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.data import load_digits
from danlu.probe import PathKernel, RecordedPath, example_gradients, flat_parameters, path_jacobian, tangent_kernel

D = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def mlp(outputs=3, seed=0, inputs=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


X, Y = seeded(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
T = seeded(5, 4, seed=1)


def descend(path, x, y, batches, weight=None):
    for rows in batches:
        path.optimizer.zero_grad()
        path.backward(x[rows], y[rows], torch.as_tensor(rows), weight)
        path.step()
    return path.result()


def half_square(outputs, target):
    return (outputs - target).square().sum() / 2


def minibatches(steps, size=3, total=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(total, generator=generator)[:size].tolist() for _ in range(steps)]


# Closed forms


@pytest.mark.parametrize("nodes", [0, 1, 4])
def test_linear_regression_has_a_closed_form(nodes):
    """A_i(x) = K(x, x_i) sum_k eta [(I - eta K)^k (y - f_0)]_i, exact already at the left end."""
    x, y, test, eta, steps = seeded(5, 3), seeded(5, 1, seed=1), seeded(4, 3, seed=2), 0.05, 30
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    start = model(x).detach()
    path = PathKernel(model, half_square, torch.optim.SGD(model.parameters(), eta), test, 5, nodes=nodes)
    found = descend(path, x, y, [range(5)] * steps, 1.0)
    K, rest, total = x @ x.T, (y - start)[:, 0], torch.zeros(5, dtype=D)
    for _ in range(steps):
        total, rest = total + eta * rest, rest - eta * K @ rest
    torch.testing.assert_close(found.contributions[:, 0], (test @ x.T) * total, rtol=1e-11, atol=1e-13)
    assert found.residual.abs().max() < 1e-13


def test_two_linear_layers_are_exact_with_one_node():
    """f is a polynomial of degree 2 along a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    y = seeded(8, 1, seed=3)
    errors = []
    for nodes in (0, 1):
        own = copy.deepcopy(model)
        path = PathKernel(own, half_square, torch.optim.SGD(own.parameters(), 0.02), T, 8, nodes=nodes)
        errors.append(descend(path, X, y, [range(8)] * 12, 1.0).residual.abs().max().item())
    assert errors[0] > 1e-2
    assert errors[1] < 1e-12


def test_at_zero_training_loss_the_contributions_are_the_targets():
    y = seeded(3, 1, seed=4)
    model = mlp(1)
    path = PathKernel(model, half_square, torch.optim.SGD(model.parameters(), 0.1), X[:3], 3)
    found = descend(path, X[:3], y, [range(3)] * 80, 1.0)
    assert (model(X[:3]) - y).abs().max() < 1e-3
    torch.testing.assert_close(found.contributions.sum(2), y - found.before, rtol=0, atol=2e-3)


def test_a_wide_network_is_kernel_regression():
    """NTK limit: K_0 stays, so A is that of a linear model with the kernel K_0."""
    width, steps = 2048, 40
    torch.manual_seed(0)
    hidden, out = nn.Linear(3, width, bias=False), nn.Linear(width, 1, bias=False)
    model = nn.Sequential(hidden, nn.Tanh(), out).double()
    with torch.no_grad():
        hidden.weight.normal_()
        out.weight.normal_().mul_(width**-0.5)
    x, y, test = seeded(4, 3), seeded(4, 1, seed=1), seeded(3, 3, seed=2)
    K, k = tangent_kernel(model, x), tangent_kernel(model, test, x)
    eta = (0.5 / torch.linalg.eigvalsh(K)[-1]).item()
    rest = (y - model(x).detach())[:, 0]
    path = PathKernel(model, half_square, torch.optim.SGD(model.parameters(), eta), test, 4, nodes=2)
    found = descend(path, x, y, [range(4)] * steps, 1.0).contributions[:, 0]
    total = torch.zeros(4, dtype=D)
    for _ in range(steps):
        total, rest = total + eta * rest, rest - eta * K @ rest
    expected = k * total
    assert (found - expected).norm() < 0.05 * expected.norm()


# Reconstruction


def test_every_contribution_is_the_sum_by_hand():
    """Left end, cross-entropy, one Jacobian and one loss gradient at a time by autograd."""
    model, lr = mlp(), 0.3
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr), T, 8, nodes=0)
    batches, expected = minibatches(3), torch.zeros(5, 3, 8, dtype=D)
    shadow = copy.deepcopy(model)
    for rows in batches:
        parameters = list(shadow.parameters())
        grads = {i: torch.autograd.grad(F.cross_entropy(shadow(X[i : i + 1]), Y[i : i + 1]), parameters) for i in rows}
        for j in range(5):
            for a in range(3):
                own = torch.autograd.grad(shadow(T[j : j + 1])[0, a], parameters)
                for i in rows:
                    product = sum((g * h).sum() for g, h in zip(own, grads[i], strict=True))
                    expected[j, a, i] -= lr / 3 * product
        with torch.no_grad():
            for n, p in enumerate(parameters):
                p -= lr / 3 * sum(g[n] for g in grads.values())
    found = descend(path, X, Y, batches)
    torch.testing.assert_close(flat_parameters(model), flat_parameters(shadow))
    torch.testing.assert_close(found.contributions, expected)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_reconstruction_of_minibatch_sgd_with_schedule_decay_and_clipping(decay):
    model = mlp()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.3, "weight_decay": decay}, {"params": model[2].parameters()}], lr=0.1
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    path = PathKernel(model, F.cross_entropy, optimizer, T, 8, nodes=6)
    for rows in minibatches(15):
        optimizer.zero_grad()
        path.backward(X[rows], Y[rows], torch.tensor(rows))
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.2) > 0.2
        path.step()
        schedule.step()
    found = path.result()
    assert found.error < 1e-9
    assert found.unattributed.abs().max() < 1e-12
    assert (found.decay.abs().max() > 1e-2) == bool(decay)
    torch.testing.assert_close(found.after, model(T).detach())
    assert found.trusted() is found and "error" in str(found)


def test_it_trains_as_a_plain_loop_does():
    model = mlp()
    plain = copy.deepcopy(model)
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8)
    optimizer = torch.optim.SGD(plain.parameters(), 0.3)
    for rows in minibatches(5):
        optimizer.zero_grad()
        path.optimizer.zero_grad()
        expected = F.cross_entropy(plain(X[rows]), Y[rows])
        expected.backward()
        loss = path.backward(X[rows], Y[rows], torch.tensor(rows))
        torch.testing.assert_close(loss, expected.detach())
        optimizer.step()
        path.step()
    torch.testing.assert_close(flat_parameters(model), flat_parameters(plain))


def test_accumulated_batches_are_one_batch():
    model = mlp()
    accounts = []
    for parts in ([range(8)], [range(3), range(3, 8)]):
        own = copy.deepcopy(model)
        path = PathKernel(own, F.cross_entropy, torch.optim.SGD(own.parameters(), 0.4), T, 8)
        for _ in range(3):
            path.optimizer.zero_grad()
            for rows in parts:
                path.backward(X[rows], Y[rows], torch.as_tensor(rows), 1 / 8)
            path.step()
        accounts.append(path.result())
    torch.testing.assert_close(accounts[0].contributions, accounts[1].contributions)
    assert accounts[1].error < 1e-6


def test_error_falls_with_the_rate_and_with_the_nodes():
    """The first-order sum misses by O(lr) over a path of one length; nodes within a step converge geometrically."""
    digits = load_digits()
    x, y = digits.train[0].flatten(1).double(), digits.train[1]
    rows = ((y == 3) | (y == 8)).nonzero()[:, 0]
    train, test = rows[:30], rows[30:40]
    target = (y == 8).double()[:, None]
    errors = {}
    for lr, steps, nodes in [(0.01, 20, 0), (0.005, 40, 0), (0.01, 20, 1), (0.01, 20, 2), (0.01, 20, 4)]:
        model = mlp(1, inputs=64)
        loss_fn = nn.BCEWithLogitsLoss(reduction="sum")
        path = PathKernel(model, loss_fn, torch.optim.SGD(model.parameters(), lr), x[test], len(train), nodes=nodes)
        found = descend(path, x[train], target[train], [range(len(train))] * steps, 1.0)
        errors[lr, nodes] = found.residual.abs().max().item()
    assert 1.7 < errors[0.01, 0] / errors[0.005, 0] < 2.4
    assert errors[0.01, 0] > 20 * errors[0.01, 1] > 20 * 5 * errors[0.01, 2] > 20 * 25 * errors[0.01, 4]
    assert found.error < 1e-3


def test_tolerance_adds_nodes_until_steps_are_explained():
    model = mlp()
    found = {}
    for tolerance in (None, 1e-7):
        own = copy.deepcopy(model)
        sgd = torch.optim.SGD(own.parameters(), 3.0)
        path = PathKernel(own, F.cross_entropy, sgd, T, 8, nodes=0, tolerance=tolerance)
        found[tolerance] = descend(path, X, Y, [range(8)] * 4)
    assert found[None].quadrature_error.abs().max() > 1e-1
    assert found[1e-7].quadrature_error.abs().max() < 4e-7


def test_rows_are_explained_in_pieces(monkeypatch):
    whole = descend(PathKernel(m := mlp(), F.cross_entropy, torch.optim.SGD(m.parameters(), 0.3), T, 8), X, Y, [[1, 2]])
    monkeypatch.setattr("danlu.probe._path_steps.NUMBERS", 3 * 51 * 2)  # two rows at a time
    parts = descend(PathKernel(m := mlp(), F.cross_entropy, torch.optim.SGD(m.parameters(), 0.3), T, 8), X, Y, [[1, 2]])
    torch.testing.assert_close(parts.contributions, whole.contributions)


# What is attributed to whom


def test_order_of_the_examples_does_not_matter():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    place = order.argsort()
    accounts = []
    for x, y, batches in [
        (X, Y, minibatches(4)),
        (X[order], Y[order], [[int(place[i]) for i in rows] for rows in minibatches(4)]),
    ]:
        model = mlp()
        path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8)
        accounts.append(descend(path, x, y, batches).contributions)
    torch.testing.assert_close(accounts[0][..., order], accounts[1])


def test_equal_examples_share_and_those_never_met_get_nothing():
    x, y = X[[0, 0, 1, 2]], Y[[0, 0, 1, 2]]
    model = mlp()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 4)
    found = descend(path, x, y, [[0, 1, 2]] * 5)
    torch.testing.assert_close(found.contributions[..., 0], found.contributions[..., 1])
    assert found.contributions[..., 0].abs().max() > 0
    assert not found.contributions[..., 3].any()


def test_an_example_twice_in_a_batch_counts_twice():
    model = mlp()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 2)
    found = descend(path, X, Y, [[0, 0, 1]])
    other = mlp()
    weights = torch.tensor([2 / 3, 1 / 3], dtype=D)
    path = PathKernel(other, F.cross_entropy, torch.optim.SGD(other.parameters(), 0.3), T, 2)
    torch.testing.assert_close(found.contributions, descend(path, X, Y, [[0, 1]], weights).contributions)


def test_losses_can_be_explained():
    model, target = mlp(), torch.tensor([0, 1, 2, 1, 0])
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8, target)
    found = descend(path, X, Y, minibatches(10))
    assert found.contributions.shape == (5, 1, 8)
    torch.testing.assert_close(found.after[:, 0], F.cross_entropy(model(T), target, reduction="none").detach())
    assert found.error < 1e-5


def test_top_names_those_who_pushed():
    model = mlp()
    found = descend(
        PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8), X, Y, [range(8)] * 3
    )
    column = found.contributions[2, 1]
    ups = found.top(2, 1, 8)
    assert [i for i, _ in ups] == [i for i in column.argsort(descending=True).tolist() if column[i] > 0]
    downs = found.top(2, 1, 2, opposing=True)
    assert downs[0] == (int(column.argmin()), float(column.min())) and len(downs) == 2


# Functions in a loop of anybody's


def test_three_functions_are_all_of_it():
    model, lr = mlp(), 0.3
    own = copy.deepcopy(model)
    path = PathKernel(own, F.cross_entropy, torch.optim.SGD(own.parameters(), lr), T, 8)
    whole = descend(path, X, Y, minibatches(4))
    credit = torch.zeros(5, 3, 8, dtype=D)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for rows in minibatches(4):
        before = flat_parameters(model)
        _, gradients = example_gradients(model, F.cross_entropy, X[rows], Y[rows])
        optimizer.zero_grad()
        F.cross_entropy(model(X[rows]), Y[rows]).backward()
        optimizer.step()
        mean = path_jacobian(model, before, flat_parameters(model), T)
        credit[..., rows] -= lr * mean @ gradients.T
    torch.testing.assert_close(credit, whole.contributions)


def test_mean_jacobian_explains_a_step_of_any_length():
    model = mlp()
    before = flat_parameters(model)
    after = before + seeded(len(before), seed=9)
    other = copy.deepcopy(model)
    nn.utils.vector_to_parameters(after, other.parameters())
    change = (other(T) - model(T)).detach()
    mean = path_jacobian(model, before, after, T, 24)
    torch.testing.assert_close(mean @ (after - before), change, rtol=1e-7, atol=1e-8)
    assert mean.shape == (5, 3, len(before))
    torch.testing.assert_close(flat_parameters(model), before, rtol=0, atol=0)


def test_example_gradients_sum_to_that_of_the_batch():
    model = mlp()
    weight = torch.rand(8, dtype=D, generator=torch.Generator().manual_seed(0))
    losses, gradients = example_gradients(model, F.cross_entropy, X, Y, weight)
    expected = F.cross_entropy(model(X), Y, reduction="none")
    torch.testing.assert_close(losses, expected.detach())
    (expected * weight).sum().backward()
    torch.testing.assert_close(gradients.sum(0), torch.cat([p.grad.flatten() for p in model.parameters()]))


# Kinds of models and states


def test_dropout_draws_for_every_example_and_the_account_closes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double().train()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8, nodes=2)
    found = descend(path, X, Y, minibatches(10))
    assert model.training
    assert found.error < 1e-12  # two linear layers in evaluation mode
    same = X[[0, 0]], Y[[0, 0]]
    assert not torch.equal(*example_gradients(model, F.cross_entropy, *same)[1])


def test_texts_with_masks_embeddings_and_norms():
    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.head = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Linear(4, 1)

        def forward(self, ids, mask):
            h = (self.embed(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
            return self.head(self.norm(h))[:, 0]  # (B,)

    torch.manual_seed(0)
    model = Texts().double()
    ids = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 1], [0, 0, 0]])  # the last text is empty: a mask of all False
    x = ids, ids != 0
    path = PathKernel(
        model, F.binary_cross_entropy_with_logits, torch.optim.SGD(model.parameters(), 0.1), x, 4, nodes=8
    )
    y = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=D)
    for _ in range(5):
        path.optimizer.zero_grad()
        path.backward(x, y, torch.arange(4))
        path.step()
    found = path.result()
    assert found.contributions.shape == (4, 1, 4)
    assert found.error < 1e-3 and found.contributions.isfinite().all()


def test_convolution_in_float32_and_non_contiguous_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2))
    x = X.float().T.contiguous().T[:, None]
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.02), x[::2], 8)
    found = descend(path, x, (Y > 0).long(), minibatches(8))
    assert found.contributions.dtype == D
    assert found.error < 2e-2  # kinks of ReLU


def test_bfloat16_parameters_are_taken_as_they_are():
    model = mlp().bfloat16()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.5), T.bfloat16(), 8)
    found = descend(path, X.bfloat16(), Y, [range(8)] * 4)
    assert found.contributions.isfinite().all()
    assert found.error < 0.05  # the rounding of eight bits


def test_autocast_goes_into_the_gradients_and_not_into_the_rows():
    model = mlp().float()
    x, t = X.float(), T.float()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), t, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = descend(path, x, Y, minibatches(5))
    assert found.error < 1e-4
    torch.testing.assert_close(found.after, model(t).detach().double())


def test_a_compiled_model_is_looked_through():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    path = PathKernel(compiled, F.cross_entropy, torch.optim.SGD(compiled.parameters(), 0.3), T, 8)
    assert descend(path, X, Y, minibatches(3)).error < 1e-5


def test_random_numbers_and_grad_mode_are_left_alone():
    model, state = mlp(), torch.get_rng_state()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8)
    with torch.no_grad():
        found = descend(path, X, Y, minibatches(3))
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()
    assert found.error < 1e-5 and found.contributions.abs().max() > 1e-2
    assert not found.contributions.requires_grad


# What does not close is told


def test_moves_without_an_example_are_told():
    model = mlp()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8)
    expected = torch.zeros(5, 3, dtype=D)
    for rows in minibatches(5):
        path.optimizer.zero_grad()
        path.backward(X[rows], Y[rows], torch.tensor(rows))
        sum(p.square().sum() for p in model.parameters()).backward()  # a penalty
        before = flat_parameters(model)
        path.step()
        expected -= 0.3 * path_jacobian(model, before, flat_parameters(model), T) @ (2 * before)
    found = path.result()
    torch.testing.assert_close(found.unattributed, expected)  # none of it goes to the examples
    assert found.unattributed.abs().max() > 0.1 > 1e-3 > found.quadrature_error.abs().max()
    with pytest.raises(ValueError, match=r"miss the predictions by .*more than 0.05.*no example made .*Raise nodes"):
        found.trusted()


def test_nan_is_not_trusted():
    model = mlp()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8)
    found = descend(path, X * torch.nan, Y, [[0, 1]])
    with pytest.raises(ValueError, match="by nan of their size"):
        found.trusted()


def test_an_account_before_any_step():
    model = mlp()
    found = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.3), T, 8).result()
    assert found.error == 0 and not found.contributions.any()


class Several(nn.Linear):
    def __init__(self):
        super().__init__(2, 1, dtype=D)

    def forward(self, x):
        return super().forward(x), x


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), 0.1, **settings)


def online(model=None, optimizer=None, x=T, num_train=8, **settings):
    model = mlp() if model is None else model
    return PathKernel(
        model, F.cross_entropy, sgd(model) if optimizer is None else optimizer(model), x, num_train, **settings
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: online(optimizer=lambda m: sgd(m, momentum=0.9)), r"SGD without momentum, got SGD.*RecordedPath"),
        (lambda: online(optimizer=lambda m: torch.optim.Adam(m.parameters())), r"got Adam.*RecordedPath takes"),
        (lambda: online(optimizer=lambda m: torch.optim.Adagrad(m.parameters())), r"path of Adagrad cannot be"),
        (lambda: online(optimizer=lambda m: sgd(m, maximize=True)), r"maximize=True climbs the loss"),
        (lambda: online(optimizer=lambda m: sgd(mlp())), r"moves 4 tensors that are no parameters of the model"),
        (lambda: online(num_train=0), r"num_train must be >= 1"),
        (lambda: online(x=T[:0]), r"same number of rows, at least one; got \[0\]"),
        (lambda: online(target=torch.zeros(4)), r"same number of rows, at least one; got \[4, 5\]"),
        (lambda: online(nodes=-1), r"nodes must be a whole number >= 0.*got -1"),
        (lambda: online(tolerance=0.0), r"tolerance must be > 0.*got 0.0"),
        (lambda: online().step(), r"step\(\) needs a backward"),
        (lambda: online().backward(X, Y, torch.arange(7)), r"index must be \(8,\) int64.*got \(7,\)"),
        (lambda: online().backward(X, Y, torch.arange(8.0)), r"index must be \(8,\) int64.*torch.float32"),
        (lambda: online().backward(X, Y, torch.arange(1, 9)), r"index must lie in \[0, 8\), got 1 to 8"),
        (lambda: online().backward(X, Y[:3], torch.arange(8)), r"alike in x and target; got \[\(8, 4\), \(3,\)\]"),
        (lambda: online().backward(X[:0], Y[:0], torch.arange(0)), r"at least one row"),
        (lambda: online().backward(X, Y, torch.arange(8), torch.ones(3)), r"weight must be a number or \(8,\).*\(3,\)"),
        (lambda: example_gradients(mlp(), lambda f, y: f, X, Y), r"loss_fn returned \(1, 3\) for one example"),
        (lambda: path_jacobian(mlp(), torch.zeros(3), torch.zeros(3), T), r"two vectors of the 51 parameters.*\(3,\)"),
        (lambda: path_jacobian(m := mlp(), p := flat_parameters(m), p, T, target=Y), r"has both target and loss_fn"),
        (lambda: online(Several(), x=T[:, :2]), r"the model returned tuple, not a tensor; wrap it"),
        (lambda: online().result().coefficients(), r"say kernel=True"),
        (lambda: online().result().top(0, 0, 0), r"count must be >= 1, got 0"),
        (lambda: RecordedPath(m := mlp(), F.cross_entropy, sgd(m), 8).explain(T).coefficients(), "say kernel=True"),
    ],
)  # fmt: skip
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_batch_norm_in_training_is_refused_and_in_evaluation_taken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    path = PathKernel(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1), T, 8)
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) mixes the examples.*eval\(\)"):
        path.backward(X, Y, torch.arange(8))
    model.eval()
    assert descend(path, X, Y, minibatches(3)).error < 1e-3


def test_momentum_switched_on_later_is_told():
    model = mlp()
    path = online(model)
    path.optimizer.param_groups[0]["momentum"] = 0.9
    path.backward(X, Y, torch.arange(8))
    with pytest.raises(ValueError, match="SGD without momentum"):
        path.step()
