"""Transformers of one stack: what families and applications promise, packing, caches of the compiler, messages."""

import pytest
import torch

from danlu.text.config import FAMILIES, TransformerConfig
from danlu.text.transformer import EncoderDecoder, Transformer, build_transformer

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 20,
    "max_positions": 12,
}
ONE_STACK = [name for name, family in FAMILIES.items() if not family.encoder_decoder]
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 0, 0], [11, 12, 0, 0, 0]])
KEEP = IDS != 0


def made(family, heads=("mlm",), seed=0, **options):
    torch.manual_seed(seed)
    model = build_transformer(TransformerConfig.of(family, **{**SIZES, **options}), heads).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from their first values, so that every part counts
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", ONE_STACK)
@pytest.mark.parametrize("application", ["encoder", "lm", "unilm"])
def test_padding_changes_nothing(family, application):
    model = made(family, application=application)
    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    with torch.no_grad():
        packed = model(IDS, segments, mask=KEEP)
        padded = model(IDS, segments, mask=KEEP, pack=False)
        alone = [model(IDS[i : i + 1, :n], segments[i : i + 1, :n]) for i, n in enumerate((5, 3, 2))]
    for i, n in enumerate((5, 3, 2)):
        torch.testing.assert_close(packed.hidden_states[i, :n], alone[i].hidden_states[0])
        torch.testing.assert_close(padded.hidden_states[i, :n], alone[i].hidden_states[0])
        torch.testing.assert_close(packed.logits[i, :n], alone[i].logits[0])
    assert not packed.hidden_states[~KEEP].any()
    assert padded.hidden_states.isfinite().all()


@pytest.mark.parametrize("family", ONE_STACK)
def test_lm_does_not_look_ahead(family):
    model = made(family, application="lm")
    other = IDS.clone()
    other[0, 3:] = torch.tensor([20, 21])
    with torch.no_grad():
        torch.testing.assert_close(model(IDS[:1]).logits[:, :3], model(other[:1]).logits[:, :3])
        assert not torch.allclose(model(IDS[:1]).logits[:, 3:], model(other[:1]).logits[:, 3:])


@pytest.mark.parametrize("family", ["bert", "roformer", "nezha", "gau_alpha"])
def test_unilm_lies_between_encoder_and_lm(family):
    encoder, lm, unilm = (made(family, application=name) for name in ("encoder", "lm", "unilm"))
    lm.load_state_dict(encoder.state_dict())
    unilm.load_state_dict(encoder.state_dict())
    ids = IDS[:1]
    zeros, ones = torch.zeros_like(ids), torch.ones_like(ids)
    with torch.no_grad():
        torch.testing.assert_close(unilm(ids, zeros).logits, encoder(ids, zeros).logits)
        torch.testing.assert_close(unilm(ids, ones).logits, lm(ids, ones).logits)


@pytest.mark.parametrize("family", ["roformer", "roformer_v2", "gau_alpha"])
def test_rotary_families_know_distances_only(family):
    model = made(family)
    places = torch.arange(5)[None]
    with torch.no_grad():
        near, far = (model(IDS[:1], position_ids=places + shift).hidden_states for shift in (0, 1000))
        torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)  # angles of float32
        assert not torch.allclose(near, model(IDS[:1], position_ids=2 * places).hidden_states, atol=1e-3)


def test_no_segments_are_zeros():
    model = made("bert", application="unilm")
    torch.testing.assert_close(model(IDS).logits, model(IDS, torch.zeros_like(IDS)).logits)


def test_hierarchical_positions_extend_the_table_and_keep_its_rows():
    plain, stretched = made("bert"), made("bert", hierarchical_position=0.4)
    long = torch.randint(1, 30, (1, 40))
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).hidden_states, stretched(IDS).hidden_states)
        assert stretched(long).hidden_states.shape == (1, 40, 16)
    with pytest.raises(
        ValueError, match=r"a sequence of 40 tokens; the position table has 12 rows.*hierarchical_position=0.4"
    ):
        plain(long)


def test_albert_is_unshared_albert_with_equal_layers():
    shared, unshared = made("albert"), made("albert_unshared")
    state = shared.state_dict()
    unshared.load_state_dict(
        {**state, **{k.replace("layers.0", "layers.1"): v for k, v in state.items() if "layers.0" in k}}
    )
    torch.testing.assert_close(shared(IDS).logits, unshared(IDS).logits)
    assert len(shared.layers) == 1


