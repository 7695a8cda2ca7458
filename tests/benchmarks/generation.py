"""The speed of generation: our engine, as it is, compiled and in eight bits, transformers and llama.cpp, in turns.

Run: python -m tests.benchmarks.generation [--shared ../shared] [--rounds N] [--tokens N] [--static]
                                           [--llama-cpp FOLDER] [--json FILE]

A model of 16 million parameters and 50,257 ids, on a CPU in fp32, continues prompts of 16 tokens, the likeliest token
each time: one text, and 16 at once. transformers runs the same weights with its dynamic cache, in batches, and compiled
with its static cache where --static is given, for one text. llama.cpp runs the same weights as GGUF in fp32 and in
Q8_0, for one text, where the folder of its libraries is given. A round is one run of each; figures are medians over the
rounds. `bandwidth_share` is the bytes of the weights times the tokens a second of one text, over the bytes a second of
a sum over a gibibyte, measured in the same run.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.benchmarks.llama_cpp import LlamaCpp, quantize
from tests.benchmarks.rows import SEED, command_line, hardware, write_report
from textgen.inference.engine import Engine, Mode, Request, complete
from textgen.inference.sampling import SamplingConfig
from textgen.model.device import prepare_cpu, read_bandwidth, seed_everything
from textgen.model.gguf import write_gguf
from textgen.model.pretrained import LoadedModel, qwen3_config
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig

MODEL = ModelConfig(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4)
VOCAB_SIZE, CONTEXT, PROMPT = 50_257, 512, 16
MANY = 16  # texts at once
MODES = {
    "eager": Mode(), "compiled": Mode(compiled=True), "deterministic": Mode(deterministic=True),
    "int8": Mode(weights="int8", compiled=True),
}  # fmt: skip

Writer = Callable[[int, int], None]  # texts, tokens of each


def prompts(texts: int) -> list[list[int]]:
    return [[(100 * text + place) % VOCAB_SIZE for place in range(PROMPT)] for text in range(texts)]


def engine_writer(loaded: LoadedModel, mode: Mode) -> tuple[Writer, str]:
    """Return what runs our engine, and its kernels."""
    engine = Engine(loaded, MANY, mode)
    engine.end = -1  # no text ends by itself

    def write(texts: int, tokens: int) -> None:
        sampling = SamplingConfig(max_tokens=tokens, temperature=0)
        for completion in complete(engine, [Request(prompt, sampling) for prompt in prompts(texts)]):
            assert len(completion.tokens) == tokens

    return write, engine.kernels


def stock_writer(model: LanguageModel, end: int, static: bool) -> Writer:
    """Return what runs transformers' `generate` on the same weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    stock = Qwen3ForCausalLM(Qwen3Config(**qwen3_config(MODEL, VOCAB_SIZE, CONTEXT, end))).eval()
    stock.load_state_dict(model.state_dict())
    stock.generation_config.eos_token_id, stock.generation_config.pad_token_id = None, end
    cache: dict[str, Any] = {"cache_implementation": "static"} if static else {}
    if static:
        stock.forward = torch.compile(stock.forward, fullgraph=True)

    def write(texts: int, tokens: int) -> None:
        ids_BT = torch.tensor(prompts(texts))
        with torch.inference_mode():
            written_BT = stock.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, max_new_tokens=tokens, **cache
            )
        assert written_BT.shape == (texts, PROMPT + tokens)

    return write


def llama_cpp_writers(loaded: LoadedModel, libraries: Path, folder: Path) -> dict[str, Writer]:
    """Return what runs llama.cpp on the same weights, in fp32 and in Q8_0; the files are written to the folder."""
    fp32, eight_bits = folder / "fp32.gguf", folder / "q8_0.gguf"
    write_gguf(loaded, fp32)
    quantize(libraries, fp32, eight_bits)

    def writer(gguf: Path) -> Writer:
        llama_cpp = LlamaCpp(libraries, gguf, VOCAB_SIZE)

        def write(texts: int, tokens: int) -> None:
            assert texts == 1
            llama_cpp.write(prompts(1)[0], tokens)

        return write

    return {"llama.cpp": writer(fp32), "llama.cpp Q8_0": writer(eight_bits)}


def measure(writers: dict[str, Writer], texts: int, tokens: int, rounds: int) -> dict[str, float]:
    """Return the tokens a second of each, the median over rounds in which each has its turn."""
    for write in writers.values():
        write(texts, PROMPT)
    speeds: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(rounds):
        for name, write in writers.items():
            started = time.perf_counter()
            write(texts, tokens)
            speeds[name].append(texts * tokens / (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the folder with GPT-2's tokenizer")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--static", action="store_true", help="transformers' compiled static cache too")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="llama.cpp's libraries: it runs too")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    prepare_cpu(local_processes=1)
    seed_everything(SEED)
    model = LanguageModel(MODEL, VOCAB_SIZE).eval()
    tokenizer = Tokenizer.from_file(str(options.shared / "gpt2-tokenizer" / "tokenizer.json"))
    loaded = LoadedModel(model, tokenizer, CONTEXT)
    engines = {name: engine_writer(loaded, mode) for name, mode in MODES.items()}
    ours = {name: write for name, (write, _) in engines.items()}
    dynamic = {"transformers": stock_writer(model, VOCAB_SIZE - 1, static=False)}
    static = {"transformers static": stock_writer(model, VOCAB_SIZE - 1, static=True)} if options.static else {}
    with tempfile.TemporaryDirectory() as folder:
        llama_cpp = llama_cpp_writers(loaded, options.llama_cpp, Path(folder)) if options.llama_cpp else {}
    speeds = {
        "1": measure({**ours, **dynamic, **static, **llama_cpp}, 1, options.tokens, options.rounds),
        str(MANY): measure({**ours, **dynamic}, MANY, options.tokens, options.rounds),
    }
    weights_bytes, bandwidth = 4 * sum(one.numel() for one in model.parameters()), read_bandwidth(torch.device("cpu"))
    report = {
        "command": command_line(),
        "hardware": hardware(torch.device("cpu")),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "kernels": {name: kernels for name, (_, kernels) in engines.items()},
        "tokens_per_second": speeds,
        "times_transformers": {
            texts: {name: speed / found["transformers"] for name, speed in found.items()}
            for texts, found in speeds.items()
        },
        "read_bytes_per_second": bandwidth,
        "bandwidth_share": {
            name: weights_bytes * speeds["1"][name] / bandwidth for name in ("eager", "compiled", "transformers")
        },
    }
    write_report(report, options.json)


if __name__ == "__main__":
    main()
