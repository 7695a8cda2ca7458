"""The training loop: it learns, it repeats to the bit, and it continues where it was interrupted."""

import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import textgen.training.batches
import textgen.training.train
from tests.trainings import Interruption, ignore, interrupt_at, refuse
from textgen.config import Config, TokenizerConfig
from textgen.errors import Diverged, InputError
from textgen.evaluation.protocols import blocks
from textgen.evaluation.scoring import score
from textgen.files import Manifest
from textgen.model.pretrained import WEIGHTS_FILE, load_model
from textgen.sections import SPLITS, DataConfig, TrainingConfig
from textgen.storage import Storage
from textgen.text import corpus
from textgen.text.stream import block_count
from textgen.text.tokens import TokensManifest, load_stream, tokenize
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.folder import STATES_FOLDER
from textgen.training.optim import lr_at
from textgen.training.plan import total_steps, train_key
from textgen.training.state import OPTIMIZER_FILE
from textgen.training.train import train

STEPS = 20
DROPOUTS = {"dropout": 0.2, "attention_dropout": 0.2, "embedding_dropout": 0.2}


def outcome(out: Path) -> dict[str, bytes]:
    """Return the bytes of what a finished training leaves: the best weights, the last ones, the optimizer."""
    last = out / STATES_FOLDER / f"step-{STEPS:08d}"
    return {str(path): path.read_bytes() for path in (out / WEIGHTS_FILE, last / WEIGHTS_FILE, last / OPTIMIZER_FILE)}


def same_outcome(out: Path, other: Path) -> bool:
    return list(outcome(out).values()) == list(outcome(other).values())


@pytest.fixture(scope="module")
def config(make_config) -> Config:
    """Return a training with dropout, whose validations and states fall on different steps."""
    return make_config(model=DROPOUTS, training={"log_every": 1, "eval_every": 5, "checkpoint_every": 4})


@pytest.fixture(scope="module")
def uninterrupted(tokens, config, tmp_path_factory) -> CheckpointManifest:
    return train(tokens, config, tmp_path_factory.mktemp("uninterrupted") / "out", ignore)


def test_a_single_block_is_learned_by_heart(make_config, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("An optimist proclaims that we live in the best of all possible worlds.\n")
    raw = corpus.fetch(DataConfig(files=dict.fromkeys(SPLITS, str(text))), Storage.at(tmp_path))
    tokens = tokenize(raw, TokenizerConfig(kind="bpe", vocab_size=280), Storage.at(tmp_path))
    length = tokens.splits["train"].tokens - 1
    config = make_config(
        data={"seq_length": length}, training={"batch_size": 1, "max_steps": 100, "eval_every": 100, "log_every": 100}
    )
    first, last = train(tokens, config, tmp_path / "out", ignore).curve
    assert first.loss_nats == pytest.approx(math.log(tokens.vocab_size), rel=0.01)
    assert last.loss_nats < 0.02


def test_accumulated_steps_are_those_of_the_whole_batch(tokens, make_config, tmp_path):
    # Adam and clipping undo a wrong scale of the gradient: a large epsilon and no clipping let it show.
    common = {"max_steps": 6, "max_grad_norm": 1e9, "adam_epsilon": 1e-2, "log_every": 1}
    losses: dict[str, list[float]] = {"whole": [], "halves": []}
    for name, batch in [("whole", (8, 1)), ("halves", (4, 2))]:
        sizes = dict(zip(("batch_size", "gradient_accumulation_steps"), batch, strict=True))

        def on_metrics(step: int, figures: dict[str, float], name: str = name) -> None:
            losses[name].append(figures.get("train/loss_nats", 0.0))

        train(tokens, make_config(training={**common, **sizes}), tmp_path / name, on_metrics)
    whole, halves = (load_file(tmp_path / name / WEIGHTS_FILE) for name in losses)
    torch.testing.assert_close(halves, whole, atol=1e-5, rtol=0)
    assert losses["halves"] == pytest.approx(losses["whole"], abs=1e-5)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tokens, config, uninterrupted, tmp_path):
    for name, seed in [("same", config.seed), ("other", config.seed + 1)]:
        train(tokens, config.model_copy(update={"seed": seed}), tmp_path / name, ignore)
    assert same_outcome(tmp_path / "same", uninterrupted.folder)
    assert not same_outcome(tmp_path / "other", uninterrupted.folder)


