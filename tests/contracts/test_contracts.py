"""Every row of every room keeps every promise of its kind; a public layer or loss without a row fails."""

import importlib
import inspect

import pytest
from contract import CHECKS, Row, check_bfloat16, check_compile

ROOMS = ["math", "nn", "losses"]
ROWS = [(room, row) for room in ROOMS for row in importlib.import_module(f"rows_{room}").ROWS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("row", [r for _, r in ROWS], ids=[f"{room}.{r.name}" for room, r in ROWS])
def test_contract(row: Row, check) -> None:
    if check is check_bfloat16 and row.no_bfloat16:
        pytest.skip(row.no_bfloat16)
    if check is check_compile and row.no_compile:
        pytest.skip(row.no_compile)
    check(row)


@pytest.mark.parametrize("room", ["nn", "losses"])
def test_every_public_name_has_a_row(room: str) -> None:
    module = importlib.import_module(f"danlu.{room}")
    public = {n for n in getattr(module, "__all__", []) if callable(getattr(module, n))}
    public = {n for n in public if not inspect.isclass(getattr(module, n)) or hasattr(getattr(module, n), "forward")}
    named = {row.name.split("[")[0] for r, row in ROWS if r == room}
    assert public <= named, f"no contract row for {sorted(public - named)} in tests/contracts/rows_{room}.py"
