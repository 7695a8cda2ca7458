"""Requests and replies in the form of OpenAI's completions, for the server and for `textgen generate`.

Beside OpenAI's fields a request may have `top_k`, `min_p` and `repetition_penalty`; one that is not known is refused.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from textgen.errors import InputError
from textgen.files import is_utf8
from textgen.inference.engine import Completion, Request, Token
from textgen.inference.sampling import LogProbs, SamplingConfig
from textgen.inference.text_stream import Vocabulary
from textgen.terminal import brief, one_line

MOST_CHOICES = 128
MOST_STOPS = 16
MOST_LOG_PROBS = 20
HALF_A_CHARACTER = "half_a_character"


def without_surrogates(text: str) -> str:
    """Return a text that is one: JSON can spell half of a character, which no tokenizer takes."""
    if not is_utf8(text):
        raise PydanticCustomError(HALF_A_CHARACTER, "a lone surrogate is half of a character")
    return text


Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Text = Annotated[StrictStr, AfterValidator(without_surrogates)]
Prompt = Text | list[Id] | list[Text] | list[list[Id]]


class BadRequest(InputError):
    """A request that cannot be answered as it is; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class Fields(BaseModel):
    """Fields of a request: one that is null is not given."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def null_is_not_given(cls, fields: Any) -> Any:
        return (
            {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields
        )

    @classmethod
    def parse(cls, fields: Any) -> Self:
        """Return the request that a JSON object describes.

        Raises:
            BadRequest: it describes none; the message names the first field that is wrong.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise explain(error) from None


class TokenizeRequest(Fields):
    """A text whose tokens are asked for."""

    prompt: Text
    model: str | None = None


class StreamOptions(Fields):
    """What a stream has beside its text."""

    include_usage: bool = False


class CompletionRequest(Fields):
    """What is asked for: one or more prompts, how many texts of each, and how they are drawn."""

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
    stop: list[Text] = Field([], max_length=MOST_STOPS)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_LOG_PROBS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @classmethod
    def parse(cls, fields: Any) -> Self:
        request = super().parse(fields)
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
    errors = error.errors(include_url=False)
    first = errors[0]
    field = ".".join(part for part in first["loc"] if isinstance(part, str)) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return BadRequest(f"{brief(field)} is no field that is known here", field, "unknown_field")
    if field is None:
        no_object = first["type"] == "model_type"
        return BadRequest("the body is no JSON object" if no_object else f"{brief(first['input'])} names no field")
    if first["loc"][0] == "prompt":  # with an error for each form of it
        halves = [one["msg"] for one in errors if one["type"] == HALF_A_CHARACTER]
        forms = "a string, a list of strings, a list of token ids or a list of such lists is needed"
        return BadRequest(f"prompt: {halves[0] if halves else forms}", "prompt")
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
        self._offset = 0

    def begin(self, scores: Sequence[LogProbs]) -> dict[str, Any]:
        """Return the choice with the prompt, where it is asked for."""
        stream = self.vocabulary.stream(())
        texts, tokens = [stream.add(id) for id in self.prompt_ids], []
        if self.asked.logprobs is not None:
            unseen = len(self.prompt_ids) - len(scores)  # the first token, and those before the context
            by_place = [*[None] * unseen, *scores]
            tokens = [Token(*token) for token in zip(self.prompt_ids, texts, by_place, strict=True)]
        return self.piece("".join(texts), tokens, None)

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
