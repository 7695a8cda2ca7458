"""The baseline: transformers' Trainer on Qwen3's shape, with a configuration's model, tokens, batches and precision.

Run: python -m tests.benchmarks.trainer --config wikitext2-cpu --learning-rate 1e-3 --json FILE [key=value …]

One setting a run, which adds its row to the file: AdamW with weight decay 0.1, a cosine after a warm-up of a twentieth,
the gradient's norm clipped at 1. It has as many steps as fit in `--seconds` at the speed of its first steps: the
validations come on top, and the weights that are best in them are taken. Both splits are measured as ours are, by the
`sliding` protocol; the setting is chosen on validation.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from tests.benchmarks.search import add_row, tokens_of
from tests.benchmarks.training_step import hardware
from textgen.config import Config, find_config, load_config
from textgen.evaluation.protocols import read_tokens_split
from textgen.evaluation.scoring import measure
from textgen.model.device import choose_device, prepare_cpu
from textgen.model.pretrained import qwen3_config
from textgen.model.transformer import LanguageModel
from textgen.text.encoding import end_id
from textgen.text.stream import block_count
from textgen.text.tokens import TokensManifest, load_manifest_tokenizer, load_stream

TRIED_STEPS, UNSTEADY_STEPS = 25, 10  # of a first training that says how long a step takes; the first ones compile
VALIDATIONS = 20
VALIDATED_BLOCKS = 256


class Blocks(Dataset[dict[str, Tensor]]):
    """The blocks of a stream, as the Trainer takes them: it shifts the labels itself."""

    def __init__(self, stream_N: Tensor, seq_length: int, limit: int | None = None) -> None:
        count = block_count(len(stream_N), seq_length)
        self.stream_N, self.seq_length, self.count = stream_N, seq_length, min(count, limit or count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        # One id more than inputs, so that as many tokens are predicted as in a sequence of ours
        ids = self.stream_N[number * self.seq_length : (number + 1) * self.seq_length + 1].long()
        return {"input_ids": ids, "labels": ids}


class StepTimes(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """The median over the steps that are steady."""
        ends = self.ends[UNSTEADY_STEPS:]
        return statistics.median(end - start for start, end in pairwise(ends))


def train(config: Config, tokens: TokensManifest, learning_rate: float, steps: int, out: Path) -> tuple[Any, StepTimes]:
    """Train a new Qwen3 for so many steps and return it, as it was best on validation, with the times of its steps."""
    training, seq_length, times = config.training, config.data.seq_length, StepTimes()
    set_seed(config.seed)
    end = end_id(load_manifest_tokenizer(tokens))
    model = Qwen3ForCausalLM(Qwen3Config(**qwen3_config(config.model, tokens.vocab_size, seq_length, end)))
    every = max(1, steps // VALIDATIONS) if steps > TRIED_STEPS else steps
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=training.sequences_per_step,
        per_device_eval_batch_size=config.evaluation.batch_size,
        learning_rate=learning_rate, lr_scheduler_type="cosine", warmup_steps=steps // 20, weight_decay=0.1,
        adam_beta2=training.adam_beta2, max_grad_norm=1.0, bf16=training.precision == "bf16",
        torch_compile=training.compile is True, seed=config.seed, use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", prediction_loss_only=True,
        logging_steps=every, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Blocks(load_stream(tokens, "train"), seq_length),
        eval_dataset=Blocks(load_stream(tokens, "validation"), seq_length, VALIDATED_BLOCKS),
        callbacks=[times],
    )
    trainer.train()
    return trainer, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a shipped one")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--json", type=Path, required=True, help="the file that gets one row more")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    config = load_config(find_config(options.config), options.overrides)
    device, tokens = choose_device(config.training.device), tokens_of(config)
    prepare_cpu(local_processes=1)
    with tempfile.TemporaryDirectory() as folder:
        _, tried = train(config, tokens, options.learning_rate, TRIED_STEPS, Path(folder) / "tried")
        steps = int(options.seconds / tried.seconds)
        trainer, times = train(config, tokens, options.learning_rate, steps, Path(folder) / "trained")
    model = LanguageModel(config.model, tokens.vocab_size)
    model.load_state_dict(Qwen3ForCausalLM.state_dict(trainer.model))
    model.to(device).eval()
    splits = {}
    for split in ("validation", "test"):
        text = read_tokens_split(tokens, split, "sliding", config.data.seq_length, config.stride)
        metrics = measure(model, text, config.evaluation.batch_size).metrics
        splits[split] = json.loads(metrics.model_dump_json())
    row = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.trainer", *sys.argv[1:]]),
        "hardware": hardware(device),
        "learning_rate": options.learning_rate,
        "steps": steps,
        "step_seconds": {"tried": tried.seconds, "trained": times.seconds},
        "tokens_trained": steps * config.training.sequences_per_step * config.data.seq_length,
        "curve": [entry for entry in trainer.state.log_history if "eval_loss" in entry],
        "splits": splits,
    }
    add_row(options.json, row)


if __name__ == "__main__":
    main()
