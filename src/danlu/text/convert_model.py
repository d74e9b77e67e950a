r"""A model of one library as a folder of another: HuggingFace, TensorFlow or ONNX, all or nothing.

    hf      config.json, model.safetensors                                          `save_hf`                  (1)
    tf      bert_config.json, bert_model.ckpt.index, .data-00000-of-00001           `save_tf`                  (2)
    onnx    model.onnx                                                              `export_onnx`              (3)

The files of the tokenizer go along. With a simplified vocabulary the rows that no text reaches are left out of the
model, and vocab.txt is written anew; tokenizer.json, which holds the old one, stays behind. The folder is made under
another name beside its own and renamed at the end; replacing one keeps its files that are of no model.

Source: the three writers.
Shapes: none.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danlu.data.errors import InputError, WorkError
from danlu.text.load_model import Model, load_model, model_kind
from danlu.text.load_report import LoadReport
from danlu.text.load_tf import save_tf
from danlu.text.onnx_export import export_onnx, need_onnx
from danlu.text.save_hf import TOKENIZER_FILES, WEIGHTS, save_hf
from danlu.text.vocabulary import load_vocab, save_vocab

__all__ = ["Conversion", "convert_model"]

FORMATS = ("hf", "tf", "onnx")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CKPT = "bert_model.ckpt"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_VALUES = re.compile(  # files that make a folder a model: these exact names, since others may be the user's
    rf"{WEIGHTS.pattern}|bert_model\.ckpt\.(?:index|data-\d{{5}}-of-\d{{5}})|model\.onnx(?:\.data)?"
)
_DESCRIBING = {"config.json", "bert_config.json", "bert_model.ckpt.meta", "checkpoint", *TOKENIZER_FILES}
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Args:
        written: the files.
        report: what was read from where.
        notes: remarks in words, such as rows of the token table without a token.
    """

    written: tuple[Path, ...]
    report: LoadReport
    notes: tuple[str, ...]


def convert_model(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    vocab: str | Path | None = None,
    simplify: bool = False,
    dtype: str = "fp32",
    overwrite: bool = False,
    **options: Any,
) -> Conversion:
    """Open a model of any kind and write it as another.

    Args:
        source: as of `load_model`.
        target: the folder to make, whose parent must exist; for "onnx" a name that ends in .onnx means that file alone.
        to: "hf", "tf" or "onnx".
        vocab: vocab.txt or another tokenizer file; None: those beside the model.
        simplify: leave out what `simplify_vocab` calls redundant, from vocab.txt and from the token table.
        dtype: of the stored weights, "fp32", "bf16" or "fp16"; ONNX takes "fp32".
        overwrite: replace a model that stands there.
        **options: as of `load_model`.

    Returns:
        `Conversion`.

    Raises:
        InputError: source is no model, target cannot be written or exists, vocabulary and model do not belong together.
        WorkError: there is no room to write; what stood at the target is as it was.
        LoadError: weights do not fit the model.

    >>> import tempfile
    >>> from danlu.text.config import TransformerConfig
    >>> from danlu.text.transformer import build_transformer
    >>> with tempfile.TemporaryDirectory() as place:
    ...     save_hf(build_transformer(TransformerConfig("bert", 2, 4, 1, 2, 8)), f"{place}/a", vocab={"a": 0, "b": 1})
    ...     done = convert_model(f"{place}/a", f"{place}/b", "tf")
    >>> [path.name for path in done.written][-2:]
    ['bert_model.ckpt.index', 'vocab.txt']
    """
    if to not in FORMATS:
        raise InputError(f"a model is written as {', '.join(FORMATS)}; got {to!r}")
    if dtype not in DTYPES or (to == "onnx" and dtype != "fp32"):
        allowed = "fp32; ONNX Runtime's own tools make smaller files of it" if to == "onnx" else ", ".join(DTYPES)
        raise InputError(f"the type of the weights is {dtype}; {to} takes {allowed}")
    for given in (source, target):
        if not str(given):
            raise InputError("the empty name is no path; give the model and the folder to make")
    source, target = Path(os.path.abspath(source)), Path(os.path.abspath(target))
    model_kind(source)  # refuses what is no model
    single = to == "onnx" and target.suffix == ".onnx"
    _check_target(source, target, single, overwrite)
    if target.is_symlink():
        target = Path(os.path.realpath(target))  # the folder that is meant is replaced, and the link stays
    if single and (vocab is not None or simplify):
        raise InputError(
            f"{target.name} means that file alone; to write a vocabulary beside it give the name of a folder"
        )
    carried = [] if single else _carried(source, vocab)
    tokens, smaller = _simpler(carried, source) if simplify else (None, None)
    if tokens is not None:
        options = {**options, "keep_tokens": tokens}
    if to == "onnx":
        need_onnx()
    workspace = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        workspace.mkdir()  # first, so that a place that cannot be written to costs no loading
        model = _opened(source, options)
        report: LoadReport = model.load_report  # type: ignore[assignment]
        made, name = workspace / "model", target.name if single else "model.onnx"
        if to == "hf":
            save_hf(model, made, dtype=DTYPES[dtype])
        else:
            made.mkdir()
            if to == "tf":
                save_tf(model, made / _CKPT, dtype=DTYPES[dtype])
            else:
                export_onnx(model, made / name)
        rows = _rows(report)
        notes = [] if single else _fitting(carried, rows, exact=smaller is not None)
        if smaller is not None:
            save_vocab(made / "vocab.txt", smaller)
            notes.append(f"vocabulary simplified: {len(smaller)} of {rows} tokens")
        else:
            for path, as_name in carried:
                shutil.copyfile(path, made / as_name)
        names = sorted(path.name for path in made.iterdir())
        _publish(made, target, names, single)
    except InputError:
        raise
    except ValueError as error:  # a writer's refusal of this model
        raise InputError(f"{source} cannot be written as {to}: {error}") from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        left = "what stood there is as it was" if target.exists() else "nothing was written"
        raise WorkError(f"{target}: no room to write ({error.strerror}); free some space; {left}") from None
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        if target.exists():  # the new folder, or the old one again
            shutil.rmtree(_aside(target), ignore_errors=True)
    folder = target.parent if single else target
    return Conversion(tuple(folder / name for name in names), report, tuple(notes))


