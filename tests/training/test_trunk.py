"""A longer training goes on from the state that a shorter one kept where its decay began, to the same bytes."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import textgen.training.train
from tests.trainings import Interruption, ignore, interrupt_at, refuse
from textgen.config import Config
from textgen.errors import InputError
from textgen.files import Manifest, sha256_file
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.sections import TrainingConfig
from textgen.storage import Storage
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import LOG_FILE, read_log
from textgen.training.folder import STATES_FOLDER
from textgen.training.handover import bring_training, bring_trunk, mirrored
from textgen.training.optim import decay_start, lr_at
from textgen.training.plan import plan_training, train_key
from textgen.training.start import find_state
from textgen.training.state import BEST_FILE, OPTIMIZER_FILE
from textgen.training.trunk import Trunk, find_trunk

SHORT, LONG, DECAY = 10, 20, 8  # DECAY: where the short one's begins, a step without a validation and a saved state
WSD = {
    "schedule": "wsd", "decay_fraction": 0.2, "max_steps": SHORT, "log_every": 1, "eval_every": 3,
    "checkpoint_every": 7, "keep_checkpoints": 1,
}  # fmt: skip
EVERYTHING = {"ema_decay": 0.5, "random_offset": True, "optimizer": "muon", "gradient_accumulation_steps": 2}
DROPOUTS = {"dropout": 0.2, "embedding_dropout": 0.2}


@pytest.fixture(scope="module")
def wsd(make_config) -> Callable[..., Config]:
    """Return a function from keys of the training to a configuration with everything that could depend on a length."""
    return lambda **training: make_config(model=DROPOUTS, training={**WSD, **EVERYTHING, **training})


@pytest.fixture(scope="module")
def short(tokens, wsd, tmp_path_factory) -> CheckpointManifest:
    """Return the short training, alone in its folder; tests that go on from it copy that folder."""
    return train(tokens, wsd(), tmp_path_factory.mktemp("short") / "short")


@pytest.fixture(scope="module")
def at_once(tokens, wsd, tmp_path_factory) -> CheckpointManifest:
    """Return the long training, made from zero."""
    return train(tokens, wsd(max_steps=LONG), tmp_path_factory.mktemp("at-once") / "out")


@pytest.fixture
def home(short, tmp_path) -> Path:
    """Return a folder of trainings that has the short one."""
    shutil.copytree(short.folder.parent, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def begun(monkeypatch) -> list[int]:
    """Return a list that receives the number of every step that is begun."""
    begun: list[int] = []
    step = textgen.training.train.Run.step

    def counted(run: textgen.training.train.Run) -> None:
        begun.append(run.progress.step)
        step(run)

    monkeypatch.setattr(textgen.training.train.Run, "step", counted)
    return begun


def train(tokens, config: Config, out: Path, on_metrics=ignore) -> CheckpointManifest:
    return textgen.training.train.train(tokens, config, out, on_metrics)


def lines(out: Path) -> list[dict[str, float]]:
    """Return the logged figures that do not depend on the clock or the machine."""
    clocked = ("seconds/", "train/mfu", "train/tokens_per_second", "train/memory_peak_bytes")
    return [{name: figure for name, figure in line.items() if not name.startswith(clocked)} for line in read_log(out)]


def outcome(manifest: CheckpointManifest) -> dict[str, object]:
    """Return what a training left: the bytes of its last state and of its best weights, its figures and settings."""
    (last,) = (manifest.folder / STATES_FOLDER).iterdir()
    files = {path.name: sha256_file(path) for path in sorted(last.glob("*.safetensors"))}
    machine = {"path", "built", "train_seconds", "speed", "environment"}
    return {**files, "log": lines(manifest.folder), **manifest.model_dump(exclude=machine)}


def record(out: Path) -> Trunk:
    return Trunk.parse(out)


@pytest.mark.parametrize("out", ["other", "short"])
def test_a_longer_training_ends_with_the_bytes_of_one_run(out, tokens, wsd, home, at_once, begun, caplog):
    caplog.set_level(logging.INFO)
    handed_on = []
    longer = train(tokens, wsd(max_steps=LONG), home / out, lambda step, figures: handed_on.append(step))
    assert begun == list(range(DECAY, LONG))
    assert f"going on from step {DECAY} of {home / 'short'}, where its decay began" in caplog.text
    assert outcome(longer) == outcome(at_once)
    assert handed_on == [int(line["step"]) for line in read_log(at_once.folder)] or out == "short"
    assert (home / "short" / Manifest.FILE).exists()


def test_the_short_one_is_left_as_it_was(tokens, wsd, short, home):
    train(tokens, wsd(max_steps=LONG), home / "other")
    for path in (path for path in short.folder.rglob("*") if path.is_file()):
        assert (home / "short" / path.relative_to(short.folder)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("out", ["other", "short"])
@pytest.mark.parametrize("step", [DECAY, DECAY + 1, 13, 17])
def test_a_longer_training_that_is_interrupted_ends_with_the_same_bytes(step, out, tokens, wsd, home, at_once):
    with pytest.raises(Interruption):
        train(tokens, wsd(max_steps=LONG), home / out, interrupt_at(step))
    assert not (home / out / Manifest.FILE).exists()
    assert outcome(train(tokens, wsd(max_steps=LONG), home / out)) == outcome(at_once)


@pytest.mark.parametrize("out", ["other", "short"])
def test_a_decay_that_had_begun_when_the_short_one_was_ended_leaves_no_trace(
    out, tokens, wsd, tmp_path, at_once, begun
):
    with pytest.raises(Interruption):
        train(tokens, wsd(), tmp_path / "short", interrupt_at(DECAY + 1))
    begun.clear()
    assert outcome(train(tokens, wsd(max_steps=LONG), tmp_path / out)) == outcome(at_once)
    assert begun[0] == DECAY


def test_the_short_command_continues_where_the_long_one_had_not_begun(tokens, wsd, home, short):
    """Between the removal of what is replaced and the new key, the folder is the short one's."""
    (home / "short" / Manifest.FILE).unlink()
    shutil.rmtree(home / "short" / STATES_FOLDER)
    assert outcome(train(tokens, wsd(), home / "short")) == outcome(short)


