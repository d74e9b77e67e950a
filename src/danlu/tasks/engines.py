"""Who runs the trials of an ablation: processes of this machine, or Ray.

An engine is given command lines and says how each ended; what a trial computes is none of its business. Every command
is a process of its own with the environment it is given, so the numbers do not depend on the engine. Closing the
iterator that `run` returns (an exception in the loop over it, Ctrl-C) kills what is still running; on Linux the
processes also die when the engine's process is killed outright.
"""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Engine", "Finished", "LocalEngine", "RayEngine", "Work", "get_engine", "processor_name"]

TAIL = 4000  # characters of a command's output that are kept
# Asks Linux to kill this process when its parent dies (PR_SET_PDEATHSIG = 1), then becomes the command.
LEASH = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() != int(sys.argv[1]): os._exit(1)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True)
class Work:
    """One command line, what it changes in the environment, and the folder it starts in."""

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    folder: str = "."


@dataclass(frozen=True)
class Finished:
    """How a command ended: exit code (below zero: the signal that killed it), end of its output, seconds, processor."""

    code: int
    tail: str
    seconds: float
    processor: str


class Engine(Protocol):
    """Runs works, at most `jobs` at a time, and yields (index, how it ended) in the order they end."""

    jobs: int
    name: str

    def run(self, works: Sequence[Work]) -> Generator[tuple[int, Finished], None, None]:
        """Start the works in their order; closing the iterator kills those that run."""
        ...


class LocalEngine:
    """Processes of this machine, `jobs` at a time."""

    name = "local"

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = _checked_jobs(jobs)

    def run(self, works: Sequence[Work]) -> Generator[tuple[int, Finished], None, None]:
        """Start the works in their order, yield (index, how it ended) as they end."""
        waiting = list(enumerate(works))[::-1]
        running: dict[int, tuple[subprocess.Popen[bytes], Path, float]] = {}
        processor = processor_name()
        with tempfile.TemporaryDirectory(prefix="danlu-") as outputs:
            try:
                while waiting or running:
                    while waiting and len(running) < self.jobs:
                        index, work = waiting.pop()
                        output = Path(outputs) / str(index)
                        with open(output, "wb") as sink:
                            process = subprocess.Popen(
                                _leashed(work.command),
                                env={**os.environ, **work.env},
                                cwd=work.folder,
                                stdin=subprocess.DEVNULL,
                                stdout=sink,
                                stderr=sink,
                                start_new_session=True,
                            )
                        running[index] = process, output, time.perf_counter()
                    ended = [index for index, (process, *_) in running.items() if process.poll() is not None]
                    for index in ended:
                        process, output, start = running.pop(index)
                        tail = output.read_bytes()[-4 * TAIL :].decode("utf-8", "replace")[-TAIL:]
                        yield index, Finished(process.returncode, tail, time.perf_counter() - start, processor)
                    if not ended:
                        time.sleep(0.02)
            finally:
                for process, *_ in running.values():
                    _kill(process)


class RayEngine:
    """Ray tasks, each of which runs one command as a process of its own on whichever node Ray picks.

    Joins the cluster that the environment variable RAY_ADDRESS names; without it starts a Ray on this machine and stops
    it at the end. The nodes of a cluster must see the same files under the same paths (data, output folder, working
    directory) and have the same Python with danlu at the same place: only command lines travel. `threads` and `gpus`
    are what Ray books for one command.
    """

    name = "ray"

    def __init__(self, jobs: int = 1, threads: int = 1, gpus: float = 0.0) -> None:
        self.jobs, self.threads, self.gpus = _checked_jobs(jobs), threads, gpus
        _import_ray()

    def run(self, works: Sequence[Work]) -> Generator[tuple[int, Finished], None, None]:
        """Submit the works in their order, yield (index, how it ended) as they end."""
        ray = _import_ray()
        own = not ray.is_initialized()
        if own:
            address = os.environ.get("RAY_ADDRESS") or "local"
            options: dict[str, Any] = {} if address != "local" else {"include_dashboard": False}
            if address == "local":
                options["num_cpus"] = max(self.jobs * self.threads, os.cpu_count() or 1)
            with _environment({"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}):
                ray.init(address=address, logging_level="ERROR", log_to_driver=False, **options)
        remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=0)(_portable_runner())
        waiting = list(enumerate(works))[::-1]
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    index, work = waiting.pop()
                    folder = os.path.abspath(work.folder)
                    running[remote.remote(list(work.command), dict(work.env), folder, TAIL, LEASH)] = index
                for reference in ray.wait(list(running), num_returns=1)[0]:
                    index = running.pop(reference)
                    try:
                        finished = Finished(*ray.get(reference))
                    except ray.exceptions.RayError as error:  # the node or its worker died
                        finished = Finished(-1, f"Ray lost the trial: {str(error).strip().splitlines()[0]}", 0.0, "")
                    yield index, finished
        finally:
            for reference in running:
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=True)
            if own:
                ray.shutdown()


def get_engine(name: str, jobs: int = 1, threads: int = 1, gpus: float = 0.0) -> Engine:
    """The engine of that name.

    Args:
        name: "local" or "ray".
        jobs: commands at a time, >= 1.
        threads: processors that one command uses; booked with Ray.
        gpus: GPUs that one command uses; booked with Ray.

    Returns:
        A `LocalEngine` or a `RayEngine`.

    Raises:
        ValueError: another name, or jobs < 1.
        ImportError: "ray" without Ray installed.
    """
    if name == "local":
        return LocalEngine(jobs)
    if name == "ray":
        return RayEngine(jobs, threads, gpus)
    raise ValueError(f"engine must be 'local' (processes of this machine) or 'ray', got {name!r}")


def processor_name() -> str:
    """The processor of this machine in the words of its maker, as far as the system tells.

    Returns:
        For example "Intel(R) Xeon(R) Platinum 8480C"; the architecture where nothing better is known.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _checked_jobs(jobs: int) -> int:
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}; 1 runs one trial after the other")
    return jobs


def _leashed(command: Sequence[str]) -> list[str]:
    """The command, on Linux behind the few lines that tie its life to ours."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", LEASH, str(os.getpid()), *command]


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process and those it started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ImportError('the engine "ray" needs Ray; install it with: pip install "danlu[ray]"') from None
    return ray


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that are not set yet, and take them back."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _portable_runner() -> Any:
    """A function that needs nothing but the standard library where it lands, so that a Ray worker starts fast."""

    def run_here(command: list[str], env: dict[str, str], folder: str, tail: int, leash: str) -> tuple[Any, ...]:
        import os
        import platform
        import subprocess
        import sys
        import time

        processor = platform.processor() or platform.machine()
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
                processor = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", leash, str(os.getpid()), *command]
        start = time.perf_counter()
        done = subprocess.run(
            command, env={**os.environ, **env}, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        text = done.stdout.decode("utf-8", "replace")[-tail:]
        return done.returncode, text, time.perf_counter() - start, processor

    return run_here
