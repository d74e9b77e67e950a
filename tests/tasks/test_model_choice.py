"""What `--model` names: sizes, built-in names, paths, fresh weights, and what is refused."""

from dataclasses import replace

import pytest
import torch

from danlu.data.errors import InputError
from danlu.tasks import get_task
from danlu.tasks.encoder import load_encoder
from danlu.tasks.model_choice import choose_model
from danlu.tasks.spec import Spec


def test_light_networks():
    plain, sized = choose_model("dgcnn"), choose_model("dgcnn:5x64")
    assert (plain.kind, plain.dim, plain.dilations) == ("dgcnn", 128, [1, 2, 4, 1])
    assert (sized.kind, sized.dim, sized.dilations) == ("dgcnn", 64, [1, 2, 4, 1, 1])


def test_fresh_transformers():
    choice = choose_model("bert:2x128")
    assert (choice.kind, choice.family, choice.layers, choice.dim, choice.path) == ("encoder", "bert", 2, 128, None)


def test_paths(tiny_encoder):
    choice = choose_model(str(tiny_encoder))
    assert (choice.kind, choice.path) == ("encoder", tiny_encoder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dgcn", "no model 'dgcn'; did you mean dgcnn"),
        ("mini-hz", "no model 'mini-hz'; did you mean mini-zh"),
        ("gone/folder", "no model 'gone/folder'; there are dgcnn, mini-zh, minilm, a folder"),
        ("dgcnn:0x64", "layers lie in 1 to 64 and the width in 8 to 4096"),
        ("dgcnn:4x4", "layers lie in 1 to 64 and the width in 8 to 4096"),
        ("bert:2x100", "a width above 64 is a multiple of 64"),
        ("lstm:2x64", "fresh weights there are for dgcnn"),
        ("t5:2x64", "fresh weights there are for dgcnn"),
    ],
)
def test_refusals(name, message):
    with pytest.raises(InputError, match=message):
        choose_model(name)


def test_settings_go_by_the_kind_of_model(tiny_encoder):
    task = get_task("classify")
    assert choose_model("dgcnn").settings(task) is task.defaults
    assert choose_model(str(tiny_encoder)).settings(task) is task.encoder_defaults


@pytest.mark.parametrize(
    ("file", "text", "factor"),
    [
        ("config.json", '{"hidden_size": 768}', 1 / 9),
        ("bert_config.json", '{"hidden_size": 512}', 1 / 4),
        ("config.json", '{"d_model": 512, "hidden_size": null}', 1.0),  # what cannot be read changes nothing
        ("config.json", '{"hidden_size": 128}', 1.0),
        ("config.json", "{", 1.0),
    ],
)
def test_wide_models_learn_more_slowly(file, text, factor, tmp_path):
    (tmp_path / file).write_text(text, encoding="utf-8")
    task = get_task("classify")
    lr = choose_model(str(tmp_path)).settings(task).lr
    assert lr == pytest.approx(task.encoder_defaults.lr * factor)
    assert choose_model("bert:2x512").settings(task).lr == pytest.approx(task.encoder_defaults.lr / 4)


@pytest.mark.parametrize(
    ("model", "setting", "message"),
    [
        (
            "dgcnn",
            "init=random",
            "setting init is for --model a transformer, such as mini-zh; dgcnn does not look at it",
        ),
        ("dgcnn", "head_rate=2", "setting head_rate is for --model a transformer"),
        ("dgcnn", "pooling=first", "no setting 'pooling'"),
        ("bert:2x64", "bigram_dim=8", "no setting 'bigram_dim'"),
        ("bert:2x64", "min_count=3", "setting min_count is for --model dgcnn; bert:2x64 does not look at it"),
        ("bert:2x64", "init=random", "bert:2x64 has fresh weights anyway"),
        ("bert:2x64", "pooling=max", "setting pooling is mean or first, got 'max'"),
        ("dgcnn", "attention=nystrom", "setting attention is for --model a transformer"),
        ("bert:2x64", "attention=nistrom", "setting attention is one of softmax, nystrom, .*; got 'nistrom'"),
        ("bert:2x64", "gelu=exact", "setting gelu is erf or tanh or sigmoid, got 'exact'"),
    ],
)
def test_settings_that_a_model_does_not_look_at(model, setting, message):
    with pytest.raises(InputError, match=message):
        Spec.parse("classify", train="x.csv", model=model, settings=[setting])


def test_a_light_network_is_no_transformer():
    choice = choose_model("dgcnn")
    with pytest.raises(InputError, match="this needs a transformer, --model dgcnn is none"):
        choice.encoder(get_task("classify").defaults)


@pytest.mark.parametrize(
    ("model", "attention", "init"),
    [("mini-zh", "nystrom", "pretrained"), ("mini-zh", "performer", "pretrained"),
     ("tiny", "synthesizer_random", "random"), ("bert:1x16", "synthesizer_dense", "pretrained")],
)  # fmt: skip
def test_another_attention_and_gelu_are_kept_in_the_folder(model, attention, init, tmp_path, tiny_encoder):
    """A pretrained model keeps its weights under attention that has none of its own."""
    settings = replace(get_task("classify").encoder_defaults, attention=attention, gelu="sigmoid", init=init)
    encoder = choose_model(str(tiny_encoder) if model == "tiny" else model).encoder(settings).eval()
    assert (encoder.config.attention, encoder.config.activation) == (attention, "gelu_sigmoid")
    if init == "pretrained" and model == "mini-zh":
        plain = choose_model(model).encoder(get_task("classify").encoder_defaults)
        weights = encoder.transformer.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in plain.transformer.state_dict().items())
    encoder.save(tmp_path)
    again, batch = load_encoder(tmp_path), {"ids": torch.tensor([[2, 9, 8, 3]]), "mask": torch.ones(1, 4).bool()}
    torch.testing.assert_close(again(batch), encoder(batch))


@pytest.mark.parametrize(
    ("model", "attention", "message"),
    [("tiny", "synthesizer_random", "weights of its own .*; give --set init=random"),
     ("mini-zh", "synthesizer_random", "--attention synthesizer_random: .*roformer needs 'softmax' here"),
     ("nezha:1x16", "nystrom", "--attention nystrom: .*nezha needs 'softmax' here"),
     ("bert:1x16", "nistrom", "setting attention is one of softmax, nystrom, .*; got 'nistrom'")],
)  # fmt: skip
def test_attention_that_a_model_cannot_have(model, attention, message, tiny_encoder):
    with pytest.raises(InputError, match=message):
        choose_model(str(tiny_encoder) if model == "tiny" else model).encoder(
            replace(get_task("classify").encoder_defaults, attention=attention)
        )
