"""The server: OpenAI's completions over HTTP, of the version in use."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textgen import __version__
from textgen.errors import Failure, InputError
from textgen.inference.engine import DEFAULT, ROWS, Engine, Mode, Piece, join
from textgen.inference.figures import Figures
from textgen.inference.http import EventStream, Logged, Refusal, as_response, read_json, until_gone
from textgen.inference.protocol import BadRequest, ChoiceText, CompletionRequest, answer, engine_requests, usage
from textgen.inference.text_stream import Vocabulary
from textgen.inference.worker import Follower, Full, Job, Source, Worker, prepare
from textgen.terminal import brief, one_line

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
CHAMPION = "@champion"
LONG_PROMPT = 20_000  # characters, over which it is tokenized beside the loop
GONE = 499  # the status that the log has for a client that left


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

    async def version(self, model: str | None) -> str:
        """Return the version that a request's `model` names, loaded if need be.

        Raises:
            Refusal: there is none.
        """
        name = self.source.name
        if model in (None, name, name + CHAMPION):
            if self.worker.current is None or self.draining:
                raise Refusal(503, self.reason or "nothing is served", "model_not_ready")
            return self.worker.current
        assert model is not None
        if not model.startswith(f"{name}@") and model not in self.worker.served:
            raise Refusal(404, f"{brief(model)}: no such model; there is {name}", "model_not_found", "model")
        async with self.loading:
            if model not in self.worker.served:
                try:
                    await asyncio.to_thread(self.follower.keep, model)
                except InputError as error:
                    raise Refusal(404, str(error), "model_not_found", "model") from None
                except (Failure, OSError, RuntimeError) as error:
                    raise Refusal(503, one_line(error), "model_not_ready", "model") from None
        return model


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
        return JSONResponse(refusal.body, refusal.status)

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
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if key is not None and not hmac.compare_digest(given, key.encode()):
            raise Refusal(401, "the key is missing or wrong: Authorization: Bearer KEY", "invalid_api_key")

    keyed = [Depends(check_key)]
    body = {"content": {"application/json": {"schema": CompletionRequest.model_json_schema()}}, "required": True}

    @app.post("/v1/completions", dependencies=keyed, openapi_extra={"requestBody": body})
    async def completions(request: Request) -> Response:
        return await complete(request)

    @app.post("/v1/chat/completions", dependencies=keyed)
    async def chat() -> None:
        raise Refusal(
            404, "this is a base model, which continues a text and knows no chat: POST /v1/completions", "no_chat"
        )

    @app.get("/v1/models", dependencies=keyed)
    async def models(request: Request) -> dict[str, Any]:
        return list_models(request.app.state.shared)

    @app.post("/tokenize", dependencies=keyed, openapi_extra={"requestBody": TOKENIZE_BODY})
    async def tokenize(request: Request) -> dict[str, Any]:
        return await tokenize_text(request)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(request: Request) -> Response:
        state: State = request.app.state.shared
        reason = state.reason
        found = {"ready": reason is None, "version": state.worker.current, "reason": reason}
        return JSONResponse({**found, "refused": state.follower.refused}, 200 if reason is None else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        state: State = request.app.state.shared
        return Response(state.figures.text(state.worker), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"Content-Security-Policy": policy})


TOKENIZE_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"prompt": {"type": "string"}, "model": {"type": "string"}},
                "required": ["prompt"],
                "additionalProperties": False,
            }
        }
    },
}


async def complete(request: "Request") -> Any:
    """Answer a request for completions."""
    from fastapi.responses import JSONResponse, Response

    state: State = request.app.state.shared
    try:
        asked = CompletionRequest.parse(await read_json(request.receive, state.settings.body_bytes))
        version = await state.version(asked.model)
        engine = state.worker.served[version].engine
        prompts = [await read_prompt(one, engine.vocabulary, engine.encode, engine.length) for one in asked.prompts]
    except BadRequest as error:
        raise Refusal(400, str(error), error.code, error.param) from None
    requests = engine_requests(asked, prompts, state.settings.max_tokens)
    if len(requests) > state.settings.texts:
        raise Refusal(
            400, f"{len(requests):,} texts are over the {state.settings.texts:,} of a request", None, "prompt"
        )
    try:
        job = state.worker.submit(version, requests)
    except Full:
        raise Refusal(429, f"{state.worker.waiting:,} texts wait already; try again", "queue_full") from None
    reply = Reply(asked, job, prompts, engine, request.state.id, state.settings.seconds)
    if asked.stream:
        return as_response(EventStream(reply.events(), job.cancel))
    gone = asyncio.create_task(until_gone(request.receive))
    gone.add_done_callback(lambda task: job.cancel())
    try:
        whole = await reply.whole()
    finally:
        gone.cancel()
    return Response(status_code=GONE) if whole is None else JSONResponse(whole)


async def read_prompt(
    prompt: str | list[int], vocabulary: Vocabulary, encode: Callable[[str], list[int]], length: int
) -> list[int]:
    """Return the ids of a prompt.

    Raises:
        BadRequest: it is no text, has ids that the model lacks, or is longer than the context.
    """
    if isinstance(prompt, str):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise BadRequest("prompt: it has half of a surrogate pair, and so is no text", "prompt") from None
        ids = await asyncio.to_thread(encode, prompt) if len(prompt) > LONG_PROMPT else encode(prompt)
    else:
        ids = prompt
        if not ids:
            raise BadRequest("prompt: a list of ids is empty", "prompt")
        if (largest := max(ids)) >= vocabulary.size:
            raise BadRequest(f"prompt: the id {largest} is not under the vocabulary's {vocabulary.size}", "prompt")
    if len(ids) > length:
        raise BadRequest(
            f"prompt: its {len(ids):,} tokens are over the {length:,} of the context",
            "prompt",
            "context_length_exceeded",
        )
    return ids


class Reply:
    """What is answered to a request while its texts are written."""

    def __init__(
        self, asked: CompletionRequest, job: Job, prompts: Sequence[Sequence[int]], engine: Engine, number: str,
        seconds: float,
    ) -> None:  # fmt: skip
        self.asked, self.job, self.prompts, self.seconds = asked, job, prompts, seconds
        self.vocabulary = engine.vocabulary
        self.head = {
            "id": f"cmpl-{number}", "object": "text_completion", "created": int(time.time()), "model": job.version,
            "system_fingerprint": f"{job.version}-{engine.kernels}",
        }  # fmt: skip

    async def _pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield the pieces of all texts; where the time is up they are cancelled.

        Raises:
            Refusal: the time is up, or the engine failed.
        """
        left, late = len(self.job.generations), False

        def end() -> None:
            nonlocal late
            late = True
            self.job.cancel()

        timer = asyncio.get_running_loop().call_later(self.seconds, end)
        try:
            while left:
                got = await self.job.pieces.get()
                if isinstance(got, Exception):
                    raise Refusal(500, one_line(got), "engine_failed")
                for index, piece in got:
                    left -= piece.finish is not None
                    if late:
                        raise Refusal(504, f"it took over {self.seconds:g} seconds", "timeout")
                    yield index, piece
        finally:
            timer.cancel()
            self.job.cancel()

    async def whole(self) -> dict[str, Any] | None:
        """Return the answer when all texts are written; None where the client left."""
        pieces: list[list[Piece]] = [[] for _ in self.job.generations]
        async for index, piece in self._pieces():
            if piece.finish == "cancelled":
                return None
            pieces[index].append(piece)
        completions = [join(*pair) for pair in zip(self.job.generations, pieces, strict=True)]
        return {**self.head, **answer(self.asked, self.prompts, completions, self.vocabulary)}

    async def events(self) -> AsyncIterator[str]:
        """Yield the answer as it comes, and `[DONE]`; an error is the last event, and no `[DONE]` follows it."""
        choices = [
            ChoiceText(self.asked, index, self.prompts[index // self.asked.n], self.vocabulary)
            for index in range(len(self.job.generations))
        ]
        begun, written = set[int](), 0
        try:
            async for index, piece in self._pieces():
                if piece.finish == "cancelled":
                    return
                written += len(piece.tokens)
                if self.asked.echo and index not in begun:
                    begun.add(index)
                    yield self._event([choices[index].begin(piece.generation.prompt_scores)])
                if piece.text or piece.tokens or piece.finish:
                    yield self._event([choices[index].piece(piece.text, piece.tokens, piece.finish)])
        except Refusal as refusal:
            yield json.dumps(refusal.body)
            return
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield self._event([], usage(self.prompts, written))
        yield "[DONE]"

    def _event(self, choices: list[dict[str, Any]], counts: dict[str, int] | None = None) -> str:
        return json.dumps({**self.head, "choices": choices, **({} if counts is None else {"usage": counts})})


def list_models(state: State) -> dict[str, Any]:
    """Return the names that `model` can have, of what is loaded."""
    if (reason := state.reason) is not None:
        raise Refusal(503, reason, "model_not_ready")
    served = list(state.worker.served.values())
    current = next(one for one in served if one.version.name == state.worker.current)
    names = {state.source.name: current, state.source.name + CHAMPION: current}
    names |= {one.version.name: one for one in served}
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


async def tokenize_text(request: "Request") -> dict[str, Any]:
    """Answer with the tokens of a text, in vLLM's form."""
    state: State = request.app.state.shared
    fields = await read_json(request.receive, state.settings.body_bytes)
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise Refusal(400, "a JSON object with a string `prompt` is needed", None, "prompt")
    if unknown := fields.keys() - {"prompt", "model"}:
        raise Refusal(400, f"{brief(min(unknown))} is no field that is known here", "unknown_field", min(unknown))
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise Refusal(400, "model: a string is needed", None, "model")
    engine = state.worker.served[await state.version(model)].engine
    try:
        ids = await read_prompt(fields["prompt"], engine.vocabulary, engine.encode, state.settings.body_bytes)
    except BadRequest as error:
        raise Refusal(400, str(error), error.code, error.param) from None
    names = [engine.vocabulary.name(id) for id in ids]
    return {"count": len(ids), "max_model_len": engine.length, "tokens": ids, "token_strs": names}
