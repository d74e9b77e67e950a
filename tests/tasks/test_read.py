"""Reading: windows and the way back to the text, answers over windows and passages, whole runs, what is refused."""

import json
import math
import random

import pytest
import torch
from torch import nn

from danlu.data.errors import InputError
from danlu.data.reading import Answer, Question, read_questions
from danlu.tasks.model_choice import choose_model
from danlu.tasks.read import DGCNNReadSettings, Task
from danlu.tasks.read_models import DGCNNReading, EncoderReading
from danlu.tasks.read_windows import Asked, CharWindows, EncoderWindows
from danlu.tasks.spec import Spec
from danlu.tasks.trained import Trained
from danlu.tasks.training import train_folder
from danlu.tasks.tricks import Plan
from danlu.text import CharVocab, Tokenizer

TASK = Task()
CONTEXT = "张三住在北京， 李四住在上海。王五 喜欢吃ice cream，赵六喜欢吃饺子。"
QUESTION = "李四住在哪里？"
CHARACTERS = sorted(set(CONTEXT + QUESTION) - set("， abcdefghijklmnopqrstuvwxyz"))
VOCAB = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "，", "ice", "cream", *CHARACTERS])}
WINDOW = {"max_len": 20, "max_question": 7, "overlap": 4, "features": True}
START, END = VOCAB["上"], VOCAB["海"]


class Pointed(nn.Module):
    """An encoder made by hand: one feature lights up at the token 上, the other at 海, both a little at [CLS]."""

    dim = 2

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        ids = batch["ids"]
        hidden = torch.stack([(ids == START) * 12.0, (ids == END) * 12.0], -1)
        return hidden + (ids == VOCAB["[CLS]"])[..., None] * 6.0


def pointed(**config):
    model = EncoderReading(
        Pointed(Tokenizer(VOCAB)), {**WINDOW, "span_head": "start_end", "max_answer": 9, "vote": "squared", **config}
    )
    model.config.setdefault("no_answer", False)
    if model.config["span_head"] == "start_end":
        with torch.no_grad():
            model.head.output.weight.copy_(torch.eye(2))
            model.head.output.bias.zero_()
    return model.eval()


def random_reader(**config):
    vocab = CharVocab.build([CONTEXT, QUESTION], min_count=1, bigram_min_count=1)
    sizes = {"dim": 8, "bigram_dim": 4, "dilations": (1, 2, 1), "dropout": 0.0, "gate_dropout": 0.0}
    rest = {"bigram_dropout": 0.0, "token_dropout": 0.0, "presence": True, "alpha": 0.25, "gamma": 2.0}
    limits = {"threshold": 0.1, "max_answer": 9, "no_answer": False, "vote": "squared"}
    return DGCNNReading(vocab, {**WINDOW, **sizes, **rest, **limits, **config}).eval()


def windows(kind, asked, **config):
    config = {**WINDOW, **config}
    if kind == "characters":
        return CharWindows(CharVocab.build([CONTEXT], min_count=1), asked, config)
    return EncoderWindows(Tokenizer(VOCAB), asked, config)


@pytest.mark.parametrize("kind", ["characters", "tokens"])
def test_every_place_of_the_context_is_in_a_window(kind):
    data = windows(kind, [Asked(QUESTION, (CONTEXT,)), Asked("谁？", (CONTEXT, "张三"))])
    seen = {(0, 0): set(), (1, 0): set(), (1, 1): set()}
    for item in range(len(data.lengths)):
        batch = data.collate([item])
        allowed = batch["mask" if kind == "characters" else "candidates"][0].nonzero()[:, 0].tolist()
        place = data.place(item)
        for t in allowed:
            begin, end = data.characters(item, t, t)
            seen[place.asked, place.context].update(range(begin, end))
            if kind == "tokens":
                text = [CONTEXT, "张三"][place.context][begin:end]
                assert VOCAB.get(text, 1) == batch["ids"][0, t]
    blank = {i for i, c in enumerate(CONTEXT) if c == " "} if kind == "tokens" else set()
    assert seen[0, 0] == seen[1, 0] == set(range(len(CONTEXT))) - blank
    assert seen[1, 1] == {0, 1}
    assert max(data.lengths) <= WINDOW["max_len"]
    assert len(data.lengths) > 4


