"""Files are written whole or not at all."""

import subprocess
import sys

from danlu.data.atomic import write_whole


def test_bytes_are_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "file"
    write_whole(target, b"old")
    limited = (
        "import resource, sys; from pathlib import Path; from danlu.data.atomic import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "write_whole(Path(sys.argv[1]), bytes(1000))"
    )
    ended = subprocess.run([sys.executable, "-c", limited, str(target)], capture_output=True, text=True)
    assert ended.returncode != 0 and "File too large" in ended.stderr
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
