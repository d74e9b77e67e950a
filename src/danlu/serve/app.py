"""The application of one trained folder: /predict, /health, the page and OpenAPI, behind the guard."""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from danlu import __version__
from danlu.data.errors import InputError, explain
from danlu.serve.batcher import Batcher, Stopped
from danlu.serve.guard import Guard, problem
from danlu.serve.items import Refused, example_item, read_items, request_schema
from danlu.serve.limits import Limits
from danlu.serve.page import page, page_policy
from danlu.tasks.trained import Trained

__all__ = ["Service"]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="what was given and what is allowed")
    item: int | None = Field(default=None, description="index of the item at fault")


class Answer(BaseModel):
    """Predictions in the order of the items."""

    predictions: list[dict[str, Any]]
    model: str = Field(description="name of the model folder")
    task: str


class Health(BaseModel):
    """What is served and how busy it is."""

    ready: bool
    model: str = Field(description="name of the model folder")
    task: str
    fields: list[str] = Field(description="strings that an item has")
    version: str = Field(description="of danlu")
    waiting: int = Field(description="items that the model has not begun")
    in_flight: int = Field(description="requests worked on")
    batches: int = Field(description="calls of the model so far")
    items: int = Field(description="items in them")


PROBLEMS = {
    400: "the body is not JSON in UTF-8",
    401: "the token is missing or wrong",
    408: "the body did not arrive in time",
    413: "the body is longer than allowed",
    415: "the body is not declared as application/json",
    421: "the Host header names another machine",
    422: "the items have another form than asked for",
    429: "as many requests as allowed are worked on",
    500: "the model failed",
    503: "the service is stopping, or the memory did not suffice",
    504: "no answer within the time allowed; the request was taken out of the queue",
}


class Service:
    """The application (ASGI) of one trained folder.

    Args:
        trained: the opened folder.
        name: that answers give the model.
        limits: all bounds.
        token: that requests must carry; None asks for none.
        hosts: names that the Host header may have; None allows all.
    """

    def __init__(
        self,
        trained: Trained,
        name: str,
        limits: Limits | None = None,
        token: str | None = None,
        hosts: Iterable[str] | None = None,
    ) -> None:
        self.trained, self.name, self.limits, self.with_token = trained, name, limits or Limits(), token is not None
        self.task: str = trained.task.name
        self.fields: tuple[str, ...] = trained.fields
        self.in_flight = 0
        self.batcher = Batcher(self._run, self.limits.max_batch, self.limits.max_wait)
        self.guard = Guard(_routes(self), token, hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.guard(scope, receive, send)

    def warm_up(self) -> None:
        """Read one short item, so that a model that cannot work is told at the start and the first request is quick."""
        with contextlib.suppress(InputError):  # the item is not to this model's taste; those of the clients may be
            self.batcher.submit([self._given(dict.fromkeys(self.fields, "丹炉 danlu"))]).result()

    async def predict(self, request: Request) -> dict[str, Any] | None:
        """Read a request and wait for its predictions, the fields of `Answer`; None when the client has left."""
        _check_content_type(request.headers)
        if self.in_flight >= self.limits.concurrency:
            message = f"{self.limits.concurrency} requests are worked on, as many as allowed; come back in a moment"
            raise Refused(429, message, headers={"Retry-After": "1"})
        self.in_flight += 1
        try:
            deadline = asyncio.get_running_loop().time() + self.limits.timeout
            body = await self._read_body(request)
            items = [self._given(item) for item in read_items(body, self.fields, self.limits)]
            predictions = await self._answer(request, items, deadline)
        except ClientDisconnect:
            return None
        finally:
            self.in_flight -= 1
        return {"predictions": predictions, "model": self.name, "task": self.task}

    def health(self) -> Health:
        """What is served and how busy it is."""
        return Health(
            ready=not self.guard.stopping, model=self.name, task=self.task, fields=list(self.fields),
            version=__version__, waiting=self.batcher.waiting(), in_flight=self.in_flight,
            batches=self.batcher.batches, items=self.batcher.items,
        )  # fmt: skip

    def _given(self, item: dict[str, str]) -> Any:
        """An item as a task takes it: the text alone where there is nothing else."""
        return item["text"] if self.fields == ("text",) else item

    def _run(self, items: list[Any]) -> list[dict[str, Any]]:
        return list(self.trained.predict(items, chunk=len(items)))

    async def _read_body(self, request: Request) -> bytes:
        """The body, counted while it comes: its length may be undeclared, or declared wrongly."""
        limit, seconds = self.limits.max_body, min(self.limits.patience, self.limits.timeout)
        too_long = Refused(413, f"the body is longer than {limit:,} bytes; send fewer items at a time")
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdecimal() and int(declared[:20]) > limit:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_long
        except TimeoutError:
            late = f"the body did not arrive within {seconds:g} s"
            raise Refused(408, late, headers={"Connection": "close"}) from None
        return bytes(body)

    async def _answer(self, request: Request, items: list[Any], deadline: float) -> list[dict[str, Any]]:
        """Predictions, unless the time is up or the client leaves, which takes the items out of the queue."""
        try:
            answer = asyncio.wrap_future(self.batcher.submit(items))
        except Stopped as error:
            raise _told(error) from None
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            left = deadline - asyncio.get_running_loop().time()
            await asyncio.wait({answer, gone}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise Refused(504, f"no answer within {self.limits.timeout:g} s; send fewer items, or come back later")
        except (InputError, MemoryError, RuntimeError) as error:
            told = _told(error)
            if told is error:
                raise
            raise told from None
        finally:
            gone.cancel()
            answer.cancel()


class _Api(FastAPI):
    """Routes whose description knows of the token."""

    with_token = False

    def openapi(self) -> dict[str, Any]:
        """The description of the routes."""
        if self.openapi_schema is None:
            schema = super().openapi()
            if self.with_token:
                schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"token": []}]
        return self.openapi_schema or {}


