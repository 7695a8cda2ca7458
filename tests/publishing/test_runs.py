"""Runs in a list, and found by each of the names that a person has for one."""

import json
import os
import shutil

import pytest

from textgen.comparison.record import read_record
from textgen.errors import InputError
from textgen.evaluation.scoring import Metrics
from textgen.files import Manifest, read_json
from textgen.publishing.index import note, read_index
from textgen.publishing.runs import Run, find_run, list_runs
from textgen.storage import Storage


@pytest.fixture
def storage(rivals, tmp_path) -> Storage:
    """Return a copy of the versions' root."""
    shutil.copytree(rivals[0].config.root, tmp_path / "data")
    return Storage.at(tmp_path / "data")


def test_the_list_says_what_differs_from_the_run_before(storage):
    first, second, third = list_runs(storage)
    assert [row.name for row in (first, second, third)] == ["textgen v1", "textgen v2", "textgen v3"]
    assert (first.steps, second.steps) == (20, 40)
    assert first.changes == []
    assert second.changes == ["max_steps 20 to 40"]
    assert third.changes[0] == "other text"
    assert [row.champion for row in (first, second, third)].count(True) == 1
    assert all(row.evaluated and row.test for row in (first, second, third))


def test_runs_of_one_second_are_listed_in_the_order_they_were_made(storage):
    by_path = sorted(row.folder for row in list_runs(storage))
    for milliseconds, folder in enumerate(reversed(by_path)):
        made = 1_800_000_000_000 + milliseconds
        os.utime(storage.inside(folder) / Manifest.FILE, ns=(made * 10**6, made * 10**6))
    assert [row.folder for row in list_runs(storage)] == by_path[::-1]


def test_a_key_that_two_sections_have_is_listed_with_its_section(storage, monkeypatch):
    defaults = {"training.max_steps": 1, "data.max_steps": 1}  # as batch_size and path are in two sections
    monkeypatch.setattr("textgen.publishing.runs.default_values", lambda: defaults)
    assert list_runs(storage)[1].changes == ["training.max_steps 20 to 40"]


def test_a_training_that_was_not_evaluated_has_its_loss_on_validation(storage, rivals):
    second, _ = rivals
    training = storage.training(second.checkpoint.folder.name)
    shutil.rmtree(training / "evaluations")
    row = next(row for row in list_runs(storage) if row.folder == storage.name(training))
    assert not row.evaluated and row.test is None
    assert row.validation == min(point.loss_nats for point in second.checkpoint.curve)


def test_the_last_evaluation_of_a_training_is_listed(storage, rivals):
    training = storage.training(rivals[0].checkpoint.folder.name)
    (before,) = (row.test for row in list_runs(storage) if row.folder == storage.name(training))
    last = next((training / "evaluations").glob(f"*/{Manifest.FILE}")).parent
    earlier = shutil.copytree(last, last.with_name("z" * 16))  # after it in the order of their names
    manifest = read_json(earlier / Manifest.FILE)
    manifest["splits"]["test"]["loss_nats"] = 9.0
    (earlier / Manifest.FILE).write_text(json.dumps(manifest))
    os.utime(earlier / Manifest.FILE, (1, 1))
    (row,) = (row for row in list_runs(storage) if row.folder == storage.name(training))
    assert row.test == before != 9.0


def test_the_record_has_the_evaluation_made_last_not_the_one_brought_last(storage, rivals):
    training = storage.training(rivals[0].checkpoint.folder.name)
    last = next((training / "evaluations").glob(f"*/{Manifest.FILE}")).parent
    earlier = shutil.copytree(last, last.with_name("z" * 16))
    splits = Metrics.read(last).splits
    worse = splits["test"].model_copy(update={"loss_nats": 9.0})
    Metrics.read(last).model_copy(update={"splits": {**splits, "test": worse}}).write(earlier)
    os.utime(earlier / Manifest.FILE, (1, 1))
    twin = shutil.copytree(training, training.with_name("z" * 16))  # of the same bytes: --force made it
    os.utime(twin / "evaluations" / earlier.name / Manifest.FILE)
    index = read_index(storage)
    os.utime(earlier / Manifest.FILE)  # it is brought anew
    metrics = read_record(Run("a training", training, None), storage, index).metrics
    assert metrics is not None and metrics.splits == splits


