"""A training that is killed, damaged or out of room, at any instant, ends with the bytes of an undisturbed one."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import killable
from tests.waiting import POLLS
from textgen.files import Manifest, sha256_file
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.storage import Storage
from textgen.text.tokens import TokensManifest, tokenize
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.figures import read_log
from textgen.training.folder import STATES_FOLDER, TRUNK_FOLDER
from textgen.training.state import AVERAGED_FILE, BEST_FILE, OPTIMIZER_FILE, StateManifest

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
KILLED_TRAININGS = 30
KILLED_IN_A_WRITE = 1 / 3  # the share of the kills that wait for a half-written file
TO_A_KILL = 1 / 8  # of the seconds of a whole training: about a start, or a step and its save
POLL_SECONDS = 0.001 * POLLS
STEPS = 10
CHANGES_OF_A_START = 16
CHANGES_OF_A_LONGER_START = 60  # to its first step
CHANGES_OF_A_TRUNK = 45
DROPOUTS = ("dropout", "attention_dropout", "embedding_dropout", "input_dropout", "output_dropout")
# At this learning rate the loss rises again: the best weights are those of step 6, and with everything on of step 8.
PLAIN = {
    "seed": 6,
    "training": {
        "max_steps": STEPS, "warmup_steps": 2, "learning_rate": 0.5, "min_learning_rate": 0.5, "batch_size": 4,
        "eval_every": 3, "eval_blocks": 8, "log_every": 1, "checkpoint_every": 1,
    },
}  # fmt: skip
EVERYTHING = {
    "seed": 0,
    "model": dict.fromkeys(DROPOUTS, 0.1),
    "training": {
        **PLAIN["training"], "eval_every": 2, "checkpoint_every": 2, "gradient_accumulation_steps": 2,
        "ema_decay": 0.5, "random_offset": True,
    },
}  # fmt: skip
LONGER = {**EVERYTHING, "training": {**EVERYTHING["training"], "schedule": "wsd", "decay_fraction": 0.4}}
SHORTER_STEPS, SHORTER_DECAY = 8, 4
BEFORE, NEWEST = "step-00000004", "step-00000006"  # the states of the training that was stopped


@dataclass(frozen=True)
class Training:
    """A configuration, how to train it, and how it ends undisturbed."""

    arguments: list[str]  # of `python -m textgen`, but for --out
    undisturbed: Path
    seconds: float  # that a forked process takes for it on this machine

    def command(self, out: Path) -> list[str]:
        return [sys.executable, "-m", "textgen", *self.arguments, "--out", str(out)]

    def start(self, out: Path, kill_at: int | None = None, since: str = "") -> multiprocessing.Process:
        """Start it in a forked process whose output is appended to a file next to `out`."""
        arguments = ([*self.arguments, "--out", str(out)], out.with_suffix(".txt"), kill_at, since)
        process = CONTEXT.Process(target=killable.command, args=arguments)
        process.start()
        return process

    def run(self, out: Path, kill_at: int | None = None, since: str = "") -> int:
        """Run it in a forked process to its end, and return its exit code."""
        process = self.start(out, kill_at, since)
        process.join()
        return process.exitcode

    def check(self, out: Path) -> None:
        """Check that the training in `out` ended as the undisturbed one, and left nothing behind."""
        assert sha256_file(out / WEIGHTS_FILE) == sha256_file(self.undisturbed / WEIGHTS_FILE)
        assert losses(out) == losses(self.undisturbed)
        assert CheckpointManifest.read(out).curve == CheckpointManifest.read(self.undisturbed).curve
        assert not half_written(out)


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", killable.__name__])  # pytest's script is the main module of every fork


def losses(out: Path) -> list[dict[str, float]]:
    """Return the logged figures that do not depend on the clock."""
    figures = ("step", "train/loss_nats", "validation/loss_nats", "train/grad_norm", "train/learning_rate")
    return [{name: line[name] for name in figures if name in line} for line in read_log(out)]


def half_written(out: Path) -> list[Path]:
    return [path for folder in (out, out / STATES_FOLDER, out / TRUNK_FOLDER) for path in folder.glob(".*")]


def states(out: Path) -> list[Path]:
    return sorted((out / STATES_FOLDER).glob("step-????????"))


@pytest.fixture(scope="module")
def tokens(raw, tokens) -> TokensManifest:
    """Return tokens without ends of documents, of which the trainings below have their best weights before the last."""
    return tokenize(raw, tokens.tokenizer, Storage.at(tokens.root), end_of_document=False)


@pytest.fixture(scope="module")
def make_training(tokens, make_config, tmp_path_factory) -> Callable[..., Training]:
    """Return a function from settings to a training that `python -m textgen train` has run to its end."""

    def make(settings: dict) -> Training:
        folder = tmp_path_factory.mktemp("undisturbed")
        seed, sections = settings["seed"], {name: settings[name] for name in ("model", "training") if name in settings}
        config = make_config(**sections).model_copy(update={"seed": seed})
        (folder / "config.yaml").write_text(config.model_dump_json())  # JSON is YAML
        arguments = ["train", "--config", str(folder / "config.yaml"), "--tokens", str(tokens.folder)]
        training = Training(arguments, folder / "out", seconds=0.0)
        subprocess.run(training.command(training.undisturbed), cwd=ROOT, check=True, capture_output=True)
        training.run(folder / "first")  # starts the server of the forks
        started = time.monotonic()
        assert training.run(folder / "timed") == 0
        training = replace(training, seconds=time.monotonic() - started)
        manifest = CheckpointManifest.read(training.undisturbed)
        assert 0 < manifest.best_step < STEPS, "the best weights are the first or the last: nothing to bring over"
        return training

    return make


@pytest.fixture(scope="module")
def plain(make_training) -> Training:
    return make_training(PLAIN)


@pytest.fixture(scope="module")
def everything(make_training) -> Training:
    return make_training(EVERYTHING)


@pytest.fixture(scope="module")
def stopped(everything, tmp_path_factory) -> Path:
    """Return the folder of a training that was killed before it saved step 8, with the best weights of all."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    assert everything.run(out, kill_at=1, since="step-00000008") == KILLED
    assert [state.name for state in states(out)] == [BEFORE, NEWEST]
    assert not half_written(out)
    return out


