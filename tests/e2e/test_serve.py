"""`textgen serve` as a process: it follows the champion, refuses a broken one, and ends what it began."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import httpx
import openai
import pytest

from tests.inference.serving import PATIENCE, wait_until
from textgen.files import write_atomic
from textgen.model.find import CHAMPION_FILE
from textgen.model.pretrained import WEIGHTS_FILE

ROOT = Path(__file__).parents[2]
NAME = "old"
ENDLESS = {"prompt": "the", "temperature": 0, "n": 4, "stream": True}  # drawn, its texts end within half a second


class Served:
    """A server, its root, and what it said."""

    def __init__(self, root: Path) -> None:
        self.home = root / "models" / NAME
        command = [sys.executable, "-u", "-m", "textgen", "serve", "--root", str(root), "--port", "0"]
        self.log = root / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, "--model", f"{NAME}@champion"], cwd=ROOT, stderr=log)
        wait_until(lambda: self.process.poll() is not None or self.url is not None)

    @property
    def url(self) -> str | None:
        found = re.search(r"running on (http://\S+)", self.log.read_text())
        return None if found is None else found[1]

    def promote(self, version: str) -> None:
        write_atomic(self.home / CHAMPION_FILE, f"{version}\n")

    def ready(self) -> dict:
        return httpx.get(f"{self.url}/ready", timeout=PATIENCE).json()

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    """Serve two sound versions, a broken one, and no champion yet."""
    shutil.copytree(ROOT / "tests" / "old_data" / "data", tmp_path / "data")
    home = tmp_path / "data" / "models" / NAME
    (home / CHAMPION_FILE).unlink()
    for version in ("v2", "v3"):
        shutil.copytree(home / "v1", home / version)
    weights = bytearray((home / "v3" / WEIGHTS_FILE).read_bytes())
    weights[-1] ^= 1
    (home / "v3" / WEIGHTS_FILE).chmod(0o644)
    (home / "v3" / WEIGHTS_FILE).write_bytes(weights)
    served = Served(tmp_path / "data")
    yield served
    served.process.kill()
    served.process.wait()


def test_the_champion_is_followed_and_what_was_begun_is_ended(served):
    assert httpx.get(f"{served.url}/health").status_code == 200
    wait_until(lambda: "there is no champion" in (served.ready()["reason"] or ""))
    served.promote("v1")
    wait_until(lambda: served.ready()["ready"])
    asked, stop = [[] for _ in range(4)], threading.Event()  # the versions that each asker was answered by, in order

    def ask(versions: list[str]) -> None:
        while not stop.is_set():
            reply = served.client.completions.create(model=NAME, prompt="the river", max_tokens=5)
            assert reply.choices[0].finish_reason in ("length", "stop")
            versions.append(reply.model.partition("@")[2])

    askers = [threading.Thread(target=ask, args=(versions,)) for versions in asked]
    for asker in askers:
        asker.start()
    for version in (promoted := ["v1", "v2"] * 2 + ["broken"] + ["v1", "v2"] * 3):
        if version == "broken":
            served.promote("v3")
            wait_until(lambda: WEIGHTS_FILE in (served.ready()["refused"] or ""))
            assert served.ready()["version"] == f"{NAME}@v2"
        else:
            served.promote(version)
            wait_until(lambda version=version: all(versions[-1:] == [version] for versions in asked))
    stop.set()
    for asker in askers:
        asker.join()
    promoted.remove("broken")
    assert [[version for version, _ in groupby(versions)] for versions in asked] == [promoted] * 4


def test_a_stream_ends_before_the_server_does(served):
    served.promote("v1")
    wait_until(lambda: served.ready()["ready"])
    asked = {**ENDLESS, "max_tokens": 2000}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=asked, timeout=PATIENCE) as stream:
        lines = stream.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGTERM)
        events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    ended = [
        choice["index"] for event in events[:-1] for choice in json.loads(event)["choices"] if choice["finish_reason"]
    ]
    assert sorted(ended) == list(range(ENDLESS["n"]))
    assert served.process.wait(PATIENCE) == 0
    log = served.log.read_text()
    assert log.index("Shutting down") < log.index("POST /v1/completions 200"), "the text ended before the signal came"


def test_a_second_signal_ends_it_at_once(served):
    served.promote("v1")
    wait_until(lambda: served.ready()["ready"])
    asked = {**ENDLESS, "max_tokens": 4096}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=asked, timeout=PATIENCE) as stream:
        next(stream.iter_lines())
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Shutting down" in served.log.read_text())
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 1  # it was -6: aborted
