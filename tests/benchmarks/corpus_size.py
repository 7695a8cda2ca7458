"""What each stage of a run costs by the size of the text: seconds, CPU seconds, and memory at its peak.

Run: python -m tests.benchmarks.corpus_size --megabytes 10 100 [--tokenizers bpe gpt2] [--text mixed] [--json FILE]

The text is made in a temporary folder: the machine's own .py, .md and .rst files as .txt, and sentences of their words
drawn anew, in a JSONL file and in one large .txt. `--text line` is one line without an end, `--text spaceless` one
text without a space, each with a few short documents beside it. A tiny model takes a few steps.

Each stage is a process of its own, that calls what the flow's task calls. CPU seconds are those of the stage, without
the start of Python; on a machine that others use too they are the figure to trust. Of the memory that is resident at
the peak, `anonymous` is the process's own, and the rest is files that are mapped: torch's libraries, the token stream.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.rows import SEED, command_line, hardware, write_report
from textgen.config import Config, parse_config
from textgen.evaluation import evaluate
from textgen.evaluation.scoring import Metrics
from textgen.model.device import choose_device
from textgen.publishing import contenders, drift, publish, registry
from textgen.publishing.candidate import Candidate
from textgen.publishing.version import PublishedManifest
from textgen.storage import Storage
from textgen.text import corpus, tokens
from textgen.text.corpus import RawManifest
from textgen.text.report import report_on
from textgen.text.tokens import TokensManifest
from textgen.training import train
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.meters import memory_peak_bytes
from textgen.training.plan import train_key

MB = 10**6
ENDINGS = (".py", ".md", ".rst")
FILES_SHARE, ROWS_SHARE = 0.4, 0.4  # of the text; the rest is the large file
WORD_POOL = 500_000
PARAGRAPHS = (1, 20)  # of a row
SHORT_DOCUMENTS = 400  # beside the one long document
SAMPLE_SECONDS = 0.02
TOKENIZERS = {"bpe": {"kind": "bpe", "vocab_size": 4096}, "gpt2": {"kind": "gpt2"}}
MODEL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
TRAINING = {"max_steps": 20, "warmup_steps": 2, "eval_every": 10, "eval_blocks": 16, "batch_size": 8}
SEQ_LENGTH = 256

Folders = dict[str, Path]  # what the stages before have made, by the stage


class Manifests:
    """What the stages before have made."""

    def __init__(self, folders: Folders, config: Config) -> None:
        self.folders, self.config, self.storage = folders, config, Storage(config.storage)

    @property
    def raw(self) -> RawManifest:
        return RawManifest.parse(self.folders["fetch"])

    @property
    def new_raw(self) -> RawManifest:
        return RawManifest.parse(self.folders["fetch more"])

    @property
    def tokens(self) -> TokensManifest:
        return TokensManifest.parse(self.folders["tokenize"])

    @property
    def checkpoint(self) -> CheckpointManifest:
        return CheckpointManifest.parse(self.folders["train"])

    @property
    def champion(self) -> PublishedManifest:
        return PublishedManifest.parse(self.folders["publish"])

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.checkpoint, Metrics.parse(self.folders["evaluate"]), self.tokens, self.raw, self.config)


def run_train(made: Manifests) -> Path:
    out = made.storage.training(train_key(made.tokens, made.config))
    return train.train(made.tokens, made.config, out, lambda step, figures: None).folder


def run_publish(made: Manifests) -> Path:
    published = publish.publish(made.candidate, made.storage)
    registry.promote(made.storage.models(made.config.name), published.version, made.storage)
    return published.folder


def run_drift(made: Manifests) -> Path:
    found = drift.measure_drift(made.new_raw, made.config, made.storage)
    assert found is not None and found.last is not None
    return found.folder


def run_seen(made: Manifests) -> None:
    """Do what publishing does more where there is a champion of another text, but for the evaluation of it."""
    contenders.seen_documents(made.champion, made.new_raw, made.storage)


STAGES: dict[str, Callable[[Manifests], Path | None]] = {
    "fetch": lambda made: corpus.fetch(made.config.data, made.storage).folder,
    "look": lambda made: report_on(made.raw, made.storage).folder,
    "tokenize": lambda made: tokens.tokenize(made.raw, made.config.tokenizer, made.storage).folder,
    "train": run_train,
    "evaluate": lambda made: evaluate.evaluate(made.checkpoint.folder, made.tokens, made.config).folder,
    "publish": run_publish,
    "fetch more": lambda made: corpus.fetch(made.config.data, made.storage).folder,
    "drift": run_drift,
    "seen": run_seen,
}
OF_THE_TEXT = ("fetch", "look", "fetch more")  # whatever the tokenizer


def run_stage(name: str, config: Config, folders: Folders, pipe: Connection) -> None:
    """Run a stage and answer with its folder and its cost."""
    made = Manifests(folders, config)
    before, started = cpu_seconds(), time.perf_counter()
    folder = STAGES[name](made)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    cost = {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": memory_peak_bytes(torch.device("cpu"))}
    pipe.send((folder, cost))


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of those that it started and that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def measure_stage(name: str, config: Config, folders: Folders) -> dict[str, Any]:
    """Run a stage in a process of its own, note its folder in `folders`, and return its cost."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_stage, args=(name, config, folders, theirs))
    process.start()
    theirs.close()  # a stage that fails is an EOFError here
    anonymous = 0
    while not ours.poll(SAMPLE_SECONDS):
        anonymous = max(anonymous, anonymous_bytes(process.pid))
    folder, cost = ours.recv()
    process.join()
    if folder is not None:
        folders[name] = folder
    return {**cost, "peak_anonymous_bytes": anonymous}


