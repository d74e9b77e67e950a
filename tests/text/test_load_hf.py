"""HuggingFace folders: every family there and back, old spellings, shards, pickles, surgery, refusals, damage."""

import json
import pickle
import random
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.data.errors import InputError
from danlu.text.config import FAMILIES, TransformerConfig
from danlu.text.hf_names import bare_name
from danlu.text.load_hf import load_hf
from danlu.text.load_report import LoadError
from danlu.text.save_hf import save_hf
from danlu.text.transformer import build_transformer

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_layers": 3,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 16,
}
IDS = torch.tensor([[3, 7, 5, 9, 2], [4, 6, 1, 0, 0]])


def fresh(family="bert", heads=(), **changes):
    """A model whose every parameter is random, gains and shifts too."""
    model = build_transformer(TransformerConfig.of(family, **{**SIZES, **changes}), heads).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return model


def equal(a, b) -> bool:
    ours, others = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.fixture
def folder(tmp_path):
    """A BERT with all its heads."""
    save_hf(fresh(heads=["nsp", "mlm"]), tmp_path / "bert")
    return tmp_path / "bert"


def rewrite(folder, change, config=None):
    """The same folder after `change` of its tensors and `config` of its config.json."""
    path = folder / "model.safetensors"
    save_file(change({name: tensor.clone() for name, tensor in load_file(path).items()}), path)
    if config:
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**described, **config}))


@pytest.mark.parametrize(
    "changes", [{}, {"condition_size": 3, "condition_hidden_size": 2}, {"residual_attention_scores": True}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, changes, tmp_path):
    heads = {"electra": ["mlm", "discriminator"], "gpt2": ["pooler"], "roformer_v2": ["mlm"]}.get(
        family, ["nsp", "mlm"]
    )
    model = fresh(family, [] if FAMILIES[family].encoder_decoder else heads, **changes)
    save_hf(model, tmp_path / "model")
    again = load_hf(tmp_path / "model")
    assert again.config == model.config and again.heads == model.heads
    assert equal(again, model)
    assert set(again.load_report.counts()) == {"matched"}


@pytest.mark.parametrize("family", ["bert", "t5.1.1", "gpt2"])
def test_outputs_come_back(family, tmp_path):
    model = fresh(family)
    save_hf(model, tmp_path / "model")
    again = load_hf(tmp_path / "model")
    inputs = (IDS, IDS) if FAMILIES[family].encoder_decoder else (IDS,)
    with torch.no_grad():
        assert torch.equal(again(*inputs).hidden_states, model(*inputs).hidden_states)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda name: name.removeprefix("bert."),
        lambda name: f"module.{name}",
        lambda name: re.sub("LayerNorm.weight$", "LayerNorm.gamma", re.sub("LayerNorm.bias$", "LayerNorm.beta", name)),
    ],
    ids=["bare", "module", "gamma"],
)
def test_spellings(folder, spelling):
    before = load_hf(folder)
    rewrite(folder, lambda tensors: {spelling(name): tensor for name, tensor in tensors.items()})
    assert equal(load_hf(folder), before)


def test_tied_copies_and_buffers_are_noted(folder):
    before = load_hf(folder)

    def older(tensors):
        table, bias = tensors["bert.embeddings.word_embeddings.weight"], tensors["cls.predictions.bias"]
        copies = {"cls.predictions.decoder.weight": table.clone(), "cls.predictions.decoder.bias": bias.clone()}
        return {**tensors, **copies, "bert.embeddings.position_ids": torch.arange(16)}

    rewrite(folder, older)
    again = load_hf(folder)
    assert equal(again, before) and set(again.load_report.counts()) == {"matched"}
    assert re.search(r"equal to .*decoder\.bias, cls\.predictions\.decoder\.weight", str(again.load_report))
    assert "bert.embeddings.position_ids" in str(again.load_report)


