"""Guesses from counts against a dictionary by hand; the card of a finished run; the packaged files."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from danlu.data.corpus import TokenCorpus, write_corpus
from danlu.data.errors import InputError
from danlu.tasks.package_model import model_card, package_model
from danlu.tasks.pretrain import pretrain
from danlu.tasks.pretrain_loop import evaluate, evaluation_rows, hide
from danlu.tasks.pretrain_metrics import NeighbourCounts, baselines
from danlu.tasks.pretrain_spec import PretrainSettings, PretrainSpec
from danlu.text import Tokenizer, load_hf

V = 12
DOCUMENTS = [random.Random(i).choices(range(5, V), [20, 9, 5, 3, 2, 1, 1], k=30) for i in range(6)]


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "c", [(row, [True] * len(row)) for row in DOCUMENTS])
    return TokenCorpus(tmp_path / "c")


def by_hand(left, right):  # eqs. (1) and (2) with dictionaries
    ones = Counter(t for row in DOCUMENTS for t in row)
    twos = Counter(pair for row in DOCUMENTS for pair in pairwise(row))
    n = sum(ones.values())
    p = lambda b, a: (twos[a, b] + ones[b] / n) / (ones[a] + 1)  # noqa: E731
    best = []
    for before, after in zip(left, right, strict=True):
        if before < 0 and after < 0:
            best.append(ones.most_common(1)[0][0])
            continue
        score = [(p(w, before) if before >= 0 else ones[w] / n) * (p(after, w) if after >= 0 else 1) for w in range(V)]
        best.append(int(np.argmax(score)))
    return best


def test_guesses_equal_those_by_hand(corpus):
    pairs = [(a, b) for a in (-1, *range(5, V)) for b in (-1, *range(5, V))]
    left, right = np.array(pairs).T
    assert NeighbourCounts(corpus, V).guess(left, right).tolist() == by_hand(left, right)


def test_neighbours_that_are_hidden_or_special_say_nothing(corpus):
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一二三四五六七"])}
    tokenizer, spec = Tokenizer(vocab), PretrainSpec("mlm", (), settings=PretrainSettings(length=16, mask_share=0.4))
    ids, begins = evaluation_rows(corpus, tokenizer, spec)
    seen, asked, answers = hide(ids, begins, spec, tokenizer, 0)
    left, right = [], []
    for r, t in asked.nonzero().tolist():
        for place, side in ((t - 1, left), (t + 1, right)):
            side.append(-1 if asked[r, place] or seen[r, place] < 5 else int(seen[r, place]))
    expected = float(np.mean([a == b for a, b in zip(by_hand(left, right), answers[asked].tolist(), strict=True)]))
    found = baselines(spec, {"train": corpus, "dev": corpus}, tokenizer)
    assert found["bigram"] == pytest.approx(expected) and 0 < found["unigram"] < 1
    assert baselines(replace(spec, kind="lm"), {"train": corpus, "dev": corpus}, tokenizer)["bigram"] > 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    stream = random.Random(3)
    text = "\n".join("".join(stream.choices(["天地", "玄黄", "宇宙"], k=20)) for _ in range(40))
    (folder / "a.txt").write_text(text)
    settings = PretrainSettings(steps=40, batch_tokens=128, length=16, long_length=32, warmup_steps=4, eval_every=10,
                                log_every=10, lr=5e-3)  # fmt: skip
    spec = PretrainSpec("mlm", (str(folder / "a.txt"),), (str(folder / "a.txt"),), "bert:1x16", vocab_size=90,
                        settings=settings, device="cpu", precision="fp32", threads=1)  # fmt: skip
    return folder / "out", pretrain(spec, folder / "out", command="danlu pretrain"), spec


def test_metrics_hold_what_the_card_says(finished):
    out, metrics, _ = finished
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics["baselines"]) == {"unigram", "bigram", "untrained"} and set(metrics["stored"]) == {
        "fp32",
        "bf16",
        "fp16",
    }
    assert metrics["stored"]["fp32"] == metrics["held_out"]["accuracy"]  # the run was in float32
    assert metrics["baselines"]["untrained"] < metrics["held_out"]["accuracy"]
    assert metrics["parameters"] == sum(v.numel() for v in load_hf(out).state_dict().values())


def test_packaged_files_open_and_are_half_as_large(finished, tmp_path):
    out, metrics, _ = finished
    target = package_model(out, tmp_path / "tiny", "tiny")
    assert {path.name for path in target.iterdir()} == {
        "config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "MODEL_CARD.md",
    }  # fmt: skip
    assert {v.dtype for v in load_file(target / "model.safetensors").values()} == {torch.bfloat16}
    ours, theirs = load_hf(target).state_dict(), load_hf(out).state_dict()
    assert all(torch.equal(ours[name], theirs[name].bfloat16().float()) for name in theirs)
    assert Tokenizer.load(target).vocab == Tokenizer.load(out).vocab
    card = (target / "MODEL_CARD.md").read_text()
    shares = [f"{100 * share:.2f} %" for share in (metrics["held_out"]["accuracy"], metrics["baselines"]["bigram"])]
    facts = [f"{metrics['parameters']:,} parameters", "danlu pretrain mlm --text a.txt", "| 40 | 0.0 M |", *shares]
    assert [fact for fact in facts if fact not in card] == []
    assert str(out.parent) not in card
    with pytest.raises(InputError, match="exists"):
        package_model(out, target, "tiny")


def test_a_card_with_sources_and_a_model_too_large(finished, tmp_path):
    _, metrics, _ = finished
    source = {"name": "zh-x", "characters": 1234, "measured_characters": 56, "held_out_characters": 7, "origin": "o/x",
              "licence": "MIT | open"}  # fmt: skip
    sources = {"sources": [source], "characters": 1234, "removed_characters": 56, "held_out_characters": 7}
    sources |= {"run_length": 20, "runs_of_measured_text": 99, "measured_characters_by_set": {"a": 1, "b": 2}}
    segmented = metrics | {"segmenter": {"command": "danlu demo", "metrics": {"test": {"f1": 0.9556}}}}
    card = model_card("tiny", segmented, [], sources)
    assert "| zh-x | 1,234 | 56 | 7 | o/x | MIT / open |" in card and "any of 2 sets (99 such runs)" in card
    assert "the segmenter of `danlu demo`, word F1 95.56" in card
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "metrics.json").write_text(json.dumps(metrics | {"parameters": 9_000_000}))
    with pytest.raises(InputError, match=r"9,000,000 parameters, 18\.0 MB as bf16; a package carries at most 16 MB"):
        package_model(tmp_path / "big", tmp_path / "no", "big")


def test_evaluation_leaves_the_model_as_it_was(finished, corpus):
    out, _, spec = finished
    model, tokenizer = load_hf(out).train(), Tokenizer.load(out)
    first = evaluate(model, corpus, tokenizer, spec, None)
    assert model.training and first == evaluate(model, corpus, tokenizer, spec, None)
