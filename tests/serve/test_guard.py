"""The guard: hosts, the token, stopping, and the headers of every answer."""

import asyncio

import pytest

LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}
TOKEN = "a-token-of-some-length"


def head(host=None, token=None):
    given = [] if host is None else [(b"host", host.encode())]
    return given if token is None else [*given, (b"authorization", token)]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8000"])
def test_names_of_this_machine_are_answered(make_service, classifier, request_, host):
    service = make_service(classifier, hosts=LOOPBACK)
    assert request_(service, "/health", method="GET", headers=head(host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        None, "", "evil.example", "evil.example:8000", "localhost.evil.example", "evil.example:80:localhost",
        "localhost@evil.example", "127.0.0.2", "::1", "[::1", "[::1]x", "localhost:8000:8000", "localhost:80a", "\xff",
    ],
)  # fmt: skip
def test_other_names_are_refused_on_loopback(make_service, classifier, request_, host):
    headers = [] if host is None else [(b"host", host.encode("latin-1"))]
    service = make_service(classifier, hosts=LOOPBACK)
    for path in ("/", "/health", "/predict", "/none"):
        reply = request_(service, path, method="GET", headers=headers)
        assert reply.status == 421 and "127.0.0.1" in reply.json["error"]


def test_two_host_headers_are_refused(make_service, classifier, request_):
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    service = make_service(classifier, hosts=LOOPBACK)
    assert request_(service, "/health", method="GET", headers=headers).status == 421


def test_beyond_loopback_any_name_is_answered(make_service, classifier, request_):
    service = make_service(classifier, hosts=None)
    assert request_(service, "/health", method="GET", headers=head("service.example")).status == 200


@pytest.mark.parametrize("value", [b"Bearer " + TOKEN.encode(), b"bearer   " + TOKEN.encode() + b" "])
@pytest.mark.parametrize("path", ["/health", "/openapi.json"])
def test_the_token_opens(make_service, classifier, request_, value, path):
    assert request_(make_service(classifier, TOKEN), path, method="GET", headers=head("x", value)).status == 200


@pytest.mark.parametrize(
    "value",
    [
        None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Bearer " + TOKEN.encode()[:-1],
        b"Bearer " + TOKEN.upper().encode(), b"Bearer " + TOKEN.encode() + b"x", b"Basic " + TOKEN.encode(),
        TOKEN.encode(), b"Bearer \xff\xfe",
        b"Bearer " + TOKEN.encode() + b", Bearer x",
    ],
)  # fmt: skip
def test_without_it_everything_but_the_page_is_closed(make_service, classifier, request_, value):
    service = make_service(classifier, TOKEN)
    for path in ("/health", "/openapi.json", "/predict", "/none"):
        reply = request_(service, path, method="GET", headers=head("x", value))
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert TOKEN not in reply.body.decode() and "classify" not in reply.body.decode()
    assert request_(service, "/", method="GET", headers=head("x", value)).status == 200


def test_the_token_is_asked_before_the_body_is_read(make_service, classifier, request_):
    service = make_service(classifier, TOKEN)
    reply = request_(service, body=[b"{", b"}"], headers=[(b"host", b"x"), (b"content-type", b"application/json")])
    assert (reply.status, reply.unread) == (401, 2)


def test_two_tokens_are_none(make_service, classifier, request_):
    right = (b"authorization", b"Bearer " + TOKEN.encode())
    service = make_service(classifier, TOKEN)
    assert request_(service, "/health", method="GET", headers=[(b"host", b"x"), right, right]).status == 401


def test_the_token_is_compared_in_constant_time(make_service, classifier, request_, monkeypatch):
    import hmac

    compared, real = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    request_(make_service(classifier, TOKEN), "/health", method="GET", headers=head("x", b"Bearer wrong"))
    assert compared == [(b"wrong", TOKEN.encode())]


def test_a_stopping_service_takes_nothing_new(make_service, classifier, request_):
    service = make_service(classifier)
    service.guard.stopping = True
    for path, method in (("/predict", "POST"), ("/health", "GET"), ("/", "GET")):
        reply = request_(service, path, method=method, body={"text": "好"})
        assert (reply.status, reply.headers["connection"]) == (503, "close") and "retry-after" in reply.headers


def test_what_is_still_read_when_the_time_to_stop_is_up_is_told_so(make_service, classifier, ask_):
    service = make_service(classifier)

    async def cut_off():
        task = asyncio.create_task(ask_(service, body=[b'{"text"'], endless=True))
        await asyncio.sleep(0.05)
        service.guard.stopping = True
        task.cancel()
        return await task

    reply = asyncio.run(cut_off())
    assert (reply.status, reply.headers["connection"]) == (503, "close")


@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/health"), ("POST", "/predict"), ("GET", "/none")])
def test_every_answer_tells_the_browser_to_run_and_keep_nothing(
    make_service, classifier, request_, method, path, stopping
):
    service = make_service(classifier)
    service.guard.stopping = stopping
    headers = request_(service, path, method=method).headers
    assert headers["content-security-policy"].startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")
