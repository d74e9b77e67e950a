"""embed: the losses by hand, what they learn, vectors and files, whitening, named sets, ablation, what is refused."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from danlu.cli import main
from danlu.data import TextGroup
from danlu.data.errors import InputError
from danlu.losses import cosent_loss
from danlu.math import spearman
from danlu.tasks import datasets, get_task
from danlu.tasks.embed_model import GroupedTexts, text_vectors
from danlu.tasks.spec import Spec
from danlu.tasks.trained import Trained
from danlu.tasks.training import read_parts, train_folder, train_model
from danlu.tasks.trial import run_trial
from danlu.tasks.tricks import Plan, parse_all

THEMES = [["北京", "上海", "大学"], ["喜欢", "很好", "方法"], ["我们", "数学", "学习"]]
SETTINGS = {"epochs": 8.0, "batch_size": 8, "max_len": 16, "lr": 2e-3}
OPTIONS = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]


def phrase(stream, theme):
    return "".join(stream.choices(THEMES[theme], k=stream.randint(1, 4)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Phrases of three themes: alone, in pairs that are alike where the theme is the same, in triples."""
    folder = tmp_path_factory.mktemp("embed")
    stream = random.Random(3)
    for name, size in (("train", 64), ("dev", 60)):
        pairs, triples = [], []
        for i in range(size):
            a, b = stream.randrange(3), stream.randrange(3)
            b = a if i % 2 else b
            pairs.append({"text_a": phrase(stream, a), "text_b": phrase(stream, b), "score": 5.0 * (a == b)})
            triples.append({"anchor": phrase(stream, a), "positive": phrase(stream, a),
                            "negative": phrase(stream, (a + 1) % 3)})  # fmt: skip
        for kind, rows in (("pairs", pairs), ("triples", triples)):
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            (folder / f"{name}-{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [phrase(stream, stream.randrange(3)) for _ in range(60)]
    (folder / "train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def spec(files, tiny_encoder):
    def of(kind="pairs", **changes):
        train = files / ("train.txt" if kind == "sentences" else f"train-{kind}.jsonl")
        known = {"set": dict(SETTINGS), "dev": str(files / "dev-pairs.jsonl")} | changes
        return Spec(task="embed", train=str(train), model=str(tiny_encoder), threads=1, precision="fp32", device="cpu",
                    **known)  # fmt: skip

    return of


def quick(spec, **settings):
    return replace(spec, set={**spec.set, "epochs": 0.2, **settings})


def model_of(spec):
    return train_model(spec, read_parts(spec)).model


def untrained(spec, *tricks):
    """The model as built, in training mode, and its training set."""
    task, parts = get_task("embed"), read_parts(spec)
    from danlu.tasks.model_choice import choose_model

    plan = parse_all(list(tricks), "embed")[1]
    train = parts["train"]
    model = task.build(train.examples, train.scheme, choose_model(spec.model), spec.settings(), plan)
    return model.train(), task.training_set(model, train.examples)


# ---------------------------------------------------------------- the losses


def cosines(u, v):
    return F.normalize(u.double(), dim=-1) @ F.normalize(v.double(), dim=-1).T


@pytest.mark.parametrize("trick", [None, "flatnce"])
def test_contrastive_loss_by_hand(spec, trick):
    spec = quick(spec("triples"), temperature=0.1, dropout=0.0)
    model, data = untrained(spec, *([trick] if trick else []))
    batch = data.collate([0, 3, 5, 8])
    rows = [read_parts(spec)["train"].examples[i].texts for i in (0, 3, 5, 8)]
    a, p, n = (text_vectors(model.eval(), texts)[0] for texts in zip(*rows, strict=True))
    s = torch.cat([cosines(a, p), cosines(a, n)], 1) / 0.1
    total = 0.0
    for i in range(4):
        others = [s[i, j] for j in range(8) if j != i and not (j < 4 and rows[j][0] == rows[i][0])]
        u = torch.stack(others).logsumexp(0) - s[i, i]
        total += u if trick else F.softplus(u)
    torch.testing.assert_close(model(batch).double(), total, rtol=1e-4, atol=1e-5)


def test_simcse_reads_every_sentence_twice_with_its_own_dropout(spec):
    model, data = untrained(quick(spec("sentences"), dropout=0.3))
    distinct = len({e.text for e in read_parts(spec("sentences"))["train"].examples})
    assert len(data.lengths) == distinct and data.weight([1, 2]) == 2
    batch = data.collate([0, 1, 2])
    assert torch.equal(batch["ids"][:3], batch["ids"][3:])
    first, second = model.pooled(batch).split(3)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(*model.eval().pooled(batch).split(3))
    u, _ = model.pooled(batch).split(3)
    expected = F.cross_entropy(cosines(u, u) / 0.05, torch.arange(3), reduction="sum")
    torch.testing.assert_close(model(batch).double(), expected, rtol=1e-4, atol=1e-5)


def test_cosent_by_hand(spec):
    model, data = untrained(quick(spec("pairs"), dropout=0.0, temperature=0.1))
    batch = data.collate([0, 1, 2, 3, 4])
    examples = read_parts(spec("pairs"))["train"].examples[:5]
    u, v = (text_vectors(model.eval(), texts)[0] for texts in zip(*(e.texts for e in examples), strict=True))
    scores = [e.score for e in examples]
    expected = 5 * cosent_loss((u * v).sum(-1), torch.tensor(scores), 10.0)
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)
    huge = [TextGroup(("北京", "上海"), y, 1) for y in (2e300, -1e300, 1e300)]  # too large for float32
    assert get_task("embed").training_set(model, huge).collate([0, 1, 2])["target"].tolist() == [2, 0, 1]


def test_like_rows_are_no_negatives_and_a_lone_row_trains_nothing(spec):
    model, data = untrained(quick(spec("sentences"), dropout=0.1))
    lone = data.collate([4])
    loss = model(lone)
    loss.backward()
    assert loss.item() == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())
    same = GroupedTexts(model.encoder, [["北京"] * 3, ["上海", "大学", "学习"]], [7, 7, 7], 16)
    assert model(same.collate([0, 1, 2])).item() == 0
    two = GroupedTexts(model.encoder, [["北京", "北京", "数学"], ["上海", "大学", "学习"]], [0, 0, 1], 16)
    model.eval()
    batch = two.collate([0, 1, 2])
    a, p = model.pooled(batch).split(3)
    s = cosines(a, p) / 0.05
    s[0, 1] = s[1, 0] = -torch.inf
    expected = F.cross_entropy(s, torch.arange(3), reduction="sum")
    torch.testing.assert_close(model(batch).double(), expected, rtol=1e-4, atol=1e-5)


