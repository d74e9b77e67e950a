"""The house stands: imports point down, the library floors stay quiet and light, nothing turns in a circle."""

import ast
import os
import subprocess
import sys

import pytest
from house import FLOORS, LIBRARY, SRC, import_targets, modules, on_floors, room_of, walk_imports

LIGHT = {"danlu", "torch", "numpy", "safetensors", "tokenizers", *sys.stdlib_module_names}
LOUD = {
    *("argparse", "optparse", "getopt", "fileinput", "pprint"),  # words with the user
    *("urllib.request", "http.client", "ftplib", "smtplib", "socket", "ssl", "urllib3", "requests", "httpx", "pooch"),
    *("huggingface_hub", "tqdm", "webbrowser", "torch.hub"),
}
ONLY_CLI = {"typer", "rich", "click"}
LOUD_CALLS = {"print", "input", "breakpoint", "exit", "quit"}
LOUD_ATTRIBUTES = {"sys.stdout", "sys.stderr", "sys.argv", "sys.exit", "os.system", "torch.hub"}
GLOBAL_SWITCHES = {
    *("torch.manual_seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.set_default_dtype"),
    *("torch.set_default_device", "torch.set_num_threads", "torch.set_num_interop_threads", "torch.seed"),
    *("torch.use_deterministic_algorithms", "torch.set_float32_matmul_precision", "torch.set_printoptions"),
    *("torch.autograd.set_detect_anomaly", "random.seed", "np.random.seed", "numpy.random.seed"),
}
NAMELESS = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}


def package_of(target: str, allowed: set[str]) -> bool:
    """Whether a dotted name is one of the allowed names or stands below one."""
    parts = target.split(".")
    return any(".".join(parts[: i + 1]) in allowed for i in range(len(parts)))


def is_kernel(part: str) -> bool:
    """Whether one part of a dotted name is that of an optional compiled twin, `_<method>_kernel`."""
    return part.startswith("_") and part.endswith("_kernel")


def faults(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a file does that its floor forbids; each line says where, what and what to do instead."""
    room = room_of(module)
    floor = FLOORS[room] if room else None
    tree = ast.parse(source)
    found = []
    for node, top in walk_imports(tree):
        for target in import_targets(node, module, is_package):
            where = f"{module}:{node.lineno} imports {target}"
            other = room_of(target)
            if target.split(".")[0] == "danlu":
                if floor is None:
                    if module == "danlu" or other != "cli":
                        found.append(f"{where}; the package itself loads rooms lazily, __main__ only calls cli")
                elif other is not None and other != room and FLOORS[other] >= floor:
                    found.append(f"{where}; {room} is on floor {floor}, {other} on {FLOORS[other]}: sink it")
                elif other is None and target not in {"danlu", "danlu.__version__"}:
                    found.append(f"{where}; there is no such room")
                if top and any(is_kernel(part) for part in target.split(".")):
                    found.append(f"{where}; kernels are optional: import inside the function that uses it")
                continue
            if floor is not None and floor < FLOORS["cli"] and package_of(target, ONLY_CLI):
                found.append(f"{where}; only cli draws on the terminal")
            if floor is None or floor > LIBRARY:
                continue
            if package_of(target, LOUD):
                found.append(f"{where}; floors 0 to {LIBRARY} do not talk, parse options or download")
            light = LIGHT | {"numba"} if is_kernel(module.split(".")[-1]) else LIGHT
            if top and target.split(".")[0] not in light:
                found.append(f"{where}; import it inside the function that uses it and name the extra to install")
    if floor is not None and floor <= LIBRARY:
        for node in ast.walk(tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in LOUD_CALLS:
                found.append(f"{module}:{node.lineno} calls {called}; return it, the command line shows it")
            elif called in GLOBAL_SWITCHES:
                found.append(f"{module}:{node.lineno} calls {called}; take generator=, change nothing global")
            elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)) in LOUD_ATTRIBUTES:
                found.append(f"{module}:{node.lineno} uses {name}; the library does not touch the terminal")
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Closed walks of a directed graph, each met once, as the names along it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for other in sorted(edges.get(name, ())):
                visit(other, [*trail, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def edges_of(module: str, source: str, is_package: bool, known: set[str]) -> set[str]:
    """The modules of the package that are loaded by name when this one is imported."""
    found = set()
    for node, top in walk_imports(ast.parse(source)):
        for target in import_targets(node, module, is_package) if top else ():
            while target and target not in known:
                target = target.rpartition(".")[0]
            found |= {target} - {"", "danlu"}
    return found


def fresh(code: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new interpreter, from outside the checkout's root."""
    command = [sys.executable, *options, "-c", code, *arguments]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=SRC, env=env, timeout=300)


