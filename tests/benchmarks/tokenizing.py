"""The speed of tokenizing: ours, `tokenizers`' own `encode_batch_fast`, and tiktoken, in turns, on two threads.

Run: RAYON_NUM_THREADS=2 python -m tests.benchmarks.tokenizing [--tiktoken PYTHON] [--megabytes 4] [--rounds 7]

GPT-2's tokenizer reads WikiText's articles, each as one text, and the machine's own .py files. Ours and
`encode_batch_fast` end with the ids as arrays, tiktoken with lists. Figures are medians over the rounds; a ratio is of
the same round, above 1 where ours is faster. CPU seconds are the figure to trust on a machine that others use too.
"""

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from tests.benchmarks.corpus_size import MB
from tests.benchmarks.rows import SEED, command_line, hardware, write_report
from textgen.model.device import choose_device
from textgen.text.documents import by_document, mark_rows, parts_of
from textgen.text.encoding import END_OF_TEXT, encode_documents
from textgen.text.tokenizer import load_tokenizer

Contender = Callable[[], tuple[float, float, str]]  # wall seconds, CPU seconds, sha256 of the ids


def articles(shared: Path, size: int) -> list[str]:
    """Return WikiText's articles, `size` bytes of them."""
    (file,) = (shared / "wikitext" / "wikitext-2-v1").glob("test-*.parquet")
    rows = pyarrow.parquet.read_table(file).column("text").to_pylist()
    return up_to(size, ["".join(texts) for texts in by_document(mark_rows(rows))])


def code(size: int) -> list[str]:
    """Return Python files of this machine, `size` bytes of them, without those that name a special token."""
    paths = sorted(Path(sys.prefix).rglob("*.py"))
    random.Random(SEED).shuffle(paths)
    texts = [path.read_text("utf-8", errors="ignore") for path in paths[:2000]]
    return up_to(size, [text for text in texts if END_OF_TEXT not in text])


def up_to(size: int, texts: list[str]) -> list[str]:
    """Return the first texts, until they have `size` characters."""
    ends = np.cumsum([len(text) for text in texts])
    return texts[: int(np.searchsorted(ends, size)) + 1]


def sha256_of(ids: list[np.ndarray]) -> str:
    return hashlib.sha256(np.concatenate(ids).astype(np.int32).tobytes()).hexdigest()


def contenders(texts: list[str], tokenizer_file: Path, tiktoken: Path | None, folder: Path) -> dict[str, Contender]:
    """Return what tokenizes the texts, by its name."""
    tokenizer = load_tokenizer(tokenizer_file)

    def ours() -> tuple[float, float, str]:
        started, cpu = time.perf_counter(), time.process_time()
        parts = (part for text in texts for part in parts_of(text))
        ids = [encoded.ids_N for encoded in encode_documents(tokenizer, parts)]
        return time.perf_counter() - started, time.process_time() - cpu, sha256_of(ids)

    def theirs() -> tuple[float, float, str]:
        started, cpu = time.perf_counter(), time.process_time()
        ids = [np.array(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
        return time.perf_counter() - started, time.process_time() - cpu, sha256_of(ids)

    found: dict[str, Contender] = {"textgen": ours, "encode_batch_fast": theirs}
    if tiktoken is not None:
        file = folder / "texts.json"
        file.write_text(json.dumps(texts))
        worker = subprocess.Popen(
            [tiktoken, Path(__file__).with_name("tiktoken_worker.py"), tokenizer_file, file],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

        def tiktokens() -> tuple[float, float, str]:
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline())
            return answer["seconds"], answer["cpu_seconds"], answer["sha256"]

        found["tiktoken"] = tiktokens
    return found


def compare(found: dict[str, Contender], rounds: int, size: int) -> dict[str, Any]:
    """Return the figures of the contenders, and whether all gave the same ids."""
    wall: dict[str, list[float]] = {name: [] for name in found}
    cpu: dict[str, list[float]] = {name: [] for name in found}
    ids = set()
    for number in range(rounds + 1):
        for name in list(found)[:: 1 if number % 2 else -1]:
            seconds, cpu_seconds, sha256 = found[name]()
            ids.add(sha256)
            if number:  # the first fills caches
                wall[name].append(seconds)
                cpu[name].append(cpu_seconds)
    ours = {"wall": wall["textgen"], "cpu": cpu["textgen"]}
    return {
        "characters": size,
        "same_ids": len(ids) == 1,
        "mb_per_second": {name: size / MB / statistics.median(values) for name, values in wall.items()},
        "mb_per_cpu_second": {name: size / MB / statistics.median(values) for name, values in cpu.items()},
        **{
            f"{kind}_ratio_to_{name}": statistics.median(b / a for a, b in zip(ours[kind], values[name], strict=True))
            for kind, values in (("wall", wall), ("cpu", cpu))
            for name in found
            if name != "textgen"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the folder with the text and tokenizer")
    parser.add_argument("--tiktoken", type=Path, help="a Python that has tiktoken; without it, it is left out")
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    tokenizer_file, size = options.shared / "gpt2-tokenizer" / "tokenizer.json", int(options.megabytes * MB)
    results = {}
    for name, texts in (("articles", articles(options.shared, size)), ("code", code(size))):
        with tempfile.TemporaryDirectory() as folder:
            found = contenders(texts, tokenizer_file, options.tiktoken, Path(folder))
            results[name] = compare(found, options.rounds, sum(map(len, texts)))
    report = {
        "command": command_line(),
        "hardware": hardware(choose_device("cpu")),
        "versions": {"tokenizers": version("tokenizers")},
        "rounds": options.rounds,
        "results": results,
    }
    write_report(report, options.json)


if __name__ == "__main__":
    main()
