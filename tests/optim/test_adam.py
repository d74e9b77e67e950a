"""Adam, LAMB, lazy rows: against torch, formulas by hand, a row's own Adam; sparse gradients; state; messages."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.optim import LAMB, Adam


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def walk(make, shapes=((4, 3), (3,), ()), steps=6, dtype=torch.float64):
    params = [nn.Parameter(draw(*s, seed=i, dtype=dtype)) for i, s in enumerate(shapes)]
    optimizer = make(params)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = draw(*p.shape, seed=100 + 10 * step + i, dtype=dtype)
        optimizer.step()
    return [p.detach() for p in params]


def test_equals_torchs_adamw():
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}
    for a, b in zip(walk(lambda p: Adam(p, **options)), walk(lambda p: torch.optim.AdamW(p, **options)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_without_bias_correction_by_hand():
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = Adam([p], 0.1, (0.9, 0.99), 1e-3, 0.5, bias_correction=False)
    x, m, v = 2.0, 0.0, 0.0
    for g in (1.0, -3.0, 0.5):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        x -= 0.1 * (m / (math.sqrt(v) + 1e-3) + 0.5 * x)
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        assert p.item() == pytest.approx(x, rel=1e-12)


def test_the_first_uncorrected_step_is_three_times_the_corrected():
    (x,), (y,) = (walk(lambda p, c=c: Adam(p, 1.0, eps=1e-12, bias_correction=c), ((5,),), 1) for c in (False, True))
    start = draw(5)
    torch.testing.assert_close((x - start) / (y - start), torch.full((5,), 0.1 / 0.001**0.5, dtype=torch.float64))


def test_lamb_by_hand():
    p = nn.Parameter(draw(4, 3))
    optimizer = LAMB([p], 0.1, (0.9, 0.99), 1e-3, 0.2)
    x, m, v = draw(4, 3), torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    for t in range(1, 5):
        g = draw(4, 3, seed=t)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        r = m / (1 - 0.9**t) / ((v / (1 - 0.99**t)) ** 0.5 + 1e-3) + 0.2 * x
        x = x - 0.1 * (x**2).sum() ** 0.5 / (r**2).sum() ** 0.5 * r
        p.grad = g
        optimizer.step()
        torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=1e-13)


def test_lamb_moves_each_tensor_by_the_same_share():
    (a, b) = walk(lambda p: LAMB(p, 0.1), ((6, 5), (7,)), steps=1)
    for i, x in enumerate((a, b)):
        start = draw(*x.shape, seed=i)
        assert ((x - start).norm() / start.norm()).item() == pytest.approx(0.1, rel=1e-12)


def test_lamb_moves_zeros_plainly_and_spares_names():
    model = nn.ModuleDict({"linear": nn.Linear(2, 2), "norm": nn.LayerNorm(2)}).double()
    nn.init.zeros_(model["linear"].weight)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    LAMB(model.named_parameters(), 0.1, eps=1e-12, weight_decay=0.0, exclude_from_layer_adaptation=("norm",)).step()
    for name, p in model.named_parameters():
        ratio = start[name].norm() / 2**0.5 if name == "linear.bias" else 1.0  # ||direction|| is sqrt(2) there
        torch.testing.assert_close(start[name] - p.detach(), torch.full_like(p, 0.1) * ratio)


LAZY = {"lr": 0.1, "weight_decay": 0.3, "eps": 1e-3}
SEEN = [(0, 2), (2, 3), (0, 2, 3), (3,), (2,)]  # rows of each step; row 1 never


def lazy_walk(optimizer, p, sparse=False):
    for step, rows in enumerate(SEEN):
        g = torch.zeros_like(p)
        for r in rows:
            g[r] = draw(p.shape[1], seed=10 * step + r)
        p.grad = g
        if sparse:
            twice = torch.tensor([*rows, rows[0]])[None]  # a row that occurs twice, as tokens do
            values = torch.stack([g[r] / (2 if r == rows[0] else 1) for r in (*rows, rows[0])])
            p.grad = torch.sparse_coo_tensor(twice, values, g.shape, check_invariants=False)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("sparse", [False, True])
def test_every_row_goes_as_if_it_had_its_own_adam(sparse):
    p = nn.Parameter(draw(4, 3))
    lazy_walk(Adam([p], lazy=True, **LAZY), p, sparse)
    for r in range(4):
        own = nn.Parameter(draw(4, 3)[r])
        optimizer = torch.optim.AdamW([own], **LAZY)
        for step, rows in enumerate(SEEN):
            if r in rows:
                own.grad = draw(3, seed=10 * step + r)
                optimizer.step()
        torch.testing.assert_close(p[r].detach(), own.detach(), rtol=1e-12, atol=1e-13)
    assert torch.equal(p[1].detach(), draw(4, 3)[1])


def test_a_row_seen_late_takes_a_step_of_lr():
    p = nn.Parameter(draw(4, 3))
    optimizer = Adam([p], 0.1, eps=1e-12, lazy=True)
    for step in range(50):
        p.grad = torch.zeros_like(p)
        p.grad[0 if step < 49 else 1] = 1.0
        before = p.detach().clone()
        optimizer.step()
    torch.testing.assert_close(before[1] - p[1].detach(), torch.full((3,), 0.1, dtype=torch.float64))


def test_lazy_equals_dense_where_every_row_is_seen():
    dense, lazy = (walk(lambda p, z=z: Adam(p, 0.1, weight_decay=0.1, lazy=z)) for z in (False, True))
    for a, b in zip(dense, lazy, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_bert4kerass_moments_decay_in_untouched_rows():
    p = nn.Parameter(draw(4, 3))
    optimizer = Adam([p], lazy=True, compat="bert4keras", **LAZY)
    lazy_walk(optimizer, p)
    assert torch.equal(p[1].detach(), draw(4, 3)[1])
    first = optimizer.state[p]["exp_avg"][0].clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg"][0], 0.9 * first)


def test_names_choose_the_lazy_tables():
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 3, sparse=True), "out": nn.Linear(3, 2)})
    optimizer = Adam(model.named_parameters(), 0.1, lazy=("embed",))
    before = model["embedding"].weight.detach().clone()
    loss = model["out"](model["embedding"](torch.tensor([[1, 3, 1]]))).square().sum()
    loss.backward()
    optimizer.step()
    moved = (model["embedding"].weight.detach() != before).any(1)
    assert moved.tolist() == [False, True, False, True]
    assert "row_steps" not in optimizer.state[model["out"].weight]


def test_bfloat16_keeps_its_moments_in_float32():
    grads = [draw(200, seed=s, dtype=torch.bfloat16) for s in range(3)]
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        p = nn.Parameter(torch.ones(200, dtype=dtype))
        optimizer = Adam([p], 2.0**-6)
        for g in grads:
            p.grad = g.to(dtype)
            optimizer.step()
        ends.append(p.detach().float())
        assert optimizer.state[p]["exp_avg_sq"].dtype == torch.float32
    torch.testing.assert_close(*ends, rtol=0, atol=3 * 2.0**-8)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_bfloat16_state_is_loaded_as_it_was_saved(lazy):
    p, q = (nn.Parameter(draw(4, 3, dtype=torch.bfloat16)) for _ in range(2))
    one, two = Adam([p], lazy=lazy), Adam([q], lazy=lazy)
    p.grad = draw(4, 3, seed=1, dtype=torch.bfloat16)
    one.step()
    two.load_state_dict(one.state_dict())
    for key, value in one.state[p].items():
        assert torch.equal(two.state[q][key], value)
        assert two.state[q][key].dtype == value.dtype
        assert two.state[q][key].data_ptr() != value.data_ptr()


def test_a_plain_loop_with_a_closure_learns():
    torch.manual_seed(0)
    table, out = nn.Embedding(20, 8), nn.Linear(8, 2)
    ids, y = torch.arange(20), torch.arange(20) % 2
    optimizer = Adam([{"params": table.parameters(), "lazy": True}, {"params": out.parameters()}], 0.05)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(out(table(ids)), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]


def test_messages():
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"lr >= 0, eps > 0 .*got lr=-1"):
        Adam([p], -1)
    with pytest.raises(ValueError, match=r"betas of Adam must be two numbers in \[0, 1\), got \(0.9, 1.0\)"):
        Adam([p], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="compat must be None or 'bert4keras', got 'keras'"):
        Adam([p], compat="keras")
    with pytest.raises(ValueError, match=r"lazy=\('embed',\) are name patterns.*model.named_parameters\(\)"):
        Adam([p], lazy=("embed",))
    table = nn.Embedding(5, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"sparse gradient; give that table lazy=True, or .*sparse=False"):
        Adam(table.parameters()).step()
    z = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    z.grad = torch.ones_like(z)
    with pytest.raises(ValueError, match=r"real weights, got torch.complex64; torch.optim.Adam takes"):
        Adam([z]).step()
    p.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(ValueError, match=r"lazy takes dense gradients or those of nn.Embedding\(sparse=True\)"):
        Adam([p], lazy=True).step()
