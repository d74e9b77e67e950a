"""Docstrings say what the code takes and where it comes from, and show true numbers; no file names our machines."""

import ast
import doctest
import importlib
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from house import FLOORS, LIBRARY, ROOT, assigned_all, modules, on_floors, room_of

ALL = modules()
DOCUMENTED = on_floors(0, 4)
METHOD_ROOMS = {"nn", "losses", "optim", "train"}  # every public file here is a method and names its source
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:(?:\s|$)")
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def documented_args(docstring: str) -> list[str] | None:
    """Names under `Args:` in order, None without that section; a line that is no entry comes back whole."""
    lines = docstring.expandtabs().splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() == "Args:"), None)
    if start is None:
        return None
    margin = len(lines[start]) - len(lines[start].lstrip())
    names: list[str] = []
    entry_margin = None
    for line in lines[start + 1 :]:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if indent <= margin:
            break
        entry_margin = indent if entry_margin is None else entry_margin
        if indent > entry_margin:
            continue  # the rest of an entry
        found = ENTRY.match(line.strip())
        names += [n.lstrip("*") for n in found[1].split(", ")] if found else [line.strip()]
    return names


def parameters(node: Documented) -> list[str] | None:
    """Names a caller can give, in order; for a class those of __init__ or of its annotated fields."""
    if isinstance(node, ast.ClassDef):
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is not None:
            return parameters(init)[1:]  # type: ignore[index]
        fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        return fields or None
    a = node.args
    several = [*([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return [argument.arg for argument in [*a.posonlyargs, *a.args, *several]]


def definitions(node: ast.Module | Documented, inside: str = "") -> Iterator[tuple[str, Documented, bool]]:
    """(qualified name, node, is a method) of everything defined below a module or class."""
    for child in node.body:
        if isinstance(child, Documented):
            yield inside + child.name, child, isinstance(node, ast.ClassDef)
        if isinstance(child, ast.ClassDef):
            yield from definitions(child, f"{inside}{child.name}.")


def raw_faults(tree: ast.Module, source: str) -> list[str]:
    """Docstrings with a backslash whose literal is not raw."""
    found = []
    for name, node in [("the module", tree), *((n, d) for n, d, _ in definitions(tree))]:
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            literal = ast.get_source_segment(source, node.body[0].value) or ""
            if isinstance(node.body[0].value.value, str) and "\\" in literal and literal[0] not in "rR":
                found.append(f'{name}: a docstring with a backslash starts with r"""')
    return found


def equation_faults(tree: ast.Module, source: str) -> list[str]:
    """Comments that cite an equation which no docstring of the file numbers."""
    nodes = [tree, *(n for n in ast.walk(tree) if isinstance(n, Documented))]
    numbers = {n for node in nodes for n in re.findall(r"\((\d+[a-z]?'?)\)", ast.get_docstring(node) or "")}
    found = []
    for row, line in enumerate(source.splitlines(), 1):
        for cited in re.findall(r"#.*?\beqs?\. ((?:\(\d+[a-z]?'?\)(?:, | and |-)?)+)(?! of)", line):
            found += [f"line {row} cites eq. ({n})" for n in re.findall(r"\((\w+'?)\)", cited) if n not in numbers]
    return found


def doc_faults(module: str, source: str) -> list[str]:
    """What a file of the package leaves undocumented or documents wrongly."""
    tree = ast.parse(source)
    room, public = room_of(module), set(assigned_all(tree))
    head = ast.get_docstring(tree) or ""
    found = raw_faults(tree, source) + equation_faults(tree, source)
    if not head.strip():
        found.append("the module has no docstring")
    private = module.split(".")[-1].startswith("_") or module.count(".") < 2
    is_method = room in METHOD_ROOMS or (room == "math" and re.search(r"\(1\)\s*$|arXiv|kexue\.fm", head, re.M))
    if is_method and not private and not re.search(r"\bSources?: ", ast.unparse(tree)):
        found.append("a method names its `Source:` in the docstring")
    for name, node, is_a_method in definitions(tree):
        text = ast.get_docstring(node, clean=False) or ""
        if name in public and not text.strip():
            found.append(f"{name} is public and has no docstring")
        expected = parameters(node)
        static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
        if is_a_method and not static and expected and not isinstance(node, ast.ClassDef):
            expected = expected[1:]
        documented = documented_args(text)
        if documented is not None and expected is not None and documented != expected:
            found.append(f"{name}: Args says {documented}, the signature {expected}")
        callable_of_library = name in public and not private and FLOORS.get(room or "", 9) <= LIBRARY
        if documented is None and expected and callable_of_library and not isinstance(node, ast.ClassDef):
            found.append(f"{name} is public and has no Args; the signature takes {expected}")
    return found


@pytest.mark.parametrize("module", DOCUMENTED)
def test_docstrings_agree_with_the_code(module):
    assert doc_faults(module, DOCUMENTED[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", [m for m in ALL if m != "danlu.__main__"])
def test_doctests_are_true(module):
    loaded = importlib.import_module(module)
    printing = dict(vars(torch._tensor_str.PRINT_OPTS))
    out = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(loaded, module):
        runner.run(test, out=out.write)
    assert runner.summarize(verbose=False).failed == 0, out.getvalue()
    assert vars(torch._tensor_str.PRINT_OPTS) == printing


@pytest.mark.parametrize("module", [m for m, path in ALL.items() if path.name == "__init__.py" or room_of(m)])
def test_public_names_exist(module):
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", [])
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert len(names) == len(set(names))


@pytest.mark.parametrize("room", [m for m, path in ALL.items() if path.name == "__init__.py"])
def test_rooms_list_their_names_in_order(room):
    names = assigned_all(ast.parse(ALL[room].read_text(encoding="utf-8")))
    by_kind = sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))  # constants, classes, functions
    assert names in (sorted(names), sorted(names, key=str.casefold), by_kind)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_test_file_says_what_it_checks(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert (ast.get_docstring(tree) or "").strip()


# What must not be in a committed file: folders of the machines we work on, the hosts packages come from.
MACHINE = re.compile(r"(?<![A-Za-z0-9_.~}\])-])/(?:" + "|".join(["work", "farm", "tmp", "root"]) + r")/")
HOSTS = re.compile("|".join([r"pypi\.org", r"python" r"hosted\.org", r"deb\.debian\.", r"registry\.npm"]))


def committed() -> list[Path]:
    """Files git knows or would take; in a plain copy, all but hidden and built ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
        files = [ROOT / name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        skip = re.compile(r"^\.(?!ci|git)|^\.git$|__pycache__|\.egg-info$|^(?:build|dist|site|danlu-demo)$")
        files = [p for p in ROOT.rglob("*") if not any(skip.search(part) for part in p.relative_to(ROOT).parts)]
    return [p for p in files if p.is_file()]


def machine_faults(text: str) -> list[str]:
    """Lines that name a folder of one machine or a package host."""
    marked = [(i, line) for i, line in enumerate(text.splitlines(), 1) if MACHINE.search(line) or HOSTS.search(line)]
    return [f"line {i}: {line.strip()[:100]}" for i, line in marked]


def test_no_file_names_a_machine_or_a_package_host():
    found = {}
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an archive
        if path.relative_to(ROOT).parts[0] != ".ci" and (faults := machine_faults(text)):
            found[path.relative_to(ROOT).as_posix()] = faults
    assert found == {}


def test_committed_files_are_found():
    assert {"pyproject.toml", "LICENSE", "tests/test_docs.py"} <= {p.relative_to(ROOT).as_posix() for p in committed()}


# The tests above are only as good as the rules they call.

GOOD = r'''
r"""Norms of a vector of N \times 1 numbers.

    n = sqrt(sum x^2)                                                                (1)

Source: kexue.fm/archives/1.
Shapes: N.
"""
__all__ = ["Norm", "norm"]

def norm(x, eps=1e-8, *, keep=False):
    """Length of x, eq. (1).

    Args:
        x: (N,) a vector;
            of any length: also none.
        eps: guard.
        keep: whether to keep the axis.

    Returns:
        Scalar.
    """
    return (x * x).sum() ** 0.5  # eq. (1)

class Norm:
    """`norm` as an object."""

    def __init__(self, eps):
        self.eps = eps
'''


def test_good_docstrings_pass():
    assert doc_faults("danlu.nn.norm", GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("eps=1e-8, *, keep", "eps=1e-8, *, axis=0, keep", "Args says ['x', 'eps', 'keep']"),
        ("        eps: guard.\n", "", "Args says ['x', 'keep']"),
        ("        eps: guard.\n", "        epsilon: guard.\n", "Args says ['x', 'epsilon', 'keep']"),
        ("        eps: guard.\n", "        eps guard.\n", "Args says ['x', 'eps guard.', 'keep']"),
        ('"""`norm` as an object."""', "x = 1", "Norm is public and has no docstring"),
        ("Source:", "From", "names its `Source:`"),
        ('r"""Norms', '"""Norms', 'starts with r"""'),
        ("# eq. (1)", "# eq. (2)", "cites eq. (2)"),
        ("    Args:", "    Arguments:", "norm is public and has no Args"),
        ('`norm` as an object."""', '`norm`.\n\n    Args:\n        keep: no.\n    """', "Norm: Args says ['keep']"),
    ],
)
def test_a_fault_is_caught(old, new, message):
    assert old in GOOD
    found = doc_faults("danlu.nn.norm", GOOD.replace(old, new))
    assert len(found) == 1
    assert message in found[0]


def test_a_missing_module_docstring_is_caught():
    assert doc_faults("danlu.text.heads", "x = 1") == ["the module has no docstring"]


def test_methods_of_a_class_count_without_self():
    source = '"""A."""\nclass A:\n  def f(self, x):\n    """F.\n\n    Args:\n        x: it.\n    """\n'
    assert doc_faults("danlu.text.heads", source) == []
    assert len(doc_faults("danlu.text.heads", source.replace("x: it", "y: it"))) == 1


@pytest.mark.parametrize("text", ["cd {}work/main", "open('{}tmp/x')", ".".join(["https://pypi", "org"])])
def test_a_machine_path_is_caught(text):
    text = text.replace("{}", "/")  # this file may not hold such a line itself
    assert machine_faults(f"\n  {text}\n") == [f"line 2: {text}"]


@pytest.mark.parametrize("text", ["see docs/tmp/x", "network/work", "a/b/root/c", "home", "the work/life"])
def test_other_paths_pass(text):
    assert machine_faults(text) == []
