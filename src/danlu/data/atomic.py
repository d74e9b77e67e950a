"""Files written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, sync it and rename it; on failure the temporary file goes.

    Args:
        path: of the file; what stood there stays until the new file is complete.
        content: all of it.

    Raises:
        OSError: the folder cannot be written.

    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "a.txt"
    >>> write_whole(path, b"danlu")
    >>> path.read_bytes(), [p.name for p in path.parent.iterdir()]
    (b'danlu', ['a.txt'])
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
