"""A baseline: a 5-gram model with modified Kneser-Ney smoothing, by KenLM, of the tokens of a configuration.

Run: python -m tests.benchmarks.kenlm --config wikitext2-cpu --bin FOLDER --json FILE [key=value …]

FOLDER holds KenLM's `lmplz` and `query` (Heafield et al. 2013). They are built from PyPI's sdist `kenlm` 0.3.0, with
Debian's libboost-{dev,program-options-dev,thread-dev,system-dev,test-dev}: `cmake SDIST && make lmplz query`.
A split is one line of ids, as the Transformer reads it: no row or document cuts the context.
"""

import math
import re
import subprocess
import tempfile
import time
from pathlib import Path

from tests.benchmarks.rows import add_row, command_line, hardware, row_parser, run_and_exit, tokens_of
from textgen.config import find_config, load_config
from textgen.evaluation.scoring import summarize
from textgen.model.device import choose_device
from textgen.text.tokens import TokensManifest, load_stream
from textgen.training.environment import read_environment

ORDER = 5
FALLBACK = re.compile(rb"Substituting fallback discounts for order (\d+)")  # counted from 0
PERPLEXITY = re.compile(rb"Perplexity including OOVs:\s*(\S+)")


def write_ids(tokens: TokensManifest, split: str, path: Path) -> None:
    """Write a split's ids as one line of words."""
    path.write_text(" ".join(map(str, load_stream(tokens, split).tolist())) + "\n")


def perplexity(query: Path, arpa: Path, text: Path) -> float:
    """Return the perplexity of a token of `text`, each after up to four tokens before it."""
    with text.open("rb") as ids:
        command = [query, "-n", "-v", "summary", arpa]  # -n: without the ends of a sentence
        printed = subprocess.run(command, stdin=ids, capture_output=True, check=True).stdout
    found = PERPLEXITY.search(printed)
    assert found is not None, printed
    return float(found[1])


def main() -> None:
    parser = row_parser(__doc__)
    parser.add_argument("--bin", type=Path, required=True, help="the folder of lmplz and query")
    options = parser.parse_args()
    lmplz, query = options.bin / "lmplz", options.bin / "query"
    for program in (lmplz, query):
        if not program.is_file():
            parser.error(f"--bin {options.bin}: it has no {program.name}")
    config = load_config(find_config(options.config), options.overrides)
    tokens = tokens_of(config)
    splits = {}
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "model.arpa"
        for split in tokens.splits:
            write_ids(tokens, split, Path(folder) / split)
        started = time.monotonic()
        with (Path(folder) / "train").open("rb") as ids:
            # The counts of small vocabularies have no singletons to take a discount from
            command = [lmplz, "-o", str(ORDER), "--discount_fallback", "-T", folder, "--arpa", arpa]
            printed = subprocess.run(command, stdin=ids, stderr=subprocess.PIPE, check=True).stderr
        seconds = time.monotonic() - started
        for split in ("validation", "test"):
            counts = tokens.splits[split]
            nats = math.log(perplexity(query, arpa, Path(folder) / split)) * counts.tokens
            splits[split] = summarize(nats, counts.tokens, counts).model_dump(mode="json")
    row = {
        "command": command_line(),
        "hardware": hardware(choose_device("cpu")),
        "environment": read_environment().model_dump(),
        "order": ORDER,
        "orders_with_fallback_discounts": [1 + int(order) for order in FALLBACK.findall(printed)],
        "vocab_size": tokens.vocab_size,
        "train_tokens": tokens.splits["train"].tokens,
        "train_seconds": round(seconds, 1),
        "splits": splits,
    }
    add_row(options.json, row)


if __name__ == "__main__":
    run_and_exit(main)