def test_the_furthest_state_before_the_decay_is_gone_on_from(tokens, wsd, home, begun):
    for steps, first in [(LONG, DECAY), (15, DECAY), (2 * LONG, 16), (9, 0)]:
        begun.clear()
        train(tokens, wsd(max_steps=steps), home / str(steps))
        assert begun[0] == first


def test_a_shorter_training_does_not_take_the_folder_of_a_longer_one(tokens, wsd, home):
    with pytest.raises(InputError, match="another configuration"):
        train(tokens, wsd(max_steps=SHORT - 3), home / "short", refuse)
    assert CheckpointManifest.read(home / "short").steps == SHORT


def test_epochs_and_another_decay_go_on_too(tokens, wsd, home, begun, tmp_path):
    more = {"max_steps": None, "epochs": 3.0, "decay_fraction": 0.5}
    longer = train(tokens, wsd(**more), home / "other")
    assert begun[0] == DECAY
    assert outcome(longer) == outcome(train(tokens, wsd(**more), tmp_path / "at-once" / "out"))


@pytest.mark.parametrize(
    "other", [{"learning_rate": 2e-2}, {"warmup_steps": 5}, {"eval_every": 4}, {"eval_blocks": 1}, {"ema_decay": 0.6}]
)
def test_other_settings_do_not_go_on(other, tokens, wsd, home):
    assert find_trunk(home, plan_training(tokens, wsd(max_steps=LONG), home).fits) is not None
    assert find_trunk(home, plan_training(tokens, wsd(max_steps=LONG, **other), home).fits) is None


def test_a_longer_training_that_does_not_go_on_says_which_setting_differs(tokens, wsd, home, caplog):
    caplog.set_level(logging.INFO)
    plan = plan_training(tokens, wsd(max_steps=LONG, warmup_steps=5), home)
    assert find_state(plan, home / "longer") is None
    (line,) = [line for line in caplog.messages if "not going on" in line]
    assert line.endswith("training.warmup_steps is 4 there and 5 here")