@pytest.mark.parametrize("answer", ["上海", "ice cream", "王五 喜欢", "张三", "饺子。"])
def test_the_target_is_the_answer(answer):
    data = windows("tokens", [Asked(QUESTION, (CONTEXT,), Answer(answer, CONTEXT.index(answer)))])
    batch = data.collate(list(range(len(data.lengths))))
    found = set()
    for item, (first, last) in enumerate(batch["target"].tolist()):
        if first:
            begin, end = data.characters(item, first, last)
            found.add(CONTEXT[begin:end])
            assert batch["candidates"][item, first : last + 1].all()
    assert found == {answer}


def test_a_row_is_question_and_window():
    data = windows("tokens", [Asked("李四在哪", ("北京，上海",))], max_len=32)
    batch = data.collate([0])
    tokens = [{i: t for t, i in VOCAB.items()}[i] for i in batch["ids"][0].tolist()]
    assert tokens == ["[CLS]", "李", "四", "在", "哪", "[SEP]", "北", "京", "，", "上", "海", "[SEP]"]
    assert batch["segments"][0].tolist() == [0] * 6 + [1] * 6
    assert batch["candidates"][0].tolist() == [False] * 6 + [True] * 5 + [False]


def test_every_occurrence_has_its_marks():
    text = "北京，北京。" + "在" * 13 + "北京" + "在" * 5 + "北京"  # the third crosses the end of the first window
    data = windows("characters", [Asked("哪？", (text,), Answer("北京", 0))])
    batch = data.collate(list(range(len(data.lengths))))
    starts, ends = set(), set()
    for item in range(len(data.lengths)):
        starts |= {data.characters(item, t, t)[0] for t in batch["start"][item].nonzero()[:, 0].tolist()}
        ends |= {data.characters(item, t, t)[1] for t in batch["end"][item].nonzero()[:, 0].tolist()}
    assert starts == {0, 3, 19, 26}
    assert ends == {2, 5, 21, 28}
    nothing = windows("characters", [Asked("哪？", (text,))])
    assert nothing.collate([0])["start"].sum() == 0


def test_features_tell_where_the_question_is_repeated():
    batch = windows("characters", [Asked("李四", ("张三，李四",))]).collate([0])
    assert batch["features"][0, :, 0].tolist() == [0, 0, 0, 1, 1]
    assert batch["features"].shape[-1] == 4
    assert "features" not in windows("characters", [Asked("李四", ("张三",))], features=False).collate([0])


@pytest.mark.parametrize("place", [0, 7, 150, 398])
def test_an_answer_anywhere_in_a_long_context_is_found(place):
    """Scores can be compared between windows: those without the answer say "not here"."""
    context = "在" * place + "上海" + "住" * (398 - place)
    (found,) = TASK.answers(pointed(), [Asked(QUESTION, (context,))])
    assert (found.text, found.start, found.end) == ("上海", place, place + 2)
    assert found.score > 0.9
    both = "在上" + "在" * 90 + "上海" + "在" * 90 + "海在"  # halves of it in other windows
    (found,) = TASK.answers(pointed(), [Asked(QUESTION, (both,))])
    assert (found.start, found.end) == (92, 94)


def test_of_two_places_the_surer_one_counts():
    context = "上海，上" + "在" * 40 + "上海"  # the first window has two starts and is half as sure
    (found,) = TASK.answers(pointed(), [Asked(QUESTION, (context,))])
    assert (found.start, found.end) == (44, 46)
    assert found.score > 0.9


def test_the_score_is_that_of_the_window():
    (found,) = TASK.answers(pointed(), [Asked("在", ("上海",))])
    one = math.exp(12) / (math.exp(12) + math.exp(6) + 1)  # start: the token, [CLS], the other token
    assert found.score == pytest.approx(one * one, rel=1e-5)


def test_where_the_model_may_be_silent():
    asked = [Asked(QUESTION, ("张三住在北京",)), Asked(QUESTION, ("李四住在上海",)), Asked(QUESTION, ("",))]
    silent = TASK.answers(pointed(no_answer=True), asked)
    assert [f.text for f in silent] == [None, "上海", None]
    assert [f.text is None for f in TASK.answers(pointed(no_answer=False), asked)] == [False, False, True]
    reader = random_reader(no_answer=True, threshold=0.999)
    assert [f.text for f in TASK.answers(reader, asked)] == [None] * 3
    reader.config["no_answer"] = False
    assert TASK.answers(reader, asked)[0].text is not None