def test_hard_negatives_stand_in_for_missing_ones(spec):
    model, data = untrained(quick(spec("triples")))
    assert model(data.collate([0])).item() > 0  # one row, but its negative is there


# ---------------------------------------------------------------- learning, vectors, folders


@pytest.mark.parametrize(
    ("kind", "tricks"),
    [
        ("pairs", ()),
        ("triples", ("flatnce",)),
        ("sentences", ()),
        pytest.param("triples", ("fgm:0.05", "ema:0.9"), marks=pytest.mark.slow),
    ],
)
def test_it_learns_and_its_folder_says_the_same(spec, tmp_path, kind, tricks):
    asked = spec(kind, tricks=tricks)
    record = train_folder(asked, tmp_path / "out")
    metrics = record["metrics"]["dev"]
    assert set(metrics) == {"spearman", "pearson"}
    assert metrics["spearman"] > {"pairs": 0.7, "triples": 0.7, "sentences": 0.2}[kind]
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    assert trained.evaluate(asked.dev)["metrics"] == metrics
    task = json.loads((tmp_path / "out" / "task.json").read_text(encoding="utf-8"))
    expected = {"pairs": "cosent", "triples": "contrastive", "sentences": "simcse"}[kind]
    assert (task["scheme"], task["config"]["objective"]) == ("pairs", expected)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Similarities" in page and "not alike" in page and "Spearman correlation" in page


def test_pairs_and_triples_as_plain_sentences(spec, files):
    for kind in ("pairs", "triples"):
        model, data = untrained(quick(spec(kind), objective="simcse"))
        texts = {t for e in read_parts(spec(kind))["train"].examples for t in e.texts}
        assert (model.config["objective"], len(data.lengths)) == ("simcse", len(texts))


