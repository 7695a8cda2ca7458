"""What the tests of deployed runs share: a server with its workers, and a corpus."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.runs import STEPS, tiny_run, write_corpus
from tests.e2e.services import POSTGRESQL, Prefect, database, prefect, until

SECRET = "sk-not-for-anyone-0123456789"
SECRET_PATH = "hooks/not-for-anyone-either"
# A process does a file at a time; what takes longest or waits most begins first
FIRST = ("test_deployed_kills", "test_deployed", "test_beyond_one_host", "test_default_run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(FIRST)))


class Webhook(ThreadingHTTPServer):
    """An address that keeps what is posted to it."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        super().__init__(("127.0.0.1", 0), self._handler())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        posted = self.posted

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler

    @property
    def runs(self) -> list[str]:
        """Return the id of the run that each message is about."""
        return [re.search(r"flow-run/([0-9a-f-]{36})", text)[1] for text in self.posted]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET_PATH}"


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        thread = threading.Thread(target=webhook.serve_forever)
        thread.start()
        yield webhook
        webhook.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """Return a folder that the processes of a run of the tests have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="module")
def stack(tmp_path_factory, shared, webhook) -> Iterator[Prefect]:
    """Return a server on which everything is deployed, with a worker of each pool.

    A run is taken for lost only after a silence that is so long that a busy machine loses none.
    """
    folder, secrets = tmp_path_factory.mktemp("stack"), {"WANDB_API_KEY": SECRET, "TEXTGEN_NOTIFY_URL": webhook.url}
    with database(shared) as environment, prefect(folder, **secrets, **environment) as stack:
        stack.set_up(str(folder / "shared"))
        stack.start_worker("cpu")
        stack.start_worker("gpu")
        yield stack
        until(lambda: not stack.live_runs(), "every run ends")
        if POSTGRESQL is not None:  # with a busy SQLite Prefect 3.8.8 acts on an event again
            assert len(webhook.runs) == len(set(webhook.runs)), "a run was told of twice"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> dict[str, str]:
    """Return an environment with an empty home: no account, no caches, no Prefect database."""
    folder = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_", "PREFECT_"))}
    return {**kept, "HOME": str(folder), "PREFECT_HOME": str(folder / "prefect")}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """Return the override that names a corpus of three small files."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def parameters(corpus, tmp_path) -> Callable[..., dict[str, Any]]:
    """Return a function that makes the parameters of a tiny run in a storage of the test's own."""

    def make(steps: int = STEPS, **choices: Any) -> dict[str, Any]:
        return tiny_run(corpus, f"storage.root={tmp_path / 'data'}", steps=steps, **choices)

    return make
