"""Attention maps: every family of danlu, HuggingFace's own output, padding, and the two numbers of a head by hand."""

import math

import pytest
import torch
from torch import nn

from danlu.probe import attention_maps, head_distance, head_entropy
from danlu.text.config import TransformerConfig
from danlu.text.single_stack import Transformer
from danlu.text.tokenizer import Tokenizer

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_layers": 3, "num_heads": 2, "intermediate_size": 32}
IDS = torch.tensor([[2, 7, 8, 9, 4], [2, 11, 4, 0, 0]])
MASK = IDS != 0


def tiny(family, **more):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.of(family, **SIZES | more))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)
    return model.eval()


@pytest.mark.parametrize("family", ["bert", "roformer", "nezha", "albert", "electra", "gau_alpha", "roformer_v2"])
def test_every_family(family):
    more = {"num_heads": 1, "key_size": 16} if family == "gau_alpha" else {}
    model = tiny(family, **more)
    maps = attention_maps(model, IDS, MASK)
    heads = 1 if family == "gau_alpha" else 2
    assert maps.weights.shape == (3, 2, heads, 5, 5)
    rows = maps.weights.sum(-1)
    torch.testing.assert_close(rows, MASK[None, :, None].expand_as(rows).float())
    assert (maps.weights[:, 1, :, :, 3:] == 0).all()
    assert len(maps.layers) == 3
    alone = attention_maps(model, IDS[1:, :3])  # no padding, no mask
    torch.testing.assert_close(maps.weights[:, 1:, :, :3, :3], alone.weights)
    assert not torch.equal(maps.weights[0], maps.weights[2])  # layers one by one, not one of them thrice


def test_weights_are_those_that_the_output_is_made_of():
    model = tiny("bert", num_layers=1, num_heads=1)
    attention = model.layers[0].attention
    maps = attention_maps(model, IDS[:1])
    seen = {}
    handles = [attention.register_forward_hook(lambda m, a, out: seen.update(x=a[0], out=out))]
    model(IDS[:1])
    handles[0].remove()
    value = attention.value(seen["x"])  # (T, D)
    torch.testing.assert_close(attention.output(maps.weights[0, 0, 0] @ value), seen["out"])


def test_huggingface_gives_the_same():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.5, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.BertModel(config)
    maps = attention_maps(model, IDS, MASK)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS, attention_mask=MASK.long(), output_attentions=True).attentions
    keep = MASK[:, None, :, None] & MASK[:, None, None, :]
    torch.testing.assert_close(maps.weights, torch.stack(list(expected)) * keep)
    config._attn_implementation = "sdpa"
    fused = transformers.BertModel(config).eval()
    fused.load_state_dict(model.state_dict())
    torch.testing.assert_close(attention_maps(fused, IDS, MASK).weights, maps.weights)


def test_entropy_and_distance_by_hand():
    weights = torch.rand(2, 2, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = weights * (MASK[:, None, :, None] & MASK[:, None, None, :])
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
    entropy, distance = head_entropy(weights, MASK), head_distance(weights, MASK)
    for layer in range(2):
        for head in range(3):
            rows = [(b, i) for b in range(2) for i in range(5) if MASK[b, i]]
            w = weights[layer, :, head]
            h = [-sum(p * math.log(p) for p in w[b, i].tolist() if p) for b, i in rows]
            d = [sum(p * abs(i - j) for j, p in enumerate(w[b, i].tolist())) for b, i in rows]
            assert entropy[layer, head].item() == pytest.approx(sum(h) / len(h))
            assert distance[layer, head].item() == pytest.approx(sum(d) / len(d))


def test_known_heads():
    mask = torch.ones(1, 4, dtype=torch.bool)
    even, own = torch.full((1, 1, 1, 4, 4), 0.25), torch.eye(4)[None, None, None]
    before = torch.eye(4).roll(-1, 1)[None, None, None]  # looks one ahead, the last at the first
    assert head_entropy(even, mask).item() == pytest.approx(math.log(4))
    assert head_entropy(own, mask).item() == head_distance(own, mask).item() == 0.0
    assert head_distance(before, mask).item() == pytest.approx((1 + 1 + 1 + 3) / 4)
    maps = attention_maps(tiny("bert"), IDS, MASK)
    torch.testing.assert_close(maps.entropy, head_entropy(maps.weights, MASK))
    torch.testing.assert_close(maps.distance, head_distance(maps.weights, MASK))
    assert (maps.entropy <= math.log(5)).all()


def test_tokens():
    tokenizer = Tokenizer({"[UNK]": 0, "[CLS]": 2, "[SEP]": 4, **{c: 7 + i for i, c in enumerate("科学空间字")}})
    model = tiny("bert")
    assert attention_maps(model, IDS, MASK, tokenizer).tokens == (
        ("[CLS]", "科", "学", "空", "[SEP]"), ("[CLS]", "字", "[SEP]"),
    )  # fmt: skip
    assert attention_maps(model, IDS, MASK).tokens[1] == ("2", "11", "4")

    class Theirs:
        ids_to_tokens = {}

        def convert_ids_to_tokens(self, ids):
            return [f"<{i}>" for i in ids]

    assert attention_maps(model, IDS, MASK, Theirs()).tokens[1] == ("<2>", "<11>", "<4>")


def test_half_precision_counts_in_float32():
    maps = attention_maps(tiny("bert").bfloat16(), IDS, MASK)
    assert maps.weights.dtype == torch.float32
    assert head_entropy(maps.weights.bfloat16(), MASK).dtype == torch.float32


def test_nothing_is_left_behind():
    model = tiny("bert").train()
    attention_maps(model, IDS, MASK)
    assert model.training
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Pools(nn.Module):
    def forward(self, ids, mask):
        return ids.float().softmax(1)


class Plain(nn.Module):
    def forward(self, ids, mask):
        return ids


class Uneven(nn.Module):
    def forward(self, ids, mask):
        x = ids.float()[:, None, :, None]
        scores = x @ x.mT
        self.first = torch.cat([scores, scores], 1).softmax(-1)
        return scores.softmax(-1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_maps(Plain(), IDS[0]), r"ids \(B, T\).*got \(5,\) and torch.bool \(5,\).*pass ids\[None\]"),
        (lambda: attention_maps(Plain(), IDS, MASK.long()), r"bool mask.*got \(2, 5\) and torch.int64"),
        (lambda: attention_maps(Plain(), IDS[:, :0]), r"got \(2, 0\)"),
        (lambda: attention_maps(Plain(), IDS), "no attention weights were met in Plain"),
        (lambda: attention_maps(Pools(), IDS), r":attention computed weights \(2, 5\), expected \(2, heads, 5, 5\)"),
        (lambda: attention_maps(Uneven(), IDS), "all layers must have as many heads, got : 2, : 1"),
        (lambda: head_entropy(torch.zeros(1, 2, 1, 5, 4), MASK), r"needs weights \(L, B, H, T, T\).*\(1, 2, 1, 5, 4\)"),
        (lambda: head_distance(torch.zeros(1, 1, 1, 5, 5), MASK), r"got \(1, 1, 1, 5, 5\) and \(2, 5\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
