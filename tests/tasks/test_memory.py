"""Freed memory that stays: page faults of a process that allocates the same again and again, with and without."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from danlu.tasks.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults(mib):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(mib << 20, dtype=np.int8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(48)
print(sum(faults(48) for _ in range(3)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_the_second_time_costs_no_pages():
    found = {}
    for how in ("keep", "default"):
        done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, timeout=300)
        if how == "keep" and "assert keep_freed_memory()" in done.stderr:
            pytest.skip("a C library without mallopt")
        assert done.returncode == 0, done.stderr
        found[how] = int(done.stdout)
    assert found["keep"] < 100  # of 36,864 small pages
    assert found["default"] > found["keep"]
