"""Synthesizer attention: every kind by loops, identities, padding, lengths, counts, mixtures, resizing, training."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from two_processes import in_two_processes

from danlu.nn import SYNTHESIZER_MODES, SynthesizerAttention, attend, synthesizer_attention, synthesizer_weights
from danlu.optim import param_groups

MODES = [*SYNTHESIZER_MODES, "random+vanilla", "dense+vanilla", "random+dense", "factorized_dense+factorized_random"]
KEEP = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])


def made(mode, dim=4, heads=2, max_len=6, **options):
    torch.manual_seed(0)
    layer = SynthesizerAttention(dim, heads, mode, max_len, **options).double()
    with torch.no_grad():  # biases and mixtures that matter
        for p in layer.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return layer


def tokens(batch=2, length=5, dim=4, seed=1):
    return torch.randn(batch, length, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def score(layer, kind, x, h, i, j):
    """One score of one head, eqs. (1) to (5) of the scores, with Python floats; x is (T, D)."""
    part, size = layer.parts[kind], layer.embed_dim // layer.num_heads
    if kind in ("random", "fixed_random"):
        return float(part.table[h, i, j])
    if kind == "factorized_random":
        return sum(float(r * s) for r, s in zip(part.row_table[h, i], part.column_table[h, j], strict=True))
    if kind == "vanilla":
        q, k = part.query(x[i])[h * size :][:size], part.key(x[j])[h * size :][:size]
        return sum(float(a * b) for a, b in zip(q, k, strict=True)) / math.sqrt(size)
    hidden = [max(0.0, sum(float(w * v) for w, v in zip(row, x[i], strict=True)) + float(c))
              for row, c in zip(part.hidden_weight[h], part.hidden_bias[h], strict=True)]  # fmt: skip

    def column(n):
        return sum(float(part.weight[h, f, n]) * hidden[f] for f in range(len(hidden))) + float(part.bias[h, n])

    if kind == "dense":
        return column(j)
    m, n = part.factors
    return column(j // n) * column(m + j % n)


@torch.no_grad()
def by_loops(layer, x, keep, causal):
    """Outputs of one sequence (T, D), one key at a time."""
    size, logits, kinds = layer.embed_dim // layer.num_heads, layer.mixture_logits, layer.mode.split("+")
    value, rows = layer.value(x), []
    for i in range(len(x)):
        heads = []
        for h in range(layer.num_heads):
            seen = [j for j in range(len(x)) if keep[j] and (j <= i or not causal)]
            alpha = [1.0] * len(kinds)
            if logits is not None:
                powers = logits[:, h].exp().tolist()
                alpha = [power / sum(powers) for power in powers]
            scores = [sum(a * score(layer, kind, x, h, i, j) for a, kind in zip(alpha, kinds, strict=True))
                      for j in seen]  # fmt: skip
            powers = [math.exp(s) for s in scores]
            out = torch.zeros(size, dtype=x.dtype)
            for j, power in zip(seen, powers, strict=True):
                out = out + power / sum(powers) * value[j, h * size : (h + 1) * size]
            heads.append(out)
        rows.append(layer.output(torch.cat(heads)))
    return torch.stack(rows)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_formula(mode, causal, masked):
    layer, x = made(mode, rank=3), tokens()
    keep = KEEP if masked else torch.ones_like(KEEP)
    got = layer(x, KEEP if masked else None, causal=causal)
    for n in range(2):
        expected = by_loops(layer, x[n], keep[n], causal)
        rows = keep[n]  # what a padded token is given means nothing
        torch.testing.assert_close(got[n][rows], expected[rows], rtol=0, atol=1e-12)


def test_sum_mixing_adds_the_scores():
    layer, x = made("random+vanilla", mixing="sum"), tokens()
    assert layer.mixture_logits is None
    torch.testing.assert_close(layer(x)[0], by_loops(layer, x[0], [True] * 5, False), rtol=0, atol=1e-12)


def test_vanilla_is_the_attention_of_torch():
    layer, x = made("vanilla"), tokens()
    other = nn.MultiheadAttention(4, 2, batch_first=True).double()
    part = layer.parts["vanilla"]
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([part.query.weight, part.key.weight, layer.value.weight]))
        other.in_proj_bias.copy_(torch.cat([part.query.bias, part.key.bias, layer.value.bias]))
        other.out_proj.weight.copy_(layer.output.weight)
        other.out_proj.bias.copy_(layer.output.bias)
    expected, weights = other(x, x, x, key_padding_mask=~KEEP, average_attn_weights=False)
    torch.testing.assert_close(layer(x, KEEP)[KEEP], expected[KEEP])
    torch.testing.assert_close(layer.weights(x, KEEP)[0, :, :3], weights[0, :, :3])


def test_factorized_random_is_attention_with_constant_queries_and_keys():
    layer, x = made("factorized_random"), tokens()
    part, value = layer.parts["factorized_random"], layer.value(x).unflatten(-1, (2, 2)).transpose(1, 2)
    query, key = (table[None, :, :5].expand(2, -1, -1, -1) for table in (part.row_table, part.column_table))
    expected, _ = attend(query, key, value)
    torch.testing.assert_close(layer(x), layer.output(expected.transpose(1, 2).flatten(2)))


def test_random_is_a_linear_map_over_places():
    layer, x, y = made("random", bias=False), tokens(), tokens(seed=2)
    torch.testing.assert_close(layer(2 * x - 3 * y), 2 * layer(x) - 3 * layer(y))
    along = nn.Linear(5, 5, bias=False).double()
    value = layer.value(x)
    for h in range(2):
        with torch.no_grad():
            along.weight.copy_(layer.parts["random"].table[h, :5, :5].softmax(-1))
        value[..., 2 * h : 2 * h + 2] = along(value[..., 2 * h : 2 * h + 2].mT).mT
    torch.testing.assert_close(layer(x), layer.output(value))
    assert layer.weights(x).shape == (1, 2, 5, 5)


def test_fixed_random_is_stored_and_never_trained():
    layer = made("fixed_random")
    table = layer.parts["fixed_random"].table
    assert not table.requires_grad
    layer.requires_grad_(True)
    assert not table.requires_grad
    assert all("table" not in name for name, _ in layer.named_parameters())
    torch.manual_seed(5)
    other = SynthesizerAttention(4, 2, "fixed_random", 6).double()
    assert not torch.equal(other.parts["fixed_random"].table, table)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.parts["fixed_random"].table, table)


@pytest.mark.parametrize("mode", ["dense", "random", "factorized_dense", "factorized_random"])
def test_places_count(mode):  # without position embeddings: permuted tokens do more than permute the outputs
    x, order = tokens(1), torch.tensor([2, 0, 4, 1, 3])
    layer, plain = made(mode), made("vanilla")
    assert (layer(x[:, order]) - layer(x)[:, order]).abs().max() > 1e-2
    torch.testing.assert_close(plain(x[:, order]), plain(x)[:, order])


@pytest.mark.parametrize("mode", MODES)
def test_padding_and_batch_change_nothing(mode):
    layer = made(mode, max_len=12).float()
    x = tokens(3, 9).float()
    lengths = [9, 4, 1]
    keep = torch.arange(9) < torch.tensor(lengths)[:, None]
    spoilt = x.masked_fill(~keep[..., None], torch.nan).requires_grad_()
    got = layer(spoilt, keep)
    assert got.isfinite().all()
    for n, length in enumerate(lengths):
        torch.testing.assert_close(got[n, :length], layer(x[n : n + 1, :length])[0], rtol=0, atol=1e-6)
    got[keep].sum().backward()
    assert spoilt.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    longer = torch.cat([x, torch.full((3, 3, 4), 1e30)], 1)
    wider = layer(longer, F.pad(keep, (0, 3)))
    torch.testing.assert_close(wider[:, :9][keep], got[keep], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_causal_sees_no_later_token(mode):
    layer, x = made(mode), tokens()
    changed = x.clone()
    changed[:, 3:] += 1
    torch.testing.assert_close(layer(x, causal=True)[:, :3], layer(changed, causal=True)[:, :3], rtol=0, atol=1e-14)
    assert (layer(x) - layer(changed))[:, :3].abs().max() > 1e-3  # the values of later tokens


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_tokens(mode):
    layer, x = made(mode), tokens()
    keep = KEEP.clone()
    keep[0] = False
    x = x.requires_grad_()
    out = layer(x, keep)
    torch.testing.assert_close(out[0], layer.output.bias.expand(5, 4))
    assert (layer.weights(x, keep)[0] == 0).all()
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[0] == 0).all()
    assert layer(x, torch.zeros_like(keep)).isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_one_token_no_token_no_row(mode):
    layer = made(mode)
    one = tokens(2, 1)
    torch.testing.assert_close(layer(one), layer.output(layer.value(one)))
    assert layer(tokens(2, 0)).shape == (2, 0, 4)
    assert layer(tokens(0, 5)).shape == (0, 5, 4)
    wide = tokens(2, 5, 8)[..., ::2]
    torch.testing.assert_close(layer(wide), layer(wide.contiguous()))


@pytest.mark.parametrize(("mode", "factors"), [("dense", None), ("random", None), ("fixed_random", None),
                                               ("factorized_random", None), ("factorized_dense", (2, 3))])  # fmt: skip
def test_short_sequences_use_leading_slices(mode, factors):
    long, x = made(mode, max_len=12, **({"factors": (4, 3)} if factors else {})), tokens(2, 6)
    short = SynthesizerAttention(4, 2, mode, 6, factors=factors).double()
    state = long.state_dict()
    for name, table in state.items():
        if name.startswith("parts") and name.endswith("table"):
            state[name] = table[:, :6, :6] if table.shape[-1] == 12 else table[:, :6]
        elif mode == "dense" and name.split(".")[-1] in ("weight", "bias") and name.startswith("parts"):
            state[name] = table[..., :6]
        elif mode == "factorized_dense" and name in (f"parts.{mode}.weight", f"parts.{mode}.bias"):
            state[name] = torch.cat([table[..., :2], table[..., 4:]], -1)
    short.load_state_dict(state)
    torch.testing.assert_close(long(x), short(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(copy.deepcopy(long).resize_(6)(x), short(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_longer_tables_are_stretched(mode):
    layer, x = made(mode), tokens(2, 6)
    before = {name: p.clone() for name, p in layer.state_dict().items()}
    longer = copy.deepcopy(layer).resize_(12)
    assert longer.max_len == 12
    assert longer(tokens(2, 12)).shape == (2, 12, 4)
    assert [p.requires_grad for p in longer.parameters()] == [True] * len(list(layer.parameters()))
    torch.testing.assert_close(layer.resize_(6)(x), made(mode)(x))  # the same length: nothing happens
    for name, p in layer.state_dict().items():
        assert torch.equal(p, before[name])
    if mode == "random":  # corners stay, and linear tables stay linear
        old, new = layer.parts["random"].table, longer.parts["random"].table
        torch.testing.assert_close(new[:, ::11, ::11], old[:, ::5, ::5])
        with torch.no_grad():
            layer.parts["random"].table.copy_(torch.arange(6.0)[:, None] - 2 * torch.arange(6.0))
        at = torch.arange(12, dtype=torch.float64) * 5 / 11
        torch.testing.assert_close(layer.resize_(12).parts["random"].table[0], at[:, None] - 2 * at)


def test_parameter_counts():
    dim, heads, length = 512, 8, 256
    d, beyond = 64, {}
    for mode in SYNTHESIZER_MODES:
        with torch.device("meta"):
            layer = SynthesizerAttention(dim, heads, mode, length, bias=False)
        beyond[mode] = sum(p.numel() for p in layer.parameters()) - 2 * dim * dim
    assert beyond == {
        "vanilla": heads * 2 * dim * d,
        "dense": heads * (dim * d + d + d * length + length),
        "random": heads * length**2,
        "fixed_random": 0,
        "factorized_dense": heads * (dim * d + d + d * (16 + 16) + 16 + 16),
        "factorized_random": heads * 2 * length * 8,
    }
    with torch.device("meta"):
        mixed = SynthesizerAttention(dim, heads, "random+vanilla", length, bias=False)
    assert (
        sum(p.numel() for p in mixed.parameters()) - 2 * dim * dim == beyond["random"] + beyond["vanilla"] + 2 * heads
    )


def test_mixture_of_one_is_that_one():
    mixed, x = made("random+vanilla"), tokens()
    for k, kind in enumerate(("random", "vanilla")):
        alone = SynthesizerAttention(4, 2, kind, 6).double()
        alone.load_state_dict({n: t for n, t in mixed.state_dict().items() if n in alone.state_dict()})
        with torch.no_grad():
            mixed.mixture_logits.fill_(-300).narrow(0, k, 1).fill_(300)
        torch.testing.assert_close(mixed(x), alone(x))
    torch.testing.assert_close(mixed.mixture_logits.softmax(0).sum(0), torch.ones(2).double())


def test_a_constant_added_to_a_row_of_scores_changes_nothing():
    layer, x = made("random"), tokens()
    expected = layer(x)
    with torch.no_grad():
        layer.parts["random"].table.add_(100 * torch.randn(2, 6, 1))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_start():
    torch.manual_seed(0)
    layer = SynthesizerAttention(64, 8, "random+dense+factorized_random+factorized_dense", 64)
    table = layer.parts["random"].table
    assert table.abs().max() < math.sqrt(6 / 128)
    assert table.std().item() == pytest.approx(math.sqrt(6 / 128 / 3), rel=0.02)
    assert layer.parts["dense"].weight.std().item() == pytest.approx(math.sqrt(6 / 72 / 3), rel=0.05)
    assert layer.parts["factorized_random"](torch.zeros(1, 64, 64)).std().item() == pytest.approx(1, rel=0.1)
    assert (table[0] - table[1]).abs().max() > 0.1  # heads start apart
    assert (layer.mixture_logits == 0).all()
    assert layer.parts["factorized_dense"].factors == (8, 8)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    layer, x = made(mode, rank=2, max_len=6), tokens(2, 5).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, KEEP))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_huge_scores_and_values():
    scores = torch.tensor([[[[1e30, -1e30, 3e38], [0.0, 0.0, -3e38], [1.0, 1.0, 1.0]]]])
    assert synthesizer_weights(scores)[0, 0, :2].tolist() == [[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]
    mask = torch.tensor([[True, True, False]])
    assert synthesizer_weights(scores, mask)[0, 0, 0].tolist() == [1.0, 0.0, 0.0]
    half = synthesizer_weights(scores.clamp(-6e4, 6e4).half(), mask)
    assert half.dtype == torch.float16
    assert half[0, 0, 2].tolist() == [0.5, 0.5, 0.0]
    value = torch.full((2, 1, 3, 1), 3e38)
    assert synthesizer_attention(torch.zeros(1, 1, 3, 3), value).isfinite().all()


@pytest.mark.parametrize("shape", [(5,), (5, 5), (2, 1, 1, 5), (1, 2, 5, 5), (2, 2, 5, 5), ()])
def test_masks_of_every_shape(shape):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(shape, generator=generator) < 0.7
    scores = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=generator)
    value = torch.randn(2, 2, 5, 3, dtype=torch.float64, generator=generator)
    full = mask.expand(2, 2, 5, 5)
    powers = scores.exp() * full
    weights = powers / powers.sum(-1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(synthesizer_weights(scores, mask), weights)
    torch.testing.assert_close(synthesizer_attention(scores, value, mask), weights @ value)
    shared = synthesizer_weights(scores[:1], mask)
    torch.testing.assert_close(shared.expand(2, -1, -1, -1)[0], weights[0])
    torch.testing.assert_close(synthesizer_attention(scores[:1], value, mask)[0], (weights @ value)[0])


def test_a_mask_of_pairs_and_one_of_keys_go_together():
    layer, x = made("random+vanilla"), tokens()
    pairs = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(layer(x, KEEP, mask=pairs), layer(x, KEEP, causal=True))


def test_dropout_is_apart_for_each_sequence_and_right_in_the_mean():
    torch.manual_seed(0)
    scores, value = torch.zeros(1, 1, 4, 4), torch.ones(4_000, 1, 4, 1)
    out = synthesizer_attention(scores, value, dropout=0.25)
    levels = {round(v, 4) for v in out.flatten().tolist()}
    assert levels == {round(k / 3, 4) for k in range(5)}  # k of 4 weights kept, each 1/4 / (3/4)
    assert out.mean().item() == pytest.approx(1, abs=4 * math.sqrt(1 / 3 / 4 / 16_000))
    assert len(torch.unique(out[:, 0, :, 0], dim=0)) > 100
    layer = made("random", dropout=0.5)
    x = tokens()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("mode", MODES)
def test_autocast(mode):
    layer, x = made(mode).float(), tokens().float()
    expected = layer(x, KEEP)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x, KEEP)
        weights = layer.weights(x, KEEP)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected)[KEEP].abs().max() < 0.05 * expected.abs().max().clamp_min(1)
    assert weights.float().sum(-1)[0].sub(1).abs().max() < 0.02


def test_compiles_whole():  # each kind by itself: tests/contracts
    layer, x = made("random+vanilla").float(), tokens().float()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, KEEP), layer(x, KEEP))
    torch.testing.assert_close(compiled(x, causal=True), layer(x, causal=True))


def test_random_tables_keep_their_resolution_under_autocast():  # 1 + tiny in bfloat16 would be all alike
    layer, x = made("random").float(), tokens().float()
    with torch.no_grad():
        layer.parts["random"].table.copy_(4 + 1e-3 * torch.randn(2, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        weights = layer.weights(x)
    assert torch.equal(weights, layer.weights(x))


def test_tables_stay_out_of_weight_decay():
    layer = made("random+factorized_random+vanilla")
    assert layer.no_weight_decay() == {
        "mixture_logits", "parts.random.table", "parts.factorized_random.row_table",
        "parts.factorized_random.column_table",
    }  # fmt: skip
    groups = param_groups(layer, 1e-3, no_decay=("bias", *layer.no_weight_decay()))
    spared = sum(p.numel() for g in groups if g["weight_decay"] == 0 for p in g["params"])
    assert spared == 3 * 2 + 2 * 6 * 6 + 2 * 2 * 6 * 8 + 4 * 4


def test_a_users_loop_learns_a_fixed_shift():  # what a table is made for: every token asks for the one before it
    torch.manual_seed(0)
    layer = SynthesizerAttention(8, 2, "random", 6)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    x = torch.randn(64, 6, 8)
    losses = []
    for _ in range(150):
        loss = F.mse_loss(layer(x)[:, 1:], x[:, :-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < 0.5 < losses[0]
    assert layer.weights(x)[0, 0].argmax(1)[1:].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mode", ["dense", "random+vanilla"])
def test_accumulated_gradients_are_those_of_the_whole(mode):
    layer, x = made(mode), tokens(4)
    whole = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for part in x.chunk(2):
        layer(part).square().sum().backward()
    for p, g in zip(layer.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_messages():
    with pytest.raises(
        ValueError, match=r"mode must be one of dense, .*vanilla, or several.*'\+'; got 'nystrom': there is no"
    ):
        SynthesizerAttention(4, 2, "nystrom")
    with pytest.raises(ValueError, match=r"got 'random\+random': a kind stands twice"):
        SynthesizerAttention(4, 2, "random+random")
    with pytest.raises(ValueError, match="mixing must be 'softmax' or 'sum', got 'mean'"):
        SynthesizerAttention(4, 2, mixing="mean")
    with pytest.raises(ValueError, match="embed_dim must be a multiple of num_heads, got 5 and 2"):
        SynthesizerAttention(5, 2)
    with pytest.raises(ValueError, match=r"max_len must be at least 1 and dropout in .* got 0 and 0\.0"):
        SynthesizerAttention(4, 2, max_len=0)
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, got 0"):
        SynthesizerAttention(4, 2, hidden_dim=0)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        SynthesizerAttention(4, 2, "factorized_random", rank=0)
    with pytest.raises(ValueError, match=r"multiply to max_len=6, got 2 x 2 = 4"):
        SynthesizerAttention(4, 2, "factorized_dense", 6, factors=(2, 2))
    with pytest.raises(ValueError, match="7 is prime"):
        SynthesizerAttention(4, 2, "factorized_dense", 7)
    layer = made("random")
    with pytest.raises(ValueError, match="7 tokens, and the scores are made for max_len=6 places; truncate the text"):
        layer(tokens(2, 7))
    with pytest.raises(ValueError, match=r"x must be \(batch, tokens, 4\), got \(5, 4\)"):
        layer(tokens()[0])
    with pytest.raises(ValueError, match=r"key_padding_mask must be bool \(2, 5\), True for tokens; got torch.int64"):
        layer(tokens(), KEEP.long())
    with pytest.raises(ValueError, match=r"got torch.bool \(2, 4\)"):
        layer(tokens(), KEEP[:, :4])
    with pytest.raises(ValueError, match=r"mask must be bool, True where a query may see a key; got torch\.float32"):
        layer(tokens(), KEEP, mask=torch.zeros(5, 5))
    with pytest.raises(ValueError, match=r"broadcast to the scores \(1, 2, 5, 5\); got torch.bool \(5, 4\)"):
        layer(tokens(), mask=torch.ones(5, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="write mask"):
        synthesizer_attention(torch.zeros(1, 1, 2, 2), torch.zeros(2, 1, 2, 2), torch.ones(3, 1, 1, 2).bool())
    with pytest.raises(ValueError, match=r"value must be .* got \(2, 2, 2\) and \(1, 1, 2, 2\)"):
        synthesizer_attention(torch.zeros(1, 1, 2, 2), torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match=r"got \(2, 1, 2, 2\) and \(3, 1, 2, 2\)"):
        synthesizer_attention(torch.zeros(3, 1, 2, 2), torch.zeros(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"scores must be \(batch or 1, heads, tokens, tokens\), got \(2, 2\)"):
        synthesizer_weights(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="the second factor stays 3, so max_len must be a multiple of it; got 7"):
        made("random+factorized_dense").resize_(7)
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        layer.resize_(0)


def average_gradients(rank):
    layer = nn.parallel.DistributedDataParallel(made("random+vanilla"))
    layer(tokens(4)[2 * rank :][:2], KEEP).square().sum().backward()
    return [p.grad for p in layer.parameters()]


@pytest.mark.slow
def test_two_processes(tmp_path):
    layer = made("random+vanilla")
    layer(tokens(4), KEEP.repeat(2, 1)).square().sum().div(2).backward()
    for found in in_two_processes(average_gradients, tmp_path):
        for p, g in zip(layer.parameters(), found, strict=True):
            torch.testing.assert_close(g, p.grad)
