"""Requests and replies in the form of OpenAI's completions, for the server and for `textgen generate`.

Beside OpenAI's fields a request may have `top_k`, `min_p` and `repetition_penalty`; one that is not known is refused.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from textgen.errors import InputError
from textgen.inference.engine import Completion, Request, Token
from textgen.inference.sampling import LogProbs, SamplingConfig
from textgen.inference.text_stream import Vocabulary
from textgen.terminal import brief, one_line

MOST_CHOICES = 128
MOST_STOPS = 16
MOST_LOG_PROBS = 20

Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Prompt = StrictStr | list[Id] | list[StrictStr] | list[list[Id]]


class BadRequest(InputError):
    """A request that cannot be answered as it is; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class StreamOptions(BaseModel):
    """What a stream has beside its text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """What is asked for: one or more prompts, how many texts of each, and how they are drawn."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str | None = None
    prompt: Prompt = ""
    max_tokens: int = Field(16, ge=0)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    stop: list[str] = Field([], max_length=MOST_STOPS)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_LOG_PROBS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def null_is_not_given(cls, fields: Any) -> Any:
        return (
            {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields
        )

    @field_validator("stop", mode="before")
    @classmethod
    def one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @classmethod
    def parse(cls, fields: Any) -> "CompletionRequest":
        """Return the request that a JSON object describes.

        Raises:
            BadRequest: it describes none; the message names the first field that is wrong.
        """
        try:
            request = cls.model_validate(fields)
        except ValidationError as error:
            raise explain(error) from None
        if "" in request.stop:
            raise BadRequest("stop: a stop string is empty", "stop")
        if request.best_of is not None and request.best_of < request.n:
            raise BadRequest(f"best_of={request.best_of} is less than n={request.n}", "best_of")
        if request.stream and request.candidates > request.n:
            raise BadRequest("best_of: the best texts are known at the end alone, and so cannot be streamed", "best_of")
        if request.stream_options is not None and not request.stream:
            raise BadRequest("stream_options: only with stream=true", "stream_options")
        return request

    @property
    def candidates(self) -> int:
        """How many texts are written for each prompt."""
        return max(self.n, self.best_of or 0)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        ids = [one for one in prompt if isinstance(one, int)]
        return [ids] if ids else [one for one in prompt if not isinstance(one, int)] or [""]

    def sampling(self, most_tokens: int | None = None) -> SamplingConfig:
        """Return how the tokens are drawn, at most `most_tokens` of them."""
        fields = {name: getattr(self, name) for name in SamplingConfig.model_fields}
        if most_tokens is not None:
            fields["max_tokens"] = min(self.max_tokens, most_tokens)
        return SamplingConfig(**{**fields, "stop": tuple(self.stop)})


def explain(error: ValidationError) -> BadRequest:
    """Return the first fault of a request, named by its field."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return BadRequest(f"{brief(field)} is no field that is known here", field, "unknown_field")
    if first["type"] == "model_type":
        return BadRequest("the body is no JSON object")
    if field == "prompt":
        return BadRequest(
            "prompt: a string, a list of strings, a list of token ids or a list of such lists is needed", field
        )
    return BadRequest(f"{field}={brief(first['input'])}: {one_line(first['msg'])}", field)


def engine_requests(
    asked: CompletionRequest, prompts: Iterable[Sequence[int]], most_tokens: int | None = None
) -> list[Request]:
    """Return what the engine is asked for: the texts of the first prompt, then those of the next."""
    sampling = asked.sampling(most_tokens)
    top = asked.logprobs if asked.best_of is None else asked.logprobs or 0  # the best are those of the highest mean
    scores_prompt = asked.echo and asked.logprobs is not None
    return [Request(ids, sampling, choice, top, scores_prompt) for ids in prompts for choice in range(asked.candidates)]


def choose(asked: CompletionRequest, completions: Sequence[Completion]) -> list[Completion]:
    """Return the texts that are asked for: of each prompt's, the first `n`, or those of the highest mean."""
    if asked.candidates == asked.n:
        return list(completions)
    chosen: list[Completion] = []
    for start in range(0, len(completions), asked.candidates):
        of_prompt = completions[start : start + asked.candidates]
        chosen += sorted(of_prompt, key=_mean_nats, reverse=True)[: asked.n]
    return chosen


def _mean_nats(completion: Completion) -> float:
    nats = [token.log_probs.nats for token in completion.tokens if token.log_probs is not None]
    return sum(nats) / max(1, len(nats))


class ChoiceText:
    """The form of one text's choices: a whole one, or one after the other of a stream."""

    def __init__(self, asked: CompletionRequest, index: int, prompt_ids: Sequence[int], vocabulary: Vocabulary) -> None:
        self.asked, self.index, self.prompt_ids, self.vocabulary = asked, index, prompt_ids, vocabulary
        self.prompt_text = vocabulary.text(prompt_ids) if asked.echo else ""
        self._offset = 0

    def begin(self, scores: Sequence[LogProbs]) -> dict[str, Any]:
        """Return the choice with the prompt, where it is asked for."""
        stream, tokens = self.vocabulary.stream(()), []
        if self.asked.logprobs is not None:
            by_place = [None, *scores]
            tokens = [Token(id, stream.add(id), score) for id, score in zip(self.prompt_ids, by_place, strict=True)]
        return self.piece(self.prompt_text, tokens, None)

    def piece(self, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        """Return the choice with some more text."""
        log_probs = None
        if self.asked.logprobs is not None:
            sizes = [len(token.text) for token in tokens]
            log_probs = {
                "tokens": [self.vocabulary.name(token.id) for token in tokens],
                "token_logprobs": [None if token.log_probs is None else token.log_probs.nats for token in tokens],
                "top_logprobs": [self._top(token.log_probs) for token in tokens],
                "text_offset": [self._offset + place for place in accumulate(sizes[:-1], initial=0)] if tokens else [],
                "token_ids": [token.id for token in tokens],
            }
            self._offset += sum(sizes)
        return {"index": self.index, "text": text, "logprobs": log_probs, "finish_reason": finish}

    def _top(self, found: LogProbs | None) -> dict[str, float] | None:
        if found is None:
            return None
        top = {self.vocabulary.name(id): nats for id, nats in found.top[: self.asked.logprobs]}
        return {**top, self.vocabulary.name(found.id): found.nats} if top else top

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of a whole text."""
        begin = self.begin(completion.prompt_scores) if self.asked.echo else None
        end = self.piece(completion.text, completion.tokens, completion.finish)
        if begin is None:
            return end
        if begin["logprobs"] is not None:
            end["logprobs"] = {name: begin["logprobs"][name] + end["logprobs"][name] for name in end["logprobs"]}
        return {**end, "text": begin["text"] + end["text"]}


def answer(
    asked: CompletionRequest,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Return the choices and the usage of a request, from all the texts that were written for it."""
    written = sum(len(completion.tokens) for completion in completions)
    choices = [
        ChoiceText(asked, index, prompts[index // asked.n], vocabulary).whole(completion)
        for index, completion in enumerate(choose(asked, completions))
    ]
    return {"choices": choices, "usage": usage(prompts, written)}


def usage(prompts: Iterable[Sequence[int]], completion_tokens: int) -> dict[str, int]:
    """Return the counts of tokens: each prompt once, and of all texts that were written."""
    prompt_tokens = sum(map(len, prompts))
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
