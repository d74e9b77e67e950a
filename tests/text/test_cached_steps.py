"""Cached steps: every family against recomputing all tokens, ragged prompts, reordered rows, decoders, messages."""

import pytest
import torch

from danlu.text import FunctionSteps, beam_search, greedy
from danlu.text.cached_steps import EncoderDecoderSteps, TransformerSteps
from danlu.text.config import TransformerConfig
from danlu.text.transformer import build_transformer

V = 23
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 24,
    "max_positions": 32,
}
PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
SOURCES = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15], [16, 17]]
LM = [
    ("gpt2", {}),
    ("gpt2", {"compat": "bert4keras"}),
    ("gpt", {}),
    ("gpt", {"segment_vocab_size": 0}),
    ("gpt", {"shared_segment_embeddings": True}),
    ("gpt2_ml", {}),
    ("bert", {"application": "lm"}),
    ("bert", {"application": "lm", "hierarchical_position": 0.4, "max_positions": 4}),
    ("bert", {"application": "lm", "residual_attention_scores": True}),
    ("albert", {"application": "lm", "embedding_size": 8}),
    ("roformer", {"application": "lm"}),
    ("nezha", {"application": "lm", "relative_clip": 3}),
    ("bert", {"application": "unilm"}),
    ("roformer", {"application": "unilm"}),
    ("nezha", {"application": "unilm", "relative_clip": 3}),
    ("roformer_v2", {"application": "unilm"}),
    ("gau_alpha", {"application": "unilm", "num_heads": 1, "key_size": 8}),
    ("gau_alpha", {"application": "lm", "num_heads": 1, "key_size": 8}),
]
T5 = [("t5.1.0", {}), ("t5.1.1", {}), ("mt5", {}), ("t5.1.0", {"compat": "bert4keras"})]


def model_of(family, options):
    torch.manual_seed(0)
    options = {**SIZES, **options}
    model = build_transformer(TransformerConfig.of(family, **options)).double().eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.mul_(8)  # away from the even distribution that fresh weights give
    return model


def recomputed(model, prompts):
    """The reference: all tokens again at each step, padded on the right, where no token looks: nothing is masked."""

    def logits(ids, lengths):
        target = (torch.arange(ids.shape[1]) >= lengths[:, None]).long()
        segments = target if model.config.application == "unilm" else torch.zeros_like(ids)
        return model(ids, segments, mask=torch.ones_like(ids, dtype=torch.bool)).logits

    return FunctionSteps(logits, prompts, pad=0, context=[torch.tensor([len(p) for p in prompts])])


def recomputed_t5(model, sources):
    ids, lengths = torch.zeros(len(sources), max(map(len, sources)), dtype=torch.long), [len(s) for s in sources]
    for row, source in zip(ids, sources, strict=True):
        row[: len(source)] = torch.tensor(source)
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]

    def logits(target, source, keep):
        return model(source, target, mask=keep, decoder_mask=torch.ones_like(target, dtype=torch.bool)).logits

    return FunctionSteps(logits, [[0]] * len(sources), context=[ids, mask])


def walk(first, second):
    """The same tokens and the same changes of rows through both; the largest difference of logits."""
    generator = torch.Generator().manual_seed(1)
    worst, tokens = 0.0, None
    changes = {0: [0, 0, 1, 1, 2, 2, 3, 3], 2: [1, 0, 2, 2, 7, 5, 4, 3], 3: [0, 3, 4, 5, 7], 5: [2, 1], 6: [1, 1, 0]}
    for t in range(9):
        ours, reference = first.step(tokens), second.step(tokens)
        assert ours.shape == reference.shape
        assert not ours.requires_grad
        worst = max(worst, float((ours - reference).abs().max() / reference.abs().max()))
        if t in changes:
            for steps in (first, second):
                steps.reorder(torch.tensor(changes[t]))
        assert first.rows == second.rows
        tokens = torch.randint(1, V, (first.rows,), generator=generator)
    return worst


@pytest.mark.parametrize(("family", "options"), LM)
def test_a_cache_gives_what_recomputing_gives(family, options):
    model = model_of(family, options)
    assert walk(TransformerSteps(model, PROMPTS, 9), recomputed(model, PROMPTS)) < 1e-10
    even = [[*p, 20, 21, 22][:3] for p in PROMPTS]
    assert walk(TransformerSteps(model, torch.tensor(even), 9), recomputed(model, even)) < 1e-10
    model = model.float()
    assert walk(TransformerSteps(model, PROMPTS, 9), recomputed(model, PROMPTS)) < 1e-5


