r"""Relation triples with GPLinker and with CasRel, on a pretrained encoder and on a fresh one.

Claim  kexue.fm/archives/8888: F1 of GPLinker 0.8272 (efficient 0.8268), of the CasRel form 0.8220, on LIC2019 with a
       Chinese BERT-base; 7161: the power activation and conditional layer norm help (no figure). LIC2019 is not at
       hand and the encoder is small: the order of the heads is compared, not their F1.
Test   one encoder, the same windows, batches, steps and rates; heads GPLinker (efficient), CasRel as in 7161, CasRel
       with plain sigmoids and the added subject; exact match of both spans and predicate on the test part. Control:
       the first two on the same encoder with random weights.
Data   zh-literature-ie (smoke: a few made-up sentences)
Run    danlu run relation_triples --scale smoke|full --seed 0 --set steps=800
"""

from dataclasses import dataclass, replace

import torch

from danlu.data.batching import bucketed_batches
from danlu.data.triples import Related, Relation
from danlu.gallery.record import Result
from danlu.tasks import datasets
from danlu.tasks.model_choice import choose_model
from danlu.tasks.tricks import Plan
from danlu.tasks.triples import Task, TripleSettings

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

ARMS = {
    "gplinker": TripleSettings(),
    "casrel": TripleSettings(head="casrel"),
    "casrel, plain": TripleSettings(head="casrel", fusion="add", subject_power=1.0, object_power=1.0),
    "gplinker, random": TripleSettings(init="random"),
    "casrel, random": TripleSettings(head="casrel", init="random"),
}


@dataclass(frozen=True)
class Config:
    """Windows of 128 tokens; every arm sees the same ones in the same order."""

    data: str = "zh-literature-ie"  # "": the made-up sentences
    model: str = "mini-zh"
    steps: int = 500
    batch_size: int = 16
    max_len: int = 128
    lr: float = 3e-4  # of the encoder
    head_lr: float = 1e-3
    warmup_steps: int = 50  # then linear to 0
    bf16: bool = True  # autocast in training and evaluation


SCALES = {
    "smoke": Config(
        data="",
        model="bert:1x64",
        steps=25,
        batch_size=10,
        max_len=32,
        lr=2e-3,
        head_lr=1e-2,
        warmup_steps=2,
        bf16=False,
    ),
    "full": Config(),
}


def made_up() -> list[Related]:
    """Sentences of two persons and a town, with their triples."""
    names, towns = ["王明", "李雷", "韩梅梅", "赵四", "张三"], ["北京", "上海", "广州市", "成都"]
    rows = []
    for i, name in enumerate(names):
        for j, town in enumerate(towns):
            other = names[(i + j + 1) % len(names)]
            text = (
                f"{name}和{other}是夫妻，住在{town}。" if (i + j) % 2 else f"{other}送{name}去{town}，{name}住在那里。"
            )
            a, b, c = (text.index(part) for part in (name, other, town))
            spans = [(at, at + len(part)) for at, part in ((a, name), (b, other), (c, town))]
            found = [Relation(spans[0], "住在", spans[2])]
            found += [Relation(spans[0], "配偶", spans[1])] if (i + j) % 2 else []
            rows.append(Related(text, tuple(sorted(found)), len(rows) + 1))
    return rows


def train(config: Config, arm: str, seed: int) -> dict[str, float]:
    """F1, precision and recall of one arm on the test part, and the loss of its last batch."""
    torch.manual_seed(seed)
    if config.data:
        training, test = (datasets.load(config.data, part, task="triples").examples for part in ("train", "test"))
    else:
        training, test = made_up()[::2], made_up()[1::2]
    task = Task()
    settings = replace(ARMS[arm], max_len=config.max_len)
    model = task.build(training, "", choose_model(config.model), settings, Plan())
    data = task.training_set(model, training)
    groups = [
        {"params": list(model.encoder.parameters()), "lr": config.lr},
        {"params": list(model.head.parameters()), "lr": config.head_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / config.warmup_steps, 1 - step / config.steps)
    )
    model.train()
    step = epoch = 0
    while step < config.steps:
        for rows in bucketed_batches(data.lengths, config.batch_size, seed, epoch)[: config.steps - step]:
            batch = data.collate(rows)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                loss = model(batch) / data.weight(rows)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
        epoch += 1
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        return task.evaluate(model, test).metrics | {"loss": loss.item()}


def run(config: Config, seed: int) -> Result:
    """Every head once, and what the pretraining, GPLinker and CasRel's own parts bring."""
    scores = {arm: train(config, arm, seed) for arm in ARMS}
    f1 = {arm: metrics["f1"] for arm, metrics in scores.items()}
    measured = {f"F1, {arm}": value for arm, value in f1.items()}
    measured |= {f"loss, {arm}": metrics["loss"] for arm, metrics in scores.items()}
    measured["gain of pretraining, gplinker"] = f1["gplinker"] - f1["gplinker, random"]
    measured["gain of pretraining, casrel"] = f1["casrel"] - f1["casrel, random"]
    measured["gplinker over casrel"] = f1["gplinker"] - f1["casrel"]
    measured["casrel over plain"] = f1["casrel"] - f1["casrel, plain"]
    figures = {"arm": list(scores)} | {k: [s[k] for s in scores.values()] for k in ("f1", "precision", "recall")}
    return Result(measured=measured, claimed={"gplinker over casrel": 0.8272 - 0.8220}, figures=figures)
