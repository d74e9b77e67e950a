"""How the process of the command ends: with the code it was told, whatever state a signal left it in."""

import subprocess
import sys

import pytest

# What interrupts a class that is compiled from a string (a dataclass, say) makes CPython end the process by a signal.
STOPPED = """
import atexit, sys, danlu.__main__ as process

def stopped():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        print("told")
    return int(sys.argv[1])

atexit.register(print, "cleaned up")
process.main = stopped
process.command()
"""


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_the_code_is_the_one_told(code):
    ended = subprocess.run([sys.executable, "-c", STOPPED, str(code)], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.split("\n")) == (code, ["told", "cleaned up", ""]), ended.stderr
