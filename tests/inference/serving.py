"""A server in a thread of the test's process, and a shelf of versions from which it serves."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import uvicorn
from fastapi import FastAPI

from textgen.errors import InputError
from textgen.inference.server import Settings, State, make_app
from textgen.inference.worker import Version
from textgen.model.pretrained import LoadedModel
from textgen.model.transformer import LanguageModel

PATIENCE = 180  # seconds, of a slow machine
ENDLESS = 10**9  # tokens of a text that is still written when a test looks, however fast the machine
QUICK = Settings(follow_seconds=0.02, max_tokens=ENDLESS)


class Shelf:
    """A source whose versions are made here. A version that is an exception is raised when it is loaded."""

    name = "tiny"

    def __init__(self, **versions: LoadedModel | Exception) -> None:
        self.versions = {f"{self.name}@{version}": model for version, model in versions.items()}
        self.champion: str | None = next(iter(versions), None)

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, f"{self.name}@champion"

    def current(self) -> str | None:
        return None if self.champion is None else f"{self.name}@{self.champion}"

    def load(self, version: str) -> Version:
        if version not in self.versions:
            raise InputError(f"{version}: no such model")
        model = self.versions[version]
        if isinstance(model, Exception):
            raise model
        return Version(version, model, {}, None)


def another(loaded: LoadedModel, seed: int) -> LoadedModel:
    """Return a model of the same shape with other weights."""
    torch.manual_seed(seed)
    return replace(loaded, model=LanguageModel(loaded.model.config, loaded.model.vocab_size).eval())


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.005)


class Running:
    """A server that runs."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self.app, self.url = app, f"http://127.0.0.1:{port}"

    @property
    def state(self) -> State:
        return self.app.state.shared

    def never_end(self) -> None:
        """Let no text of the versions that are served end by itself."""
        for served in self.state.worker.served.values():
            served.engine.end = -1

    def wait_until_served(self, version: str) -> None:
        """Return when a version is in use."""
        wait_until(lambda: self.state.worker.current_name == f"{Shelf.name}@{version}")


@contextmanager
def serve(shelf: Shelf, settings: Settings = QUICK) -> Iterator[Running]:
    """Run a server while the block runs."""
    app = make_app(shelf, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        running = Running(app, server.servers[0].sockets[0].getsockname()[1])
        if shelf.champion is not None:
            wait_until(lambda: running.state.reason is None or "being loaded" not in running.state.reason)
        yield running
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
