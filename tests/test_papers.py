"""The papers around the code agree with each other: versions, pins, licence files, and make says what it lacks."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from house import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import danlu

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
}
needs_make = pytest.mark.skipif(shutil.which("make") is None or sys.platform == "win32", reason="needs make")


def required(extra: str | None) -> dict[str, Requirement]:
    """Requirements of the core or of an extra, extras of danlu itself followed."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        if requirement.name == "danlu":
            for inner in requirement.extras:
                found |= required(inner)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def test_one_version_everywhere():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    told = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert cited is not None
    assert {PROJECT["version"], cited[1], told[0]} == {danlu.__version__}


def test_every_licence_file_that_the_package_names_is_there():
    assert [name for name in [*PROJECT["license-files"], PROJECT["readme"]] if not (ROOT / name).is_file()] == []
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")
    assert PROJECT["license"] == re.search(r"^license: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)[1]


@pytest.mark.parametrize("extra", [None, "demo", "test"])
def test_pins_satisfy_what_is_required(extra):
    wanted = required(extra)
    assert sorted(set(wanted) - set(PINS)) == []
    assert [str(r) for name, r in wanted.items() if not r.specifier.contains(PINS[name], prereleases=True)] == []


def test_extras_of_danlu_exist_and_test_contains_demo():
    assert set(required("demo")) <= set(required("test"))
    extras = PROJECT["optional-dependencies"]
    for requirement in (Requirement(line) for lines in extras.values() for line in lines):
        assert requirement.name != "danlu" or requirement.extras <= set(extras)


def test_the_core_needs_only_what_the_design_allows():
    assert set(required(None)) == {"torch", "numpy", "safetensors", "tokenizers", "typer", "rich"}


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the project's Makefile in a folder that has nothing else."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    outer = {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "TEST_ARGS", "DEMO_ARGS", "PIP_ARGS", "PYTHON"}
    env = {key: value for key, value in os.environ.items() if key not in outer}  # of a `make test` that runs this
    return subprocess.run(["make", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def script(path: Path, body: str) -> str:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@needs_make
def test_make_names_a_python_that_is_too_old(tmp_path):
    says = "import sys; sys.version_info = (3, {0}, 9); sys.version = '3.{0}.9 (made up)'; exec(sys.argv[1])"
    old = script(tmp_path / "python3.10", f"""exec '{sys.executable}' -c "{says.format(10)}" "$2" """)
    new = script(tmp_path / "python3.11", f"""exec '{sys.executable}' -c "{says.format(11)}" "$2" """)
    done = make(tmp_path, "test", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"needs Python 3.11 or newer; tried {old} (3.10.9)" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()
    assert "making .venv" in make(tmp_path, "venv", f"PYTHON={new}").stdout


@needs_make
def test_make_names_a_python_that_is_missing(tmp_path):
    done = make(tmp_path, "demo", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "tried no-such-python (not found)" in done.stderr


@needs_make
def test_make_says_how_to_get_a_missing_venv_module(tmp_path):
    bare = script(tmp_path / "python3", 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    done = make(tmp_path, "test", f"PYTHON={bare}")
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr


@needs_make
def test_make_installs_once_and_again_when_the_pins_change(tmp_path):
    folder = tmp_path / "with blank"
    folder.mkdir()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "folder").write_text(f"{folder.resolve()}\n", encoding="utf-8")
    calls = folder / "calls"
    script(folder / ".venv" / "bin" / "python", f'[ "$1" = -c ] || echo "$*" >> "{calls}"')  # stands in for pip

    def called(*words: str) -> list[str]:
        calls.write_text("", encoding="utf-8")
        done = make(folder, *words)
        assert done.returncode == 0, done.stderr
        return calls.read_text(encoding="utf-8").splitlines()

    demo = "-m pip install -c constraints.txt -e .[demo]"
    test = "-m pip install -c constraints.txt -e .[test]"
    assert called("-j2", "demo", "DEMO_ARGS=--out x") == [demo, "-m danlu demo --out x"]
    assert called("demo") == ["-m danlu demo"]
    assert called("-j2", "test", "demo", "TEST_ARGS=-x") == [test, "-m pytest -x", "-m danlu demo"]
    (folder / ".venv" / "installed").write_text("0 0\ntest\ndemo\n", encoding="utf-8")  # of other pins
    assert called("test", "PIP_ARGS=-q") == [test.replace("install", "install -q"), "-m pytest"]
    assert called("test", "demo") == ["-m pytest", "-m danlu demo"]  # test contains demo


@needs_make
def test_make_clean_leaves_sources_alone(tmp_path):
    kept = tmp_path / "src" / "danlu" / "math.py"
    gone = [tmp_path / "src" / "danlu" / "__pycache__" / "math.pyc", tmp_path / ".venv" / "folder"]
    for path in (kept, *gone, tmp_path / "tests" / "x.py", tmp_path / "benchmarks" / "x.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    assert make(tmp_path, "clean").returncode == 0
    assert kept.exists()
    assert not any(path.exists() for path in gone)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_ci_script_is_valid_and_executable():
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
