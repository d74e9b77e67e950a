"""Mixing at a layer: equal to mixing by hand, nothing left behind, padding exact at embeddings, compile, processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from two_processes import in_two_processes

from danlu.train import (
    ManifoldMixup,
    Mix,
    draw_mix,
    mix_inputs,
    mix_masks,
    mix_targets,
    mixup_loss,
    output_mixed,
)

IDS = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [5, 3, 2, 1]])
MASK = IDS > 0
Y = torch.tensor([0, 1, 1])
MIX = Mix(torch.tensor([0.75, 0.5, 0.25]), torch.tensor([1, 2, 0]))


class Net(nn.Module):
    """Embedding, attention that reads the mask, masked mean, classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4)
        self.qkv = nn.Linear(4, 12)
        self.pooled, self.head = nn.Identity(), nn.Linear(4, 2)

    def forward(self, ids, mask):
        return self.rest(self.embed(ids), mask)

    def rest(self, h, mask):
        q, k, v = self.qkv(h).chunk(3, -1)
        h = h + F.scaled_dot_product_attention(q, k, v, mask[:, None, :])
        h = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(self.pooled(h))


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


def test_embedding_mixup_equals_mixing_by_hand():
    net = Net()
    embedded = torch.where(MASK[..., None], net.embed.weight[IDS], 0.0)
    weight = MIX.weight[:, None, None]
    union = MASK | MASK[MIX.partner]
    expected = net.rest(weight * embedded + (1 - weight) * embedded[MIX.partner], union)
    with output_mixed(net.embed, MIX, MASK):
        got = net(IDS, mix_masks(MASK, MIX))
    torch.testing.assert_close(got, expected)


def test_how_far_rows_are_padded_does_not_matter():
    net = Net()
    longer, mask = F.pad(IDS, (0, 3)), F.pad(MASK, (0, 3))
    with output_mixed(net.embed, MIX, MASK):
        short = net(IDS, mix_masks(MASK, MIX))
    with output_mixed(net.embed, MIX, mask):
        long = net(longer, mix_masks(mask, MIX))
    torch.testing.assert_close(long, short)
    with torch.no_grad():
        net.embed.weight[0] = 1e3  # nor what the vector of padding is
    with output_mixed(net.embed, MIX, mask):
        torch.testing.assert_close(net(longer, mix_masks(mask, MIX)), short)


@pytest.mark.slow
def test_a_model_of_transformers_is_mixed_as_by_hand():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=6, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    model = transformers.BertForSequenceClassification(config).eval()
    union = mix_masks(MASK, MIX).long()
    embedded = torch.where(MASK[..., None], model.get_input_embeddings().weight[IDS], 0.0)
    weight = MIX.weight[:, None, None]
    mixed = weight * embedded + (1 - weight) * embedded[MIX.partner]
    expected = model(inputs_embeds=mixed, attention_mask=union).logits
    with output_mixed(model.get_input_embeddings(), MIX, MASK):
        got = model(input_ids=IDS, attention_mask=union).logits
    torch.testing.assert_close(got, expected)
    block, seen = model.bert.embeddings, []
    handle = model.bert.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    plain = torch.where(MASK[..., None], block(IDS), 0.0)
    with output_mixed(block, MIX, MASK):
        model(input_ids=IDS, attention_mask=union)
    handle.remove()
    torch.testing.assert_close(seen[0], weight * plain + (1 - weight) * plain[MIX.partner])


def test_pooled_vectors_are_mixed_under_the_plain_mask():
    net = Net()
    plain = net(IDS, MASK)  # the head is affine, so logits are mixed like vectors
    with output_mixed(net.pooled, MIX, MASK):
        got = net(IDS, MASK)
    torch.testing.assert_close(got, mix_inputs(plain, MIX))


