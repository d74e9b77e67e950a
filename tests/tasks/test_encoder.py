"""Encoders under tasks: opened by name or path, saved with their head, read again with the same answers."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from danlu.data.errors import InputError
from danlu.tasks.encoder import Encoded, load_encoder, open_encoder
from danlu.tasks.folder import read_tensors
from danlu.tasks.model_choice import choose_model
from danlu.tasks.trained import Trained
from danlu.tasks.training import read_parts, train_folder, train_model
from danlu.text.tokenizer import Encoding


def test_hidden_states_do_not_depend_on_padding(tiny_encoder):
    encoder = open_encoder(tiny_encoder).eval()
    rows = encoder.tokenizer.encode_batch(["我们在北京", "好"])
    both = Encoded(rows).collate([0, 1])
    alone = Encoded(rows).collate([1])
    with torch.no_grad():
        wide, narrow = encoder(both), encoder(alone)
    assert both["ids"].shape == (2, 7) and alone["ids"].shape == (1, 3)
    torch.testing.assert_close(wide[1, :3], narrow[0], atol=1e-5, rtol=1e-5)


def test_encoded_rows_are_padded_and_weighed():
    rows = [Encoding([2, 7, 3], [0, 0, 1], [(0, 0)] * 3), Encoding([2, 3], [0, 0], [(0, 0)] * 2)]
    data = Encoded(rows, {"label": [4, 5], "tags": [[1, 2, 3], [4, 5]]})
    batch = data.collate([1, 0])
    assert batch["ids"].tolist() == [[2, 3, 0], [2, 7, 3]]
    assert batch["segments"].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert batch["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["label"].tolist() == [5, 4]
    assert batch["tags"].tolist() == [[4, 5, -100], [1, 2, 3]]
    assert (data.weight([0, 1]), Encoded(rows, per_token=True).weight([0, 1])) == (2.0, 5.0)


def test_random_weights_have_the_stored_shape_and_other_values(tiny_encoder):
    stored, fresh = open_encoder(tiny_encoder), open_encoder(tiny_encoder, random=True)
    a, b = stored.state_dict(), fresh.state_dict()
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    name = next(k for k in a if k.endswith("token.weight"))
    assert not torch.equal(a[name], b[name])
    assert stored.config == fresh.config
    torch.manual_seed(5)
    one = open_encoder(tiny_encoder, random=True).state_dict()[name]
    torch.manual_seed(5)
    assert torch.equal(one, open_encoder(tiny_encoder, random=True).state_dict()[name])


def test_dropout_follows_the_setting(tiny_encoder):
    choice = choose_model(str(tiny_encoder))
    from danlu.tasks import get_task

    settings = replace(choice.settings(get_task("classify")), dropout=0.25)
    encoder = choice.encoder(settings)
    assert (encoder.config.hidden_dropout, encoder.config.attention_dropout) == (0.25, 0.25)


def test_rooms_end_where_positions_end(tiny_encoder):
    encoder = open_encoder(tiny_encoder)
    assert (encoder.max_positions, encoder.room(1_000), encoder.room(20)) == (64, 64, 20)


def test_a_saved_encoder_gives_the_same_states(tiny_encoder, tmp_path):
    encoder = open_encoder(tiny_encoder).eval()
    encoder.save(tmp_path)
    assert {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json"} <= {p.name for p in tmp_path.iterdir()}
    again = load_encoder(tmp_path)
    batch = Encoded(encoder.tokenizer.encode_batch(["我们在北京"])).collate([0])
    with torch.no_grad():
        assert torch.equal(encoder(batch), again(batch))


def test_transformers_opens_the_folder_of_a_trained_classifier(classify_spec, with_encoder, tmp_path):
    transformers = pytest.importorskip("transformers")
    train_folder(with_encoder(classify_spec, epochs=1.0), tmp_path / "out")
    ours = Trained.load(tmp_path / "out", device="cpu", precision="fp32").model.encoder
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    batch = Encoded(ours.tokenizer.encode_batch(["很好喜欢", "不好"])).collate([0, 1])
    with torch.no_grad():
        states = theirs(input_ids=batch["ids"], attention_mask=batch["mask"].long()).last_hidden_state
        mine = ours(batch)
    torch.testing.assert_close(mine[batch["mask"]], states[batch["mask"]], atol=2e-5, rtol=2e-5)
    assert "output.weight" in read_tensors(tmp_path / "out" / "head.safetensors")


def test_damaged_folders_say_so(classify_spec, with_encoder, tmp_path):
    train_folder(with_encoder(classify_spec, epochs=0.2), tmp_path / "out")
    head = tmp_path / "out" / "head.safetensors"
    good = head.read_bytes()
    head.unlink()
    with pytest.raises(InputError, match=r"head\.safetensors"):
        Trained.load(tmp_path / "out", device="cpu")
    head.write_bytes(good)
    stored = json.loads((tmp_path / "out" / "task.json").read_text())
    stored["labels"].append("neu")
    (tmp_path / "out" / "task.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"head\.safetensors does not fit its task\.json"):
        Trained.load(tmp_path / "out", device="cpu")
    (tmp_path / "out" / "vocab.txt").unlink()
    with pytest.raises(InputError, match=r"neither vocab\.txt nor spiece\.model"):
        Trained.load(tmp_path / "out", device="cpu")


def test_a_model_without_its_tokenizer_is_refused(tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "bare")
    more = "".join(f"{chr(0x4E00 + i)}\n" for i in range(200))
    (tmp_path / "bare" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n" + more, encoding="utf-8")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"the tokenizer has 204 tokens, the model \d+ rows; they do not belong"):
        open_encoder(tmp_path / "bare")


def test_the_head_learns_at_its_own_rate(classify_spec, with_encoder):
    from danlu.tasks.optimizers import build_optimizers
    from danlu.tasks.tricks import Plan

    spec = with_encoder(classify_spec, epochs=0.1, head_rate=4.0)
    run = train_model(spec, read_parts(spec))
    (optimizer,) = build_optimizers(run.model, run.settings, Plan())
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in run.model.named_parameters():
        expected = run.settings.lr * (1.0 if name.startswith("encoder.") else 4.0)
        assert rates[id(parameter)] == pytest.approx(expected), name
