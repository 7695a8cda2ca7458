"""Fetches from a Hub, each in a new process: huggingface_hub reads its environment when it is imported.

The process is a fork of one that has imported the other packages that `datasets` needs, which takes longer.
"""

import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_SECONDS
from textgen.config import TokenizerConfig
from textgen.errors import InputError, SourceUnavailable
from textgen.sections import DataConfig
from textgen.storage import Storage
from textgen.text import corpus, sources, tokenizer

Answers = dict[str, dict[str, Any]]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", __name__, "pandas", "pyarrow.dataset", "pyarrow.parquet", "httpx"])


def ask(hub_url: str, folder: Path, asked: Answers, **environment: str) -> Answers:
    """Fetch datasets, and GPT-2's tokenizer where `asked` says so, in a new process, and return what came of each."""
    environment = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_ETAG_TIMEOUT": f"{PATIENCE_SECONDS:.0f}",
        "HF_HUB_DOWNLOAD_TIMEOUT": f"{PATIENCE_SECONDS:.0f}",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "*",
        **environment,
    }
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=answer, args=(environment, asked, theirs))
    process.start()
    theirs.close()
    with ours:
        answers = ours.recv()  # EOFError: it failed, and says on stderr of what
    process.join()
    return answers


def answer(environment: dict[str, str], asked: Answers, sender: Connection) -> None:
    """Do what `ask` asks; the waits of the libraries between their own tries, up to 23 seconds each, are only noted."""
    assert "huggingface_hub" not in sys.modules
    os.environ.update(environment)
    waits: list[float] = []
    time.sleep = waits.append
    sources.ANSWER_SECONDS = tokenizer.ANSWER_SECONDS = PATIENCE_SECONDS
    answers: Answers = {}
    for name, what in asked.items():
        root = Path(what.pop("root"))
        waits.clear()
        try:
            if what.pop("gpt2", False):
                file = tokenizer.fetch_tokenizer_file(TokenizerConfig(kind="gpt2"), Storage.at(root))
                answers[name] = {"file": str(file)}
            else:
                manifest = corpus.fetch(DataConfig(**what), Storage.at(root))
                answers[name] = {"manifest": manifest.model_dump(mode="json")}
        except SourceUnavailable as error:
            answers[name] = {"refused": type(error).__name__, "message": str(error), "transient": error.transient}
        except InputError as error:
            answers[name] = {"refused": type(error).__name__, "message": str(error)}
        answers[name]["waits"] = list(waits)
    sender.send(answers)
