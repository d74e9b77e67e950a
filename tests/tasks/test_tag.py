"""tag with a transformer and with a GlobalPointer: learns, exact offsets, no seam between windows, nested spans."""

import json
import random
from dataclasses import replace

import pytest
import torch

from danlu.data.errors import InputError
from danlu.tasks import get_task
from danlu.tasks.tag_model import Sentence
from danlu.tasks.tag_reading import read_sentences
from danlu.tasks.trained import Trained
from danlu.tasks.training import read_parts, train_folder, train_model

PLACES, PEOPLE = ["北京", "上海", "北京大学", "windows 20"], ["我们", "新"]


def entity_rows(stream, size, nested=False):
    rows = []
    for _ in range(size):
        text, entities = "", []
        for _ in range(stream.randint(1, 4)):
            text += stream.choice(["喜欢", "在 ", "很好，", "学习\u3000", "a b"])
            kind, names = stream.choice([("LOC", PLACES), ("PER", PEOPLE)])
            name = stream.choice(names)
            entities.append([len(text), len(text) + len(name), kind])
            if nested and name == "北京大学":
                entities.append([len(text), len(text) + 2, "LOC"])
                entities[-2][2] = "PER"
            text += name
        rows.append({"text": text, "entities": entities})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def entities(tmp_path_factory):
    """Files of texts with places and people, blanks and Latin words among them; and the same with places in others."""
    folder, stream = tmp_path_factory.mktemp("entities"), random.Random(2)
    return {
        f"{name}{kind}": write(folder / f"{name}{kind}.jsonl", entity_rows(stream, size, bool(kind)))
        for name, size in (("train", 72), ("dev", 24))
        for kind in ("", "-nested")
    }


@pytest.fixture
def spec(tag_spec, entities):
    settings = {**tag_spec.set, "epochs": 10.0, "max_len": 40}
    return replace(tag_spec, train=entities["train"], dev=entities["dev"], test=None, set=settings)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "head", ["crf", "global_pointer", *(pytest.param(head, marks=SLOW) for head in ("softmax", "memm", "bimemm"))]
)
def test_it_learns_and_its_folder_says_the_same(spec, with_encoder, tmp_path, head):
    more = {"epochs": 40.0} if head == "global_pointer" else {}
    spec = replace(with_encoder(spec, **more), tricks=(f"head:{head}",))
    record = train_folder(spec, tmp_path / "out")
    assert record["metrics"]["dev"]["f1"] > 0.9
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    again = trained.evaluate(spec.dev)["metrics"]
    assert again["f1"] == record["metrics"]["dev"]["f1"]
    assert ("ece" in again) == (head != "global_pointer")
    text = " 很好，上海\u200b喜欢Windows 20 "
    (result,) = trained.predict([text])
    assert [text[a:b] for a, b, kind in result["entities"] if kind == "LOC"] == ["上海", "Windows 20"]


def test_a_segmenter_gives_every_character_to_a_word(tag_spec, with_encoder, tmp_path):
    record = train_folder(with_encoder(tag_spec, epochs=10.0, max_len=32), tmp_path / "out")
    assert record["metrics"]["test"]["f1"] > 0.8
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    texts = ["我们在北京学习", "", "  ", "龘\u200b windows20好\u3000的", "我" * 100]
    for text, result in zip(texts, trained.predict(texts), strict=True):
        assert "".join(result["words"]) == "".join(text.split()) and all(result["words"])


@SLOW
def test_the_light_network_takes_the_pointer_too(spec, tmp_path):
    spec = replace(spec, model="dgcnn:2x32", tricks=("head:global_pointer",), set={**spec.set, "lr": 1e-2})
    record = train_folder(spec, tmp_path / "out")
    assert record["metrics"]["dev"]["f1"] > 0.8
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    assert trained.evaluate(spec.dev)["metrics"]["f1"] == record["metrics"]["dev"]["f1"]


def test_nested_spans_are_learned_and_found(spec, entities, with_encoder, tmp_path):
    files = {"train": entities["train-nested"], "dev": entities["dev-nested"]}
    spec = replace(with_encoder(spec, epochs=30.0, lr=4e-3), tricks=("head:global_pointer",), **files)
    record = train_folder(spec, tmp_path / "out")
    assert record["metrics"]["dev"]["f1"] > 0.8
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    (result,) = trained.predict(["在 北京大学"])
    assert result["entities"] == [[2, 4, "LOC"], [2, 6, "PER"]]
    assert trained.task.show(result) == "在 [[北京]LOC大学]PER"


def test_nested_spans_are_refused_by_tags(spec, entities, tmp_path):
    spec = replace(spec, train=entities["train-nested"], dev=None)
    with pytest.raises(
        InputError, match=r"line \d+: entities '北京' .* and '北京大学' .* overlap.*head:global_pointer"
    ):
        train_folder(spec, tmp_path / "out")


def test_tricks_without_an_object_are_refused(spec, tag_spec, tmp_path):
    for tricks, message in [
        (
            ("head:global_pointer", "constraints"),
            "constraints exclude tag sequences, which head:global_pointer has none",
        ),
        (
            ("head:global_pointer", "crf_lr"),
            "crf_lr is for the transitions of a CRF or MEMM, which head:global_pointer",
        ),
        (("head:softmax", "crf_lr"), "which head:softmax has none of"),
    ]:
        with pytest.raises(InputError, match=message):
            train_folder(replace(spec, tricks=tricks), tmp_path / "out")
    with pytest.raises(InputError, match="where every token belongs to a word take head:crf"):
        train_folder(replace(tag_spec, tricks=("head:global_pointer",)), tmp_path / "out")


