"""The process around the application: the address, slow and idle connections, an orderly end."""

import asyncio
import errno
import ipaddress
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from danlu.data.errors import InputError
from danlu.serve.app import Service
from danlu.serve.limits import Limits

__all__ = ["Address", "Server", "is_loopback", "run"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAX_HEAD = 16_384  # bytes of request line and headers


class Address:
    """A bound socket that does not listen yet: until the model is loaded a connection is refused, not left waiting.

    Args:
        host: name or number of an interface of this machine.
        port: 0 takes a free one.

    Raises:
        InputError: no such interface, or the port is taken or not allowed.
    """

    def __init__(self, host: str, port: int) -> None:
        family, place = _resolve(host, port)
        self.host = host
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind(place)
        except OSError as error:
            self.socket.close()
            raise _unusable(error, host, port) from None
        self.number, self.port = self.socket.getsockname()[:2]

    def __enter__(self) -> "Address":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine reach it."""
        return is_loopback(self.number)

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://{_bracketed(self.number)}:{self.port}"

    @property
    def names(self) -> set[str] | None:
        """What a Host header may say: names of this machine on loopback, anything (None) elsewhere."""
        if not self.loopback:
            return None
        return {"localhost", "127.0.0.1", "[::1]", _bracketed(self.host), _bracketed(self.number)}


def is_loopback(host: str) -> bool:
    """Whether a host is this machine only; a name counts as what it resolves to.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    return ipaddress.ip_address(_resolve(host, 0)[1][0].partition("%")[0]).is_loopback


class Server(uvicorn.Server):
    """Tells when it is ready; when it stops, work that outlasts the grace time is given up.

    Args:
        service: the application.
        ready: called when connections are taken.
    """

    def __init__(self, service: Service, ready: Callable[[], None] = lambda: None) -> None:
        limits = service.limits
        config = uvicorn.Config(
            service, loop="asyncio", http=_protocol(limits), ws="none", lifespan="off", workers=1, access_log=False,
            log_config=None, log_level=logging.ERROR, proxy_headers=False, server_header=False, backlog=128,
            timeout_keep_alive=5, timeout_graceful_shutdown=math.ceil(limits.grace) + 2,
            h11_max_incomplete_event_size=MAX_HEAD,
        )  # fmt: skip
        super().__init__(config)
        self.service, self.ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.guard.stopping = True
        asyncio.get_running_loop().call_later(self.service.limits.grace, self.service.batcher.stop)
        await super().shutdown(sockets)


def run(server: Server, address: Address) -> bool:
    """Serve until SIGINT or SIGTERM, then finish what is in hand and close.

    Args:
        server: with its application.
        address: where to listen.

    Returns:
        Whether everything has ended; False while a last batch is still in the model after its time.

    Raises:
        InputError: another program has taken the port meanwhile.
    """
    try:
        with _signals(server):
            server.run(sockets=[address.socket])
    except OSError as error:
        raise _unusable(error, address.host, address.port) from None
    finally:
        server.service.batcher.stop()
    return server.service.batcher.join(1.0)


@contextmanager
def _signals(server: uvicorn.Server) -> Iterator[None]:
    """A request to stop is no failure: uvicorn raises the signal again when it has stopped, and here it ends."""
    if threading.current_thread() is not threading.main_thread():  # others cannot take signals
        yield
        return

    def stop(*_: Any) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _protocol(limits: Limits) -> type[H11Protocol]:
    """HTTP/1.1 with patience: uvicorn itself waits for ever for the rest of a request."""

    class Patient(H11Protocol):
        timer: asyncio.TimerHandle | None = None
        awaited: str | None = None  # "head" of a request, or the "rest" of one that is answered already

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.abort()
                return
            self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.expect(None)

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(limits.patience, self.transport.abort)  # where the client does not read its answer

        def watch(self) -> None:
            """Start the clock when something of the client is awaited, stop it when it has come."""
            state = self.conn.their_state
            answered = self.cycle is not None and self.cycle.response_complete
            self.expect("head" if state is h11.IDLE else "rest" if state is h11.SEND_BODY and answered else None)

        def expect(self, awaited: str | None) -> None:
            if awaited == self.awaited:
                return
            if self.timer is not None:
                self.timer.cancel()
            self.awaited = awaited
            self.timer = None if awaited is None else self.loop.call_later(limits.patience, self.transport.abort)

    return Patient


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family and place of a host, the first that the system names."""
    if not host:
        raise InputError("--host is empty, which would mean every interface; give 127.0.0.1, or 0.0.0.0 for all")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host {host} is no name or number of this machine; 127.0.0.1 is the usual one") from None
    return found[0][0], found[0][4]  # type: ignore[return-value]


def _unusable(error: OSError, host: str, port: int) -> Exception:
    """Why an address cannot be used, in one line."""
    if error.errno == errno.EADDRINUSE:
        return InputError(f"port {port} of {host} is taken; give another --port (0 takes a free one)")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"port {port} needs the rights of the administrator; give a --port of 1024 or more")
    if error.errno == errno.EADDRNOTAVAIL:
        return InputError(f"--host {host} is no interface of this machine; 127.0.0.1 is the usual one")
    return error


def _bracketed(host: str) -> str:
    """A number of IPv6 as it stands in an address."""
    return f"[{host}]" if ":" in host else host
