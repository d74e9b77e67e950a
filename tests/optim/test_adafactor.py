"""Adafactor: against Python floats, transformers, torch, its identities; both engines; state, bfloat16, messages."""

import copy
import importlib.util
import math

import pytest
import torch
from torch import nn

from danlu.optim import Adafactor, _adafactor_blocks
from danlu.optim._adafactor_blocks import BLOCK, Sweeps, factored_dims, kernel_for

ENGINES = ["off", pytest.param("on", marks=pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="numba"))]


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request, monkeypatch):
    """Everything holds in pure torch and with the compiled sweeps."""
    monkeypatch.setenv("DANLU_KERNELS", request.param)
    return request.param


def draw(*shape, seed=0, scale=1.0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype) * scale


def walk(make, shapes, steps=5, dtype=torch.float32, rescale=1.0):
    """The weights after so many steps on gradients that are given."""
    params = [nn.Parameter(draw(*s, seed=i, scale=0.3).to(dtype)) for i, s in enumerate(shapes)]
    optimizer = make(params)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = draw(*p.shape, seed=100 + 10 * step + i, scale=rescale).to(dtype)
        optimizer.step()
    return [p.detach() for p in params], optimizer


def same(a, b, rtol=1e-5, atol=1e-6):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def by_hand(x, grads, lr, beta1, decay, clip):  # a 2-D weight in Python floats, eqs. (1) to (7)
    m, n = len(x), len(x[0])
    row, col, mom = [0.0] * m, [0.0] * n, [[0.0] * n for _ in x]
    for t, g in enumerate(grads, 1):
        b = 1 - t**-0.8
        row = [b * row[i] + (1 - b) * sum(g[i][j] ** 2 + 1e-30 for j in range(n)) / n for i in range(m)]
        col = [b * col[j] + (1 - b) * sum(g[i][j] ** 2 + 1e-30 for i in range(m)) / m for j in range(n)]
        u = [[g[i][j] / math.sqrt(row[i] * col[j] / (sum(row) / m)) for j in range(n)] for i in range(m)]
        rms = math.sqrt(sum(v * v for r in u for v in r) / (m * n))
        size = math.sqrt(sum(v * v for r in x for v in r) / (m * n))
        rho = lr if lr is not None else min(1e-2, 1 / math.sqrt(t))
        mom = [[beta1 * mom[i][j] + (1 - beta1) * u[i][j] / max(1.0, rms / clip) for j in range(n)] for i in range(m)]
        x = [[x[i][j] * (1 - decay * rho) - max(1e-3, size) * rho * mom[i][j] for j in range(n)] for i in range(m)]
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize(("lr", "beta1", "decay", "clip"), [(0.1, 0, 0, 1), (None, 0.9, 0.1, 0.3), (0.1, 0, 0.2, 0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_python_floats(lr, beta1, decay, clip, dtype):
    x, grads = draw(4, 3, seed=1), [draw(4, 3, seed=2 + i) * (1 + i) for i in range(4)]
    p = nn.Parameter(x.to(dtype, copy=True))
    optimizer = Adafactor([p], lr, beta1=beta1, weight_decay=decay, clip_threshold=clip, min_dim_size_to_factor=1)
    for g in grads:
        p.grad = g.to(dtype)
        optimizer.step()
    expected = by_hand(x.double().tolist(), [g.double().tolist() for g in grads], lr, beta1, decay, clip)
    tolerance = {"rtol": 3e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(p.detach().double(), expected, **tolerance)


def test_first_step_of_a_matrix():
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    optimizer = Adafactor([p], 1.0, scale_parameter=False, min_dim_size_to_factor=1)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq_row"], torch.tensor([2.5, 12.5]))
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq_col"], torch.tensor([5.0, 10.0]))
    expected = -torch.tensor([[0.7746, 1.0954], [1.0392, 0.9798]])  # RMS 0.9798, not clipped
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=5e-5)


def test_three_steps_that_transformers_and_torch_agree_on():
    p = nn.Parameter(torch.tensor([[0.5, -0.5], [1.0, -1.0]]))
    optimizer = Adafactor([p], lr=None, min_dim_size_to_factor=1)
    expected = [
        [0.493876, -0.491340, 0.991784, -1.007746],
        [0.487646, -0.482528, 0.983425, -1.015627],
        [0.481434, -0.473744, 0.975091, -1.023484],
    ]
    for k, numbers in enumerate(expected, 1):
        p.grad = k * torch.tensor([[1.0, -2.0], [3.0, 4.0]])
        optimizer.step()
        torch.testing.assert_close(p.detach().flatten(), torch.tensor(numbers), rtol=0, atol=1e-6)


def test_first_step_of_what_is_not_factored_is_the_sign():
    (x,), _ = walk(lambda ps: Adafactor(ps, 0.5, scale_parameter=False), [(3, 4)], steps=1)
    torch.testing.assert_close(x, draw(3, 4, scale=0.3) - 0.5 * draw(3, 4, seed=100).sign())


def test_rank_one_squares_lose_nothing():
    a, b = draw(6, 1, seed=3), draw(1, 5, seed=4)
    ways = []
    for least in (1, 100):
        p = nn.Parameter(draw(6, 5))
        optimizer = Adafactor([p], 0.1, min_dim_size_to_factor=least)
        for k in (1.0, -2.0, 0.5):
            p.grad = k * a * b
            optimizer.step()
        ways.append(p.detach())
    torch.testing.assert_close(*ways)


def test_product_of_marginals_is_the_best_rank_one_fit():
    """Of the generalised KL: no factors nearby are better, in float64."""
    v = draw(4, 5, dtype=torch.float64).square()

    def divergence(fit):
        return (v * (v / fit).log() - v + fit).sum()

    row, col = v.mean(1), v.mean(0)
    best = divergence(row[:, None] * col / row.mean())
    for seed in range(20):
        a, b = (1e-2 * draw(4, seed=seed, dtype=torch.float64)).exp(), (1e-2 * draw(5, seed=50 + seed)).exp()
        assert divergence((row * a)[:, None] * (col * b) / row.mean()) > best


def test_scale_of_gradients_and_of_weights():
    def make(ps):
        return Adafactor(ps, lr=None, min_dim_size_to_factor=1, eps=(1e-30, 1e-9))

    plain, _ = walk(make, [(5, 4), (6,)])
    loud, _ = walk(make, [(5, 4), (6,)], rescale=1e4)
    same(plain, loud)
    params = [nn.Parameter(8 * draw(5, 4, scale=0.3))]
    optimizer = make(params)
    for step in range(5):
        params[0].grad = draw(5, 4, seed=100 + 10 * step) / 8
        optimizer.step()
    same([params[0].detach() / 8], plain[:1])


def test_which_sides_are_factored():
    assert factored_dims((300, 200), 128) == (0, 1)
    assert factored_dims((300, 127), 128) is None
    assert factored_dims((512,), 1) is None
    assert factored_dims((256, 128, 3, 3), 128) == (0, 1)  # a convolution: not its 3 x 3
    assert factored_dims((256, 128, 3, 3), 128, last_two=True) == (2, 3)
    assert factored_dims((3, 200, 3, 300), 128) == (1, 3)
    assert factored_dims((4, 4, 4), 1) == (1, 2)  # equals: the later ones


def test_matrices_of_a_stack_are_independent_but_for_the_size():
    def make(ps):
        return Adafactor(ps, 0.1, clip_threshold=None, scale_parameter=False, min_dim_size_to_factor=4)

    (stack,), _ = walk(make, [(3, 4, 5)], steps=4)
    for e in range(3):
        p = nn.Parameter(draw(3, 4, 5, scale=0.3)[e].clone())
        optimizer = make([p])
        for step in range(4):
            p.grad = draw(3, 4, 5, seed=100 + 10 * step)[e].clone()
            optimizer.step()
        torch.testing.assert_close(stack[e], p.detach())


def test_layouts_that_cannot_be_flattened():
    """Transposed, channels last, factored sides apart: as the contiguous tensor goes."""
    shapes = [(6, 5), (8, 7, 3, 3), (2, 6, 2, 9)]
    make = lambda ps: Adafactor(ps, 0.1, weight_decay=0.1, min_dim_size_to_factor=4)  # noqa: E731
    expected, _ = walk(make, shapes, steps=3)
    params = [nn.Parameter(draw(*s, seed=i, scale=0.3)) for i, s in enumerate(shapes)]
    params[0] = nn.Parameter(params[0].detach().T.contiguous().T)
    params[1] = nn.Parameter(params[1].detach().to(memory_format=torch.channels_last))
    params[2] = nn.Parameter(params[2].detach().permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2))
    assert not any(p.is_contiguous() for p in params)
    optimizer = make(params)
    for step in range(3):
        for i, p in enumerate(params):
            p.grad = draw(*p.shape, seed=100 + 10 * step + i)
        optimizer.step()
    same([p.detach() for p in params], expected)
    flat = nn.Parameter(draw(2, 6, 2, 9, seed=2, scale=0.3).transpose(1, 2).contiguous())  # nothing to be moved
    optimizer = make([flat])
    for step in range(3):
        flat.grad = draw(2, 6, 2, 9, seed=102 + 10 * step).transpose(1, 2).contiguous()
        optimizer.step()
    same([flat.detach().transpose(1, 2)], expected[2:])


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9, "weight_decay": 0.1}])
def test_blocks_change_nothing(options, monkeypatch):
    shapes = [(40, 30), (3, 20, 10), (9, 2, 2), (70,), (20, 3)]
    make = lambda ps: Adafactor(ps, 0.1, min_dim_size_to_factor=2, **options)  # noqa: E731
    whole, _ = walk(make, shapes)
    monkeypatch.setattr(_adafactor_blocks, "BLOCK", 64)
    cut, _ = walk(make, shapes)
    same(whole, cut)


