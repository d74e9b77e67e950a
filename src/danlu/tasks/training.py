"""From a `Spec` to a trained model, and from there to a model folder with metrics and a report page."""

import datetime
import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from danlu import __version__
from danlu.data.atomic import write_whole
from danlu.data.errors import InputError
from danlu.tasks import datasets, get_task
from danlu.tasks.device import accelerator, choose, machine
from danlu.tasks.encoder import Encoder, save_head
from danlu.tasks.fit import fit
from danlu.tasks.folder import (
    FORMAT_VERSION,
    check_target,
    digest,
    locked,
    partial_of,
    publish,
    read_json,
    write_json,
    write_tensors,
)
from danlu.tasks.model_choice import choose_model
from danlu.tasks.report import write_report
from danlu.tasks.scores import Scores
from danlu.tasks.spec import Spec
from danlu.tasks.state import FitResult
from danlu.tasks.tricks import parse_all

__all__ = ["Part", "Run", "halves", "metric_of", "read_parts", "train_folder", "train_model"]
Tell = Callable[[dict[str, Any]], None]


@dataclass
class Part:
    """The examples of one file or named set, and what could not be used."""

    role: str
    name: str
    examples: list[Any]
    scheme: str = ""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    repaired: list[dict[str, Any]] = field(default_factory=list)
    also_in_train: int = 0  # examples whose text the training part holds as well

    def card(self) -> dict[str, Any]:
        """What a record says about it."""
        tokens = sum(len(getattr(e, "tokens", None) or e.text) for e in self.examples)
        return {
            "role": self.role,
            "name": self.name,
            "examples": len(self.examples),
            "tokens": tokens,
            "skipped": len(self.skipped),
            **({"skipped_rows": self.skipped[:20]} if self.skipped else {}),
            **({"repaired": len(self.repaired), "repaired_rows": self.repaired[:20]} if self.repaired else {}),
            **({"also_in_train": self.also_in_train} if self.also_in_train else {}),
            **({"notes": self.notes} if self.notes and not self.repaired else {}),
        }


@dataclass
class Run:
    """A finished training run."""

    model: Any
    result: FitResult
    parts: dict[str, Part]
    settings: Any
    device: str
    precision: str
    notes: list[str] = field(default_factory=list)  # what the record should say


def read_part(spec: Spec, role: str, source: str, scheme: str = "") -> Part:
    """Read what --train, --dev or --test names, in the tag scheme of the data before it, if any.

    Raises:
        InputError: the file or set cannot be read, or a row cannot be used (and rows are not to be skipped).
    """
    task = get_task(spec.task)
    reading = datasets.open_source(
        source,
        role=role,
        task=spec.task,
        read=partial(task.read, scheme=scheme),
        on_bad_rows=spec.on_bad_rows,
        format=spec.format,
    )
    skipped, repaired = (
        [{"file": str(row.path), "line": row.line, "field": row.field, "reason": row.reason} for row in rows]
        for rows in (reading.skipped, reading.repaired)
    )
    return Part(role, source, list(reading.examples), reading.scheme, skipped, dict(reading.notes or {}), repaired)


def read_parts(spec: Spec) -> dict[str, Part]:
    """All parts a spec names, train first; two parts of unlike tag schemes are refused."""
    parts = {"train": read_part(spec, "train", spec.train)}
    scheme = getattr(get_task(spec.task), "dev_scheme", parts["train"].scheme)
    for role in ("dev", "test"):
        if source := getattr(spec, role):
            parts[role] = read_part(spec, role, source, scheme)
    known = {example.text for example in parts["train"].examples}
    for role, part in parts.items():
        if role != "train" and part.scheme != scheme and hasattr(get_task(spec.task), "dev_scheme"):
            raise InputError(f"{part.name} holds {part.scheme}; --{role} of task {spec.task} takes {scheme}")
        if role != "train" and part.scheme != scheme:
            raise InputError(
                f"{part.name} is tagged in {part.scheme}, {parts['train'].name} in {scheme}; write both in one scheme"
            )
        if role != "train":
            part.also_in_train = sum(example.text in known for example in part.examples)
    return parts