def test_a_copy_without_its_original_takes_its_place(folder):
    before = load_hf(folder)
    rewrite(
        folder, lambda t: {name.replace("predictions.bias", "predictions.decoder.bias"): v for name, v in t.items()}
    )
    assert equal(load_hf(folder), before)


@pytest.mark.parametrize("name", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])
def test_an_untied_output_is_refused(folder, name):
    size = (20, 8) if name.endswith("weight") else (20,)
    rewrite(folder, lambda tensors: {**tensors, name: torch.ones(size)})
    with pytest.raises(InputError, match=rf"{name} differs from .*, which it should be tied to; .*heads=\(\)"):
        load_hf(folder)
    assert load_hf(folder, heads=["pooler"]).heads == ("pooler",)  # nothing is answered with it


def test_t5_unties_where_the_weights_differ(tmp_path):
    """transformers 5 writes tie_word_embeddings true for models that are not tied."""
    save_hf(fresh("t5.1.1"), tmp_path / "t5")
    rewrite(tmp_path / "t5", lambda t: t, {"tie_word_embeddings": True, "scale_decoder_outputs": False})
    assert load_hf(tmp_path / "t5").lm_head is not None
    rewrite(tmp_path / "t5", lambda t: {**t, "lm_head.weight": t["shared.weight"].clone()})
    tied = load_hf(tmp_path / "t5")
    assert tied.lm_head is None and tied.config.tie_embeddings
    rewrite(tmp_path / "t5", lambda t: {**t, "decoder.embed_tokens.weight": torch.zeros(20, 8)})
    with pytest.raises(InputError, match=r"decoder.embed_tokens.weight differs from shared.weight"):
        load_hf(tmp_path / "t5")


def test_heads(folder):
    assert load_hf(folder).heads == ("pooler", "nsp", "mlm")
    bare = load_hf(folder, heads=[])
    assert bare.heads == () and {row.theirs for row in bare.load_report.of("unused")} == {
        name for name in load_file(folder / "model.safetensors") if re.search("pooler|cls", name)
    }
    with pytest.raises(LoadError, match=r"4 weights of the model are not in .*: discriminator.dense.weight") as caught:
        load_hf(folder, heads=["discriminator"])
    assert len(caught.value.report.of("missing")) == 4
    with pytest.raises(InputError, match="no head 'ner'"):
        load_hf(folder, heads=["ner"])
    with pytest.raises(InputError, match=r"heads must be 'auto' or a sequence such as \('pooler', 'mlm'\), got 'mlm'"):
        load_hf(folder, heads="mlm")
    assert load_hf(folder, heads=["pooler", "discriminator"], allow_missing=True).heads == ("pooler", "discriminator")


def test_gelu_is_built_into_some_heads(tmp_path):
    save_hf(fresh("electra", ["mlm"]), tmp_path / "electra")
    rewrite(tmp_path / "electra", lambda t: t, {"hidden_act": "relu"})
    with pytest.raises(InputError, match=r"MLM head of electra has gelu built in, this model relu; .*heads=\(\)"):
        load_hf(tmp_path / "electra")
    assert load_hf(tmp_path / "electra", heads=()).config.activation == "relu"


def test_first_layers(folder, tmp_path):
    whole, one = load_hf(folder), load_hf(folder, num_layers=1)
    assert one.config.num_layers == 1
    left = [row for row in one.load_report.of("unused")]
    assert len(left) == 2 * 16 and not any(row.refused for row in left)
    assert torch.equal(one.layers[0].feed_forward.input.weight, whole.layers[0].feed_forward.input.weight)
    with pytest.raises(InputError, match=r"num_layers=4: config.json has 3 layers; ask for 1 to that many"):
        load_hf(folder, num_layers=4)
    save_hf(fresh("t5.1.1", num_decoder_layers=2), tmp_path / "t5")
    cut = load_hf(tmp_path / "t5", num_layers=1, num_decoder_layers=1)
    assert (len(cut.encoder.layers), len(cut.decoder.layers)) == (1, 1)