ALL = modules()
CLI = SRC / "danlu" / "cli" / "__init__.py"
needs_cli = pytest.mark.skipif(not CLI.read_text(encoding="utf-8").strip(), reason="danlu.cli is still empty")


@pytest.mark.parametrize("module", ALL)
def test_file_keeps_to_its_floor(module):
    path = ALL[module]
    assert faults(module, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


def test_every_file_stands_in_a_room_and_has_a_noun_for_a_name():
    assert [m for m in ALL if room_of(m) is None and m not in {"danlu", "danlu.__main__"}] == []
    assert [m for m, path in ALL.items() if path.name in NAMELESS] == []


def test_every_room_of_the_plan_exists():
    assert {room for room in FLOORS if not (SRC / "danlu" / room / "__init__.py").exists()} == set()


def test_imports_do_not_turn_in_a_circle():
    known = set(ALL)
    graph = {m: edges_of(m, p.read_text(encoding="utf-8"), p.name == "__init__.py", known) for m, p in ALL.items()}
    assert circles(graph) == []


IMPORT_ALL = """
import importlib, sys
import torch
before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state().tolist()
light, rest = (argument.split(",") for argument in sys.argv[1:])
class Wall:  # what a library floor may not need
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"numba", "scipy", "sklearn", "matplotlib", "jinja2", "snownlp", "accelerate", "pooch",
                                  "ray", "sentencepiece", "google_crc32c", "jieba", "seqeval", "typer", "rich"}:
            raise ImportError(f"a module on floors 0 to 2 needs {name} to be imported")
wall = Wall()
sys.meta_path.insert(0, wall)
for name in light:
    importlib.import_module(name)
sys.meta_path.remove(wall)
for name in rest:
    importlib.import_module(name)
after = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state().tolist()
assert before == after, "importing danlu changed a global setting of torch"
"""


def test_everything_imports_in_one_fresh_interpreter_and_the_library_without_extras():
    light = [m for m in on_floors(0, LIBRARY) if not is_kernel(m.split(".")[-1])]
    rest = [m for m in ALL if m not in light and m != "danlu.__main__"]
    done = fresh(IMPORT_ALL, ",".join(light), ",".join(rest))
    assert (done.returncode, done.stderr[-2000:], done.stdout) == (0, "", "")


def test_importing_danlu_loads_nothing_else():
    done = fresh("import sys, danlu; print(sorted(m for m in sys.modules if m.startswith(('danlu.', 'torch'))))")
    assert done.stdout.strip() == "[]", done.stderr


@needs_cli
def test_the_command_line_is_imported_without_torch():
    done = fresh("import sys, danlu.cli; print([m for m in ('torch', 'numpy', 'accelerate') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@needs_cli
@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("list", "recipes")], ids=" ".join)
def test_help_and_list_do_not_import_torch(arguments):
    done = fresh("from danlu.cli import main; raise SystemExit(main())", *arguments, options=("-X", "importtime"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "danlu.cli" in loaded  # the trace is there
    assert loaded & {"torch", "numpy", "accelerate", "scipy"} == set()


# The tests above are only as good as the rules they call: a file that breaks a rule must be caught.


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("danlu.math.gelu", "from danlu.nn.crf import CRF", "math is on floor 0, nn on 1"),
        ("danlu.math.gelu", "from danlu import nn", "math is on floor 0, nn on 1"),
        ("danlu.math.gelu", "from ..nn import crf", "math is on floor 0, nn on 1"),
        ("danlu.nn.crf", "import danlu.losses.flat_nce", "nn is on floor 1, losses on 1"),
        ("danlu.nn.crf", "def f():\n    from danlu.tasks import fit", "nn is on floor 1, tasks on 3"),
        ("danlu.nn.crf", "from typing import *\nif TYPE_CHECKING:\n    import danlu.optim.ema", "optim on 1"),
        ("danlu.text.heads", "from danlu.probe import lipschitz", "text is on floor 2, probe on 2"),
        ("danlu.serve.app", "from danlu.recipes.memm import run", "serve is on floor 4, recipes on 4"),
        ("danlu.nn.crf", "from danlu.kitchen import knife", "no such room"),
        ("danlu", "from danlu.nn import CRF", "loads rooms lazily"),
        ("danlu.nn.crf", "import numba", "name the extra"),
        ("danlu.nn.crf", "try:\n    import scipy.special\nexcept ImportError:\n    pass", "name the extra"),
        ("danlu.nn.crf", "from danlu.nn._crf_kernel import nll", "kernels are optional"),
        ("danlu.gallery.page", "import jinja2", "name the extra"),
        ("danlu.data.rows", "def f():\n    from urllib.request import urlopen", "do not talk"),
        ("danlu.data.rows", "import argparse", "do not talk"),
        ("danlu.data.rows", "def f():\n    import pooch", "do not talk"),
        ("danlu.tasks.fit", "def f():\n    from rich.table import Table", "only cli draws"),
        ("danlu.nn.crf", "def f(x):\n    print(x)", "calls print"),
        ("danlu.nn.crf", "import sys\nsys.stderr.write('x')", "uses sys.stderr"),
        ("danlu.nn.crf", "import torch\ndef f():\n    torch.manual_seed(0)", "calls torch.manual_seed"),
    ],
)
def test_a_fault_is_caught(module, source, message):
    found = faults(module, source)
    assert len(found) >= 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("danlu.nn.crf", "import math\nimport torch\nfrom danlu.math.semiring import scan\nfrom .memm import MEMM"),
        ("danlu.nn.crf", "def f():\n    import numba\n    from danlu.nn._crf_kernel import nll"),
        ("danlu.nn._crf_kernel", "import numba\nimport numpy as np"),
        ("danlu.nn.crf", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import scipy"),
        ("danlu.nn.crf", '"""print(1), import scipy"""\ndef f(printer):\n    return printer(1)'),
        ("danlu.tasks.fit", "import accelerate\nfrom danlu.text.heads import Tagger\nprint('done')"),
        ("danlu.recipes.memm", "from danlu.tasks.fit import fit\nfrom danlu import nn, __version__"),
        ("danlu.cli.train", "import rich\nimport typer"),
        ("danlu.__main__", "from danlu.cli import main"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert faults(module, source) == []


def test_relative_imports_are_resolved_from_files_and_from_packages():
    statement = ast.parse("from .crf import CRF").body[0]
    assert isinstance(statement, ast.ImportFrom)
    assert import_targets(statement, "danlu.nn.memm", False) == ["danlu.nn.crf.CRF"]
    assert import_targets(statement, "danlu.nn", True) == ["danlu.nn.crf.CRF"]


def test_a_circle_is_caught():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    known = {"danlu.nn", "danlu.nn.a", "danlu.nn.b"}
    assert edges_of("danlu.nn.a", "from danlu.nn import b, Thing", False, known) == {"danlu.nn.b", "danlu.nn"}
    assert edges_of("danlu.nn.a", "def f():\n    from danlu.nn import b", False, known) == set()
