"""A training that starts from another model's weights."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainings import ignore
from textgen.__main__ import main
from textgen.config import Config
from textgen.errors import USER_MISTAKE, InputError
from textgen.files import sha256_file, write_atomic
from textgen.model.find import LINEAGE_FILE
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.folder import KEY_FILE, STATES_FOLDER, Origin, texts_of
from textgen.training.plan import plan_training, train_key
from textgen.training.state import OPTIMIZER_FILE, StateManifest
from textgen.training.train import train
from textgen.training.trunk import Trunk
from textgen.training.warm_start import find_kept


@pytest.fixture(scope="module")
def root(checkpoint: CheckpointManifest, tmp_path_factory) -> Path:
    """Return a storage folder in which version 2 of the model `base`, the champion, has the checkpoint's weights."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(checkpoint.folder, root / "models" / "base" / "v2")
    (root / "models" / "base" / "champion").write_text("v2\n")
    worse = root / "models" / "base" / "v1"
    shutil.copytree(checkpoint.folder, worse)
    weights = load_file(worse / WEIGHTS_FILE)
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, worse / WEIGHTS_FILE, metadata={"format": "pt"})
    describe_anew(worse)
    return root


def describe_anew(folder: Path) -> None:
    """Have the manifest of a training name the files as they are now."""
    manifest = CheckpointManifest.parse(folder)
    sha256 = {name: sha256_file(folder / name) for name in manifest.sha256}
    manifest.model_copy(update={"sha256": sha256}).write(folder)


@pytest.fixture
def warm(make_config, root: Path):
    """Return a function from `init_from`, and other keys of the sections, to a configuration."""

    def warm(init_from: str | Path | None, **sections: dict) -> Config:
        training = {"max_steps": 6, "warmup_steps": 2, "eval_every": 3, **sections.pop("training", {})}
        init = None if init_from is None else str(init_from)
        return make_config(training={**training, "init_from": init}, storage={"root": str(root)}, **sections)

    return warm


def best_loss_nats(checkpoint: CheckpointManifest) -> float:
    return min(point.loss_nats for point in checkpoint.curve)


@pytest.mark.parametrize("init_from", ["base@champion", "base@v2", "the folder"])
@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.9}])
def test_the_validation_before_the_first_step_is_the_other_models(init_from, more, tokens, checkpoint, warm, tmp_path):
    config = warm(checkpoint.folder if init_from == "the folder" else init_from, training=more)
    manifest = train(tokens, config, tmp_path / "out", ignore)
    assert manifest.curve[0].loss_nats == best_loss_nats(checkpoint)
    assert manifest.initial_sha256 == hashlib.sha256((checkpoint.folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    origin = Origin.parse(manifest.folder)
    assert (origin.tokens_key, origin.initial_sha256) == (manifest.tokens_key, manifest.initial_sha256)
    assert origin.initial == (str(checkpoint.folder) if init_from == "the folder" else "models/base/v2")
    assert manifest.curve[-1].loss_nats != manifest.curve[0].loss_nats


def test_another_version_gives_other_weights(tokens, checkpoint, warm, tmp_path):
    manifest = train(tokens, warm("base@v1"), tmp_path / "out", ignore)
    assert abs(manifest.curve[0].loss_nats - best_loss_nats(checkpoint)) > 0.01


def test_the_first_step_starts_from_the_weights_and_with_fresh_moments(tokens, checkpoint, warm, tmp_path):
    # Adam's first step, its learning rate at half the warm-up and without decay, is at most the learning rate
    config = warm(checkpoint.folder, training={"checkpoint_every": 1, "keep_checkpoints": 9, "weight_decay": 0.0})
    train(tokens, config, tmp_path / "out", ignore)
    theirs = load_file(checkpoint.folder / WEIGHTS_FILE)
    first = load_file(tmp_path / "out" / STATES_FOLDER / "step-00000001" / WEIGHTS_FILE)
    moved = torch.stack([(first[name] - theirs[name]).abs().max() for name in theirs])
    assert 0.004 < moved.max() <= 0.0050001


def test_a_training_notes_the_texts_that_it_came_from(checkpoint, tokens, tmp_path):
    assert texts_of(checkpoint.folder) == ([tokens.raw_key], True)
    assert texts_of(tmp_path) == ([], False)
    stages = {"raw": {"key": "a"}, "checkpoint": {"initial_sha256": None}}
    write_atomic(tmp_path / LINEAGE_FILE, json.dumps(stages))  # of older code
    assert texts_of(tmp_path) == (["a"], True)
    write_atomic(tmp_path / LINEAGE_FILE, json.dumps({**stages, "checkpoint": {"initial_sha256": "0"}}))
    assert texts_of(tmp_path) == (["a"], False)
    write_atomic(tmp_path / LINEAGE_FILE, json.dumps({**stages, "earlier_texts": ["b"], "names_all_texts": True}))
    assert texts_of(tmp_path) == (["a", "b"], True)


@pytest.mark.parametrize("names_all", [True, False])
def test_the_texts_of_the_other_model_are_noted_too(names_all, tokens, checkpoint, warm, tmp_path):
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "other"))
    Origin.parse(folder).model_copy(update={"texts": ["other", "older"], "names_all_texts": names_all}).write(folder)
    origin = Origin.parse(train(tokens, warm(folder), tmp_path / "out", ignore).folder)
    assert (origin.texts, origin.names_all_texts) == ([tokens.raw_key, "other", "older"], names_all)


