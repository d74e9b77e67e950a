"""The command `danlu`: parse, call, show. Nothing here computes, and nothing heavy is imported before it is needed."""

import os
import re
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: words after `danlu`; None takes those of the process.

    Returns:
        0 done, 1 the work failed, 2 the user's input, 130 interrupted.
    """
    import typer

    from danlu.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character says which
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="danlu", standalone_mode=False)
        sys.stdout.flush()
        if result == 130:  # what the parser makes of Ctrl-C
            return fail("interrupted; finished work is kept, --resume goes on with it", 130)
        return result if isinstance(result, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return fail("interrupted; finished work is kept, --resume goes on with it", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say
        return 0
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own: an unknown command or option, a missing value
            context = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
                sys.stderr.write(context.get_help() + "\n")
                return 2
            where = context.command_path if context is not None else "danlu"
            return fail(f"{error.format_message().rstrip('.')} (`{where} --help` shows what it takes)", 2)
        code = getattr(error, "exit_code", None)
        if isinstance(code, int):
            return fail(str(error), code)
        from danlu.data.errors import explain  # heavy, and seldom needed

        told = explain(error)
        if told is None:
            raise
        return fail(*told)


def fail(message: str, code: int) -> int:
    """One line on stderr; returns the code."""
    message = re.sub(r"on_bad_rows='(\w+)'", r"--on-bad-rows \1", message).replace("Value error, ", "")
    sys.stderr.write(f"danlu: {' '.join(message.split())}\n")
    return code
