"""FGM, PGD and noise on weights: the definition by hand, the post's equivalences, exact restore, every misuse."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.train import FGM, PGD, Noise, fgm_backward, noise_backward, perturbed, pgd_backward

ATTACKS = {
    "fgm": fgm_backward,
    "pgd": pgd_backward,
    "noise": lambda *a, **k: noise_backward(*a, generator=torch.Generator().manual_seed(5), **k),
}
IDS = torch.tensor([[1, 2, 2], [4, 1, 0]])
LABEL = torch.tensor([0, 1])


class Bag(nn.Module):
    """Embeddings, a hidden layer, two classes; token 0 is padding; `rows` makes the table big enough to be sparse."""

    def __init__(self, rows=7, dim=4, dtype=torch.float64, sparse=False, tied=False):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = nn.Embedding(rows, dim, padding_idx=0, sparse=sparse, dtype=dtype)
        self.hidden = nn.Linear(dim, dim, dtype=dtype)
        self.head = nn.Linear(dim, 2, dtype=dtype)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
        self.tied = tied

    def forward(self, ids):
        h = torch.tanh(self.hidden(self.embed(ids).mean(1)))
        return F.linear(h, self.embed.weight) if self.tied else self.head(h)

    def loss(self, scale=1.0):
        return scale * F.cross_entropy(self(IDS), LABEL)


def gradients(model):
    return {n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None}


def by_hand(model, epsilon, alpha, steps):
    """Eqs. (1) to (5) step by step on a second model, with plain backward passes."""
    twin = copy.deepcopy(model)
    w, start = twin.embed.weight, twin.embed.weight.detach().clone()
    delta = torch.zeros_like(start)
    for _ in range(steps):
        twin.zero_grad()
        twin.loss().backward()
        g = w.grad.to_dense()
        delta = delta + alpha * g / math.sqrt(sum(float(x) ** 2 for x in g[g != 0]))
        length = math.sqrt(sum(float(x) ** 2 for x in delta[delta != 0]))
        delta = delta * min(1.0, epsilon / length)
        w.data = start + delta
    twin.zero_grad()
    loss = twin.loss()
    loss.backward()
    return loss.detach(), gradients(twin), delta


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], **tolerance)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [7, 17_000])
@pytest.mark.parametrize("sparse", [False, True])
def test_fgm_equals_the_definition(rows, sparse, tied):
    if tied and (sparse or rows > 7):
        pytest.skip("a tied output has a gradient in every row")
    model = Bag(rows, sparse=sparse, tied=tied)
    loss, expected, _ = by_hand(model, 0.5, 0.5, 1)
    before = model.embed.weight.detach().clone()
    assert fgm_backward(model.loss, model.embed.weight, 0.5).item() == pytest.approx(loss.item(), rel=1e-12)
    assert_same(gradients(model), expected)
    assert torch.equal(model.embed.weight, before)
    assert model.embed.weight.grad.is_sparse == sparse


@pytest.mark.parametrize("rows", [7, 17_000])
@pytest.mark.parametrize(("epsilon", "alpha", "steps"), [(1.0, 0.3, 3), (0.4, 0.3, 4), (0.5, 0.5, 1)])
def test_pgd_equals_the_definition(rows, epsilon, alpha, steps):
    model = Bag(rows)
    loss, expected, delta = by_hand(model, epsilon, alpha, steps)
    assert torch.linalg.vector_norm(delta) <= epsilon * (1 + 1e-12)
    got = pgd_backward(model.loss, model.embed.weight, epsilon, alpha, steps)
    assert got.item() == pytest.approx(loss.item(), rel=1e-12)
    assert_same(gradients(model), expected)


def test_pgd_with_one_full_step_is_fgm():
    one, two = Bag(), Bag()
    fgm_backward(one.loss, one.embed.weight, 0.7)
    pgd_backward(two.loss, two.embed.weight, 0.7, alpha=0.7, steps=1)
    assert_same(gradients(one), gradients(two), rtol=1e-12, atol=1e-14)


def moved(run, weight):
    """delta, seen from inside the last call of the loss."""
    seen, before = [], weight.detach().clone()
    run(seen)
    return seen[-1] - before


@pytest.mark.parametrize("rows", [7, 17_000])
@pytest.mark.parametrize("name", ATTACKS)
def test_length_support_and_padding(name, rows):
    model = Bag(rows)

    def run(seen):
        def loss_fn():
            seen.append(model.embed.weight.detach().clone())
            return model.loss()

        ATTACKS[name](loss_fn, model.embed.weight, epsilon=0.5)

    delta = moved(run, model.embed.weight)
    assert torch.linalg.vector_norm(delta).item() == pytest.approx(0.5, rel=1e-9)
    used = delta.any(dim=1).nonzero()[:, 0].tolist()
    assert used == [1, 2, 4]  # not the padding row 0, not the tokens that are not in the batch


def test_noise_everywhere_spends_itself_on_rows_that_are_not_used():
    model = Bag(1000, dtype=torch.float32)

    def run(seen):
        def loss_fn():
            seen.append(model.embed.weight.detach().clone())
            return model.loss()

        noise_backward(loss_fn, model.embed.weight, 0.5, support="all", generator=torch.Generator().manual_seed(0))
        assert len(seen) == 1  # no pass for the rows

    delta = moved(run, model.embed.weight)
    assert torch.linalg.vector_norm(delta).item() == pytest.approx(0.5, rel=1e-4)
    assert torch.linalg.vector_norm(delta[[1, 2, 4]]) < 0.1


def test_noise_is_isotropic():
    """4,000 draws of a unit vector in 3 dimensions: mean 0 and second moments 1/3 within four standard errors."""
    w = nn.Parameter(torch.zeros(1, 3, dtype=torch.float64))
    generator, draws = torch.Generator().manual_seed(2), []

    def loss_fn():
        draws.append(w.detach().clone()[0])
        return w.sum()

    for _ in range(4000):
        noise_backward(loss_fn, w, 1.0, generator=generator)
    z = torch.stack(draws[1::2])
    n = len(z)
    assert (z.mean(0).abs() < 4 * math.sqrt(1 / 3 / n)).all()
    second = z.T @ z / n
    assert (second - torch.eye(3, dtype=torch.float64) / 3).abs().max() < 4 * math.sqrt(4 / 45 / n)


def test_noise_repeats_with_its_generator_and_leaves_the_global_stream():
    model, state = Bag(), torch.get_rng_state()
    losses = [ATTACKS["noise"](model.loss, model.embed.weight).item() for _ in range(2)]
    assert losses[0] == losses[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_several_weights_share_one_norm():
    model = Bag()
    seen = []

    def loss_fn():
        seen.append([model.embed.weight.detach().clone(), model.hidden.weight.detach().clone()])
        return model.loss()

    for name, attack in ATTACKS.items():
        seen.clear()
        attack(loss_fn, [model.embed.weight, model.hidden.weight], epsilon=0.5)
        deltas = [b - a for a, b in zip(seen[0], seen[-1], strict=True)]
        total = sum(float((d**2).sum()) for d in deltas)
        assert math.sqrt(total) == pytest.approx(0.5, rel=1e-9), name
        assert all(d.any() for d in deltas)


def test_linear_model_has_the_closed_form():
    """softplus(-y w.x) with x a one-row table: FGM's loss is softplus(-y w.x + epsilon ||w||) exactly."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, dtype=torch.float64, generator=generator)
    x = nn.Parameter(torch.randn(1, 6, dtype=torch.float64, generator=generator))
    for y in (1.0, -1.0):
        got = fgm_backward(lambda y=y: F.softplus(-y * x @ w).sum(), x, 0.3)
        expected = F.softplus(-y * (x @ w).sum() + 0.3 * torch.linalg.vector_norm(w))
        assert got.item() == pytest.approx(expected.item(), abs=4e-16, rel=4e-16)


