"""One backward for several tasks: the vectors by hand, whole trajectories, heads, micro-batches, scalers, messages."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.math import direction_weights, gradient_cosines
from danlu.train import MultiTask, multitask_backward

X = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABEL = (X[:, 0] > 0).long()
Y = torch.stack([X[:, 1] - X[:, 0], X.sum(1)], 1)
NAMES = ["sum", "normalized", "mgda", "pcgrad", "dual_cone", "primary"]
each_weighting = pytest.mark.parametrize("weighting", NAMES)


class Net(nn.Module):
    """A shared layer and three heads of their own: classes, a regression, a reconstruction."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4))
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 5)])
        self.to(dtype)

    def losses(self, rows=slice(None), units=(1.0, 1.0, 1.0), shifts=(0.0, 0.0, 0.0), z=None):
        x = X[rows].to(self.heads[0].weight.dtype)
        z = self.trunk(x) if z is None else z
        found = [
            F.cross_entropy(self.heads[0](z).to(X), LABEL[rows]),
            F.mse_loss(self.heads[1](z).to(X), Y[rows]),
            F.mse_loss(self.heads[2](z).to(X), -3 * X[rows]),
        ]
        return [c * loss + b for c, loss, b in zip(units, found, shifts, strict=True)]

    def shared(self):
        return list(self.trunk.parameters())


def draw(seed=1):
    return torch.Generator().manual_seed(seed)


def grads(net):
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def stacked(net):
    """Oracle: each task's own backward, its shared gradient laid out as a row."""
    rows = []
    for i in range(3):
        net.zero_grad()
        net.losses()[i].backward()
        rows.append(flat(p.grad for p in net.shared()))
    net.zero_grad()
    return torch.stack(rows)


@each_weighting
@pytest.mark.parametrize("normalize", [False, True])
def test_shared_weights_get_the_combined_gradient(weighting, normalize):
    net = Net()
    g = stacked(net)
    w = multitask_backward(net.losses(), net.shared(), weighting, normalize, generator=draw())
    expected = direction_weights(g @ g.T, weighting, normalize, draw())
    torch.testing.assert_close(w, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(flat(p.grad for p in net.shared()), expected @ g, rtol=1e-8, atol=1e-10)


def test_sum_is_backward():
    ours, theirs = Net(), Net()
    multitask_backward(ours.losses(), ours.shared(), "sum")
    sum(theirs.losses()).backward()
    got, expected = grads(ours), grads(theirs)
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name])


