"""The server's routes: OpenAI's completions, tickets, ratings, energy, metrics, health, and the page."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from leanwatt.batching import Answered, Batcher, BusyError, Heard
from leanwatt.errors import LeanwattError, StoreError, StudyError
from leanwatt.feedback import Feedback, Rating
from leanwatt.gate import route_of
from leanwatt.gauges import Gauges
from leanwatt.offer import Offer
from leanwatt.promise import Books
from leanwatt.prompt import Encoder
from leanwatt.question import Generate, Prompt, Question
from leanwatt.wire import (
    Asked,
    ChatRequest,
    RatingRequest,
    Shape,
    Steady,
    TextRequest,
    TicketRequest,
    event,
    problem,
    ticket_reply,
)

PAGE = {"": ("desk.html", "text/html"), "desk.js": ("desk.js", "text/javascript"), "desk.css": ("desk.css", "text/css")}
SAFETY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

EXPIRE_SECONDS = 24 * 60 * 60
"""How often a running server deletes ratings whose days are over."""


class ApiError(LeanwattError):
    """A request that cannot be answered, and why."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class Desk:
    """What the routes work with."""

    offer: Offer
    encoder: Encoder
    batcher: Batcher
    books: Books
    gauges: Gauges
    feedback: Feedback | None
    """None: ratings are not taken."""
    most_tokens: int
    """Of one completion."""
    timeout_seconds: float


