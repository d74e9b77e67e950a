r"""Pretraining helps a small Chinese encoder to tell whether two questions ask the same.

Claim  arXiv:1810.04805: fine-tuning a pretrained encoder on pairs of sentences beats training the same network from
       random weights (figures for English and 110 million parameters, so none is compared).
Test   mini-zh against the same network with random weights: accuracy on half of dev, rate and step of each chosen on
       the other half; training rows drawn anew for every seed; pairs of dev taken out of train. The commonest class.
Data   afqmc (`danlu data list`); smoke: a dozen pairs below
Run    danlu run mini_zh_match --scale smoke|full --seed 0 --set train_rows=20000
"""

from dataclasses import dataclass

from danlu.data import LabelledPair
from danlu.gallery.record import Result
from danlu.recipes._pretraining import compare, majority, read_parts, usable
from danlu.tasks.training import Part

__all__ = ["SCALES", "Config", "run"]
SUBJECTS = ("怎么退货", "如何改密码", "什么时候发货", "可以开发票吗", "在哪里查余额", "快递几天到")
SMALL = "a dozen pairs"


@dataclass(frozen=True)
class Config:
    """A part of the training pairs; with all of them a random start catches up somewhat."""

    data: str = "afqmc"
    model: str = "mini-zh"
    rates: str = "2e-4 6e-4"  # tried by both arms
    train_rows: int = 8_000
    eval_rows: int = 2_200
    epochs: float = 3.0
    evaluations: int = 6
    batch_size: int = 32
    max_len: int = 64  # tokens of both questions


SCALES = {
    "smoke": Config(data=SMALL, rates="1e-3", epochs=2.0, evaluations=1, batch_size=8, max_len=32),
    "full": Config(),
}


def dozen() -> dict[str, Part]:
    """Questions beside themselves with a polite word, and beside the next question."""
    pairs = [LabelledPair(q, f"请问{q}", "1", None, i) for i, q in enumerate(SUBJECTS)]
    pairs += [LabelledPair(q, SUBJECTS[i - 1], "0", None, i) for i, q in enumerate(SUBJECTS)]
    return {part: Part(part, SMALL, list(pairs), "label") for part in ("train", "dev", "test")}


def run(config: Config, seed: int) -> Result:
    """Both arms with one seed, and the commonest class."""
    if config.data == SMALL:
        parts = dozen()
    else:
        parts = usable(read_parts("match", config.data, seed, config.train_rows, config.eval_rows))
    settings = ("epochs", "evaluations", "batch_size", "max_len")
    return compare("match", config, parts, seed, ("commonest class", majority(parts)), settings)
