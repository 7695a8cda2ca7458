"""The speed and the memory of a training step: ours, the same shape in transformers, and the matrix peak, in turns.

Run: python -m tests.benchmarks.training_step [--shape cpu|gpu] [--vocab-size 8192 50257] [--rounds N] [--json FILE]

Each contender is a process of its own, so that its peak memory is its own. They start from the same weights, see the
same batches and take the same AdamW steps: plain `Qwen3ForCausalLM` with its own loss, `clip_grad_norm_`, the default
AdamW (on a GPU compiled and in bf16, as ours). A round is a few steps of one, the same of the other, and products of
square matrices for as long as our steps took; figures are medians over the rounds, ratios are of the same round.
`matrix_share` is of the rate of those products, which a busy machine slows as it slows the steps; `mfu` is of the peak
that a training states: the best of five products, or the data sheet's.
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

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from tests.benchmarks.rows import SEED, command_line, hardware, write_report
from textgen.cores import usable_cores
from textgen.model.device import autocast, prepare_cpu, seed_everything, uses_bf16
from textgen.model.loss import NextTokenLoss
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig, TrainingConfig
from textgen.training.meters import MEASURED_SIZE, flops_per_token, matrix_peak, memory_peak_bytes
from textgen.training.optim import build_optimizers, take_step

PRODUCTS_BETWEEN_LOOKS = 10
ADAMW = {"learning_rate": 1e-3, "weight_decay": 0.0, "max_grad_norm": 1.0}
SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "model": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4},
        "batch_size": 16, "seq_length": 128, "steps_a_round": 1,
    },
    "gpu": {
        "model": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
        "batch_size": 32, "seq_length": 1024, "steps_a_round": 5,
    },
}  # fmt: skip

Step = Callable[[Tensor, Tensor], Tensor]


def batches(shape: dict[str, Any], vocab_size: int, device: torch.device) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a source of batches of ids drawn by Zipf's law: the same for each contender."""
    generator = torch.Generator().manual_seed(SEED)
    frequencies_V = 1 / torch.arange(1, vocab_size + 1)

    def draw() -> tuple[Tensor, Tensor]:
        count = shape["batch_size"] * (shape["seq_length"] + 1)
        ids = torch.multinomial(frequencies_V, count, replacement=True, generator=generator)
        ids_BS = ids.view(shape["batch_size"], -1).to(device)
        return ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous()

    return draw


def our_step(shape: dict[str, Any], vocab_size: int, device: torch.device) -> Step:
    """Return what `textgen.training.step.Stepper` does, from the batch on, but for the schedule and the log.

    The process is set up as a training's: `prepare_cpu` keeps freed memory, which the plain loop leaves to glibc.
    """
    prepare_cpu(local_processes=1)
    training = TrainingConfig(**ADAMW)
    seed_everything(SEED)
    model = LanguageModel(ModelConfig(**shape["model"]), vocab_size).to(device)
    optimizers, loss_sum = build_optimizers(model, training), NextTokenLoss(model, device.type == "cuda")

    def step(x_BT: Tensor, y_BT: Tensor) -> Tensor:
        seed_everything(SEED, 0, 0, 0)
        with autocast(device, "auto"):
            loss = loss_sum(x_BT, y_BT) / y_BT.numel()
        loss.backward()
        grad_norm = clip_grad_norm_(model.parameters(), training.max_grad_norm)
        take_step(optimizers, torch.isfinite(loss * grad_norm).logical_not().float())
        return loss.detach()

    return step


