"""What every test may rely on: the data folder if there is one, no network beyond this machine, one seed."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window that logs what its pages ask for; skips where it is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium; install the extra test")
    from selenium.webdriver.chrome.service import Service

    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver_binary = shutil.which("chromedriver")
    if not (binary and driver_binary):
        pytest.skip("needs chromium and chromedriver on the PATH (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "disable-default-apps",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_binary))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def visit(browser: Any) -> Callable[[str, int, str], None]:
    """visit(url, width, theme) opens a page with empty logs, in a window of that width, "light" or "dark"."""

    def open_page(url: str, width: int, theme: str) -> None:
        browser.get_log("browser"), browser.get_log("performance")
        media = {"media": "", "features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(url)

    return open_page