def test_passages_vote():
    model = pointed()
    item = {"question": QUESTION, "context": ["张三住在北京", "李四住在上海", "上海", "北京"]}
    (row,) = TASK.predict(model, [item])
    alone = [TASK.predict(model, [{**item, "context": c}])[0] for c in ("李四住在上海", "上海")]
    assert (row["answer"], row["start"], row["end"], row["passage"]) == ("上海", 0, 2, 2)  # the surest place
    scores = [r["score"] for r in alone]
    assert row["score"] == pytest.approx(sum(s * s for s in scores) / (1 + sum(scores)), abs=1e-5)
    assert "passage" not in alone[0]
    model.config["vote"] = "max"
    assert TASK.predict(model, [item])[0]["score"] == pytest.approx(max(scores), abs=1e-5)


@pytest.mark.parametrize("head", ["start_end", "global_pointer", None])
def test_an_answer_is_always_a_stretch_of_its_context(head):
    stream = random.Random(4)
    letters = CONTEXT + "  \n\t😀é가＃"
    asked = [Asked(QUESTION, ("".join(stream.choices(letters, k=stream.randint(1, 80))),)) for _ in range(40)]
    torch.manual_seed(1)
    model = random_reader() if head is None else EncoderReading(Pointed(Tokenizer(VOCAB)), {
        **WINDOW, "span_head": head, "max_answer": 9, "no_answer": False, "vote": "squared"}).eval()  # fmt: skip
    results = TASK.answers(model, asked)
    assert sum(f.text is not None for f in results) > 30
    for one, found in zip(asked, results, strict=True):
        assert 0 <= found.score <= 1
        if found.text is not None:
            assert one.contexts[0][found.start : found.end] == found.text == found.text.strip() != ""
            assert len(found.text) <= 9 or head is not None


@pytest.mark.parametrize("build", [pointed, random_reader])
def test_the_same_answer_alone_and_among_others(build):
    torch.manual_seed(2)
    model = build()
    asked = [Asked(QUESTION, (CONTEXT * n,)) for n in (1, 3, 2)] + [Asked("谁？", ("张三",))]
    together = TASK.answers(model, asked)
    for one, found in zip(asked, together, strict=True):
        (alone,) = TASK.answers(model, [one])
        assert (alone.text, alone.start) == (found.text, found.start)
        assert alone.score == pytest.approx(found.score, abs=1e-5)


def test_a_long_question_is_cut_with_a_note():
    for model in (pointed(), random_reader()):
        long, short = TASK.predict(
            model, [{"question": "李四" * 9, "context": CONTEXT}, {"question": "谁", "context": "甲"}]
        )
        assert long["note"] == "only the first 7 tokens of the question were read"
        assert "note" not in short
        assert TASK.show(long).endswith("(only the first 7 tokens of the question were read)")
        cut = TASK.predict(model, [{"question": ("李四" * 9)[:7], "context": CONTEXT}])[0]
        assert (cut["answer"], cut["score"]) == (long["answer"], pytest.approx(long["score"]))


def test_scores_are_those_of_the_answers():
    model = pointed()
    examples = [
        Question(QUESTION, "李四住在上海", (Answer("上海", 4),), 1),
        Question(QUESTION, "李四住在上海", (Answer("在上海", 3), Answer("魔都", None)), 2),
        Question("李" * 40, "李四住在上海。" + "在" * 30, (Answer("北京", None),), 3),
    ]
    scores = TASK.evaluate(model, examples, details=True)
    assert scores.metrics["em"] == pytest.approx(1 / 3)
    assert scores.metrics["f1"] == pytest.approx((1 + 4 / 5) / 3)
    assert scores.counts == [(1.0, 1, 1), (pytest.approx(4 / 5), 1, 1), (0.0, 1, 1)]
    assert scores.metrics["cut_questions"] == 1
    cards = scores.page["reading"]
    assert [c["f1"] for c in cards][-1] == 1.0
    assert all(c["pred"] == [[4, 6, "answer"]] for c in cards)
    assert {tuple(map(tuple, c["gold"])) for c in cards} == {((4, 6, "answer"),), ((3, 6, "answer"),), ()}


