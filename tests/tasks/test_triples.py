"""Task triples: characters and tokens, windows united, training of both heads, folders, the page, messages."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from danlu.data.errors import InputError
from danlu.data.triples import Related, Relation
from danlu.tasks import datasets, get_task
from danlu.tasks.encoder import Encoder
from danlu.tasks.model_choice import Choice, choose_model
from danlu.tasks.spec import Spec
from danlu.tasks.trained import Trained
from danlu.tasks.training import read_parts, train_folder, train_model
from danlu.tasks.tricks import Plan, parse
from danlu.tasks.triple_windows import token_span
from danlu.tasks.triples import Task, TripleSettings, shown
from danlu.text import Tokenizer, TransformerConfig, build_transformer

NAMES, TOWNS = ["王明", "李雷", "韩梅梅", "Bob", "Ann Lee"], ["北京", "上海", "广州市"]


def sentence(i: int, j: int) -> dict:
    a, b, town = NAMES[i], NAMES[(i + j + 1) % 5], TOWNS[j]
    if (i + j) % 2:
        return {
            "text": f"{a}和{b}是夫妻，住在{town}。",
            "triples": [[a, "配偶", b], [a, "住在", town], [b, "住在", town]],
        }
    return {"text": f"听说{town}的{a}见了{b}。", "triples": [[a, "住在", town]]}


ROWS = [sentence(i, j) for i in range(5) for j in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A transformer of two layers with fresh weights and the characters of the rows."""
    characters = sorted({c for row in ROWS for c in row["text"].lower() if not c.isspace()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters if c.isascii())]
    vocab = {token: i for i, token in enumerate(tokens)}
    torch.manual_seed(0)
    config = TransformerConfig.of(
        "bert",
        vocab_size=len(vocab),
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        intermediate_size=128,
        max_positions=40,
    )
    path = tmp_path_factory.mktemp("encoder")
    Encoder(build_transformer(config), Tokenizer(vocab)).save(path)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    return str(path)


def spec_of(folder: Path, rows: str, **settings) -> Spec:
    numbers = {"lr": 3e-3, "batch_size": 5, "dropout": 0.0, "evaluations": 1, "save_every": 4, **settings}
    return Spec(
        task="triples", train=rows, dev=rows, model=str(folder), set=numbers, device="cpu", precision="fp32", threads=1
    )


@pytest.fixture(scope="module")
def build(folder):
    def builds(examples, **settings):
        torch.manual_seed(0)
        return Task().build(examples, "", choose_model(str(folder)), TripleSettings(**settings), Plan()).eval()

    return builds


@pytest.mark.parametrize(
    ("span", "tokens"),
    [((0, 2), (0, 1)), ((0, 1), (0, 1)), ((1, 3), (0, 2)), ((2, 3), (1, 2)), ((3, 5), None), ((2, 9), (1, 3))],
)
def test_tokens_that_hold_a_span(span, tokens):
    offsets = [(0, 2), (2, 3), (5, 9)]
    by_hand = [i for i, (a, b) in enumerate(offsets) if a < span[1] and b > span[0]]
    assert tokens == ((by_hand[0], by_hand[-1] + 1) if by_hand else None)
    assert token_span(offsets, span) == tokens


def test_windows_hold_every_triple_no_wider_than_the_overlap(build):
    text = "王明住在北京，" * 12
    triples = tuple(Relation((a, a + 2), "住在", (b, b + 2)) for a in range(0, 82, 3) for b in range(0, 82, 5))
    example = Related(text, triples, 1)
    model = build([example], max_len=22)
    data = model.windows([text], [example])
    assert all(len(w) <= 20 for w in data.windows) and len(data.windows) > 5
    held = set()
    for i, found in enumerate(data.triples):
        for s, s_end, _, o, o_end in found:
            shift = data.windows[i].start - 1  # [CLS]
            assert min(s, o) >= 1 and max(s_end, o_end) <= data.lengths[i] - 1
            held.add(((s + shift, s_end + shift), (o + shift, o_end + shift)))  # a character a token
    width = {t: max(t.subject[1], t.object[1]) - min(t.subject[0], t.object[0]) for t in example.triples}
    overlap = min(b.stop - a.start for a, b in zip(data.windows[1:], data.windows, strict=False))
    assert overlap == 10
    assert all((t.subject, t.object) in held for t, size in width.items() if size <= overlap)
    missed = [t for t in example.triples if (t.subject, t.object) not in held]
    assert len(missed) > 0
    assert data.out_of_reach == len(missed)
    assert Task().evaluate(model, [example], details=True).metrics["out_of_reach"] == len(missed)


