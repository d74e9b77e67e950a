"""Engines: what a command gets, how its end is told, how many run at a time, who dies with whom."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu.tasks.engines import LocalEngine, Work, get_engine, processor_name


def python(code: str, **options) -> Work:
    return Work([sys.executable, "-S", "-c", code], **options)


def test_exit_code_output_environment_and_folder(tmp_path):
    works = [
        python("import sys; print('out'); sys.stderr.write('last line'); sys.exit(3)"),
        python(
            "import os; print(os.environ['DANLU_TEST'], os.getcwd())", env={"DANLU_TEST": "七"}, folder=str(tmp_path)
        ),
        python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        python("print('x' * 100_000, 'end')"),
        python("import os; assert 'HOME' in os.environ or 'PATH' in os.environ; print(len(input()))"),
    ]
    ended = dict(LocalEngine(2).run(works))
    assert [ended[i].code for i in range(5)] == [3, 0, -signal.SIGKILL, 0, 1]
    assert ended[0].tail.split() == ["out", "last", "line"] and ended[1].tail.split() == ["七", str(tmp_path.resolve())]
    assert len(ended[3].tail) == 4000 and ended[3].tail.endswith("end\n")
    assert "EOFError" in ended[4].tail  # standard input is empty: nothing can wait for an answer
    assert all(0 < e.seconds < 60 and e.processor == processor_name() for e in ended.values())


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_than_jobs_at_a_time_in_their_order(tmp_path, jobs):
    code = (
        "import os, sys, time; open(sys.argv[1] + '/' + sys.argv[2], 'w').close();"
        "time.sleep(0.15); print(len(os.listdir(sys.argv[1]))); os.remove(sys.argv[1] + '/' + sys.argv[2])"
    )
    works = [Work([sys.executable, "-S", "-c", code, str(tmp_path), str(i)]) for i in range(5)]
    ended = list(LocalEngine(jobs).run(works))
    together = [int(end.tail) for _, end in ended]
    assert sorted(i for i, _ in ended) == list(range(5)) and max(together) <= jobs
    if jobs == 1:
        assert [i for i, _ in ended] == list(range(5))
    else:
        assert max(together) > 1


def written(path: Path) -> int:
    end = time.monotonic() + 30
    while time.monotonic() < end and (not path.exists() or not path.read_text()):
        time.sleep(0.02)
    return int(path.read_text())


def gone(pid: int) -> bool:
    for _ in range(250):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_closing_kills_what_runs_and_its_children(tmp_path):
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); child.wait()"
    )
    running = LocalEngine(2).run([python("pass"), python(code)])
    assert next(running)[0] == 0
    pid = written(tmp_path / "pid")
    start = time.monotonic()
    running.close()
    assert gone(pid) and time.monotonic() - start < 30  # killed, not waited for


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
def test_commands_die_with_a_killed_engine(tmp_path):
    path = str(tmp_path / "pid")
    code = f"import os, time; open({path!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    engine = (
        "import sys; from danlu.tasks.engines import LocalEngine, Work\n"
        f"list(LocalEngine().run([Work([sys.executable, '-S', '-c', {code!r}])]))"
    )
    process = subprocess.Popen([sys.executable, "-c", engine])
    pid = written(Path(path))
    process.kill()
    process.wait()
    assert gone(pid)


def test_messages(monkeypatch):
    with pytest.raises(ValueError, match="jobs must be >= 1, got 0"):
        LocalEngine(0)
    with pytest.raises(ValueError, match=r"'local' .processes of this machine. or 'ray', got 'slurm'"):
        get_engine("slurm")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "danlu\[ray\]"'):
        get_engine("ray")