def test_no_temporary_is_larger_than_a_block():
    x = torch.zeros(1, 3 * BLOCK // 100, 100)
    sweeps = Sweeps(x, x, torch.float32)
    assert sweeps.buffer.numel() <= BLOCK < x.numel()
    assert sum(x[span].numel() for span in sweeps.spans) == x.numel()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"lr": None}),
        ({"warmup_init": True}, {"lr": None, "warmup_slope": 1e-6}),
        ({"scale_parameter": False, "relative_step": False, "lr": 1e-2}, {"scale_parameter": False, "lr": 1e-2}),
        ({"beta1": 0.9, "weight_decay": 0.1}, {"lr": None, "beta1": 0.9, "weight_decay": 0.1}),
        ({"clip_threshold": 0.3, "eps": (1e-6, 0.5)}, {"lr": None, "clip_threshold": 0.3, "eps": (1e-6, 0.5)}),
    ],
)
def test_equals_transformers(theirs, ours):
    peer = pytest.importorskip("transformers.optimization")
    shapes = [(40, 30), (30,), (2, 5, 4), (6, 3, 3, 3)]
    expected, _ = walk(lambda ps: peer.Adafactor(ps, **theirs), shapes, steps=50)
    got, _ = walk(lambda ps: Adafactor(ps, compat="transformers", **ours), shapes, steps=50)
    same(got, expected, rtol=1e-5, atol=2e-6)