def test_vocabulary_surgery(folder):
    whole = load_hf(folder)
    table, bias = whole.embeddings.token.weight, whole.mlm.bias
    cut = load_hf(folder, keep_tokens=[0, 5, 9, 2], compound_tokens=[[1, 3], ([0, 1], [3.0, 1.0])])
    rows = torch.stack(
        [table[0], table[5], table[9], table[2], (table[5] + table[2]) / 2, (3 * table[0] + table[5]) / 4]
    )
    torch.testing.assert_close(cut.embeddings.token.weight, rows)
    torch.testing.assert_close(cut.mlm.bias[4], (bias[5] + bias[2]) / 2)
    assert cut.config.vocab_size == 6 and cut.load_report.counts()["edited"] == 2
    with pytest.raises(InputError, match=r"keep_tokens holds 20, the vocabulary has ids 0 to 19"):
        load_hf(folder, keep_tokens=[20])


def test_options(folder):
    model = load_hf(folder, application="unilm", hidden_dropout=0.3, condition_size=4, dtype=torch.bfloat16)
    assert (model.config.application, model.config.hidden_dropout, model.training) == ("unilm", 0.3, False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(model.load_report.of("fresh")) == 2 * (1 + 2 * 3 + 1)  # gain and shift of every norm
    plain = load_hf(folder, application="unilm", hidden_dropout=0.3)
    same = load_hf(folder, application="unilm", condition_size=4)
    segments = torch.tensor([[0, 0, 0, 1, 1]] * 2)
    with torch.no_grad():  # conditions begin at zero
        a = plain(IDS, segments).hidden_states
        b = same(IDS, segments, condition=torch.ones(2, 4)).hidden_states
    torch.testing.assert_close(a[IDS != 0], b[IDS != 0])
    with pytest.raises(InputError, match=r"no option 'hiden_dropout', .*close to it: hidden_dropout"):
        load_hf(folder, hiden_dropout=0.0)


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("roformer_v2", "roformer", r"32 weights of the model are not in .*: layers.0.attention.query.bias"),
        ("roformer", "nezha", None),  # the same variables; config.json says which it is
        ("bert", "nezha", r"holds 1 weight that the model has no place for: .*position_embeddings"),
        ("bert", "roformer_v2", r"no place for: .*position_embeddings"),
        ("nezha", "bert", r"1 weight of the model is not in .*: embeddings.position.weight"),
        ("bert", "albert", r"holds 48 weights that the model has no place for: encoder.layer.0"),
        ("albert", "bert", r"ask for 3 layers of the encoder, the weights have 1"),
    ],
)
def test_another_family_is_refused(family, given, message, tmp_path):
    """The weights of one family under the name of another."""
    save_hf(fresh(family), tmp_path / "model")
    rewrite(tmp_path / "model", lambda t: {n: v for n, v in t.items() if "embed_positions" not in n})
    plain = {
        "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 16, "model_type": "bert", "embedding_size": 8,
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(plain))
    if message is None:
        assert load_hf(tmp_path / "model", family=given).config.family == given
    else:
        with pytest.raises(InputError, match=message):
            load_hf(tmp_path / "model", family=given)


@pytest.mark.parametrize(
    ("family", "prefix", "config"),
    [
        ("nezha", "nezha", {"model_type": "nezha", "max_relative_position": 5}),
        ("roformer_v2", "roformer", {"model_type": "roformer", "use_bias": False, "norm_type": "rms_norm",
                                     "layer_norm_eps": 1e-7}),
        ("roberta", "roberta", {"model_type": "camembert", "pad_token_id": 1}),
    ],
)  # fmt: skip
def test_other_peoples_folders(family, prefix, config, tmp_path):
    """NEZHA as transformers 4 wrote it, RoFormerV2 of its port to torch, RoBERTa under another name."""
    offset = {"position_offset": 2, "pad_token_id": 1} if family == "roberta" else {}
    model = fresh(family, ["pooler", "mlm"] if family != "roformer_v2" else ["pooler"], relative_clip=5, **offset)
    save_hf(model, tmp_path / "model")
    plain = {
        "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12,
        "max_position_embeddings": 16 + 2 * (family == "roberta"),
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps({**plain, **config}))
    buffer = f"{prefix}.encoder.layer.0.attention.self.relative_positions_encoding.positions_encoding"

    def renamed(tensors):
        return {re.sub(r"^bert\.", f"{prefix}.", name): tensor for name, tensor in tensors.items()} | {
            buffer: torch.ones(2)
        }

    rewrite(tmp_path / "model", renamed)
    again = load_hf(tmp_path / "model")
    assert equal(again, model) and again.heads == model.heads
    with torch.no_grad():
        ours, theirs = again(IDS, mask=IDS != 0), model(IDS, mask=IDS != 0)
    torch.testing.assert_close(ours.hidden_states, theirs.hidden_states)


