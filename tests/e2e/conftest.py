"""What the tests of deployed runs share: a server with its workers, and a corpus."""

from collections.abc import Iterator

import pytest

from tests.e2e.runs import write_corpus
from tests.e2e.services import Prefect, database, prefect

LOST_AFTER_SECONDS = 95  # three heartbeats of 30 seconds
SECRET = "sk-not-for-anyone-0123456789"


@pytest.fixture(scope="session")
def stack(tmp_path_factory) -> Iterator[Prefect]:
    """Return a server on which everything is deployed, with a worker of each pool."""
    folder = tmp_path_factory.mktemp("stack")
    with database() as environment, prefect(folder, WANDB_API_KEY=SECRET, **environment) as stack:
        stack.set_up(str(folder / "shared"), "--lost-after", str(LOST_AFTER_SECONDS))
        stack.start_worker("cpu")
        stack.start_worker("gpu")
        yield stack


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """Return the override that names a corpus of three small files."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
