r"""SimCSE with small batches: FlatNCE beside InfoNCE, on Chinese sentences whose only augmentation is dropout.

Claim  kexue.fm/archives/8586: with small batches InfoNCE does badly because its gradient drowns in float error, and
       FlatNCE does better, most at the smallest batches (shown there for photographs; for sentences no figure is given,
       so none is compared). A sentence under two draws of dropout is solved at once, which is where that should show.
Test   mini-zh trained on sentences without labels: torch's cross-entropy, the same on scores rounded to bfloat16 (what
       autocast makes of the product), InfoNCE with its gradient computed exactly, FlatNCE; equal sentences, batches and
       dropout. If float error is the cause, the exact form gains as much as FlatNCE. Rate and step of every arm chosen
       on dev; Spearman's correlation on test. The model before training is the control: does training help at all?
Data   stsb-zh (`danlu data list`); smoke: a dozen sentences below
Run    danlu run flatnce_sentences --scale smoke|full --seed 0 --set temperature=0.1
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from danlu.data import TextGroup
from danlu.data.batching import bucketed_batches
from danlu.gallery.record import Result
from danlu.losses import Scores, contrastive_scores, contrastive_stats, flat_nce, info_nce
from danlu.optim import piecewise_linear
from danlu.recipes._contrastive import cross_entropy, pull_error, rounded
from danlu.tasks import datasets, get_task
from danlu.tasks.device import choose
from danlu.tasks.embed import EmbedSettings
from danlu.tasks.embed_model import Embedder, GroupedTexts
from danlu.tasks.model_choice import choose_model

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]
SMALL = "a dozen sentences"
SUBJECTS = ("怎么退货", "如何改密码", "什么时候发货", "可以开发票吗", "在哪里查余额", "快递几天到")

ARMS: dict[str, Callable[[Scores], Tensor]] = {
    "cross-entropy": cross_entropy,
    "cross-entropy in bfloat16": lambda s: cross_entropy(rounded(s)).float(),
    "exact InfoNCE": lambda s: info_nce(*s),
    "FlatNCE": lambda s: flat_nce(*s),
}


@dataclass(frozen=True)
class Config:
    """As many sentences in every arm, so small batches take more steps."""

    data: str = "stsb-zh"
    model: str = "mini-zh"
    pairs: str = "4 32"  # sentences in a batch
    rates: str = "3e-5 1e-4"  # tried by every arm
    sentences: int = 1_500  # of the training part, drawn by the seed
    dropout: float = 0.1
    temperature: float = 0.05
    max_len: int = 64  # tokens
    warmup: float = 0.1
    evaluations: int = 2
    look_every: int = 25  # steps between measurements of the gradient


SCALES = {
    "smoke": Config(data=SMALL, model="bert:1x32", pairs="4", rates="1e-3", evaluations=1, look_every=1),
    "full": Config(),
}
Parts = dict[str, list[TextGroup]]


def parts_of(config: Config, seed: int) -> tuple[list[str], Parts]:
    """Sentences of the training part, without their scores and without those of dev and test; and those two parts."""
    if config.data == SMALL:
        alike = [TextGroup((a, f"请问{a}"), 1.0, i) for i, a in enumerate(SUBJECTS)]
        other = [TextGroup((a, SUBJECTS[i - 1]), 0.0, i) for i, a in enumerate(SUBJECTS)]
        return [f"{a}{b}" for a in SUBJECTS[:3] for b in SUBJECTS[3:]], {"dev": alike + other, "test": alike + other}
    found = {part: list(datasets.load(config.data, part, "embed").examples) for part in ("train", "dev", "test")}
    held_out = {text for part in ("dev", "test") for e in found[part] for text in e.texts}
    texts = [t for t in dict.fromkeys(t for e in found.pop("train") for t in e.texts) if t not in held_out]
    drawn = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[: config.sentences]
    return [texts[i] for i in drawn.tolist()], found


def fresh(config: Config) -> Embedder:
    """The model before training."""
    encoder = choose_model(config.model).reader(EmbedSettings(dropout=config.dropout))
    return Embedder(encoder, {"pooling": "mean", "max_len": config.max_len})


def train(
    config: Config, arm: str, pairs: int, lr: float, seed: int, sentences: list[str], parts: Parts
) -> dict[str, Any]:
    """One arm at one rate: scores on dev and test where dev is best, and what its gradients were like on the way."""
    torch.manual_seed(seed)
    model = fresh(config).train()
    items = GroupedTexts(model.encoder, [sentences, sentences], range(len(sentences)), config.max_len)
    batches = [rows for rows in bucketed_batches(items.lengths, pairs, seed, 0) if len(rows) > 1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    schedule = piecewise_linear({0: 0.0, max(1, round(config.warmup * len(batches))): 1.0, len(batches) + 1: 0.0})
    precision = choose("cpu", "auto")[1]
    looks = {round(len(batches) * (i + 1) / config.evaluations) for i in range(config.evaluations)}
    best: dict[str, Any] = {"dev": -1.0}
    errors, certain, curve = [], [], []
    for step, rows in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            vectors = model.pooled(items.collate(rows))  # (2 B, D)
        s = contrastive_scores(*vectors.chunk(2), config.temperature)  # float32
        optimizer.zero_grad()
        ARMS[arm](s).backward()
        optimizer.step()
        if step % config.look_every == 0:
            seen = s._replace(scores=s.scores.bfloat16().float()) if arm.endswith("bfloat16") else s
            errors.append(pull_error(ARMS[arm], flat_nce if arm == "FlatNCE" else info_nce, seen))
            stats = contrastive_stats(*(rounded(s) if arm.endswith("bfloat16") else s))
            certain.append(stats["share_underflow"].item())
        if step in looks:
            dev = spearman_of(model, parts["dev"], precision)
            curve.append([step, dev])
            if dev > best["dev"]:
                best = {"dev": dev, "test": spearman_of(model, parts["test"], precision)}
    middle = [torch.tensor(v, dtype=torch.float64).median().item() if v else 0.0 for v in (errors, certain)]
    return {**best, "error of the pull": middle[0], "share that rounds to 1": middle[1], "curve": curve}


def spearman_of(model: Embedder, examples: list[TextGroup], precision: str) -> float:
    """Spearman's correlation of cosine and score."""
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        score = get_task("embed").evaluate(model, examples).metrics["spearman"]
    model.train()
    return float(score)


