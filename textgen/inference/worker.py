"""The worker: one thread that computes, for the requests of a server, with the version in use and those before it.

A version that takes over is loaded and checked beside the one in use. A request ends on the version it began with.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from textgen.errors import Damaged, Failure, InputError
from textgen.inference.engine import DEFAULT, ROWS, Engine, Generation, Mode, Piece, Request, complete
from textgen.inference.sampling import SamplingConfig
from textgen.model.pretrained import LoadedModel
from textgen.terminal import one_line

log = logging.getLogger(__name__)

TRY_AGAIN_SECONDS = 60  # after which a version that was refused is loaded once more
PROBE_TOLERANCE = 0.02  # nats a token, between the engine and the evaluation, which may have been in bf16


class Probe(NamedTuple):
    """A piece of a model's validation text, and what its evaluation made of it: the nats of the last tokens."""

    ids: list[int]
    nats: list[float]


class Version(NamedTuple):
    """A model that can be served, with what is told about it."""

    name: str  # NAME@v3, or the folder of a model that has no version
    loaded: LoadedModel
    about: dict[str, Any]
    probe: Probe | None


class Source(Protocol):
    """Where versions come from. Both methods may raise InputError or Failure."""

    name: str  # of the model

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call the version in use, beside the version's own name."""

    def current(self) -> str | None:
        """Return the name of the version in use, None before there is one."""

    def load(self, version: str) -> Version:
        """Return a version, checked against its manifest."""


@dataclass(eq=False)
class Job:
    """What a request asked of the worker, and the pieces that it gets, an exception last if it fails.

    With `stream` the pieces come with each token, without it when all texts are written: to wake who waits takes time
    that the engine needs.
    """

    served: "Served"
    generations: list[Generation]
    stream: bool
    pieces: "asyncio.Queue[list[tuple[int, Piece]] | Exception]" = field(default_factory=asyncio.Queue)
    started: float = field(default_factory=time.monotonic)
    ready: list[tuple[int, Piece]] = field(default_factory=list)  # and not delivered yet

    def cancel(self) -> None:
        """Have its texts leave the batch before the next token."""
        for generation in self.generations:
            generation.cancelled = True


class Full(Exception):
    """As many texts wait as may."""


@dataclass(eq=False)
class Served:
    """A version and the engine that runs it."""

    version: Version
    engine: Engine
    jobs: dict[Generation, tuple[Job, int]] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))


class Worker:
    """The thread that computes. Its methods may be called from others."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, most_waiting: int, on_piece: Callable[[Job, Piece], None]
    ) -> None:
        self.loop, self.most_waiting, self.on_piece = loop, most_waiting, on_piece
        self.served: dict[str, Served] = {}
        self.current: Served | None = None
        self.kept: Served | None = None
        self._changed = threading.Condition()
        self._new: list[tuple[Served, Generation]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def use(self, served: Served) -> None:
        """Send the requests that come from now on to this version, unless they ask for another one."""
        with self._changed:
            # It may still run from when it was in use before.
            self.current = self.served.setdefault(served.version.name, served)
            self._changed.notify()

    def keep(self, served: Served) -> Served:
        """Keep a version beside the one in use; the one that was kept before is forgotten when it has nothing to do."""
        with self._changed:
            self.kept = kept = self.served.setdefault(served.version.name, served)
            self._changed.notify()
            return kept

    @property
    def current_name(self) -> str | None:
        """The name of the version in use."""
        return None if self.current is None else self.current.version.name

    @property
    def running(self) -> int:
        """How many texts are being written."""
        return sum(len(one.engine.running) for one in list(self.served.values()))

    @property
    def waiting(self) -> int:
        """How many texts wait to be begun."""
        return len(self._new) + sum(len(one.engine.waiting) for one in list(self.served.values()))

    def submit(self, served: Served, requests: Sequence[Request], stream: bool) -> Job:
        """Have a version continue some prompts, even if another one has taken over since it was asked for.

        Raises:
            Full: more than `most_waiting` would wait.
        """
        with self._changed:
            served = self.served.setdefault(served.version.name, served)
            free = max(0, served.engine.model.rows - len(served.engine.running) - self.waiting)
            if self.waiting + len(requests) > self.most_waiting + free:
                raise Full
            job = Job(served, [served.engine.prepare(request) for request in requests], stream)
            for index, generation in enumerate(job.generations):
                served.jobs[generation] = (job, index)
                self._new.append((served, generation))
            self._changed.notify()
        return job

    def stop(self) -> None:
        """End the thread after the token that it computes."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._retire()
                while not (self._stopping or self._new or self._busy()):
                    self._changed.wait()
                    self._retire()
                if self._stopping:
                    return
                for served, generation in self._new:
                    served.engine.waiting.append(generation)
                self._new.clear()
                busy = self._busy()
            for served in busy:
                self._step(served)

    def _busy(self) -> list[Served]:
        return [one for one in self.served.values() if one.engine.busy]

    def _retire(self) -> None:
        """Forget the versions that were in use before and have no text left to write."""
        for name, one in list(self.served.items()):
            if one not in (self.current, self.kept) and not one.jobs:
                del self.served[name]

    def _step(self, served: Served) -> None:
        try:
            jobs = set()
            for piece in served.engine.step():
                job, index = served.jobs[piece.generation]
                job.ready.append((index, piece))
                jobs.add(job)
                self.on_piece(job, piece)
                if piece.finish is not None:
                    del served.jobs[piece.generation]
            done = [job for job in jobs if job.stream or all(one.finish for one in job.generations)]
            ready = [(job, job.ready) for job in done]
            for job in done:
                job.ready = []
        except Exception as error:  # whatever it is, those who wait must hear of it, and the thread goes on
            if not isinstance(error, Failure):
                log.exception("the engine failed")
            self._fail(served, error)
            return
        if ready:
            self.loop.call_soon_threadsafe(_deliver, ready)

    def _fail(self, served: Served, error: Exception) -> None:
        served.engine.clear()
        with self._changed:  # a request that comes meanwhile is in `jobs` and in `_new`, or in neither
            jobs = {job for job, _ in served.jobs.values()}
            self._new = [one for one in self._new if one[0] is not served]
            served.jobs.clear()
        for job in jobs:
            self.loop.call_soon_threadsafe(job.pieces.put_nowait, error)