def test_a_batch_says_where_everything_is(build):
    examples = [Related("王明和北京", (Relation((0, 2), "住在", (3, 5)),), 1), Related("上海", (), 2)]
    batch = build(examples).windows([e.text for e in examples], examples).collate([0, 1])
    assert batch["triples"].tolist() == [[0, 1, 3, 0, 4, 6]]
    assert batch["pieces"].tolist() == [[False, *[True] * 5, False], [False, True, True, *[False] * 4]]
    assert batch["mask"].sum(1).tolist() == [7, 4]
    assert "subjects" not in batch
    data = build(examples, head="casrel").windows([e.text for e in examples], examples)
    assert data.collate([0, 1])["subjects"].tolist() == [[0, 1, 3]]
    assert (data.weight([0, 1]), data.weight([0])) == (7.0, 5.0)


def test_sampling_follows_the_global_stream_that_training_stores(build):
    spans = [Relation((a, a + 1), "r", (6, 7)) for a in range(5)]
    example = Related("王明和李雷北京", tuple(spans), 1)
    data = build([example], head="casrel").windows([example.text], [example])

    def draws():
        torch.manual_seed(3)
        return [data.collate([0])["subjects"].tolist() for _ in range(12)]

    assert draws() == draws()
    assert len({tuple(row[0]) for row in draws()}) > 3


def test_what_windows_find_is_united_and_cut_spans_are_left_out(build):
    text = "王明住在北京，" * 6
    model = build([Related(text, (Relation((0, 2), "住在", (4, 6)),), 1)], max_len=22)
    data = model.windows([text])
    assert [(w.start, w.stop) for w in data.windows][:2] == [(0, 20), (10, 30)]
    first, last = 1, 20  # tokens of window 0: [CLS], then text tokens 0 ... 19
    assert data.characters(0, [(first, 3, 0, 5, 7)], ["r"]) == {Relation((0, 2), "r", (4, 6))}  # the text's own edge
    assert data.characters(0, [(1, 3, 0, last, last + 1)], ["r"]) == set()  # the window's
    assert data.characters(1, [(1, 3, 0, 5, 7)], ["r"]) == set()
    assert data.characters(1, [(2, 4, 0, 5, 7)], ["r"]) == {Relation((11, 13), "r", (14, 16))}
    whole = len(data.windows) - 1
    size = len(data.windows[whole])
    assert data.characters(whole, [(3, 4, 0, size, size + 1)], ["r"])  # the end of the text

    stub = SimpleNamespace(  # finds second and third piece of every window of three or more
        windows=model.windows,
        parameters=model.parameters,
        predicates=["r"],
        extract=lambda batch: [[(2, 3, 0, 3, 4)] if size > 4 else [] for size in batch["mask"].sum(1).tolist()],
    )
    found = Task().find(stub, [text, "", "王明北京", "王"])
    assert [t.subject for t in found[0]] == [(w.start + 1, w.start + 2) for w in data.windows]
    assert found[0][-1].object[1] > 25
    assert found[1:] == [[], [Relation((1, 2), "r", (2, 3))], []]


def test_strings_are_judged_as_strings_and_spans_as_spans(build, monkeypatch):
    task = Task()
    text = "我和他说我"
    found = [Relation((4, 5), "r", (2, 3))]
    monkeypatch.setattr(task, "find", lambda model, texts: [found for _ in texts])
    gold = (Relation((0, 1), "r", (2, 3)),)
    model = build([Related(text, gold, 1)])
    assert task.evaluate(model, [Related(text, gold, 1, located=True)]).metrics["f1"] == 0.0
    assert task.evaluate(model, [Related(text, gold, 1, located=False)]).metrics["f1"] == 1.0
    both = task.evaluate(model, [Related(text, gold, 1, located=False)], details=True).metrics
    assert (both["f1_offsets"], both["f1_texts"]) == (0.0, 1.0)
    twice = (Relation((0, 1), "r", (2, 3)), Relation((4, 5), "r", (2, 3)))
    scores = task.evaluate(model, [Related(text, twice, 1)])
    assert scores.counts == [(1, 1, 2)]  # the same mention twice: one of two found


def test_a_predicate_that_training_never_saw_is_a_miss(build):
    model = build([Related("王明北京", (Relation((0, 2), "住在", (2, 4)),), 1)])
    other = [Related("王明上海", (Relation((0, 2), "生于", (2, 4)),), 1)]
    assert Task().unusable(model, other) == {}
    scores = Task().evaluate(model, other, details=True)
    assert scores.metrics["by_type"]["生于"]["support"] == 1
    assert (scores.metrics["recall"], scores.metrics["out_of_reach"]) == (0.0, 0)


