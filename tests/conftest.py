"""What every test may rely on: the data folder if there is one, no network beyond this machine, one seed."""

import os
import socket
from pathlib import Path

import pytest
import torch

LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")


@pytest.fixture
def shared() -> Path:
    """The folder that $DANLU_DATA names; skips where there is none."""
    folder = os.environ.get("DANLU_DATA")
    if not folder:
        pytest.skip("needs the data folder that $DANLU_DATA names; it is not set")
    path = Path(folder).expanduser()
    if not (path / "data" / "MANIFEST.json").exists():
        pytest.fail(f"DANLU_DATA={folder} holds no data/MANIFEST.json")
    return path.resolve()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another machine fails; loopback and unix sockets stay open."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address):  # type: ignore[no-untyped-def]
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            raise AssertionError(f"a test tried to reach {address}; tests stay on this machine")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Global seeds are the same at the start of every test, whatever the order."""
    torch.manual_seed(0)
