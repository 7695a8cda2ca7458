"""The engine, with continuous batching: a token of each text at a time; texts join and leave between tokens."""

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from textgen.errors import Damaged, InputError
from textgen.inference.sampling import LogProbs, SamplingConfig, draw, likeliest, log_probabilities, sample, uniform
from textgen.inference.text_stream import StopFinder, Vocabulary
from textgen.model.cached import CachedModel
from textgen.model.pretrained import LoadedModel
from textgen.terminal import brief
from textgen.text.encoding import end_id

Past = Literal["slide", "stop"]  # what happens past the context: go on from its last half, or end
Finish = Literal["stop", "length", "cancelled"]

ROWS = 16  # texts at once
READ_AT_ONCE = 1024  # tokens of prompts between two tokens of those that write
SCORED_AT_ONCE = 64  # places of a prompt


class Token(NamedTuple):
    """A token as it is written: the characters that it ends, and its log-probabilities where they are asked for."""

    id: int
    text: str
    log_probs: LogProbs | None


class Piece(NamedTuple):
    """What a text got in a step: characters, the tokens that they end with, and why it ends, if it does."""

    generation: "Generation"
    text: str
    tokens: list[Token]
    finish: Finish | None


@dataclass(frozen=True)
class Mode:
    """How an engine works.

    `deterministic`: a text does not depend on what else runs, to the last bit. `compiled`: the step of a text that is
    alone is compiled where that makes it faster.
    """

    past: Past = "slide"
    weights: Literal["fp32", "int8"] = "fp32"
    deterministic: bool = False
    compiled: bool = False


DEFAULT = Mode()


@dataclass(frozen=True)
class Request:
    """A prompt to continue. `choice` tells apart the texts that one prompt and one seed are to get.

    `log_probs` asks for those of so many likeliest tokens beside each token, `echo` for those of the prompt too.
    """

    prompt_ids: Sequence[int]
    sampling: SamplingConfig
    choice: int = 0
    log_probs: int | None = None
    echo: bool = False


@dataclass(eq=False)
class Generation:
    """A text that is being generated."""

    request: Request
    vocabulary: Vocabulary
    seed: int
    ids: list[int] = field(default_factory=list)
    prompt_scores: list[LogProbs] = field(default_factory=list)  # of the prompt's tokens but the first, if asked for
    finish: Finish | None = None
    cancelled: bool = False
    cached: int = 0  # places in its row of the cache
    tokens_at: float | None = None  # when it last got a token, and how many there were: for figures
    counted: int = 0

    def __post_init__(self) -> None:
        self._stream = self.vocabulary.stream(self.request.prompt_ids)
        self._stops = StopFinder(self.request.sampling.stop)
        self._tokens: list[tuple[int, Token]] = []  # not shown yet, each with where its text ends
        self._written = self._shown = 0

    @property
    def number(self) -> float:
        """The number that draws the next token."""
        return uniform(self.seed, self.request.choice, len(self.ids))

    @property
    def all_ids(self) -> list[int]:
        return [*self.request.prompt_ids, *self.ids]

    def append(self, id: int, log_probs: LogProbs | None, is_end: bool = False) -> tuple[str, list[Token]]:
        """Add a token and return what can be shown: characters, and the tokens whose text is in them."""
        self.ids.append(id)
        text = "" if is_end else self._stream.add(id)
        self._written += len(text)
        self._tokens.append((self._written, Token(id, text, log_probs)))
        shown = self._stops.add(text)
        if is_end or self._stops.found:
            self.finish = "stop"
        self._shown += len(shown)
        ready = []
        while self._tokens and self._tokens[0][0] <= self._shown:
            ready.append(self._tokens.pop(0)[1])
        return shown, ready

    def end(self) -> tuple[str, list[Token]]:
        """Return the characters and tokens that were held back; after a stop string there are none."""
        if self._stops.found:
            return "", [token for end, token in self._tokens if end - len(token.text) < self._shown]
        rest = self._stream.end()
        text = self._stops.add(rest) + self._stops.end()
        return text, [token for _, token in self._tokens]


