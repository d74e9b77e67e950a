"""Pretraining: it learns, a killed run ends in the same bits, the schedule, rows, vocabulary, words, messages."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from danlu.data.corpus import TokenCorpus, write_corpus
from danlu.data.errors import InputError, WorkError
from danlu.tasks import pretrain_loop
from danlu.tasks.pretrain import pretrain
from danlu.tasks.pretrain_loop import Rows
from danlu.tasks.pretrain_spec import PretrainSettings, PretrainSpec, model_config
from danlu.tasks.pretraining_text import SPECIAL, build_vocab, prepare, read_documents, word_marks
from danlu.tasks.trained import Trained
from danlu.text import Tokenizer, load_hf

TINY = PretrainSettings(
    steps=24, batch_tokens=128, length=16, long_length=32, long_share=0.25, lr=3e-3, warmup_steps=4, decay=0.25,
    part_tokens=64, save_every=1, log_every=4, eval_every=12, dropout=0.1,
)  # fmt: skip
WORDS = ["天地", "玄黄", "宇宙", "洪荒", "日月", "盈昃", "linux", "1998", "的", "了"]


@pytest.fixture
def text(tmp_path):
    stream = random.Random(3)
    lines = [" ".join(stream.choices(WORDS, k=12)) for _ in range(60)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines[:50]) + "\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(lines[50:]) + "\n", encoding="utf-8")
    return tmp_path


def spec(text, kind="mlm", **changes):
    given = {"model": "bert:1x16" if kind == "mlm" else "gpt2:1x16", "settings": TINY, "precision": "fp32"}
    given |= {"vocab_size": 100, "device": "cpu", "threads": 1, "dev": (str(text / "b.txt"),)}
    return PretrainSpec(kind, (str(text / "a.txt"),), **(given | changes))


def weights(folder):
    return load_hf(folder).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_masked_words_are_learnt_and_the_folder_opens_elsewhere(text):
    events = []
    for name in ("a", "b"):  # every document repeats one word: what stands around a hidden token tells it
        (text / f"{name}.txt").write_text("\n".join(WORDS[i % 6] * 16 for i in range(60)) + "\n", encoding="utf-8")
    settings = replace(TINY, steps=200, lr=1e-2, dropout=0.0, eval_every=100)
    metrics = pretrain(spec(text, model="bert:1x32", settings=settings), text / "out", on_event=events.append)
    losses = [e["loss"] for e in events if e["event"] == "loss"]
    assert losses[-1] < 0.5 * losses[0] and metrics["steps"] == 200
    assert metrics["held_out"]["accuracy"] > 0.3  # each of the tokens is a twelfth of the text
    names = {path.name for path in (text / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
                     "metrics.json", "log.jsonl"}  # fmt: skip
    assert not (text / "out.partial").exists()
    log = [json.loads(line) for line in (text / "out" / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log if "held_out" in e] == [100, 200]
    assert metrics["tokens"] == log[-2]["tokens"] == 200 * 128
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(text / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(text / "out")
    ours, line = Tokenizer.load(text / "out"), "天地 Linux 19989"
    assert tokenizer(line)["input_ids"] == ours.encode(line)[0]
    ids = torch.tensor([ours.encode(line)[0]])
    model = load_hf(text / "out")
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_next_tokens_are_learnt(text):
    settings = replace(TINY, steps=120, lr=1e-2, dropout=0.0)
    metrics = pretrain(spec(text, "lm", settings=settings), text / "out")
    assert metrics["held_out"]["accuracy"] > 0.35  # the second half of a word follows from the first
    model = load_hf(text / "out")
    assert model.config.application == "lm"
    ids = torch.tensor([Tokenizer.load(text / "out").encode("天地玄")[0][:-1]])
    changed = ids.clone()
    changed[0, -1] = 7
    torch.testing.assert_close(model(ids).logits[:, :-1], model(changed).logits[:, :-1])  # nothing looks ahead


class Killed(BaseException):
    pass


def killed_at(step):
    def tell(event):
        if event["event"] == "step" and event["step"] == step:
            raise Killed

    return tell


@pytest.mark.parametrize("kind", ["mlm", "lm"])
def test_killed_and_resumed_it_ends_in_the_same_bits(text, monkeypatch, kind):
    s = spec(text, kind)
    pretrain(s, text / "whole")
    now = [0.0]
    monkeypatch.setattr(pretrain_loop.time, "monotonic", lambda: now.__setitem__(0, now[0] + 0.3) or now[0])
    for at in (3, 9, 14, 22):
        with pytest.raises(Killed):
            pretrain(s, text / "parts", resume=True, on_event=killed_at(at))
    assert list((text / "parts.partial" / "state").glob("step-*"))
    pretrain(s, text / "parts", resume=True)
    assert same(weights(text / "whole"), weights(text / "parts"))


def test_a_batch_in_parts_is_the_same_batch(text):
    settings = replace(TINY, dropout=0.0, steps=6)
    for parts in (16, 128):
        pretrain(spec(text, settings=replace(settings, part_tokens=parts)), text / f"{parts}")
    a, b = weights(text / "16"), weights(text / "128")
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)  # sums in another order, six steps of Adam


def test_steps_may_change_while_the_rate_is_constant(text, monkeypatch):
    short = replace(TINY, steps=16)
    pretrain(spec(text, settings=short), text / "short")
    now = [0.0]
    monkeypatch.setattr(pretrain_loop.time, "monotonic", lambda: now.__setitem__(0, now[0] + 0.6) or now[0])
    with pytest.raises(Killed):
        pretrain(spec(text, settings=replace(TINY, steps=1000)), text / "long", on_event=killed_at(12))
    with pytest.raises(InputError, match=r"steps=13 the rate would have begun to fall at step 9; give --set steps="):
        pretrain(spec(text, settings=replace(TINY, steps=13)), text / "long", resume=True)
    pretrain(spec(text, settings=short), text / "long", resume=True)
    assert same(weights(text / "short"), weights(text / "long"))


def test_steps_may_not_change_once_the_rate_falls(text, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pretrain_loop.time, "monotonic", lambda: now.__setitem__(0, now[0] + 0.6) or now[0])
    with pytest.raises(Killed):
        pretrain(spec(text), text / "out", on_event=killed_at(23))
    with pytest.raises(InputError, match=r"the rate falls since step 18 of 24.*leave them at 24 and 0.25"):
        pretrain(spec(text, settings=replace(TINY, steps=400)), text / "out", resume=True)
    with pytest.raises(InputError, match=r"--resume: seed changed since the run began \(seed was 0\)"):
        pretrain(spec(text, seed=1), text / "out", resume=True)
    with pytest.raises(InputError, match=r"--resume: lr changed since the run began \(lr was 0.003\)"):
        pretrain(spec(text, settings=replace(TINY, lr=1.0)), text / "out", resume=True)


def test_told_to_stop_it_saves_and_says_how_to_go_on(text):
    def tell(event):
        if event["event"] == "step" and event["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(WorkError, match="stopped at step 5 of 24; the state is saved, the same command with --resume"):
        pretrain(spec(text), text / "out", on_event=tell)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (text / "out.partial" / "state" / "step-000000005").is_dir()
    steps = []
    pretrain(spec(text), text / "out", resume=True, on_event=lambda e: steps.append(e.get("step")))
    assert min(step for step in steps if step is not None) == 6  # it goes on, it does not begin again
    pretrain(spec(text), text / "whole")
    assert same(weights(text / "whole"), weights(text / "out"))


@pytest.mark.slow
def test_kill_9_of_the_command(text):
    words = [sys.executable, "-m", "danlu", "pretrain", "mlm", "--text", str(text / "a.txt"), "--model", "bert:1x16",
             "--vocab-size", "100", "--threads", "1", "--precision", "fp32", "--set", "steps=400", "--set", "length=16",
             "--set", "long_length=32", "--set", "batch_tokens=128", "--set", "save_every=1"]  # fmt: skip
    whole = subprocess.run([*words, "--out", str(text / "whole")], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    run = subprocess.Popen([*words, "--out", str(text / "parts")], stderr=subprocess.DEVNULL)
    state = text / "parts.partial" / "state"
    for _ in range(600):
        if list(state.glob("step-*")) or run.poll() is not None:
            break
        time.sleep(0.1)
    run.kill()
    run.wait()
    again = subprocess.run([*words, "--out", str(text / "parts"), "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert same(weights(text / "whole"), weights(text / "parts"))


def test_the_rate_rises_stays_and_falls(text):
    rates = {}
    pretrain(spec(text, settings=replace(TINY, log_every=1)), text / "out",
             on_event=lambda e: rates.update({e["step"]: e["lr"]}) if e["event"] == "loss" else None)  # fmt: skip
    expected = [min(1.0, t / 4) * min(1.0, (25 - t) / 7) * 3e-3 for t in range(1, 25)]  # falls from step 18
    assert [rates[t] for t in range(1, 25)] == pytest.approx(expected)


def corpus_of(folder, sizes):
    rows = [[10 + i % 50] * size for i, size in enumerate(sizes)]
    write_corpus(folder, [(row, [True] * len(row)) for row in rows])
    return TokenCorpus(folder)


def test_rows_are_whole_and_long_ones_have_their_share(tmp_path):
    tokenizer = Tokenizer({token: i for i, token in enumerate([*SPECIAL, *map(chr, range(0x4E00, 0x4E60))])})
    rows = Rows(corpus_of(tmp_path / "c", [50] * 40), tokenizer, PretrainSpec("mlm", (), settings=TINY))
    lengths = []
    for step in range(40):
        ids, begins = rows.at(step)
        lengths.append(ids.shape[1])
        assert (ids[:, 0] == 2).all() and (ids[:, -1] == 3).all() and not (ids == 0).any()
        assert ids.numel() == 128 and begins[:, 0].all() and begins[:, -1].all()
    assert lengths == [32 if step % 4 == 3 else 16 for step in range(40)]  # eq. (1) with a quarter
    ids, _ = Rows(rows.corpus, tokenizer, PretrainSpec("lm", (), settings=TINY)).at(0)
    assert (ids[:, 0] == 2).all() and not (ids[:, -1] == 3).all()


def test_rows_of_an_epoch_do_not_come_twice(tmp_path):
    tokenizer = Tokenizer({token: i for i, token in enumerate([*SPECIAL, *map(chr, range(0x4E00, 0x4E60))])})
    write_corpus(tmp_path / "c", [(np.arange(1000) + 100 * i, np.ones(1000, bool)) for i in (1, 11, 21)])
    settings = replace(TINY, long_share=0.0)
    rows = Rows(TokenCorpus(tmp_path / "c"), tokenizer, PretrainSpec("mlm", (), settings=settings))
    per_epoch = (3003 // 14 - 1) // 8
    seen = [tuple(row) for step in range(per_epoch) for row in rows.at(step)[0].tolist()]
    assert len(set(seen)) == len(seen) == per_epoch * 8
    again = [tuple(row) for row in rows.at(per_epoch)[0].tolist()]  # a new shift and a new order
    assert sum(row in set(seen) for row in again) < 8
    assert [tuple(row) for row in rows.at(0)[0].tolist()] == seen[:8]  # and back


def test_a_vocabulary_of_the_text():
    vocab = build_vocab(["的的的 Linux linux 学習", "的的學 é 12 12 linux"], size=90)
    tokens = list(vocab)
    assert tokens[:5] == list(SPECIAL) and list(vocab.values()) == list(range(len(vocab)))
    assert tokens[5:77] == [
        *"abcdefghijklmnopqrstuvwxyz0123456789",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
    ]
    assert tokens[77:] == ["的", "linux", "12", "学", "學", "習"]
    tokenizer = Tokenizer(vocab)
    assert tokenizer.tokens_of("é Linuxes 1999的") == ["e", "linux", "##e", "##s", "1", "##9", "##9", "##9", "的"]
    with pytest.raises(InputError, match="has 78 to 65,536 tokens, got 40"):
        build_vocab(["的"], size=40)


def test_documents_of_files(text, tmp_path):
    import gzip

    (tmp_path / "z.txt.gz").write_bytes(gzip.compress("一\n\n  \n二 三\n".encode()))
    assert list(read_documents([str(tmp_path / "z.txt.gz")])) == ["一", "二 三"]
    assert len(list(read_documents([str(text / "a.txt"), str(text / "b.txt")]))) == 60


class ByBlank:  # a segmenter of task tag as far as word_marks sees it: says what it is told
    device, precision = "cpu", "fp32"

    def __init__(self, answers):
        self.task, self.model, self.answers = self, None, answers

    def predict(self, model, texts):
        return [self.answers[text] for text in texts]


def test_where_words_begin(tmp_path):
    answers = {"我们 在linux 上": {"words": ["我们", "在linux 上"]}, "去北京": {"entities": [[1, 3, "LOC"]]}}
    marks = word_marks(ByBlank(answers), list(answers))
    assert [m.astype(int).tolist() for m in marks] == [[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0]]
    tokenizer = Tokenizer(build_vocab(["我们在上去北京"], size=90))
    (tmp_path / "t").write_text("我们 在linux 上\n去北京\n")
    corpus = prepare([str(tmp_path / "t")], tmp_path / "c", tokenizer, ByBlank(answers))
    assert corpus.document(0)[1].astype(int).tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0]
    assert corpus.document(1)[1].astype(int).tolist() == [1, 1, 0]
    plain = prepare([str(tmp_path / "t")], tmp_path / "d", tokenizer)
    assert plain.document(0)[1].astype(int).tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 1]


def test_a_trained_segmenter_tells_words(segmented, tmp_path):
    from danlu.tasks.spec import Spec
    from danlu.tasks.training import train_folder

    train_folder(
        Spec("tag", str(segmented / "train.seg"), model="dgcnn:1x16", device="cpu", precision="fp32", threads=1,
             set={"epochs": 1.0}), tmp_path / "m", command="",
    )  # fmt: skip
    trained = Trained.load(tmp_path / "m", "cpu", "fp32")
    text = "我们在北京学习 数学"
    (marks,) = word_marks(trained, [text])
    words = trained.task.predict(trained.model, [text])[0]["words"]
    assert marks.sum() == len(words) and marks[0] and len(marks) == len(text)


def test_messages(text):
    with pytest.raises(InputError, match=r"'bert:6' is nothing to pretrain by mlm.*for example bert:6x256"):
        model_config(spec(text, model="bert:6"), 10)
    with pytest.raises(InputError, match=r"nothing to pretrain by mlm"):
        model_config(spec(text, model="gpt2:6x256"), 10)
    with pytest.raises(InputError, match="a multiple of 64"):
        model_config(spec(text, model="bert:6x100"), 10)
    with pytest.raises(InputError, match="decay is a share and lies between 0 and 1, got 5"):
        replace(TINY, decay=5)
    with pytest.raises(InputError, match="length <= long_length, got 64 and 32"):
        replace(TINY, length=64)
    with pytest.raises(InputError, match="setting steps must be above 0, got 0"):
        replace(TINY, steps=0)
    with pytest.raises(InputError, match=r"a window takes 4998"):
        pretrain(spec(text, settings=replace(TINY, length=5000, long_length=5000)), text / "short")
    (text / "v.txt").write_text("[UNK]\n[CLS]\n[SEP]\n一\n")
    with pytest.raises(InputError, match=r"v.txt has no \[MASK\]"):
        pretrain(spec(text, vocab=str(text / "v.txt")), text / "novocab")
    pretrain(spec(text), text / "out")
    with pytest.raises(InputError, match="--overwrite replaces it"):
        pretrain(spec(text), text / "out")


def test_sizes_of_a_name():
    config = model_config(PretrainSpec("mlm", ()), 7500)
    assert (config.num_layers, config.hidden_size, config.num_heads, config.intermediate_size) == (6, 256, 4, 1024)
    assert (config.max_positions, config.hidden_dropout, config.activation) == (512, 0.0, "gelu")
    assert model_config(PretrainSpec("lm", ()), 7500).family == "gpt2"