def test_without_init_from_nothing_is_loaded(tokens, warm, tmp_path):
    manifest = train(tokens, warm(None), tmp_path / "out", ignore)
    assert manifest.initial_sha256 is None


def test_a_warm_start_in_a_longer_context_is_allowed(tokens, checkpoint, warm, tmp_path):
    manifest = train(tokens, warm(checkpoint.folder, data={"seq_length": 32}), tmp_path / "out", ignore)
    assert manifest.curve[0].loss_nats == pytest.approx(best_loss_nats(checkpoint), abs=0.3)


def test_dropout_may_differ(tokens, checkpoint, warm, tmp_path):
    config = warm(checkpoint.folder, model={"dropout": 0.3, "attention_dropout": 0.1, "initializer_range": 0.5})
    manifest = train(tokens, config, tmp_path / "out", ignore)
    assert manifest.curve[0].loss_nats == best_loss_nats(checkpoint)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 48, "hidden_size=32 where this one has 48"),
        ("intermediate_size", 96, "intermediate_size=64 where this one has 96"),
        ("num_hidden_layers", 2, "num_hidden_layers=1 where this one has 2"),
        ("num_attention_heads", 4, "num_attention_heads=2 where this one has 4"),
        ("num_key_value_heads", 1, "num_key_value_heads=2 where this one has 1"),
        ("head_dim", 8, "head_dim=16 where this one has 8"),
        ("tie_word_embeddings", False, "tie_word_embeddings=True where this one has False"),
        ("rope_theta", 500.0, "rope_theta=10000.0 where this one has 500.0"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps=1e-06 where this one has 1e-05"),
    ],
)
def test_a_model_of_another_shape_is_refused(key, value, message, tokens, warm, tmp_path):
    with pytest.raises(InputError) as caught:
        train(tokens, warm("base@champion", model={key: value}), tmp_path / "out", ignore)
    assert str(caught.value).startswith("training.init_from='base@champion': that model has ")
    assert message in str(caught.value)


def test_a_vocabulary_of_another_size_is_refused(make_tokens, warm, tmp_path):
    with pytest.raises(InputError, match=r"training\.init_from='base@champion': that model has vocab_size=300 where"):
        train(make_tokens("word"), warm("base@champion"), tmp_path / "out", ignore)


