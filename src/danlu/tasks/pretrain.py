"""Pretraining on plain text, from files to a HuggingFace folder; the loop is in `danlu.tasks.pretrain_loop`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from danlu import __version__
from danlu.data.atomic import write_whole
from danlu.data.corpus import TokenCorpus
from danlu.data.errors import InputError
from danlu.tasks.device import accelerator, choose, machine
from danlu.tasks.folder import check_target, locked, partial_of, publish, read_json, write_json
from danlu.tasks.pretrain_loop import log_lines, train
from danlu.tasks.pretrain_metrics import measured
from danlu.tasks.pretrain_spec import (
    CHANGEABLE,
    PretrainSettings,
    PretrainSpec,
    check_new_end,
    fresh_model,
    model_config,
)
from danlu.tasks.pretraining_text import build_vocab, prepare, read_documents
from danlu.tasks.trained import Trained
from danlu.text import Tokenizer, load_vocab, save_hf

__all__ = ["pretrain"]
MARK = "metrics.json"  # written last
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Tell = Callable[[dict[str, Any]], None]


def pretrain(
    spec: PretrainSpec, out: Path, *, resume: bool = False, overwrite: bool = False, command: str = "",
    on_event: Tell = lambda event: None,
) -> dict[str, Any]:  # fmt: skip
    """Pretrain a model and write it as a HuggingFace folder with metrics.json and log.jsonl.

    Args:
        spec: the run.
        out: folder to write; the work stands in OUT.partial until the end.
        resume: go on with an unfinished run.
        overwrite: replace an earlier result.
        command: for the record.
        on_event: is told of progress.

    Returns:
        metrics.json.

    Raises:
        InputError: something of the spec cannot be used, or does not fit the run to be resumed.
        WorkError: the loss is not finite, or the run was told to stop (its state is saved).
    """
    check_target(out, mark=MARK, overwrite=overwrite, resume=resume)
    model_config(spec, 10)  # a misspelt model is told before any text is read
    device, precision = choose(spec.device, spec.precision)
    engine = accelerator(device, precision, spec.threads)
    if engine.num_processes > 1:
        raise InputError("danlu pretrain runs in one process; start it without accelerate launch")
    with locked(out):
        work = partial_of(out)
        if overwrite:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        position = _position(work)
        _keep_spec(spec, work, position)
        tokenizer = _tokenizer(spec, work, on_event)
        corpora = _corpora(spec, work, tokenizer, on_event)
        model = fresh_model(spec, tokenizer.vocab_size).to(engine.device)
        result = train(spec, model, corpora, tokenizer, engine, work, on_event)
        metrics = measured(spec, model, corpora, tokenizer, engine, result)
        metrics |= {"command": command, "danlu": __version__, "machine": machine(device, precision)}
        final = work / "final"
        shutil.rmtree(final, ignore_errors=True)
        save_hf(model, final, dtype=DTYPES[spec.store], vocab=work / "tokenizer")
        for name in ("sources.json",):
            if (work / "text" / name).exists():
                shutil.copyfile(work / "text" / name, final / name)
        write_whole(final / "log.jsonl", log_lines(result))
        write_json(final / MARK, metrics)
        publish(final, out)
        shutil.rmtree(work, ignore_errors=True)
    return metrics


def _position(work: Path) -> int:
    """The step of the newest state."""
    return max((int(path.name[5:]) for path in (work / "state").glob("step-*")), default=0)


def _keep_spec(spec: PretrainSpec, work: Path, position: int) -> None:
    """Store the spec of a new run; compare that of one to be resumed with the old one."""
    path, now = work / "spec.json", json.loads(json.dumps(asdict(spec)))
    if path.exists():
        old = read_json(path)
        free = ("threads", "store", "device", "precision")
        changed = [k for k in now if k not in (*free, "settings") and now[k] != old.get(k)]
        changed += [k for k in now["settings"] if k not in CHANGEABLE and now["settings"][k] != old["settings"][k]]
        if changed:
            was = old.get(changed[0], old["settings"].get(changed[0]))
            raise InputError(
                f"--resume: {', '.join(changed)} changed since the run began ({changed[0]} was {was!r}); only threads, "
                f"store and the settings {', '.join(CHANGEABLE)} may; --overwrite starts again"
            )
        earlier = PretrainSettings(**old["settings"])
        if (earlier.steps, earlier.decay) != (spec.settings.steps, spec.settings.decay):
            check_new_end(earlier, spec.settings, position)
    write_json(path, now)


def _tokenizer(spec: PretrainSpec, work: Path, on_event: Tell) -> Tokenizer:
    """The tokenizer of the run, built once."""
    folder = work / "tokenizer"
    if folder.exists():
        return Tokenizer.load(folder)
    if spec.vocab is not None:
        vocab = load_vocab(spec.vocab)
    else:
        on_event({"event": "phase", "text": "counting characters"})
        vocab = build_vocab(read_documents(_files(spec, work, on_event)), spec.vocab_size)
    try:
        tokenizer = Tokenizer(vocab)
    except ValueError as error:
        raise InputError(f"--vocab {spec.vocab}: {error}") from None
    if spec.kind == "mlm" and tokenizer.mask_id is None:
        raise InputError(f"--vocab {spec.vocab} has no [MASK], which mlm needs; add it, or leave --vocab out")
    partial = work / "tokenizer.writing"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tokenizer.save(partial)
    partial.rename(folder)
    return tokenizer


def _files(spec: PretrainSpec, work: Path, on_event: Tell) -> list[str]:
    """The files of --text; standard input and named text are written into the work folder first."""
    paths = []
    for path in spec.text:
        if path == "-":
            kept = work / "standard-input.txt"
            if not kept.exists():
                write_whole(kept, "".join(f"{line}\n" for line in read_documents(["-"])).encode())
            paths.append(str(kept))
        elif path == "mini-zh" and not Path(path).exists():
            from danlu.tasks.open_text import assemble

            if not (work / "text" / "sources.json").exists():
                assemble(work / "text", on_event=on_event)
            paths.append(str(work / "text" / "train.txt"))
        else:
            paths.append(path)
    return paths


def _corpora(spec: PretrainSpec, work: Path, tokenizer: Tokenizer, on_event: Tell) -> dict[str, TokenCorpus]:
    """The corpora "train" and, if there is one, "dev", built once."""
    dev = list(spec.dev)
    found: dict[str, TokenCorpus] = {}
    segmenter: Trained | None = None
    for role in ("train", "dev"):
        folder = work / f"{role}-corpus"
        if not folder.exists():
            paths = _files(spec, work, on_event) if role == "train" else dev
            held_out = work / "text" / "held_out.txt"
            if role == "dev" and not paths and held_out.exists():
                paths = [str(held_out)]
            if not paths:
                continue
            if spec.segmenter is not None and spec.kind == "mlm" and segmenter is None:
                segmenter = Trained.load(spec.segmenter, spec.device, spec.precision, spec.threads)
                if segmenter.stored.get("task") != "tag":
                    raise InputError(f"--segmenter {spec.segmenter} is a model of {segmenter.stored.get('task')}; "
                                     "give one of `danlu train tag`")  # fmt: skip
            on_event({"event": "phase", "text": f"numbering the {role} text"})
            prepare(paths, folder, tokenizer, segmenter, on_event)
        found[role] = TokenCorpus(folder)
        about = found[role].header
        on_event({"event": "phase", "text": f"{role}: {about['documents']:,} documents, {about['tokens']:,} tokens, "
                  f"{about['words']:,} words"})  # fmt: skip
    return found