def test_a_version_whose_training_is_gone_is_still_listed(storage, rivals):
    shutil.rmtree(storage.training(rivals[0].checkpoint.folder.name))
    assert "models/textgen/v2" in [row.folder for row in list_runs(storage)]
    assert find_run("v2", storage, "textgen") == Run("textgen v2", None, storage.models("textgen") / "v2")


def test_a_run_is_found_by_each_of_its_names(storage, rivals):
    training = storage.training(rivals[0].checkpoint.folder.name)
    expected = Run("textgen v2", training, storage.models("textgen") / "v2")
    folders = [str(expected.version), str(training)]
    names = ["v2", "textgen@v2", "textgen v2", *folders, training.name, training.name[:6], "run-2"]
    for name in names:
        assert find_run(name, storage, "textgen") == expected, name


def test_a_training_of_several_versions_is_found_by_its_name_in_the_list(storage):
    assert find_run("textgen v2, other v1", storage, "textgen") == find_run("textgen@v2", storage, "textgen")


def test_a_training_by_force_is_found_by_its_name_in_the_list(storage, rivals):
    """It had the beginning of its key alone, which another training has too."""
    training = storage.training(rivals[0].checkpoint.folder.name)
    forced = shutil.copytree(training, training.parent / f"{training.name}-4c7a8f0e-0000-4000-8000-000000000000")
    name = next(row.name for row in list_runs(storage) if row.folder == storage.name(forced))
    assert name == f"{training.name}-4c7a8f0e"
    assert find_run(name, storage, "textgen") == Run(name, forced, None)


def test_a_run_is_found_by_the_beginning_of_its_id_in_the_index(storage, rivals):
    second, _ = rivals
    run = "4c7a8f0e-0000-4000-8000-000000000000"
    note(storage, "train", second.checkpoint, second.config, run)
    assert find_run(run[:8], storage, "textgen").version == storage.models("textgen") / "v2"


def test_a_training_elsewhere_is_a_run_without_a_version(storage, rivals, tmp_path):
    copy = shutil.copytree(rivals[0].checkpoint.folder, tmp_path / "elsewhere" / rivals[0].checkpoint.folder.name)
    assert find_run(str(copy), storage, "textgen").version is None


@pytest.mark.parametrize("name", ["v9", "other@champion", "ffffffff", "../data", "", "run-9"])
def test_what_is_no_run_is_a_mistake(storage, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        find_run(name, storage, "textgen")


def test_a_beginning_of_several_runs_is_a_mistake(storage, rivals):
    second, third = rivals
    for run, published in (("aaaa-1", second.published), ("aaaa-2", third.published)):
        note(storage, "publish", published, second.config, run)
    with pytest.raises(InputError, match="there are several: models/textgen/v2, models/textgen/v3"):
        find_run("aaaa", storage, "textgen")


def test_a_run_of_a_remote_root_is_listed_and_found_on_another_machine(publication, here, there):
    shutil.copytree(publication.config.root, here.local)
    made = {
        "tokenize": publication.tokens, "train": publication.checkpoint, "evaluate": publication.metrics,
        "publish": publication.published,
    }  # fmt: skip
    for stage, manifest in made.items():
        folder = here.local / manifest.folder.relative_to(publication.config.root)
        moved = manifest.model_copy(update={"path": str(folder)})
        here.push(folder, moved)
        note(here, stage, moved.as_built(), publication.config, "run-1")
    (row,) = list_runs(there)
    assert (row.name, row.steps, row.evaluated) == ("textgen v1", 20, True)
    assert row.test == publication.metrics.splits["test"].loss_nats
    run = find_run("run-1", there, "textgen")
    assert run.version == there.models("textgen") / "v1" and run.version.is_dir()
    assert run.training == there.training(publication.checkpoint.folder.name) and run.training.is_dir()
