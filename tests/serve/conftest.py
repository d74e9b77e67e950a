"""Small trained folders, and requests to the application without a network: every byte and every pause is ours."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

SMALL = ["--model", "dgcnn:1x8", "--set", "epochs=1", "--set", "bigram_dim=4"]
PLAIN = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
JSON = (b"content-type", b"application/json")
LOCAL = (b"host", b"127.0.0.1:8000")


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """Two model folders: `tag` (a segmenter) and `classify`."""
    from danlu.cli import main

    place = tmp_path_factory.mktemp("served")
    (place / "a.seg").write_text("我们 在 北京\n喜欢 数学\n" * 8, encoding="utf-8")
    (place / "a.csv").write_text("text,label\n" + "很好,好\n不好,坏\n" * 8, encoding="utf-8")
    for task, file in (("tag", "a.seg"), ("classify", "a.csv")):
        out = str(place / task)
        assert main(["train", task, "--train", str(place / file), "--out", out, *SMALL, *PLAIN]) == 0
    return place


@pytest.fixture(scope="session")
def classifier(folders):
    """The opened classifier."""
    from danlu.tasks.trained import Trained

    return Trained.load(folders / "classify", device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def tagger(folders):
    """The opened segmenter."""
    from danlu.tasks.trained import Trained

    return Trained.load(folders / "tag", device="cpu", precision="fp32")


@pytest.fixture
def make_service() -> Iterator[Callable[..., Any]]:
    """`Service` whose threads end with the test."""
    from danlu.serve.app import Service
    from danlu.serve.limits import Limits

    made = []

    def make(trained: Any, token: str | None = None, hosts: Iterable[str] | None = None, **bounds: Any) -> Any:
        made.append(Service(trained, "a-model", Limits(**bounds), token, hosts))
        return made[-1]

    yield make
    for service in made:
        service.batcher.stop()


@dataclass
class Reply:
    """What the application answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    unread: int = 0  # parts of the body that were never asked for

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Any,
    path: str = "/predict",
    body: bytes | Sequence[bytes] | Any = b"",
    *,
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = (LOCAL, JSON),
    leave: asyncio.Event | None = None,
    endless: bool = False,
) -> Reply:
    """One request. A list of bytes is a body in parts, anything else but bytes is sent as JSON.

    Args:
        app: the application.
        path: of the request.
        body: to send.
        method: of HTTP.
        headers: of the request.
        leave: the client disconnects when this is set.
        endless: the body never ends.
    """
    whole = body if isinstance(body, list) and all(isinstance(p, bytes) for p in body) else None
    parts = list(whole if whole is not None else [body if isinstance(body, bytes) else json.dumps(body).encode()])
    reply, gone = Reply(), leave or asyncio.Event()

    async def receive() -> dict[str, Any]:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts) or endless}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            reply.body += message.get("body", b"")

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": list(headers),
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip
    async with asyncio.timeout(60):
        await app(scope, receive, send)
    reply.unread = len(parts)
    return reply


@pytest.fixture
def request_() -> Callable[..., Reply]:
    """`ask` for tests that send one request after the other."""

    def sync(*arguments: Any, **options: Any) -> Reply:
        return asyncio.run(ask(*arguments, **options))

    return sync


@pytest.fixture
def ask_() -> Callable[..., Any]:
    """`ask` for tests with an event loop of their own."""
    return ask


class Slow:
    """A model whose calls wait for a gate; remembers the items of every call."""

    def __init__(self) -> None:
        import threading
        from types import SimpleNamespace

        self.gate, self.began = threading.Event(), threading.Event()
        self.calls: list[list[Any]] = []
        self.task, self.fields = SimpleNamespace(name="classify"), ("text",)

    def predict(self, items: Iterable[Any], chunk: int = 256) -> Iterator[dict[str, Any]]:
        items = list(items)
        self.calls.append(items)
        self.began.set()
        assert self.gate.wait(20)
        return iter([{"text": text, "label": text[::-1], "confidence": 1.0} for text in items])


@pytest.fixture
def slow() -> Iterator[Slow]:
    """A model that can be held."""
    model = Slow()
    yield model
    model.gate.set()