def run(config: Config, seed: int) -> Result:
    """Every arm at every batch size, each at the rate that is best on dev; gains over cross-entropy."""
    sentences, parts = parts_of(config, seed)
    torch.manual_seed(seed)
    measured = {"before training": spearman_of(fresh(config), parts["test"], choose("cpu", "auto")[1])}
    figures: dict[str, Any] = {"arm": list(ARMS), "pairs": [], "rate": [], "dev": {}}
    for pairs in map(int, config.pairs.split()):
        chosen: dict[str, tuple[float, dict[str, Any]]] = {}
        for arm in ARMS:
            for rate in map(float, config.rates.split()):
                found = train(config, arm, pairs, rate, seed, sentences, parts)
                figures["dev"][f"{arm}, {pairs} pairs, {rate:g}"] = found["curve"]
                if arm not in chosen or found["dev"] > chosen[arm][1]["dev"]:
                    chosen[arm] = (rate, found)
        figures["pairs"].append(pairs)
        figures["rate"].append([chosen[arm][0] for arm in ARMS])
        for arm in ARMS:
            measured[f"{arm}, {pairs} pairs"] = chosen[arm][1]["test"]
        for arm in list(ARMS)[1:]:
            gain = chosen[arm][1]["test"] - chosen["cross-entropy"][1]["test"]
            measured[f"gain of {arm}, {pairs} pairs"] = gain
        for name in ("error of the pull", "share that rounds to 1"):
            for arm in list(ARMS)[:3]:
                measured[f"{name}, {arm}, {pairs} pairs"] = chosen[arm][1][name]
    return Result(measured=measured, figures=figures)
