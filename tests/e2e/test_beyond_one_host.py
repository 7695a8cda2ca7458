"""Machines that share no disk: a server with PostgreSQL and a password, S3 for the files, a home for each worker."""

from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from tests.e2e.runs import check_every_step, continued_from, tiny_run, until_trained
from tests.e2e.services import BIN, POSTGRESQL, Prefect, free_port, postgresql, prefect, until
from tests.waiting import held

PASSWORD = "open-sesame-0123456789"
CACHE = "textgen-cache"
pytestmark = pytest.mark.slow  # a run is two processes that import torch, and workers look for it every two seconds


class Bucket:
    """An object store as a client that is not ours sees it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        client.create_bucket(Bucket="bucket")

    def names(self, root: str, pattern: str) -> list[str]:
        """Return the objects under a root whose names, from there on, match a pattern."""
        prefix = root.removeprefix("s3://bucket/") + "/"
        found = self.client.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
        return [entry["Key"] for entry in found if fnmatch(entry["Key"].removeprefix(prefix), pattern)]

    def read(self, root: str, pattern: str) -> bytes:
        """Return the one object under a root that matches a pattern."""
        (name,) = self.names(root, pattern)
        return self.client.get_object(Bucket="bucket", Key=name)["Body"].read()

    def write(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket="bucket", Key=name, Body=data)


class Machines:
    """A Prefect stack, an object store, and the homes of the machines that work."""

    def __init__(self, stack: Prefect, bucket: Bucket, folder: Path) -> None:
        self.stack, self.bucket, self.folder = stack, bucket, folder

    def start(self, pool: str, machine: str) -> None:
        """Have the worker of a pool on this machine, in place of the one before."""
        if f"worker-{pool}" in self.stack.processes:
            self.stack.processes[f"worker-{pool}"].kill_group()
        (self.folder / machine).mkdir(exist_ok=True)
        self.stack.start_worker(pool, HOME=str(self.folder / machine))

    def cache(self, machine: str, root: str) -> Path:
        """Return the folder in which a machine has what it brought and made."""
        return self.folder / machine / CACHE / root.replace("://", "--").replace("/", "--")


@pytest.fixture(scope="module")
def machines(tmp_path_factory, shared) -> Iterator[Machines]:
    if POSTGRESQL is None:
        pytest.skip("PostgreSQL is not on this machine: apt-get install postgresql")
    folder, port = tmp_path_factory.mktemp("machines"), free_port()
    endpoint = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-for-anyone-either"}
    with (
        postgresql(shared) as database,
        prefect(
            folder,
            **keys,
            AWS_ENDPOINT_URL=endpoint,
            AWS_DEFAULT_REGION="us-east-1",
            PREFECT_SERVER_DATABASE_CONNECTION_URL=database,
            PREFECT_SERVER_API_AUTH_STRING=f"admin:{PASSWORD}",
            PREFECT_API_AUTH_STRING=f"admin:{PASSWORD}",
        ) as stack,
    ):
        stack.start("s3", BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port))
        until(lambda: _answers(endpoint), "the object store answers")
        with closing(
            boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="testing",
                         aws_secret_access_key="testing")
        ) as client:  # fmt: skip
            machines = Machines(stack, Bucket(client), folder)
            stack.set_up("s3://bucket/shared")
            machines.start("cpu", "flows")
            machines.start("gpu", "trainer")
            yield machines


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def parameters(corpus: str, root: str, **choices: Any) -> dict[str, Any]:
    return tiny_run(corpus, f"storage.root={root}", f"storage.cache=~/{CACHE}", **choices)


@pytest.fixture(scope="module")
def first(machines, corpus) -> tuple[str, dict[str, Any]]:
    """Return a storage root, and the run that was the first in it."""
    root = "s3://bucket/first"
    return root, machines.stack.wait(machines.stack.create_run(parameters(corpus, root)))


def test_the_server_wants_its_password(machines):
    assert httpx.get(f"{machines.stack.url}/api/flow_runs/count").status_code == httpx.codes.UNAUTHORIZED
    assert machines.stack.post("flow_runs/count", {}) >= 0


def test_a_run_goes_from_machine_to_machine_through_the_bucket(first, machines, corpus):
    stack, (root, run) = machines.stack, first
    assert run["state_name"] == "Completed", run["state"]["message"]
    (child,) = stack.children(run["id"])
    assert (child["state_name"], child["work_pool_name"]) == ("Completed", "gpu")
    trainer, flows = machines.cache("trainer", root), machines.cache("flows", root)
    assert {path.name for path in trainer.iterdir() if not path.name.startswith(".")} == {
        "processed", "checkpoints", "cache", "index.json",
    }, "the machine that trains needs no text"  # fmt: skip
    (weights,) = trainer.glob("checkpoints/*/model.safetensors")
    published = machines.bucket.read(root, "models/tiny/v1/model.safetensors")
    assert weights.read_bytes() == published == (flows / "models/tiny/v1/model.safetensors").read_bytes()
    assert machines.bucket.read(root, "models/tiny/champion") == b"v1\n"
    everything = "".join(map(str, [run, child, *stack.logs(run["id"]), *stack.logs(child["id"])]))
    assert "not-for-anyone-either" not in everything
    assert PASSWORD not in everything

    machines.start("cpu", "flows-new")
    again = stack.wait(stack.create_run(parameters(corpus, root)))
    assert again["state_name"] == "Nothing to do", stack.logs(again["id"])  # a machine that has nothing looks there
    assert stack.children(again["id"]) == []


def test_a_training_that_was_cancelled_goes_on_on_another_machine(machines, corpus):
    stack, root = machines.stack, "s3://bucket/cancelled"
    with held(machines.cache("trainer", root) / "checkpoints"):
        run_id = stack.create_run(parameters(corpus, root))
        until_trained(machines.cache("trainer", root))
        stack.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
        assert stack.wait(run_id)["state_name"] == "Cancelled"
        (child,) = stack.children(run_id)
        stack.wait(child["id"])
    newest = max(machines.cache("trainer", root).glob("checkpoints/*/states/step-*")).name

    machines.start("gpu", "trainer-new")
    again = stack.create_run(parameters(corpus, root))
    assert stack.wait(again)["state_name"] == "Completed"
    assert continued_from(stack, again) == [int(newest.removeprefix("step-"))]
    check_every_step(machines.cache("trainer-new", root))


def test_a_corrupted_object_is_noticed_and_replaced(first, machines, corpus):
    """The machine's own copy of the tokens; and then those in the bucket."""
    stack, (root, run) = machines.stack, first
    assert run["state_name"] == "Completed", run["state"]["message"]
    (tokens,) = machines.bucket.names(root, "processed/*/train.pt")
    folder = "/".join(tokens.split("/")[-3:-1])
    sound = machines.bucket.read(root, f"{folder}/train.pt")
    (here,) = machines.cache("trainer", root).glob("processed/*/train.pt")

    here.write_bytes(bytes(reversed(sound)))
    machines.start("gpu", "trainer")
    run = stack.wait(stack.create_run(parameters(corpus, root, seed=2)))
    assert run["state_name"] == "Completed", run["state"]["message"]
    assert here.read_bytes() == sound, "fetched again"
    (child,) = stack.children(run["id"])
    assert any("train.pt is damaged" in line and "set aside" in line for line in stack.logs(child["id"]))

    machines.bucket.write(tokens, bytes(reversed(sound)))
    machines.start("gpu", "trainer-last")
    run = stack.wait(stack.create_run(parameters(corpus, root, seed=3)))
    assert run["state_name"] == "Completed", run["state"]["message"]
    assert machines.bucket.read(root, f"{folder}/train.pt") == sound, "pushed again by the machine that has it"
    assert machines.bucket.read(root, f"{folder}.damaged-1/train.pt") != sound, "and never deleted"
