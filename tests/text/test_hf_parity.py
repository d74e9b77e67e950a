"""Models of transformers and ours give the same outputs, from their folders and in ours; no weight is missing."""

import pytest
import torch

from danlu.text.builtin import builtin_folder
from danlu.text.load_hf import load_hf
from danlu.text.save_hf import save_hf

transformers = pytest.importorskip("transformers")

ENCODER = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 32,
}  # fmt: skip
NARROW = {**ENCODER, "embedding_size": 16}
GPT = {"vocab_size": 50, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 32, "bos_token_id": None,
       "eos_token_id": None}  # fmt: skip
T5 = {
    "vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0,
}  # fmt: skip
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

CASES = {  # class, config, model class that Auto* should choose, heads that we find
    "bert": ("BertModel", ENCODER, "AutoModel", ("pooler",)),
    "bert_tanh": ("BertModel", {**ENCODER, "hidden_act": "gelu_new", "type_vocab_size": 3}, "AutoModel", ("pooler",)),
    "bert_pretraining": ("BertForPreTraining", ENCODER, "AutoModelForPreTraining", ("pooler", "nsp", "mlm")),
    "bert_mlm": ("BertForMaskedLM", ENCODER, "AutoModelForMaskedLM", ("mlm",)),
    "bert_lm": ("BertLMHeadModel", {**ENCODER, "is_decoder": True}, "AutoModelForCausalLM", ("mlm",)),
    "roberta": ("RobertaModel", ENCODER, "AutoModel", ("pooler",)),
    "roberta_mlm": ("RobertaForMaskedLM", {**ENCODER, "type_vocab_size": 1}, "AutoModelForMaskedLM", ("mlm",)),
    "albert": ("AlbertModel", NARROW, "AutoModel", ("pooler",)),
    "albert_mlm": ("AlbertForMaskedLM", NARROW, "AutoModelForMaskedLM", ("mlm",)),
    "albert_pretraining": ("AlbertForPreTraining", NARROW, "AutoModelForPreTraining", ("pooler", "nsp", "mlm")),
    "albert_unshared": (
        "AlbertForMaskedLM", {**NARROW, "num_hidden_groups": 3}, "AutoModelForMaskedLM", ("mlm",)),
    "electra": ("ElectraModel", NARROW, "AutoModel", ()),
    "electra_discriminator": ("ElectraForPreTraining", NARROW, "AutoModelForPreTraining", ("discriminator",)),
    "electra_generator": ("ElectraForMaskedLM", NARROW, "AutoModelForMaskedLM", ("mlm",)),
    "roformer": ("RoFormerModel", NARROW, "AutoModel", ()),
    "roformer_mlm": ("RoFormerForMaskedLM", ENCODER, "AutoModelForMaskedLM", ("mlm",)),
    "gpt": ("OpenAIGPTLMHeadModel", GPT, "AutoModelForCausalLM", ("mlm",)),
    "gpt2": ("GPT2LMHeadModel", {**GPT, "n_inner": 40}, "AutoModelForCausalLM", ("mlm",)),
    "t5.1.0": ("T5ForConditionalGeneration", T5, "AutoModelForSeq2SeqLM", ()),
    "t5.1.1": ("T5ForConditionalGeneration", GATED, "AutoModelForSeq2SeqLM", ()),
    "mt5": ("MT5ForConditionalGeneration", GATED, "AutoModelForSeq2SeqLM", ()),
    "mt5_tied": ("MT5ForConditionalGeneration", T5, "AutoModelForSeq2SeqLM", ()),
}  # fmt: skip

IDS = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(1))
SEGMENTS = (torch.arange(9) > 4).long().expand(3, 9)
MASK = torch.arange(9) < torch.tensor([[9], [6], [1]])
DECODER = torch.randint(3, 50, (3, 5), generator=torch.Generator().manual_seed(2))


def random_model(class_name: str, values: dict):
    """A model of theirs whose every weight, gains and biases too, is random; tied ones stay tied."""
    cls = getattr(transformers, class_name)
    model = cls(cls.config_class(**values)).eval()
    if values.get("tie_word_embeddings") is False:  # their constructor ties in spite of it
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:  # RoFormer's are not learned
                parameter.normal_(1.0 if name.lower().endswith("norm.weight") else 0.0, 0.2, generator=generator)
    return model


def segments_of(config, ids):
    return SEGMENTS if getattr(config, "type_vocab_size", 1) > 1 else torch.zeros_like(ids)


@torch.no_grad()
def their_outputs(model) -> dict[str, torch.Tensor]:
    if model.config.is_encoder_decoder:
        out = model(input_ids=IDS, attention_mask=MASK.long(), decoder_input_ids=DECODER, output_hidden_states=True)
        return {"logits": out.logits, "encoded": out.encoder_last_hidden_state[MASK]}
    given = {"input_ids": IDS, "attention_mask": MASK.long(), "output_hidden_states": True}
    if hasattr(model.config, "type_vocab_size"):
        given["token_type_ids"] = segments_of(model.config, IDS)
    out = model(**given)
    found = {"hidden": out.hidden_states[-1], "pooled": out.get("pooler_output")}
    replaced = type(model).__name__ == "ElectraForPreTraining"
    found["discriminator" if replaced else "logits"] = out.get("logits", out.get("prediction_logits"))
    found["nsp"] = out.get("seq_relationship_logits", out.get("sop_logits"))
    return {name: value[MASK] if value.shape[:2] == MASK.shape else value
            for name, value in found.items() if value is not None}  # fmt: skip


