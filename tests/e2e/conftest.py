"""What the tests of deployed runs share: a server with its workers, and a corpus."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.runs import write_corpus
from tests.e2e.services import Prefect, database, prefect

LOST_AFTER_SECONDS = 95  # three heartbeats of 30 seconds
SECRET = "sk-not-for-anyone-0123456789"
SECRET_PATH = "hooks/not-for-anyone-either"


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
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET_PATH}"


@pytest.fixture(scope="session")
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        thread = threading.Thread(target=webhook.serve_forever)
        thread.start()
        yield webhook
        webhook.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def stack(tmp_path_factory, webhook) -> Iterator[Prefect]:
    """Return a server on which everything is deployed, with a worker of each pool."""
    folder = tmp_path_factory.mktemp("stack")
    secrets = {"WANDB_API_KEY": SECRET, "TEXTGEN_NOTIFY_URL": webhook.url}
    with database() as environment, prefect(folder, **secrets, **environment) as stack:
        stack.set_up(str(folder / "shared"), "--lost-after", str(LOST_AFTER_SECONDS))
        stack.start_worker("cpu")
        stack.start_worker("gpu")
        yield stack


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """Return the override that names a corpus of three small files."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