def test_training_takes_every_block_once_an_epoch(tokens, make_config, tmp_path, monkeypatch):
    taken, take_sequences = [], textgen.training.batches.take_sequences

    def recorded(stream_N, seq_length, starts_B):
        taken.extend(starts_B.tolist())
        return take_sequences(stream_N, seq_length, starts_B)

    monkeypatch.setattr(textgen.training.batches, "take_sequences", recorded)
    count = block_count(tokens.splits["train"].tokens, 16)
    config = make_config(training={"epochs": 2.0, "gradient_accumulation_steps": 2, "max_steps": None})
    manifest = train(tokens, config, tmp_path / "out", ignore)
    assert manifest.steps == math.ceil(2 * count / 16)
    assert manifest.tokens_trained == len(taken) * 16 == manifest.steps * 16 * 16
    assert sorted(taken[:count]) == sorted(taken[count : 2 * count]) == list(range(0, count * 16, 16))
    assert taken[:count] != taken[count : 2 * count]


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 13), (2.0, 25), (0.01, 1), (0.5, 7)])
def test_epochs_are_counted_in_steps_rounded_up(epochs, steps):
    assert total_steps(TrainingConfig(epochs=epochs, batch_size=4, gradient_accumulation_steps=2), 100) == steps


def test_max_steps_are_the_steps():
    assert total_steps(TrainingConfig(max_steps=123), 100) == 123


def test_a_finished_training_returns_at_once(tokens, config, uninterrupted):
    assert train(tokens, config, uninterrupted.folder, refuse) == uninterrupted


@pytest.mark.parametrize("step", [0, 3, 4, 11, STEPS])
def test_an_interrupted_training_continues_to_the_same_bytes(step, tokens, config, uninterrupted, tmp_path):
    with pytest.raises(Interruption):
        train(tokens, config, tmp_path / "out", interrupt_at(step))
    assert not (tmp_path / "out" / Manifest.FILE).exists()
    steps = []
    continued = train(tokens, config, tmp_path / "out", lambda step, figures: steps.append(step))
    assert same_outcome(tmp_path / "out", uninterrupted.folder)
    assert continued.best_step == uninterrupted.best_step
    assert [point.loss_nats for point in continued.curve] == [point.loss_nats for point in uninterrupted.curve]
    assert min(steps) >= (step - 1) // 4 * 4, "it began again"


def test_a_training_that_lacks_only_its_manifest_is_not_trained_again(tokens, config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.folder, tmp_path / "out")
    (tmp_path / "out" / Manifest.FILE).unlink()
    manifest = train(tokens, config, tmp_path / "out", refuse)
    elsewhere_or_later = {"path", "train_seconds", "speed"}
    assert manifest.model_dump(exclude=elsewhere_or_later) == uninterrupted.model_dump(exclude=elsewhere_or_later)


def test_an_interruption_leaves_the_training_losses_as_they_are(tokens, config, uninterrupted, tmp_path):
    with pytest.raises(Interruption):
        train(tokens, config, tmp_path / "out", interrupt_at(9))
    assert train(tokens, config, tmp_path / "out", ignore).curve == uninterrupted.curve


def test_best_weights_that_were_damaged_during_an_interruption_are_not_published(
    tokens, make_config, tmp_path, flip_bit
):
    config = make_config(training={"learning_rate": 10.0, "warmup_steps": 0})  # the first weights stay the best
    with pytest.raises(Interruption):
        train(tokens, config, tmp_path / "out", interrupt_at(10))
    flip_bit(tmp_path / "out" / WEIGHTS_FILE)
    train(tokens, config, tmp_path / "out", ignore)
    train(tokens, config, tmp_path / "undisturbed", ignore)
    best, undisturbed = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("out", "undisturbed"))
    assert best == undisturbed


def test_a_finished_training_of_another_configuration_is_not_taken_for_this_one(
    tokens, config, uninterrupted, tmp_path
):
    shutil.copytree(uninterrupted.folder, tmp_path / "out")
    with pytest.raises(InputError, match="another configuration"):
        train(tokens, config.model_copy(update={"seed": config.seed + 1}), tmp_path / "out", ignore)


