"""The process on real sockets: slow and idle clients, too many of them, addresses, an orderly end."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
from danlu.data.errors import InputError
from danlu.serve.server import Address, Server, is_loopback, run

JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def running(service: Any) -> Iterator[tuple[str, int]]:
    """The service in a thread of its own; (host, port)."""
    ready, ended = threading.Event(), []
    with Address("127.0.0.1", 0) as address:
        server = Server(service, ready.set)
        thread = threading.Thread(target=lambda: ended.append(run(server, address)))
        thread.start()
        try:
            assert ready.wait(20)
            yield "127.0.0.1", address.port
        finally:
            server.should_exit = True
            thread.join(20)
    assert ended == [True]


def post(place: tuple[str, int], body: Any, **more: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*place, timeout=20)
    connection.request("POST", "/predict", body if isinstance(body, bytes) else json.dumps(body), {**JSON, **more})
    return connection.getresponse()


def closed(client: socket.socket, seconds: float) -> bytes | None:
    """What the server still sends until it closes; None when it does not within this time."""
    client.settimeout(seconds)
    got = b""
    try:
        while part := client.recv(65536):
            got += part
    except TimeoutError:
        return None
    except ConnectionResetError:
        pass
    return got


@pytest.fixture
def place(make_service, classifier):
    """A running service with little patience."""
    with running(make_service(classifier, patience=0.3, concurrency=2, hosts={"127.0.0.1"})) as place:
        yield place


def test_requests_follow_one_another_on_one_connection(place):
    connection = http.client.HTTPConnection(*place, timeout=20)
    for text in ("很好", "不好"):
        connection.request("POST", "/predict", json.dumps({"text": text}), JSON)
        reply = connection.getresponse()
        assert reply.status == 200 and json.load(reply)["predictions"][0]["text"] == text
        assert reply.getheader("server") is None


@pytest.mark.parametrize("sent", [b"", b"POST /pre", b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(place, sent):
    with socket.create_connection(place) as client:
        client.sendall(sent)
        assert closed(client, 5) == b""


def test_drop_by_drop_is_no_faster(place):
    """Each byte comes soon enough, all of them do not."""
    begin = time.monotonic()
    with socket.create_connection(place) as client, contextlib.suppress(ConnectionError):
        while time.monotonic() - begin < 8:
            client.sendall(b"G")
            time.sleep(0.02)
    assert 0.25 < time.monotonic() - begin < 8


def test_a_body_that_does_not_come_is_answered_and_closed(place):
    with socket.create_connection(place) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
        client.sendall(b'Content-Length: 100\r\n\r\n{"text"')
        assert (closed(client, 5) or b"").startswith(b"HTTP/1.1 408 ")


def test_a_body_that_never_ends_is_cut_off(place):
    """413 comes at the bound; what is sent after it is thrown away for a moment and then the connection."""
    begin, sent = time.monotonic(), 0
    with socket.create_connection(place) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begin < 10:
                client.sendall(chunk)
                sent += 65536
                if sent == 2 << 20:
                    assert client.recv(12) == b"HTTP/1.1 413"
        assert sent >= 2 << 20
    assert time.monotonic() - begin < 8


def test_a_client_that_sends_all_before_it_reads_gets_its_413(place):
    reply = post(place, b" " * (8 << 20))
    assert reply.status == 413 and "longer than 1,048,576 bytes" in json.load(reply)["error"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 20_000, b"400"),
        (b"GET /" + b"a" * 20_000, b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"421"),
        (b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
    ],
    ids=range(9),
)
def test_what_is_no_request(place, sent, status):
    with socket.create_connection(place) as client:
        client.sendall(sent)
        client.settimeout(10)
        assert client.recv(12) == b"HTTP/1.1 " + status


def test_an_upgrade_is_not_taken(place):
    connection = http.client.HTTPConnection(*place, timeout=20)
    connection.request("GET", "/health", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
    assert connection.getresponse().status == 200


def test_connections_beyond_the_bound_are_closed_unread(make_service, classifier):
    service = make_service(classifier, patience=20.0, concurrency=1)
    with running(service) as place, contextlib.ExitStack() as stack:
        most = service.limits.max_connections
        held = [stack.enter_context(socket.create_connection(place)) for _ in range(most)]
        more = [stack.enter_context(socket.create_connection(place)) for _ in range(3)]
        assert [closed(client, 5) for client in more] == [b""] * 3
        held.pop().close()
        assert post_when_free(place) == 200


def post_when_free(place):
    """The status of a request, tried until a place is free."""
    for _ in range(100):
        with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
            return post(place, {"text": "好"}).status
        time.sleep(0.05)
    return None


def test_who_hangs_up_is_not_worked_for(make_service, slow):
    service = make_service(slow, max_batch=1, max_wait=0)
    body = b'{"text": "x"}'
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
    with running(service) as place:
        first, second = socket.create_connection(place), socket.create_connection(place)
        first.sendall(head + body)
        assert slow.began.wait(20)
        second.sendall(head + body)
        wait_for(lambda: service.batcher.waiting() == 1)
        second.close()
        wait_for(lambda: service.batcher.waiting() == 0)
        slow.gate.set()
        assert first.recv(12) == b"HTTP/1.1 200"
        first.close()
    assert slow.calls == [["x"]]


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about within 10 s")


@pytest.mark.slow
def test_who_does_not_read_the_answer_is_cut_off(make_service, slow):
    slow.gate.set()
    slow.predict = lambda items, chunk: [{"text": "x" * (64 << 20)} for _ in items]
    with running(make_service(slow, patience=0.5)) as place, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(place)
        body = b'{"text": "x"}'
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: 13\r\n\r\n" + body)
        time.sleep(8)  # 5 s idle, then its patience
        got = closed(client, 5)
        assert got is not None and len(got) < 64 << 20


# The end


def test_what_outlasts_the_grace_time_is_given_up(make_service, slow):
    service = make_service(slow, grace=0.3, max_batch=1)
    ready, replies, ended = threading.Event(), [], []
    with Address("127.0.0.1", 0) as address:
        server = Server(service, ready.set)
        thread = threading.Thread(target=lambda: ended.append(run(server, address)))
        thread.start()
        assert ready.wait(20)
        place = "127.0.0.1", address.port
        clients = [threading.Thread(target=lambda: replies.append(post(place, {"text": "x"}))) for _ in range(2)]
        for client in clients:
            client.start()
        wait_for(lambda: service.in_flight == 2)
        server.should_exit = True
        for waiting in [*clients, thread]:
            waiting.join(20)
    assert [reply.status for reply in replies] == [503, 503]
    assert json.load(replies[0])["error"] == "the service stopped before this was read"  # told, not cut off
    assert service.guard.stopping and not service.health().ready
    assert ended == [False]  # the model is still held


@contextlib.contextmanager
def process(folder, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen, tuple[str, int]]]:
    """`danlu serve` as a process of its own."""
    command = [sys.executable, "-m", "danlu", "serve", str(folder), "--port", "0", "--threads", "1", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        line = child.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line + child.stderr.read()
        yield child, ("127.0.0.1", int(found[1]))
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_requests_finish_and_ends_with_0(folders, number):
    with process(folders / "classify", "--max-wait", "1500") as (child, place):
        replies = []
        client = threading.Thread(target=lambda: replies.append(post(place, {"text": "很好"})))
        client.start()
        wait_for(lambda: health(place)["waiting"] == 1)
        child.send_signal(number)
        wait_for(lambda: refused(place))
        assert client.is_alive()  # it is still waiting for company
        client.join(20)
        assert replies[0].status == 200 and json.load(replies[0])["predictions"][0]["text"] == "很好"
        out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (0, "", "stopped\n")


def health(place):
    connection = http.client.HTTPConnection(*place, timeout=20)
    connection.request("GET", "/health")
    return json.load(connection.getresponse())


def refused(place):
    try:
        socket.create_connection(place, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


# Addresses


def test_nothing_listens_before_the_model_is_there():
    with Address("localhost", 0) as address:
        assert refused(("127.0.0.1", address.port))
        assert address.url == f"http://127.0.0.1:{address.port}" and address.loopback
        assert address.names == {"localhost", "127.0.0.1", "[::1]"}


def test_all_interfaces_are_not_loopback():
    with Address("0.0.0.0", 0) as address:
        assert not address.loopback and address.names is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
        ("192.0.2.1", False), ("10.0.0.1", False), ("::ffff:192.0.2.1", False), ("2001:db8::1", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host, expected):
    assert is_loopback(host) == expected


def test_a_taken_port_is_told():
    with Address("127.0.0.1", 0) as first:
        first.socket.listen()
        with pytest.raises(InputError, match=rf"port {first.port} of 127\.0\.0\.1 is taken; give another --port"):
            Address("127.0.0.1", first.port)


def test_a_port_taken_while_the_model_was_loaded_is_told(make_service, classifier):
    with Address("127.0.0.1", 0) as first, Address("127.0.0.1", first.port) as second:
        second.socket.listen()
        with pytest.raises(InputError, match=rf"port {first.port} of 127\.0\.0\.1 is taken"):
            run(Server(make_service(classifier)), first)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", "--host is empty"),
        ("no such host", "is no name or number"),
        ("192.0.2.1", "is no interface"),
        ("a" * 99, "no"),
    ],
)
def test_a_host_that_is_not_ours_is_told(host, words, monkeypatch):
    resolve = socket.getaddrinfo

    def offline(name, *rest, **more):  # no questions to a name server
        if re.fullmatch(r"[a-z ]+", name):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return resolve(name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(InputError, match=words):
        Address(host, 0)
