"""Which Prefect server a command uses: one that is named, one that runs already, or a temporary one of its own.

Two servers on one SQLite file fail with "database is locked".
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

import httpx
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    get_current_settings,
    temporary_settings,
)
from sqlalchemy.engine import make_url

from textgen.files import all_held, lock_file

PATIENCE = httpx.Timeout(30, connect=2)  # seconds: a closed port refuses at once, a busy server is slow to answer
HELD_BYTE = 128  # of a database's -shm file: each connection in WAL mode holds a lock on it (SQLite's UNIX_SHM_DMS)


@contextmanager
def chosen_server() -> Iterator[str]:
    """Have Prefect use a server while the block runs, and yield which, in words."""
    settings = get_current_settings()
    if settings.api.url is not None:
        yield settings.api.url
    elif (url := find_live_server()) is not None:
        with temporary_settings({PREFECT_API_URL: url}):
            yield f"{url}, which runs in {settings.home}"
    elif (own := find_file(PREFECT_SERVER_DATABASE_CONNECTION_URL.value())) is None:
        yield "a temporary one"
    else:
        with claimed(own) as database:
            if database == own:
                yield "a temporary one"
            else:
                with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}"}):
                    yield f"a temporary one, on {database}, as the database of {settings.home} is in use"


def find_live_server() -> str | None:
    """Return the address of the server that runs in this PREFECT_HOME, if it is where servers are by default.

    A server of another PREFECT_HOME is not used: its runs are somebody else's.
    """
    settings = get_current_settings()
    url = f"http://{settings.server.api.host}:{settings.server.api.port}/api"
    secret = settings.api.auth_string
    try:
        auth = httpx.BasicAuth(*secret.get_secret_value().split(":", 1)) if secret is not None else None
        answer = httpx.get(f"{url}/admin/settings", auth=auth, timeout=PATIENCE, trust_env=False)
        home = answer.raise_for_status().json()["home"]
    except (httpx.HTTPError, ValueError, TypeError, KeyError):  # no server, or one that is not Prefect's
        return None
    return url if Path(home).resolve() == settings.home.resolve() else None


def find_file(url: str) -> Path | None:
    """Return the file of a SQLite database's URL; None where there is no file."""
    place = make_url(url)
    if place.get_backend_name() != "sqlite" or not place.database or ":memory:" in place.database:
        return None
    return Path(place.database)


@contextmanager
def claimed(own: Path) -> Iterator[Path]:
    """Yield a database file that no server uses: `own`, else `…-2`, `…-3`. No other command takes it meanwhile.

    Without the lock, two commands that start together would both find a file free before either's server opens it.
    """
    others = (own.with_name(f"{own.stem}-{number}{own.suffix}") for number in count(2))
    for database in chain([own], others):
        with all_held([lock_file(database)]) as held:
            if held and not is_in_use(database):
                yield database
                return


def is_in_use(database: Path) -> bool:
    """Return whether a process has a SQLite database in WAL mode open, as Prefect's servers have."""
    try:
        with database.with_name(f"{database.name}-shm").open("r+b") as shared:
            fcntl.lockf(shared, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, HELD_BYTE)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