@pytest.mark.parametrize("file", [WEIGHTS_FILE, OPTIMIZER_FILE, Manifest.FILE])
def test_a_damaged_newest_state_is_set_aside_and_the_one_before_continued(
    file, tokens, config, uninterrupted, tmp_path, flip_bit, caplog
):
    with pytest.raises(Interruption):
        train(tokens, config, tmp_path / "out", interrupt_at(14))
    newest = tmp_path / "out" / STATES_FOLDER / "step-00000012"
    flip_bit(newest / file)
    caplog.set_level(logging.INFO)
    train(tokens, config, tmp_path / "out", ignore)
    assert newest.with_name("step-00000012.damaged-1").is_dir()
    assert "continuing from step 10" in caplog.text
    assert same_outcome(tmp_path / "out", uninterrupted.folder)


def test_damaged_finished_weights_are_set_aside_and_made_again_from_the_last_state(
    tokens, config, uninterrupted, tmp_path, flip_bit, caplog
):
    shutil.copytree(uninterrupted.folder, tmp_path / "out")
    flip_bit(tmp_path / "out" / WEIGHTS_FILE)
    damaged = (tmp_path / "out" / WEIGHTS_FILE).read_bytes()
    caplog.set_level(logging.INFO)
    train(tokens, config, tmp_path / "out", refuse)
    assert f"continuing from step {STEPS}" in caplog.text
    assert (tmp_path / "out" / f"{WEIGHTS_FILE}.damaged-1").read_bytes() == damaged
    assert same_outcome(tmp_path / "out", uninterrupted.folder)


def test_a_folder_of_other_things_is_refused_and_left_alone(tokens, config, tmp_path):
    """What looked like a killed process's leftovers was once removed from it."""
    for name in (".git", "notes"):
        (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="no training folder"):
        train(tokens, config, tmp_path / "out", refuse)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".git", "notes"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no training folder"):
        train(tokens, config, tmp_path / "file", refuse)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"max_steps": None, "epochs": 0.01, "warmup_steps": 100}, "warmup_steps"),
        ({"compile": True, "device": "cpu"}, r"needs a C\+\+ compiler"),
    ],
)
def test_a_mistake_that_is_found_late_leaves_nothing(training, words, tokens, make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "nowhere")  # a machine without a C++ compiler
    config = make_config(training=training)
    with pytest.raises(InputError, match=words):
        train(tokens, config, tmp_path / "out", refuse)
    assert not (tmp_path / "out").exists()


def test_a_training_goes_on_with_its_steps_shared_out_otherwise(tokens, make_config, tmp_path):
    """So that the advice of an out-of-memory message can be followed."""
    sizes = [{"batch_size": 8, "gradient_accumulation_steps": 1}, {"batch_size": 4, "gradient_accumulation_steps": 2}]
    with pytest.raises(Interruption):
        train(tokens, make_config(training={**sizes[0], "checkpoint_every": 5}), tmp_path / "out", interrupt_at(10))
    shared = train(tokens, make_config(training=sizes[1]), tmp_path / "out", ignore)
    whole = train(tokens, make_config(training=sizes[0]), tmp_path / "whole", ignore)
    assert [point.loss_nats for point in shared.curve] == pytest.approx([point.loss_nats for point in whole.curve])


