"""Publishing, promoting and rolling back, killed before any change to a file: one champion, whole, and then the end."""

import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import killable, publishing
from tests.trainings import ignore
from textgen.config import Config
from textgen.evaluation.evaluate import evaluate
from textgen.files import sha256_file
from textgen.model.find import read_champion, resolve
from textgen.publishing.candidate import Candidate
from textgen.publishing.publish import publish
from textgen.publishing.registry import read_history
from textgen.publishing.version import PublishedManifest
from textgen.storage import Storage
from textgen.training.train import train

KILLED = -signal.SIGKILL
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", killable.__name__, publishing.__name__])  # a superset of test_kill's


def run(target: Callable[..., None], *arguments: Any) -> int:
    """Run a function in a forked process to its end and return its exit code."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def content(home: Path) -> dict[str, str]:
    """Return the sha256 of every file, but for the locks."""
    files = (path for path in home.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(home)): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def stages(raw, tokens, make_config, tmp_path_factory) -> list[tuple[Any, ...]]:
    """Return three trainings' checkpoints with their metrics, and what they were made of."""
    made = []
    for seed in range(3):
        config = make_config(training={"max_steps": 6}).model_copy(update={"seed": seed})
        checkpoint = train(tokens, config, tmp_path_factory.mktemp("training") / "out", ignore)
        made.append((checkpoint, evaluate(checkpoint.folder, tokens, config), tokens, raw))
    return made


@pytest.fixture(scope="module")
def root(stages, make_config, tmp_path_factory) -> Path:
    """Return a storage in which two versions are published, of which the second is the champion."""
    root = tmp_path_factory.mktemp("root")
    config = keep_one(make_config, root)
    for checkpoint, metrics, tokens, raw in stages[:2]:
        publish(Candidate(checkpoint, metrics, tokens, raw, config), Storage(config.storage))
    return root


def keep_one(make_config, root: Path) -> Config:
    """Return a configuration by which a third version is promoted, and the first is then deleted."""
    return make_config(publish={"policy": "always", "keep_versions": 1}, storage={"root": str(root)})


def check_reader(root: Path, *champions: str) -> None:
    """Check that the champion is one of these, and that it and every other version is what was published."""
    assert resolve("textgen@champion", Storage.at(root)).name in champions
    for folder in (root / "models" / "textgen").glob("v*"):
        PublishedManifest.read(folder)


@pytest.mark.slow  # two publications for each of 80 changes
def test_publishing_killed_before_any_change_leaves_a_champion_and_the_next_run_ends_the_work(
    root, stages, make_config, tmp_path, record_property
):
    def start(copy: Path, kill_at: int | None) -> int:
        checkpoint, metrics, tokens, raw = stages[2]
        candidate = Candidate(checkpoint, metrics, tokens, raw, keep_one(make_config, copy))
        return run(publishing.publish, candidate, tmp_path / "output.txt", kill_at)

    def said() -> str:
        return (tmp_path / "output.txt").read_text()

    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(root, undisturbed)
    assert start(undisturbed, None) == 0, said()
    expected = content(undisturbed / "models")
    assert {path.split("/")[1] for path in expected} == {"v2", "v3", "champion", "history.json"}
    change, champions = 1, []
    while True:
        copy = tmp_path / f"root-{change}"
        shutil.copytree(root, copy)
        if (code := start(copy, change)) == 0:
            break
        assert code == KILLED, said()
        check_reader(copy, "v2", "v3")
        champions.append(read_champion(copy / "models" / "textgen"))
        assert start(copy, None) == 0, said()
        assert content(copy / "models") == expected, f"change {change}"
        shutil.rmtree(copy)
        change += 1
    record_property("changes", change - 1)
    assert champions == sorted(champions) and set(champions) == {"v2", "v3"}, "not one change from the old to the new"
    assert change > 40, "the version was not written file by file"
    assert not list(tmp_path.rglob("*.damaged-*"))


@pytest.mark.parametrize(("arguments", "after"), [(["promote", "v1"], "v1"), (["rollback"], "v1")])
def test_a_promotion_or_rollback_killed_before_any_change_happened_or_did_not(arguments, after, root, tmp_path):
    change, champions = 1, []
    while True:
        copy = tmp_path / f"root-{change}"
        shutil.copytree(root, copy)
        home = copy / "models" / "textgen"
        options = ["models", *arguments, "--root", str(copy)]
        if (code := run(publishing.command, options, home, tmp_path / "output.txt", change)) == 0:
            break
        assert code == KILLED, (tmp_path / "output.txt").read_text()
        check_reader(copy, "v2", after)
        champion = read_champion(home)
        champions.append(champion)
        way = {"v2": ["v1", "v2"], "v1": ["v1", "v2", "v1"] if arguments[0] == "promote" else ["v1"]}
        assert read_history(home).until(champion) == way[champion]
        change += 1
    assert read_champion(home) == after
    assert len(champions) > 5 and set(champions) == {"v2"}, "the champion's rename was not the last change"
    assert not list(home.glob("*.damaged-*"))
