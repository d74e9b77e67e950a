"""What every request passes before the routes: the host it asks for, whether the service stops, the token.

Without a check of the Host header a page of another site could have its own name point to this machine and read the
answers (DNS rebinding). Answers of every kind carry headers that tell a browser to run, frame and keep nothing.
"""

import asyncio
import hmac
from collections.abc import Iterable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danlu.serve.items import Refused

__all__ = ["Guard", "problem"]

OPEN_PATHS = {"/"}  # without a token: the page, which holds nothing of the model
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """Refuses by the head of a request alone, and gives every answer its headers.

    Args:
        app: what stands behind it.
        token: that requests must carry; None asks for none.
        hosts: names that the Host header may have; None allows all.
    """

    def __init__(self, app: ASGIApp, token: str | None = None, hosts: Iterable[str] | None = None) -> None:
        self.app, self.token = app, token
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.stopping = False

    def refusal(self, scope: Scope) -> Refused | None:
        """Why a request goes no further."""
        headers = scope["headers"]
        if self.hosts is not None:
            named = [_host_name(value) for key, value in headers if key == b"host"]
            if len(named) != 1 or named[0] not in self.hosts:
                return Refused(421, f"this service answers to the names {', '.join(sorted(self.hosts))} only")
        if self.token is not None and scope["path"] not in OPEN_PATHS:
            given = [value for key, value in headers if key == b"authorization"]
            if not _same_token(given, self.token):
                message = "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
                return Refused(401, message, headers={"WWW-Authenticate": "Bearer"})
        if self.stopping:
            return _stopping()
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                named = {key.lower() for key, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in named]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refused = self.refusal(scope)
        if refused is not None:
            await problem(refused)(scope, receive, sending)
            return
        try:
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:  # the time to stop is up
            if not self.stopping or started:
                raise
            await problem(_stopping())(scope, receive, sending)


def problem(refused: Refused) -> Response:
    """The answer that tells why there is none."""
    content: dict[str, Any] = {"error": refused.message}
    if refused.item is not None:
        content["item"] = refused.item
    return JSONResponse(content, refused.status, refused.headers)


def _stopping() -> Refused:
    return Refused(503, "the service is stopping", headers={"Retry-After": "5", "Connection": "close"})


def _host_name(value: bytes) -> str:
    """The name in a Host header, without its port, in lower case."""
    text = value.decode("latin-1").strip().lower()
    name, colon, port = text.rpartition(":")
    return name if colon and not text.endswith("]") and (port.isdecimal() or not port) else text


def _same_token(given: list[bytes], token: str) -> bool:
    """Whether the one Authorization header holds the token; takes equally long wherever they differ."""
    scheme, _, value = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    same = hmac.compare_digest(value.strip(), token.encode())
    return same and scheme.lower() == b"bearer"