def test_matrices_need_no_mode_to_equal_transformers_and_torch():
    peer = pytest.importorskip("transformers.optimization")
    shapes = [(40, 30), (30,)]
    got, _ = walk(lambda ps: Adafactor(ps, None, min_dim_size_to_factor=1), shapes, steps=20)
    same(got, walk(lambda ps: peer.Adafactor(ps), shapes, steps=20)[0])
    same(got, walk(lambda ps: torch.optim.Adafactor(ps, lr=1e-2), shapes, steps=20)[0])


def test_torchs_lr_is_a_cap():
    got, _ = walk(lambda ps: Adafactor(ps, None, max_relative_step=0.4, min_dim_size_to_factor=1), [(8, 7)], steps=20)
    same(got, walk(lambda ps: torch.optim.Adafactor(ps, lr=0.4), [(8, 7)], steps=20)[0])


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9}])
def test_a_state_of_transformers_goes_on_here(options):
    peer = pytest.importorskip("transformers.optimization")
    shapes = [(12, 10), (10,)]
    theirs = [nn.Parameter(draw(*s, seed=i)) for i, s in enumerate(shapes)]
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    one, two = peer.Adafactor(theirs, **options), Adafactor(ours, lr=None, compat="transformers", **options)
    for step in range(8):
        for i, (p, q) in enumerate(zip(theirs, ours, strict=True)):
            p.grad = draw(*p.shape, seed=10 * step + i)
            q.grad = p.grad.clone()
        if step == 4:
            for q, p in zip(ours, theirs, strict=True):
                q.data.copy_(p)
            for i, state in one.state_dict()["state"].items():
                two.state[ours[i]] = {k: torch.as_tensor(v).clone() for k, v in state.items() if k != "RMS"}
        one.step()
        if step >= 4:
            two.step()
    same([p.detach() for p in ours], [p.detach() for p in theirs])