def test_a_training_that_is_forced_does_not_go_on_from_another(tokens, wsd, home, begun):
    config = wsd(max_steps=LONG)
    train(tokens, config, home / f"{plan_training(tokens, config, home).key}-again")
    assert begun == list(range(LONG))


def test_the_kept_state_outlives_the_states_to_continue_from(home):
    assert [state.name for state in (home / "short" / STATES_FOLDER).iterdir()] == [f"step-{SHORT:08d}"]
    assert record(home / "short").step == DECAY
    assert record(home / "short").state.is_dir()


def test_what_is_null_is_that_of_the_short_one(tokens, wsd, tmp_path, begun, caplog):
    caplog.set_level(logging.INFO)
    nulls = {"warmup_steps": None, "eval_every": None, "eval_blocks": None}
    train(tokens, wsd(**nulls), tmp_path / "short")
    begun.clear()
    longer = train(tokens, wsd(max_steps=LONG, **nulls), tmp_path / "longer")
    assert begun[0] == DECAY
    settings = {"warmup_steps": 1, "eval_every": 1, "eval_blocks": None}
    assert "training.warmup_steps=1, training.eval_every=1, training.eval_blocks=None" in caplog.text
    assert {name: longer.config["training"][name] for name in settings} == settings
    assert outcome(longer) == outcome(train(tokens, wsd(max_steps=LONG, **settings), tmp_path / "at-once" / "out"))
    set_to = {"warmup_steps": 4, "eval_every": 3, "eval_blocks": 7}
    train(tokens, wsd(**set_to), tmp_path / "set" / "short")
    assert train(tokens, wsd(max_steps=LONG, **nulls), tmp_path / "set" / "longer").config["training"].items() >= (
        set_to.items()
    )


def test_a_training_finds_itself_by_the_key_that_it_had(tokens, make_config, tmp_path):
    training = {**WSD, "warmup_steps": None, "eval_every": None}
    configs = [
        make_config(training={**training, "max_steps": steps}, storage={"root": str(tmp_path)})
        for steps in (SHORT, LONG)
    ]
    keys = []
    for config in configs:
        keys.append(train_key(tokens, config))
        train(tokens, config, Storage(config.storage).training(keys[-1]))
    assert [train_key(tokens, config) for config in configs] == keys


@pytest.mark.parametrize("file", [WEIGHTS_FILE, OPTIMIZER_FILE, BEST_FILE, LOG_FILE, Manifest.FILE])
def test_a_damaged_trunk_is_named_and_set_aside_and_the_training_starts_from_zero(
    file, tokens, wsd, home, at_once, begun, flip_bit, caplog
):
    state = record(home / "short").state
    flip_bit(state / file)
    assert outcome(train(tokens, wsd(max_steps=LONG), home / "other")) == outcome(at_once)
    assert begun == list(range(LONG))
    assert f"{state / file} is damaged" in caplog.text
    assert state.with_name(f"{state.name}.damaged-1").is_dir() and not state.exists()


def test_a_damaged_record_is_named_and_set_aside(tokens, wsd, home, at_once, begun, flip_bit, caplog):
    flip_bit(home / "short" / Trunk.FILE)
    assert outcome(train(tokens, wsd(max_steps=LONG), home / "other")) == outcome(at_once)
    assert begun == list(range(LONG))
    assert f"{home / 'short' / Trunk.FILE} is damaged" in caplog.text
    assert (home / "short" / f"{Trunk.FILE}.damaged-1").exists()


def test_a_finished_training_does_not_make_way_for_one_that_could_not_go_on(tokens, wsd, home, flip_bit):
    flip_bit(record(home / "short").state / WEIGHTS_FILE)
    with pytest.raises(InputError, match="another configuration"):
        train(tokens, wsd(max_steps=LONG), home / "short", refuse)
    assert CheckpointManifest.read(home / "short").steps == SHORT


