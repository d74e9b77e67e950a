r"""How passages vote: squared scores over one plus their sum, against the sum and the maximum.

Claim  kexue.fm/archives/5409: the squared vote alone, without any change of the network, brought more than one point on
       the leaderboard (mean of exact match and F1), over about ten passages a question found by a search engine.
Test   one trained reader and its scores; every question gets the overlapping stretches of its own context and the
       stretches of other contexts that share most pairs of characters with the question, 8 passages in all; the mean of
       exact match and F1 as WebQA counts them, by rule. Neighbours overlap by half, so that an answer stands in about
       two passages: fewer than a search brings.
Data   drcd, --set data=cmrc2018 (`danlu data list`); smoke: a few made-up sentences
Run    danlu run dgcnn_reading_vote --scale smoke|full --seed 0 --set passages=5
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from danlu.data.batching import windows
from danlu.data.reading import Question
from danlu.gallery.record import Result
from danlu.math.answer_metrics import answer_scores
from danlu.recipes._reading import questions
from danlu.tasks.device import accelerator
from danlu.tasks.fit import fit
from danlu.tasks.model_choice import choose_model
from danlu.tasks.read import DGCNNReadSettings, Task
from danlu.tasks.read_windows import Asked
from danlu.tasks.tricks import Plan

__all__ = ["RULES", "SCALES", "Config", "passages_of", "run"]

TASK = Task()
RULES = ("max", "sum", "squared")


@dataclass(frozen=True)
class Config:
    """A reader as in dgcnn_reading, passages of 128 characters."""

    data: str = "drcd"  # "": the made-up sentences
    model: str = "dgcnn:6x96"
    longest: int = 12  # characters of an answer
    epochs: float = 8.0
    batch_size: int = 32
    lr: float = 2e-3
    passages: int = 8
    length: int = 128  # characters of a passage
    ema: float = 0.99
    train_rows: int = 0  # 0: all
    test_rows: int = 1_000
    precision: str = "bf16"


SCALES = {
    "smoke": Config(
        data="", model="dgcnn:3x16", epochs=4.0, batch_size=8, passages=4, length=16, train_rows=24, test_rows=8,
        precision="fp32",
    ),
    "full": Config(),
}  # fmt: skip


def pairs(text: str) -> set[str]:
    """Neighbouring characters."""
    return {text[i : i + 2] for i in range(len(text) - 1)}


def pieces(context: str, length: int) -> list[str]:
    """Stretches of a context that overlap by half."""
    return [context[w.start : w.stop] for w in windows([len(context)], length, length // 4)]


def passages_of(examples: Sequence[Question], config: Config) -> list[tuple[str, ...]]:
    """For every question stretches of its own context and of others, those most like the question first."""
    others = [
        (piece, pairs(piece), c)
        for c in dict.fromkeys(e.context for e in examples)
        for piece in pieces(c, config.length)
    ]
    found = []
    for e in examples:
        asked = pairs(e.question)
        ranked = sorted(((len(asked & held), piece, c) for piece, held, c in others), key=lambda row: -row[0])
        own = [piece for _, piece, c in ranked if c == e.context][: config.passages // 2 + 1]
        rest = [piece for _, piece, c in ranked if c != e.context][: config.passages - len(own)]
        found.append((*own, *rest))
    return found


def run(config: Config, seed: int) -> Result:
    """One reader, all rules."""
    limits = {"train": config.train_rows, "test": config.test_rows}
    parts = {part: questions(config.data, part, limit, config.longest) for part, limit in limits.items()}
    torch.manual_seed(seed)
    settings = DGCNNReadSettings(
        batch_size=config.batch_size, lr=config.lr, table_lr=config.lr, epochs=config.epochs, max_len=config.length,
        overlap=config.length // 2, select="last",
    )  # fmt: skip
    model = TASK.build(parts["train"], "", choose_model(config.model), settings, Plan())
    data = TASK.training_set(model, parts["train"])
    fit(model, data, settings, Plan(ema=config.ema), accelerator("cpu", config.precision, None), seed)
    model.eval()
    asked = [Asked(e.question, p) for e, p in zip(parts["test"], passages_of(parts["test"], config), strict=True)]
    gold = [[a.text for a in e.answers] for e in parts["test"]]
    measured: dict[str, float] = {}
    for rule in RULES:
        model.config["vote"] = rule
        found = [f.text or "" for f in TASK.answers(model, asked)]
        scores = answer_scores(found, gold, "bag", "webqa")
        measured |= {f"score, {rule}": scores["score"], f"exact match, {rule}": scores["em"]}
    for rule in ("max", "sum"):
        measured[f"squared over {rule}"] = measured["score, squared"] - measured[f"score, {rule}"]
    holding = [sum(any(a in p for a in g) for p in one.contexts) for one, g in zip(asked, gold, strict=True)]
    measured["passages that hold the answer"] = sum(holding) / max(1, len(holding))
    return Result(measured, {"squared over max": 0.01, "squared over sum": 0.01})