def test_another_tokenizer_of_the_same_size_is_refused(tokens, checkpoint, warm, tmp_path):
    from textgen.text.tokenizer import TOKENIZER_FILE

    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "other"))
    tokenizer = json.loads((folder / TOKENIZER_FILE).read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (folder / TOKENIZER_FILE).write_text(json.dumps(tokenizer))
    describe_anew(folder)
    with pytest.raises(InputError, match=r"^training\.init_from='.*': that model has another tokenizer$"):
        train(tokens, warm(folder), tmp_path / "out", ignore)


@pytest.mark.parametrize(
    ("init_from", "message"),
    [("nowhere", "no such folder"), ("base@v9", "has v1, v2"), ("other@champion", "has no version")],
)
def test_a_model_that_is_not_there_is_refused(init_from, message, tokens, warm, tmp_path):
    with pytest.raises(InputError, match=message):
        train(tokens, warm(init_from), tmp_path / "out", ignore)


def test_a_model_that_does_not_fit_is_one_line_of_the_command(tokens, warm, tmp_path, capsys):
    config = warm("base@champion", model={"hidden_size": 48})
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    options = ["--config", tmp_path / "config.yaml", "--tokens", tokens.folder, "--out", tmp_path / "out"]
    assert main(["train", *map(str, options)]) == USER_MISTAKE
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "hidden_size=32 where this one has 48" in line


def test_the_key_follows_the_weights_and_not_their_name(tokens, checkpoint, warm):
    names = ["base@champion", "base@v2", checkpoint.folder]
    same = {train_key(tokens, warm(name)) for name in names}
    assert len(same) == 1
    assert len({*same, train_key(tokens, warm("base@v1")), train_key(tokens, warm(None))}) == 3


def test_the_key_follows_the_champion(tokens, warm, root):
    champion = root / "models" / "base" / "champion"
    before = train_key(tokens, warm("base@champion"))
    try:
        champion.write_text("v1\n")
        assert train_key(tokens, warm("base@champion")) == train_key(tokens, warm("base@v1")) != before
    finally:
        champion.write_text("v2\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "cuda"), ("devices", 2), ("compile", True), ("log_every", 3), ("checkpoint_every", 7),
        ("checkpoint_every_minutes", 1.5), ("keep_checkpoints", 5), ("max_bad_steps", 2),
    ],
)  # fmt: skip
def test_how_a_training_is_run_and_watched_is_not_in_its_key(name, value, tokens, warm):
    assert train_key(tokens, warm(None, training={name: value})) == train_key(tokens, warm(None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 4), ("gradient_accumulation_steps", 2), ("max_steps", 7), ("learning_rate", 0.5),
        ("min_learning_rate", 0.0), ("schedule", "wsd"), ("decay_fraction", 0.5), ("warmup_steps", 1),
        ("optimizer", "muon"), ("muon_momentum", 0.5), ("weight_decay", 0.2), ("final_weight_decay", 0.0),
        ("adam_beta1", 0.8), ("adam_beta2", 0.9), ("adam_epsilon", 1e-5), ("max_grad_norm", 2.0), ("ema_decay", 0.9),
        ("random_offset", True), ("early_stopping_patience", 3), ("eval_every", 4), ("eval_blocks", 7),
        ("precision", "bf16"),
    ],
)  # fmt: skip
def test_what_the_weights_depend_on_is_in_the_key(name, value, tokens, warm):
    assert train_key(tokens, warm(None, training={name: value})) != train_key(tokens, warm(None))


def test_every_key_of_a_training_is_either_in_its_key_or_not():
    cases = [
        mark.args[1]
        for test in (
            test_how_a_training_is_run_and_watched_is_not_in_its_key, test_what_the_weights_depend_on_is_in_the_key
        )
        for mark in test.pytestmark
    ]  # fmt: skip
    named = {name for values in cases for name, _ in values}
    assert named | {"epochs", "init_from"} == set(Config().training.model_dump())


@pytest.fixture(scope="module")
def kept(make_config, tokens, tmp_path_factory) -> CheckpointManifest:
    """Return a training that kept a state, in a storage folder whose model `week` has its weights as the champion."""
    root = tmp_path_factory.mktemp("kept")
    out = root / "checkpoints" / "of-week-1"
    config = make_config(training={"schedule": "wsd", "decay_fraction": 0.4})
    checkpoint = train(tokens, config, out, ignore)
    version = root / "models" / "week" / "v1"
    version.mkdir(parents=True)
    for name in ("manifest.json", *checkpoint.sha256):
        shutil.copy(out / name, version)
    record = {"folder": "checkpoints/of-week-1", "key": checkpoint.key}
    (version / LINEAGE_FILE).write_text(json.dumps({"checkpoint": record}))
    (root / "models" / "week" / "champion").write_text("v1\n")
    return checkpoint


