"""SphereSGD: steps by hand, eigenvectors as fixed points, geoopt, sparse rows, momentum, precisions, resume, errors."""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.optim import SphereSGD, normalize_rows_

HAS_GEOOPT = importlib.util.find_spec("geoopt") is not None


def rows(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(x, grad, m, lr, mu, factor, retraction):
    """One row with Python floats: the new row and the new momentum."""
    dot = lambda a, b: sum(p * q for p, q in zip(a, b, strict=True))  # noqa: E731
    along = dot(x, grad)
    k = 1 + along / math.sqrt(dot(grad, grad)) if factor == "angle" else 1.0
    carried = [p - dot(x, m) * q for p, q in zip(m, x, strict=True)]
    m = [mu * c + k * (g - along * q) for c, g, q in zip(carried, grad, x, strict=True)]
    size = math.sqrt(dot(m, m))
    if retraction == "exp":
        return [math.cos(lr * size) * q - math.sin(lr * size) * p / size for p, q in zip(m, x, strict=True)], m
    moved = [q - lr * p for p, q in zip(m, x, strict=True)]
    return [q / math.sqrt(dot(moved, moved)) for q in moved], m


@pytest.mark.parametrize("retraction", ["project", "exp"])
@pytest.mark.parametrize("factor", ["none", "angle"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_by_hand(momentum, factor, retraction):
    p = nn.Parameter(rows(3, 4))
    optimizer = SphereSGD([p], 0.3, momentum, factor, retraction)
    x, m = p.tolist(), [[0.0] * 4] * 3
    for step in range(4):
        p.grad = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(10 + step))
        made = [by_hand(a, g, b, 0.3, momentum, factor, retraction)
                for a, g, b in zip(x, p.grad.tolist(), m, strict=True)]  # fmt: skip
        x, m = [a for a, _ in made], [b for _, b in made]
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.tensor(x, dtype=torch.float64), atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    ("factor", "retraction", "tolerance"),  # aligned rows are damped by the factor: it comes near, slowly
    [("none", "project", 1e-9), ("none", "exp", 1e-9), ("angle", "project", 0.02)],
)
def test_the_rayleigh_quotient_ends_at_the_smallest_eigenvalue(factor, retraction, tolerance):
    a = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a = a + a.T
    p = nn.Parameter(rows(5, seed=4))
    optimizer = SphereSGD([p], 0.1, 0.5, factor, retraction)
    for _ in range(600):
        optimizer.zero_grad()
        (p @ a @ p).backward()
        optimizer.step()
    least, vectors = torch.linalg.eigh(a)
    assert (p @ a @ p).item() == pytest.approx(least[0].item(), abs=tolerance)
    assert abs((p.detach() @ vectors[:, 0]).item()) == pytest.approx(1, abs=10 * tolerance)


@pytest.mark.skipif(not HAS_GEOOPT, reason="needs geoopt")
def test_equals_geoopt():
    import geoopt

    for manifold, retraction, tolerance in ((geoopt.SphereExact(), "exp", 1e-12), (geoopt.Sphere(), "project", 1e-12)):
        ours = nn.Parameter(rows(3, 6))
        theirs = geoopt.ManifoldParameter(rows(3, 6), manifold=manifold)
        a, b = SphereSGD([ours], 0.05, retraction=retraction), geoopt.optim.RiemannianSGD([theirs], lr=0.05)
        target = rows(3, 6, seed=1)
        for _ in range(5):
            for p, optimizer in ((ours, a), (theirs, b)):
                optimizer.zero_grad()
                (-(p * target).sum() + p[:, 0].pow(3).sum()).backward()
                optimizer.step()
        torch.testing.assert_close(ours.data, theirs.data, atol=tolerance, rtol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sparse_gradients_move_their_rows_as_dense_ones_do(momentum):
    start, ids = rows(6, 4), torch.tensor([4, 1, 4])
    tables = [nn.Embedding(6, 4, sparse=sparse, _weight=start.clone()) for sparse in (False, True)]
    target = rows(3, 4, seed=2)
    for table in tables:
        optimizer = SphereSGD(table.parameters(), 0.2, momentum)
        for _ in range(3):
            optimizer.zero_grad()
            (table(ids) * target).sum().backward()
            optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight, atol=1e-14, rtol=0)
    assert torch.equal(tables[1].weight[[0, 2, 3, 5]], start[[0, 2, 3, 5]])
    assert not torch.equal(tables[1].weight[1], start[1])


def test_rows_without_a_gradient_keep_their_bits_and_all_keep_their_length():
    p = nn.Parameter(rows(40, 30, dtype=torch.float32))
    start = p.detach().clone()
    optimizer = SphereSGD([p], 0.5, factor="angle")
    for step in range(200):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        p.grad[::3] = 0
        optimizer.step()
    assert torch.equal(p[::3], start[::3])
    assert (p.norm(dim=1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_descends(dtype):
    p = nn.Parameter(rows(4, 8).to(dtype))
    target = rows(4, 8, seed=5).to(dtype)
    optimizer = SphereSGD([p], 0.3)
    for _ in range(60):
        optimizer.zero_grad()
        (-(p * target).sum()).backward()
        optimizer.step()
    assert p.dtype == dtype
    assert F.cosine_similarity(p.float(), target.float()).min() > 0.99


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_saved_state_goes_on_as_if_never_stopped(momentum):
    def grad(step):
        return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))

    whole, part = nn.Parameter(rows(3, 4)), nn.Parameter(rows(3, 4))
    a, b = SphereSGD([whole], 0.1, momentum), SphereSGD([part], 0.1, momentum)
    for step in range(6):
        whole.grad = grad(step)
        a.step()
        if step == 3:
            state, part = b.state_dict(), nn.Parameter(part.detach().clone())
            b = SphereSGD([part], 0.1, momentum)
            b.load_state_dict(state)
        part.grad = grad(step)
        b.step()
    assert torch.equal(whole, part)


def test_normalize_rows_reaches_small_and_large_ones():
    x = torch.tensor([[3e-30, 4e-30], [3e30, 4e30], [0.0, -2.0]])
    assert normalize_rows_(x) is x
    torch.testing.assert_close(x, torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, -1.0]]))
    assert normalize_rows_(torch.ones(1, 4, dtype=torch.bfloat16)).tolist() == [[0.5] * 4]


def test_messages():
    with pytest.raises(ValueError, match=r"one of 2; normalize_rows_\(param\) first"):
        SphereSGD([nn.Parameter(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))], 0.1)
    with pytest.raises(ValueError, match="zero or not finite"):
        normalize_rows_(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="zero or not finite"):
        normalize_rows_(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match=r"momentum in \[0, 1\), got 0.1 and 1"):
        SphereSGD([nn.Parameter(rows(1, 2))], 0.1, 1)
    with pytest.raises(ValueError, match="got 'cosine' and 'project'"):
        SphereSGD([nn.Parameter(rows(1, 2))], 0.1, factor="cosine")