def test_realformer_differs_and_packs():
    model = made("bert", residual_attention_scores=True, num_layers=3)
    plain = made("bert", num_layers=3)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        packed, padded = model(IDS).hidden_states, model(IDS, pack=False).hidden_states
        torch.testing.assert_close(packed[KEEP], padded[KEEP])
        assert not torch.allclose(packed, plain(IDS).hidden_states)


@pytest.mark.parametrize("family", ["bert", "roformer", "gpt2", "gpt2_ml"])
def test_each_sequence_has_its_own_condition(family):
    model = made(family, condition_size=3)
    condition = torch.randn(3, 3, dtype=torch.float64)
    with torch.no_grad():
        packed, padded = (
            model(IDS, mask=KEEP, condition=condition),
            model(IDS, mask=KEEP, condition=condition, pack=False),
        )
        torch.testing.assert_close(packed.logits[KEEP], padded.logits[KEEP])
        for i, n in enumerate((5, 3, 2)):
            alone = model(IDS[i : i + 1, :n], condition=condition[i : i + 1])
            torch.testing.assert_close(packed.hidden_states[i, :n], alone.hidden_states[0])


def test_logits_where_they_are_wanted():
    model = made("bert")
    wanted = torch.zeros_like(KEEP)
    wanted[0, 2] = wanted[1, 1] = True
    with torch.no_grad():
        whole = model(IDS).logits
        torch.testing.assert_close(model(IDS, logits_at=wanted).logits, whole[wanted])
        torch.testing.assert_close(model(IDS[:1], logits_at="last").logits, whole[:1, -1])


def test_layers_are_handed_out_in_order():
    model = made("gpt2")
    out = model(IDS[:1], output_layers=True)
    assert len(out.layers) == 3
    torch.testing.assert_close(out.layers[-1], out.hidden_states)
    torch.testing.assert_close(
        out.layers[0][0], model.embeddings.token.weight[IDS[0]] + model.embeddings.position.weight[:5]
    )


def test_heads_bring_what_they_need():
    model = made("bert", heads=("nsp", "discriminator"))
    assert model.heads == ("pooler", "nsp", "discriminator")
    out = model(IDS)
    assert out.logits is None and out.pooled.shape == (3, 16) and out.nsp_logits.shape == (3, 2)
    assert out.discriminator_logits.shape == (3, 5)
    torch.testing.assert_close(out.pooled, model.pooler(out.hidden_states[:, 0]).tanh())


@pytest.mark.parametrize("family", ["bert", "nezha", "roformer_v2", "gau_alpha", "gpt2_ml"])
def test_gradient_checkpointing_changes_no_gradient(family):
    model = made(family)
    model.train()
    for module in (model,):
        module.config = module.config.replace(hidden_dropout=0.0, attention_dropout=0.0)
    for block in model.layers:
        block.dropout = 0.0
    model.embeddings.config = model.config

    def gradients():
        model.zero_grad()
        model(IDS).logits.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    model.gradient_checkpointing = True
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("family", ["bert", "gau_alpha"])
def test_gradients_are_those_of_differences(family):
    model = made(family, num_layers=1)
    weight = next(p for n, p in model.named_parameters() if n.endswith(("attention.key.weight", "gau.input.weight")))

    def loss():
        return model(IDS).logits[KEEP].square().mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    for i, j in ((0, 0), (3, 2)):
        step = torch.zeros_like(weight)
        step[i, j] = 1e-5
        with torch.no_grad():
            weight.add_(step)
            up = loss()
            weight.sub_(2 * step)
            down = loss()
            weight.add_(step)
        assert ((up - down) / 2e-5 - gradient[i, j]).abs() < 1e-6 * gradient.abs().max() + 1e-8


def test_compiles_without_packing():
    model = made("bert")
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(IDS, mask=KEEP).hidden_states[KEEP], model(IDS, mask=KEEP).hidden_states[KEEP]
        )


def test_bfloat16_stays_near():
    model = made("roformer")
    exact = model(IDS).hidden_states[KEEP]
    with torch.no_grad():
        near = model.to(torch.bfloat16)(IDS).hidden_states
    assert near.dtype == torch.bfloat16
    assert (near[KEEP].double() - exact).abs().max() < 0.1


def test_a_row_without_tokens_stays_finite():
    model = made("bert")
    mask = KEEP.clone()
    mask[2] = False
    assert model(IDS, mask=mask).hidden_states.isfinite().all()
    assert model(IDS, mask=mask, pack=False).hidden_states.isfinite().all()


