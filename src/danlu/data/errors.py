"""The two kinds of failure told in one line: the user's input (exit code 2) and the work itself (exit code 1)."""

import errno

__all__ = ["InputError", "WorkError", "explain"]


class InputError(ValueError):
    """Something the user gave cannot be used: what was given, what is allowed, how to mend it."""

    exit_code = 2


class WorkError(RuntimeError):
    """The input was fine but the work failed (a loss that is not finite, a full disk): what happened, what is left."""

    exit_code = 1


def explain(error: BaseException) -> tuple[str, int] | None:
    """One line and an exit code for a failure that a person can mend; None for a fault of the program.

    Args:
        error: what was raised.

    Returns:
        (message, 1 or 2), or None.

    >>> explain(InputError("epsilon must be > 0"))
    ('epsilon must be > 0', 2)
    >>> explain(KeyError("x")) is None
    True
    """
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return " ".join(str(error).split()), code
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return (
                f"{where}no room to write ({error.strerror}); free some space, then --resume goes on; "
                "earlier results are untouched",
                1,
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{where}not allowed ({error.strerror}); mend its permissions or name another place", 2
        return f"{where}{error.strerror}", 2 if error.errno in (
            errno.ENOENT,
            errno.EISDIR,
            errno.ENOTDIR,
            errno.ENAMETOOLONG,
        ) else 1
    if isinstance(error, ImportError) and "danlu[" in str(error):
        return " ".join(str(error).split()), 2
    if isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error):
        return "out of memory; lower --set batch_size or --set max_len", 1
    return None
