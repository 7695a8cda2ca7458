"""tiktoken with GPT-2's vocabulary, for `tests.benchmarks.tokenizing`: run by a Python that has tiktoken.

Run: python tiktoken_worker.py tokenizer.json texts.json
Encodes the texts once a line of stdin, with two threads, and writes the seconds, CPU seconds and a sha256 of the ids.
"""

import hashlib
import json
import sys
import time
from array import array
from pathlib import Path

import tiktoken

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def main() -> None:
    vocabulary = json.loads(Path(sys.argv[1]).read_text("utf-8"))["model"]["vocab"]
    byte_of, end = byte_of_character(), "<|endoftext|>"
    ranks = {bytes(byte_of[character] for character in token): id for token, id in vocabulary.items() if token != end}
    encoding = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={end: vocabulary[end]})
    texts = json.loads(Path(sys.argv[2]).read_text("utf-8"))
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        ids = encoding.encode_ordinary_batch(texts, num_threads=2)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        sha256 = hashlib.sha256(b"".join(array("i", some).tobytes() for some in ids)).hexdigest()
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "sha256": sha256}), flush=True)


if __name__ == "__main__":
    main()