def kill_at_random(training: Training, out: Path, source: random.Random) -> bool:
    """Start the training, kill it after a random line of its log, and return whether it was still going.

    Some kills wait, after that line, for a half-written file; the others for a random part of TO_A_KILL.
    """
    wait_for_write = source.random() < KILLED_IN_A_WRITE
    lines, process = source.randrange(len(losses(training.undisturbed))), training.start(out)
    while process.is_alive() and (len(read_log(out)) < lines or (wait_for_write and not half_written(out))):
        process.join(POLL_SECONDS)
    if not wait_for_write:
        process.join(source.uniform(0, TO_A_KILL * training.seconds))
    process.kill()
    process.join()
    return process.exitcode == KILLED


@pytest.mark.slow  # thirty trainings, each started two to four times
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_thirty_trainings_killed_at_random_instants_end_as_the_undisturbed_one(
    name, request, tmp_path, record_property
):
    training: Training = request.getfixturevalue(name)
    source, killed, in_a_write = random.Random(name), 0, 0
    for number in range(KILLED_TRAININGS):
        out, kills = tmp_path / f"out-{number}", source.randint(1, 3)
        while kills:
            if kill_at_random(training, out, source):
                kills, killed, in_a_write = kills - 1, killed + 1, in_a_write + bool(half_written(out))
            else:  # it was over before: once more from the start
                kills = source.randint(1, 3)
                shutil.rmtree(out)
        assert training.run(out) == 0, out.with_suffix(".txt").read_text()
        training.check(out)
        assert not list(tmp_path.glob("**/*.damaged-*")), out.with_suffix(".txt").read_text()
    record_property("kills", killed)
    record_property("kills_in_a_write", in_a_write)
    assert in_a_write, "no kill fell in the middle of a write"


@pytest.mark.slow  # two trainings for each of 190 changes
def test_a_training_killed_before_any_change_to_a_file_while_saving_ends_as_the_undisturbed_one(
    everything, stopped, tmp_path, record_property
):
    change, half_states = 1, 0
    while True:
        out = tmp_path / f"out-{change}"
        shutil.copytree(stopped, out)
        if (code := everything.run(out, kill_at=change)) == 0:
            break
        assert code == KILLED, out.with_suffix(".txt").read_text()
        for state in states(out):
            StateManifest.read(state)
        half_states += any(path.is_dir() for path in half_written(out))
        assert everything.run(out) == 0, out.with_suffix(".txt").read_text()
        everything.check(out)
        assert not list(tmp_path.rglob("*.damaged-*")), f"change {change}"
        assert [state.name for state in states(out)] == ["step-00000008", "step-00000010"]
        shutil.rmtree(out)
        change += 1
    record_property("changes", change - 1)
    record_property("half_states", half_states)
    assert half_states > 20, "the state was not written file by file"
    everything.check(out)


@pytest.mark.parametrize("change", range(1, CHANGES_OF_A_START + 1))
def test_a_training_killed_before_any_change_to_a_file_while_it_starts_begins_anew(change, everything, tmp_path):
    check_killed_and_continued(everything, tmp_path / "out", change)


@pytest.fixture(scope="module")
def longer(make_training) -> Training:
    """Return a training that keeps the state where its decay begins, made from zero."""
    return make_training(LONGER)


@pytest.fixture(scope="module")
def shorter(longer, tmp_path_factory) -> Path:
    """Return the folder of a shorter one, which goes on from that folder."""
    out = tmp_path_factory.mktemp("shorter") / "out"
    assert replace(longer, arguments=[*longer.arguments, f"training.max_steps={SHORTER_STEPS}"]).run(out) == 0
    return out


def check_killed_and_continued(training: Training, out: Path, kill_at: int, since: str = "") -> None:
    assert training.run(out, kill_at, since) == KILLED, out.with_suffix(".txt").read_text()
    assert training.run(out) == 0, out.with_suffix(".txt").read_text()
    training.check(out)
    assert not list(out.glob("**/*.damaged-*")), out.with_suffix(".txt").read_text()