@each_weighting
def test_heads_get_the_plain_or_the_weighted_sum(weighting):
    for heads in (None, "plain", "weighted"):
        net, other = Net(), Net()
        w = multitask_backward(net.losses(), net.shared(), weighting, heads=heads, generator=draw())
        weighted = heads == "weighted" or (heads is None and weighting == "normalized")
        factors = w.tolist() if weighted else [1.0, 1.0, 1.0]
        sum(f * loss for f, loss in zip(factors, other.losses(), strict=True)).backward()
        for a, b in zip(net.heads.parameters(), other.heads.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_weights_that_two_heads_use_get_both_gradients():
    """Only the last shared layer is given: the one below counts as head and gets the plain sum, as from backward()."""
    net, other = Net(), Net()
    multitask_backward(net.losses(), net.trunk[2].weight, "mgda")
    sum(other.losses()).backward()
    torch.testing.assert_close(net.trunk[0].weight.grad, other.trunk[0].weight.grad)
    assert not torch.allclose(net.trunk[2].weight.grad, other.trunk[2].weight.grad)


def train(weighting, steps=15, units=(1.0, 1.0, 1.0), shifts=(0.0, 0.0, 0.0), **options):
    """A plain user's loop; the weights at the end."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    generator = draw()
    for _ in range(steps):
        optimizer.zero_grad()
        multitask_backward(
            net.losses(units=units, shifts=shifts), net.shared(), weighting, generator=generator, **options
        )
        optimizer.step()
    return flat(net.parameters())


@each_weighting
def test_a_constant_added_to_a_loss_changes_nothing(weighting):
    torch.testing.assert_close(train(weighting), train(weighting, shifts=(0.0, 100.0, -7.0)), rtol=1e-9, atol=1e-10)


@each_weighting
def test_units_of_the_losses_change_nothing_where_they_are_normalized(weighting):
    options = {"normalize": weighting != "normalized", "heads": "weighted"}
    same = train(weighting, **options), train(weighting, units=(1.0, 1000.0, 0.01), **options)
    torch.testing.assert_close(*same, rtol=1e-6, atol=1e-7)
    plain = [train("sum", steps=3, units=(1.0, unit, 1.0)) for unit in (1.0, 1000.0)]
    assert not torch.allclose(*plain, rtol=0.1)


@pytest.mark.parametrize("weighting", ["mgda", "dual_cone"])
def test_a_small_step_makes_no_task_worse(weighting):
    """What they are for: the reconstruction of -3 x is at odds with the rest, and the plain sum sacrifices the rest."""
    for name, harmed in ((weighting, False), ("sum", True)):
        net = Net()
        before = net.losses(units=(1.0, 1.0, 30.0))
        multitask_backward(before, net.shared(), name)
        with torch.no_grad():
            for p in net.shared():
                p -= 1e-5 * p.grad
            after = net.losses(units=(1.0, 1.0, 30.0))
        assert any(b > a for a, b in zip(before, after, strict=True)) == harmed


def test_primary_keeps_the_auxiliary_tasks_from_getting_worse():
    net = Net()
    g = stacked(net)
    order = [2, 0, 1]
    losses = net.losses()
    w = multitask_backward([losses[i] for i in order], net.shared(), "primary")
    u = flat(p.grad for p in net.shared())
    assert w[0] == 1 and (w[1:] > 0).any()
    assert (g[order[1:]] @ u > -1e-10).all() and u @ g[2] > 0


def test_weight_decay_as_an_auxiliary_task():
    """The post's example: with ||theta||^2 / 2 as auxiliary task, lambda = relu(-<g, theta>) / ||theta||^2."""
    w = nn.Parameter(torch.tensor([2.0, 1.0]))
    found = multitask_backward([-w[0] + w[1], w.square().sum() / 2], w, "primary")
    assert found.tolist() == pytest.approx([1.0, 0.2])
    assert (w.grad @ w.detach()).item() == pytest.approx(0, abs=1e-6)


def test_micro_batches_are_added_up_before_they_are_combined():
    net, whole = Net(), Net()
    tasks = MultiTask(net.shared(), "mgda", heads="weighted")
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        tasks.accumulate([loss / 3 for loss in net.losses(rows)])
        assert not grads(net)
    w = tasks.backward()
    expected = multitask_backward(whole.losses(), whole.shared(), "mgda", heads="weighted")
    torch.testing.assert_close(w, expected)
    for name, g in grads(whole).items():
        torch.testing.assert_close(grads(net)[name], g)
    net.zero_grad()
    torch.testing.assert_close(tasks.backward(net.losses()), w)  # the next step begins with nothing
    for name, g in grads(whole).items():
        torch.testing.assert_close(grads(net)[name], g)
    apart = Net()
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        multitask_backward([loss / 3 for loss in apart.losses(rows)], apart.shared(), "mgda", heads="weighted")
    assert not torch.allclose(apart.trunk[0].weight.grad, whole.trunk[0].weight.grad)


def test_a_step_forgotten_half_way_can_be_cleared():
    net = Net()
    tasks = MultiTask(net.shared())
    tasks.accumulate(net.losses(slice(0, 4)))
    tasks.clear()
    other = Net()
    torch.testing.assert_close(tasks.backward(net.losses()), multitask_backward(other.losses(), other.shared()))


@each_weighting
@pytest.mark.parametrize("normalize", [False, True])
def test_a_loss_scaler_gets_back_what_it_divides_by(weighting, normalize):
    net, scaled = Net(), Net()
    options = {"normalize": normalize, "heads": "weighted"}
    w = multitask_backward(net.losses(), net.shared(), weighting, generator=draw(), **options)
    losses = scaled.losses(units=(1024.0,) * 3)
    multitask_backward(losses, scaled.shared(), weighting, scale=1024.0, generator=draw(), **options)
    assert w.isfinite().all()
    for name, g in grads(net).items():
        torch.testing.assert_close(grads(scaled)[name] / 1024, g)


def test_a_gradient_that_is_not_finite_shows_itself():
    """As after backward(): a GradScaler skips such a step, clipping with error_if_nonfinite raises."""
    net = Net()
    losses = net.losses()
    w = multitask_backward([losses[0], losses[1] * torch.inf, losses[2]], net.shared(), "mgda")
    assert w.tolist() == [1.0, 1.0, 1.0]
    assert not flat(p.grad for p in net.shared()).isfinite().any()
    assert net.heads[0].weight.grad.isfinite().all()


def test_absent_tasks_and_tasks_without_shared_weights():
    net, other = Net(), Net()
    losses = net.losses()
    w = multitask_backward([losses[0], None, losses[2]], net.shared())
    expected = other.losses()
    torch.testing.assert_close(w[[0, 2]], multitask_backward([expected[0], expected[2]], other.shared()))
    assert w[1] == 0 and net.heads[1].weight.grad is None
    lonely = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    net.zero_grad()
    w = multitask_backward([net.losses()[0], lonely.square()], net.shared())
    assert w.tolist() == [1.0, 0.0] and lonely.grad == 4


def test_frozen_and_repeated_weights():
    net = Net()
    net.trunk[0].weight.requires_grad_(False)
    multitask_backward(net.losses(), [*net.trunk.parameters(), net.trunk[2].weight])
    assert net.trunk[0].weight.grad is None
    plain = Net()
    plain.trunk[0].weight.requires_grad_(False)
    multitask_backward(plain.losses(), [p for p in plain.trunk.parameters() if p.requires_grad])
    torch.testing.assert_close(net.trunk[2].weight.grad, plain.trunk[2].weight.grad)


@each_weighting
def test_representation_instead_of_weights(weighting):
    """Weights are those of the gradients by z; then one ordinary backward of the weighted sum, heads plain."""
    net, other = Net(), Net()
    z = net.trunk(X)
    w = multitask_backward(net.losses(z=z), z, weighting, heads="plain", generator=draw())
    copy = other.trunk(X).detach().requires_grad_()
    rows = torch.stack([torch.autograd.grad(loss, copy)[0].flatten() for loss in other.losses(z=copy)])
    expected = direction_weights(rows @ rows.T, weighting, generator=draw())
    torch.testing.assert_close(w, expected)
    sum(f * loss for f, loss in zip(expected.tolist(), other.losses(), strict=True)).backward()
    torch.testing.assert_close(flat(p.grad for p in net.shared()), flat(p.grad for p in other.shared()))
    plain = Net()
    sum(plain.losses()).backward()
    torch.testing.assert_close(net.heads[1].weight.grad, plain.heads[1].weight.grad)


def test_a_way_around_the_representation_is_refused():
    net, other = Net(), Net()

    def losses(n):
        first = n.trunk[1](n.trunk[0](X))
        z = n.trunk[2](first)
        return first, z, [z.square().mean(), (z * first * X[:, :4]).mean()]

    first, z, found = losses(net)
    with pytest.raises(ValueError, match=r"reaches the weight \(4, ?5?\).*by a way around the representation"):
        multitask_backward(found, z, "sum")
    with pytest.raises(ValueError, match="one of the representations is computed from another"):
        multitask_backward(found, [z, first], "sum")
    assert not grads(net)
    multitask_backward(losses(net)[2], net.shared(), "sum")
    sum(losses(other)[2]).backward()
    torch.testing.assert_close(flat(p.grad for p in net.shared()), flat(p.grad for p in other.shared()))


def test_several_representations():
    """Two halves of one tensor, each with its own losses' ways."""
    net, other = Net(), Net()
    left, right = net.trunk(X).split(2, dim=1)
    multitask_backward([left.square().mean() + right.mean(), (left * right).mean()], [left, right], "sum")
    a, b = other.trunk(X).split(2, dim=1)
    (a.square().mean() + b.mean() + (a * b).mean()).backward()
    torch.testing.assert_close(flat(p.grad for p in net.shared()), flat(p.grad for p in other.shared()))


def test_gradients_that_autograd_hands_out_twice_are_kept_apart():
    a, b = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    w = nn.Parameter(torch.ones(3))
    for _ in range(2):
        multitask_backward([(w * (a + b)).sum()], w, "sum")
    assert a.grad.data_ptr() != b.grad.data_ptr()
    assert a.grad.tolist() == b.grad.tolist() == [2.0] * 3


def test_sparse_gradients_of_embeddings():
    table = nn.Embedding(6, 2, sparse=True)
    ids = torch.tensor([1, 4])
    multitask_backward([table(ids).sum(), -table(ids[:1]).sum()], table.weight, "sum")
    assert table.weight.grad.tolist() == [[0, 0]] * 4 + [[1, 1]] + [[0, 0]]
    other = nn.Embedding(6, 2, sparse=True)
    other(ids).sum().backward()
    multitask_backward([other(ids).sum()], other.weight, "sum")
    assert other.weight.grad.to_dense()[1].tolist() == [2, 2]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_half_way_leaves_no_trace(failing):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise KeyError("half way")

    net = Net()
    losses = net.losses()
    losses[failing] = Broken.apply(losses[failing])
    tasks = MultiTask(net.shared())
    with pytest.raises(KeyError):
        tasks.backward(losses)
    assert not grads(net)
    other = Net()
    torch.testing.assert_close(tasks.backward(net.losses()), multitask_backward(other.losses(), other.shared()))


def test_half_precision_weights_and_autocast():
    net, exact = Net(torch.bfloat16), Net()
    w = multitask_backward(net.losses(), net.shared(), "pcgrad", generator=draw())
    expected = multitask_backward(exact.losses(), exact.shared(), "pcgrad", generator=draw())
    assert all(p.grad.dtype == torch.bfloat16 for p in net.parameters())
    torch.testing.assert_close(w, expected, rtol=0.2, atol=0.1)
    single = Net(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = single.losses()
    torch.testing.assert_close(
        multitask_backward(losses, single.shared(), "pcgrad", generator=draw()), expected, rtol=0.2, atol=0.1
    )


def test_a_compiled_network_with_all_its_losses_in_one_graph():
    net, plain = Net(torch.float32), Net(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: net.losses(), backend="aot_eager")
    for _ in range(2):
        net.zero_grad(), plain.zero_grad()
        w = multitask_backward(compiled(), net.shared(), "dual_cone")
        torch.testing.assert_close(w, multitask_backward(plain.losses(), plain.shared(), "dual_cone"))
        for name, g in grads(plain).items():
            torch.testing.assert_close(grads(net)[name], g)


def test_the_report_of_the_last_step():
    net = Net()
    tasks = MultiTask(net.shared(), "pcgrad", generator=draw())
    tasks.backward(net.losses())
    g = stacked(net)
    torch.testing.assert_close(tasks.gram, g @ g.T)
    cosines = gradient_cosines(tasks.gram)
    assert cosines[0, 1].item() == pytest.approx(torch.cosine_similarity(g[0], g[1], dim=0).item())


def test_a_function_of_your_own_and_a_tensor_of_losses():
    net, other = Net(), Net()
    multitask_backward(torch.stack(net.losses()), net.shared(), lambda q: 1 / q.diagonal())
    g = stacked(other)
    expected = (g / g.square().sum(1, keepdim=True)).sum(0)
    torch.testing.assert_close(flat(p.grad for p in net.shared()), expected)


def test_messages():
    net = Net()
    losses = net.losses()
    with pytest.raises(ValueError, match=r"weighting must be one of sum, normalized.*got 'mtl'"):
        multitask_backward(losses, net.shared(), "mtl")
    with pytest.raises(ValueError, match=r"heads must be 'plain', 'weighted' or None.*got 'sum'"):
        multitask_backward(losses, net.shared(), heads="sum")
    with pytest.raises(ValueError, match=r"losses\[1\] must be a scalar tensor with a graph, got shape \(2,\)"):
        multitask_backward([losses[0], torch.zeros(2, requires_grad=True)], net.shared())
    with pytest.raises(ValueError, match=r"losses\[0\].*got a detached one; None for an absent task"):
        multitask_backward([losses[0].detach(), losses[1]], net.shared())
    with pytest.raises(ValueError, match=r"losses\[0\].*got float"):
        multitask_backward([0.0], net.shared())
    with pytest.raises(ValueError, match="at least one loss that is not None"):
        multitask_backward([None, None], net.shared())
    with pytest.raises(ValueError, match="none of the 1 shared tensors requires a gradient"):
        multitask_backward(losses, torch.zeros(3))
    with pytest.raises(ValueError, match="shared must be weights or representations, not both"):
        multitask_backward(losses, [net.trunk[0].weight, net.trunk(X)])
    with pytest.raises(ValueError, match=r"with `reduce` every task needs a loss; give 0 times"):
        multitask_backward([losses[0], None], net.shared(), reduce=lambda g: g)
    with pytest.raises(ValueError, match="every process has its own representation"):
        multitask_backward(losses, net.trunk(X), reduce=lambda g: g)
    tasks = MultiTask(net.shared())
    with pytest.raises(ValueError, match=r"nothing to combine: give losses, or call accumulate\(losses\)"):
        tasks.backward()
    tasks.accumulate(net.losses())
    with pytest.raises(ValueError, match="2 losses follow micro-batches of 3; give None"):
        tasks.accumulate(net.losses()[:2])
    z = net.trunk(X)
    tasks = MultiTask(z)
    tasks.accumulate(net.losses(z=z))
    with pytest.raises(ValueError, match="gradients by a representation cannot be accumulated"):
        tasks.accumulate(net.losses(z=z))
    sharded = nn.Parameter(torch.zeros(2))
    sharded.placements = ()
    with pytest.raises(ValueError, match=r"a sharded weight \(DTensor\) holds a part of its gradient"):
        multitask_backward(losses, sharded)