class Routes:
    """One method per route."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def models(self) -> dict[str, Any]:
        """`GET /v1/models`: the one model there is, and what the page must know of it."""
        offer, feedback = self._desk.offer, self._desk.feedback
        about = {
            "variant": offer.trial.label,
            "causes": offer.form.causes,
            "writes": offer.form.writes,
            "context": self._desk.encoder.context,
            "rating_days": feedback.days if feedback is not None else None,
        }
        model = {"id": offer.name, "object": "model", "created": 0, "owned_by": "leanwatt", "leanwatt": about}
        return {"object": "list", "data": [model]}

    async def model(self, name: str) -> dict[str, Any]:
        """`GET /v1/models/{name}`."""
        self._check_model(name)
        [only] = (await self.models())["data"]
        return dict(only)

    async def chat(self, asked: ChatRequest) -> Response:
        """`POST /v1/chat/completions`."""
        try:
            prompt = self._desk.encoder.conversation([message.turn for message in asked.messages])
        except ValueError as error:
            raise ApiError(400, str(error), "unfit_messages", "messages") from error
        return await self._complete(asked, prompt, asked.limit, is_chat=True)

    async def complete(self, asked: TextRequest) -> Response:
        """`POST /v1/completions`: the prompt as it stands."""
        return await self._complete(asked, Prompt("", asked.prompt, "", verbatim=True), asked.limit, is_chat=False)

    async def tickets(self, asked: TicketRequest) -> Response:
        """`POST /v1/tickets`: every task's question about one ticket."""
        offer = self._desk.offer
        self._check_model(asked.model or offer.name)
        questions = offer.form.about(asked.ticket)
        found = await self._answered(list(questions.values()), "/v1/tickets")
        return JSONResponse(ticket_reply(f"ticket-{uuid4().hex}", offer.name, questions, found))

    def rate(self, said: RatingRequest) -> Response:
        """`POST /v1/feedback`: keep what a person says of an answer."""
        causes = self._desk.offer.form.causes
        if said.cause is not None and said.cause not in causes:
            raise ApiError(400, "cause: is none of the model's causes; see /v1/models.", "unknown_cause", "cause")
        number = self._feedback().add(Rating(variant=self._desk.offer.trial.label, **said.model_dump()))
        return JSONResponse({"id": number}, status_code=201)

    def unrate(self, number: int) -> Response:
        """`DELETE /v1/feedback/{number}`."""
        if not self._feedback().delete(number):
            raise ApiError(404, "There is no such rating.", "not_found")
        return Response(status_code=204)

    async def energy(self) -> dict[str, Any]:
        """`GET /v1/energy`: of the day, and against the promise."""
        return {"day": asdict(self._desk.books.day()), "promise": asdict(self._desk.books.standing())}

    async def metrics(self) -> Response:
        """`GET /metrics`."""
        return Response(self._desk.gauges.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    async def health(self) -> Response:
        """`GET /healthz`: 503 when the engine is gone; a promise that is not kept is said, and is no illness."""
        is_well, standing = self._desk.batcher.is_alive, self._desk.books.standing()
        state = {"status": "ok" if is_well else "failed", "queue": self._desk.batcher.waiting}
        data = {**state, "energy": asdict(standing)}
        return JSONResponse(data, status_code=200 if is_well else 503)

    def _feedback(self) -> Feedback:
        if self._desk.feedback is None:
            raise ApiError(404, "This server takes no ratings.", "not_found")
        return self._desk.feedback

    def _check_model(self, name: str) -> None:
        if name != self._desk.offer.name:
            said = f"There is one model here: '{self._desk.offer.name}'."
            raise ApiError(404, said, "model_not_found", "model")

    def _limit(self, asked: int | None, prompt: Prompt) -> int:
        """Most new tokens. Raises ApiError where they, or the prompt, are too many."""
        desk, length = self._desk, self._desk.encoder.length(prompt)
        if length < 1:
            raise ApiError(400, "The prompt is empty.", "empty_prompt")
        if asked is not None and asked > desk.most_tokens:
            raise ApiError(400, f"max_tokens: at most {desk.most_tokens} are allowed.", "too_many_tokens", "max_tokens")
        room = desk.encoder.context - length
        if room < (asked or 1):
            said = f"The prompt has {length} tokens; with {asked or 1} new ones, {desk.encoder.context} is the most."
            raise ApiError(400, said, "context_length_exceeded")
        return asked or min(desk.most_tokens, room)

    async def _complete(self, asked: Asked, prompt: Prompt, limit: int | None, *, is_chat: bool) -> Response:
        self._check_model(asked.model)
        question = Generate(prompt, self._limit(limit, prompt), asked.stops)
        shape = Shape(f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid4().hex}", asked.model, is_chat=is_chat)
        route = "/v1/chat/completions" if is_chat else "/v1/completions"
        if asked.stream:
            return self._streamed(asked, question, shape, route)
        found = await self._answered([question], route)
        return JSONResponse(shape.whole(found, question.limit))

    async def _answered(self, questions: Sequence[Question], route: str) -> Answered:
        """Wait for the engine. Raises BusyError, ApiError; what the engine raises goes on."""
        future = self._submitted(questions, route)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._desk.timeout_seconds)
        except TimeoutError:
            raise ApiError(504, f"Not answered within {self._desk.timeout_seconds:g} s.", "timeout") from None

    def _submitted(
        self, questions: Sequence[Question], route: str, heard: Mapping[int, Heard] | None = None
    ) -> Future[Answered]:
        """Accepted. What it takes is booked once the engine has answered, whether or not anybody still waits."""
        future = self._desk.batcher.submit(questions, heard)
        future.add_done_callback(lambda done: self._book(done, route))
        return future

    def _book(self, done: Future[Answered], route: str) -> None:
        """In the engine's thread, as a rule."""
        if not done.cancelled() and done.exception() is None:
            self._desk.books.enter(done.result().energy, is_ticket=route == "/v1/tickets")
            self._desk.gauges.answered(route, done.result())

    def _streamed(self, asked: Asked, question: Generate, shape: Shape, route: str) -> Response:
        """Accepted here, so that a full queue is still a status of its own; then sent as it is written."""
        loop = asyncio.get_running_loop()
        written: asyncio.Queue[str | None] = asyncio.Queue()

        def hear(text: str | None) -> None:
            loop.call_soon_threadsafe(written.put_nowait, text)

        future = self._submitted([question], route, {0: hear})
        future.add_done_callback(lambda _: hear(None))
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage

        async def pieces() -> AsyncIterator[str]:
            steady = Steady(question.stop)
            try:
                yield shape.first()
                async for text in self._heard(written):
                    if more := steady.more(text):
                        yield shape.part(more)
                if said := _failed(future):
                    yield said
                    return
                found = future.result()
                if more := steady.rest(found.answers[0].text or ""):
                    yield shape.part(more)
                yield shape.last(found, question.limit, with_usage=with_usage)
            finally:
                future.cancel()  # Of use only where the client has left before the engine began.

        return StreamingResponse(pieces(), media_type="text/event-stream", headers={"cache-control": "no-cache"})

    async def _heard(self, written: asyncio.Queue[str | None]) -> AsyncIterator[str]:
        """What is written so far, again and again, until it is finished or takes too long."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._desk.timeout_seconds
        while (left := ends - loop.time()) > 0:
            try:
                text = await asyncio.wait_for(written.get(), left)
            except TimeoutError:
                return
            if text is None:
                return
            yield text


def _failed(future: Future[Answered]) -> str:
    """The event that ends a stream that went wrong; empty where it did not."""
    if not future.done():
        return event(problem("Not answered in time.", "timeout_error", "timeout"))
    if (error := future.exception()) is not None:
        print(f"leanwatt: a stream failed: {type(error).__name__}", file=sys.stderr)
        return event(problem("The server failed on this request.", "server_error"))
    return ""


def application(desk: Desk, closing: Callable[[], None] = lambda: None) -> FastAPI:
    """The application; `closing` is called when all connections are done with."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        expiring = asyncio.create_task(_expire(desk.feedback)) if desk.feedback is not None else None
        yield
        if expiring is not None:
            expiring.cancel()
        await asyncio.to_thread(closing)

    app, routes = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan), Routes(desk)
    paths: Mapping[str, tuple[str, Callable[..., Any]]] = {
        "/v1/models": ("GET", routes.models),
        "/v1/models/{name}": ("GET", routes.model),
        "/v1/chat/completions": ("POST", routes.chat),
        "/v1/completions": ("POST", routes.complete),
        "/v1/tickets": ("POST", routes.tickets),
        "/v1/feedback": ("POST", routes.rate),
        "/v1/feedback/{number}": ("DELETE", routes.unrate),
        "/v1/energy": ("GET", routes.energy),
        "/metrics": ("GET", routes.metrics),
        "/healthz": ("GET", routes.health),
    }
    for path, (method, route) in paths.items():
        app.add_api_route(path, route, methods=[method], response_model=None)
    for name, (file, kind) in PAGE.items():
        app.add_api_route(f"/desk/{name}" if name else "/", _page(file, kind), methods=["GET"], response_model=None)
    for error, told in _TOLD.items():
        app.add_exception_handler(error, told)
    return app


