"""What the READMEs show is true: Python runs, commands take the options shown, both languages show the same code."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from house import ROOT, SRC

READMES = ["README.md", "README.zh.md"]
PAGES = [  # whose Python runs from top to bottom, without files of its own
    f"docs/{page}.md" for page in ("train", "attention", "vectors", "probes", "equations", "generative")
]
FENCE = re.compile(
    r"^(?P<margin> *)(?P<fence>```+|~~~+)(?P<language>[\w+-]*)[^\n`]*\n(?P<code>.*?)^ *(?P=fence) *$", re.M | re.S
)
CLI = SRC / "danlu" / "cli" / "__init__.py"
WORDS_BEFORE = {"time", "env", "nohup", "then", "do", "if"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, its first line's number, whether `<!-- run -->` stands right above it."""

    language: str
    code: str
    line: int
    run: bool = False


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text."""
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        code = "\n".join(line.removeprefix(match["margin"]) for line in match["code"].splitlines())
        run = bool(re.search(r"<!--\s*run\s*-->\s*$", before))
        found.append(Block(match["language"], code + "\n", before.count("\n") + 2, run))
    return found


def readme(name: str, language: str) -> list[Block]:
    """The blocks of one language in a README of the project; none while there is no such file."""
    path = ROOT / name
    return [b for b in blocks(path.read_text(encoding="utf-8")) if b.language == language] if path.exists() else []


def without_comments(code: str) -> str:
    """Code as both READMEs must share it; what is said beside it may be in another language."""
    lines = (re.sub(r"(^|\s)#(?!!).*$", "", line).rstrip() for line in code.splitlines())
    return "\n".join(line for line in lines if line)


def run_python(code: str, name: str) -> None:
    """Run one block by itself, as a script, or as a doctest where it shows a session."""
    if ">>>" in code:
        test = doctest.DocTestParser().get_doctest(code, {"__name__": "__main__"}, name, name, 0)
        told: list[str] = []
        assert doctest.DocTestRunner(verbose=False).run(test, out=told.append).failed == 0, "".join(told)
    else:
        exec(compile(code, name, "exec"), {"__name__": "__main__"})


def commands(code: str) -> Iterator[list[str]]:
    """The words after `danlu` of every call in a shell block, wherever it stands in a pipe or a list."""
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;()<>")
        lexer.whitespace_split = True
        command: list[str] = []
        words = list(lexer)
        for i, word in enumerate([*words, ";"]):
            if set(word) <= set("|&;()"):
                if (call := danlu_call(command)) is not None:
                    yield call
                command = []
            elif set(word) <= set("<>") or (i and set(words[i - 1]) <= set("<>")):
                continue  # a redirection and its file
            else:
                command.append(word)


def danlu_call(command: list[str]) -> list[str] | None:
    """The words after `danlu` or `python -m danlu`; None for another program."""
    for i, word in enumerate(command):
        if (word, *command[i + 1 : i + 2]) == ("-m", "danlu"):  # of python, accelerate launch, torchrun
            return command[i + 2 :]
    for i, word in enumerate(command):
        if Path(word).name == "danlu":
            return command[i + 1 :]
        if word not in WORDS_BEFORE and "=" not in word:
            return None
    return None


def asked_for(call: list[str]) -> tuple[list[str], list[str]]:
    """(leading words, names of options) of a call; what follows an option may be its value."""
    leading = []
    for word in call:
        if word.startswith("-"):
            break
        leading.append(word)
    ends = call.index("--") if "--" in call else len(call)
    options = [w.split("=")[0] for w in call[:ends] if re.match(r"--[a-z]|-[A-Za-z]$", w)]
    return leading, options


@cache
def helped(*words: str) -> str:
    """What `danlu WORDS --help` prints; empty where there is no such command."""
    environment = {**os.environ, "COLUMNS": "240", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", "from danlu.cli import main; raise SystemExit(main())", *words, "--help"],
        capture_output=True, text=True, encoding="utf-8", env=environment, cwd=SRC, timeout=60,
    )  # fmt: skip
    return done.stdout if done.returncode == 0 else ""


def command_faults(call: list[str], helped=helped) -> list[str]:
    """What a call asks for that the command line does not have."""
    leading, options = asked_for(call)
    text = helped(*leading[:1])
    if not text:
        return [f"there is no `danlu {' '.join(leading[:1])}`"]
    if re.search(r"^\W*Commands\W*$|COMMAND", text, re.M) and leading[1:]:  # a group: its command has the options
        text = helped(*leading[:2])
        if not text:
            return [f"there is no `danlu {' '.join(leading[:2])}`"]
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text)) | {"--help"}
    return [f"`danlu {' '.join(leading[:1])}` has no {option}" for option in options if option not in known]


SHOWN = [(name, block) for name in READMES for block in readme(name, "bash")]
IDS = [f"{name}:{block.line}" for name, block in SHOWN]
PYTHON = readme(READMES[0], "python")


def test_both_readmes_are_there_and_show_the_same_code():
    shown = [
        [(b.language, without_comments(b.code), b.run) for b in blocks((ROOT / name).read_text(encoding="utf-8"))
         if b.language in {"python", "bash"}]
        for name in READMES
    ]  # fmt: skip
    assert shown[0]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("block", PYTHON, ids=[f"{READMES[0]}:{block.line}" for block in PYTHON])
def test_python_of_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(block.code, f"{READMES[0]}:{block.line}")


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python("\n".join(block.code for block in readme(page, "python")), page)


@pytest.mark.skipif(not CLI.read_text(encoding="utf-8").strip(), reason="danlu.cli is still empty")
@pytest.mark.parametrize(("name", "block"), SHOWN, ids=IDS)
def test_commands_of_the_readme_exist(name, block):
    assert [fault for call in commands(block.code) for fault in command_faults(call)] == []


def test_marked_commands_of_the_readme_run(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for block in readme(READMES[0], "bash"):
        if block.run:
            code = "\n".join(line.removeprefix("$ ") for line in block.code.splitlines())
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, f"line {block.line}: {done.stderr[-2000:]}"


# The tests above are only as good as what they call.

PAGE = """# Title
```python
x = 1  # one
```
text
<!-- run -->
```bash
$ danlu list  # all
```
1. in a list
   ```bash
   danlu train tag \\
     --train a.txt
   ```
