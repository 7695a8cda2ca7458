"""The server: OpenAI's completions over HTTP, of the version in use."""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textgen import __version__
from textgen.errors import Failure, InputError
from textgen.inference.engine import DEFAULT, ROWS, Mode
from textgen.inference.figures import Figures
from textgen.inference.http import ID_HEADER, Logged, Refusal
from textgen.inference.protocol import CompletionRequest, Fields, TokenizeRequest
from textgen.inference.replies import answer_completions, answer_tokens
from textgen.inference.worker import Follower, Served, Source, Worker, prepare
from textgen.terminal import brief, one_line

if TYPE_CHECKING:
    from fastapi import FastAPI, Response

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Settings:
    """How a server works, and what a request, and all of them together, may ask for."""

    key: str | None = None
    allow_origin: str | None = None
    rows: int = ROWS  # texts that are written at once
    mode: Mode = DEFAULT
    waiting: int = 256  # texts that wait
    max_tokens: int = 4096  # of a text; more is cut to this
    texts: int = 1024  # of a request
    body_bytes: int = 4 * 2**20
    seconds: float = 300  # of a request
    follow_seconds: float = 1


@dataclass
class State:
    """What the handlers of a server share."""

    source: Source
    settings: Settings
    worker: Worker
    follower: Follower
    figures: Figures
    draining: bool = False
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def reason(self) -> str | None:
        """Why nothing is served, None where something is."""
        if self.draining:
            return "the server is ending"
        return None if self.worker.current is not None else self.follower.refused

    async def find(self, model: str | None) -> Served:
        """Return the version that a request's `model` names, loaded if need be.

        Raises:
            Refusal: there is none.
        """
        name, worker = self.source.name, self.worker
        if model is None or model in self.source.names:
            if worker.current is None or self.draining:
                raise Refusal(503, self.reason or "nothing is served", "model_not_ready")
            return worker.current
        if (served := worker.served.get(model)) is not None:
            return served
        if not model.startswith(f"{name}@"):
            raise Refusal(404, f"{brief(model)}: no such model; there is {name}", "model_not_found", "model")
        async with self.loading:
            try:
                served = worker.served.get(model)
                return await asyncio.to_thread(self.follower.keep, model) if served is None else served
            except InputError as error:  # it names folders of the server's
                log.info("%s", error)
                raise Refusal(404, f"{brief(model)}: no such version", "model_not_found", "model") from None
            except (Failure, OSError, RuntimeError) as error:
                raise Refusal(503, one_line(error), "model_not_ready", "model") from None


def make_app(source: Source, settings: Settings) -> "FastAPI":
    """Return the application, which begins to follow `source` when it starts."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import HTTPException
    from fastapi.responses import JSONResponse
    from starlette.middleware.cors import CORSMiddleware

    figures = Figures()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = Worker(asyncio.get_running_loop(), settings.waiting, figures.note)
        follower = Follower(
            source, worker, lambda version: prepare(version, settings.rows, settings.mode), settings.follow_seconds
        )
        app.state.shared = State(source, settings, worker, follower, figures)
        yield
        follower.stop()
        worker.stop()

    app = FastAPI(title="textgen", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, error: Refusal) -> "Response":
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    @app.exception_handler(404)
    @app.exception_handler(405)
    async def refuse_path(request: Request, error: HTTPException) -> "Response":
        refusal = Refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(refusal.body, refusal.status, error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> "Response":
        log.error("request %s failed", request.state.id, exc_info=error)
        refusal = Refusal(500, "the server failed; its log says why")
        return JSONResponse(refusal.body, refusal.status, {ID_HEADER: request.state.id})

    add_routes(app, settings.key)
    app.add_middleware(Logged, on_answer=lambda path, status: figures.responses.labels(path, str(status)).inc())
    if settings.allow_origin is not None:
        app.add_middleware(
            CORSMiddleware, allow_origins=[settings.allow_origin], allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def add_routes(app: "FastAPI", key: str | None) -> None:
    """Add what the server answers."""
    from fastapi import Depends, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response

    def check_key(request: Request) -> None:
        if key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), key.encode()):
            raise Refusal(401, "the key is missing or wrong: Authorization: Bearer KEY", "invalid_api_key")

    keyed = [Depends(check_key)]

    @app.post("/v1/completions", dependencies=keyed, openapi_extra=body_of(CompletionRequest))
    async def completions(request: Request) -> Response:
        return await answer_completions(request, request.app.state.shared)

    @app.post("/v1/chat/completions", dependencies=keyed)
    async def chat() -> None:
        raise Refusal(
            404, "this is a base model, which continues a text and knows no chat: POST /v1/completions", "no_chat"
        )

    @app.get("/v1/models", dependencies=keyed)
    async def models(request: Request) -> dict[str, Any]:
        return list_models(request.app.state.shared)

    @app.post("/tokenize", dependencies=keyed, openapi_extra=body_of(TokenizeRequest))
    async def tokenize(request: Request) -> dict[str, Any]:
        return await answer_tokens(request, request.app.state.shared)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(request: Request) -> Response:
        state: State = request.app.state.shared
        reason = state.reason
        found = {"ready": reason is None, "version": state.worker.current_name, "reason": reason}
        return JSONResponse({**found, "refused": state.follower.refused}, 200 if reason is None else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        state: State = request.app.state.shared
        return Response(state.figures.text(state.worker), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"Content-Security-Policy": policy})


def body_of(kind: type[Fields]) -> dict[str, Any]:
    """Return what the server's description says of a body."""
    schema = kind.model_json_schema()
    content = {"application/json": {"schema": _inline(schema, schema.pop("$defs", {}))}}
    return {"requestBody": {"content": content, "required": True}}


def _inline(schema: Any, parts: dict[str, Any]) -> Any:
    """Return a JSON schema with the parts that it refers to in the places where it does."""
    if isinstance(schema, list):
        return [_inline(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {name: _inline(value, parts) for name, value in schema.items()}


def list_models(state: State) -> dict[str, Any]:
    """Return the names that `model` can have, of what is loaded."""
    current = state.worker.current
    if (reason := state.reason) is not None or current is None:
        raise Refusal(503, reason or "nothing is served", "model_not_ready")
    names = {**dict.fromkeys(state.source.names, current), **state.worker.served}
    return {
        "object": "list",
        "data": [
            {
                "id": name, "object": "model", "created": one.created, "owned_by": "textgen",
                "root": one.version.name, "max_model_len": one.engine.length, **one.version.about,
            }
            for name, one in names.items()
        ],
    }  # fmt: skip