def _routes(service: Service) -> FastAPI:
    """The application without its guard."""
    app = _Api(
        title=f"danlu: {service.name}", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        description=f"Predictions of a model for the task {service.task}, trained with danlu.",
    )  # fmt: skip
    app.with_token = service.with_token
    example = example_item(service.fields)
    body = {"application/json": {"schema": request_schema(service.fields, service.limits)}}

    def told(*statuses: int) -> dict[int | str, dict[str, Any]]:
        known = [code for code in statuses if code != 401 or service.with_token]
        return {code: {"model": Problem, "description": PROBLEMS[code]} for code in known}

    @app.post(
        "/predict",
        summary="Predictions for some items",
        description=f'Send {{"items": [{example}, ...]}}, or one item alone: {example}',
        response_model=Answer,
        responses=told(*PROBLEMS),
        openapi_extra={"requestBody": {"required": True, "content": body}},
    )
    async def predict(request: Request) -> Response:
        answer = await service.predict(request)
        if answer is None:
            return Response(status_code=400)  # nobody is there to read it
        return JSONResponse(answer)

    @app.get(
        "/health",
        summary="What is served and how busy it is",
        response_model=Health,
        responses=told(401, 421, 500, 503),
    )
    async def health() -> Response:
        return JSONResponse(service.health().model_dump())

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return HTMLResponse(page(), headers={"content-security-policy": page_policy()})

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return problem(error)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return problem(Refused(error.status_code, str(error.detail), headers=error.headers))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return problem(Refused(500, "the model failed on this request; the log of the service says why"))

    return app


def _told(error: Exception) -> Exception:
    """What a failure in the model is to the client; what is no fault of the request stays as it is."""
    if isinstance(error, Stopped):
        return Refused(503, str(error), headers={"Retry-After": "5"})
    if isinstance(error, InputError):
        return Refused(422, str(error))
    if isinstance(error, RecursionError):  # a task may read JSON inside a text
        return Refused(422, "a text is nested too deep for this task")
    if isinstance(error, MemoryError) or (explain(error) or ("", 0))[0].startswith("out of memory"):
        return Refused(503, "out of memory; send shorter texts or fewer items", headers={"Retry-After": "5"})
    return error


async def _disconnected(request: Request) -> None:
    """Returns when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_content_type(headers: Mapping[str, str]) -> None:
    """JSON in UTF-8, not packed; no browser lets a page of another origin send that without asking first."""
    kind, *parameters = (part.strip() for part in headers.get("content-type", "").lower().split(";"))
    charsets = [value.strip('"') for name, _, value in (p.partition("=") for p in parameters) if name == "charset"]
    if kind != "application/json" or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise Refused(415, "the body must be JSON in UTF-8: send the header Content-Type: application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "the body must not be compressed: leave out the header Content-Encoding")