~~~text
no code
~~~
"""


def test_blocks_are_found_with_language_line_and_mark():
    assert blocks(PAGE) == [
        Block("python", "x = 1  # one\n", 3),
        Block("bash", "$ danlu list  # all\n", 8, True),
        Block("bash", "danlu train tag \\\n  --train a.txt\n", 12),
        Block("text", "no code\n", 16),
    ]


def test_comments_may_differ_between_languages():
    assert without_comments("# 训练\nx = 1  # 一\n\ny = 'a#b'\n") == without_comments("x = 1\ny = 'a#b'  # two\n")
    assert without_comments("x = 1") != without_comments("x = 2")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("$ danlu list  # all of it", [["list"]]),
        ("danlu train tag \\\n   --train a.txt --set lr=1", [["train", "tag", "--train", "a.txt", "--set", "lr=1"]]),
        ("echo '你好' | danlu predict run --input - > out.txt", [["predict", "run", "--input", "-"]]),
        ("make demo && DANLU_DATA=~/x .venv/bin/danlu list;danlu demo", [["list"], ["demo"]]),
        ("python3 -m danlu demo", [["demo"]]),
        ("accelerate launch --num_processes 2 -m danlu train tag", [["train", "tag"]]),
        ("pip install danlu\npython -m pip install -e danlu", []),
    ],
)
def test_calls_are_found(code, expected):
    assert list(commands(code)) == expected


def test_options_that_do_not_exist_are_caught():
    pages = {
        (): "Usage: danlu COMMAND\nCommands:\n train\n data\n",
        ("train",): "Usage: danlu train [OPTIONS] TASK\n --train FILE\n -o, --out DIR",
        ("data",): "Usage: danlu data [OPTIONS] COMMAND [ARGS]...\nCommands:\n get\n",
        ("data", "get"): "Usage: danlu data get NAME\n --yes",
    }

    def page(*words: str) -> str:
        return pages.get(words, "")

    assert command_faults(["train", "tag", "--train", "x", "--out=y"], page) == []
    assert command_faults(["train", "tag", "--trainer", "x"], page) == ["`danlu train` has no --trainer"]
    assert command_faults(["cook", "x"], page) == ["there is no `danlu cook`"]
    assert command_faults(["data", "get", "x", "--yes"], page) == []
    assert command_faults(["data", "fetch", "x"], page) == ["there is no `danlu data fetch`"]
    assert command_faults(["data", "get", "x", "--no"], page) == ["`danlu data` has no --no"]
    assert command_faults(["--version"], page) == ["`danlu ` has no --version"]


def test_a_broken_python_block_is_caught(capsys):
    run_python("x = 1\nassert x", "page")
    run_python(">>> 1 + 1\n2\n", "page")
    with pytest.raises(ZeroDivisionError):
        run_python("1 / 0", "page")
    with pytest.raises(AssertionError, match="Got"):
        run_python(">>> 1 + 1\n3\n", "page")
