"""A pretrained model as the files that a package carries: half-size weights, tokenizer, and a card made from records.

Everything the card says comes from metrics.json, log.jsonl and sources.json of the folder that `danlu pretrain` wrote;
nothing of it is typed by hand.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from danlu.data.atomic import write_whole
from danlu.data.errors import InputError
from danlu.tasks.folder import read_json
from danlu.tasks.known_sets import PEOPLES_DAILY_RIGHTS
from danlu.text import load_hf, save_hf

__all__ = ["command_of", "model_card", "package_model"]
LARGEST = 16_000_000  # bytes of weights
CURVE = 14  # rows of the loss curve


def package_model(source: str | Path, target: str | Path, name: str, overwrite: bool = False) -> Path:
    """Write the files of a built-in model: config.json, bf16 weights, tokenizer and MODEL_CARD.md.

    Args:
        source: folder that `danlu pretrain` wrote, weights in float32.
        target: folder to make, such as src/danlu/text/mini_zh.
        name: of the model.
        overwrite: replace what is there.

    Returns:
        The folder.

    Raises:
        InputError: source is no such folder, or its weights are too many for a package.
    """
    source, target = Path(source), Path(target)
    metrics = read_json(source / "metrics.json")
    bytes_of = 2 * int(metrics["parameters"])
    if bytes_of > LARGEST:
        raise InputError(
            f"{source} has {metrics['parameters']:,} parameters, {bytes_of / 1e6:.1f} MB as bf16; a package carries at "
            f"most {LARGEST / 1e6:.0f} MB; pretrain a smaller model"
        )
    log = [json.loads(line) for line in (source / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    sources = read_json(source / "sources.json") if (source / "sources.json").is_file() else None
    save_hf(load_hf(source), target, dtype=torch.bfloat16, vocab=source, overwrite=overwrite)
    write_whole(target / "MODEL_CARD.md", model_card(name, metrics, log, sources).encode())
    return target


def command_of(spec: Mapping[str, Any]) -> str:
    """The command that makes a model, from the spec of its run; folders of the machine are named, not shown.

    Args:
        spec: metrics.json's "spec".

    Returns:
        One line.

    >>> command_of({"kind": "mlm", "text": ["mini-zh"], "model": "bert:6x256", "settings": {"steps": 9, "lr": 0.001}})
    'danlu pretrain mlm --text mini-zh --model bert:6x256 --set steps=9 --out DIR'
    """
    from danlu.tasks.pretrain_spec import PretrainSettings

    words = ["danlu", "pretrain", spec["kind"]]
    words += [word for path in spec["text"] for word in ("--text", Path(path).name)]
    words += [word for path in spec.get("dev", ()) for word in ("--dev", Path(path).name)]
    words += ["--model", spec["model"]] if spec.get("model") else []
    words += ["--segmenter", "SEGMENTER"] if spec.get("segmenter") else []
    words += ["--seed", str(spec["seed"])] if spec.get("seed") else []
    usual = PretrainSettings()
    words += [word for k, v in spec["settings"].items() if v != getattr(usual, k) for word in ("--set", f"{k}={v}")]
    return shlex.join([*words, "--out", "DIR"])


def model_card(
    name: str, metrics: Mapping[str, Any], log: Sequence[Mapping[str, Any]], sources: Mapping[str, Any] | None
) -> str:
    """The model card in Markdown.

    Args:
        name: of the model.
        metrics: metrics.json.
        log: lines of log.jsonl.
        sources: sources.json of the assembled text, or None.

    Returns:
        Its text.
    """
    spec, settings = metrics["spec"], metrics["spec"]["settings"]
    asked = "masked words" if metrics["objective"] == "mlm" else "the next token"
    lines = [
        f"# {name}", "",
        f"A Chinese character model pretrained by danlu on {asked}: {spec['model'] or 'bert:6x256'} (layers x width), "
        f"{metrics['parameters']:,} parameters, {metrics['corpus']['train']['about']['vocab_size']:,} tokens of "
        "vocabulary, simplified and traditional characters. It is small: made to test methods and to start small tasks "
        "from, not to know the world.",
        "", f"    {command_of(spec)}", "",
        *_run(metrics, settings), *_scores(metrics), *_curve(log),
    ]  # fmt: skip
    if sources is not None:
        lines += _text(sources)
    return "\n".join(lines) + "\n"


def _run(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """How it was trained."""
    corpus, machine = metrics["corpus"]["train"], metrics["machine"]
    falls = math.ceil(settings["decay"] * settings["steps"])
    rows = [
        ("steps", f"{metrics['steps']:,} of {settings['batch_tokens']:,} tokens"),
        ("tokens seen", f"{metrics['tokens']:,} ({metrics['tokens'] / corpus['tokens']:.2f} passes over the text)"),
        ("rows", f"{settings['length']} tokens, a share of {settings['long_share']:g} of {settings['long_length']}"),
        ("rate", f"{settings['lr']:g} after {settings['warmup_steps']:,} steps, falling to 0 over the last {falls:,}"),
        ("wall time", f"{metrics['seconds'] / 60:,.0f} minutes"),
        ("machine", f"{machine['device']}, {machine['threads']} threads, {machine['precision']}"),
    ]  # fmt: skip
    if metrics["objective"] == "mlm":
        rows.append(
            ("hidden", f"{settings['mask_share']:.0%} of the tokens, whole words; 80 % mask, 10 % random, 10 % kept")
        )
    if metrics.get("segmenter"):
        f1 = metrics["segmenter"]["metrics"].get("test", {}).get("f1")
        score = f", word F1 {100 * f1:.2f} on its test part" if f1 else ""
        rows.append(("words", f"told by the segmenter of `{metrics['segmenter']['command']}`{score}"))
    return ["## Training", "", *_table(("", ""), rows), ""]


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    """How well it guesses text it never saw."""
    if "held_out" not in metrics:
        return []
    held, base, stored = metrics["held_out"], metrics["baselines"], metrics["stored"]
    rows = [
        ("this model", f"{100 * held['accuracy']:.2f} %"),
        ("the neighbours' counts (bigram)", f"{100 * base['bigram']:.2f} %"),
        ("the most frequent token", f"{100 * base['unigram']:.2f} %"),
        ("the same model untrained", f"{100 * base['untrained']:.2f} %"),
    ]
    return [
        "## On text it never saw", "",
        f"Accuracy on {held['tokens']:,} hidden tokens; loss {held['loss']:.3f} nats a token.", "",
        *_table(("", "accuracy"), rows), "",
        f"Rounding the weights to bf16, as they are stored, changes it by "
        f"{100 * abs(stored['bf16'] - stored['fp32']):.3f} points (computed in float32: {100 * stored['fp32']:.3f} % "
        f"before, {100 * stored['bf16']:.3f} % after).", "",
    ]  # fmt: skip


def _curve(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss curve as a table."""
    losses = [entry for entry in log if "loss" in entry]
    held = {entry["step"]: entry["held_out"]["accuracy"] for entry in log if "held_out" in entry}
    if not losses:
        return []
    if held:
        losses = [entry for entry in losses if entry["step"] in held] or losses
    picked = sorted({round(i * (len(losses) - 1) / max(1, CURVE - 1)) for i in range(CURVE)})
    rows = []
    for entry in (losses[i] for i in picked):
        right = held.get(entry["step"])
        rows.append((f"{entry['step']:,}", f"{entry['tokens'] / 1e6:.1f} M", f"{entry['loss']:.3f}",
                     f"{100 * right:.2f} %" if right is not None else "", f"{entry['seconds'] / 60:,.0f}"))  # fmt: skip
    return ["## Loss curve", "", *_table(("step", "tokens", "loss", "held-out accuracy", "minutes"), rows), ""]


def _text(sources: Mapping[str, Any]) -> list[str]:
    """Where the text comes from, and what was taken out."""
    rows = [
        (s["name"], *(f"{s[count]:,}" for count in ("characters", "measured_characters", "held_out_characters")),
         s["origin"], s["licence"]) for s in sources["sources"]
    ]  # fmt: skip
    sets = len(sources["measured_characters_by_set"])
    return [
        "## Text", "",
        f"{sources['characters']:,} characters. Taken are training parts only. Text that shares a run of "
        f"{sources['run_length']} characters with a dev, test or evaluation part of any of "
        f"{sets} sets ({sources['runs_of_measured_text']:,} such runs) was removed: {sources['removed_characters']:,} "
        f"characters. {sources['held_out_characters']:,} characters are held out.", "",
        *_table(("source", "characters", "removed", "held out", "origin", "licence"), rows), "",
        PEOPLES_DAILY_RIGHTS, "",
    ]  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) + " |" for row in cells]