def test_unshared_albert_reads_the_shared_layer_everywhere(tmp_path):
    shared = fresh("albert", ["mlm"], embedding_size=4)
    save_hf(shared, tmp_path / "albert")
    split = load_hf(tmp_path / "albert", family="albert_unshared")
    assert len(split.layers) == 3
    with torch.no_grad():
        torch.testing.assert_close(split(IDS).logits, shared(IDS).logits)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if "layer.1.output.dense" not in n}, None,
         r"2 weights of the model are not in .*: layers.1.feed_forward.output.weight \(8, 12\)"),
        (None, {"hidden_size": 10}, r"57 weights have another shape in .*: layers.0.attention.query.weight "
                                    r"\(10, 10\) against bert.encoder.layer.0.attention.self.query.weight \(8, 8\)"),
        (None, {"vocab_size": 21}, r"another shape in .*embeddings.token.weight \(21, 8\)"),
        (None, {"vocab_size": 19}, r"another shape in .*embeddings.token.weight \(19, 8\)"),
        (None, {"num_hidden_layers": 4}, r"ask for 4 layers of the encoder, the weights have 3; .*num_layers"),
        (None, {"num_hidden_layers": 10**9}, r"ask for 1000000000 layers"),
        (None, {"num_hidden_layers": 2}, r"holds 16 weights that the model has no place for: bert.encoder.layer.2"),
        (None, {"vocab_size": 10**30}, r"vocab_size in config.json must be a whole number of 32 bits"),
        (None, {"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 2, "danlu_condition_size": 2**31 - 1},
         r"(overflow|another shape)"),
        (lambda t: {**t, "bert.encoder.layer.0.attention.self.query.lora_A": torch.ones(2)}, None,
         r"holds 1 weight that the model has no place for: .*lora_A"),
        (lambda t: {**t, "embeddings.LayerNorm.gamma": torch.ones(8)}, None, r"mean the same weight; remove one"),
        (lambda t: {**t, "bert.pooler.dense.bias": torch.ones(8, dtype=torch.int8)}, None,
         r"bert.pooler.dense.bias is stored as torch.int8: quantized weights are not read"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(folder, change, config, message):
    rewrite(folder, change or (lambda tensors: tensors), config)
    with pytest.raises(InputError, match=message):
        load_hf(folder)


def test_missing_weights_may_be_allowed(folder):
    before = load_hf(folder)
    rewrite(folder, lambda t: {n: v for n, v in t.items() if "layer.1.output.dense" not in n})
    model = load_hf(folder, allow_missing=True)
    assert [row.ours for row in model.load_report.of("missing")] == [
        "layers.1.feed_forward.output.weight", "layers.1.feed_forward.output.bias"]  # fmt: skip
    assert torch.isfinite(model.layers[1].feed_forward.output.weight).all()
    assert torch.equal(model.embeddings.token.weight, before.embeddings.token.weight)


def sharded(folder, kind="model.safetensors"):
    """The folder in two shards, in safetensors or pickles."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    ending = ".safetensors" if kind.endswith("safetensors") else ".bin"
    places = {name: f"part-{i % 2}{ending}" for i, name in enumerate(names)}
    for part in set(places.values()):
        held = {name: tensors[name] for name in names if places[name] == part}
        save_file(held, folder / part) if ending == ".safetensors" else torch.save(held, folder / part)
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    return places


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_shards(folder, kind):
    before = load_hf(folder)
    sharded(folder, kind)
    assert equal(load_hf(folder), before)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_tensors(folder, zipped):
    before = load_hf(folder)
    state = {name: torch.nn.Parameter(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()
    assert equal(load_hf(folder), before)


def test_safetensors_come_before_pickles(folder):
    before = load_hf(folder)
    torch.save({name: torch.zeros_like(t) for name, t in load_file(folder / "model.safetensors").items()},
               folder / "pytorch_model.bin")  # fmt: skip
    assert equal(load_hf(folder), before)


def test_float64_is_read_and_what_is_no_tensor_is_left(folder):
    before = load_hf(folder)
    state = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save({**state, "epoch": 3}, folder / "pytorch_model.bin")
    assert equal(load_hf(folder), before)


def test_damaged_pickles(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "model.safetensors").unlink()
    for content in (whole[:-100], whole[:50], b""):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(InputError, match=r"pytorch_model.bin is damaged"):
            load_hf(folder)
    torch.save({1: torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"is not a state_dict of names and tensors"):
        load_hf(folder)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickles_of_anything_else_are_not_executed(folder, capsys):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds more than tensors and is not unpickled"):
        load_hf(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(InputError, match=r"pytorch_model.bin (holds more than|is damaged)"):
        load_hf(folder)
    torch.save([torch.ones(1)], folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"is not a state_dict of names and tensors"):
        load_hf(folder)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a\\b.safetensors", "..", ".", "", "c:x", "a\0b"]
)
def test_an_index_names_files_of_its_folder_only(folder, name):
    """A file outside is there and whole, and yet it is not opened."""
    save_file(load_file(folder / "model.safetensors"), folder.parent / "outside.safetensors")
    places = sharded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(places, name)}))
    with pytest.raises(
        InputError, match=rf"names the shard {re.escape(repr(name))}, which is not a file of this folder"
    ):
        load_hf(folder)


def test_damaged_indexes(folder):
    places = sharded(folder)
    index = folder / "model.safetensors.index.json"
    for content, message in [
        (json.dumps({"weight_map": {**places, "lost": "part-0.safetensors"}}), r"part-0.safetensors lacks lost, which"),
        (json.dumps({"weight_map": {**places, "lost": "part-9.safetensors"}}), r"part-9.safetensors is missing"),
        (json.dumps({"weight_map": {"a": 1}}), r"has no weight_map of file names"),
        (json.dumps([]), r"must hold a JSON object, got list"),
        ("{", r"index.json is damaged \(Expecting"),
        ("[" * 100_000, r"index.json is damaged"),
        (b"\xff\xfe\x00", r"index.json is damaged"),
    ]:
        index.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError, match=message):
            load_hf(folder)


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(InputError, match=r"does not exist; load_hf opens a folder with config.json and weights"):
        load_hf("bert-base-chinese")
    with pytest.raises(InputError, match=r"is a file; load_hf opens a folder"):
        load_hf(folder / "config.json")
    with pytest.raises(InputError, match=r"has no config.json; load_tf and load_keras_weights"):
        load_hf(tmp_path)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"is a pointer of Git LFS"):
        load_hf(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights: model.safetensors, .*the folder has none of them"):
        load_hf(folder)
    (folder / "tf_model.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"it has tf_model.h5; load_tf reads"):
        load_hf(folder)
    (folder / "bert_model.ckpt.index").write_bytes(b"")
    with pytest.raises(InputError, match=r"it has tf_model.h5, bert_model.ckpt.index; load_tf reads"):
        load_hf(folder)
    (folder / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"model.safetensors is missing or not a file"):
        load_hf(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is damaged"):
        load_hf(folder)


@pytest.mark.parametrize("victim", ["config.json", "model.safetensors"])
def test_mutated_files_are_read_right_or_refused(folder, victim):
    """Bytes changed, cut or added anywhere: one clear error, or a model whose weights are those of the file."""
    path, rng = folder / victim, random.Random(0)
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little") if victim.endswith("safetensors") else len(whole)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            data[rng.randrange(head)] = rng.choice(b'\x00\xff09{}[],:"e-' + bytes([rng.randrange(256)]))
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(bytes(data))
        try:
            model = load_hf(folder)
        except InputError:
            continue
        if victim.endswith("safetensors"):
            held = {bare_name(name): tensor for name, tensor in load_file(path).items()}
            assert torch.equal(model.embeddings.token.weight, held["embeddings.word_embeddings.weight"])


def described(folder, **changes):
    """The folder with other values in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("heads", "model_type", "name"),
    [
        (["mlm"], "roberta", "bert.embeddings.LayerNorm.bias is a name of bert or nezha"),
        (["mlm"], "xlm-roberta", "bert.embeddings.LayerNorm.bias is a name of bert or nezha"),
        (["mlm"], "electra", "bert.embeddings.LayerNorm.bias is a name of bert or nezha"),
    ],
)
def test_names_of_another_family_are_refused(heads, model_type, name, tmp_path):
    """A BERT under a config.json of another family: positions would be off and the head dropped, silently."""
    net = fresh(heads=heads)
    save_hf(net, tmp_path / "m")
    described(tmp_path / "m", model_type=model_type, embedding_size=8)
    with pytest.raises(InputError, match=f"is read as model_type {model_type}, but {name}; get the config.json"):
        load_hf(tmp_path / "m")
    again = load_hf(tmp_path / "m", family="bert")  # said by the user, it is what it is
    assert again.heads == ("pooler", "mlm") if "pooler" in heads else again.heads == tuple(heads)
    assert equal(again, net)


@pytest.mark.parametrize(
    ("name", "model_type", "theirs"),
    [
        ("cls.predictions.bias", "roberta", "bert or roformer or nezha"),
        ("module.cls.predictions.bias", "roberta", "bert or roformer or nezha"),
        ("lm_head.bias", "bert", "roberta or gpt or t5"),
        ("predictions.bias", "bert", "albert"),
        ("generator_lm_head.bias", "bert", "electra"),
        ("transformer.h.9.attn.bias", "bert", "gpt"),
        ("roberta.pooler.dense.bias", "bert", "roberta"),
        ("albert.pooler.bias", "bert", "albert"),
        ("electra.embeddings_project.bias", "bert", "electra"),
        ("roformer.pooler.dense.bias", "bert", "roformer"),
        ("nezha.pooler.dense.bias", "bert", "nezha"),
        ("sop_classifier.classifier.bias", "bert", "albert"),
        ("generator_predictions.dense.bias", "bert", "electra"),
        ("discriminator_predictions.dense.bias", "bert", "electra"),
    ],
)
def test_heads_of_another_family_are_refused(name, model_type, theirs, tmp_path):
    """A bare encoder has no prefix; its head still tells."""
    save_hf(fresh(), tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {**t, name: torch.zeros(20)}, {"model_type": model_type})
    with pytest.raises(InputError, match=f"{model_type}, but {name} is a name of {theirs};"):
        load_hf(tmp_path / "m")


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert"])
def test_other_names_of_roberta_are_its_own(model_type, tmp_path):
    net = fresh("roberta", ["mlm"], position_offset=2, pad_token_id=1)
    save_hf(net, tmp_path / "m")
    described(tmp_path / "m", model_type=model_type)
    assert equal(load_hf(tmp_path / "m"), net)


def test_heads_of_no_family_are_left_out(tmp_path):
    save_hf(fresh(), tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {**t, "classifier.bias": torch.zeros(3), "qa_outputs.bias": torch.zeros(2)})
    assert load_hf(tmp_path / "m").load_report.counts()["unused"] == 2


@pytest.mark.parametrize(
    ("family", "heads", "sizes"),
    [
        ("bert", ["pooler", "nsp", "mlm"], {}),
        ("roberta", ["mlm"], {"position_offset": 2, "pad_token_id": 1}),
        ("albert", ["pooler", "mlm"], {"embedding_size": 4}),
        ("electra", ["discriminator"], {"embedding_size": 4}),
        ("gpt2", ["mlm"], {}),
        ("t5.1.1", [], {}),
    ],
)
def test_conditional_norms_there_and_back(family, heads, sizes, tmp_path):
    """transformers would drop the conditions, so the folder has a name that it refuses."""
    net = fresh(family, heads, condition_size=3, condition_hidden_size=2, condition_activation="tanh", **sizes)
    save_hf(net, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == f"danlu-{family}"
    again = load_hf(tmp_path / "m")
    assert again.config == net.config and again.heads == net.heads and equal(again, net)
    assert set(again.load_report.counts()) == {"matched"}
    inputs = (IDS, IDS) if family.startswith("t5") else (IDS,)
    condition = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    expected = net(*inputs, condition=condition).hidden_states
    assert torch.equal(again(*inputs, condition=condition).hidden_states, expected)
    assert not torch.allclose(expected, net(*inputs, condition=condition + 1).hidden_states, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sines_are_compared(dtype, tmp_path):
    """The stored table of a RoFormer is that of our angles, to the rounding of its type, or another model's."""
    name = "encoder.embed_positions.weight"
    save_hf(fresh("roformer"), tmp_path / "m", dtype=dtype)
    assert load_hf(tmp_path / "m").config.family == "roformer"
    kept = load_file(tmp_path / "m" / "model.safetensors")[name]
    for wrong in (kept * 0.9, kept.roll(1, 0), kept.flip(1), kept * torch.nan):
        rewrite(tmp_path / "m", lambda t, wrong=wrong: {**t, name: wrong.contiguous()})
        with pytest.raises(InputError, match=f"{name} differs from the sines and cosines of rotary positions by up to"):
            load_hf(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {**t, name: kept[:, :3].contiguous()})
    with pytest.raises(InputError, match=r"has shape \(16, 3\) and torch.*, sines of \(positions, 4\) are meant"):
        load_hf(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {**t, name: kept[0].contiguous()})
    with pytest.raises(InputError, match=r"has shape \(4,\) and torch"):
        load_hf(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {**t, name: kept[:0].contiguous()})
    load_hf(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {n: v for n, v in t.items() if n != name})
    load_hf(tmp_path / "m")


def test_the_tolerance_of_the_sines(tmp_path):
    name = "encoder.embed_positions.weight"
    save_hf(fresh("roformer"), tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {**t, name: t[name] + 5e-5})
    load_hf(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {**t, name: t[name] + 1e-4})
    with pytest.raises(InputError, match=r"by up to 0.00015"):
        load_hf(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {**t, name: t[name] - 3e-4})
    with pytest.raises(InputError, match=r"by up to 0.00015"):
        load_hf(tmp_path / "m")


def test_albert_that_projects_between_equal_sizes(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers writes the folder")
    sizes = {"vocab_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.AlbertConfig(**sizes, hidden_size=8, embedding_size=8, max_position_embeddings=16)
    transformers.AlbertModel(config).save_pretrained(tmp_path / "m")
    with pytest.raises(
        InputError, match=r"cannot be read: its embedding_size equals its hidden_size \(8\), and .*still"
    ):
        load_hf(tmp_path / "m")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "int8", "float", 32])
def test_types_that_weights_cannot_have(dtype, folder):
    with pytest.raises(InputError, match=r"dtype must be float32, bfloat16, float16 or float64, .*; got"):
        load_hf(folder, dtype=dtype)
    assert load_hf(folder, dtype="bfloat16").embeddings.token.weight.dtype == torch.bfloat16