def _opened(source: Path, options: dict[str, Any]) -> Model:
    """The model; what a loader says of a wrong option or size is the user's input here."""
    try:
        return load_model(source, **options)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def _check_target(source: Path, target: Path, single: bool, overwrite: bool) -> None:
    """Refuse a target that would harm something, before anything is read."""
    real, place = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if place == real or place in real.parents or real in place.parents:
        where = (
            "is the model itself"
            if place == real
            else f"lies around the model, {source}"
            if place in real.parents
            else f"lies inside the model, {source}"
        )
        raise InputError(f"{target} {where}; give a folder beside it")
    here = Path(os.path.realpath(os.curdir))
    if not single and (place == here or place in here.parents):
        raise InputError(f"{target} is the current folder or around it and is not replaced; give a folder inside it")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is no folder; make it first")
    if single and target.is_dir():
        raise InputError(f"{target} is a folder; a name that ends in .onnx means a file, take another")
    if not single and target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; give the name of a folder to make")
    if target.is_symlink() and not place.parent.is_dir():
        raise InputError(f"{target} is a link to {place}, and there is no folder {place.parent}; make it first")
    if target.is_symlink() and not place.exists() and not overwrite:
        raise InputError(
            f"{target} is a link to {place}, which does not exist; --overwrite (overwrite=True) makes it, or remove "
            "the link"
        )
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{target} exists; --overwrite (overwrite=True) replaces its model, or give another name")
    if not single and any(target.iterdir()) and not any(_VALUES.fullmatch(name) for name in os.listdir(target)):
        raise InputError(f"{target} holds other files and no model, so it is not replaced; give another name")


def _carried(source: Path, vocab: str | Path | None) -> list[tuple[Path, str]]:
    """Files of the tokenizer, and the names they get."""
    if vocab is not None:
        path = Path(vocab)
        if not path.is_file():
            raise InputError(f"{path} is no file; give vocab.txt, spiece.model or tokenizer.json")
        usual = {".txt": "vocab.txt", ".model": "spiece.model", ".json": "tokenizer.json"}.get(path.suffix, "vocab.txt")
        name = path.name if path.name in TOKENIZER_FILES else usual
        _check_kind(path, name)
        return [(path, name)]
    folder = source if source.is_dir() else source.parent
    return [(folder / name, name) for name in TOKENIZER_FILES if (folder / name).is_file()]