def test_a_folder_says_what_the_run_said(folder, rows, tmp_path):
    record = train_folder(spec_of(folder, rows, epochs=25.0), tmp_path / "out", command="danlu train triples")
    assert record["metrics"]["dev"]["f1"] > 0.8
    assert {"config.json", "model.safetensors", "head.safetensors", "vocab.txt", "task.json", "report.html"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32", threads=1)
    assert trained.evaluate(rows)["metrics"]["f1"] == record["metrics"]["dev"]["f1"]
    results = list(trained.predict([ROWS[1]["text"], "", "  ", "龘"]))
    assert [r["triples"] for r in results[1:]] == [[], [], []]
    for t in results[0]["triples"]:
        (a, b), (c, d) = t["spans"]
        assert (results[0]["text"][a:b], results[0]["text"][c:d]) == (t["subject"], t["object"])
    assert results[0]["triples"]
    line = get_task("triples").show(results[0])
    assert "住在 -> " in line and "\n" not in line
    json.dumps(results)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="triples"' in page and "share one of them" in page


def test_interrupted_casrel_ends_with_the_same_bits(folder, rows, tmp_path):
    spec = spec_of(folder, rows, epochs=3.0, head="casrel")

    class Interrupted(Exception):
        pass

    def stop(event):
        if event["event"] == "step" and event["step"] == 6:
            raise Interrupted

    whole = train_folder(spec, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_folder(spec, tmp_path / "parts", on_event=stop)
    parts = train_folder(spec, tmp_path / "parts", resume=True)
    assert parts["metrics"] == whole["metrics"]
    for name in ("head.safetensors", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("head", "epochs", "least"), [("gplinker", 60.0, 1.0), ("casrel", 150.0, 0.95)])
def test_both_heads_learn_their_training_rows(folder, rows, head, epochs, least):
    spec = spec_of(folder, rows, epochs=epochs, head=head)
    assert train_model(spec, read_parts(spec)).result.best >= least


def test_tricks_choose_the_head(build):
    examples = [Related("王明北京", (Relation((0, 2), "住在", (2, 4)),), 1)]
    plan = parse("head:casrel", "triples").apply(Plan())
    assert plan.head == "casrel"
    with pytest.raises(InputError, match="head takes gplinker, casrel; got 'crf'"):
        parse("head:crf", "triples")
    with pytest.raises(InputError, match=r"head takes softmax, .*; got 'casrel'"):
        parse("head:casrel", "tag")
    for name in ("fgm", "pgd", "noise", "ema", "condition_lr"):
        assert "triples" in parse(name, "triples").tasks
    assert build(examples, head="casrel").head.norm is not None


def test_long_texts_are_shown_in_stretches():
    text = "甲" * 300 + "。王明住在北京。" + "乙" * 300
    right, wrong = Relation((0, 1), "r", (2, 3)), Relation((301, 303), "住在", (305, 307))
    (row,) = shown([Related(text, (right, wrong), 7)], [[right]], [(1, 1, 2)])
    assert row["text"].startswith("王明住在北京。") and len(row["text"]) <= 180
    assert (row["gold"], row["pred"], row["line"]) == ([[0, 2, "住在", 4, 6]], [], 7)


def test_messages(build, folder):
    one = [Related("王明北京", (Relation((0, 2), "住在", (2, 4)),), 1)]
    with pytest.raises(InputError, match="setting head of task triples is gplinker or casrel, got 'crf'"):
        build(one, head="crf")
    with pytest.raises(InputError, match="setting fusion of task triples is cln or add, got 'sum'"):
        build(one, fusion="sum")
    with pytest.raises(InputError, match=r"setting head_size must be even .*got 3"):
        build(one, head_size=3)
    with pytest.raises(InputError, match="the training data has no triples; every row's list is empty"):
        build([Related("王明", (), 1)])
    with pytest.raises(InputError, match="needs a transformer, --model dgcnn is none; give mini-zh"):
        Task().build(one, "", Choice("dgcnn", "dgcnn", 8, 2), TripleSettings(), Plan())


@pytest.mark.data
@pytest.mark.parametrize(("name", "located"), [("zh-literature-ie", True), ("conll04", True), ("webnlg", False)])
def test_named_sets_are_read(shared, name, located, monkeypatch):
    monkeypatch.setenv("DANLU_DATA", str(shared))
    for role in ("train", "dev", "test"):
        assert datasets.resolve(name, role, "triples")[0] == name
    corpus = datasets.load(name, datasets.resolve(name, "dev", "triples")[1], task="triples")
    assert corpus.examples[0].located is located
    with pytest.raises(InputError, match=f"{name} is a set for triples, not for tag"):
        datasets.resolve(name, "train", "tag")