@pytest.mark.parametrize("pooling", ["mean", "first", "max", "first_last_mean"])
def test_vectors_do_not_depend_on_company(spec, pooling):
    model = model_of(quick(spec("pairs"), pooling=pooling))
    texts = ["北京" * (i % 5 + 1) + "数学" * (i % 3) for i in range(9)] + ["北京"]
    together, cut = text_vectors(model, texts)
    assert not any(cut)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(10))
    for text, vector in zip(texts, together, strict=True):
        torch.testing.assert_close(text_vectors(model, [text])[0][0], vector, rtol=1e-5, atol=1e-6)
    assert torch.equal(together[0], together[9])  # like texts are read once
    batch = model.encoder.tokenizer.encode_batch([texts[1]])[0]
    ids = torch.tensor([batch.ids])
    layers = model.encoder.transformer(ids, mask=torch.ones_like(ids).bool(), output_layers=True).layers
    last = layers[-1][0]
    by_hand = {"mean": last.mean(0), "first": last[0], "max": last.amax(0),
               "first_last_mean": (layers[1][0] + last).mean(0) / 2}[pooling]  # fmt: skip
    torch.testing.assert_close(together[1], F.normalize(by_hand, dim=0), rtol=1e-5, atol=1e-6)


def test_predictions_keep_their_order_and_say_what_was_cut(spec, tmp_path):
    train_folder(quick(spec("pairs")), tmp_path / "out")
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    texts = ["北京大学", "", "我们" * 20, "北京大学"]
    found = list(trained.predict(texts))
    assert [p["text"] for p in found] == texts and found[1]["vector"] is None
    assert [p.get("truncated") for p in found] == [None, None, True, None]
    assert found[0]["vector"] == found[3]["vector"] and len(found[0]["vector"]) == 32
    assert sum(x * x for x in found[0]["vector"]) == pytest.approx(1, abs=1e-5)
    assert trained.task.show(found[1]) == "" and trained.task.show(found[0]).endswith("\t北京大学")
    assert list(trained.predict([])) == []