def test_state_is_as_small_as_it_can_be():
    _, optimizer = walk(lambda ps: Adafactor(ps), [(300, 200), (200,), (200, 130, 3)], steps=1)
    numbers = sum(t.numel() for state in optimizer.state.values() for k, t in state.items() if k != "step")
    assert numbers == (300 + 200) + 200 + 3 * (200 + 130)
    _, optimizer = walk(lambda ps: Adafactor(ps, beta1=0.9), [(300, 200)], steps=1)
    assert sum(t.numel() for t in optimizer.state[optimizer.param_groups[0]["params"][0]].values()) == 500 + 60000 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"beta1": 0.9, "stochastic_rounding": True}])
def test_a_resumed_run_repeats(dtype, options):
    shapes = [(6, 5), (5,)]
    make = lambda ps: Adafactor(ps, 0.1, min_dim_size_to_factor=1, **options)  # noqa: E731
    whole, _ = walk(make, shapes, steps=6, dtype=dtype)
    half, optimizer = walk(make, shapes, steps=3, dtype=dtype)
    params = [nn.Parameter(p.clone()) for p in half]
    other = make(params)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(t.dtype == torch.float32 for state in other.state.values() for t in state.values())
    for step in range(3, 6):
        for i, p in enumerate(params):
            p.grad = draw(*p.shape, seed=100 + 10 * step + i).to(dtype)
        other.step()
    assert all(torch.equal(a, p.detach()) for a, p in zip(whole, params, strict=True))


def test_a_copy_is_the_same_optimizer():
    p = nn.Parameter(draw(5, 4))
    optimizer = copy.deepcopy(Adafactor([p], None, scale_parameter=False, compat="bert4keras"))
    q = optimizer.param_groups[0]["params"][0]
    q.grad = torch.ones(5, 4)
    optimizer.step()
    torch.testing.assert_close(p.detach() - q.detach(), torch.full((5, 4), 0.01 * 0.05), rtol=1e-3, atol=0)


def test_bfloat16_is_computed_in_float32():
    """One step from bfloat16 weights and gradients is the float32 step, rounded once."""
    x, g = draw(20, 30).bfloat16(), draw(20, 30, seed=1).bfloat16()
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        p = nn.Parameter(x.to(dtype, copy=True))
        p.grad = g.to(dtype)
        Adafactor([p], 0.1, min_dim_size_to_factor=1).step()
        ends.append(p.detach())
    assert (ends[0] == ends[1].bfloat16()).float().mean() > 0.999  # a sum in another order may round another way


def test_steps_below_the_resolution_count_under_stochastic_rounding():
    """1 in bfloat16 has neighbours 2^-7 above and 2^-8 below; steps of 2^-12 vanish or keep the mean."""
    ends = []
    for rounding in (False, True):
        p = nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
        optimizer = Adafactor([p], 2.0**-12, scale_parameter=False, stochastic_rounding=rounding, seed=3)
        for _ in range(16):
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends.append(p.detach().double())
    assert (ends[0] == 1).all()
    error = ends[1].std() / 4000**0.5
    assert abs(ends[1].mean() - (1 - 16 * 2.0**-12)) < 4 * error
    assert error < 1e-4


def test_rows_without_gradient_stay_and_zeros_begin_to_move():
    p, q = nn.Parameter(draw(5, 4)), nn.Parameter(torch.zeros(5, 4))
    before = p.detach().clone()
    p.grad, q.grad = draw(5, 4, seed=1), draw(5, 4, seed=2)
    p.grad[[1, 3]] = 0.0
    Adafactor([p, q], 0.1, min_dim_size_to_factor=1).step()
    assert torch.equal(p[[1, 3]], before[[1, 3]])
    assert p.isfinite().all()
    assert q.square().mean().sqrt().item() == pytest.approx(0.1 * 1e-3, rel=0.2)  # lr * eps2
    p.grad = torch.zeros(5, 4)
    Adafactor([p], 0.1, min_dim_size_to_factor=1).step()
    assert p.isfinite().all()