def anonymous_bytes(pid: int | None) -> int:
    """Return the resident memory of a process that is not of files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def measure_text(folder: Path, more: Path, tokenizers: dict[str, dict[str, Any]], stages: list[str]) -> dict[str, Any]:
    """Return the cost of each stage on the files of `folder`, with each tokenizer."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="data-") as root:
        folders: Folders = {}
        for label, tokenizer in tokenizers.items():
            for name in stages:
                group = "text" if name in OF_THE_TEXT else label
                if name in found.get(group, {}):
                    continue
                files = [str(folder), str(more)] if name == "fetch more" else str(folder)
                config = parse_config({
                    "name": label, "data": {"files": files, "seq_length": SEQ_LENGTH}, "tokenizer": tokenizer,
                    "model": MODEL, "training": {**TRAINING, "device": "cpu", "devices": 1},
                    "evaluation": {"stride": SEQ_LENGTH}, "storage": {"root": root},
                })  # fmt: skip
                cost = measure_stage(name, config, folders)
                if name == "tokenize":
                    splits = TokensManifest.parse(folders[name]).splits
                    cost["tokens"] = {split: one.tokens for split, one in splits.items()}
                found.setdefault(group, {})[name] = cost
                print(f"{group:5} {name:10} {in_words(cost)}", file=sys.stderr, flush=True)
    return found


def in_words(cost: dict[str, Any]) -> str:
    """Return a cost in a line."""
    return (
        f"{cost['seconds']:8.1f} s {cost['cpu_seconds']:8.1f} CPU s {cost['peak_bytes'] / MB:7.0f} MB, "
        f"{cost['peak_anonymous_bytes'] / MB:5.0f} anonymous"
    )


def make_text(kind: str, megabytes: float, folder: Path) -> int:
    """Write a text into `folder` and return its bytes."""
    folder.mkdir()
    draw = random.Random(SEED)
    size = int(megabytes * MB)
    if kind == "mixed":
        words = copy_files(folder, int(size * FILES_SHARE), draw)
        write_rows(folder / "rows.jsonl", int(size * ROWS_SHARE), words, draw)
        left = size - sum(path.stat().st_size for path in folder.iterdir())
        write_until(folder / "large.txt", left, (f"{paragraph}\n\n" for paragraph in paragraphs(words, draw)))
    else:
        words = copy_files(folder, 0, draw)
        between = " " if kind == "line" else ""
        for number in range(SHORT_DOCUMENTS):
            (folder / f"{number}.txt").write_text(next(paragraphs(words, draw)))
        write_until(folder / "long.txt", size, (f"{word}{between}" for word in endless(words, draw)))
    return sum(path.stat().st_size for path in folder.iterdir())


def copy_files(folder: Path, size: int, draw: random.Random) -> list[str]:
    """Copy the machine's own texts, up to `size` bytes of them, and return words that are in them."""
    homes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    paths = sorted(path for home in homes for ending in ENDINGS for path in home.rglob(f"*{ending}") if path.is_file())
    draw.shuffle(paths)
    words: list[str] = []
    for number, path in enumerate(paths):
        if size <= 0 and len(words) >= WORD_POOL:
            break
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if len(words) < WORD_POOL:
            words += text.split()
        if size > 0:
            (folder / f"{number}.txt").write_text(text)
            size -= path.stat().st_size
    return [word for word in words if len(word) < 20]


def endless(words: list[str], draw: random.Random) -> Iterator[str]:
    """Yield words, drawn as often as they are there."""
    while True:
        yield from draw.choices(words, k=10_000)


def paragraphs(words: list[str], draw: random.Random) -> Iterator[str]:
    """Yield paragraphs of ten sentences."""
    drawn = endless(words, draw)
    while True:
        yield " ".join(f"{' '.join(islice(drawn, draw.randint(6, 24)))}." for _ in range(10))


def write_rows(path: Path, size: int, words: list[str], draw: random.Random) -> None:
    """Write a JSONL file of about `size` bytes."""
    drawn = paragraphs(words, draw)
    rows = ("\n".join(islice(drawn, draw.randint(*PARAGRAPHS))) for _ in iter(int, 1))
    write_until(path, size, (json.dumps({"text": row}) + "\n" for row in rows))


def write_until(path: Path, size: int, texts: Iterator[str]) -> None:
    """Write texts to a file until it has `size` bytes."""
    with path.open("w", encoding="utf-8") as file:
        while size > 0:
            size -= file.write(next(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 100])
    parser.add_argument("--text", choices=("mixed", "line", "spaceless"), default="mixed")
    parser.add_argument("--tokenizers", choices=TOKENIZERS, nargs="+", default=list(TOKENIZERS))
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the folder with GPT-2's tokenizer")
    parser.add_argument("--folder", type=Path, help="where the text and what is made of it are; both are deleted")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    TOKENIZERS["gpt2"]["path"] = str((options.shared / "gpt2-tokenizer").resolve())
    results = []
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            text, more = Path(temporary) / "text", Path(temporary) / "more.txt"
            text_bytes = make_text(options.text, megabytes, text)
            more.write_text("One more document, by which the text is another one.\n")
            print(f"{options.text}, {text_bytes / MB:.0f} MB", file=sys.stderr)
            chosen = {name: TOKENIZERS[name] for name in options.tokenizers}
            stages = measure_text(text, more, chosen, options.stages)
        results.append({"text": options.text, "text_bytes": text_bytes, "stages": stages})
    report = {
        "command": command_line(),
        "hardware": hardware(choose_device("cpu")),
        "versions": {name: version(name) for name in ("torch", "tokenizers", "pyarrow", "numpy")},
        "model": {**MODEL, "seq_length": SEQ_LENGTH},
        "results": results,
    }
    write_report(report, options.json)


if __name__ == "__main__":
    main()