def test_the_weights_left_are_those_best_on_validation(tokens, make_config, tmp_path):
    config = make_config(
        training={"max_steps": 100, "batch_size": 32, "learning_rate": 0.02, "eval_every": 10, "eval_blocks": None},
        model={"hidden_size": 64, "embedding_dropout": 0.1},
    )
    manifest = train(tokens, config, tmp_path / "out", ignore)
    best = min(manifest.curve, key=lambda point: point.loss_nats)
    assert manifest.best_step == best.step
    assert 0 < best.step < manifest.steps, "the training neither improved nor overfitted: nothing to choose from"
    validation_N = load_stream(tokens, "validation")
    nats, scored = score(load_model(manifest.folder).model, validation_N, list(blocks(len(validation_N), 16)), 32)
    assert nats / scored == pytest.approx(best.loss_nats, abs=1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_a_sequence_longer_than_a_split_is_refused(split, tokens, make_config, tmp_path):
    lengths = {name: tokens.splits[name].tokens for name in SPLITS}
    shortened = {name: counts if name != split else counts.model_copy(update={"tokens": 16})
                 for name, counts in tokens.splits.items()}  # fmt: skip
    assert min(lengths.values()) > 17
    with pytest.raises(InputError, match=rf"data\.seq_length=16: the {split} split has only 16 tokens"):
        train(tokens.model_copy(update={"splits": shortened}), make_config(), tmp_path / "out", refuse)
    assert not (tmp_path / "out").exists()


def test_the_figures_of_a_training_are_reported(tokens, make_config, tmp_path):
    config, calls = make_config(training={"log_every": 8, "eval_every": 10, "batch_size": 4}), []
    manifest = train(tokens, config, tmp_path / "out", lambda step, figures: calls.append((step, figures)))
    trained = {step: figures for step, figures in calls if "train/loss_nats" in figures}
    validated = {step: figures for step, figures in calls if "train/loss_nats" not in figures}
    assert validated == {point.step: {"validation/loss_nats": point.loss_nats} for point in manifest.curve}
    assert [point.step for point in manifest.curve] == [0, 10, 20]
    assert [point.tokens for point in manifest.curve] == [0, 10 * 4 * 16, 20 * 4 * 16]
    assert list(trained) == [8, 16, 20]
    for step, figures in trained.items():
        names = ("loss_nats", "learning_rate", "grad_norm", "tokens", "tokens_per_second")
        costs = ("train/mfu", "train/bad_steps", "train/memory_peak_bytes", "seconds/train", "seconds/validation")
        assert figures.keys() - {"seconds/saving"} == {*(f"train/{name}" for name in names), *costs}
        assert figures["train/bad_steps"] == 0 < figures["train/mfu"] < 1
        assert figures["train/learning_rate"] == lr_at(step - 1, 20, config.training)
        assert figures["train/tokens"] == step * 4 * 16
        assert 0 < figures["train/loss_nats"] < 2 * math.log(tokens.vocab_size)
        assert figures["train/grad_norm"] > 0 and figures["train/tokens_per_second"] > 0


def test_the_training_loss_of_a_validation_is_the_mean_since_the_one_before(tokens, make_config, tmp_path):
    losses = []

    def on_metrics(step: int, figures: dict[str, float]) -> None:
        if "train/loss_nats" in figures:
            losses.append(figures["train/loss_nats"])

    config = make_config(training={"log_every": 1, "eval_every": 8})
    _, *curve = train(tokens, config, tmp_path / "out", on_metrics).curve
    means = [sum(part) / len(part) for part in (losses[:8], losses[8:16], losses[16:])]
    assert [point.train_loss_nats for point in curve] == pytest.approx(means)


def test_the_gradient_is_clipped_before_the_step(tokens, make_config, tmp_path):
    still = {"max_grad_norm": 1e-6, "adam_epsilon": 1.0, "weight_decay": 0.0}  # a step is the clipped gradient, almost
    first, *_, last = train(tokens, make_config(training=still), tmp_path / "out", ignore).curve
    assert last.loss_nats == pytest.approx(first.loss_nats, abs=1e-6)


def test_a_loss_that_is_not_finite_ends_the_training(tokens, make_config, tmp_path):
    config = make_config(training={"learning_rate": 1e30, "min_learning_rate": 1e30, "log_every": 1})
    with pytest.raises(Diverged, match=r"lower training\.learning_rate"):
        train(tokens, config, tmp_path / "out", ignore)
    assert not (tmp_path / "out" / Manifest.FILE).exists()


def test_the_manifest_counts_the_parameters_of_the_stored_model(uninterrupted: CheckpointManifest):
    stored = load_file(uninterrupted.folder / WEIGHTS_FILE)
    assert uninterrupted.parameters == sum(tensor.numel() for tensor in stored.values())


def test_the_tokens_of_a_training_are_named_in_its_manifest(
    uninterrupted: CheckpointManifest, tokens: TokensManifest, config: Config
):
    assert uninterrupted.tokens_key == tokens.key
    assert uninterrupted.key == train_key(tokens, config)


@pytest.mark.parametrize(
    ("precision", "flags", "warned"), [("bf16", "avx512_bf16", 1), ("bf16", "amx_bf16", 0), ("auto", "avx512_bf16", 0)]
)
def test_bf16_on_a_cpu_without_amx_is_a_warning(
    precision, flags, warned, tokens, make_config, tmp_path, monkeypatch, caplog
):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags} avx\n")
    monkeypatch.setattr("textgen.model.device.CPU_INFO", tmp_path / "cpuinfo")
    config = make_config(training={"max_steps": 1, "warmup_steps": 0, "precision": precision})
    train(tokens, config, tmp_path / "out", ignore)
    assert caplog.text.count("training.precision=bf16: these cores have no AMX") == warned
