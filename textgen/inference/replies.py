"""Replies: what the server answers to a request for completions, whole or as it comes, and for tokens."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from textgen.errors import InputError
from textgen.inference.engine import Engine, Piece, join
from textgen.inference.http import EventStream, Refusal, as_response, read_json, until_gone
from textgen.inference.protocol import (
    BadRequest,
    ChoiceText,
    CompletionRequest,
    TokenizeRequest,
    answer,
    engine_requests,
    usage,
)
from textgen.inference.worker import Full, Job
from textgen.terminal import one_line

if TYPE_CHECKING:
    from fastapi import Request

    from textgen.inference.server import State

LONG_PROMPT = 20_000  # characters, over which it is tokenized beside the loop
GONE = 499  # the status that the log has for a client that left


async def answer_completions(request: "Request", state: "State") -> Any:
    """Answer a request for completions."""
    from fastapi.responses import JSONResponse, Response

    try:
        asked = CompletionRequest.parse(await read_json(request.receive, state.settings.body_bytes))
        count = len(asked.prompts) * asked.candidates
        if count > state.settings.texts:  # before anything is made of each
            raise BadRequest(f"{count:,} texts are over the {state.settings.texts:,} of a request", "prompt")
        served = await state.find(asked.model)
        prompts = [await read_prompt(one, served.engine) for one in asked.prompts]
    except BadRequest as error:
        raise Refusal(400, str(error), error.code, error.param) from None
    requests = engine_requests(asked, prompts, state.settings.max_tokens)
    try:
        job = state.worker.submit(served, requests, asked.stream)
    except Full:
        raise Refusal(429, f"{state.worker.waiting:,} texts wait already; try again", "queue_full") from None
    reply = Reply(asked, job, prompts, request.state.id, state.settings.seconds)
    if asked.stream:
        return as_response(EventStream(reply.events(), job.cancel))
    gone = asyncio.create_task(until_gone(request.receive))
    gone.add_done_callback(lambda task: job.cancel())
    try:
        whole = await reply.whole()
    finally:
        gone.cancel()
    return Response(status_code=GONE) if whole is None else JSONResponse(whole)


async def read_prompt(prompt: str | list[int], engine: Engine) -> list[int]:
    """Return the ids of a prompt.

    Raises:
        BadRequest: it has ids that the model lacks, or is longer than the context.
    """
    try:
        is_long = isinstance(prompt, str) and len(prompt) > LONG_PROMPT
        ids = await asyncio.to_thread(engine.encode, prompt) if is_long else engine.encode(prompt)
    except InputError as error:
        raise BadRequest(str(error), "prompt") from None
    if len(ids) > engine.length:
        most = f"{engine.length:,} of the context"
        raise BadRequest(f"prompt: its {len(ids):,} tokens are over the {most}", "prompt", "context_length_exceeded")
    return ids


async def answer_tokens(request: "Request", state: "State") -> dict[str, Any]:
    """Answer with the tokens of a text, in vLLM's form."""
    try:
        asked = TokenizeRequest.parse(await read_json(request.receive, state.settings.body_bytes))
    except BadRequest as error:
        raise Refusal(400, str(error), error.code, error.param) from None
    engine = (await state.find(asked.model)).engine
    ids = await asyncio.to_thread(engine.encode, asked.prompt)
    names = [engine.vocabulary.name(id) for id in ids]
    return {"count": len(ids), "max_model_len": engine.length, "tokens": ids, "token_strs": names}


class Reply:
    """What is answered to a request while its texts are written."""

    def __init__(
        self, asked: CompletionRequest, job: Job, prompts: Sequence[Sequence[int]], number: str, seconds: float
    ) -> None:
        self.asked, self.job, self.prompts, self.seconds = asked, job, prompts, seconds
        self.vocabulary = job.served.engine.vocabulary
        name = job.served.version.name
        self.head = {
            "id": f"cmpl-{number}", "object": "text_completion", "created": int(time.time()), "model": name,
            "system_fingerprint": f"{name}-{job.served.engine.kernels}",
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