@pytest.mark.parametrize(("family", "options"), T5)
def test_a_cache_gives_what_recomputing_gives_for_t5(family, options):
    model = model_of(family, options)
    assert walk(EncoderDecoderSteps(model, SOURCES, 9), recomputed_t5(model, SOURCES)) < 1e-10


@pytest.mark.parametrize("family", ["gpt2", "t5.1.1"])
def test_float32_and_bfloat16(family):
    model = model_of(family, {})
    make = TransformerSteps if family == "gpt2" else EncoderDecoderSteps
    reference = recomputed if family == "gpt2" else recomputed_t5
    prompts = PROMPTS if family == "gpt2" else SOURCES
    model = model.float()
    assert walk(make(model, prompts, 9), reference(model, prompts)) < 1e-5
    low = model.bfloat16()
    assert walk(make(low, prompts, 9), reference(low, prompts)) < 0.1


@pytest.mark.parametrize(("family", "options"), [LM[0], LM[5], LM[13], LM[14]])
def test_decoders_give_the_same_with_and_without_a_cache(family, options):
    model = model_of(family, options)
    limits = {"end_id": [1, 2, 3], "max_new_tokens": 8}
    cached = greedy(TransformerSteps(model, PROMPTS, 8), **limits)
    assert cached.best() == greedy(recomputed(model, PROMPTS), **limits).best()
    for settings in ({"num_beams": 3}, {"num_beams": 4, "groups": 2, "diversity": 0.5}):
        cached = beam_search(TransformerSteps(model, PROMPTS, 8), **limits, num_return=3, **settings)
        plain = beam_search(recomputed(model, PROMPTS), **limits, num_return=3, **settings)
        assert cached.answers() == plain.answers()
        torch.testing.assert_close(cached.scores, plain.scores)


@pytest.mark.parametrize(("family", "options"), T5)
def test_decoders_of_t5_give_the_same_with_and_without_a_cache(family, options):
    model = model_of(family, options)
    settings = {"end_id": [1, 2, 3], "max_new_tokens": 8, "num_beams": 3, "num_return": 2}
    cached = beam_search(EncoderDecoderSteps(model, SOURCES, 8), **settings)
    plain = beam_search(recomputed_t5(model, SOURCES), **settings)
    assert cached.answers() == plain.answers()
    torch.testing.assert_close(cached.scores, plain.scores)


def test_segments_of_a_dialogue():
    model = model_of("gpt", {"shared_segment_embeddings": True})
    segments = [[1, 1, 2, 2, 2], [1, 2], [2, 2, 1, 1], [1]]
    steps = TransformerSteps(model, PROMPTS, 4, segment_ids=segments, new_segment=6)
    with torch.no_grad():
        first, second = steps.step(None), steps.step(torch.tensor([1, 2, 3, 4]))
        for row, (ids, places, token) in enumerate(zip(PROMPTS, segments, [1, 2, 3, 4], strict=True)):
            whole = model(torch.tensor([[*ids, token]]), torch.tensor([[*places, 6]])).logits[0]
            torch.testing.assert_close(first[row], whole[-2])
            torch.testing.assert_close(second[row], whole[-1])


def test_every_token_of_a_prompt_counts_whatever_its_id():
    model = model_of("gpt2_ml", {"compat": "bert4keras"})  # where id 0 is padding unless the mask says otherwise
    prompts = [[3, 0, 4, 0], [5, 6]]
    with torch.no_grad():
        found = TransformerSteps(model, prompts, 2).step(None)
        for row, ids in enumerate(prompts):
            whole = model(torch.tensor([ids]), mask=torch.ones(1, len(ids), dtype=torch.bool)).logits[0, -1]
            torch.testing.assert_close(found[row], whole)


def test_prompts_of_one_length_count_whatever_their_ids_too():
    model, ids = model_of("gpt2_ml", {"compat": "bert4keras"}), torch.tensor([[3, 0], [0, 5]])
    with torch.no_grad():
        expected = model(ids, mask=torch.ones_like(ids, dtype=torch.bool)).logits[:, -1]
    torch.testing.assert_close(TransformerSteps(model, ids, 2).step(None), expected)


def test_a_condition_goes_with_its_row_of_t5():
    model = model_of("t5.1.0", {"condition_size": 3})
    for name, weight in model.named_parameters():
        if "cond" in name:
            torch.nn.init.normal_(weight)
    conditions = torch.randn(4, 3, dtype=torch.float64)
    ids = torch.tensor([[5, 6, 7], [9, 8, 1], [10, 11, 12], [16, 17, 2]])

    def logits(target, source, condition):
        return model(source, target, condition=condition).logits

    plain = FunctionSteps(logits, [[1]] * 4, context=[ids, conditions])
    assert walk(EncoderDecoderSteps(model, ids, 9, start_id=1, condition=conditions), plain) < 1e-10


