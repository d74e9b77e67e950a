r"""Pretraining helps a small Chinese encoder to find answers in a text.

Claim  arXiv:1810.04805: fine-tuning a pretrained encoder for extractive reading beats training the same network from
       random weights (figures for English SQuAD and 110 million parameters, so none is compared).
Test   mini-zh against the same network with random weights, start and end of the answer: F1 of CMRC 2018 on test, rate
       and step of each chosen on dev; no context stands in two parts. Beside it the sentence that repeats most of the
       question.
Data   cmrc2018; --set data=drcd (`danlu data list`); smoke: a few made-up sentences
Run    danlu run mini_zh_read --scale smoke|full --seed 0 --set data=drcd
"""

from dataclasses import dataclass

import torch

from danlu.gallery.record import Result
from danlu.recipes._pretraining import compare
from danlu.recipes._reading import questions, sentence_baseline
from danlu.tasks.training import Part

__all__ = ["SCALES", "Config", "run"]


@dataclass(frozen=True)
class Config:
    """All of the 2,599 training questions, windows of 256 tokens."""

    data: str = "cmrc2018"  # "": the made-up sentences
    model: str = "mini-zh"
    rates: str = "1e-4 3e-4"  # tried by both arms
    train_rows: int = 0  # 0: all
    eval_rows: int = 400
    epochs: float = 4.0
    evaluations: int = 4
    batch_size: int = 16
    max_len: int = 256
    overlap: int = 64
    head_rate: float = 5.0


SCALES = {
    "smoke": Config(
        data="",
        rates="1e-3",
        train_rows=16,
        eval_rows=6,
        epochs=1.0,
        evaluations=1,
        batch_size=8,
        max_len=48,
        overlap=8,
    ),
    "full": Config(),
}


def parts_of(config: Config, seed: int) -> dict[str, Part]:
    """Train, dev and test; other training questions for each seed where not all are taken."""
    rows = {part: questions(config.data, part, 0 if config.data else 40) for part in ("train", "dev", "test")}
    order = torch.randperm(len(rows["train"]), generator=torch.Generator().manual_seed(seed)).tolist()
    rows["train"] = [rows["train"][i] for i in order[: config.train_rows or None]]
    for part in ("dev", "test"):
        fixed = torch.randperm(len(rows[part]), generator=torch.Generator().manual_seed(0)).tolist()
        rows[part] = [rows[part][i] for i in fixed[: config.eval_rows]]
    return {part: Part(part, config.data or "made-up", examples) for part, examples in rows.items()}


def run(config: Config, seed: int) -> Result:
    """Both arms with one seed, and the sentences."""
    parts = parts_of(config, seed)
    baseline = ("likeliest sentence", sentence_baseline(parts["test"].examples))
    settings = ("epochs", "evaluations", "batch_size", "max_len", "overlap", "head_rate")
    return compare("read", config, parts, seed, baseline, settings)