@pytest.fixture
def week(make_config, kept: CheckpointManifest, tmp_path):
    """Return a function from keys of the training to one that starts from the champion of a copy of that storage."""
    root = Path(shutil.copytree(kept.folder.parents[1], tmp_path / "root"))
    common = {
        "schedule": "wsd", "max_steps": 6, "warmup_steps": 0, "learning_rate": 1e-9, "min_learning_rate": 1e-9,
        "init_from": "week@champion", "checkpoint_every": 1, "keep_checkpoints": 9,
    }  # fmt: skip
    return lambda **training: make_config(training={**common, **training}, storage={"root": str(root)})


def first_state(out: Path) -> Path:
    return out / STATES_FOLDER / "step-00000001"


def test_wsd_starts_from_the_weights_and_the_optimizer_that_the_champions_training_kept(
    tokens, kept, week, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    manifest = train(tokens, week(), tmp_path / "out", ignore)
    state = Trunk.parse(kept.folder).state
    assert "'week@champion': starting from the weights and the optimizer of its training at step 12" in caplog.text
    assert manifest.initial_sha256 == sha256_file(state / WEIGHTS_FILE) != kept.weights_sha256
    before, after = (load_file(folder / OPTIMIZER_FILE) for folder in (state, first_state(tmp_path / "out")))
    assert {int(after[name]) - int(before[name]) for name in before if name.endswith(".step")} == {1}
    weights = (load_file(folder / WEIGHTS_FILE) for folder in (state, first_state(tmp_path / "out")))
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"schedule": "cosine"}, "starting from its weights"),
        ({"optimizer": "muon"}, "starting from its weights; its training kept no state before a decay that fits"),
    ],
)
def test_otherwise_it_starts_from_the_champions_weights(other, words, tokens, kept, week, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    manifest = train(tokens, week(**other), tmp_path / "out", ignore)
    assert manifest.initial_sha256 == kept.weights_sha256
    assert f"training.init_from='week@champion': {words}" in caplog.messages


@pytest.mark.parametrize("damage", ["state", "record", "another training"])
def test_a_kept_state_that_cannot_be_used_leaves_the_champions_weights(
    damage, tokens, kept, week, tmp_path, flip_bit, caplog
):
    training = Path(week().storage.root) / "checkpoints" / "of-week-1"
    match damage:
        case "state":
            flip_bit(Trunk.parse(training).state / OPTIMIZER_FILE)
        case "record":
            flip_bit(training / Trunk.FILE)
        case _:
            (training / KEY_FILE).write_text("another\n")
    assert train(tokens, week(), tmp_path / "out", ignore).initial_sha256 == kept.weights_sha256
    assert ("set aside" in caplog.text) == (damage != "another training")


@pytest.mark.parametrize(("other", "warmup_steps"), [({}, 0), ({"schedule": "cosine"}, 2), ({"warmup_steps": 3}, 3)])
def test_a_kept_state_needs_no_warm_up(other, warmup_steps, tokens, week):
    config = week(max_steps=20, **{"warmup_steps": None, **other})
    assert plan_training(tokens, config).config.training.warmup_steps == warmup_steps


def test_the_key_follows_the_kept_state(tokens, week):
    keys = {train_key(tokens, week(**other)) for other in ({}, {"init_from": None})}
    shutil.rmtree(Path(week().storage.root) / "checkpoints")
    assert len({*keys, train_key(tokens, week())}) == 3


def test_before_its_first_champion_a_model_starts_from_zero_and_says_so(tokens, make_config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first, cold = (
        make_config(training={"max_steps": 6, "init_from": name}, storage={"root": str(tmp_path)})
        for name in ("textgen@champion", None)
    )
    manifest = train(tokens, first, tmp_path / "out", ignore)
    assert manifest.initial_sha256 is None
    assert "training.init_from='textgen@champion': there is no champion; starting from zero" in caplog.messages
    assert train_key(tokens, first) == train_key(tokens, cold) == manifest.key


def test_the_state_that_a_training_elsewhere_kept_is_brought(tokens, kept, make_config, here, there, tmp_path):
    shutil.copytree(kept.folder.parents[1], here.local)
    trunk = Trunk.parse(here.training("of-week-1"))
    version = here.models("week") / "v1"
    here.push(version, CheckpointManifest.parse(version))
    here.push(trunk.state, StateManifest.parse(trunk.state))
    for file in (here.models("week") / "champion", trunk.folder / KEY_FILE, trunk.folder / Trunk.FILE):
        here.push_file(file)
    assert find_kept(version, there, "adamw").folder.is_relative_to(there.local)