def test_a_condition_goes_with_its_row():
    model = model_of("bert", {"application": "lm", "condition_size": 3})
    for name, weight in model.named_parameters():
        if "cond" in name:
            torch.nn.init.normal_(weight)
    conditions = torch.randn(4, 3, dtype=torch.float64)

    def logits(ids, condition):
        return model(ids, condition=condition).logits

    cached = TransformerSteps(model, PROMPTS, 9, condition=conditions)
    assert walk(cached, FunctionSteps(logits, PROMPTS, pad=0, context=[conditions])) < 1e-10


def test_several_start_tokens():
    model = model_of("t5.1.0", {})
    with torch.no_grad():
        found = EncoderDecoderSteps(model, SOURCES[:1], 3, start_id=[0, 7, 8]).step(None)
        whole = model(torch.tensor(SOURCES[:1]), torch.tensor([[0, 7, 8]])).logits[:, -1]
    torch.testing.assert_close(found, whole)
    three = {"end_id": None, "max_new_tokens": 3}  # there is room for them behind the start
    assert len(greedy(EncoderDecoderSteps(model, SOURCES[:1], 3, start_id=[0, 7, 8]), **three).best()[0]) == 3


def test_the_source_is_encoded_once():
    model, lengths = model_of("t5.1.1", {}), []
    model.encoder.layers[0].register_forward_hook(lambda *_: lengths.append(1))
    model.decoder.layers[0].cross_attention.key.register_forward_hook(lambda *_: lengths.append(2))
    beam_search(EncoderDecoderSteps(model, SOURCES, 6), end_id=None, num_beams=2, max_new_tokens=6)
    assert lengths == [1, 2]


def test_each_token_is_computed_once():
    model, columns = model_of("gpt2", {}), []
    model.register_forward_pre_hook(lambda _, args: columns.append(tuple(args[0].shape)))
    greedy(TransformerSteps(model, PROMPTS, 6), end_id=None, max_new_tokens=6)
    assert columns == [(4, 5), *[(4, 1)] * 5]


def test_messages():
    gpt, t5 = model_of("gpt2", {}), model_of("t5.1.0", {})
    with pytest.raises(ValueError, match="a cache needs a model that reads from left to right"):
        TransformerSteps(model_of("bert", {}), PROMPTS, 3)
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        TransformerSteps(gpt, [[1], []], 3)
    with pytest.raises(
        ValueError, match="a source or the start has no tokens; T5's own start token is its padding, id 0"
    ):
        EncoderDecoderSteps(t5, [[1]], 3, start_id=[])
    with pytest.raises(ValueError, match="a source or the start has no tokens"):
        EncoderDecoderSteps(t5, [[1], []], 3)
    with pytest.raises(ValueError, match="this gpt2 has no segments; leave segment_ids away"):
        TransformerSteps(gpt, [[1]], 3, segment_ids=[[0]])
    with pytest.raises(ValueError, match=r"segment_ids have \[1, 1\] entries for prompts of \[2, 1\] tokens"):
        TransformerSteps(model_of("gpt", {}), [[1, 2], [3]], 3, segment_ids=[[0], [0]])
    with pytest.raises(ValueError, match=r"the model is in training mode.*call model.eval\(\) first"):
        TransformerSteps(gpt.train(), [[1]], 3)
    steps = EncoderDecoderSteps(t5, [[1]], 3)
    steps.step(None)
    with pytest.raises(ValueError, match="taken before; make new ones"):
        steps.step(None)
    with pytest.raises(ValueError, match="the cache holds 2 positions"):
        greedy(TransformerSteps(gpt.eval(), [[1]], 1), end_id=None, max_new_tokens=4)


def test_the_other_kind_of_model_and_text_are_named():
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    t5 = build_transformer(TransformerConfig.of("t5.1.1", **sizes)).eval()
    gpt = build_transformer(TransformerConfig.of("gpt2", **sizes)).eval()
    with pytest.raises(TypeError, match="TransformerSteps write with the class Transformer, got EncoderDecoder"):
        TransformerSteps(t5, [[1]], 2)
    with pytest.raises(TypeError, match="EncoderDecoderSteps write with the class EncoderDecoder, got Transformer"):
        EncoderDecoderSteps(gpt, [[1]], 2)
    with pytest.raises(TypeError, match="prompts are token ids, got text"):
        TransformerSteps(gpt, ["abc"], 2)