async def _expire(feedback: Feedback) -> None:
    """Ratings go when their days are over, also on a server that nobody rates."""
    while True:
        await asyncio.sleep(EXPIRE_SECONDS)
        try:
            await asyncio.to_thread(feedback.expire)
        except StoreError as error:
            print(f"leanwatt: {error}", file=sys.stderr)


def _page(file: str, kind: str) -> Callable[[], Awaitable[Response]]:
    content = (Path(__file__).parent / "desk" / file).read_bytes()

    async def page() -> Response:
        return Response(content, media_type=kind, headers=SAFETY)

    return page


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return JSONResponse(problem(str(error), kind, error.code, error.param), status_code=error.status)


async def _busy(_: Request, error: Exception) -> Response:
    assert isinstance(error, BusyError)
    headers = {"retry-after": str(error.retry_seconds)}
    return JSONResponse(problem(str(error), "rate_limit_error", "overloaded"), status_code=429, headers=headers)


async def _unfit(_: Request, error: Exception) -> Response:
    return JSONResponse(problem(str(error), "invalid_request_error"), status_code=400)


async def _malformed(_: Request, error: Exception) -> Response:
    """The first mistake and where it is; what was sent is not repeated, the name of an unknown field included."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    is_unknown = first["type"] == "extra_forbidden"
    where = ".".join(str(part) for part in first["loc"][: -1 if is_unknown else None] if part != "body")
    said = f"{where or 'body'}: {'unknown field' if is_unknown else first['msg']}."
    if first["type"] == "json_invalid":
        said = "The body is no valid JSON."
    return JSONResponse(problem(said, "invalid_request_error", str(first["type"]), where or None), status_code=400)


async def _plain(request: Request, error: Exception) -> Response:
    """No such path, no such method, a body that is no text."""
    assert isinstance(error, HTTPException)
    said = "There is no such path." if route_of(request.url.path) == "other" else str(error.detail)
    return JSONResponse(problem(said, "invalid_request_error"), status_code=error.status_code, headers=error.headers)


async def _broken(_: Request, error: Exception) -> Response:
    """A bug; the gate tells the operator."""
    return JSONResponse(problem("The server failed on this request.", "server_error"), status_code=500)


_TOLD: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    ApiError: _refused,
    BusyError: _busy,
    StudyError: _unfit,
    RequestValidationError: _malformed,
    HTTPException: _plain,
    Exception: _broken,
}