def test_unanswerable_questions_are_counted():
    examples = [
        Question(QUESTION, "张三", (), 1),
        Question(QUESTION, "上海", (), 2),
        Question(QUESTION, "上海", (Answer("上海", 0),), 3),
    ]
    metrics = TASK.evaluate(pointed(no_answer=True), examples).metrics
    assert metrics["unanswerable_recall"] == 1 / 2
    assert metrics["answered"] == metrics["f1"] == metrics["em"] == pytest.approx(2 / 3)


def test_losses_fall_to_nothing_on_what_is_known():
    data = EncoderWindows(
        Tokenizer(VOCAB), [Asked(QUESTION, ("李四住在上海",), Answer("上海", 4)), Asked(QUESTION, ("张三",))], WINDOW
    )
    assert pointed()(data.collate([0, 1])).item() < 0.05
    wrong = EncoderWindows(Tokenizer(VOCAB), [Asked(QUESTION, ("李四住在上海",), Answer("李四", 0))], WINDOW)
    assert pointed()(wrong.collate([0])).item() > 5
    both = pointed(span_head="global_pointer")
    torch.manual_seed(0)
    assert both(data.collate([0])).item() + both(data.collate([1])).item() == pytest.approx(
        both(data.collate([0, 1])).item(), rel=1e-4
    )


# whole runs

PEOPLE, TOWNS, FOODS = (
    ["张三", "李四", "王五", "赵六"],
    ["北京", "上海", "广州", "成都"],
    ["面条", "米饭", "饺子", "火锅"],
)


def rows(count, seed):
    stream = random.Random(seed)
    for _ in range(count):
        who, where, what = (stream.sample(names, 2) for names in (PEOPLE, TOWNS, FOODS))
        context = "".join(f"{p}住在{a}。{p}喜欢吃{b}。" for p, a, b in zip(who, where, what, strict=True))
        k = stream.randrange(2)
        question, answer = stream.choice([("住在哪里？", where[k]), ("喜欢吃什么？", what[k])])
        yield {"context": context, "question": who[k] + question, "answers": [answer]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    for name, count, seed in (("train", 60, 1), ("dev", 12, 2)):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows(count, seed))
        (folder / f"{name}.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def transformer(files):
    """A folder of a tiny transformer with fresh weights."""
    from danlu.tasks.encoder import Encoder
    from danlu.text import TransformerConfig, build_transformer

    texts = "".join((files / f"{part}.jsonl").read_text(encoding="utf-8") for part in ("train", "dev"))
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(texts) - set("\n "))]
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_positions": 64}
    torch.manual_seed(0)
    config = TransformerConfig.of("bert", vocab_size=len(vocab), **sizes)
    folder = files / "tiny"
    folder.mkdir()
    Encoder(build_transformer(config, ()), Tokenizer({t: i for i, t in enumerate(vocab)})).save(folder)
    return folder


def spec(files, model="dgcnn:3x24", tricks=(), **settings):
    parts = {part: str(files / f"{part}.jsonl") for part in ("train", "dev")}
    fixed = {"device": "cpu", "precision": "fp32", "threads": 1}
    return Spec(
        "read",
        model=str(model),
        tricks=tuple(tricks),
        set={"epochs": 1.0, "batch_size": 16, **settings},
        **parts,
        **fixed,
    )