@pytest.mark.parametrize("change", range(1, CHANGES_OF_A_LONGER_START + 1))
def test_a_longer_training_killed_before_any_change_to_a_file_while_it_starts_goes_on(
    change, longer, shorter, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(shorter, out)
    check_killed_and_continued(longer, out, change)
    assert f"going on from step {SHORTER_DECAY} of {out}" in out.with_suffix(".txt").read_text()


@pytest.mark.parametrize("change", range(1, CHANGES_OF_A_TRUNK + 1))
def test_a_training_killed_before_any_change_to_a_file_while_it_keeps_its_trunk_ends_as_the_undisturbed_one(
    change, longer, tmp_path
):
    check_killed_and_continued(longer, tmp_path / "out", change, since=f"/{TRUNK_FOLDER}/")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("file", [WEIGHTS_FILE, OPTIMIZER_FILE, BEST_FILE, AVERAGED_FILE, Manifest.FILE])
@pytest.mark.parametrize("damage", ["truncate", "delete", "flip"])
def test_a_damaged_newest_state_is_named_set_aside_and_the_one_before_continued(
    damage, file, everything, stopped, tmp_path, flip_bit
):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    damaged = out / STATES_FOLDER / NEWEST / file
    {"truncate": truncate, "delete": Path.unlink, "flip": flip_bit}[damage](damaged)
    assert everything.run(out) == 0
    message, continuing, *_ = out.with_suffix(".txt").read_text().splitlines()
    aside = damaged.parent.with_name(f"{NEWEST}.damaged-1")
    assert message.startswith(f"{damaged} is {'missing' if damage == 'delete' else 'damaged'}")
    assert message.endswith(f"; set aside as {aside}")
    assert continuing == "continuing from step 4"
    assert (aside / file).exists() == (damage != "delete")
    everything.check(out)


def test_without_its_newest_state_a_training_continues_from_the_one_before(everything, stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    shutil.rmtree(out / STATES_FOLDER / NEWEST)
    assert everything.run(out) == 0
    assert out.with_suffix(".txt").read_text().splitlines()[0] == "continuing from step 4"
    everything.check(out)


def test_a_log_that_was_cut_in_the_middle_of_a_line_has_every_step_once(everything, stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 11, "train/lo')
    assert everything.run(out) == 0
    everything.check(out)


def check_refusal(error: str, out: Path) -> None:
    """Check what a training said and left when the state of a step did not fit on the disk."""
    assert "Traceback" not in error
    *_, message = error.splitlines()
    assert message.startswith(f"the training state of step 8 could not be saved to {out / STATES_FOLDER}")
    assert "; the state of step 6 is intact. Make room and give the same command again" in message
    assert [StateManifest.read(state).progress.step for state in states(out)] == [4, 6]
    assert not half_written(out)
    assert not (out / Manifest.FILE).exists()


def test_a_state_larger_than_a_file_may_be_is_refused_and_the_training_continues_later(everything, stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    weights, moments = ((out / STATES_FOLDER / NEWEST / file).stat().st_size for file in (WEIGHTS_FILE, OPTIMIZER_FILE))
    largest = (weights + moments) // 2  # all of a state but its optimizer fits
    done = subprocess.run(
        everything.command(out), cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True,
        text=True, preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest, largest)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "File too large" in done.stderr
    check_refusal(done.stderr, out)
    assert everything.run(out) == 0
    everything.check(out)


def test_a_state_that_finds_the_disk_full_is_refused_and_the_training_continues_with_more_room(
    everything, stopped, tmp_path
):
    disk, full, finished = (tmp_path / name for name in ("disk", "full", "finished"))
    disk.mkdir()
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    mount = f"mount -t tmpfs -o size={64 * 2**20} tmpfs {disk}"
    if not shutil.which("unshare") or subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    command = " ".join(everything.command(disk / "out"))
    state_bytes = sum(path.stat().st_size for path in (stopped / STATES_FOLDER / NEWEST).iterdir())
    # The disk is filled after the look at its room: that says that there is room. Half a state fits.
    (tmp_path / "sitecustomize.py").write_text(
        "import shutil\nfrom types import SimpleNamespace\n"
        "shutil.disk_usage = lambda path: SimpleNamespace(free=1 << 40)\n"
    )
    # what the disk holds is gone with the mount, so it is copied out
    script = f"""
        set -e
        {mount}
        cp -r {stopped} {disk}/out
        fill=$(( $(df --output=avail -B1 {disk} | tail -1) - {state_bytes} / 2 ))
        head -c $fill /dev/zero > {disk}/filler
        PYTHONPATH={tmp_path} {command} 2> {tmp_path}/error && exit 99 || echo $? > {tmp_path}/code
        cp -r {disk}/out {full}
        rm {disk}/filler
        {command}
        cp -r {disk}/out {finished}
    """
    done = subprocess.run([*unshare, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "code").read_text()) == 1
    error = (tmp_path / "error").read_text()
    assert "No space left on device" in error
    check_refusal(error.replace(str(disk / "out"), str(full)), full)
    everything.check(finished)