def two_numbers():
    theta = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
    x = nn.Parameter(torch.tensor([[0.5, 1.5]], dtype=torch.float64))
    return theta, x, lambda: torch.tanh(x @ theta).sum().square() + (x @ theta).sum().sin()


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
def test_fgm_is_the_gradient_penalty_to_first_order(epsilon):
    """The post's equivalence: dL/dtheta at x + eps g/||g|| is that of L + eps ||g|| up to O(eps^2)."""
    theta, x, loss_fn = two_numbers()
    fgm_backward(loss_fn, x, epsilon)
    got = theta.grad.clone()
    loss = loss_fn()
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    (expected,) = torch.autograd.grad(loss + epsilon * torch.linalg.vector_norm(g), theta)
    assert (got - expected).norm() < 20 * epsilon**2
    (plain,) = torch.autograd.grad(loss_fn(), theta)
    assert (got - plain).norm() > 0.1 * epsilon


def test_slope_of_the_value():
    """|L(x + eps g/||g||) - L - eps ||g||| falls with eps^2."""
    _, x, loss_fn = two_numbers()
    loss = loss_fn()
    (g,) = torch.autograd.grad(loss, x)
    errors = [abs(fgm_backward(loss_fn, x, e).item() - loss.item() - e * g.norm().item()) for e in (1e-1, 1e-2, 1e-3)]
    assert math.log10(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)
    assert math.log10(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("name", ATTACKS)
def test_both_adds_the_clean_gradient(name):
    clean, adv, both = Bag(), Bag(), Bag()
    loss = clean.loss()
    loss.backward()
    adv_loss = ATTACKS[name](adv.loss, adv.embed.weight)
    both_loss = ATTACKS[name](both.loss, both.embed.weight, mode="both")
    assert both_loss.item() == pytest.approx(loss.item() + adv_loss.item(), rel=1e-12)
    expected = {n: g + gradients(clean)[n] for n, g in gradients(adv).items()}
    assert_same(gradients(both), expected)


@pytest.mark.parametrize("mode", ["adv", "both"])
@pytest.mark.parametrize("name", ATTACKS)
def test_gradients_accumulate_as_backward_does(name, mode):
    once, twice = Bag(), Bag()
    ATTACKS[name](once.loss, once.embed.weight, mode=mode)
    for _ in range(2):
        ATTACKS[name](twice.loss, twice.embed.weight, mode=mode)
    assert_same(gradients(twice), {n: 2 * g for n, g in gradients(once).items()})


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**40])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_scaled_loss_moves_the_weights_alike(name, scale):
    """In float32 even where the squares of the gradient leave its range; powers of two keep it exact."""
    plain, scaled = Bag(dtype=torch.float32), Bag(dtype=torch.float32)
    ATTACKS[name](plain.loss, plain.embed.weight)
    ATTACKS[name](lambda: scaled.loss(scale), scaled.embed.weight)
    assert_same({n: g / scale for n, g in gradients(scaled).items()}, gradients(plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [7, 17_000])
@pytest.mark.parametrize("name", ATTACKS)
def test_without_direction_the_step_is_clean(name, rows):
    model, calls = Bag(rows), []
    clean = Bag(rows)
    clean.loss().backward()

    def flat():  # the first pass sees no slope at the embeddings
        calls.append(1)
        return model.loss() if len(calls) > 1 else model.head.bias.sum() + 0 * model.embed.weight.sum()

    fgm_backward(flat, model.embed.weight)
    assert_same(gradients(model), gradients(clean))
    for bad in (math.nan, math.inf):
        model, calls = Bag(rows), []
        passes = {"fgm": 1, "pgd": 3, "noise": 1}[name]

        def broken(model=model, calls=calls, bad=bad, passes=passes):
            calls.append(1)
            return model.loss() * (bad if len(calls) <= passes else 1.0)

        ATTACKS[name](broken, model.embed.weight)
        assert all(g.isfinite().all() for g in gradients(model).values())
        if name != "noise":
            assert_same(gradients(model), gradients(clean))


def test_pgd_starts_over_where_the_moved_weights_overflow():
    model, calls = Bag(), []
    clean = Bag()
    clean.loss().backward()

    def loss_fn():
        calls.append(1)
        return model.loss() * (math.inf if len(calls) == 3 else 1.0)

    pgd_backward(loss_fn, model.embed.weight, steps=3)
    assert_same(gradients(model), gradients(clean))


@pytest.mark.parametrize("rows", [7, 17_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_restored_to_the_bit_also_after_exceptions(dtype, rows):
    model = Bag(rows, dtype=dtype)
    before = model.embed.weight.detach().clone()
    for name, attack in ATTACKS.items():
        for failing in (1, 2, 3):
            calls = []

            def loss_fn(calls=calls, failing=failing):
                calls.append(1)
                if len(calls) == failing:
                    raise KeyError(failing)
                return model.loss()

            if name == "pgd" or failing < 3:
                with pytest.raises(KeyError):
                    attack(loss_fn, model.embed.weight, epsilon=0.123)
            assert torch.equal(model.embed.weight, before), (name, failing)


def test_interrupted_runs_leave_no_hook():
    model = Bag()
    with pytest.raises(KeyError):
        fgm_backward(lambda: {}["x"], model.embed.weight, mode="both")
    assert not model.embed.weight._backward_hooks


def test_perturbed_dense_and_sparse_agree():
    w = nn.Parameter(torch.arange(12.0).reshape(4, 3) / 7)
    before, address = w.detach().clone(), w.data_ptr()
    dense = torch.zeros(4, 3)
    dense[[1, 3]] = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])
    sparse = torch.sparse_coo_tensor(torch.tensor([[3, 1]]), dense[[3, 1]], (4, 3), check_invariants=True)
    for delta in (dense, sparse):
        with perturbed(w, delta):
            assert torch.equal(w, before + dense)
            assert torch.is_grad_enabled()
        assert torch.equal(w, before)
        assert w.data_ptr() == address
    message = r"one delta of the same shape.*\[\(4, 3\)\] and deltas \[\(3, 4\)\]"
    with pytest.raises(ValueError, match=message), perturbed(w, dense.T):
        pass


def test_attack_loss_alone_decides_the_direction():
    one, two = Bag(), Bag()
    fgm_backward(one.loss, one.embed.weight, attack_loss_fn=lambda: -one.loss())
    w = two.embed.weight
    (g,) = torch.autograd.grad(two.loss(), w)
    with perturbed(w, -0.5 * g / g.norm()):
        two.loss().backward()
    assert_same(gradients(one), gradients(two))


@pytest.mark.parametrize("sparse", [False, True])
def test_reduce_sees_the_attack_gradient_and_its_answer_is_used(sparse):
    """Two halves of a batch whose gradients are summed by hand move the weight as the whole batch does."""
    whole, half = Bag(sparse=sparse), Bag(sparse=sparse)
    fgm_backward(whole.loss, whole.embed.weight)

    def part(i):
        return lambda: F.cross_entropy(half(IDS[i : i + 1]), LABEL[i : i + 1]) / 2

    grads = [torch.autograd.grad(part(i)(), half.embed.weight)[0] for i in range(2)]
    for i in range(2):
        fgm_backward(part(i), half.embed.weight, reduce=lambda g, i=i: g + grads[1 - i])
    assert_same(gradients(half), gradients(whole))


def test_autocast_keeps_weights_and_attack_in_float32():
    model = Bag(dtype=torch.float32)
    exact = Bag(dtype=torch.float32)

    def loss_fn():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.loss()

    loss = fgm_backward(loss_fn, model.embed.weight)
    assert loss.item() == pytest.approx(fgm_backward(exact.loss, exact.embed.weight).item(), rel=0.02)
    assert model.embed.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("attack_mode", ["train", "eval"])
def test_batch_norm_counts_the_batch_once_and_dropout_follows_the_mode(attack_mode):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.drop, self.seen = nn.Embedding(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), []

        def forward(self, ids):
            self.seen.append((self.drop.training, self.norm.track_running_stats))
            return self.drop(self.norm(self.embed(ids).mean(1)))

    net = Net()
    net.drop.eval()
    net.embed.eval()
    FGM(net, attack_mode=attack_mode).backward(lambda: net(IDS).square().sum())
    assert int(net.norm.num_batches_tracked) == 1
    assert [m.training for m in (net, net.embed, net.norm, net.drop)] == [True, False, True, False]
    assert net.norm.track_running_stats
    net.drop.train()
    FGM(net, attack_mode=attack_mode).backward(lambda: net(IDS).square().sum())
    assert [training for training, _ in net.seen[2:]] == [attack_mode == "train", True]


@pytest.mark.parametrize("name", ["fgm", "pgd", "noise"])
def test_objects_do_what_the_functions_do(name):
    one, two = Bag(), Bag()
    generator = torch.Generator().manual_seed(5)
    made = {
        "fgm": lambda: FGM(one, epsilon=0.4),
        "pgd": lambda: PGD(one, epsilon=0.4, alpha=0.2, steps=2),
        "noise": lambda: Noise(one, epsilon=0.4, generator=generator),
    }[name]()
    extra = {"alpha": 0.2, "steps": 2} if name == "pgd" else {}
    assert made.backward(one.loss).item() == ATTACKS[name](two.loss, two.embed.weight, epsilon=0.4, **extra).item()
    assert_same(gradients(one), gradients(two))


def test_parameters_are_found_by_name_or_by_the_models_own_word():
    model = Bag()
    assert FGM(model).names == ["embed.weight"]
    assert FGM(model, params=r"^hidden\.|embed").names == ["embed.weight", "hidden.weight", "hidden.bias"]
    assert FGM(model, params=[model.head.weight]).names == ["head.weight"]
    model.positions = nn.Embedding(3, 4)
    with pytest.raises(ValueError, match=r"not exactly one embedding layer \(found: embed.weight, positions.weight\)"):
        FGM(model)
    model.get_input_embeddings = lambda: model.positions
    assert FGM(model).names == ["positions.weight"]
    with pytest.raises(ValueError, match=r"params='emb\\\\.' matches no parameter; the names are embed.weight, hidden"):
        FGM(model, params=r"emb\.")
    with pytest.raises(ValueError, match=r"found: none.*name the weight by params="):
        FGM(nn.Linear(2, 2))


def test_messages():
    model = Bag()
    w = model.embed.weight
    with pytest.raises(ValueError, match=r"epsilon must be > 0, got -0.5; to switch the attack off call loss_fn\(\)"):
        fgm_backward(model.loss, w, -0.5)
    for attack in (pgd_backward, noise_backward):
        with pytest.raises(ValueError, match="epsilon must be > 0, got 0"):
            attack(model.loss, w, 0)
    with pytest.raises(ValueError, match="epsilon must be > 0, got nan"):
        FGM(model, epsilon=math.nan)
    with pytest.raises(ValueError, match=r"alpha > 0 and steps >= 1, got alpha=0.3, steps=0"):
        pgd_backward(model.loss, w, steps=0)
    with pytest.raises(ValueError, match=r"mode must be 'adv' .* or 'both' .*, got 'clean'"):
        fgm_backward(model.loss, w, mode="clean")
    with pytest.raises(ValueError, match=r"support must be 'batch' .* or 'all', got 'rows'"):
        noise_backward(model.loss, w, support="rows")
    with pytest.raises(ValueError, match=r"attack_mode must be 'train' or 'eval', got 'test'"):
        FGM(model, attack_mode="test")
    with pytest.raises(ValueError, match=r"does not depend on the weight \(3, 3\)"):
        fgm_backward(model.loss, nn.Parameter(torch.ones(3, 3)))
    with pytest.raises(ValueError, match="no weight to perturb"):
        fgm_backward(model.loss, [])
    with pytest.raises(ValueError, match=r"scalar tensor with a graph, got shape \(2,\)"):
        fgm_backward(lambda: w.sum(1)[:2], w)
    with pytest.raises(ValueError, match="got float"):
        fgm_backward(lambda: 1.0, w)
    with pytest.raises(ValueError, match="detached one"), torch.no_grad():
        fgm_backward(model.loss, w)
    with pytest.raises(TypeError, match=r"rounded away in torch.bfloat16 weights; .*torch.autocast"):
        fgm_backward(lambda: None, nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))
    w.requires_grad_(False)
    with pytest.raises(ValueError, match=r"\(7, 4\) to perturb is frozen.*fgm_output_backward"):
        fgm_backward(model.loss, w)
