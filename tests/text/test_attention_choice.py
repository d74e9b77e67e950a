"""Every encoder family with every kind of attention: padding, gradients, folders, what is refused, inference copies."""

import json

import pytest
import torch

from danlu.data.errors import InputError
from danlu.nn import ATTENTIONS
from danlu.nn.attention_kinds import unfit_attention
from danlu.text.config import FAMILIES, TransformerConfig
from danlu.text.google_config import from_google, to_google
from danlu.text.hf_config import from_hf, to_hf
from danlu.text.inference import for_inference
from danlu.text.load_hf import load_hf
from danlu.text.save_hf import save_hf
from danlu.text.transformer import build_transformer

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 20, "max_positions": 12,
}  # fmt: skip
IDS = torch.tensor([[3, 4, 5, 6, 7, 9, 8, 3, 2], [8, 9, 10, 0, 0, 0, 0, 0, 0], [11, 12, 5, 4, 0, 0, 0, 0, 0]])
KEEP, LENGTHS = IDS != 0, (9, 3, 4)
SIZED = {"nystrom": 3, "nystrom_landmark": 3, "performer": 5, "synthesizer_factorized_random": 2}
ENCODERS = [name for name, family in FAMILIES.items() if not family.encoder_decoder]


def config_of(family, attention, **options):
    return TransformerConfig.of(
        family,
        **{"application": "encoder", **SIZES, **options},
        attention=attention,
        attention_size=SIZED.get(attention),
    )


def fits(family, attention, **options):
    traits = FAMILIES[family]
    why = unfit_attention(attention, positions=traits.positions, gated_unit=traits.block == "gau", **options)
    return why is None


FITTING = [(f, a) for f in ENCODERS for a in ATTENTIONS if fits(f, a)]
LANGUAGE = [(f, a) for f in ("gpt", "gpt2", "gpt2_ml", "roformer") for a in ATTENTIONS if fits(f, a, application="lm")]


def made(family, attention, heads=("mlm",), **options):
    torch.manual_seed(0)
    model = build_transformer(config_of(family, attention, **options), heads).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_the_learned_positions_take_all_and_the_others_what_they_can():
    for family in ("bert", "roberta", "albert", "albert_unshared", "electra"):
        assert all((family, attention) in FITTING for attention in ATTENTIONS)
    for family in ("roformer", "roformer_v2"):
        assert [a for f, a in FITTING if f == family] == ["softmax", "nystrom", "nystrom_landmark", "performer"]


@pytest.mark.parametrize(("family", "attention"), FITTING)
def test_padding_and_neighbours_change_nothing(family, attention):
    model = made(family, attention)
    with torch.no_grad():
        packed, padded = (model(IDS, mask=KEEP, pack=pack).hidden_states for pack in (None, False))
        for i, n in enumerate(LENGTHS):
            alone = model(IDS[i : i + 1, :n]).hidden_states[0]
            torch.testing.assert_close(packed[i, :n], alone, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(padded[i, :n], alone, rtol=1e-6, atol=1e-6)
    assert padded.isfinite().all()


@pytest.mark.parametrize(
    ("family", "attention"), [(f, a) for f, a in FITTING if f in ("bert", "albert", "roformer_v2")]
)
def test_gradients_reach_every_parameter(family, attention):
    model = made(family, attention).train()
    model(IDS, mask=KEEP).logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert [name for name in without if "segment" not in name and not name.endswith("key.bias")] == []


@pytest.mark.parametrize(
    ("family", "attention"),
    [(f, a) for f, a in FITTING if f in ("bert", "albert", "electra", "roformer") and a != "softmax"],
)
def test_folders_keep_it(family, attention, tmp_path):
    model = made(family, attention).float()
    save_hf(model, tmp_path / "m")
    described = json.loads((tmp_path / "m" / "config.json").read_text())
    assert described["model_type"] == f"danlu-{family}"  # transformers' class would compute softmax attention
    assert described["attention"] == attention
    back = load_hf(tmp_path / "m")
    assert back.config == model.config
    with torch.no_grad():
        assert torch.equal(back(IDS, mask=KEEP).hidden_states, model(IDS, mask=KEEP).hidden_states)


def test_an_unknown_value_in_a_folder_is_refused_in_one_line(tmp_path):
    save_hf(made("bert", "nystrom").float(), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "attention": "reformer"}))
    with pytest.raises(InputError, match=r"attention must be one of softmax, nystrom.*got 'reformer'") as error:
        load_hf(tmp_path / "m")
    assert "\n" not in str(error.value)
    path.write_text(json.dumps({**described, "attention": 3}))
    with pytest.raises(InputError, match=r"attention in config\.json must be a string, got 3"):
        load_hf(tmp_path / "m")


