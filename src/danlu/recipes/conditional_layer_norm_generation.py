r"""Norms that follow a condition make a model write what is asked for: a form and an author, a sentiment, a picture.

Claim  kexue.fm/archives/7124: a vector that shifts the gain and bias of every layer norm steers a pretrained language
       model: reviews by sentiment, captions of pictures (examples, no figures).
Test   poems by form and author, reviews by sentiment: texts are sampled for every label, a classifier of real training
       texts says which label it sees; its accuracy on real test texts and chance stand beside. Captions: digits as
       vectors of 64 pixels, the share of unseen digits that the caption names. Pretrained and random weights, each with
       the rate that is best on dev.
Data   tang-poetry, zh-sentiment-generate (`danlu data list`), digits of scikit-learn; smoke: made-up verses and digits
Run    danlu run conditional_layer_norm_generation --scale smoke|full --seed 0 --set data=tang-poetry
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from danlu.data import load_digits
from danlu.data.pairs import Condition, Pair
from danlu.gallery.record import Result
from danlu.recipes._generation import best_run, draw, made_up_verses, parts_of
from danlu.tasks.training import Part, score

__all__ = ["SCALES", "Config", "run"]
NAMES = "零一二三四五六七八九"
NAMELESS = ("不詳", "無名氏")


@dataclass(frozen=True)
class Config:
    """Sizes of each of the sets."""

    data: str = "tang-poetry zh-sentiment-generate digits"
    model: str = "mini-zh"
    rates: str = "3e-4 1e-3"
    train_rows: int = 4_000
    eval_rows: int = 200
    epochs: float = 4.0
    evaluations: int = 4
    batch_size: int = 32
    max_len: int = 100
    max_target: int = 80
    authors: int = 8  # those with most poems
    judge_rows: int = 40  # texts for every label
    condition_size: int = 64
    condition_lr: float = 10.0  # factor on the rate, of what follows the condition
    digits_epochs: float = 20.0


SCALES = {
    "smoke": Config(
        data="verses digits", model="bert:2x64", rates="2e-3", train_rows=40, eval_rows=8, epochs=1.0, evaluations=1,
        batch_size=16, max_len=48, max_target=24, judge_rows=3, condition_size=16, digits_epochs=1.0,
    ),
    "full": Config(),
}  # fmt: skip


def caption(pixels: Any, digit: int, line: int) -> Pair:
    """A digit's pixels and what stands there, in one of two ways."""
    words = f"这是手写的数字{NAMES[digit]}。" if line % 2 else f"图上写着一个{NAMES[digit]}。"
    return Pair("", words, Condition(vector=tuple(pixels.flatten().tolist())), line)


def read(name: str, config: Config, seed: int) -> tuple[dict[str, Part], list[Pair]]:
    """Parts of one seed, and all real texts that a judge may learn from."""
    if name == "digits":
        digits = load_digits()
        sizes = (config.train_rows, config.eval_rows, 2 * config.eval_rows)
        parts = {}
        for role, size in zip(("train", "dev", "test"), sizes, strict=True):
            pictures = zip(*getattr(digits, role), strict=True)  # examples may share a caption: no part is thinned out
            rows = [caption(pixels, int(digit), line) for line, (pixels, digit) in enumerate(pictures, 1)]
            parts[role] = Part(role, name, rows[:size])
        return parts, []
    if name == "verses":
        rows = [draw(made_up_verses(), 60, seed)]
        rows = [rows[0][20:], rows[0][:10], rows[0][10:20]]
    else:
        from danlu.tasks.datasets import load

        rows = [load(name, part, "generate", on_bad_rows="skip").examples for part in ("train", "dev", "test")]
    if name == "tang-poetry":
        counts = Counter(dict(e.condition.labels)["author"] for e in rows[0])
        authors = [a for a, _ in counts.most_common(config.authors + len(NAMELESS)) if a not in NAMELESS][
            : config.authors
        ]
        rows = [[e for e in some if dict(e.condition.labels)["author"] in authors] for some in rows]
    train, dev, test = rows
    parts = parts_of(name, train, draw(dev, config.eval_rows, 0), draw(test, config.eval_rows, 0))
    real = parts["train"].examples
    parts["train"].examples = draw(real, config.train_rows, seed)
    return parts, real


def run(config: Config, seed: int) -> Result:
    """Both arms on every set, one seed."""
    measured: dict[str, float] = {}
    figures: dict[str, Any] = {}
    rates = [float(rate) for rate in config.rates.split()]
    arms = ("pretrained",) if config.model.startswith("bert:") else ("pretrained", "random")
    for name in config.data.split():
        parts, real = read(name, config, seed)
        settings = {key: getattr(config, key) for key in (
            "epochs", "evaluations", "batch_size", "max_len", "max_target", "eval_rows", "judge_rows", "condition_size"
        )}  # fmt: skip
        if name == "digits":
            settings |= {"epochs": config.digits_epochs, "decode": "beam", "beam": 1}
        for arm in arms:
            chosen = settings | ({"init": arm} if len(arms) > 1 else {})
            trick = f"condition_lr:{config.condition_lr:g}"
            rate, found = best_run(parts, config.model, rates, seed, (trick,), chosen)
            measured[f"{name}, {arm}, rate"] = rate
            found.model.real = real
            scores = score(found, "generate", "test")
            for key in ("loss", "condition_gap", "distinct_2", "distinct_2_gold", "rep_16", "rep_16_gold"):
                if key in scores.metrics:
                    measured[f"{name}, {arm}, {key}"] = float(scores.metrics[key])
            for item in scores.page.get("control", []):
                measured[f"{name}, {arm}, {item['field']} recognized"] = item["accuracy"]
                measured[f"{name}, real texts, {item['field']} recognized"] = item["real"]
                measured[f"{name}, chance, {item['field']} recognized"] = item["chance"]
                figures[f"{name}, {arm}, {item['field']}"] = item["confusion"]
            if name == "digits":
                measured[f"{name}, {arm}, named"] = named(found.model, parts["test"].examples)
            figures[f"{name}, {arm}, samples"] = scores.page["samples"]
    return Result(measured=measured, figures=figures)


def named(model: Any, examples: Sequence[Pair]) -> float:
    """Share of pictures whose caption names their digit, and no other."""
    from danlu.tasks.generate import Task

    written = Task().predict(model, [{"condition": list(e.condition.vector)} for e in examples])
    digits = [[c for c in e.target if c in NAMES and c != "一"] or ["一"] for e in examples]
    found = [[c for c in w["generated"].replace("一个", "") if c in NAMES] for w in written]
    return sum(a == b for a, b in zip(digits, found, strict=True)) / len(examples)
