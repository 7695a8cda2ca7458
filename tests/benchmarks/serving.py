"""A server under load: `textgen serve` as a process, and clients that each ask again as soon as they are answered.

Run: python -m tests.benchmarks.serving [--shared ../shared] [--clients 16 64] [--seconds S] [--tokens N] [--json FILE]

The model is that of `tests.benchmarks.generation`: 16 million parameters, 50,257 ids, drawn at random. The clients take
whole answers, and then streams, the likeliest token each time; they run on the same cores as the server. `engine` is
what the engine itself gives to as many texts as it has rows, in this process, before the server runs. `resident_bytes`
is the server's memory after each part.
"""

import argparse
import asyncio
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch
from tokenizers import Tokenizer

from tests.benchmarks.generation import CONTEXT, MANY, MODEL, VOCAB_SIZE, engine_writer, measure, prompts
from tests.benchmarks.training_step import SEED, hardware, write_report
from textgen.inference.engine import Mode
from textgen.model.device import prepare_cpu, seed_everything
from textgen.model.pretrained import WEIGHTS_FILE, LoadedModel, write_description, write_weights
from textgen.model.transformer import LanguageModel

ROUNDS = 3
WAIT_SECONDS = 0.1
PATIENCE = 120  # seconds


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server for the model in `folder` and return it with its address, when it is ready."""
    log = folder / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "textgen", "serve", "--model", str(folder), "--port", "0"]
        process = subprocess.Popen(command, stderr=file)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        running = [line.split()[-5] for line in log.read_text().splitlines() if "running on" in line]
        if running and httpx.get(f"{running[0]}/ready").status_code == 200:
            return process, running[0]
        time.sleep(WAIT_SECONDS)
    raise RuntimeError(log.read_text())


async def ask(client: httpx.AsyncClient, number: int, tokens: int, stream: bool, found: dict[str, Any]) -> None:
    """Ask once, and note the status, the tokens, and the seconds to the first of them."""
    asked = {"prompt": prompts(number + 1)[number], "max_tokens": tokens, "temperature": 0, "stream": stream}
    if stream:
        asked["stream_options"] = {"include_usage": True}
    started, written = time.perf_counter(), 0
    async with client.stream("POST", "/v1/completions", json=asked) as reply:
        found["statuses"][reply.status_code] += 1
        if reply.status_code != 200:
            return
        if not stream:
            written = json.loads(await reply.aread())["usage"]["completion_tokens"]
        else:
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if not written:
                        found["first"].append(time.perf_counter() - started)
                    written = event["usage"]["completion_tokens"] if "usage" in event else 1
        found["tokens"] += written


async def load(url: str, clients: int, seconds: float, tokens: int, stream: bool) -> dict[str, Any]:
    """Return what so many clients see in so many seconds."""
    found: dict[str, Any] = {"statuses": Counter(), "tokens": 0, "first": []}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
        started = time.perf_counter()

        async def keep_asking(number: int) -> None:
            while time.perf_counter() - started < seconds:
                await ask(client, number, tokens, stream, found)

        await asyncio.gather(*(keep_asking(number) for number in range(clients)))
        took = time.perf_counter() - started
    first = {"first_token_seconds": statistics.median(found["first"])} if found["first"] else {}
    statuses = {str(status): count for status, count in found["statuses"].items()}
    return {
        "clients": clients,
        "stream": stream,
        "statuses": statuses,
        "tokens_per_second": found["tokens"] / took,
        **first,
    }


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the folder with GPT-2's tokenizer")
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    prepare_cpu(local_processes=1)
    seed_everything(SEED)
    model = LanguageModel(MODEL, VOCAB_SIZE).eval()
    tokenizer = Tokenizer.from_file(str(options.shared / "gpt2-tokenizer" / "tokenizer.json"))
    write, _ = engine_writer(LoadedModel(model, tokenizer, CONTEXT), Mode())
    engine = measure({"engine": write}, MANY, options.tokens, ROUNDS)["engine"]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_weights(model, folder / WEIGHTS_FILE)
        write_description(folder, MODEL, tokenizer, VOCAB_SIZE, CONTEXT)
        process, url = start(folder)
        try:
            for clients in options.clients:
                for stream in (False, True):
                    found = asyncio.run(load(url, clients, options.seconds, options.tokens, stream))
                    share = found["tokens_per_second"] / engine
                    results.append({**found, "share_of_engine": share, "resident_bytes": resident_bytes(process.pid)})
                    print(results[-1], file=sys.stderr, flush=True)
        finally:
            process.terminate()
            process.wait()
    report = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.serving", *sys.argv[1:]]),
        "hardware": hardware(torch.device("cpu")),
        "versions": {name: version(name) for name in ("torch", "uvicorn", "fastapi")},
        "engine_tokens_per_second": engine,
        "results": results,
    }
    write_report(report, options.json)


if __name__ == "__main__":
    main()
