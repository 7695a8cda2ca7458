"""Which Prefect server a command uses where PREFECT_API_URL is not set: no two servers write one database."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_PORT,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from flows.server import chosen_server, claimed, find_file, find_live_server

NOBODY = {PREFECT_API_URL: None, PREFECT_SERVER_API_PORT: 9}
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE IF NOT EXISTS runs (id)")
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def hold(database: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that has a database open as Prefect's servers have."""
    command = [sys.executable, "-c", HOLD, database]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        yield process


def no_server(database: Path) -> AbstractContextManager[object]:
    """Return a context in which no server runs, and a temporary one would have this database."""
    url = f"sqlite+aiosqlite:///{database}"
    return temporary_settings({**NOBODY, PREFECT_SERVER_DATABASE_CONNECTION_URL: url})


def find_claimed(database: Path) -> Path:
    """Return the database that a temporary server would have where it would be `database` by default."""
    with claimed(database) as found:
        return found


@pytest.mark.usefixtures("prefect_server")
def test_a_server_that_runs_in_this_home_is_used_and_one_of_another_home_is_not(tmp_path):
    """A temporary server was started on the same database, and both found it locked."""
    url = PREFECT_API_URL.value()
    assert url is not None
    with temporary_settings({PREFECT_API_URL: None, PREFECT_SERVER_API_PORT: urlsplit(url).port}):
        with chosen_server() as server:
            assert server.startswith(f"{url}, ")
            assert PREFECT_API_URL.value() == url
        with temporary_settings({PREFECT_HOME: tmp_path}):
            assert find_live_server() is None
    with chosen_server() as server:
        assert server == url, "as it is set"


def test_a_database_that_another_process_has_open_is_left_to_it(tmp_path):
    first, second, third = (tmp_path / name for name in ("prefect.db", "prefect-2.db", "prefect-3.db"))
    assert find_claimed(first) == first, "there is none"
    with hold(first) as holder, hold(second):
        with no_server(first), chosen_server() as server:
            assert server.startswith(f"a temporary one, on {third}")
            assert PREFECT_SERVER_DATABASE_CONNECTION_URL.value() == f"sqlite+aiosqlite:///{third}"
        holder.kill()
        holder.wait()
        assert first.with_name("prefect.db-shm").exists(), "as after a crash"
        assert find_claimed(first) == first
    with closing(sqlite3.connect(first)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,), "looking harms nothing"


def test_commands_that_start_together_take_a_database_each(tmp_path):
    """Both found one free before either's server had opened it."""
    first = tmp_path / "home" / "prefect.db"
    with no_server(first), chosen_server() as server, chosen_server() as another:
        assert server == "a temporary one"
        assert another.startswith(f"a temporary one, on {first.with_name('prefect-2.db')}")
    assert find_claimed(first) == first


@pytest.mark.parametrize("url", ["postgresql+asyncpg://a:b@host/prefect", "sqlite+aiosqlite:///:memory:"])
def test_a_database_that_is_no_file_is_used_as_it_is(url):
    assert find_file(url) is None
    with temporary_settings({**NOBODY, PREFECT_SERVER_DATABASE_CONNECTION_URL: url}), chosen_server() as server:
        assert server == "a temporary one"