def test_fresh_weights_have_their_standard_deviations():
    torch.manual_seed(0)
    config = TransformerConfig.of(
        "bert", vocab_size=400, hidden_size=64, num_layers=1, num_heads=2, intermediate_size=64
    )
    model = build_transformer(config.replace(condition_size=3))
    weight = model.layers[0].attention.query.weight
    assert weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.05)  # cut at two standard deviations
    assert weight.abs().max() <= 0.04
    assert not model.layers[0].attention_norm.cond_gamma.weight.any()  # conditional norms start at zero
    own = build_transformer(TransformerConfig.of("roformer_v2", **{**SIZES, "hidden_size": 64, "num_layers": 4}))
    assert own.layers[0].attention.query.weight.std().item() == pytest.approx(1.13684723 / 8 / 2 * 0.8796, rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.tensor([[3, 30]])), r"ids holds 30, the table has 30 rows \(0 to 29\)"),
        (lambda m: m(torch.tensor([[3, -1]])), "ids holds -1"),
        (lambda m: m(torch.tensor([3, 4])), r"ids must be \(batch, tokens\) with a token at least, got \(2,\)"),
        (lambda m: m(IDS[:, :0]), r"got \(3, 0\)"),
        (lambda m: m([[3, 4]]), "ids must be an int64 tensor"),
        (lambda m: m(IDS, mask=KEEP.float()), r"mask must be bool, True for tokens; got torch\.float32"),
        (lambda m: m(torch.tensor([[3.0]])), "ids must be int64"),
        (lambda m: m(IDS, torch.full_like(IDS, 2)), "segment_ids holds 2, the table has 2 rows"),
        (lambda m: m(IDS, mask=KEEP[:1]), r"mask has shape \(1, 5\), ids \(3, 5\)"),
        (lambda m: m(IDS, condition=torch.zeros(3, 2)), "takes no condition; build or load it with condition_size=C"),
        (
            lambda m: m(IDS, position_ids=torch.full_like(IDS, 12)),
            "a sequence of 13 tokens; the position table has 12 rows",
        ),
        (lambda m: m(IDS, position_ids=torch.full_like(IDS, -1)), "position_ids must not be negative"),
        (lambda m: m.new_cache(1, 4), "a cache needs a model that reads from left to right"),
    ],
)
def test_messages(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(made("bert"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made("bert", heads=("crf",)), "no head 'crf'; there are pooler, nsp, mlm, discriminator"),
        (lambda: made("bert", hidden_size=17), "17 is not a multiple of num_heads 2"),
        (lambda: made("berta"), "no transformer family 'berta'; there are bert, roberta"),
        (lambda: made("bert", application="seq2seq"), "application must be one of encoder, lm, unilm"),
        (lambda: made("t5.1.0", heads=(), application="lm"), "has a decoder of its own"),
        (lambda: made("t5.1.0", heads=("mlm",)), "has no heads to choose from, got mlm"),
        (lambda: Transformer(TransformerConfig.of("t5.1.0", **SIZES)), "build an EncoderDecoder"),
        (lambda: EncoderDecoder(TransformerConfig.of("bert", **SIZES)), "build a Transformer"),
        (lambda: made("nezha")(IDS, position_ids=IDS), "nezha knows distances only"),
        (lambda: made("bert", condition_size=3)(IDS), r"condition must be \(3, 3\), one vector a sequence; got none"),
        (lambda: made("bert", hierarchical_position=1.0), r"hierarchical_position must lie in \(0, 1\)"),
        (lambda: made("bert", num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: made("gpt2", embedding_size=8), "ties its output to a table of 8 features"),
    ],
)
def test_what_cannot_be_built(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_dropout_in_training_keeps_the_mean_of_the_hidden_states(family):
    model = made(family, num_layers=1, hidden_dropout=0.0, attention_dropout=0.3).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(0.1)  # weights near the mean of the keys, so that many matter
    first = model.layers[0].attention
    seen = []
    first.output.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with torch.no_grad():
        for _ in range(400):
            model(IDS)
        model.eval()(IDS)
    drawn, still = torch.stack(seen[:-1]), seen[-1]
    error = drawn.std(0) / 20  # of the mean of 400
    assert ((drawn.mean(0) - still).abs() < 5 * error + 1e-12).all()
    assert (drawn.std(0)[1:] > 0).all()