def _check_kind(path: Path, name: str) -> None:
    """Refuse a file given as the vocabulary that is of another kind inside than its name says."""
    data = path.read_bytes()
    if name.endswith(".model"):
        if not data.startswith(b"\n"):  # the first field of SentencePiece's message
            raise InputError(f"{path} is no model of SentencePiece; give spiece.model, vocab.txt or tokenizer.json")
        return
    try:
        held = json.loads(data)
    except (ValueError, RecursionError):
        held = None
    if name == "tokenizer.json" and not (isinstance(held, dict) and isinstance(held.get("model"), dict)):
        raise InputError(
            f'{path} is no tokenizer.json, a JSON object with a "model" in it; give vocab.txt, or tokenizer.json itself'
        )
    if name == "vocab.json" and not (isinstance(held, dict) and all(type(value) is int for value in held.values())):
        raise InputError(f"{path} is no vocab.json, a JSON object of tokens and their ids; give vocab.txt or that")
    if name == "vocab.txt" and (isinstance(held, dict | list) or b"\0" in data):
        raise InputError(f"{path} is no vocab.txt, which has one token a line; give the vocab.txt of the model")


def _simpler(carried: Sequence[tuple[Path, str]], source: Path) -> tuple[list[int], dict[str, int]]:
    """Old ids of the tokens to keep, and the smaller vocabulary."""
    place = next((path for path, name in carried if name == "vocab.txt"), None)
    if place is None:
        raise InputError(f"there is no vocab.txt beside {source} to simplify; give it as --vocab FILE (vocab=)")
    full = load_vocab(place)
    if "[PAD]" not in full:
        raise InputError(f"{place} has no [PAD], which keeps the id of padding; it is not simplified")
    if full["[PAD]"]:
        raise InputError(f"{place} has [PAD] as {full['[PAD]']}, not 0; only vocabularies of BERT are simplified")
    smaller, tokens = load_vocab(place, simplified=True, startswith=[token for token in _SPECIAL if token in full])
    return tokens, smaller


def _rows(report: LoadReport) -> int:
    """Rows of the token table in the file, before any were left out."""
    row = next(row for row in report.rows if row.ours == "embeddings.token.weight")
    shape = row.theirs_shape or row.ours_shape
    assert shape is not None
    return shape[0]


def _fitting(carried: Sequence[tuple[Path, str]], rows: int, exact: bool) -> list[str]:
    """A refusal of a vocabulary with more ids than the table has rows, a note on one with fewer."""
    place = next((path for path, name in carried if name == "vocab.txt"), None)
    if place is None:
        return [] if carried else ["no tokenizer files are beside the model, none are written"]
    count = max(load_vocab(place).values()) + 1
    if count > rows or (exact and count < rows):
        raise InputError(
            f"{place} has {count} tokens, the model's table {rows} rows; give the vocab.txt that belongs to the model"
        )
    return [f"{place.name} has {count} tokens, the table {rows} rows; the last {rows - count} have none"] * (
        count < rows
    )


def _publish(made: Path, target: Path, names: Sequence[str], single: bool) -> None:
    """Sync and rename; what stood there is removed only afterwards, and put back if the new one cannot come."""
    for name in names:
        with (made / name).open("rb") as file:
            os.fsync(file.fileno())
    if single:
        for name in sorted(names, reverse=True):  # the weights' file, if there is one, before the one that names it
            os.replace(made / name, target.with_name(name))
        return
    old, stands = _aside(target), target.exists()
    if stands:
        for path in sorted(target.iterdir()):
            if path.is_dir() and not path.is_symlink():
                if path.name in names:
                    raise InputError(f"{path} is a folder, where a file of this name is to be written; rename it")
                shutil.copytree(path, made / path.name, symlinks=True)
            elif not _VALUES.fullmatch(path.name) and path.name not in {*_DESCRIBING, *names}:
                shutil.copy2(path, made / path.name, follow_symlinks=False)
    try:
        if stands:
            os.replace(target, old)
        os.replace(made, target)
    except BaseException:  # Ctrl-C, too
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise


def _aside(target: Path) -> Path:
    """Where a folder that is replaced stands for a moment."""
    return target.with_name(f".{target.name}.{os.getpid()}.old")