def halves(examples: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """A fixed half to select on and a fixed half to judge on, by a hash of the text: the same whatever the order."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    for example in examples:
        mark = hashlib.sha256(example.text.encode("utf-8", "surrogatepass")).digest()
        sides[mark[0] & 1].append(example)
    return sides


def train_model(
    spec: Spec,
    parts: dict[str, Part],
    state: Path | None = None,
    resume: bool = False,
    on_event: Tell = lambda event: None,
) -> Run:
    """Build and train what a spec asks for.

    Args:
        spec: the run.
        parts: "train" and, to look at while training, "dev".
        state: folder for resumable state, or None.
        resume: go on from it.
        on_event: is told of progress.

    Returns:
        The run, its model in evaluation mode holding the kept weights.

    Raises:
        InputError: labels that training never saw, a model name that no family has.
        WorkError: the loss is not finite.
    """
    task, settings = get_task(spec.task), spec.settings()
    _, plan = parse_all(spec.tricks, spec.task)
    device, precision = choose(spec.device, spec.precision)
    engine = accelerator(device, precision, spec.threads)
    torch.manual_seed(spec.seed)
    training = parts["train"]
    model = task.build(training.examples, training.scheme, choose_model(spec.model), settings, plan)
    for part in parts.values():
        drop_unusable(task, model, part, spec.on_bad_rows)
    dev = parts.get("dev")

    def evaluate() -> dict[str, float]:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            return task.evaluate(model, dev.examples).metrics if dev else {}

    items = task.training_set(model, training.examples)
    result = fit(
        model,
        items,
        settings,
        plan,
        engine,
        spec.seed,
        evaluate=evaluate if dev else None,
        metric=metric_of(task, training.scheme),
        state=state,
        resume=resume,
        on_event=on_event if engine.is_main_process else lambda event: None,
    )
    notes = task.notes(items) if hasattr(task, "notes") else []
    if hasattr(task, "finish"):
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            notes = [*notes, *task.finish(model, training.examples, plan)]
    return Run(model, result, parts, settings, device, precision, notes)


def metric_of(task: Any, scheme: str) -> str:
    """Name of the score that selects: of a task, or of its pairs with scores."""
    return task.score_metric if scheme == "score" else task.metric


def drop_unusable(task: Any, model: Any, part: Part, on_bad_rows: str) -> None:
    """Rows whose labels the model cannot give: an error, or skipped and counted."""
    bad = task.unusable(model, part.examples)
    if not bad:
        return
    first = min(bad)
    if on_bad_rows == "fail":
        raise InputError(
            f"{part.name} line {part.examples[first].line}: {bad[first]} ({len(bad)} such rows); "
            "add training examples, or --on-bad-rows skip"
        )
    part.skipped += [
        {"file": part.name, "line": part.examples[i].line, "field": "label", "reason": why}
        for i, why in sorted(bad.items())
    ]
    part.examples = [e for i, e in enumerate(part.examples) if i not in bad]
    if not part.examples:
        raise InputError(f"{part.name} has no usable row left: {bad[first]}")


def train_folder(
    spec: Spec,
    out: Path,
    command: str = "",
    resume: bool = False,
    overwrite: bool = False,
    on_event: Tell = lambda event: None,
) -> dict[str, Any] | None:
    """Train, score, write a model folder with a report page.

    Args:
        spec: the run.
        out: folder to write; the work stands in OUT.partial until it is complete.
        command: for the record.
        resume: go on with OUT.partial.
        overwrite: replace an earlier result.
        on_event: is told of progress.

    Returns:
        The record; None in all but the main process of a launch.

    Raises:
        InputError: something the user gave cannot be used.
        WorkError: training failed.
    """
    started = time.perf_counter()
    main = accelerator(*choose(spec.device, spec.precision), spec.threads)
    if not main.is_main_process:
        return _follow(spec, out, resume)
    with locked(out):
        check_target(out, mark="task.json", overwrite=overwrite, resume=resume)
        work = partial_of(out)
        unfinished = work / "spec.json"
        identity = {**spec.to_json(), "contents": contents(spec)}
        if resume and unfinished.exists():
            earlier = read_json(unfinished)
            changed = [key for key, value in identity.items() if earlier.get(key) != value]
            if changed == ["contents"]:
                raise InputError(f"a data file changed since {work} was begun; restore it, or give --overwrite")
            if changed:
                names = ", ".join(changed)
                raise InputError(f"{work} was begun with other options ({names}); give the same ones, or --overwrite")
        elif work.exists():
            shutil.rmtree(work)
        elif resume:
            on_event({"event": "phase", "text": f"nothing to go on from in {work}; starting at the beginning"})
        parts = read_parts(spec)  # before any folder is made: a bad file leaves nothing behind
        work.mkdir(parents=True, exist_ok=True)
        try:
            write_json(unfinished, identity)
            broadcast_object_list([None])  # the others may begin: the input is good
            on_event({"event": "data", "parts": [p.card() for p in parts.values()]})
            run = train_model(spec, parts, state=work / "state", resume=resume, on_event=on_event)
            on_event({"event": "phase", "text": "scoring"})
            record = _record(spec, run, command, started)
            _write_folder(work, spec, run, record)
            publish(work, out)
            shutil.rmtree(out / "state", ignore_errors=True)
        except BaseException:
            if not list(work.glob("state/step-*")):  # nothing to go on from
                shutil.rmtree(work, ignore_errors=True)
            raise
    return record


def contents(spec: Spec) -> dict[str, str | None]:
    """Checksums of the files a spec names."""
    return {role: digest(Path(source)) for role in ("train", "dev", "test") if (source := getattr(spec, role))}


def _follow(spec: Spec, out: Path, resume: bool) -> None:
    """What the other processes of a launch do: the same training; the main one reads first and writes."""
    parts = read_parts(spec)
    broadcast_object_list([None])
    train_model(spec, parts, state=partial_of(out) / "state", resume=resume)


def score(run: Run, task_name: str, role: str) -> Scores:
    """Scores of one part, with details."""
    with torch.autocast(run.device, dtype=torch.bfloat16, enabled=run.precision == "bf16"):
        return get_task(task_name).evaluate(run.model, run.parts[role].examples, details=True)


def _record(spec: Spec, run: Run, command: str, started: float) -> dict[str, Any]:
    began = time.perf_counter()
    scores = {role: score(run, spec.task, role) for role in ("dev", "test") if role in run.parts}
    shown = scores.get("test") or scores.get("dev")
    record = {
        "kind": "train",
        "title": f"{spec.task}: {Path(spec.train).name}",
        "command": command,
        "task": spec.task,
        "scheme": run.parts["train"].scheme,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "danlu": __version__,
        "machine": machine(run.device, run.precision),
        "settings": {"model": spec.model, "tricks": list(spec.tricks), "seed": spec.seed, **asdict(run.settings)},
        "data": [part.card() for part in run.parts.values()],
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "metrics": {role: s.metrics for role, s in scores.items()},
        "log": run.result.log,
        "best_step": run.result.best_step,
        "steps": run.result.steps,
        **({"notes": run.notes} if run.notes else {}),
        **(shown.page if shown else {}),
    }
    record["seconds"] = {
        "train": round(run.result.seconds, 2),
        "evaluate": round(time.perf_counter() - began, 2),
        "total": round(run.result.earlier + time.perf_counter() - started, 2),
    }
    return record


def _write_folder(folder: Path, spec: Spec, run: Run, record: dict[str, Any]) -> None:
    """Everything of DESIGN's model folder; task.json comes last and makes it one."""
    task = get_task(spec.task)
    if isinstance(getattr(run.model, "encoder", None), Encoder):
        run.model.encoder.save(folder)
        save_head(run.model, folder)
        stored = task.save(run.model, folder)
    else:
        write_tensors(folder / "model.safetensors", run.model.state_dict())
        stored = task.save(run.model, folder)
        described = {"model_type": "danlu-dgcnn", "danlu_version": __version__, **stored["config"]}
        write_json(folder / "config.json", described)
    write_whole(folder / "log.jsonl", "".join(_json_line(row) for row in record["log"]).encode())
    write_report(record, folder)
    write_json(folder / "metrics.json", record)
    (folder / "spec.json").unlink(missing_ok=True)
    write_json(
        folder / "task.json",
        {
            "format_version": FORMAT_VERSION,
            "danlu_version": __version__,
            "task": spec.task,
            "settings": record["settings"],
            "command": record["command"],
            **stored,
        },
    )


def _json_line(value: dict[str, Any]) -> str:
    import json

    return json.dumps(value, ensure_ascii=False) + "\n"
