"""A baseline: transformers' Trainer on Qwen3's shape, with a configuration's model, tokens, batches and precision.

Run: python -m tests.benchmarks.trainer --config wikitext2-cpu --learning-rate 1e-3 --steps N --json FILE [key=value …]

One setting a run, which adds its row to the file: AdamW, a cosine after a warm-up of a twentieth, and the weights that
are best in twenty validations. A run of a few steps says how long a step takes (`step_seconds`), and so how many fit in
the time that ours took; `train_seconds` has validations, saving and compiling too. Both splits are scored as ours are,
by the `sliding` protocol; the setting is chosen on validation. `training.random_offset` moves the blocks as it moves
ours. Dropout outside of attention is not applied: the stock class has none.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from tests.benchmarks.rows import add_row, command_line, hardware, row_parser, run_and_exit, score_split, tokens_of
from textgen.config import Config, find_config, load_config
from textgen.evaluation.protocols import blocks
from textgen.model.device import choose_device, compiles, prepare_cpu, uses_bf16
from textgen.model.pretrained import qwen3_config
from textgen.model.transformer import LanguageModel
from textgen.text.encoding import end_id
from textgen.text.tokens import TokensManifest, load_manifest_tokenizer, load_stream
from textgen.training.batches import blocks_an_epoch
from textgen.training.environment import read_environment

UNSTEADY_STEPS = 10  # the first ones compile
VALIDATIONS = 20
WARMUP_PART = 20  # a twentieth of the steps


class Blocks(Dataset[dict[str, Tensor]]):
    """Blocks of a stream, all moved by `offset`: `seq_length` ids and the id after each of them."""

    def __init__(self, stream_N: Tensor, seq_length: int, starts: Sequence[int]) -> None:
        self.stream_N, self.seq_length, self.starts, self.offset = stream_N, seq_length, starts, 0

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        start = self.starts[number] + self.offset
        ids = self.stream_N[start : start + self.seq_length + 1].long()
        return {"input_ids": ids[:-1], "labels": ids[1:], "shift_labels": ids[1:]}


class RandomOffset(TrainerCallback):
    """Cuts the blocks of each epoch at another place of the stream."""

    def __init__(self, blocks: Blocks, seed: int) -> None:
        self.blocks, self.generator = blocks, torch.Generator().manual_seed(seed)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.blocks.offset = int(torch.randint(self.blocks.seq_length, (), generator=self.generator))


class Clock(TrainerCallback):
    """The seconds of each step, and the loss of each validation with the seconds of the training until then."""

    def __init__(self) -> None:
        self.started = self.step_started = math.nan
        self.steps: list[float] = []
        self.curve: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.step_started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(time.perf_counter() - self.step_started)

    def on_evaluate(self, _: Any, state: TrainerState, __: Any, metrics: dict[str, float], **___: Any) -> None:
        seconds = time.perf_counter() - self.started
        self.curve.append({"seconds": seconds, "steps": state.global_step, "loss_nats": metrics["eval_loss"]})

    @property
    def step_seconds(self) -> float:
        """The median of the steps after the first ones, without validations and saving."""
        return statistics.median(self.steps[UNSTEADY_STEPS:])


def build_trainer(config: Config, tokens: TokensManifest, settings: dict[str, float], steps: int, out: Path) -> Trainer:
    """Return a Trainer of a new model; `settings` are `learning_rate` and `weight_decay`."""
    training, seq_length, device = config.training, config.data.seq_length, choose_device(config.training.device)
    set_seed(config.seed)
    end, every = end_id(load_manifest_tokenizer(tokens)), steps // VALIDATIONS
    train_N, validation_N = load_stream(tokens, "train"), load_stream(tokens, "validation")
    scored = [start for start, _, _ in blocks(len(validation_N), seq_length, limit=training.eval_blocks)]
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, seed=config.seed, **settings,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        per_device_eval_batch_size=math.gcd(len(scored), config.evaluation.batch_size),  # so that none is dropped
        lr_scheduler_type="cosine", warmup_steps=steps // WARMUP_PART, adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm, bf16=uses_bf16(device, training.precision),
        torch_compile=compiles(device, training.compile), use_cpu=device.type == "cpu",
        dataloader_drop_last=True,  # a smaller batch would be compiled anew
        remove_unused_columns=False,  # `shift_labels`
        eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", prediction_loss_only=True,
        logging_steps=every, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    count = blocks_an_epoch(len(train_N), seq_length, training.random_offset)
    train = Blocks(train_N, seq_length, range(0, count * seq_length, seq_length))
    return Trainer(
        model=Qwen3ForCausalLM(Qwen3Config(**qwen3_config(config.model, tokens.vocab_size, seq_length, end))),
        args=arguments,
        train_dataset=train,
        eval_dataset=Blocks(validation_N, seq_length, scored),
        callbacks=[RandomOffset(train, config.seed)] if training.random_offset else [],
    )


def main() -> None:
    parser = row_parser(__doc__)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    if options.steps < 1 or options.steps % VALIDATIONS:
        parser.error(f"--steps {options.steps}: a multiple of {VALIDATIONS}, as there are {VALIDATIONS} validations")
    if options.learning_rate <= 0 or options.weight_decay < 0:
        parser.error("--learning-rate is to be above 0, --weight-decay 0 or above")
    config = load_config(find_config(options.config), options.overrides)
    settings = {"learning_rate": options.learning_rate, "weight_decay": options.weight_decay}
    tokens, clock = tokens_of(config), Clock()
    prepare_cpu(local_processes=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, tokens, settings, options.steps, Path(folder))
        trainer.add_callback(clock)
        started = time.monotonic()
        trainer.train()
        train_seconds = time.monotonic() - started
    model = LanguageModel(config.model, tokens.vocab_size).eval()
    model.load_state_dict(
        {name.removeprefix("_orig_mod."): weight for name, weight in trainer.model.state_dict().items()}
    )
    model.to(choose_device(config.training.device))
    row = {
        "command": command_line(),
        "hardware": hardware(choose_device(config.training.device)),
        "environment": read_environment().model_dump(),
        "seed": config.seed,
        "settings": settings,
        "compiled": trainer.args.torch_compile,
        "steps": options.steps,
        "step_seconds": clock.step_seconds,
        "train_seconds": round(train_seconds, 1),
        "tokens_trained": options.steps * config.training.sequences_per_step * config.data.seq_length,
        "curve": clock.curve,
        "splits": {split: score_split(model, tokens, split, config) for split in ("validation", "test")},
    }
    add_row(options.json, row)


if __name__ == "__main__":
    run_and_exit(main)
