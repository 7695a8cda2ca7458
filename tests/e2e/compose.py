"""Brings compose.yaml up, trains on a text, asks the server, and takes all of it down: `python -m tests.e2e.compose`.

It needs Docker with Compose, the ports 4200 and 8000, and some minutes. CI does not run it. BASE and TORCH_INDEX are
handed on to the build.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from tests.e2e.runs import TINY, WORDS, write_corpus
from tests.e2e.services import ENDED, ROOT, until

COMPOSE = ("docker", "compose", "--project-name", "textgen-trial")
PREFECT, SERVE = "http://127.0.0.1:4200/api", "http://127.0.0.1:8000"
STAYING = {"database", "server", "worker-cpu", "worker-gpu", "serve"}


class Stack:
    """The services of compose.yaml, with secrets and volumes of their own."""

    def __init__(self, text: Path) -> None:
        login, self.key = ("admin", secrets.token_urlsafe()), secrets.token_urlsafe()
        self.env = {
            **os.environ,
            "POSTGRES_PASSWORD": f"{secrets.token_urlsafe()}@:/?#%",
            "PREFECT_API_AUTH_STRING": ":".join(login),
            "PREFECT_SERVER_API_AUTH_STRING": ":".join(login),
            "TEXTGEN_API_KEY": self.key,
            "TEXTGEN_MODEL": "tiny@champion",
            "TEXTGEN_TEXT": str(text),
        }
        self.api = httpx.Client(base_url=PREFECT, auth=login, timeout=60)

    def compose(self, *arguments: str) -> str:
        done = subprocess.run([*COMPOSE, *arguments], cwd=ROOT, env=self.env, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, arguments
        return done.stdout

    def healthy(self) -> set[str]:
        """Return the services whose healthchecks pass."""
        lines = self.compose("ps", "--format", "json").splitlines()
        return {one["Service"] for one in map(json.loads, lines) if one["Health"] == "healthy"}

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self.api.get(path) if body is None else self.api.post(path, json=body)
        return answer.raise_for_status().json()

    def train(self, seed: int) -> dict[str, Any]:
        """Start a run as the form of the UI does, and return it when it has ended."""
        deployment = self.ask("/deployments/name/train-flow/on-demand")
        parameters = {
            "config": "default",
            "training": {"steps": 20, "seed": seed},
            "run": {"gpu_deployment": "train-model/gpu"},
            "overrides": ["data.files=data/text", *TINY],
        }
        run = self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        return until(lambda: (now := self.ask(f"/flow_runs/{run['id']}"))["state_type"] in ENDED and now, "it ends")

    def ready(self) -> dict[str, Any]:
        return httpx.get(f"{SERVE}/ready").json()

    def complete(self) -> tuple[str, str]:
        """Return the version that answers, and its text."""
        client = OpenAI(base_url=f"{SERVE}/v1", api_key=self.key, max_retries=0)
        reply = client.completions.create(model="tiny", prompt=WORDS[0], max_tokens=16, seed=1)
        return reply.model, reply.choices[0].text


def main() -> None:
    """Do what a user does, and check what a user sees."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the containers' user is another one
        write_corpus(Path(folder))
        stack = Stack(Path(folder))
        try:
            bring_up_and_train(stack)
        except BaseException:
            subprocess.run([*COMPOSE, "logs", "--tail", "50"], cwd=ROOT, env=stack.env)
            raise
        finally:
            stack.compose("down", "--volumes")


def bring_up_and_train(stack: Stack) -> None:
    stack.compose("up", "--detach", "--build")
    until(lambda: stack.healthy() == STAYING, "every service is healthy")
    print("every service is healthy;", "ready:", stack.ready())
    assert not stack.ready()["ready"]
    assert httpx.get(f"{PREFECT}/flow_runs/count").status_code == httpx.codes.UNAUTHORIZED
    for seed, version in ((1, "tiny@v1"), (2, "tiny@v2")):
        run = stack.train(seed)
        print(run["name"], run["state_name"], f"{run['total_run_time']:.0f} s")
        assert run["state_name"] == "Completed", run["state"]["message"]
        until(lambda version=version: stack.ready()["version"] == version, f"{version} is served")
        print("answered by {}: {!a}".format(*stack.complete()))
    before = stack.complete()
    stack.compose("down")
    stack.compose("up", "--detach")
    until(lambda: stack.healthy() == STAYING, "every service is healthy again")
    until(lambda: stack.ready()["ready"], "the champion is served again")
    assert stack.complete() == before
    assert stack.ask("/flow_runs/count", {}) > 0, "the server's database is the one from before"
    print("after `down` and `up` the same version gives the same answer")


if __name__ == "__main__":
    sys.exit(main())
