"""What can go from a storage folder, and what never does: whatever a version, a training, a trunk or a run needs."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

import textgen.files
from tests.test_old_data import OLD, RAW, TOKENS, TRAINING
from tests.trainings import Interruption, ignore, interrupt_at
from tests.waiting import held, until
from textgen.files import REMOVED, build_once, lock_file, mark_used, write_atomic
from textgen.retention import origins
from textgen.retention.disk_space import ALWAYS_SECONDS, find_removable, last_change, remove_items, size_of
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest
from textgen.training import handover
from textgen.training.folder import KEY_FILE
from textgen.training.train import train

STATES = f"checkpoints/{TRAINING}/states"
STATE = f"{STATES}/step-00000020"
MADE = {f"checkpoints/{TRAINING}", f"processed/{TOKENS}", f"raw/files/{RAW}"}


def grow_old(folder: Path, days: float) -> None:
    """Have a folder and all that is in it be as if nobody had used it for some days."""
    then = time.time() - days * 24 * 3600
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


@pytest.fixture
def storage(tmp_path) -> Storage:
    """Return a storage that has a text, its tokens, a finished training and its version, none used for 100 days."""
    shutil.copytree(OLD / "data", tmp_path / "data")
    grow_old(tmp_path / "data", days=100)
    return Storage.at(tmp_path / "data")


@pytest.fixture
def unpublished(storage) -> Storage:
    """Return that storage, without the version."""
    shutil.rmtree(storage.models("old"))
    return storage


def can_go(storage: Storage, days: float = 30) -> dict[str, str]:
    """Return what can go, with its kind."""
    return {item.name: item.kind for item in find_removable(storage, days).items}


def clean(storage: Storage, days: float = 30) -> list[str]:
    """Remove what can go and return why something stays."""
    return remove_items(storage, find_removable(storage, days).items, days)[1]


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    }  # fmt: skip


def test_of_a_published_training_only_the_states_can_go(storage):
    before = files(storage.local)
    (item,) = find_removable(storage, 0).items
    assert (item.kind, item.name) == ("states", STATES)
    assert item.bytes == sum(path.stat().st_size for path in (storage.local / STATE).iterdir()) > 0
    assert files(storage.local) == before  # a look changes nothing
    clean(storage)
    assert before - files(storage.local) == {name for name in before if name.startswith(STATE)}
    assert can_go(storage, 0) == {}


def test_without_a_version_the_training_its_tokens_and_its_text_can_go(unpublished):
    assert set(can_go(unpublished)) == MADE
    assert set(can_go(unpublished, days=101)) == {STATES}
    assert clean(unpublished) == []
    assert files(unpublished.local) == set()


@pytest.mark.parametrize("used", [f"checkpoints/{TRAINING}", f"processed/{TOKENS}", f"raw/files/{RAW}"])
def test_what_was_used_of_late_stays_with_all_that_it_was_made_of(unpublished, used):
    mark_used(unpublished.local / used)
    assert set(can_go(unpublished)) - {STATES} == {name for name in MADE if name < used}
    assert set(can_go(unpublished, days=0)) == set(can_go(unpublished))  # a run may be between two stages


def test_a_stage_that_finds_its_result_marks_it_as_used(unpublished):
    def fail(folder: Path) -> RawManifest:
        raise AssertionError(folder)

    folder = unpublished.local / f"raw/files/{RAW}"
    build_once(folder, RawManifest, fail)
    assert last_change(folder) > time.time() - ALWAYS_SECONDS


def test_a_version_that_does_not_say_what_it_needs_keeps_everything(storage):
    (storage.models("old") / "v1" / "lineage.json").write_text("{}")
    space = find_removable(storage, 0)
    assert {item.name for item in space.items} == {STATES}
    assert "old@v1: " in space.remarks[0] and "no training, tokens or text can go" in space.remarks[0]


def test_a_training_that_a_person_named_stays(unpublished):
    named = (unpublished.local / f"checkpoints/{TRAINING}").rename(unpublished.training("mine"))
    assert can_go(unpublished) == {"checkpoints/mine/states": "states"}
    assert named.exists()


def test_a_training_that_goes_on_is_left_with_its_tokens_and_text(unpublished):
    folder = unpublished.training(TRAINING)
    (folder / "manifest.json").unlink()
    grow_old(folder, days=100)
    with FileLock(lock_file(folder)):
        assert can_go(unpublished) == {}
        (folder / "tokenizer.json").unlink()  # it has only begun
        grow_old(folder, days=100)
        assert can_go(unpublished) == {}
    assert can_go(unpublished)[f"checkpoints/{TRAINING}"] == "unfinished"
    mark_used(folder)  # somebody ended it just now
    assert can_go(unpublished) == {}


def test_a_training_that_starts_between_the_look_and_the_removal_is_left(unpublished):
    space = find_removable(unpublished, 30)
    with FileLock(lock_file(unpublished.training(TRAINING))):
        _, stay = remove_items(unpublished, space.items, 30)
    assert len(stay) == 3
    assert f"checkpoints/{TRAINING} stays: " in stay[0] and " in use" in stay[0]
    assert all((unpublished.local / name).exists() for name in MADE)


def test_tokens_that_a_stage_has_come_to_use_stay_with_their_text(unpublished):
    space = find_removable(unpublished, 30)
    with FileLock(lock_file(unpublished.processed(TOKENS))):  # it looks whether they are whole
        removed, stay = remove_items(unpublished, space.items, 30)
    assert [item.name for item in removed] == [f"checkpoints/{TRAINING}"]
    assert [line.split(" stays: ")[0] for line in stay] == [f"processed/{TOKENS}", f"raw/files/{RAW}"]


def test_a_version_that_was_published_between_the_look_and_the_removal_keeps_what_it_needs(storage, tmp_path):
    (storage.models("old")).rename(tmp_path / "elsewhere")
    space = find_removable(storage, 30)
    (tmp_path / "elsewhere").rename(storage.models("old"))
    assert len(remove_items(storage, space.items, 30)[1]) == 3
    assert all((storage.local / name).exists() for name in MADE)


def test_a_running_training_ends_as_if_nobody_had_cleaned(tokens, make_config, tmp_path):
    """Here a real one, held before its last step, in a storage from which everything else is removed."""
    storage = Storage.at(tmp_path / "data")
    folder = storage.processed(tokens.key)
    shutil.copytree(tokens.folder, folder)
    mine, out = TokensManifest.read(folder), storage.training("0123456789abcdef")
    made = []
    thread = threading.Thread(target=lambda: made.append(train(mine, make_config(), out, ignore)))
    with held(out.parent):
        thread.start()
        until(lambda: [*out.glob("states/step-00000015")], "the training has saved a state")
        write_atomic(out / KEY_FILE, out.name + "\n")  # as if the folder had its name from a run
        grow_old(storage.local, days=100)
        assert can_go(storage, 0) == {}
        clean(storage, 0)
        assert folder.exists()
    thread.join()
    assert made[0].steps == 20


@pytest.mark.parametrize(
    "trunk",
    [{"state": "states/step-00000020"}, {"step": 20}, {"state": f"{TRAINING}/states/step-00000020"},
     {"folder": TRAINING, "states": [{"step": 20}]}, {"folder": TRAINING}],
)  # fmt: skip
@pytest.mark.parametrize("place", [f"checkpoints/{TRAINING}", "checkpoints", "checkpoints/trunks/0123"])
def test_a_state_that_a_trunk_names_stays_with_its_training(unpublished, trunk, place):
    if TRAINING not in json.dumps(trunk) and TRAINING not in place:
        trunk = {**trunk, "training": TRAINING}
    other = unpublished.local / STATES / "step-00000010"
    shutil.copytree(unpublished.local / STATE, other)
    write_atomic(unpublished.local / place / "trunk.json", json.dumps(trunk))
    grow_old(unpublished.local, days=100)
    clean(unpublished)
    assert (unpublished.local / STATE).exists()
    assert other.exists() == (not {"state", "step", "states"} & {*trunk})  # which state is not said
    assert all((unpublished.local / name).exists() for name in MADE)


def test_of_a_training_that_keeps_its_trunk_apart_the_other_states_can_go(storage, tokens, make_config):
    """None of them could: the trunk names a step, and no state of it was looked for outside `states`."""
    out = storage.training("0123456789abcdef")
    train(tokens, make_config(training={"schedule": "wsd"}), out, ignore)
    trunk = sorted(out.glob("trunk/step-*/*"))
    assert (out / origins.TRUNK_FILE).is_file() and trunk
    grow_old(storage.local, days=100)
    assert f"checkpoints/{out.name}/states" in can_go(storage, 0)
    clean(storage, 0)
    assert not [*out.glob("states/*")] and sorted(out.glob("trunk/step-*/*")) == trunk


def test_a_trunk_that_cannot_be_read_keeps_every_state(storage):
    write_atomic(storage.training() / "trunk.json", "{")
    assert can_go(storage, 0) == {}


DAMAGED = [f"raw/files/{RAW}.damaged-1", f"checkpoints/{TRAINING}/log.jsonl.damaged-2", "models/old/hub.json.damaged-1"]


def test_what_was_set_aside_can_go_but_not_the_number_of_a_version(storage):
    for name in [*DAMAGED, "models/old/v1.damaged-1", "models/old/v2.damaged-1"]:
        write_atomic(storage.local / name / "file", "x")
    assert {name for name, kind in can_go(storage).items() if kind == "damaged"} == {*DAMAGED}
    (storage.models("old") / "v3").mkdir()
    damaged = {name for name, kind in can_go(storage).items() if kind == "damaged"}
    assert damaged == {*DAMAGED, "models/old/v2.damaged-1"}  # v1 is the champion
    shutil.rmtree(storage.models("old"))
    grow_old(storage.local, days=100)
    assert DAMAGED[1] not in can_go(storage)  # it goes with its training, and counts once
    assert find_removable(storage, 30).bytes == size_of(storage.local)


LEFTOVERS = [
    "raw/files/.download-ab12cd34", f"raw/files/.{RAW}.ab12cd34", f"processed/.{TOKENS}.removed",
    f"checkpoints/{TRAINING}/.model.safetensors.ab12cd34", f"checkpoints/{TRAINING}/states/.step-00000010",
    f"checkpoints/{TRAINING}/evaluations/.0123.ab12cd34", "models/old/.v7.ab12cd34",
    "wandb/pending/.a-v1.json.ab12cd34",
]  # fmt: skip


def test_what_killed_processes_left_can_go_when_nobody_can_be_at_it(storage):
    for name in LEFTOVERS:
        write_atomic(storage.local / name / "file", "x")
    assert set(can_go(storage, 0)) == {STATES}  # made just now
    grow_old(storage.local, days=0.1)
    assert {*can_go(storage, 0)} == {*LEFTOVERS, STATES}
    with FileLock(lock_file(storage.training(TRAINING))):
        assert not [name for name in can_go(storage, 0) if "checkpoints" in name]
    with FileLock(storage.raw() / "files" / ".another.lock"):  # by which a download may go on
        assert not [name for name in can_go(storage, 0) if "raw" in name]
    clean(storage, 0)
    assert can_go(storage, 0) == {}


def test_hidden_files_of_somebody_elses_stay(storage):
    for name in ("raw/.gitkeep", "raw/files/.DS_Store", ".nfs000001", "checkpoints/.hidden/file"):
        write_atomic(storage.local / name, "x")
    grow_old(storage.local, days=100)
    assert set(can_go(storage)) == {STATES}


def test_wandb_runs_can_go_when_they_were_sent(storage):
    home = storage.local / "wandb"
    for run in ("offline-run-1-sent", "offline-run-2-new", "run-3-online", "run-4-online"):
        write_atomic(home / run / "run-x.wandb", "x")
    (home / "offline-run-1-sent" / "run-x.wandb.synced").touch()
    (home / "latest-run").symlink_to("run-4-online")
    grow_old(home / "run-3-online", days=100)
    assert {name for name in can_go(storage) if name != STATES} == {"wandb/offline-run-1-sent", "wandb/run-3-online"}
    clean(storage)
    assert {path.name for path in home.iterdir()} == {"offline-run-2-new", "run-4-online", "latest-run"}


def test_figures_of_a_text_go_with_it(unpublished, storage):
    for home in (unpublished.report("aa"), unpublished.drift("bb")):
        origins.Made(key=home.name, raw_key=RAW).write(home)
    mark_used(unpublished.local / f"raw/files/{RAW}")
    grow_old(unpublished.report(), days=100)
    grow_old(unpublished.drift(), days=100)
    assert not {name for name, kind in can_go(unpublished).items() if kind == "report"}
    grow_old(unpublished.raw(), days=100)
    assert {name for name, kind in can_go(unpublished).items() if kind == "report"} == {"reports/aa", "drift/bb"}


def test_a_removal_that_is_killed_leaves_no_half_of_anything(unpublished, monkeypatch):
    def die(path: Path) -> None:
        next(file for file in path.rglob("*") if file.is_file()).unlink()
        raise Interruption

    monkeypatch.setattr(textgen.files.shutil, "rmtree", die)
    with pytest.raises(Interruption):
        clean(unpublished)
    monkeypatch.undo()
    assert not unpublished.training(TRAINING).exists()
    (left,) = [path for path in unpublished.training().iterdir() if path.name.endswith(REMOVED)]
    grow_old(unpublished.local, days=100)
    assert can_go(unpublished)[unpublished.name(left)] == "leftover"
    clean(unpublished)
    assert files(unpublished.local) == set()


def test_an_unfinished_training_goes_on_after_a_clean(tokens, make_config, tmp_path):
    out = Storage.at(tmp_path).training("0123456789abcdef")
    with pytest.raises(Interruption):
        train(tokens, make_config(), out, interrupt_at(10))
    clean(Storage.at(tmp_path), days=0)
    steps: list[int] = []
    train(tokens, make_config(), out, lambda step, figures: steps.append(step))
    assert min(steps) > 5


def test_states_of_a_finished_training_go_from_a_remote_root_too(here, there, checkpoint):
    for storage in (here, there):
        shutil.copytree(checkpoint.folder, out := storage.training("mine"))
    handover._push(here, out := here.training("mine"), max((out / "states").iterdir()))
    assert there.folders(there.training("mine") / "states", "step-*")
    clean(here)
    assert not there.folders(there.training("mine") / "states", "step-*", whole=False)
    assert (there.training("mine") / "states").exists()  # another machine's own copy


def test_the_texts_of_the_models_that_a_version_came_from_stay(storage):
    """Else nobody could tell any longer that it came from a document in one of them."""
    before = storage.raw() / "files" / "0123456789abcdef"
    shutil.copytree(storage.raw() / "files" / RAW, before)
    file = storage.models("old") / "v1" / "lineage.json"
    lineage = json.loads(file.read_text())
    assert storage.name(before) in can_go(storage)
    write_atomic(file, json.dumps({**lineage, "earlier_texts": [before.name], "names_all_texts": True}))
    grow_old(storage.local, days=100)
    assert storage.name(before) not in can_go(storage)
    checkpoint = {**lineage["checkpoint"], "initial_sha256": "0"}
    write_atomic(
        file, json.dumps({**lineage, "checkpoint": checkpoint})
    )  # of older code: which text it was is not known
    grow_old(storage.local, days=100)
    assert storage.name(before) not in can_go(storage)


@pytest.mark.parametrize("place", ["models/old", "models/old/v1", f"checkpoints/{TRAINING}", f"processed/{TOKENS}"])
def test_what_is_behind_a_link_stays_with_what_it_needs(storage, place, tmp_path):
    path = storage.local / place
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    os.utime(path, (0, 0), follow_symlinks=False)
    if not place.startswith("models"):
        shutil.rmtree(storage.models("old"))
    needed = {name for name in MADE if not place.startswith("processed") or name.startswith("raw")}
    assert not can_go(storage).keys() & (needed | {place, f"{place}/states"})


@pytest.mark.parametrize("link", ["0", "z"])
def test_a_link_to_a_training_that_is_there_changes_nothing(unpublished, link):
    before = can_go(unpublished)
    unpublished.training(link).symlink_to(unpublished.training(TRAINING))
    assert can_go(unpublished) == before and f"checkpoints/{TRAINING}" in before


def test_what_a_link_beside_the_stages_leads_to_is_not_searched(unpublished, tmp_path):
    """`text/` may be a link to all that a person has."""
    shutil.copytree(unpublished.training(TRAINING), tmp_path / "home" / "mine")
    (unpublished.local / "text").symlink_to(tmp_path / "home")
    assert [training.folder.name for training in origins.trainings(unpublished)] == [TRAINING]


@pytest.mark.parametrize("place", ["models/old/v1-keep", "models/archive/old/v1", "models/best"])
def test_a_copy_of_a_version_keeps_what_it_needs(storage, place):
    (storage.local / place).parent.mkdir(parents=True, exist_ok=True)
    (storage.models("old") / "v1").rename(storage.local / place)
    assert can_go(storage) == {STATES: "states"}


def test_an_unfinished_training_in_a_folder_of_trainings_keeps_its_tokens(unpublished, tokens, make_config):
    shutil.copytree(tokens.folder, unpublished.processed(tokens.key))
    out = unpublished.training("experiments") / "one"
    with pytest.raises(Interruption):
        train(tokens, make_config(), out, interrupt_at(10))
    grow_old(unpublished.local, days=100)
    assert not {name for name in can_go(unpublished) if tokens.key in name or "experiments" in name}


def test_the_tokens_of_an_unfinished_training_stay_alone(unpublished, tokens, make_config):
    """By its tokenizer it could be on either of two."""
    for name in (tokens.key, "0123456789abcdef"):
        shutil.copytree(tokens.folder, unpublished.processed(name))
    out = unpublished.training("fedcba9876543210")
    with pytest.raises(Interruption):
        train(tokens, make_config(), out, interrupt_at(10))
    write_atomic(out / KEY_FILE, out.name + "\n")  # as if the folder had its name from a run
    grow_old(unpublished.local, days=100)
    mark_used(out)
    going = {name for name in can_go(unpublished) if name.startswith("processed/")}
    assert going == {f"processed/{TOKENS}", "processed/0123456789abcdef"}


def test_sizes_are_of_files_and_links_are_not_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 100)
    (tmp_path / "a" / "link").symlink_to(OLD)
    assert size_of(tmp_path / "a") == 100