def test_final_weight_decay_keeps_nothing_and_says_so(tokens, wsd, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(tokens, wsd(final_weight_decay=0.5), tmp_path / "out")
    assert "this training cannot be made longer: training.final_weight_decay moves over the whole length" in caplog.text
    assert not (tmp_path / "out" / Trunk.FILE).exists()


def test_a_stop_before_the_decay_keeps_nothing_and_says_so(tokens, wsd, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = wsd(early_stopping_patience=2, learning_rate=1.0, min_learning_rate=1.0, warmup_steps=0)
    manifest = train(tokens, config, tmp_path / "out")
    assert manifest.stopped_early and manifest.steps < DECAY
    assert f"start from zero: it ended at step {manifest.steps}, before its decay" in caplog.text
    assert not (tmp_path / "out" / Trunk.FILE).exists()


def test_a_training_says_what_more_steps_would_start_from(tokens, wsd, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(tokens, wsd(schedule="cosine"), tmp_path / "cosine")
    (line,) = [line for line in caplog.messages if "from zero" in line]
    assert line.startswith(f"more steps would start from zero: these {SHORT} took ")
    assert "with training.schedule=wsd they would go on" in line
    assert not (tmp_path / "cosine" / Trunk.FILE).exists()
    train(tokens, wsd(), tmp_path / "wsd")
    assert f"the same command with more steps goes on from step {DECAY}, where the decay began" in caplog.text


def test_another_machine_goes_on_from_it_to_the_same_bytes(tokens, wsd, here, there, at_once, begun):
    for storage, name, steps, left in [
        (here, "short", SHORT, None),
        (there, "long", LONG, 13),
        (here, "long", LONG, None),
    ]:
        out, config = storage.training(name), wsd(max_steps=steps)
        bring_training(storage, out)
        bring_trunk(storage, plan_training(tokens, config, storage.training()), out)
        begun.clear()
        with mirrored(storage, out):
            if left is not None:
                with pytest.raises(Interruption):
                    train(tokens, config, out, interrupt_at(left))
                assert begun == list(range(DECAY, left))
            else:
                made = train(tokens, config, out)
    assert begun == list(range(12, LONG)), "from the state that the other machine had pushed"
    assert outcome(made) == outcome(at_once)


def test_nulls_are_those_of_a_training_on_another_machine(tokens, make_config, remote_root, tmp_path):
    def config(machine: str, **training: object) -> Config:
        storage = {"root": remote_root, "cache": str(tmp_path / machine)}
        return make_config(training={**WSD, **training}, storage=storage)

    made = config("here", warmup_steps=3)
    here = Storage(made.storage)
    with mirrored(here, out := here.training(train_key(tokens, made))):
        train(tokens, made, out)
    longer = config("there", max_steps=LONG, warmup_steps=None)
    assert plan_training(tokens, longer).config.training.warmup_steps == 3


def test_a_trunk_that_comes_damaged_is_not_used(tokens, wsd, here, there, at_once, begun, caplog):
    with mirrored(here, here.training("short")):
        train(tokens, wsd(), here.training("short"))
    _, base = fsspec.url_to_fs(here.root)
    state = f"{base}/checkpoints/short/trunk/step-{DECAY:08d}"
    MemoryFileSystem().pipe_file(f"{state}/{WEIGHTS_FILE}", b"no weights")
    config = wsd(max_steps=LONG)
    bring_trunk(there, plan_training(tokens, config, there.training()), there.training("long"))
    begun.clear()
    assert outcome(train(tokens, config, there.training("long"))) == outcome(at_once)
    assert begun[0] == 0
    assert MemoryFileSystem().exists(f"{state}.damaged-1")
    assert f"{there.training('short') / Trunk.FILE}.damaged-1" in caplog.text


@pytest.mark.parametrize("decay_fraction", [0.001, 0.07, 0.2, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 20, 200, 1000])
def test_before_its_decay_a_training_has_the_rates_of_every_longer_one(steps, decay_fraction):
    training = TrainingConfig(
        schedule="wsd", decay_fraction=decay_fraction, warmup_steps=min(5, steps - 1), max_steps=steps
    )
    start = decay_start(steps, training)
    longer = [lr_at(step, 7 * steps, training.model_copy(update={"decay_fraction": 0.1})) for step in range(start)]
    assert [lr_at(step, steps, training) for step in range(start)] == longer
    assert start == steps - 1 or lr_at(start + 1, steps, training) < training.learning_rate
