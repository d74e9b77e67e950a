"""The process of the command: `danlu` and `python -m danlu`."""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from danlu.cli import main

__all__ = ["command"]


def command() -> NoReturn:
    """Run the command line of this process and end it with the code.

    A process that a signal stopped (codes above 128) ends without tearing the interpreter down: native code that was
    left halfway does not always survive it, and CPython replaces the code by a signal of its own when the interruption
    met code that was compiled from a string.
    """
    code = main()
    if code > 128:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody reads any more
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    command()
