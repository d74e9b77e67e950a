"""classify with a transformer: it learns, its folder says the same, windows are averaged, tricks work on it."""

from dataclasses import replace

import pytest
import torch

from danlu.tasks import get_task
from danlu.tasks.piece_windows import PieceWindows
from danlu.tasks.trained import Trained
from danlu.tasks.training import read_parts, train_folder, train_model


@pytest.mark.parametrize("pooling", ["mean", pytest.param("first", marks=pytest.mark.slow)])
def test_it_learns_and_its_folder_says_the_same(classify_spec, with_encoder, tmp_path, pooling):
    record = train_folder(with_encoder(classify_spec, pooling=pooling), tmp_path / "out")
    assert record["metrics"]["test"]["accuracy"] > 0.9
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    assert trained.evaluate(classify_spec.test)["metrics"]["accuracy"] == record["metrics"]["test"]["accuracy"]
    results = list(trained.predict(["很好喜欢", "", "讨厌讨厌不好", "   "]))
    assert [r["label"] for r in results] == ["好", None, "坏", None]


def test_pooling_by_hand(classify_spec, with_encoder):
    for pooling in ("mean", "first"):
        run = train_model(spec := with_encoder(classify_spec, epochs=0.1, pooling=pooling), read_parts(spec))
        model = run.model
        batch = model.windows(["很好喜欢", "不"]).collate([0, 1])
        with torch.no_grad():
            hidden = model.encoder(batch)
            for row, size in enumerate((6, 3)):  # with [CLS] and [SEP]
                vector = hidden[row, :size].mean(0) if pooling == "mean" else hidden[row, 0]
                torch.testing.assert_close(model.logits(batch)[row], model.output(vector), atol=1e-5, rtol=1e-5)


def test_windows_are_averaged_by_their_pieces(classify_spec, with_encoder):
    run = train_model(spec := with_encoder(classify_spec, epochs=1.0), read_parts(spec))
    task, model = get_task("classify"), run.model
    model.config["max_len"] = 10  # 8 pieces
    parts = ["很好喜欢很好喜欢", "不好讨厌旧"]
    whole, sizes = task.probabilities(model, ["".join(parts)])
    alone, _ = task.probabilities(model, parts)
    assert sizes == [13]
    torch.testing.assert_close(whole[0], (8 * alone[0] + 5 * alone[1]) / 13)


def test_long_texts_train_on_all_their_windows(classify_spec, with_encoder):
    run = train_model(spec := with_encoder(classify_spec, epochs=0.1), read_parts(spec))
    run.model.config["max_len"] = 10
    data = run.model.windows(["很" * 20, "", "好"], [2, 0, 1])
    assert isinstance(data, PieceWindows)
    assert (data.sizes, data.lengths) == ([20, 0, 1], [10, 10, 6, 3])
    batch = data.collate([2, 3])
    assert batch["label"].tolist() == [2, 1]
    assert batch["ids"][1].tolist()[:4] == [2, run.model.encoder.tokenizer.token_to_id("好"), 3, 0]


@pytest.mark.parametrize(
    "tricks",
    [
        ("fgm:0.1", "soft_f1:0.5", "layer_decay:0.8"),
        *(
            pytest.param(names, marks=pytest.mark.slow)
            for names in [("pgd:0.1", "ema:0.9"), ("noise:0.1", "soft_accuracy")]
        ),
    ],
)
def test_tricks_work_on_it(classify_spec, with_encoder, tmp_path, tricks):
    spec = replace(with_encoder(classify_spec, epochs=8.0), tricks=tricks)
    assert train_folder(spec, tmp_path / "out")["metrics"]["test"]["accuracy"] > 0.6


def test_pretrained_and_random_weights_are_two_arms(classify_spec, with_encoder):
    name = "encoder.transformer.embeddings.token.weight"
    weights = []
    for init in ("pretrained", "random"):
        spec = with_encoder(classify_spec, epochs=0.1, init=init, lr=1e-9)
        weights.append(train_model(spec, read_parts(spec)).model.state_dict()[name])
    assert not torch.allclose(weights[0], weights[1], atol=1e-3)


def test_interrupted_it_ends_with_the_same_bits(classify_spec, with_encoder, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(event):
        if event["event"] == "step" and event["step"] == 8:
            raise Interrupted

    spec = replace(with_encoder(classify_spec, epochs=1.0), tricks=("ema:0.9",), test=None)
    train_folder(spec, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_folder(spec, tmp_path / "parts", on_event=stop)
    torch.manual_seed(99)
    train_folder(spec, tmp_path / "parts", resume=True)
    for file in ("model.safetensors", "head.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
