"""What `danlu list` and `danlu show` know: names and docstrings, read from the source files without running them."""

import ast
import difflib
import inspect
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["copy_recipe", "listed", "run_benchmark", "shown"]
SOURCE = Path(__file__).resolve().parent.parent
ROOMS = ("math", "nn", "losses", "optim", "train", "text", "generative", "probe")


class UnknownNameError(ValueError):
    """A name that nothing here has; the message gives the nearest ones."""

    exit_code = 2


@dataclass(frozen=True)
class Entry:
    """One thing with a name."""

    kind: str
    name: str
    claim: str  # first sentence
    doc: str
    file: Path
    extra: dict[str, str]


def entries(what: str) -> list[Entry]:
    """All entries of one kind, sorted by room and name."""
    if what == "methods":
        return [entry for room in ROOMS for entry in _methods(room)]
    if what == "tricks":
        return _tricks()
    if what == "tasks":
        return [
            _module("task", path)
            for path in sorted((SOURCE / "tasks").glob("*.py"))
            if "\nclass Task:" in path.read_text(encoding="utf-8")
        ]
    if what == "recipes":
        return [
            _module("recipe", path)
            for path in sorted((SOURCE / "recipes").glob("*.py"))
            if not path.name.startswith("_")
        ]
    raise ValueError(what)


def listed(what: str) -> list[dict[str, str]]:
    """Rows for a table: name, what it does, and what else is worth a column."""
    if what == "data":
        from danlu.tasks.datasets import list_sets

        return [{k: str(row[k]) for k in ("name", "task", "language", "licence", "found")} for row in list_sets()]
    return [
        {
            "name": e.name,
            **({"room": e.extra["room"]} if "room" in e.extra else {}),
            "what": e.claim,
            **{k: v for k, v in e.extra.items() if k in ("cost", "tasks")},
        }
        for e in entries(what)
    ]


def shown(name: str) -> dict[str, str]:
    """Name, kind, file and whole documentation of one name; unknown ones give the nearest."""
    found = [
        e
        for what in ("methods", "tricks", "recipes", "tasks")
        for e in entries(what)
        if e.name == name or e.name.lower() == name.lower()
    ]
    if found:
        return {
            "name": name,
            "doc": "\n\n".join(f"{e.kind} {e.name} ({e.extra.get('import', e.file.name)})\n\n{e.doc}" for e in found),
        }
    from danlu.tasks.datasets import list_sets

    for row in list_sets():
        if row["name"] == name:
            return {"name": name, "doc": "\n".join(f"{key}: {value}" for key, value in row.items())}
    names = [e.name for what in ("methods", "tricks", "recipes", "tasks") for e in entries(what)]
    raise UnknownNameError(
        f"nothing is called {name!r}{_near(name, names)}; "
        "`danlu list methods|recipes|tricks|tasks|data` shows the names"
    )


def copy_recipe(name: str, path: Path) -> Path:
    """Copy a recipe's file to `path`, which must not exist."""
    source = recipe_file(name)
    target = path / source.name if path.is_dir() else path
    if target.exists():
        raise UnknownNameError(f"{target} exists already; nothing was written; give another path")
    if not target.parent.exists():
        raise UnknownNameError(f"no folder {target.parent} to write into; make it first")
    shutil.copyfile(source, target)
    return target


def recipe_file(name: str) -> Path:
    """The file of a recipe."""
    files = {e.name: e.file for e in entries("recipes")}
    if name not in files:
        raise UnknownNameError(f"no recipe {name!r}{_near(name, list(files))}; there are {', '.join(files)}")
    return files[name]


def run_benchmark(name: str | None) -> int:
    """Run benchmarks/NAME.py of the checkout; without a name list them."""
    folder = SOURCE.parent.parent / "benchmarks"
    if not folder.is_dir():
        raise UnknownNameError(
            "benchmarks live in a checkout of the repository, and danlu runs from elsewhere; clone it and run there"
        )
    files = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")}
    if name is None:
        for stem, path in files.items():
            print(f"{stem:20} {(ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').splitlines()[0]}")
        return 0
    if name not in files:
        raise UnknownNameError(f"no benchmark {name!r}{_near(name, list(files))}; there are {', '.join(files)}")
    return subprocess.call([sys.executable, str(files[name])])


def _methods(room: str) -> list[Entry]:
    """Public classes and functions of a room: the names its __init__ exports, found where they are defined."""
    init = SOURCE / room / "__init__.py"
    found = []
    trees: dict[Path, ast.Module] = {}
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        path = SOURCE.parent / (node.module.replace(".", "/") + ".py")
        if not path.exists():
            continue
        tree = trees.setdefault(path, ast.parse(path.read_text(encoding="utf-8")))
        names = {alias.name for alias in node.names}
        for part in tree.body:
            if isinstance(part, ast.ClassDef | ast.FunctionDef) and part.name in names:
                own = ast.get_docstring(part) or ""
                whole = own + "\n\n" + (ast.get_docstring(tree) or "")
                found.append(
                    Entry(
                        "method",
                        part.name,
                        _first(own),
                        whole,
                        path,
                        {"room": room, "import": f"from danlu.{room} import {part.name}"},
                    )
                )
    return sorted(found, key=lambda e: e.name.lower())


def _tricks() -> list[Entry]:
    path = SOURCE / "tasks" / "tricks.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = next(
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
    )
    found = []
    for part in tree.body:
        if isinstance(part, ast.FunctionDef) and part.name in names:
            doc = ast.get_docstring(part) or ""
            card = {
                line.split(maxsplit=1)[0].lower(): line.split(maxsplit=1)[1]
                for line in doc.splitlines()[1:]
                if len(line.split(maxsplit=1)) == 2
            }
            value = f":{ast.literal_eval(part.args.defaults[0])}" if part.args.defaults else ""
            found.append(Entry("trick", part.name, _first(doc), f"--with {part.name}{value}\n{doc}", path, card))
    return sorted(found, key=lambda e: e.name)


def _module(kind: str, path: Path) -> Entry:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return Entry(kind, path.stem, _first(doc), inspect.cleandoc(doc), path, {})


def _first(doc: str) -> str:
    """First sentence, on one line."""
    paragraph = doc.strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def _near(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
