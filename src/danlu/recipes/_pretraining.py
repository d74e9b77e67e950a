"""What the recipes on pretraining share: parts without leaks, and the two arms with rates and steps chosen alike.

A recipe names its task, its data and its baseline; here stand drawing, training (`danlu.tasks.training`, as the command
line does it) and choosing.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from danlu.gallery.record import Result
from danlu.tasks import datasets, get_task
from danlu.tasks.model_choice import choose_model
from danlu.tasks.spec import Spec
from danlu.tasks.training import Part, halves, metric_of, score, train_model

ARMS = ("pretrained", "random")


def read_parts(task: str, name: str, seed: int, train_rows: int, eval_rows: int) -> dict[str, Part]:
    """Train, dev and test of a named set, other training rows for each seed.

    A set without a test part gives half of dev for it. No text of dev or test stays in train, none of dev in test.
    """
    known = datasets.find(name)
    corpora = {part: datasets.load(name, part, task) for part in ("train", "dev")}
    rows = {part: list(corpus.examples) for part, corpus in corpora.items()}
    if any(part.startswith("test") for part in known.splits):
        rows["test"] = list(datasets.load(name, "test", task).examples)
    else:
        rows["dev"], rows["test"] = halves(rows["dev"])
    held_out: set[str] = set()
    for part in ("test", "dev", "train"):
        rows[part] = list({e.text: e for e in rows[part] if e.text not in held_out}.values())
        held_out |= {e.text for e in rows[part]}
    drawn = torch.randperm(len(rows["train"]), generator=torch.Generator().manual_seed(seed))[:train_rows].tolist()
    rows["train"] = [rows["train"][i] for i in drawn]
    for part in ("dev", "test"):
        fixed = torch.randperm(len(rows[part]), generator=torch.Generator().manual_seed(0))[:eval_rows].tolist()
        rows[part] = [rows[part][i] for i in fixed]
    return {part: Part(part, name, rows[part], corpora["train"].scheme) for part in ("train", "dev", "test")}


def usable(parts: dict[str, Part]) -> dict[str, Part]:
    """The parts without rows of dev and test whose class the drawn training rows lack."""
    classes = {getattr(e, "label", "") for e in parts["train"].examples}
    for part in ("dev", "test"):
        parts[part].examples = [e for e in parts[part].examples if getattr(e, "label", "") in classes]
    return parts


def compare(
    task: str, config: Any, parts: dict[str, Part], seed: int, baseline: tuple[str, float], settings: Sequence[str]
) -> Result:
    """Both arms at every rate; of each arm the run that is best on dev is judged on test.

    Args:
        task: name of the task.
        config: of the recipe, with "data", "model" and "rates".
        parts: train, dev and test.
        seed: of the weights above the encoder (and of all weights in the random arm), the order and the dropout.
        baseline: name and score on test of what asks no model.
        settings: fields of the config that are settings of the run.

    Returns:
        Scores of the arms and of the baseline, the gains, the rates chosen.
    """
    measured: dict[str, float] = {}
    curves: dict[str, Any] = {}
    metric = metric_of(get_task(task), parts["train"].scheme)
    known = asdict(choose_model(config.model).settings(get_task(task)))
    for arm in ARMS:
        best: tuple[float, float, Any] = (-1.0, 0.0, None)
        for rate in map(float, config.rates.split()):
            chosen = {name: getattr(config, name) for name in settings if name in known} | {"lr": rate, "init": arm}
            spec = Spec(task=task, train=config.data, model=config.model, seed=seed, set=chosen)
            run = train_model(spec, parts)
            curves[f"{arm} {rate:g}"] = [[row["step"], row["dev"][metric]] for row in run.result.log if "dev" in row]
            if run.result.best > best[0]:
                best = (run.result.best, rate, run)
        measured[arm] = float(score(best[2], task, "test").metrics[metric])
        measured[f"{arm}, dev"] = best[0]
        measured[f"rate, {arm}"] = best[1]
    measured["gain of pretraining"] = measured["pretrained"] - measured["random"]
    measured[baseline[0]] = baseline[1]
    measured[f"pretrained over {baseline[0]}"] = measured["pretrained"] - baseline[1]
    return Result(measured=measured, figures={"metric": metric, "dev": curves})


def majority(parts: dict[str, Part]) -> float:
    """Accuracy on test of the commonest class of train."""
    train, test = ([e.label for e in parts[part].examples] for part in ("train", "test"))
    commonest = max(sorted(set(train)), key=train.count)
    return sum(label == commonest for label in test) / max(1, len(test))