def test_names_that_are_not_scaled():
    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    for p in model.parameters():
        nn.init.constant_(p, 3.0)
        p.grad = torch.ones_like(p)
    Adafactor(model.named_parameters(), 0.1, exclude_from_scale=("Norm",)).step()
    assert model["linear"].weight[0, 0].item() == pytest.approx(3 - 0.3)
    assert model["norm"].weight[0].item() == pytest.approx(3 - 0.1)


def test_schedulers_keep_their_lr():
    p = nn.Parameter(draw(5, 4))
    optimizer = Adafactor([p], 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**step)
        p.grad = draw(5, 4, seed=step)
        optimizer.step()
        scheduler.step()


def test_bert4keras_divides_the_absolute_automatic_step():
    options = {"lr": None, "scale_parameter": False}
    (x,), _ = walk(lambda ps: Adafactor(ps, compat="bert4keras", **options), [(4, 3)], steps=1)
    (y,), _ = walk(lambda ps: Adafactor(ps, **options), [(4, 3)], steps=1)
    start = draw(4, 3, scale=0.3)
    torch.testing.assert_close(20 * (x - start), y - start, rtol=1e-4, atol=1e-7)


def test_threads_change_no_bit(monkeypatch):
    shapes = [(30, 20), (64, 40), (20,), (3, 9, 8)]
    ends = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        ends.append(walk(lambda ps: Adafactor(ps, 0.1, min_dim_size_to_factor=2), shapes)[0])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_engine_is_the_one_asked_for(engine):
    x = torch.zeros(2, 3, 4)
    assert (kernel_for(x, x) is not None) == (engine == "on")
    assert kernel_for(x.double(), x.double()) is None
    assert kernel_for(x.mT, x.mT) is None


def test_autograd_notices_the_step():
    p = nn.Parameter(draw(5, 4))
    loss = (p * p).sum()  # keeps p for backward
    p.grad = draw(5, 4, seed=1)
    Adafactor([p], 0.1, min_dim_size_to_factor=1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_plain_loop_learns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    x = draw(64, 8)
    y = x[:, :1] * x[:, 1:2]
    optimizer = Adafactor(model.parameters(), 3e-2, min_dim_size_to_factor=8)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(150)]
    assert losses[-1] < 0.2 * losses[0]


def test_a_gradient_that_is_refused_moves_nothing():
    p, table = nn.Parameter(draw(3, 4)), nn.Embedding(5, 4, sparse=True)
    before = p.detach().clone()
    p.grad = torch.ones(3, 4)
    table(torch.tensor([1])).sum().backward()
    optimizer = Adafactor([p, table.weight])
    with pytest.raises(ValueError, match=r"dense gradients, got a sparse one; use sparse=False.*Adam with lazy="):
        optimizer.step()
    assert torch.equal(p.detach(), before)
    assert not optimizer.state
    z = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    z.grad = torch.ones_like(z)
    with pytest.raises(ValueError, match=r"real weights, got torch.complex64; optimise torch.view_as_real"):
        Adafactor([z]).step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, r"lr of Adafactor must be > 0, or None .*got 0"),
        ({"beta1": 1.0}, r"beta1 .* in \[0, 1\); there are no betas="),
        ({"decay_rate": -0.8}, r"decay_rate .* > 0 \(transformers writes it with a minus\).*got -0.8"),
        ({"eps": (1e-30, -1)}, "eps .* two numbers >= 0"),
        ({"clip_threshold": 0}, "clip_threshold .* None to clip nothing; got 0"),
        ({"weight_decay": -1}, "weight_decay .* >= 0; got -1"),
        ({"compat": "torch"}, r"compat must be one of \(None, 'bert4keras', 'transformers'\), got 'torch'"),
        ({"exclude_from_scale": ("bias",)}, r"exclude_from_scale=\('bias',\) are name patterns.*named_parameters"),
        ({"exclude_from_scale": "bias"}, r"takes a list of patterns, got 'bias'; write \('bias',\)"),
    ],
)
def test_messages(options, message):
    with pytest.raises(ValueError, match=message):
        Adafactor([nn.Parameter(torch.ones(1))], **options)