@pytest.mark.parametrize(
    "tricks",
    [
        ("crf_lr:10", "layer_decay", "fgm"),
        pytest.param(("constraints", "ema:0.9"), marks=SLOW),
        pytest.param(("pgd:0.1", "head:memm"), marks=SLOW),
        pytest.param(("noise", "head:global_pointer"), marks=SLOW),
    ],
)
def test_tricks_work_on_it(spec, with_encoder, tmp_path, tricks):
    spec = replace(with_encoder(spec, epochs=4.0), tricks=tricks)
    assert train_folder(spec, tmp_path / "out")["metrics"]["dev"]["f1"] > 0.5


def test_layer_decay_needs_a_transformer(spec, tmp_path):
    with pytest.raises(InputError, match="layer_decay is for transformers; this model has no layers of that kind"):
        train_folder(replace(spec, tricks=("layer_decay",)), tmp_path / "out")


def test_loss_of_the_pointer_by_hand(spec, with_encoder):
    spec = replace(with_encoder(spec, epochs=0.1), tricks=("head:global_pointer",))
    run = train_model(spec, parts := read_parts(spec))
    data = get_task("tag").training_set(run.model, parts["train"].examples[:3])
    batch = data.collate([0, 1, 2])
    with torch.no_grad():
        scores, loss = run.model.span_scores(batch), run.model(batch)
    total = 0.0
    for b in range(3):
        for h in range(2):
            steps = scores.shape[-1]
            gold = {divmod(p, steps) for p in batch["spans"][b, h].tolist() if p >= 0}
            size = int(batch["steps"][b].sum())
            cells = [(i, j) for i in range(size) for j in range(i, size)]
            assert gold <= set(cells)
            wrong = sum(torch.exp(scores[b, h, i, j].double()) for i, j in cells if (i, j) not in gold)
            right = sum(torch.exp(-scores[b, h, i, j].double()) for i, j in gold)
            total += float(torch.log1p(torch.as_tensor(wrong)) + torch.log1p(torch.as_tensor(right)))
    assert float(loss) == pytest.approx(total, rel=1e-4)
    counted = sum(int((batch["spans"][b] >= 0).sum()) for b in range(3))
    aligned = [run.model.aligned(s) for s in _sentences(run.model, parts["train"].examples[:3])]
    assert counted == sum(len(a.to_steps(_gold(e))) for a, e in zip(aligned, parts["train"].examples[:3], strict=True))


def _sentences(model, examples):
    return [Sentence(e.tokens, e.text, [(i, i + 1) for i in range(len(e.text))]) for e in examples]


def _gold(example):
    from danlu.math.tag_scheme import spans

    return spans(example.tags, "BIO")


@pytest.mark.parametrize("head", ["crf", "global_pointer"])
def test_windows_leave_no_seam_where_the_encoder_looks_at_each_piece_alone(spec, with_encoder, head):
    """With attention and positions switched off a piece's vector is its own; windows must then change nothing.

    The head is random, so that it finds many spans; of a pointer those count that are no longer than the context.
    """
    spec = replace(with_encoder(spec, epochs=0.1), tricks=(f"head:{head}",))
    model = train_model(spec, read_parts(spec)).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".position." in name or ".attention." in name:
                parameter.zero_()
            elif not name.startswith("encoder.") and parameter.ndim == 2:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    text = "在 北京大学喜欢windows 20很好，我们" * 3
    places = [(i, i + 1) for i, c in enumerate(text) if not c.isspace()]
    sentence = Sentence([text[a:b] for a, b in places], text, places)
    model.config |= {"max_len": 64, "context": 16}
    ((whole,), data, _) = read_sentences(model, [sentence])
    assert len(data.windows) == 1
    model.config |= {"max_len": 22, "context": 8}
    ((cut,), data, _) = read_sentences(model, [sentence])
    assert len(data.windows) > 3
    short, again = ([s for s in r.spans if s[1] - s[0] <= 8] for r in (whole, cut))
    assert short == again and len(short) > 5
    assert head == "global_pointer" or (cut.tags == whole.tags and cut.spans == whole.spans)


def test_words_of_several_pieces_speak_through_their_first(tag_spec, with_encoder, tmp_path):
    rows = "windows B-X\nwindow O\na O\n\nb O\nwindows B-X\n\n" * 20
    path = tmp_path / "words.conll"
    path.write_text(rows, encoding="utf-8")
    spec = replace(with_encoder(tag_spec, epochs=8.0), train=str(path), dev=str(path), test=None)
    record = train_folder(spec, tmp_path / "out")
    assert record["metrics"]["dev"]["f1"] == 1.0 and record["metrics"]["dev"]["tokens"] == 100
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    assert trained.model.config["unit"] == "word"
    assert next(trained.predict(["a  windows window"]))["entities"] == [[3, 10, "X"]]


def test_a_text_alone_and_among_others_reads_the_same(spec, with_encoder, tmp_path):
    train_folder(replace(with_encoder(spec, epochs=3.0), tricks=("head:global_pointer",)), tmp_path / "out")
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    texts = [row["text"] for row in entity_rows(random.Random(9), 20)]
    assert list(trained.predict(texts)) == [next(trained.predict([text])) for text in texts]
