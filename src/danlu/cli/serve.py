"""What `danlu serve` parses, checks and says; the service itself is in danlu.serve."""

import os
import sys
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError

__all__ = ["read_token", "serve_folder"]

TOKEN_VARIABLE = "DANLU_TOKEN"
SHORTEST_TOKEN = 16  # characters
NEW_TOKEN = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"


def read_token(file: Path | None) -> str | None:
    """The token of a file or of the environment; the file counts where both are there.

    Args:
        file: holds the token and nothing else; None looks into the environment.

    Returns:
        The token, or None.

    Raises:
        InputError: it cannot be read, is too short, or holds what a header cannot.
    """
    if file is not None:
        try:
            token, where = file.read_text(encoding="utf-8").strip(), f"--token-file {file}"
        except UnicodeDecodeError:
            raise InputError(f"--token-file {file} is no text; {NEW_TOKEN}") from None
    elif TOKEN_VARIABLE in os.environ:
        token, where = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if len(token) < SHORTEST_TOKEN:
        raise InputError(f"the token in {where} has {len(token)} characters, it needs {SHORTEST_TOKEN}; {NEW_TOKEN}")
    if not all("!" <= c <= "~" for c in token):
        raise InputError(f"the token in {where} holds blanks or characters beyond ASCII; {NEW_TOKEN}")
    return token


def serve_folder(
    folder: Path,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    device: str,
    precision: str,
    threads: int | None,
    **bounds: Any,
) -> None:
    """Open a folder and serve it until told to stop.

    Args:
        folder: that `danlu train` wrote.
        host: interface; one that other machines reach needs a token.
        port: 0 takes a free one.
        token_file: with the token.
        device: as in the other commands.
        precision: likewise.
        threads: of the model.
        **bounds: fields of `danlu.serve.limits.Limits`.

    Raises:
        InputError: the folder, the address or the token cannot be used.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError('the service needs FastAPI and uvicorn; install them: pip install "danlu[serve]"') from error
    from danlu.serve.app import Service
    from danlu.serve.limits import Limits
    from danlu.serve.server import Address, Server, run
    from danlu.tasks.trained import Trained

    token = read_token(token_file)
    with Address(host, port) as address:
        if token is None and not address.loopback:
            raise InputError(
                f"--host {host} lets other machines in, which needs a token: give --token-file FILE or set "
                f"{TOKEN_VARIABLE}; {NEW_TOKEN}"
            )
        trained = Trained.load(folder, device=device, precision=precision, threads=threads)
        service = Service(trained, folder.resolve().name, Limits(**bounds), token, address.names)
        service.warm_up()
        told = f"serving {service.name} (task {service.task}) on {address.url}{', with a token' * (token is not None)}"
        ended = run(Server(service, ready=lambda: print(f"{told}; Ctrl-C stops", flush=True)), address)
    sys.stderr.write("stopped\n")
    if not ended:  # a thread inside the model cannot be stopped, and would disturb the interpreter's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
