"""The speed and the memory of an evaluation: ours, and the forward pass of the same model in transformers, in turns.

Run: python -m tests.benchmarks.evaluation [--shared ../shared] [--rounds N] [--seq-length T] [--json FILE]

A model of 16 million parameters reads WikiText-2's test split with GPT-2's tokenizer, in blocks. Each contender is a
process of its own, so that its peak memory is its own. They have the same weights and see the same batches: plain
`Qwen3ForCausalLM` without its cache, then the cross-entropy of its logits (on a GPU in bf16, as ours). A round is
`batches_a_round` batches of one and the same of the other; figures are medians over the rounds, ratios are of the same
round.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.rows import SEED, command_line, hardware, write_report
from textgen.cores import usable_cores
from textgen.evaluation.protocols import blocks
from textgen.evaluation.scoring import Window, score
from textgen.model.device import autocast, prepare_cpu, seed_everything
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig
from textgen.text.stream import encode_stream
from textgen.text.tokenizer import load_tokenizer
from textgen.training.meters import memory_peak_bytes

MODEL = ModelConfig(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4)
VOCAB_SIZE = 50_257

Scorer = Callable[[Tensor, list[Window]], tuple[float, int]]


def read_stream(shared: Path) -> Tensor:
    """Return the ids [N] of WikiText-2's test split."""
    (file,) = (shared / "wikitext" / "wikitext-2-v1").glob("test-*.parquet")
    rows = pyarrow.parquet.read_table(file).column("text").to_pylist()
    tokenizer = load_tokenizer(shared / "gpt2-tokenizer" / "tokenizer.json")
    return encode_stream(tokenizer, rows, torch.uint16, "test").ids_N


def our_model() -> LanguageModel:
    seed_everything(SEED)
    return LanguageModel(MODEL, VOCAB_SIZE).eval()


def our_scorer(shape: dict[str, int], device: torch.device) -> Scorer:
    """Return what `textgen.evaluation.evaluate` does to a text."""
    prepare_cpu(local_processes=1)
    model = our_model().to(device)

    def run(stream_N: Tensor, windows: list[Window]) -> tuple[float, int]:
        with autocast(device, "auto"):
            return score(model, stream_N, windows, shape["batch_size"])

    return run


def transformers_scorer(shape: dict[str, int], device: torch.device) -> Scorer:
    """Return a plain loop over transformers' class."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    stock = Qwen3Config(
        hidden_size=MODEL.hidden_size, intermediate_size=MODEL.intermediate_size, vocab_size=VOCAB_SIZE,
        num_hidden_layers=MODEL.num_hidden_layers, num_attention_heads=MODEL.num_attention_heads,
        num_key_value_heads=MODEL.resolved_num_key_value_heads, head_dim=MODEL.resolved_head_dim,
        tie_word_embeddings=True, max_position_embeddings=shape["seq_length"],
        rope_parameters={"rope_type": "default", "rope_theta": MODEL.rope_theta},
    )  # fmt: skip
    model = Qwen3ForCausalLM(stock).eval()
    model.load_state_dict(our_model().state_dict())
    model.to(device)

    @torch.no_grad()
    def run(stream_N: Tensor, windows: list[Window]) -> tuple[float, int]:
        nats = torch.zeros((), dtype=torch.float64, device=device)
        for first in range(0, len(windows), shape["batch_size"]):
            starts_B1 = torch.tensor([start for start, _, _ in windows[first : first + shape["batch_size"]]])[:, None]
            ids_BS = stream_N[starts_B1 + torch.arange(shape["seq_length"] + 1)].long().to(device)
            with autocast(device, "auto"):
                logits_BTV = model(input_ids=ids_BS[:, :-1], use_cache=False).logits
            nats += F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BS[:, 1:].flatten(), reduction="sum")
        return nats.item(), len(windows) * shape["seq_length"]

    return run


CONTENDERS = {"textgen": our_scorer, "transformers": transformers_scorer}


def contend(name: str, shape: dict[str, int], stream_N: Tensor, device_name: str, pipe: Connection) -> None:
    """Score the windows that the pipe brings, and answer with the seconds, the mean and the peak memory."""
    device = torch.device(device_name)
    torch.set_num_threads(usable_cores())
    run = CONTENDERS[name](shape, device)
    while windows := pipe.recv():
        started = time.perf_counter()
        nats, scored = run(stream_N, windows)  # waits for the device
        pipe.send((time.perf_counter() - started, nats / scored, memory_peak_bytes(device)))


def compare(shape: dict[str, int], stream_N: Tensor, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the figures of the contenders."""
    context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        arguments = (name, shape, stream_N, device.type, theirs)
        processes.append(context.Process(target=contend, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()  # a contender that dies is an EOFError here
    windows = list(blocks(len(stream_N), shape["seq_length"]))
    size = shape["batch_size"] * shape["batches_a_round"]
    pieces = [windows[start : start + size] for start in range(0, len(windows) - size + 1, size)]
    memory, differences = {}, []
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(rounds + 1):
        means = []
        for name in list(CONTENDERS)[:: 1 if number % 2 else -1]:
            pipes[name].send(pieces[number % len(pieces)])
            seconds, mean, memory[name] = pipes[name].recv()
            means.append(mean)
            if number:  # the first allocates
                rates[name].append(size * shape["seq_length"] / seconds)
        differences.append(abs(means[0] - means[1]))
    for name, process in zip(CONTENDERS, processes, strict=True):
        pipes[name].send([])
        process.join()
    pairs = list(zip(*rates.values(), strict=True))
    return {
        "parameters": sum(parameter.numel() for parameter in our_model().parameters()),
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "speed_ratio": statistics.median(ours / theirs for ours, theirs in pairs),
        "speed_ratio_quartiles": statistics.quantiles(ours / theirs for ours, theirs in pairs),
        "memory_peak_bytes": memory,
        "memory_ratio": memory["textgen"] / memory["transformers"],
        "largest_loss_difference_nats": max(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the folder with the text and tokenizer")
    parser.add_argument("--rounds", type=int, default=34, help="34 of 8,192 tokens are the whole split")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seq-length", type=int, default=128)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = {"batch_size": options.batch_size, "seq_length": options.seq_length, "batches_a_round": 2}
    report = {
        "command": command_line(),
        "hardware": hardware(device),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "shape": {**MODEL.model_dump(include={"hidden_size", "num_hidden_layers"}), "vocab_size": VOCAB_SIZE, **shape},
        "rounds": options.rounds,
        "results": compare(shape, read_stream(options.shared), options.rounds, device),
    }
    write_report(report, options.json)


if __name__ == "__main__":
    main()
