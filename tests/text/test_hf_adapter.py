"""The adapter over transformers: its hidden states are theirs, its refusals ours."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.data.errors import InputError
from danlu.text.hf_adapter import HFEncoder

IDS = torch.tensor([[3, 7, 5, 9, 2], [4, 6, 1, 1, 1]])
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
BART = {
    "vocab_size": 20, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "max_position_embeddings": 16,
}  # fmt: skip
OTHERS = {
    "bart": BART,
    "deberta-v2": {**SIZES, "pad_token_id": 1},
    "ernie": {**SIZES, "pad_token_id": 1},
    "modernbert": {
        **SIZES,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "cls_token_id": 2,
        "sep_token_id": 2,
    },
}


@pytest.fixture
def save(tmp_path):
    transformers = pytest.importorskip("transformers")

    def saved(model_type):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(transformers.CONFIG_MAPPING[model_type](**OTHERS[model_type])).eval()
        model.save_pretrained(tmp_path / model_type)
        return model, tmp_path / model_type

    return saved


@pytest.mark.parametrize("model_type", OTHERS)
def test_the_hidden_states_of_transformers(model_type, save):
    theirs, folder = save(model_type)
    whole = theirs.get_encoder() if model_type == "bart" else theirs
    encoder = HFEncoder(folder)
    mask = IDS != 1
    with torch.no_grad():
        expected = whole(input_ids=IDS, attention_mask=mask.long()).last_hidden_state
        assert torch.equal(encoder(IDS, mask), expected)
        assert torch.equal(encoder(IDS), expected)  # the padding id of all four is 1
        other = encoder(IDS, torch.ones_like(mask))
        assert not torch.allclose(other[1, 0], expected[1, 0], atol=1e-5)
    assert not encoder.training and encoder.get_input_embeddings().weight.shape == (20, 8)
    encoder(IDS).sum().backward()
    assert encoder.get_input_embeddings().weight.grad is not None


def test_refusals(save, tmp_path):
    _, folder = save("ernie")
    encoder = HFEncoder(folder)
    with pytest.raises(ValueError, match=r"ids reach from 1 to 20, the table has rows 0 to 19"):
        encoder(torch.tensor([[1, 20]]))
    with pytest.raises(ValueError, match=r"ids reach from -1 to 4, the table"):
        encoder(torch.tensor([[-1, 4]]))
    with pytest.raises(ValueError, match=r"must be \(batch, tokens\), got \(5,\)"):
        encoder(IDS[0])
    with pytest.raises(ValueError, match=r"got \(2, 5\) and \(2, 4\)"):
        encoder(IDS, torch.ones(2, 4))
    with pytest.raises(InputError, match=r"has no config.json; HFEncoder opens local folders and downloads nothing"):
        HFEncoder("nghuyong/ernie-3.0-base-zh")
    held = load_file(folder / "model.safetensors")
    save_file(
        {n: v for n, v in held.items() if "pooler" not in n}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    HFEncoder(folder)  # a pooler may be missing, hidden states do not need it
    save_file(
        {n: v for n, v in held.items() if "query" not in n}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(InputError, match=r"lacks 2 weights of its ernie, .*query.bias first"):
        HFEncoder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "nobody"}))
    with pytest.raises(InputError, match=r"transformers cannot open .*ernie: "):
        HFEncoder(folder)


def test_without_a_padding_id_every_token_counts(save):
    encoder = HFEncoder(save("ernie")[1])
    with torch.no_grad():
        expected = encoder(IDS, torch.ones_like(IDS, dtype=torch.bool))
        encoder.pad_token_id = None
        assert torch.equal(encoder(IDS), expected)


def test_code_of_a_folder_is_not_run(tmp_path, capsys):
    pytest.importorskip("transformers")
    (tmp_path / "evil.py").write_text("print('executed')\nclass M: pass\nclass C: pass\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoModel": "evil.M", "AutoConfig": "evil.C"}})
    )
    with pytest.raises(InputError, match="transformers cannot open"):
        HFEncoder(tmp_path)
    assert "executed" not in capsys.readouterr().out