@torch.no_grad()
def our_outputs(model) -> dict[str, torch.Tensor]:
    if model.config.traits.encoder_decoder:
        out = model(IDS, DECODER, mask=MASK)
        return {"logits": out.logits, "encoded": out.encoder_hidden_states[MASK]}
    out = model(IDS, segments_of_ours(model.config), mask=MASK)
    found = {"hidden": out.hidden_states, "pooled": out.pooled, "logits": out.logits, "nsp": out.nsp_logits,
             "discriminator": out.discriminator_logits}  # fmt: skip
    return {name: value[MASK] if value.shape[:2] == MASK.shape else value
            for name, value in found.items() if value is not None}  # fmt: skip


def segments_of_ours(config):
    return SEGMENTS if config.traits.segments and config.segment_vocab_size > 1 else None


def assert_equal_outputs(ours: dict, theirs: dict) -> None:
    """To 1e-5 of the largest absolute output."""
    common = set(ours) & set(theirs)
    assert common >= set(theirs), (set(ours), set(theirs))
    for name in common:
        scale = float(theirs[name].abs().max())
        assert scale > 1e-2
        difference = float((ours[name] - theirs[name]).abs().max())
        assert difference < 1e-5 * scale, (name, difference / scale)


@pytest.mark.parametrize("case", CASES)
def test_both_ways(case, tmp_path):
    class_name, values, auto, heads = CASES[case]
    theirs = random_model(class_name, values)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = their_outputs(theirs)

    ours = load_hf(tmp_path / "theirs")
    assert ours.heads == heads and not ours.training
    assert set(ours.load_report.counts()) == {"matched"}
    assert_equal_outputs(our_outputs(ours), expected)

    save_hf(ours, tmp_path / "ours")
    for name in (class_name, auto):
        again, info = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not any(info.values()), info
        assert type(again).__name__ == class_name
        for key, value in theirs.state_dict().items():
            if "embed_positions" in key:
                torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=1e-6)
            else:
                assert torch.equal(again.state_dict()[key], value), key
        again.eval()
        assert_equal_outputs(their_outputs(again), expected)
    assert_equal_outputs(our_outputs(load_hf(tmp_path / "ours")), expected)


@pytest.mark.parametrize("case", ["bert_pretraining", "albert_mlm", "roberta_mlm", "gpt2", "roformer_mlm"])
def test_auto_model_opens_the_encoder(case, tmp_path):
    """The encoder inside a headed folder: all its weights are found, but for a pooler that was never there."""
    theirs = random_model(*CASES[case][:2])
    theirs.save_pretrained(tmp_path / "theirs")
    save_hf(load_hf(tmp_path / "theirs"), tmp_path / "ours")
    _, info = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert all("pooler" in name for name in info["missing_keys"]) and not info["mismatched_keys"]
    assert "pooler" not in CASES[case][3] or not info["missing_keys"]


def test_generates_the_same(tmp_path):
    """transformers generates with our folder: start, end and padding ids stand in it where they matter."""
    theirs = random_model("T5ForConditionalGeneration", GATED)
    theirs.save_pretrained(tmp_path / "theirs")
    save_hf(load_hf(tmp_path / "theirs"), tmp_path / "ours")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(again.generate(IDS, **settings), theirs.generate(IDS, **settings))


@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 1}])
def test_half_precision_and_shards(changes, tmp_path):
    """A float16 folder in several shards; our copy of it in bfloat16."""
    theirs = random_model("BertForMaskedLM", {**ENCODER, **changes}).half()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    ours = load_hf(tmp_path / "theirs")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert_equal_outputs(our_outputs(ours), their_outputs(theirs.float()))
    save_hf(ours, tmp_path / "ours", dtype=torch.bfloat16)
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.bfloat16
    half = load_hf(tmp_path / "ours", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    table = theirs.get_input_embeddings().weight.bfloat16()
    assert torch.equal(half.get_input_embeddings().weight, table)
    assert torch.equal(again.get_input_embeddings().weight, table)


def test_a_published_model():
    """A sentence encoder as its authors published it, read by both libraries."""
    folder = builtin_folder("minilm")
    ours, theirs = load_hf(folder), transformers.AutoModel.from_pretrained(folder).eval()
    ids = torch.tensor([[101, 7592, 2088, 102, 0, 0], [101, 2023, 2003, 1037, 3231, 102]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=(ids != 0).long())
        got = ours(ids)
    assert ours.heads == ("pooler",)
    kept = ids != 0
    assert float((got.hidden_states - expected.last_hidden_state)[kept].abs().max()) < 1e-5
    assert float((got.pooled - expected.pooler_output).abs().max()) < 1e-5
