"""The application: tasks on the user's own files, the one loop, ablation, the demo."""

import difflib
import importlib
from pathlib import Path
from typing import Any

__all__ = ["get_task", "task_names"]


def task_names() -> list[str]:
    """Names of the tasks: the files of this folder that define a class `Task`."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if "\nclass Task:" in path.read_text(encoding="utf-8")
    )


def get_task(name: str) -> Any:
    """The task of that name.

    Args:
        name: one of `task_names()`.

    Returns:
        An instance of the task's class.

    Raises:
        InputError: no such task.
    """
    if name not in task_names():
        from danlu.data.errors import InputError

        near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no task {name!r}{hint}; there are {', '.join(task_names())}")
    return importlib.import_module(f"danlu.tasks.{name}").Task()