def test_layer_zero_is_input_mixup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(3, 3)
    with output_mixed(model[0], MIX):
        got = model(x)
    torch.testing.assert_close(got, model(mix_inputs(x, MIX)), rtol=0, atol=0)
    with output_mixed(model[2], MIX):
        hidden = model(x)
    torch.testing.assert_close(hidden, model[3](mix_inputs(model[:3](x), MIX)), rtol=0, atol=0)
    assert (hidden - got).abs().max() > 1e-3


def test_no_mixture_changes_no_bit_and_nothing_is_left_behind():
    net = Net()
    before, state = net(IDS, MASK), torch.get_rng_state()
    weights = [p.clone() for p in net.parameters()]
    for mix in (Mix(torch.ones(3), MIX.partner), Mix(MIX.weight, torch.arange(3))):
        with output_mixed(net.pooled, mix):
            assert torch.equal(net(IDS, MASK), before)
    with pytest.raises(KeyError), output_mixed(net.embed, MIX, MASK):
        net(IDS, MASK)
        raise KeyError
    assert not hooks(net)
    assert torch.equal(net(IDS, MASK), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_that_is_called_twice_mixes_both_calls_alike():
    layer = nn.Identity()
    a, b = torch.randn(3, 2), torch.randn(3, 5)
    with output_mixed(layer, MIX):
        got = layer(a), layer(b)
    torch.testing.assert_close(got, (mix_inputs(a, MIX), mix_inputs(b, MIX)))


def test_layers_are_drawn_alike_for_one_seed_and_all_of_them():
    modules = [nn.Identity() for _ in range(3)]

    def drawn(layer_seed, seed):
        mixup = ManifoldMixup(modules, generator=torch.Generator().manual_seed(seed), layer_seed=layer_seed)
        found, weights = [], []
        for _ in range(60):
            with mixup.mixing(Y) as mix:
                for module in modules:
                    module(torch.zeros(3, 1))
            found.append(modules.index(mixup.module))
            weights.append(mix.weight)
        return found, torch.cat(weights)

    one, other = drawn(0, 1), drawn(0, 2)
    assert one[0] == other[0] and set(one[0]) == {0, 1, 2}  # processes agree on the layer
    assert not torch.equal(one[1], other[1])  # and not on the pairs
    assert drawn(5, 1)[0] != one[0]
    assert all(abs(one[0].count(k) - 20) <= 15 for k in range(3))  # 4 standard errors


@pytest.mark.parametrize("pair", ["random", "same_class", "different_class"])
def test_mixing_is_the_draw_at_the_layer(pair):
    net = Net()
    manifold = ManifoldMixup(net.embed, 1.0, True, pair, torch.Generator().manual_seed(4))
    with manifold.mixing(Y, MASK) as mix:
        got = net(IDS, mix_masks(MASK, mix))
    expected = draw_mix(3, 1.0, True, pair, Y, torch.Generator().manual_seed(4))
    assert torch.equal(mix.weight, expected.weight) and torch.equal(mix.partner, expected.partner)
    with output_mixed(net.embed, expected, MASK):
        torch.testing.assert_close(net(IDS, mix_masks(MASK, expected)), got)


def test_a_plain_loop_learns():
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    manifold = ManifoldMixup([net.embed, net.pooled], 0.2, generator=torch.Generator().manual_seed(0))
    for _ in range(40):
        optimizer.zero_grad()
        with manifold.mixing(Y, MASK) as mix:
            logits = net(IDS, mix_masks(MASK, mix) if manifold.module is net.embed else MASK)
        mixup_loss(logits, mix_targets(Y, mix)).backward()
        optimizer.step()
    assert (net(IDS, MASK).argmax(1) == Y).all()


def test_compile_autocast_and_checkpointing():
    net = Net()
    with output_mixed(net.embed, MIX, MASK):
        expected = net(IDS, mix_masks(MASK, MIX))
        loss = mixup_loss(expected, mix_targets(Y, MIX))
    grads = torch.autograd.grad(loss, list(net.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(2):
        with output_mixed(net.embed, MIX, MASK):
            torch.testing.assert_close(compiled(IDS, mix_masks(MASK, MIX)), expected)
        torch.testing.assert_close(compiled(IDS, MASK), net(IDS, MASK))  # the hook is gone from the graph too
    with output_mixed(net.embed, MIX, MASK), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(net(IDS, mix_masks(MASK, MIX)).float(), expected, rtol=0.03, atol=0.03)
    with output_mixed(net.embed, MIX, MASK):  # the layer runs again in the backward pass, which is why it is inside
        logits = checkpoint(net, IDS, mix_masks(MASK, MIX), use_reentrant=False)
        again = torch.autograd.grad(mixup_loss(logits, mix_targets(Y, MIX)), list(net.parameters()))
    torch.testing.assert_close(again, grads)


def test_gradients_go_to_both_examples_and_not_to_padding():
    net = Net()
    with output_mixed(net.embed, Mix(torch.tensor([0.5]), torch.tensor([1, 0, 2])), MASK):
        loss = net(IDS, MASK | MASK[[1, 0, 2]])[0].sum()
    (g,) = torch.autograd.grad(loss, net.embed.weight)
    assert g[4].any() and g[[1, 2, 3]].any(1).all()  # of row 0 and of its partner
    assert not g[0].any() and not g[5].any()


def test_messages():
    net = Net()
    with pytest.raises(ValueError, match="never called the Identity"), output_mixed(nn.Identity(), MIX):
        net(IDS, MASK)
    with pytest.raises(ValueError, match="pairs 2 examples"), output_mixed(net.embed, draw_mix(2)):
        net(IDS, MASK)
    with pytest.raises(TypeError, match="must return one tensor, LSTM returned tuple"):
        lstm = nn.LSTM(2, 2)
        with output_mixed(lstm, MIX):
            lstm(torch.zeros(3, 1, 2))
    with pytest.raises(ValueError, match=r"needs a layer to mix at, such as model.get_input_embeddings"):
        ManifoldMixup([])
    with pytest.raises(ValueError, match=r"alpha must be >= 0, got nan"):
        ManifoldMixup(net.embed, math.nan)
    assert not hooks(net)


def two_steps(net, model, rows, generator):
    """Two steps of manifold mixup on some rows; the gradients of the second, and the layers that were drawn."""
    manifold = ManifoldMixup([net[0], net[1]], 1.0, generator=generator)
    x, y = torch.arange(12.0, dtype=torch.float64).reshape(4, 3).sin(), torch.tensor([0, 1, 1, 0])
    layers, draws = [], []
    for _ in range(2):
        net.zero_grad()
        with manifold.mixing(y[rows]) as mix:
            loss = mixup_loss(model(x[rows]), mix_targets(y[rows], mix))
        loss.backward()
        layers.append(manifold.module is net[0])
        draws.append((mix.weight, mix.partner))
    return layers, draws, [p.grad.clone() for p in net.parameters()]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def process(rank):
    net = network()
    rows = slice(2 * rank, 2 * rank + 2)
    return two_steps(net, DistributedDataParallel(net), rows, torch.Generator().manual_seed(10 + rank))


@pytest.mark.slow
def test_two_processes_mix_the_same_layer_and_equal_one(tmp_path):
    (layers, first, grads), (others, second, same) = in_two_processes(process, tmp_path)
    assert layers == others
    torch.testing.assert_close(grads, same)
    assert not torch.equal(first[1][0], second[1][0])
    net = network()
    whole = Mix(torch.cat([first[1][0], second[1][0]]), torch.cat([first[1][1], second[1][1] + 2]))
    x, y = torch.arange(12.0, dtype=torch.float64).reshape(4, 3).sin(), torch.tensor([0, 1, 1, 0])
    with output_mixed(net[0] if layers[1] else net[1], whole):
        mixup_loss(net(x), mix_targets(y, whole)).backward()
    torch.testing.assert_close(grads, [p.grad for p in net.parameters()])
