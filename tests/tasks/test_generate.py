"""Generate: batches by hand, the loss against steps of decoding, conditions, tricks, predictions, folders, messages."""

import json
import random
import re
from dataclasses import replace

import pytest
import torch

from danlu.data.errors import InputError
from danlu.data.pairs import Condition, Pair
from danlu.tasks.encoder import Encoder
from danlu.tasks.folder import read_json, read_tensors
from danlu.tasks.generate import GenerateSettings, Task
from danlu.tasks.generate_batches import PairRows, rows_of
from danlu.tasks.generate_conditions import OTHER, Conditions, describe_conditions
from danlu.tasks.generate_model import GenerateModel
from danlu.tasks.model_choice import choose_model
from danlu.tasks.spec import Spec
from danlu.tasks.trained import Trained
from danlu.tasks.training import read_parts, train_folder, train_model
from danlu.tasks.tricks import Plan
from danlu.text import EncoderDecoder, Tokenizer, Transformer, TransformerConfig
from danlu.text.cached_steps import EncoderDecoderSteps, TransformerSteps

CHARACTERS = "一二三四五六七八九十山水花月风云"
VOCAB = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, "，", "。"])}
SIZES = {"vocab_size": len(VOCAB) + 2, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
LABELS = Condition((("length", "long"), ("pool", "山")))
OTHERS = Condition((("length", "short"), ("pool", "水")))


def encoder(family="bert", **changes):
    torch.manual_seed(1)
    changes = {"application": "unilm", "initializer_range": 0.5, **changes} if family == "bert" else changes
    config = TransformerConfig.of(family, **{**SIZES, **changes})
    model = EncoderDecoder(config) if config.traits.encoder_decoder else Transformer(config, ["mlm"])
    return Encoder(model, Tokenizer(VOCAB))


def build(family="bert", condition=None, **changes):
    """An untrained model in evaluation mode."""
    config = {
        "two_stacks": family != "bert", "max_len": 20, "max_target": 6, "source": True, "condition": condition,
        "decoding": {"method": "beam", "beam": 1, "length_penalty": 1.0, "temperature": 1.0, "top_p": 1.0, "seed": 0},
        "eval_rows": 5, "judge_rows": 3, **changes,
    }  # fmt: skip
    sized = {"condition_size": condition["size"]} if condition else {}
    return GenerateModel(encoder(family, **sized), config).eval()


def ids(text):
    return [VOCAB[c] for c in text]


CLS, SEP = VOCAB["[CLS]"], VOCAB["[SEP]"]
PAIRS = [Pair("一二三四五", "山水", Condition(), 1), Pair("六", "花月风云", Condition(), 2)]


def test_one_row_holds_source_and_target():
    model = build()
    batch = PairRows(model, rows_of(model, PAIRS)).collate([0, 1])
    assert batch["ids"].tolist() == [
        [CLS, *ids("一二三四五"), SEP, *ids("山水")],
        [CLS, *ids("六"), SEP, *ids("花月风云"), 0, 0],
    ]
    assert batch["segments"].tolist() == [[0] * 7 + [1] * 2, [0] * 3 + [1] * 4 + [0] * 2]
    assert batch["labels"][batch["scored"]].tolist() == [*ids("山水"), SEP, *ids("花月风云"), SEP]
    assert batch["mask"].sum(1).tolist() == [9, 7]
    data = PairRows(model, rows_of(model, PAIRS))
    assert data.weight([0, 1]) == 8 and data.lengths == [10, 8]


def test_two_stacks_read_the_source_apart():
    model = build("t5.1.1")
    batch = PairRows(model, rows_of(model, PAIRS)).collate([0, 1])
    assert batch["ids"].tolist() == [[CLS, *ids("一二三四五"), SEP], [CLS, *ids("六"), SEP, 0, 0, 0, 0]]
    assert batch["inputs"].tolist() == [[0, *ids("山水"), 0, 0], [0, *ids("花月风云")]]
    assert batch["labels"][batch["scored"]].tolist() == [*ids("山水"), SEP, *ids("花月风云"), SEP]


def test_what_is_too_long_is_cut_and_a_cut_target_has_no_end():
    model = build(max_len=12)
    row = rows_of(model, [Pair("一二三四五六七八", "山水花月风云", Condition(), 1)])[0]
    assert row.source == [CLS, *ids("一二三四"), SEP] and row.source_cut
    assert row.target == ids("山水花月风云") and row.target_cut
    assert Task().notes(PairRows(model, [row])) == [
        "1 of 1 training sources were cut at 6 tokens (--set max_len= changes that)",
        "1 of 1 training targets were cut at 6 tokens (--set max_target= changes that)",
    ]
    whole = rows_of(model, [Pair("一二三四", "山水花月风", Condition(), 1)])[0]
    assert whole.target == [*ids("山水花月风"), SEP] and not whole.source_cut and not whole.target_cut


def nats_by_steps(model, row):
    """-log p of a target, token by token with a cache: the path of decoding, which shares no mask with training."""
    condition = None
    if model.conditions is not None:
        condition = model.conditions(model.conditions.encode([row.condition]))
    kind = EncoderDecoderSteps if model.two_stacks else TransformerSteps
    steps, total, last = kind(model.encoder.transformer, [row.source], 9, condition=condition), 0.0, None
    for token in row.target:
        total -= steps.step(last).log_softmax(-1)[0, token].item()
        last = torch.tensor([token])
    return total


@pytest.mark.parametrize("family", ["bert", "t5.1.1"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_the_loss_is_that_of_decoding_token_by_token(family, conditioned):
    labelled = [replace(p, condition=c) for p, c in zip(PAIRS, [LABELS, OTHERS], strict=True)]
    described = describe_conditions(labelled, 6) if conditioned else None
    model = build(family, described)
    for name, weight in model.named_parameters():
        if ".cond_" in name:
            torch.nn.init.normal_(weight)  # born at zero, where conditions do nothing
    rows = rows_of(model, labelled)
    loss = model(PairRows(model, rows).collate([0, 1]))
    assert loss.item() == pytest.approx(sum(nats_by_steps(model, row) for row in rows), rel=1e-4)
    assert loss.item() == pytest.approx(sum(model(PairRows(model, rows).collate([i])).item() for i in (0, 1)), rel=1e-5)


def test_a_condition_does_nothing_before_training_and_something_after_a_step():
    examples = [replace(PAIRS[0], condition=Condition((("mood", m),))) for m in ("good", "bad")]
    model = build(condition=describe_conditions(examples, 6))
    data = PairRows(model, rows_of(model, examples))
    first, second = (model.logits(data.collate([i])) for i in (0, 1))
    assert torch.equal(first, second)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(data.collate([0])).backward()
    optimizer.step()
    first, second = (model.logits(data.collate([i])) for i in (0, 1))
    assert not torch.allclose(first, second, atol=1e-4)


def test_label_vectors_are_summed_or_put_side_by_side():
    examples = [
        replace(PAIRS[0], condition=LABELS),
        replace(PAIRS[0], condition=OTHERS),
    ]
    batch_of = [e.condition for e in examples]
    for combine, size in (("sum", [5, 5]), ("concat", [3, 2])):
        module = Conditions(describe_conditions(examples, 5, combine))
        assert [table.embedding_dim for table in module.tables] == size
        tables = [table.weight for table in module.tables]
        by_hand = tables[0][0] + tables[1][0] if combine == "sum" else torch.cat([tables[0][0], tables[1][0]])
        assert torch.equal(module(module.encode(batch_of))[0], by_hand)  # long and 山 come first in the alphabet
    with pytest.raises(InputError, match="condition_size=1 leaves no number for each of 2 labels"):
        describe_conditions(examples, 1, "concat")


def test_rare_and_unknown_labels_share_a_row_or_are_refused():
    examples = [replace(PAIRS[0], condition=Condition((("by", name),))) for name in "aaabbc"]
    strict, shared = (Conditions(describe_conditions(examples, 2, min_count=k)) for k in (1, 2))
    assert strict.fields == {"by": ["a", "b", "c"]} and shared.fields == {"by": [OTHER, "a", "b"]}
    unknown = Condition((("by", "z"),))
    assert "by 'z' does not occur in the training data (3 labels: a, b, c)" in strict.fault(unknown)
    assert shared.fault(unknown) == ""
    assert shared.encode([unknown, Condition((("by", "c"),)), Condition((("by", "b"),))])[
        "condition_labels"
    ].tolist() == [[0], [0], [2]]
    assert "needs the labels by; got the label of" in strict.fault(Condition((("of", "a"),)))
    assert "needs the labels by; got a vector of 1" in strict.fault(Condition(vector=(1.0,)))


def test_vectors_are_standardized_by_the_training_data():
    examples = [replace(PAIRS[0], condition=Condition(vector=v)) for v in ((100.0, 1.0, 7.0), (300.0, 3.0, 7.0))]
    module = Conditions(describe_conditions(examples, 4))
    module.measure(examples)
    found = module(module.encode([e.condition for e in examples]))
    expected = module.project(torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]))
    torch.testing.assert_close(found, expected)
    assert "needs a vector of 3 numbers, got 2 numbers" in module.fault(Condition(vector=(1.0, 2.0)))
    copy = Conditions(module.config)
    copy.load_state_dict(module.state_dict())  # mean and deviation travel with the weights
    torch.testing.assert_close(copy(module.encode([examples[0].condition])), expected[:1])


def test_token_replacement_changes_target_inputs_in_training_and_nothing_else():
    for family, name in (("bert", "ids"), ("t5.1.1", "inputs")):
        model = build(family)
        model.replacement = 1.0
        rows = rows_of(model, PAIRS * 20)
        clean, noisy = (PairRows(model, rows, corrupt=c).collate(range(40)) for c in (False, True))
        changed = clean[name] != noisy[name]
        words = clean["segments"].bool() if family == "bert" else clean["scored"] & (clean["inputs"] > 0)
        assert changed.any() and not changed[~words].any()
        assert 10 <= int(changed.any(1).sum()) <= 30  # half of the rows, those whose draws all fell on themselves less
        assert all(torch.equal(clean[k], noisy[k]) for k in clean if k != name)
        model.replacement = None
        assert torch.equal(PairRows(model, rows, corrupt=True).collate(range(40))[name], clean[name])


def test_what_is_written_is_never_special_and_never_empty():
    model = build()
    with torch.no_grad():
        model.encoder.transformer.mlm.bias[SEP] = 1e3  # it would rather stop at once,
        model.encoder.transformer.mlm.bias[[0, 1, CLS, 4, len(VOCAB), len(VOCAB) + 1]] = 9e2  # or write what is no text
    sources = [row.source for row in rows_of(model, PAIRS)]
    for changes in ({}, {"beam": 3}, {"method": "sample"}):
        for written, _, finished in model.write(sources, [Condition()] * 2, ["0", "1"], **changes):
            assert len(written) == 1 and finished and written[0] in ids("".join(CHARACTERS) + "，。")


def test_a_text_is_the_same_alone_and_in_a_batch():
    task, model = Task(), build()
    model.config["decoding"] |= {"method": "sample", "top_p": 0.9}
    texts = ["一", "一二三四五六七", "", "三四", "  "]
    together = task.predict(model, texts)
    for one, text in zip(together, texts, strict=True):
        assert one == {**task.predict(model, [text])[0], "score": one["score"]}
    assert [r["generated"] == "" for r in together] == [False, False, True, False, True]
    assert together[2] == {"text": "", "generated": "", "score": None, "complete": None}
    other = task.predict(model, [{"source": text, "seed": 1} for text in texts])
    assert [r["generated"] for r in other] != [r["generated"] for r in together]
    model.config["decoding"]["method"], model.config["decoding"]["beam"] = "beam", 2
    found = task.predict(model, texts)
    assert [r["generated"] for r in found] == [task.predict(model, [t])[0]["generated"] for t in texts]
    assert task.show({"generated": "一 \n二"}) == "一 二"


def described(**fields):
    return {"kind": "labels", "size": 4, "combine": "sum", "fields": fields}


def test_items_name_their_condition():
    one, two = described(mood=["bad", "good"]), described(length=["long"], pool=["山", "水"])
    task, model = Task(), build(condition=one, source=False)
    shown = {"text": "good", "condition": "mood good"}
    results = task.predict(model, ["good", {"mood": "good"}, {"condition": {"mood": "good"}}, '{"mood": "good"}'])
    assert len({r["generated"] for r in results}) == 1 and all(r["condition"] == shown["condition"] for r in results)
    both = task.predict(build(condition=two), [{"source": "一", "length": "long", "pool": "山"}])[0]
    assert both["text"] == "一" and both["condition"] == "length long, pool 山" and both["generated"]
    vectors = build(condition={"kind": "vector", "size": 4, "inputs": 2}, source=False)
    assert task.predict(vectors, ["[1, 2.5]"])[0]["text"] == "vector of 2 numbers"


@pytest.mark.parametrize(
    ("condition", "source", "item", "message"),
    [
        (None, True, {"source": "一", "condition": "x"}, "condition x: the model follows no condition"),
        (None, True, {"source": 3}, "source: expected a text, got int"),
        (described(mood=["bad"]), False, "good", "mood good: mood 'good' does not occur in the training data"),
        (described(mood=["bad"]), False, {"source": "一", "condition": "bad"},
         'takes no source; write for .* {"condition"'),
        (described(mood=["bad"]), True, "一", r'a text alone .*write {"source": "...", "condition": {"mood": "bad"}}'),
        (described(mood=["bad"]), True, {"source": "一"}, "condition missing: needs the labels mood"),
        (described(mood=["bad"]), False, "{mood", "not JSON: .*write for example"),
        (described(mood=["bad"]), False, "[" * 100_000, "not JSON: "),
        ({"kind": "vector", "size": 4, "inputs": 2}, False, "[1]", "needs a vector of 2 numbers, got 1 numbers"),
    ],
)  # fmt: skip
def test_items_that_cannot_be_followed(condition, source, item, message):
    task, model = Task(), build(condition=condition, source=source)
    found = task.predict(model, [item, ""])  # and those beside it are answered
    assert re.search(message, found[0]["error"]) and task.show(found[0]).startswith("error: ")
    assert found[0]["generated"] == "" and "error" not in found[1]


def test_rows_of_another_form_are_unusable():
    model = build(condition=described(mood=["bad"]))
    good = replace(PAIRS[0], condition=Condition((("mood", "bad"),)))
    rows = [good, replace(good, source=""), PAIRS[0], replace(good, condition=Condition((("mood", "new"),)))]
    found = Task().unusable(model, rows)
    assert set(found) == {1, 2, 3} and "writes from a source" in found[1]
    assert "needs the labels mood; got no condition" in found[2] and "'new' does not occur" in found[3]
    assert "takes no source" in Task().unusable(build(source=False), PAIRS)[0]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A stored tiny model, pairs whose target is the source's last character, and texts of two labels."""
    folder, stream = tmp_path_factory.mktemp("generate"), random.Random(4)
    encoder(application="encoder", initializer_range=0.1, max_positions=40).save(folder)
    for name, size in (("train", 160), ("dev", 24)):
        pairs, texts = [], []
        for _ in range(size):
            source = "".join(stream.choices(CHARACTERS[:4], k=stream.randint(1, 4)))
            pairs.append({"source": source, "target": source[-1]})
            pool, length = stream.choice("山水"), stream.choice(["long", "short"])
            some = stream.choices(CHARACTERS[:5] if pool == "山" else CHARACTERS[5:10], k=7 if length == "long" else 2)
            texts.append({"target": "".join(some) + "。", "condition": {"pool": pool, "length": length}})
        write_rows(folder / f"{name}.jsonl", pairs)
        write_rows(folder / f"texts-{name}.jsonl", texts)
    return folder


def spec_of(folder, prefix="", **changes):
    settings = {"epochs": 1.0, "batch_size": 16, "lr": 5e-3, "max_len": 24, "max_target": 10, "eval_rows": 8,
                "judge_rows": 10, "save_every": 2, "dropout": 0.0, **changes.pop("set", {})}  # fmt: skip
    return Spec(task="generate", train=str(folder / f"{prefix}train.jsonl"), dev=str(folder / f"{prefix}dev.jsonl"),
                model=str(folder), set=settings, threads=1, precision="fp32", device="cpu", **changes)  # fmt: skip


def test_it_learns_to_write_and_its_folder_writes_the_same(small, tmp_path):
    record = train_folder(spec_of(small, set={"epochs": 10.0, "evaluations": 2}), tmp_path / "out")
    metrics = record["metrics"]["dev"]
    assert metrics["score"] > 0.7 and metrics["loss"] < 0.7 and metrics["unfinished"] == 0
    assert {"exposure_gap", "rep_16", "rep_16_gold", "bleu", "rouge_1", "cut_sources"} <= set(metrics)
    assert len(record["samples"]) == 8 and record["exposure"]["gold_prefix"]
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32", threads=1)
    again = trained.evaluate(str(small / "dev.jsonl"))["metrics"]
    assert again == metrics
    written = [r["generated"] for r in trained.predict(["一二三", "四三二一", "二二"])]
    assert sum(a == b for a, b in zip(written, "三一二", strict=True)) >= 2
    stored = read_json(tmp_path / "out" / "task.json")
    assert stored["config"]["decoding"]["beam"] == 3 and "notes" not in record


def test_it_learns_conditions_and_a_judge_recognizes_them(small, tmp_path):
    record = train_folder(spec_of(small, "texts-", set={"epochs": 8.0, "evaluations": 1}), tmp_path / "out")
    metrics, control = record["metrics"]["dev"], {c["field"]: c for c in record["control"]}
    assert metrics["control_pool"] >= 0.9 and metrics["control_length"] >= 0.75 and metrics["condition_gap"] > 0.5
    assert control["pool"]["real"] == 1 and control["pool"]["chance"] == 0.5 and control["pool"]["texts"] == 20
    assert sum(map(sum, control["pool"]["confusion"]["matrix"])) == 20
    assert "Control of pool" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32", threads=1)
    asked = [{"pool": "山", "length": "long", "seed": s} for s in range(6)]
    written = [r["generated"] for r in trained.predict(asked)]
    assert len(set(written)) > 1 and sum(c in CHARACTERS[:5] for t in written for c in t) > 20
    assert [r["generated"] for r in trained.predict(asked[::-1])] == written[::-1]


@pytest.mark.parametrize("tricks", [("token_replacement",), ("token_replacement:0.5", "fgm", "ema:0.9")])
def test_interrupted_it_ends_with_the_same_bits(small, tmp_path, tricks):
    spec = spec_of(small, tricks=tricks, set={"dropout": 0.1})
    train_folder(spec, tmp_path / "whole")
    for moment in (3, 7):

        def stop(event, moment=moment):
            if event["event"] == "step" and event["step"] == moment:
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            train_folder(spec, tmp_path / "parts", resume=moment > 3, on_event=stop)
        torch.manual_seed(moment)
    train_folder(spec, tmp_path / "parts", resume=True)
    one, two = (read_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    plain = spec_of(small, set={"dropout": 0.1})
    train_folder(plain, tmp_path / "plain")
    assert any(not torch.equal(v, one[k]) for k, v in read_tensors(tmp_path / "plain" / "model.safetensors").items())


def test_tricks_train_other_models(small, tmp_path):
    found = []
    for i, tricks in enumerate([(), ("pgd",), ("noise",), ("condition_lr:30",)]):
        spec = spec_of(small, "texts-", tricks=tricks, set={"epochs": 0.2})
        run = train_model(spec, read_parts(replace(spec, dev=None)))
        found.append({k: v.clone() for k, v in run.model.state_dict().items() if k.startswith("conditions.")})
        assert found[-1].keys() == {"conditions.tables.0.weight", "conditions.tables.1.weight"}
        assert not any(torch.equal(found[i][k], other[k]) for other in found[:i] for k in other)


def test_a_t5_folder_becomes_a_model_of_two_stacks(small, tmp_path):
    (tmp_path / "t5").mkdir()
    encoder("t5.1.1").save(tmp_path / "t5")
    spec = replace(spec_of(small, set={"epochs": 0.5, "beam": 2}), model=str(tmp_path / "t5"))
    record = train_folder(spec, tmp_path / "out")
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32", threads=1)
    assert trained.model.two_stacks and trained.evaluate(str(small / "dev.jsonl"))["metrics"]["loss"] == pytest.approx(
        record["metrics"]["dev"]["loss"]
    )
    assert trained.model.encoder.attack_weights()[0] is trained.model.encoder.transformer.embeddings.token.weight


def test_settings_and_models_that_do_not_fit(small):
    task = Task()
    settings = replace(GenerateSettings(), max_len=40, max_target=30)
    with pytest.raises(InputError, match="this needs a transformer, --model dgcnn is none"):
        task.build(PAIRS, "", choose_model("dgcnn"), settings, Plan())
    choice = choose_model(str(small))
    model = task.build(PAIRS, "", choice, settings, Plan(token_replacement=0.3))
    assert model.source_room == 10 and model.replacement == 0.3 and model.config["decoding"]["method"] == "beam"
    with pytest.raises(
        InputError, match=r"max_len 40 \(the model has 40 positions\) leaves no room .*lower --set max_target to 32"
    ):
        task.build(PAIRS, "", choice, replace(settings, max_len=99, max_target=38), Plan())
    alone = [replace(PAIRS[0], source="", condition=LABELS)]
    assert task.build(alone, "", choice, settings, Plan()).config["decoding"]["method"] == "sample"


@pytest.mark.slow
def test_transformers_opens_the_folder(small, tmp_path):
    transformers = pytest.importorskip("transformers")
    train_folder(spec_of(small, set={"epochs": 0.2}), tmp_path / "out")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    ours = Trained.load(tmp_path / "out", device="cpu", precision="fp32", threads=1).model.encoder.transformer
    source = torch.tensor([[CLS, *ids("一二三"), SEP]])  # all of segment 0: both directions, as in BERT
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(source).logits, ours(source, torch.zeros_like(source)).logits, atol=1e-4, rtol=1e-4
        )