def transformers_step(shape: dict[str, Any], vocab_size: int, device: torch.device) -> Step:
    """Return the step of a plain loop over transformers' class."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config, training = ModelConfig(**shape["model"]), TrainingConfig(**ADAMW)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            **shape["model"], vocab_size=vocab_size, num_key_value_heads=config.resolved_num_key_value_heads,
            head_dim=config.resolved_head_dim, tie_word_embeddings=True, max_position_embeddings=shape["seq_length"],
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    ).to(device)  # fmt: skip
    seed_everything(SEED)
    model.load_state_dict(LanguageModel(config, vocab_size).state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        weight_decay=0.0,
    )
    forward = torch.compile(model) if device.type == "cuda" else model

    def step(x_BT: Tensor, y_BT: Tensor) -> Tensor:
        with autocast(device, "auto"):
            loss = forward(input_ids=x_BT, labels=y_BT, shift_labels=y_BT, use_cache=False).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


CONTENDERS = {"textgen": our_step, "transformers": transformers_step}


def contend(name: str, shape: dict[str, Any], vocab_size: int, device_name: str, pipe: Connection) -> None:
    """Take steps whenever the pipe says so, and answer with their seconds, their losses and the peak memory."""
    device = torch.device(device_name)
    torch.set_num_threads(usable_cores())
    draw, step = batches(shape, vocab_size, device), CONTENDERS[name](shape, vocab_size, device)
    while count := pipe.recv():
        drawn = [draw() for _ in range(count)]
        started = time.perf_counter()
        losses = torch.stack([step(*batch) for batch in drawn]).tolist()  # waits for the device
        pipe.send((time.perf_counter() - started, losses, memory_peak_bytes(device)))


def product_rate(device: torch.device, seconds: float) -> float:
    """Return the FLOP/s at which the device multiplies square matrices for so many seconds, in its steps' precision."""
    size, dtype = MEASURED_SIZE[device.type], torch.bfloat16 if uses_bf16(device, "auto") else torch.float32
    left, right = torch.rand(2, size, size, device=device, dtype=dtype)
    product = torch.mm(left, right)
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(PRODUCTS_BETWEEN_LOOKS):
            torch.mm(left, right, out=product)
        product[0, 0].item()  # waits for the device
        count += PRODUCTS_BETWEEN_LOOKS
    return 2 * size**3 * count / elapsed


def share(tokens_per_second: list[float], matrix_flops: list[float], flops_per_token: float) -> float:
    """Return the median share of a matrix rate that the model's own arithmetic reaches."""
    pairs = zip(tokens_per_second, matrix_flops, strict=True)
    return statistics.median(rate * flops_per_token / flops for rate, flops in pairs)


def compare(shape: dict[str, Any], vocab_size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the figures of the contenders at one vocabulary."""
    context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        arguments = (name, shape, vocab_size, device.type, theirs)
        processes.append(context.Process(target=contend, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()  # a contender that dies is an EOFError here

    def turn(name: str, steps: int) -> tuple[float, list[float], int]:
        pipes[name].send(steps)
        return pipes[name].recv()

    losses: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    tokens_per_second: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    memory, peaks, rates = {}, [], []
    tokens = shape["batch_size"] * shape["seq_length"] * shape["steps_a_round"]
    for name in CONTENDERS:  # the first steps allocate and compile
        losses[name] += turn(name, 3)[1]
    for number in range(rounds):
        for name in list(CONTENDERS)[:: 1 if number % 2 else -1]:
            seconds, round_losses, memory[name] = turn(name, shape["steps_a_round"])
            tokens_per_second[name].append(tokens / seconds)
            losses[name] += round_losses
        matrix_peak.cache_clear()
        peaks.append(matrix_peak(device, "auto"))
        rates.append(product_rate(device, tokens / tokens_per_second["textgen"][-1]))
    for name, process in zip(CONTENDERS, processes, strict=True):
        pipes[name].send(0)
        process.join()

    model = LanguageModel(ModelConfig(**shape["model"]), vocab_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = flops_per_token(model.config, parameters, vocab_size, shape["seq_length"])
    pairs = list(zip(*tokens_per_second.values(), strict=True))
    return {
        "vocab_size": vocab_size,
        "parameters": parameters,
        "tokens_per_second": {name: statistics.median(rates) for name, rates in tokens_per_second.items()},
        "speed_ratio": statistics.median(ours / theirs for ours, theirs in pairs),
        "memory_peak_bytes": memory,
        "memory_ratio": memory["textgen"] / memory["transformers"],
        "matrix_peak_flops": statistics.quantiles(peaks),
        "matrix_rate_flops": statistics.quantiles(rates),
        "mfu": share(tokens_per_second["textgen"], peaks, flops),
        "matrix_share": share(tokens_per_second["textgen"], rates, flops),
        "loss_nats": {name: [round(values[0], 4), round(values[-1], 4)] for name, values in losses.items()},
        "largest_loss_difference_nats": max(
            abs(ours - theirs) for ours, theirs in zip(losses["textgen"], losses["transformers"], strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vocab-size", type=int, nargs="+", default=[8192, 50257])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    device, shape = torch.device("cuda" if torch.cuda.is_available() else "cpu"), SHAPES[options.shape]
    if options.batch_size is not None:
        shape["batch_size"] = options.batch_size
    report = {
        "command": command_line(),
        "hardware": hardware(device),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "shape": shape,
        "rounds": options.rounds,
        "results": [compare(shape, vocab_size, options.rounds, device) for vocab_size in options.vocab_size],
    }
    write_report(report, options.json)


if __name__ == "__main__":
    main()
