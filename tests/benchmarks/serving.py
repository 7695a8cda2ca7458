"""A server under load: `textgen serve` as a process, and clients that each ask again as soon as they are answered.

Run: python -m tests.benchmarks.serving [--shared ../shared] [--rounds N] [--seconds S] [--soak S] [--json FILE]

The model is that of `tests.benchmarks.generation`: 16 million parameters, 50,257 ids, drawn at random. Each request is
for 32 to 96 tokens, the likeliest each time. In each round the engine writes such texts in this process, as many at
once as it has rows; then 16 clients take whole answers, and then streams. `share_of_engine` is of the same round.
`first_token_steps` is the median time to the first token in steps of the engine, each of which is a token a row.

The clients are one process, on the same cores as the server. Their HTTP is aiohttp's, which takes a quarter of the time
that httpx takes for an event.

With `--soak` 64 clients then ask for 1 to 8 tokens so many seconds long, half of them for streams, with their prompts
echoed, by which a reply to somebody else would be found; and at the end 512 at once, which is more than may wait.
`resident_bytes` is the server's memory after each tenth of it.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import torch
from tokenizers import Tokenizer

from tests.benchmarks.generation import CONTEXT, MANY, MODEL, PROMPT, VOCAB_SIZE
from tests.benchmarks.rows import SEED, command_line, hardware, write_report
from textgen.inference.engine import Engine, Request, complete
from textgen.inference.sampling import SamplingConfig
from textgen.model.device import prepare_cpu, seed_everything
from textgen.model.pretrained import WEIGHTS_FILE, LoadedModel, write_description, write_weights
from textgen.model.transformer import LanguageModel

CLIENTS, TOKENS = 16, (32, 96)
SOAK_CLIENTS, SOAK_TOKENS, SOAK_PARTS = 64, (1, 8), 10
TOO_MANY_CLIENTS = 512
ENGINE_TEXTS = 128  # in a round
WAIT_SECONDS = 0.1
PATIENCE = 300  # seconds


@dataclass
class Found:
    """What clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0  # replies of another length, or to another prompt
    tokens: int = 0
    first_token_seconds: list[float] = field(default_factory=list)
    seconds: float = 0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Clients:
    """Clients in this process. Each request is of the next number, and the number gives its prompt and its length."""

    def __init__(self, url: str, tokenizer: Tokenizer) -> None:
        self.url, self.tokenizer, self.numbers = url, tokenizer, count()

    def load(self, clients: int, seconds: float, tokens: tuple[int, int], stream: bool | None, echo: bool) -> Found:
        """Return what so many clients see in so many seconds, half of them with streams where `stream` is None."""
        return asyncio.run(self._load(clients, seconds, tokens, stream, echo))

    async def _load(
        self, clients: int, seconds: float, tokens: tuple[int, int], stream: bool | None, echo: bool
    ) -> Found:
        found, started = Found(), time.perf_counter()
        limits = {"timeout": aiohttp.ClientTimeout(PATIENCE), "connector": aiohttp.TCPConnector(limit=clients)}
        async with aiohttp.ClientSession(self.url, **limits) as session:

            async def keep_asking(client: int) -> None:
                streams = client % 2 == 0 if stream is None else stream
                while True:
                    await self._ask(session, tokens, streams, echo, found)
                    if time.perf_counter() - started >= seconds:
                        return

            await asyncio.gather(*map(keep_asking, range(clients)))
        found.seconds = time.perf_counter() - started
        return found

    async def _ask(
        self, session: aiohttp.ClientSession, tokens: tuple[int, int], stream: bool, echo: bool, found: Found
    ) -> None:
        prompt, most = draw_text(next(self.numbers), tokens)
        asked = {"prompt": prompt, "max_tokens": most, "temperature": 0, "stream": stream, "echo": echo}
        started, text = time.perf_counter(), ""
        usage = {"stream_options": {"include_usage": True}} if stream else {}
        async with session.post("/v1/completions", json={**asked, **usage}) as reply:
            found.statuses[reply.status] += 1
            if reply.status != httpx.codes.OK:
                return
            if not stream:
                last = await reply.json()
                text = last["choices"][0]["text"]
            else:
                async for line in reply.content:
                    if line.startswith(b"data: {"):
                        last = json.loads(line.removeprefix(b"data: "))
                        if not text:
                            found.first_token_seconds.append(time.perf_counter() - started)
                        text += "".join(choice["text"] for choice in last["choices"])
        found.tokens += last["usage"]["completion_tokens"]
        found.wrong += last["usage"]["completion_tokens"] != most
        found.wrong += echo and not text.startswith(self.tokenizer.decode(prompt, skip_special_tokens=False)[:-1])