def test_the_command_line_writes_vectors(spec, tmp_path, capsys, monkeypatch):
    train_folder(quick(spec("pairs")), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("北京\n\n大学\n", encoding="utf-8")
    assert main(["predict", "out", "--input", "in.txt", "--out", "v.npy", *OPTIONS]) == 0
    assert "wrote 3 vectors of 32 numbers (1 of empty texts are nan) to v.npy" in capsys.readouterr().out
    array = np.load("v.npy")
    assert array.dtype == np.float32 and np.isnan(array[1]).all()
    assert main(["predict", "out", "北京", "--json", *OPTIONS]) == 0
    line = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(array[0], line["vector"], atol=1e-6)
    assert main(["predict", "out", "北京", "--out", "w.npy", "--json", *OPTIONS]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "w.npy", "rows": 1, "features": 32, "empty": 0}
    for name, message in (("v.npy", "is there already"), ("v.json", "ends in .npy"), ("no/v.npy", "no folder no")):
        assert main(["predict", "out", "北京", "--out", name, *OPTIONS]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", "out", "--data", spec().dev, *OPTIONS]) == 0
    assert "spearman" in capsys.readouterr().out


def test_only_embed_writes_vectors(classify_spec, tmp_path, capsys, monkeypatch):
    train_folder(replace(classify_spec, set={**classify_spec.set, "epochs": 0.2}), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "out", "北京", "--out", "v.npy", *OPTIONS]) == 2
    assert "--out is for vectors, task classify gives none" in capsys.readouterr().err
    assert not (tmp_path / "v.npy").exists()


def test_whitening_after_training(spec, tmp_path):
    asked = quick(spec("sentences", tricks=("whitening:8",)))
    record = train_folder(asked, tmp_path / "out")
    assert any("8 of 32 directions are kept" in note and "are few for it" in note for note in record["notes"])
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    assert trained.evaluate(asked.dev)["metrics"] == record["metrics"]["dev"]
    model = trained.model
    texts = list(dict.fromkeys(e.text for e in read_parts(asked)["train"].examples))
    raw = text_vectors(model, texts, whiten=False)[0].double()
    z = raw - raw.mean(0)
    values, axes = torch.linalg.eigh(z.T @ z / len(z))
    expected = F.normalize(z @ axes[:, -8:] / values[-8:].sqrt(), dim=1)
    got = text_vectors(model, texts)[0]
    assert got.shape == (len(texts), 8)
    torch.testing.assert_close((got @ got.T).double(), expected @ expected.T, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="whitening: dim is 40"):
        train_model(replace(asked, tricks=("whitening:40",)), read_parts(asked))
    assert parse_all(["whitening"], "embed")[1] == Plan(whitening=0)
    with pytest.raises(InputError, match="whitening keeps a number of directions"):
        parse_all(["whitening:-1"], "embed")


def test_long_texts_are_cut_and_told(spec, tmp_path):
    (tmp_path / "long.txt").write_text("北京" * 30 + "\n上海\n大学\n", encoding="utf-8")
    dev = tmp_path / "dev.csv"
    dev.write_text(f"text_a,text_b,label\n{'北京' * 30},上海,0\n上海,上海,1\n", encoding="utf-8")
    record = train_folder(
        quick(replace(spec("sentences"), train=str(tmp_path / "long.txt"), dev=str(dev))), tmp_path / "o"
    )
    assert record["notes"][0].startswith("1 of 3 distinct training texts were cut at their end")
    assert record["metrics"]["dev"]["truncated"] == 1


def test_resumed_training_is_the_same(spec, tmp_path):
    asked = replace(spec("triples"), set={**SETTINGS, "epochs": 2.0, "save_every": 5})
    whole = train_folder(asked, tmp_path / "whole")

    def stop(event):
        if event.get("event") == "step" and event["step"] == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_folder(asked, tmp_path / "parts", on_event=stop)
    again = train_folder(asked, tmp_path / "parts", resume=True)
    assert again["metrics"] == whole["metrics"]
    from danlu.tasks.folder import read_tensors

    one, two = (read_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------- evaluation, ablation, named sets


def test_scores_and_their_parts(spec):
    model, task = model_of(quick(spec("pairs"))), get_task("embed")
    examples = read_parts(spec("pairs"))["dev"].examples
    scores = task.evaluate(model, examples, details=True)
    u, v = (text_vectors(model, [e.texts[i] for e in examples])[0] for i in (0, 1))
    cosine = (u * v).sum(-1)
    gold = torch.tensor([e.score for e in examples])
    assert scores.metrics["spearman"] == pytest.approx(float(spearman(cosine, gold)), abs=1e-3)
    assert sum(scores.contributions) / len(examples) == pytest.approx(scores.metrics["spearman"], abs=1e-8)
    found = scores.page["similarities"]
    assert found["middle"] == 2.5 and [g["name"] for g in found["groups"]] == ["alike", "not alike"]
    for group, part in zip(found["groups"], (cosine[gold > 2.5], cosine[gold <= 2.5]), strict=True):
        assert group["pairs"] == len(part) and sum(group["share"]) == pytest.approx(1)
        assert group["mean"] == pytest.approx(float(part.mean()), abs=1e-5)
        edges = torch.tensor(found["edges"])
        inside = ((part >= edges[6]) & (part < edges[9])).double().mean().item()
        assert len(edges) == 11 and sum(group["share"][6:9]) == pytest.approx(inside, abs=0.06)
    assert len(scores.page["worst"]) == 12
    one = task.evaluate(model, examples[:1], details=True)
    assert one.metrics["spearman"] == 0.0 and len(one.contributions) == 1


def test_trials_of_an_ablation(spec):
    value = quick(spec("triples")).to_json()
    base, flat = (run_trial(value | {"with": tricks}) for tricks in ([], ["flatnce"]))
    assert base["metric"] == "spearman" and base["counts"] == [] and base["contributions"] != flat["contributions"]
    assert sum(base["contributions"]) / len(base["contributions"]) == pytest.approx(base["value"], abs=1e-8)


@pytest.mark.slow
def test_ablate_from_the_command_line(spec, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = spec("sentences")
    words = ["ablate", "embed", "--train", asked.train, "--dev", asked.dev, "--model", asked.model, "--with",
             "flatnce,whitening:8", "--seeds", "2", "--set", "epochs=1", "--set", "batch_size=8", "--out", "o",
             "--device", "cpu", "--precision", "fp32"]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(arm in out for arm in ("baseline", "flatnce", "whitening:8", "all")) and "spearman" in out
    record = json.loads((tmp_path / "o" / "ablation.json").read_text(encoding="utf-8"))
    for arm in record["arms"][1:]:
        gain = arm["mean"] - record["arms"][0]["mean"]
        assert arm["difference"]["mean"] == pytest.approx(gain, abs=1e-6)
        assert arm["difference"]["low"] <= gain <= arm["difference"]["high"]


@pytest.mark.data
def test_named_sets(shared):
    pairs = datasets.load("stsb-zh", "dev", "embed")
    assert (pairs.scheme, len(pairs), pairs.examples[0].score) == ("pairs", 1_500, 5.0)
    for name in ("atec", "pawsx-zh", "stsb-en"):
        found = datasets.open_source(f"{name}:test", role="test", task="embed", read=get_task("embed").read)
        assert found.scheme == "pairs" and {len(e.texts) for e in found.examples} == {2}
    assert datasets.load("afqmc", "dev", "embed").examples[0].score in (0.0, 1.0)
    assert len(datasets.load("sts12-16", "2014", "embed")) == 3_750
    sentences = datasets.load("fewclue-tnews", "train", "embed")
    assert sentences.scheme == "sentences" and len(sentences.examples[0].texts) == 1
    with pytest.raises(InputError, match="does not say how alike two texts are"):
        datasets.load("ocnli", "dev", "embed")
    with pytest.raises(InputError, match=r"weibo-ner is a set for tag, not for embed; sets for embed: afqmc"):
        datasets.load("weibo-ner", "dev", "embed")


# ---------------------------------------------------------------- refusals


def test_what_makes_no_sense_is_refused(spec, files, tmp_path):
    one = tmp_path / "one.txt"
    one.write_text("北京\n北京\n", encoding="utf-8")
    flat = tmp_path / "flat.csv"
    flat.write_text("text_a,text_b,score\na,b,1\na,a,1\n", encoding="utf-8")
    for asked, message in (
        (replace(spec("sentences"), train=str(one)), "the training data have one sentence only"),
        (replace(spec(), train=str(flat)), "all scores of the training data are 1; there is nothing to learn"),
        (quick(spec("sentences"), dropout=0.0), "simcse tells two draws of dropout apart, and dropout is 0"),
        (
            quick(spec("sentences"), objective="cosent"),
            "objective cosent is for pairs, the training data are sentences",
        ),
        (quick(spec("pairs"), objective="contrastive"), "objective contrastive is for triples"),
        (quick(spec("pairs"), temperature=0.0), "temperature must be > 0, got 0"),
        (spec("pairs", tricks=("flatnce",)), "flatnce is for sentences and triples; pairs with scores are trained by"),
        (replace(spec(), model="dgcnn"), "this needs a transformer, --model dgcnn is none"),
        (replace(spec(), model="bert:1x8", set={**SETTINGS, "pooling": "first_last_mean"}), "needs two layers"),
        (replace(spec(), dev=str(files / "train.txt")), "it holds sentences .*; wanted are pairs"),
    ):
        with pytest.raises(InputError, match=message):
            train_folder(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="setting pooling is mean or first or max or first_last_mean, got 'cls'"):
        Spec.parse("embed", train="x", model="mini-zh", settings=["pooling=cls"])
    with pytest.raises(InputError, match="setting pooling is mean or first, got 'max'"):
        Spec.parse("classify", train="x", model="mini-zh", settings=["pooling=max"])
    with pytest.raises(InputError, match="trick flatnce fits embed, not classify"):
        parse_all(["flatnce"], "classify")


def test_a_set_of_sentences_is_no_dev_set(spec, monkeypatch):
    from danlu.data import Corpus
    from danlu.tasks import training

    held = Corpus([TextGroup(("a",), None, 1)], "reviews:dev", "embedded", "sentences")
    real = datasets.open_source
    monkeypatch.setattr(training.datasets, "open_source",
                        lambda source, **k: held if source == "reviews" else real(source, **k))  # fmt: skip
    with pytest.raises(InputError, match="reviews holds sentences; --dev of task embed takes pairs"):
        read_parts(replace(spec(), dev="reviews"))
