"""`danlu serve`: options reach the service, a mistake is one line and exit code 2, no token no open door."""

import socket
import sys

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
from danlu.cli import main
from danlu.serve import server
from danlu.serve.limits import Limits

TOKEN = "a-token-of-some-length"
SMALL = ["--model", "dgcnn:1x8", "--set", "epochs=1", "--set", "bigram_dim=4", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A small trained classifier."""
    place = tmp_path_factory.mktemp("served")
    (place / "a.csv").write_text("text,label\n" + "很好,好\n不好,坏\n" * 8, encoding="utf-8")
    assert main(["train", "classify", "--train", str(place / "a.csv"), "--out", str(place / "model"), *SMALL]) == 0
    return place / "model"


@pytest.fixture
def started(monkeypatch):
    """What would be served: `danlu serve` returns where it would begin to listen."""
    monkeypatch.delenv("DANLU_TOKEN", raising=False)
    seen = []

    def run(made, address):
        seen.append((made, address.host, address.port, address.names))
        made.ready()
        made.service.batcher.stop()
        return made.service.batcher.join(20)

    monkeypatch.setattr(server, "run", run)
    return seen


def serve(*arguments):
    return main(["serve", *map(str, arguments)])


def one_line(capsys, code, message):
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.err.count("\n") == 1 and captured.err.startswith("danlu: "), captured.err
    assert message in captured.err and captured.out == ""


def test_defaults(model, started, capsys):
    assert serve(model, "--port", 0) == 0
    ((made, host, port, names),) = started
    service = made.service
    assert (service.limits, service.name, service.task, service.with_token) == (Limits(), "model", "classify", False)
    assert host == "127.0.0.1" and service.guard.hosts == names == {"localhost", "127.0.0.1", "[::1]"}
    assert service.trained.precision == "fp32" and service.batcher.batches == 1  # warmed up
    captured = capsys.readouterr()
    assert captured.out == f"serving model (task classify) on http://127.0.0.1:{port}; Ctrl-C stops\n"
    assert captured.err == "stopped\n"


def test_every_option_reaches_the_service(model, started, tmp_path, capsys):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    code = serve(
        model, "--port", 0, "--host", "0.0.0.0", "--token-file", tmp_path / "token", "--max-body", 1000,
        "--max-items", 7, "--max-text", 50, "--max-batch", 3, "--max-wait", 20, "--concurrency", 5, "--timeout", 1.5,
        "--precision", "bf16",
    )  # fmt: skip
    assert code == 0
    ((made, host, _, names),) = started
    expected = Limits(
        max_body=1000, max_items=7, max_text=50, max_batch=3, max_wait=0.02, concurrency=5, timeout=1.5
    )  # fmt: skip
    assert (made.service.limits, made.service.guard.token, host, names) == (expected, TOKEN, "0.0.0.0", None)
    assert (made.service.batcher.max_batch, made.service.batcher.max_wait) == (3, 0.02)
    assert made.service.trained.precision == "bf16"
    assert ", with a token; Ctrl-C" in capsys.readouterr().out


def test_a_model_that_does_not_come_back_is_not_waited_for(model, started, monkeypatch, capsys):
    """The thread cannot be stopped; leaving by the usual way would wait for it or crash in it."""
    left = []
    monkeypatch.setattr(server, "run", lambda made, address: made.service.batcher.stop() is not None)
    monkeypatch.setattr("os._exit", left.append)
    assert serve(model, "--port", 0) == 0
    assert left == [0] and capsys.readouterr().err == "stopped\n"


def test_the_token_of_the_environment_counts_behind_that_of_a_file(model, started, tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_TOKEN", TOKEN)
    assert serve(model, "--port", 0) == 0
    (tmp_path / "token").write_text("another-token-of-some-length")
    assert serve(model, "--port", 0, "--token-file", tmp_path / "token") == 0
    assert [made.service.guard.token for made, *_ in started] == [TOKEN, "another-token-of-some-length"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_token(model, started, capsys, host):
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    one_line(
        capsys, serve(model, "--host", host, "--port", 0), "needs a token: give --token-file FILE or set DANLU_TOKEN"
    )
    assert started == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "token"), (b"", "has 0 characters, it needs 16"), (b"short", "has 5 characters"),
        (b"two words of some length", "blanks"), ("令牌".encode() * 20, "beyond ASCII"), (b"\xff" * 20, "is no text"),
    ],
)  # fmt: skip
def test_a_token_that_is_none(model, started, tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    one_line(capsys, serve(model, "--token-file", tmp_path / "token"), words)
    assert started == []


def test_an_empty_variable_is_not_taken_for_no_token(model, started, capsys, monkeypatch):
    monkeypatch.setenv("DANLU_TOKEN", "")
    one_line(capsys, serve(model), "the token in DANLU_TOKEN has 0 characters")


def test_a_folder_that_is_none(started, tmp_path, capsys):
    one_line(capsys, serve(tmp_path / "none", "--port", 0), "no folder")
    one_line(capsys, serve(tmp_path, "--port", 0), "has no task.json")
    assert started == []


def test_a_taken_port(model, started, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one_line(capsys, serve(model, "--port", port), f"port {port} of 127.0.0.1 is taken; give another --port")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", 65536), ("--port", -1), ("--max-body", 0), ("--max-items", 0), ("--max-text", 0), ("--max-batch", 0),
        ("--max-wait", -1), ("--concurrency", 0), ("--timeout", 0), ("--timeout", "x"), ("--threads", 0),
        ("--hots", "x"),
    ],
)  # fmt: skip
def test_an_option_out_of_bounds(model, started, capsys, option, value):
    one_line(capsys, serve(model, option, value), option)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(model, started, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    one_line(capsys, serve(model, "--port", 0), 'pip install "danlu[serve]"')