@pytest.mark.parametrize("attention", ["nystrom", "linear", "performer"])
def test_a_softmax_folder_opens_with_another_attention(attention, tmp_path):
    softmax = made("bert", "softmax").float()
    save_hf(softmax, tmp_path / "m")
    model = load_hf(tmp_path / "m", attention=attention, attention_size=12 if attention == "nystrom" else None)
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in softmax.named_parameters())
    with torch.no_grad():
        gap = (model(IDS, mask=KEEP).hidden_states - softmax(IDS, mask=KEEP).hidden_states)[KEEP].abs().max()
    assert gap < 1e-4 if attention == "nystrom" else gap > 1e-3  # 12 landmarks for 9 tokens: exact


def test_configurations_of_google_carry_it():
    config = config_of("bert", "nystrom")
    assert from_google(to_google(config), "bert", compat="upstream")[0] == config
    assert from_hf(to_hf(config)) == config
    assert to_hf(config_of("bert", "softmax"))["model_type"] == "bert"


@pytest.mark.parametrize(("family", "attention"), [("bert", a) for a in ATTENTIONS] + [("roformer", "performer")])
def test_copies_for_inference_compute_the_same(family, attention):
    model = made(family, attention).float()
    with torch.no_grad():
        torch.testing.assert_close(
            for_inference(model)(IDS, mask=KEEP).hidden_states[KEEP], model(IDS, mask=KEEP).hidden_states[KEEP],
            rtol=1e-3, atol=1e-3,
        )  # fmt: skip


@pytest.mark.parametrize(("family", "attention"), LANGUAGE)
def test_language_models_do_not_look_ahead(family, attention):
    model = made(family, attention, application="lm")
    other = IDS[:1].clone()
    other[:, 5:] = 20
    with torch.no_grad():
        first, second = model(IDS[:1]).logits, model(other).logits
    torch.testing.assert_close(first[:, :5], second[:, :5], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(first[:, 5:], second[:, 5:])


@pytest.mark.parametrize(("family", "attention"), [x for x in LANGUAGE if x[1] in ("performer", "linear")])
@pytest.mark.parametrize("fast", [False, True])
def test_decoding_with_a_cache_is_the_whole(family, attention, fast):
    model = made(family, attention, application="lm").float()
    model = for_inference(model) if fast else model
    with torch.no_grad():
        whole = model(IDS[:1]).logits
        cache = model.new_cache(1, 9)
        steps = [model(IDS[:1, i : i + 1], cache=cache).logits for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "attention", "options", "message"),
    [
        ("nezha", "nystrom", {}, "attention 'nystrom' compares no pairs of tokens.*nezha needs 'softmax'"),
        ("t5", "performer", {}, "adds its relative positions to such comparisons; t5.1.0 needs"),
        ("gau_alpha", "linear", {}, "no place in a gated attention unit"),
        ("roformer", "linear", {}, "this family's rotated positions become distances"),
        ("bert", "nystrom", {"application": "lm"}, "cannot be causal, as its landmarks hold later tokens"),
        ("bert", "double_softmax", {"application": "unilm"}, "means over keys hold later tokens"),
        ("bert", "performer", {"application": "unilm"}, "cannot follow a mask of pairs"),
        ("bert", "linear", {"residual_attention_scores": True}, "nothing to hand on"),
        ("bert", "flash", {}, "attention must be one of"),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(family, attention, options, message):
    with pytest.raises(ValueError, match=message):
        config_of(family, attention, **options)


def test_a_size_where_there_is_none():
    with pytest.raises(ValueError, match=r"attention_size must be at least 1, and only nystrom.*got 8 for 'softmax'"):
        TransformerConfig.of("bert", **SIZES, attention_size=8)


def test_checkpointed_layers_and_accumulated_gradients_are_the_plain_ones():
    model = made("bert", "nystrom", hidden_dropout=0.0, attention_dropout=0.0).train()

    def gradients(parts):
        model.zero_grad()
        for ids, keep in parts:
            model(ids, mask=keep).hidden_states.masked_fill(~keep[..., None], 0.0).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = gradients([(IDS, KEEP)])
    halves = gradients([(IDS[i : i + 1, :n], KEEP[i : i + 1, :n]) for i, n in enumerate(LENGTHS)])
    model.gradient_checkpointing = True
    again = gradients([(IDS, KEEP)])
    for a, b, c in zip(whole, halves, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)
