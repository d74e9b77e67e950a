"""ONNX files against the model itself, computed by ONNX Runtime, on other sizes than those the export saw."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from danlu.data.errors import InputError
from danlu.text import export_onnx
from danlu.text.config import TransformerConfig
from danlu.text.inference import for_inference
from danlu.text.transformer import EncoderDecoder, build_transformer

pytest.importorskip("onnxscript", reason="onnxscript is not installed: danlu[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: danlu[onnx]")

POSITIONS = 13
SIZES = {"vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
SIZES["max_positions"] = POSITIONS
QUICK = {
    "bert": ({}, ("nsp", "mlm")),
    "roformer": ({}, ("mlm",)),
    "gpt2": ({}, ()),
    "t5.1.0": ({}, ()),
}
SLOW = {
    "roberta": ({}, ("mlm",)),
    "albert": ({"embedding_size": 8}, ("pooler", "mlm")),
    "albert_unshared": ({}, ()),
    "electra": ({"embedding_size": 8}, ("discriminator",)),
    "nezha": ({}, ("mlm",)),
    "roformer_v2": ({}, ("mlm",)),
    "gau_alpha": ({"num_heads": 1, "key_size": 8}, ("mlm",)),
    "gpt": ({}, ()),
    "gpt2_ml": ({}, ()),
    "t5.1.1": ({}, ()),
    "mt5.1.1": ({"num_decoder_layers": 1}, ()),
    "bert lm": ({"application": "lm"}, ()),
    "bert unilm": ({"application": "unilm"}, ()),
    "gau_alpha lm": ({"num_heads": 1, "application": "lm"}, ()),
    "bert conditional": ({"condition_size": 5}, ("mlm",)),
    "roformer unilm conditional": ({"application": "unilm", "condition_size": 5}, ()),
    "bert realformer": ({"residual_attention_scores": True}, ()),
    "bert without segments": ({"segment_vocab_size": 0}, ("pooler",)),
}


def build(case):
    changes, heads = {**QUICK, **SLOW}[case]
    torch.manual_seed(0)
    model = build_transformer(TransformerConfig.of(case.split()[0], **{**SIZES, **changes}), heads).eval()
    with torch.no_grad():  # fresh norms and biases are ones and zeros, which hide much
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs_of(model, names, rows, tokens, lengths):
    generator = torch.Generator().manual_seed(rows)
    config = model.config
    made = {"ids": torch.randint(1, config.vocab_size, (rows, tokens), generator=generator)}
    made["mask"] = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    if "decoder_ids" in names:
        made["decoder_ids"] = torch.randint(1, config.vocab_size, (rows, max(tokens - 2, 1)), generator=generator)
    if "segment_ids" in names:
        made["segment_ids"] = (torch.arange(tokens) >= tokens // 2).long().expand(rows, tokens)
    if "condition" in names:
        made["condition"] = torch.randn(rows, config.condition_size, generator=generator)
    return made


def compare(model, session, rows, tokens, lengths):
    """Largest difference of the kept positions, relative to the largest output."""
    names = {item.name for item in session.get_inputs()}
    inputs = inputs_of(model, names, rows, tokens, lengths)
    with torch.no_grad():
        ours = model(**inputs)
    outputs = [item.name for item in session.get_outputs()]
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    given = {name for name, value in vars(ours).items() if value is not None}
    assert given == set(outputs)
    for name, theirs in zip(outputs, values, strict=True):
        expected = getattr(ours, name).numpy()
        assert theirs.shape == expected.shape, name
        source = not isinstance(model, EncoderDecoder) or name == "encoder_hidden_states"
        if source and name not in ("pooled", "nsp_logits"):
            keep = inputs["mask"].numpy()
            expected, theirs = expected[keep], theirs[keep]
        assert np.isfinite(theirs).all()
        assert np.abs(expected - theirs).max() <= 1e-5 * np.abs(expected).max(), name


def check(case, place):
    model = build(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, place)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    for item in session.get_inputs():
        assert item.shape[0] == "batch" and (item.name == "condition" or isinstance(item.shape[1], str)), item.name
    compare(model, session, 4, 11, [11, 3, 1, 8])
    compare(model, session, 1, 1, [1])
    compare(model, session, 2, POSITIONS, [POSITIONS, 2])
    inputs = inputs_of(model, {item.name for item in session.get_inputs()}, 2, 3, [3, 0])  # a row without a token
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert all(np.isfinite(value).all() for value in values)
    return model, session


@pytest.mark.parametrize("case", QUICK)
def test_onnx_runtime_computes_the_same(case, tmp_path):
    model, session = check(case, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]
    if case == "bert":
        ids, mask = np.ones((2, 3), np.int64), np.ones((2, 3), bool)
        with torch.no_grad():
            without = model(torch.from_numpy(ids), mask=torch.ones(2, 3, dtype=torch.bool)).logits
        masked = session.run(["logits"], {"ids": ids, "segment_ids": ids * 0, "mask": mask & (np.arange(3) < 2)})[0]
        assert np.abs(masked[0, 0] - without[0, 0].numpy()).max() > 1e-4  # the mask is not swallowed


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_every_family(case, tmp_path):
    check(case, tmp_path / "model.onnx")


@pytest.mark.slow
def test_large_weights_lie_in_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["danlu.text.onnx_export"], "_ONE_FILE", 10_000)
    check("roformer", tmp_path / "m.onnx")
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    monkeypatch.undo()
    export_onnx(build("roformer"), tmp_path / "m.onnx", overwrite=True)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_refusals_come_first(tmp_path):
    model = build("bert")
    (tmp_path / "there.onnx").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"there\.onnx exists; overwrite=True replaces it"):
        export_onnx(model, tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        export_onnx(model, tmp_path)
    with pytest.raises(InputError, match="no is no folder"):
        export_onnx(model, tmp_path / "no" / "m.onnx")
    with pytest.raises(ValueError, match=r"float32 weights on the CPU, got torch\.bfloat16 on cpu; pass model\.float"):
        export_onnx(build("bert").bfloat16(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="the model itself, not the one that for_inference returned"):
        export_onnx(for_inference(model), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == ["there.onnx"]


def test_without_the_extra(tmp_path):
    code = """
import sys
sys.modules["onnxscript"] = None  # as if it were not installed
from danlu.text import export_onnx
from danlu.text.config import TransformerConfig
from danlu.text.transformer import build_transformer
try:
    export_onnx(build_transformer(TransformerConfig("bert", 9, 4, 1, 2, 8)), "m.onnx")
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert 'onnxscript, which is not installed: pip install "danlu[onnx]"' in run.stdout, run.stderr
    assert os.listdir(tmp_path) == []


def test_nothing_is_printed_and_modes_come_back(tmp_path, capfd):
    model = build("bert").train()
    export_onnx(model, tmp_path / "m.onnx")
    told = capfd.readouterr()
    assert told.out == "" and told.err == ""
    assert model.training and torch.is_grad_enabled()