@pytest.mark.parametrize("kind", ["dgcnn", "start_end", "global_pointer"])
def test_a_folder_answers_as_the_model_that_wrote_it(files, transformer, tmp_path, kind):
    if kind == "dgcnn":
        run = spec(files, max_len=24, overlap=8)
    else:
        run = spec(files, transformer, span_head=kind, max_len=40, overlap=8)
    record = train_folder(run, tmp_path / "out")
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    again = trained.evaluate(run.dev)["metrics"]
    assert again == pytest.approx(record["metrics"]["dev"])
    items = list(rows(5, 3))
    predictions = list(trained.predict(items))
    assert [p["question"] for p in predictions] == [row["question"] for row in items]
    assert all(row["context"][p["start"] : p["end"]] == p["answer"] for row, p in zip(items, predictions, strict=True))
    assert "Answers in place" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "out" / "task.json").read_text(encoding="utf-8"))
    assert (stored["task"], stored["config"]["max_answer"], stored["config"]["no_answer"]) == ("read", 2, False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dgcnn", "start_end", "global_pointer"])
def test_it_learns(files, transformer, tmp_path, kind):
    if kind == "dgcnn":
        run = spec(files, max_len=32, epochs=25.0, lr=3e-3)
    else:
        run = spec(files, transformer, span_head=kind, max_len=48, epochs=60.0, lr=2e-3, dropout=0.0)
    assert train_folder(run, tmp_path / "out")["metrics"]["dev"]["f1"] > 0.8


@pytest.mark.parametrize("tricks", [("fgm:0.3", "ema:0.9"), ("pgd",), ("noise",)])
def test_tricks_fit(files, tmp_path, tricks):
    from danlu.tasks.trial import run_trial

    value = run_trial({**spec(files, epochs=0.5).to_json(), "with": list(tricks)})
    counts = torch.tensor(value["counts"])
    assert value["metric"] == "f1"
    assert value["value"] == pytest.approx(float(2 * counts[:, 0].sum() / counts[:, 1:].sum()))


def test_numbers_of_the_training_part(files):
    examples = read_questions(files / "train.jsonl").examples
    model = TASK.build(examples, "", choose_model("dgcnn"), DGCNNReadSettings(), Plan())
    assert model.config["dilations"] == [1, 2, 4, 8, 16, 1]
    assert model.reader.passage.receptive_field == 65
    assert model.config["max_answer"] == 2
    assert TASK.build(examples, "", choose_model("dgcnn:3x16"), DGCNNReadSettings(), Plan()).config["dilations"] == [
        1,
        2,
        1,
    ]
    free = Question("谁？", "张三", (Answer("那个人", None),), 1)
    none = Question("谁？", "张三", (), 2)
    assert len(TASK.training_set(model, [*examples[:3], free, none]).lengths) == 4  # no place, nothing to learn
    assert TASK.build([*examples, none], "", choose_model("dgcnn"), DGCNNReadSettings(), Plan()).config["no_answer"]


def test_messages():
    free = [Question("谁？", "张三", (Answer("那个人", None),), 1)]
    with pytest.raises(InputError, match=r"no training question has an answer that stands in its context"):
        TASK.build(free, "", choose_model("dgcnn"), DGCNNReadSettings(), Plan())
    with pytest.raises(InputError, match=r"no setting 'span_head'; .*there are epochs"):
        Spec.parse("read", train="x", settings=["span_head=global_pointer"])
    with pytest.raises(InputError, match=r"no setting 'gamma'"):
        Spec.parse("read", train="x", model="bert:2x64", settings=["gamma=1"])
    with pytest.raises(InputError, match=r"setting vote is squared or sum or max, got 'mean'"):
        Spec.parse("read", train="x", settings=["vote=mean"])
    with pytest.raises(InputError, match=r"setting gamma lies between 0 and 100, got -1"):
        Spec.parse("read", train="x", settings=["gamma=-1"])
    for item in ("谁？", {"question": "谁？"}, {"question": 3, "context": "甲"}, {"question": "谁？", "context": []}):
        with pytest.raises(InputError, match=r'to read needs \{"question": text, "context": text or a list'):
            TASK.predict(random_reader(), [item])
    with pytest.raises(InputError, match=r"the context must be a text or a list of texts"):
        TASK.predict(random_reader(), [{"question": "谁？", "context": ["甲", 3]}])


@pytest.mark.data
def test_named_sets_share_no_context(shared):
    from danlu.tasks.datasets import load

    for name, parts in (("cmrc2018", ("train", "dev", "test", "trial")), ("drcd", ("train", "dev", "test"))):
        found = {part: load(name, part, "read").examples for part in parts}
        contexts = [{e.context for e in found[part]} for part in parts]
        assert sum(map(len, contexts)) == len(set.union(*contexts))
        assert len(load(name, "official-dev").examples) == sum(
            len(found[part]) for part in parts if part in ("train", "dev") or (name, part) == ("cmrc2018", "test")
        )
