"""A Prefect server and its workers as processes of a test's own, and what a test asks of them."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
from filelock import FileLock

from tests import waiting
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

until = partial(waiting.until, poll_seconds=0.7)  # a server that is asked often does little else


def free_port() -> int:
    """Return a port that nobody listens on, below those that Linux by default gives to a program's connections."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := random.SystemRandom().randrange(10_000, 32_000)))
            return port


class Process:
    """A command in a session of its own, whose output is kept in a file."""

    def __init__(self, arguments: list[str | Path], env: dict[str, str], log: Path, cwd: Path = ROOT) -> None:
        self.log = log
        with log.open("a") as file:
            self.popen = subprocess.Popen(
                [str(argument) for argument in arguments], cwd=cwd, env=env, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL the process, not what it started."""
        self.popen.kill()
        self.popen.wait()

    def kill_group(self) -> None:
        """SIGKILL the process and all that it started, as the loss of a machine does."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class Prefect:
    """A server with a database of its own, its workers, its deployments, its API."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.port, self.storage = folder, free_port(), ""  # what `set_up` is given
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WANDB_", "HF_", "PREFECT_", "AWS_", "TEXTGEN_NOTIFY_"))
        }
        self.env = {
            **kept,
            "HOME": str(folder),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_API_REQUEST_TIMEOUT": f"{PATIENCE_SECONDS:.0f}",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        headers = {}
        if auth := environment.get("PREFECT_API_AUTH_STRING"):
            headers["Authorization"] = httpx.BasicAuth(*auth.split(":", 1))._auth_header
        self.api = httpx.Client(base_url=f"{self.url}/api/", headers=headers, timeout=60)
        self.processes: dict[str, Process] = {}

    def start(self, name: str, *arguments: str | Path, **environment: str) -> Process:
        """Start a process of this name."""
        log = self.folder / f"{name}-{len(list(self.folder.glob(f'{name}-*.log')))}.log"
        self.processes[name] = Process(list(arguments), {**self.env, **environment}, log)
        return self.processes[name]

    def start_server(self) -> Process:
        """Start the server and wait until it answers."""
        server = self.start(
            "server", BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)
        )
        until(lambda: self.is_up() or server.popen.poll() is not None, "the server answers")
        assert server.popen.poll() is None, server.log.read_text()[-2000:]
        return server

    def is_up(self) -> bool:
        try:
            return self.api.get("health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def start_worker(self, pool: str, **environment: str) -> Process:
        """Start a worker of a pool and wait until it polls."""
        worker = self.start(
            f"worker-{pool}", BIN / "prefect", "worker", "start", "--pool", pool, "--type", "process", **environment
        )
        until(lambda: "started!" in worker.log.read_text(), f"the worker of {pool} starts")
        return worker

    def command(self, *arguments: str | Path) -> str:
        """Run a command against this server and return what it prints."""
        done = subprocess.run(
            [str(argument) for argument in arguments], cwd=ROOT, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def set_up(self, storage: str) -> None:
        """Do what the README's Deploy section does after the server is started, but for the workers."""
        self.storage = storage
        self.set_lost_after(PATIENCE_SECONDS)
        self.command(BIN / "prefect", "--no-prompt", "deploy", "--all")

    def set_lost_after(self, seconds: float) -> None:
        """Have the server take a run that is silent for so long for lost."""
        lost_after = ("--lost-after", f"{seconds:.0f}")
        self.command(sys.executable, "-m", "flows.setup", "--storage", self.storage, *lost_after)

    def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Return the answer to a request that may be sent twice: a busy server does not answer, or says so."""

        def answer() -> httpx.Response | None:
            try:
                response = self.api.request(method, path, json=body)
            except httpx.TransportError:
                return None
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        return until(answer, path)

    def get(self, path: str) -> Any:
        return self.send("GET", path).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.send("POST", path, body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def request_run(self, parameters: dict[str, Any], deployment: str = "train-flow/on-demand") -> httpx.Response:
        """Ask for a run of a deployment and return the answer."""
        deployment_id = self.get(f"deployments/name/{deployment}")["id"]
        body = {"parameters": parameters, "idempotency_key": str(uuid.uuid4())}
        return self.send("POST", f"deployments/{deployment_id}/create_flow_run", body)

    def create_run(self, parameters: dict[str, Any], deployment: str = "train-flow/on-demand") -> str:
        """Start a run of a deployment and return its id."""
        answer = self.request_run(parameters, deployment)
        assert answer.is_success, answer.text
        return answer.json()["id"]

    def run(self, run_id: str) -> dict[str, Any]:
        return self.get(f"flow_runs/{run_id}")

    def wait(self, run_id: str) -> dict[str, Any]:
        """Return the run when it has ended."""
        return until(lambda: (run := self.run(run_id))["state_type"] in ENDED and run, f"run {run_id} ends")

    def children(self, run_id: str) -> list[dict[str, Any]]:
        """Return the runs of train-model that a run started or joined, the oldest first."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return self.post("flow_runs/filter", body)

    def live_runs(self) -> list[dict[str, Any]]:
        """Return every run that has not ended, scheduled ones of the future apart."""
        body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING", "PAUSED"]}}}}
        return self.post("flow_runs/filter", body)

    def logs(self, run_id: str) -> list[str]:
        """Return the lines of a run's log."""
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [line["message"] for line in self.post("logs/filter", body)]

    def artifacts(self, run_id: str) -> dict[str, Any]:
        """Return the data of a run's artifacts by key."""
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return {
            artifact["key"]: artifact["data"] for artifact in self.post("artifacts/filter", body) if artifact["key"]
        }

    def stop(self) -> None:
        """End every process that was started here, and the runs that workers started."""
        for process in self.processes.values():
            process.kill_group()
        kill(processes_with(f"PREFECT_API_URL={self.url}/api"))
        self.api.close()


POSTGRESQL = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)  # Debian's


