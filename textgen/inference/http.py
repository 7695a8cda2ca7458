"""HTTP as the server speaks it: refusals in OpenAI's form, bodies with a limit, streams that end with their client."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from textgen.terminal import one_line

if TYPE_CHECKING:
    from starlette.responses import Response

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

RETRY_SECONDS = "1"  # told to a client that found the queue full
ID_HEADER = "x-request-id"
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The answer in OpenAI's form."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": RETRY_SECONDS} if self.status in (429, 503) else {}


async def read_json(receive: Receive, most_bytes: int) -> Any:
    """Return the JSON value of a request's body.

    Raises:
        Refusal: it is too long, or no JSON.
    """
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most_bytes:
            raise Refusal(413, f"the body is over {most_bytes:,} bytes", "body_too_large")
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 are a ValueError too
        raise Refusal(400, f"the body is no JSON: {one_line(error)}", "invalid_json") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


async def until_gone(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """An answer of server-sent events. Where the client leaves, `on_gone` is called and the events are ended."""

    def __init__(self, events: AsyncIterator[str], on_gone: Callable[[], None]) -> None:
        self.events, self.on_gone = events, on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        gone = asyncio.create_task(until_gone(receive))
        gone.add_done_callback(lambda task: self.on_gone())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for event in self.events:
                await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()


def as_response(app: App) -> "Response":
    """Return what FastAPI takes for an answer and leaves to `app`."""
    from starlette.responses import Response

    class Answer(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

    return Answer()


class Logged:
    """Gives each request an id, in the answer's header and in the log, which has no prompt and no text."""

    def __init__(self, app: App, on_answer: Callable[[str, int], None]) -> None:
        self.app, self.on_answer = app, on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number, started, status = uuid.uuid4().hex, time.monotonic(), 500
        scope.setdefault("state", {})["id"] = number

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (ID_HEADER.encode(), number.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.on_answer(path, status)
            seconds = time.monotonic() - started
            log.info("%s %s %s %d %.3f s", number, scope["method"], one_line(scope["path"]), status, seconds)