def draw_text(number: int, tokens: tuple[int, int]) -> tuple[list[int], int]:
    """Return the prompt and the length that the request of a number has."""
    drawn = random.Random(number)
    return [drawn.randrange(VOCAB_SIZE - 1) for _ in range(PROMPT)], drawn.randint(*tokens)


def engine_speed(engine: Engine) -> float:
    """Return the tokens a second of the engine itself."""
    texts = [draw_text(number, TOKENS) for number in range(ENGINE_TEXTS)]
    requests = [Request(prompt, SamplingConfig(max_tokens=most, temperature=0)) for prompt, most in texts]
    started = time.perf_counter()
    written = sum(len(completion.tokens) for completion in complete(engine, requests))
    return written / (time.perf_counter() - started)


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server for the model in `folder` and return it with its address, when it is ready."""
    log = folder / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "textgen", "serve", "--model", str(folder), "--port", "0"]
        process = subprocess.Popen(command, stderr=file)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        running = [line.split()[-5] for line in log.read_text().splitlines() if "running on" in line]
        if running and httpx.get(f"{running[0]}/ready").status_code == httpx.codes.OK:
            return process, running[0]
        time.sleep(WAIT_SECONDS)
    raise RuntimeError(log.read_text())


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def measure_speed(engine: Engine, clients: Clients, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the tokens a second of the engine and of the clients, and the medians of what is compared."""
    speeds: dict[str, list[float]] = {"engine": [], "whole": [], "streamed": []}
    first: list[float] = []
    for number in range(rounds):
        speeds["engine"].append(engine_speed(engine))
        for name, stream in (("whole", False), ("streamed", True)):
            found = clients.load(CLIENTS, seconds, TOKENS, stream, echo=False)
            assert set(found.statuses) == {httpx.codes.OK} and not found.wrong, found
            speeds[name].append(found.tokens_per_second)
        first.append(statistics.median(found.first_token_seconds))
        print({name: round(found[number]) for name, found in speeds.items()}, first[-1], file=sys.stderr, flush=True)
    by_round = list(zip(speeds["engine"], first, strict=True))
    return {
        "clients": CLIENTS, "seconds": seconds, "tokens_per_second": speeds, "first_token_seconds": first,
        "share_of_engine": {
            name: statistics.median(one / engine for one, engine in zip(speeds[name], speeds["engine"], strict=True))
            for name in ("whole", "streamed")
        },
        "first_token_steps": statistics.median(seconds * speed / MANY for speed, seconds in by_round),
    }  # fmt: skip


def soak(clients: Clients, pid: int, seconds: float) -> dict[str, Any]:
    """Return what many clients see, and the server's memory, in ten parts."""
    statuses: Counter[int] = Counter()
    wrong, memory = 0, []
    for _ in range(SOAK_PARTS):
        found = clients.load(SOAK_CLIENTS, seconds / SOAK_PARTS, SOAK_TOKENS, None, echo=True)
        statuses += found.statuses
        wrong += found.wrong
        memory.append(resident_bytes(pid))
    found = clients.load(TOO_MANY_CLIENTS, 0, SOAK_TOKENS, None, echo=True)
    return {
        "clients": SOAK_CLIENTS, "seconds": seconds, "statuses": statuses, "wrong": wrong, "resident_bytes": memory,
        "at_once": {"clients": TOO_MANY_CLIENTS, "statuses": found.statuses, "wrong": found.wrong},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the folder with GPT-2's tokenizer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of a part of a round")
    parser.add_argument("--soak", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    prepare_cpu(local_processes=1)
    seed_everything(SEED)
    model = LanguageModel(MODEL, VOCAB_SIZE).eval()
    tokenizer = Tokenizer.from_file(str(options.shared / "gpt2-tokenizer" / "tokenizer.json"))
    engine = Engine(LoadedModel(model, tokenizer, CONTEXT), MANY)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_weights(model, folder / WEIGHTS_FILE)
        write_description(folder, MODEL, tokenizer, VOCAB_SIZE, CONTEXT)
        process, url = start(folder)
        try:
            clients = Clients(url, tokenizer)
            results = measure_speed(engine, clients, options.rounds, options.seconds)
            if options.soak:
                results["soak"] = soak(clients, process.pid, options.soak)
        finally:
            process.terminate()
            process.wait()
    report = {
        "command": command_line(),
        "hardware": hardware(torch.device("cpu")),
        "versions": {name: version(name) for name in ("torch", "uvicorn", "fastapi", "aiohttp")},
        **results,
    }
    write_report(report, options.json)


if __name__ == "__main__":
    main()