@contextmanager
def database(shared: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a server with PostgreSQL, or, where it is not installed, with SQLite.

    With SQLite, Prefect 3.8.8 locks itself out for a minute now and then, and requests to it time out.
    """
    with ExitStack() as stack:
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": stack.enter_context(postgresql(shared))} if POSTGRESQL else {}


@contextmanager
def postgresql(shared: Path) -> Iterator[str]:
    """Yield the URL of a PostgreSQL database that has Prefect's tables, in a cluster that is gone after the block.

    Making the tables takes several seconds of a processor. The first cluster is kept in `shared`, a folder that the
    test processes have in common, and every cluster is a copy of it.
    """
    template = shared / "postgresql"
    with FileLock(f"{template}.lock"):
        if not template.exists():
            with Cluster() as cluster:
                cluster.initialize()
                with cluster.running(stop="fast") as url:
                    migrate = [BIN / "prefect", "server", "database", "upgrade", "--yes"]
                    environment = {
                        "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
                        "PREFECT_HOME": str(shared / "prefect"),
                    }
                    done = subprocess.run(migrate, env={**os.environ, **environment}, capture_output=True, text=True)
                    assert done.returncode == 0, done.stdout + done.stderr
                shutil.copytree(cluster.data, made := shared / "postgresql-made")
            made.rename(template)
    with Cluster() as cluster:
        shutil.copytree(template, cluster.data)
        with cluster.running() as url:
            yield url


class Cluster:
    """A PostgreSQL cluster in a temporary folder, of a user that is not root: PostgreSQL refuses to run as root."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.data, self.password = self.folder / "cluster", self.folder / "password"
        self.password.write_text("sesame")
        self.prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def initialize(self) -> None:
        """Make the files of an empty cluster."""
        self._run("initdb", "-D", self.data, "-U", "prefect", "--auth=scram-sha-256", f"--pwfile={self.password}")

    @contextmanager
    def running(self, stop: str = "immediate") -> Iterator[str]:
        """Run the server of the cluster while the block runs; yield the URL of its database.

        `stop`: "fast" where the cluster is to be kept, as all of it is then in its files.
        """
        port = free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        wait = ("-w", "-t", f"{PATIENCE_SECONDS:.0f}", "-D", self.data)
        self._run("pg_ctl", "start", *wait, "-l", self.folder / "log", "-o", options)
        try:
            yield f"postgresql+asyncpg://prefect:sesame@127.0.0.1:{port}/postgres"
        finally:
            self._run("pg_ctl", "stop", *wait, "-m", stop)

    def _run(self, name: str, *arguments: str | Path) -> None:
        assert POSTGRESQL is not None
        if self.prefix:
            subprocess.run(["chown", "-R", "postgres", self.folder], check=True)
        # The server keeps what it is given as standard output
        with (self.folder / "printed").open("w+") as printed:
            command = [*self.prefix, POSTGRESQL / name, *arguments]
            done = subprocess.run(command, cwd=self.folder, stdout=printed, stderr=printed)
            printed.seek(0)
            assert done.returncode == 0, printed.read()


@contextmanager
def prefect(folder: Path, **environment: str) -> Iterator[Prefect]:
    """Yield a running server that ends, with all of its workers, with the block."""
    stack = Prefect(folder, **environment)
    try:
        stack.start_server()
        yield stack
    finally:
        stack.stop()


def kill(processes: list[int]) -> None:
    """SIGKILL processes, of which some may have ended with others."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def processes_of_run(run_id: str) -> list[int]:
    """Return the ids of the processes that execute a flow run."""
    return processes_with(f"PREFECT__FLOW_RUN_ID={run_id}")


def processes_with(variable: str) -> list[int]:
    """Return the ids of the processes that have this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if variable.encode() in environment.split(b"\0"):
            found.append(int(process.name))
    return sorted(found)