class Engine:
    """Continues prompts with one model. Not for several threads."""

    def __init__(self, loaded: LoadedModel, rows: int = ROWS, mode: Mode = DEFAULT) -> None:
        self.loaded, self.mode = loaded, mode
        self.vocabulary, self.end = Vocabulary(loaded.tokenizer), end_id(loaded.tokenizer)
        self.length = loaded.seq_length
        self.model = CachedModel(
            loaded.model, self.length, rows, self.mode.deterministic, int8=self.mode.weights == "int8"
        )
        compiled = self.mode.compiled and self.model.compile()
        marks = {"deterministic": self.mode.deterministic, "compiled": compiled}
        self.kernels = "-".join([self.mode.weights, *(mark for mark, holds in marks.items() if holds)])
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # the number of each is its row in the cache
        self._may_read = True  # in the next step: it was not done in the last one

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the ids of a prompt, those of an empty one being an end of text.

        Raises:
            InputError: the prompt is of ids, and the model lacks one of them.
        """
        if isinstance(prompt, str):
            return self.loaded.tokenizer.encode(prompt, add_special_tokens=False).ids or [self.end]
        size = self.loaded.model.vocab_size
        for id in prompt:
            if not 0 <= id < size:
                raise InputError(f"prompt: {brief(id)} is no token id; the model has those from 0 to {size - 1}")
        return list(prompt) or [self.end]

    def prepare(self, request: Request) -> Generation:
        """Return the text that is to follow a prompt, before it is added to those that wait."""
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        return Generation(request, self.vocabulary, seed)

    def submit(self, request: Request) -> Generation:
        """Add a prompt to those that wait, and return the text that is to follow it."""
        self.waiting.append(generation := self.prepare(request))
        return generation

    @property
    def busy(self) -> bool:
        """Whether a text runs or waits."""
        return bool(self.running or self.waiting)

    def clear(self) -> None:
        """Drop every text."""
        self.waiting.clear()
        self.running.clear()

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Write the first token of texts that wait, as many as there is room for, or the next one of all that run.

        The two take turns: a first token does not wait for the others' next, and no stream of prompts holds those up.

        Raises:
            Damaged: the model gives numbers that are not finite.
        """
        pieces = [self._leave(generation) for generation in [*self.running, *self.waiting] if generation.cancelled]
        may_read, self._may_read = self._may_read, True
        if may_read and (read := self._read()):
            self._may_read = False
            return pieces + read
        rows = [row for row, generation in enumerate(self.running) if generation.cached < self.length]
        if rows:
            # A row that is full is read anew in the next step, so its last place may be lost.
            places = [min(generation.cached, self.length - 1) for generation in self.running]
            logits_BV = self.model.step([generation.ids[-1] for generation in self.running], places)
            going_on = [self.running[row] for row in rows]
            for generation in going_on:
                generation.cached += 1
            pieces += self._write(going_on, logits_BV if len(rows) == len(logits_BV) else logits_BV[rows])
        return pieces

    def _read(self) -> list[Piece]:
        """Read the prompts of those that join, and anew the last half of the context of those that have filled it."""
        pieces = []
        full = [generation for generation in self.running if generation.cached == self.length]
        if self.mode.past == "stop":
            for generation in full:
                generation.finish = "length"
                pieces.append(self._leave(generation))
            full = []
        texts = [tuple(generation.all_ids[-max(1, self.length // 2) :]) for generation in full]
        while self.waiting and len(self.running) < self.model.rows and sum(map(len, set(texts))) < READ_AT_ONCE:
            generation = self.waiting.popleft()
            self.running.append(generation)
            full.append(generation)
            texts.append(tuple(generation.request.prompt_ids[-self.length :]))
        if not texts:
            return pieces
        hidden = self._read_once(texts, [self.running.index(generation) for generation in full])
        for generation, text, hidden_TC in zip(full, texts, hidden, strict=True):
            if generation.request.echo and not generation.cached:
                generation.prompt_scores = list(self._score(hidden_TC, text, generation.request.log_probs or 0))
            generation.cached = len(text)
        logits_BV = self.model.last_logits(hidden)
        return pieces + self._write(full, logits_BV)

    def _read_once(self, texts: list[tuple[int, ...]], rows: list[int]) -> list[Tensor]:
        """Read texts into rows of the cache and return their hidden states; equal ones are read once and copied."""
        first: dict[tuple[int, ...], int] = {}  # the row of each text
        for text, row in zip(texts, rows, strict=True):
            first.setdefault(text, row)
        hidden = dict(zip(first, self.model.read(list(map(list, first)), list(first.values())), strict=True))
        for text, row in zip(texts, rows, strict=True):
            if (source := first[text]) != row:
                self.model.copy(source, row, len(text))
        return [hidden[text] for text in texts]

    def _score(self, hidden_TC: Tensor, text: Sequence[int], top: int) -> Iterator[LogProbs]:
        """Yield the log-probabilities of a text's tokens but the first."""
        for start in range(0, len(text) - 1, SCORED_AT_ONCE):
            logits_NV = self.model.logits(hidden_TC[start : min(start + SCORED_AT_ONCE, len(text) - 1)]).cpu()
            for number, logits_V in enumerate(logits_NV, start + 1):
                yield log_probabilities(logits_V, text[number], top)

    def _write(self, generations: list[Generation], logits_BV: Tensor) -> list[Piece]:
        """Draw the next token of each text."""
        pieces, ids = [], likeliest(logits_BV)
        if not logits_BV[range(len(ids)), ids].isfinite().all():
            raise Damaged("the model is damaged: its logits are not finite")
        if together := [row for row, one in enumerate(generations) if one.request.sampling.draws_from_all]:
            temperatures = [generations[row].request.sampling.temperature for row in together]
            scaled_BV = logits_BV[together] / torch.tensor(temperatures, device=logits_BV.device)[:, None]
            drawn = draw(scaled_BV, [generations[row].number for row in together])
            for row, id in zip(together, drawn, strict=True):
                ids[row] = id
        for generation, logits_V, id in zip(generations, logits_BV, ids, strict=True):
            text, tokens = self._next(generation, logits_V, id)
            if generation.finish is None:
                pieces.append(Piece(generation, text, tokens, None))
            else:
                last = self._leave(generation)
                pieces.append(Piece(generation, text + last.text, tokens + last.tokens, generation.finish))
        return pieces

    def _next(self, generation: Generation, logits_V: Tensor, id: int) -> tuple[str, list[Token]]:
        """Add the next token of a text: `id`, unless it is to be drawn from a part of the logits."""
        request, sampling = generation.request, generation.request.sampling
        if sampling.max_tokens == 0:
            generation.finish = "length"
            return "", []
        if not (sampling.takes_likeliest or sampling.draws_from_all):
            id = sample(logits_V, sampling, request.prompt_ids, generation.ids, generation.number)
        log_probs = None if request.log_probs is None else log_probabilities(logits_V, id, request.log_probs)
        text, tokens = generation.append(id, log_probs, is_end=id == self.end)
        if generation.finish is None and len(generation.ids) >= sampling.max_tokens:
            generation.finish = "length"
        return text, tokens

    def _leave(self, generation: Generation) -> Piece:
        """Take a text out of the batch; the last one takes its row."""
        if generation.cancelled:
            generation.finish = "cancelled"
        if generation in self.running:
            row, last = self.running.index(generation), len(self.running) - 1
            moved = self.running.pop()
            if row != last:
                self.model.copy(last, row, moved.cached)
                self.running[row] = moved
        else:
            self.waiting.remove(generation)
        return Piece(generation, *generation.end(), generation.finish)


class Completion(NamedTuple):
    """What followed a prompt. `tokens` are those whose text is in `text`, and the end of text that ended it."""

    text: str
    tokens: list[Token]
    prompt_scores: list[LogProbs]
    finish: Finish


def run(engine: Engine, requests: Sequence[Request]) -> Iterator[Piece]:
    """Yield the pieces of the texts of all requests, as they come."""
    for request in requests:
        engine.submit(request)
    while engine.busy:
        yield from engine.step()


def complete(engine: Engine, requests: Sequence[Request]) -> Iterator[Completion]:
    """Yield what follows the prompt of each request, in order, as soon as it and those before it are done."""
    generations = deque(engine.submit(request) for request in requests)
    pieces: dict[Generation, list[Piece]] = {generation: [] for generation in generations}
    while generations:
        if pieces[generations[0]] and pieces[generations[0]][-1].finish is not None:
            generation = generations.popleft()
            yield join(generation, pieces.pop(generation))
            continue
        for piece in engine.step():
            pieces[piece.generation].append(piece)


def join(generation: Generation, pieces: Sequence[Piece]) -> Completion:
    """Return the whole of a text from all its pieces."""
    text = "".join(piece.text for piece in pieces)
    finish = pieces[-1].finish
    assert finish is not None
    return Completion(text, [token for piece in pieces for token in piece.tokens], generation.prompt_scores, finish)