def _deliver(ready: list[tuple[Job, list[tuple[int, Piece]]]]) -> None:
    for job, pieces in ready:
        job.pieces.put_nowait(pieces)


def prepare(version: Version, rows: int = ROWS, mode: Mode = DEFAULT) -> Served:
    """Return a version with its engine, after the engine has scored what the evaluation did.

    Raises:
        Damaged: it gives other figures.
    """
    engine = Engine(version.loaded, rows, mode)
    if version.probe is not None:
        check_probe(engine, version.probe, version.name)
    return Served(version, engine)


def check_probe(engine: Engine, probe: Probe, name: str) -> None:
    """Check that the engine gives a piece of text the probability that the evaluation gave it.

    Raises:
        Damaged: the mean differs by more than PROBE_TOLERANCE, or the text has ids that the model lacks.
    """
    try:
        ids = engine.encode(probe.ids)
    except InputError as error:
        raise Damaged(f"{name}: its probe is damaged: {error}") from None
    request = Request(ids, SamplingConfig(max_tokens=0), log_probs=0, echo=True)
    [completion] = complete(engine, [request])
    found = [score.nats for score in completion.prompt_scores[-len(probe.nats) :]]
    engine_nats, gate_nats = (-sum(found) / len(found), sum(probe.nats) / len(probe.nats))
    if not abs(engine_nats - gate_nats) <= PROBE_TOLERANCE:
        raise Damaged(
            f"{name}: the engine gives {engine_nats:.4f} nats a token where the evaluation gave {gate_nats:.4f}"
        )


class Follower:
    """Watches which version is in use and has the worker go over to it. `refused` says why a version was not taken."""

    def __init__(self, source: Source, worker: Worker, prepare: Callable[[Version], Served], seconds: float) -> None:
        self.source, self.worker, self.seconds = source, worker, seconds
        self.refused: str | None = "the first version is being loaded"
        self._prepare, self._stopping = prepare, threading.Event()
        self._tried: str | None = None
        self._again = 0.0
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def keep(self, version: str) -> Served:
        """Load a version beside the one in use, and return it."""
        return self.worker.keep(self._prepare(self.source.load(version)))

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(self.seconds)

    def look(self) -> None:
        """Go over to the version in use, if it is another one and sound."""
        try:
            current = self.source.current()
        except (InputError, Failure, OSError) as error:
            self._refuse(str(error))
            self._again = 0.0
            return
        if current != self._tried:
            self._tried, self._again = current, 0.0
        if current is None:
            self._refuse(f"{self.source.name}@champion: there is no champion")
            return
        if current == self.worker.current_name:
            self.refused = None
            return
        if time.monotonic() < self._again:
            return
        self._again = time.monotonic() + TRY_AGAIN_SECONDS
        try:
            served = self.worker.served.get(current) or self._prepare(self.source.load(current))
        except (InputError, Failure, OSError, RuntimeError) as error:  # the last is torch's, of memory
            self._refuse(str(error))
        except Exception as error:  # whatever is wrong with a version, the next one must be looked for
            log.exception("%s cannot be loaded", current)
            self._refuse(f"{current}: {one_line(error)}")
        else:
            self.worker.use(served)
            self.refused = None
            log.info("%s is served", current)

    def _refuse(self, reason: str) -> None:
        if reason != self.refused:
            log.warning("%s; %s", reason, "the version before stays" if self.worker.current else "nothing is served")
        self.refused = reason
