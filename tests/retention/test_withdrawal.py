"""A document that has to go: with every text that holds it, and with all that was made of these, and nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import textgen.retention.withdrawal
from tests.publications import Publication, make, write_text
from tests.trainings import Interruption, interrupt_at
from textgen.config import StorageConfig
from textgen.errors import Damaged, Failure, InputError
from textgen.files import REMOVED, Manifest, lock_file, sha256_file, write_atomic
from textgen.model.find import read_champion
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.publishing.publish import publish
from textgen.publishing.registry import promote, read_history, rollback
from textgen.retention.withdrawal import Withdrawal, carry_out_withdrawal, find_withdrawal
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text import corpus
from textgen.training import handover
from textgen.training.folder import KEY_FILE, Origin
from textgen.training.plan import train_key
from textgen.training.state import StateManifest
from textgen.training.train import train
from textgen.training.trunk import Trunk, bring_trunks

SECRET = "the old lamp in the tower was never to be spoken of"


@pytest.fixture(scope="module")
def made(publication: Publication, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Publication]]:
    """Return a root with two versions, each the champion in its time: v1 of a text, and v2 of it with the secret."""
    folder = tmp_path_factory.mktemp("withdrawal")
    root = Path(shutil.copytree(publication.config.root, folder / "data"))
    text = {split: "".join(corpus.read_rows(publication.raw, split)) for split in SPLITS}
    files = write_text(folder / "text", {**text, "train": text["train"] + SECRET + "\n"})
    config = publication.config
    data = config.data.model_copy(update={"files": files})
    always = config.publish.model_copy(update={"policy": "always"})
    changed = {"data": data, "publish": always, "storage": StorageConfig(root=str(root))}
    promote(root / "models" / config.name, "v1", Storage.at(root))
    return root, {"v1": publication, "v2": make(config.model_copy(update=changed))}


@pytest.fixture
def storage(made: tuple[Path, dict[str, Publication]], tmp_path) -> Storage:
    shutil.copytree(made[0], tmp_path / "data")
    return Storage.at(tmp_path / "data")


@pytest.fixture
def secret(tmp_path) -> Path:
    """Return a file with the document, as a person would have it: in other lines."""
    path = tmp_path / "secret.txt"
    path.write_text(SECRET.replace(" tower ", "\ntower  ") + "\n")
    return path


@pytest.fixture
def find(storage, secret) -> Callable[[], Withdrawal]:
    return lambda: find_withdrawal(secret, DataConfig(), storage)


def home_of(storage: Storage) -> Path:
    (home,) = [path for path in storage.models().iterdir() if path.is_dir()]
    return home


def names(withdrawal: Withdrawal, *kinds: str) -> set[str]:
    return {item.name for item in withdrawal.of(*kinds)}


def made_of(one: Publication) -> set[str]:
    """Return the folders of a version and of what it was made of, under the root."""
    checkpoint, tokens, raw = one.checkpoint.folder, one.tokens.folder, one.raw.folder
    root = raw.parents[2]
    return {folder.relative_to(root).as_posix() for folder in (one.published.folder, checkpoint, tokens, raw)}


def there(storage: Storage) -> set[str]:
    """Return the folders of texts, tokens, trainings and versions."""
    folders = [*storage.raw().glob("files/*"), *storage.processed().iterdir(), *storage.training().iterdir()]
    return {storage.name(path) for path in [*folders, *home_of(storage).iterdir()] if path.is_dir()}


def test_all_that_was_made_of_the_text_goes_and_nothing_else(find, storage, made):
    clean, tainted = (made_of(made[1][version]) for version in ("v1", "v2"))
    assert there(storage) == tainted | clean
    withdrawal = find()
    assert names(withdrawal, "version", "training", "tokens", "text") == tainted
    assert withdrawal.bytes == sum(item.bytes for item in withdrawal.items) > 0
    assert there(storage) == tainted | clean
    carry_out_withdrawal(withdrawal, storage)
    assert there(storage) == clean
    assert not [path for path in storage.local.rglob("*") if path.name.endswith(REMOVED)]
    held = [path for path in storage.local.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == []
    assert find().items == []  # and no text holds it


def test_the_champion_before_becomes_the_champion_again(find, storage):
    withdrawal = find()
    home = home_of(storage)
    (succession,) = withdrawal.champions
    assert succession[:3] == (home.name, "v2", "v1")
    assert "v2, which goes: v1, the champion before it, becomes the champion again" in succession.in_words("data")
    carry_out_withdrawal(withdrawal, storage)
    assert read_champion(home) == "v1"
    assert read_history(home).champions == ["v1"]


def test_a_champion_that_is_clean_stays(find, storage):
    promote(home_of(storage), "v1", storage)
    withdrawal = find()
    assert withdrawal.champions == []
    carry_out_withdrawal(withdrawal, storage)
    assert read_champion(home_of(storage)) == "v1"
    with pytest.raises(InputError, match="no champion before v1"):
        rollback(home_of(storage), storage)


def test_without_a_champion_before_there_is_none_until_a_run_promotes_one(find, storage, made):
    home = home_of(storage)
    shutil.rmtree(home / "v1")
    withdrawal = find()
    (succession,) = withdrawal.champions
    assert succession.successor is None
    assert f"{home.name} has no champion until a run promotes one" in succession.in_words("data")
    carry_out_withdrawal(withdrawal, storage)
    assert read_champion(home) is None
    candidate = replace(made[1]["v1"].candidate, config=made[1]["v2"].config)
    assert publish(candidate, storage).version == "v3"  # v2 is not given again
    assert read_champion(home) == "v3"


def test_a_clean_version_that_never_was_the_champion_is_named_and_not_promoted(find, storage):
    home = home_of(storage)
    (home / "history.json").write_text(json.dumps({"champions": ["v2"]}))
    withdrawal = find()
    assert f"`textgen models promote v1 --name {home.name} --root r`" in withdrawal.champions[0].in_words("r")
    carry_out_withdrawal(withdrawal, storage)
    assert read_champion(home) is None
    assert promote(home, "v1", storage).version == "v1"


def test_what_started_from_its_weights_goes_too(find, storage, made):
    """A training on a clean text that `training.init_from` began with a model of the secret."""
    one, secret = made[1]["v1"], made[1]["v2"]
    folder = storage.training(one.checkpoint.folder.name)
    manifest = type(one.checkpoint).read(folder)
    manifest.model_copy(update={"initial_sha256": secret.checkpoint.weights_sha256}).write(folder)
    withdrawal = find()
    order = [item.name for item in withdrawal.of("version", "training")]
    names = [f"models/{secret.published.name}/v1", storage.name(folder), f"checkpoints/{secret.checkpoint.folder.name}"]
    assert [name for name in order if name in names] == names  # after a kill, the weights tell what came of them
    assert withdrawal.champions[0].successor is None
    carry_out_withdrawal(withdrawal, storage)
    assert there(storage) == {name for name in made_of(one) if not name.startswith(("models", "checkpoints"))}


def test_what_started_from_its_trunk_goes_too(find, storage, made):
    """A training on a clean text, with wsd, begins with what the champion's training kept before its decay."""
    one, secret = made[1]["v1"], made[1]["v2"]
    home = storage.training(secret.checkpoint.folder.name)
    (state,) = sorted(home.glob("states/*"))[-1:]
    kept = StateManifest.read(shutil.copytree(state, home / "trunk" / state.name))
    write_atomic(kept.folder / WEIGHTS_FILE, b"before the decay")
    sha256 = {**kept.sha256, WEIGHTS_FILE: sha256_file(kept.folder / WEIGHTS_FILE)}
    kept.model_copy(update={"sha256": sha256}).write(kept.folder)
    folder = storage.training(one.checkpoint.folder.name)
    manifest = type(one.checkpoint).read(folder)
    manifest.model_copy(update={"initial_sha256": sha256[WEIGHTS_FILE]}).write(folder)
    assert storage.name(folder) in names(find(), "training")


def unfinished(storage: Storage, one: Publication) -> Path:
    """Return the folder of a training, on the tokens of a version, that was ended on its way."""
    config = one.config.model_copy(update={"seed": 9, "storage": StorageConfig(root=str(storage.local))})
    tokens = type(one.tokens).read(storage.processed(one.tokens.key))
    out = storage.training(train_key(tokens, config))
    with pytest.raises(Interruption):
        train(tokens, config, out, interrupt_at(10))
    return out


def test_an_unfinished_training_goes_with_the_text_that_it_is_on(find, storage, made):
    mine, other = (unfinished(storage, made[1][version]) for version in ("v2", "v1"))
    withdrawal = find()
    assert names(withdrawal, "unfinished") == {storage.name(mine)}
    assert withdrawal.unclear == []
    carry_out_withdrawal(withdrawal, storage)
    assert other.exists() and not mine.exists()


def test_an_unfinished_training_that_started_from_its_weights_goes(find, storage, made):
    other, weights = unfinished(storage, made[1]["v1"]), made[1]["v2"].checkpoint.weights_sha256
    Origin.parse(other).model_copy(update={"initial_sha256": weights}).write(other)
    assert storage.name(other) in names(find(), "unfinished")


def check_nothing_goes(find: Callable[[], Withdrawal], storage: Storage, *unclear: str) -> None:
    """Check that nothing is removed, and what has to be settled first; twice, as a person may try again."""
    before = there(storage)
    for _ in range(2):
        withdrawal = find()
        assert [part for part, said in zip(unclear, withdrawal.unclear, strict=True) if part not in said] == []
        with pytest.raises(Failure, match="nothing was removed: it is not known"):
            carry_out_withdrawal(withdrawal, storage)
        assert there(storage) == before


def test_nothing_goes_while_a_training_does_not_say_from_what_it_started(find, storage, made):
    """An unfinished one of older code, which may have started from the model of the text."""
    other = unfinished(storage, made[1]["v1"])
    (other / Origin.FILE).unlink()
    check_nothing_goes(find, storage, f"{storage.name(other)} is unfinished, and does not say of what it was made")
    unfinished(storage, made[1]["v1"])  # the same training goes on, and says it now
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"]) | {storage.name(other)}


def started_from(storage: Storage, one: Publication, sha256: str, config: dict[str, Any] | None = None) -> Path:
    """Have the training of a version be one that started from other weights, as older code notes it."""
    folder = storage.training(one.checkpoint.folder.name)
    (folder / Origin.FILE).unlink(missing_ok=True)
    manifest = type(one.checkpoint).read(folder)
    changed = {"initial_sha256": sha256, "config": {**manifest.config, **(config or {})}}
    manifest.model_copy(update=changed).write(folder)
    return folder


def test_nothing_goes_while_a_training_started_from_a_model_that_is_gone(find, storage, made):
    one = made[1]["v1"]
    folder = started_from(storage, one, "ab" * 32)
    check_nothing_goes(find, storage, f"{storage.name(folder)} started from a model, which is not here")
    started_from(storage, one, one.checkpoint.weights_sha256)
    assert find().unclear == []


def test_a_training_that_started_from_a_model_of_somebody_else_is_named_and_stays(find, storage, made):
    folder = storage.training(made[1]["v1"].checkpoint.folder.name)
    manifest = type(made[1]["v1"].checkpoint).read(folder)
    manifest.model_copy(update={"initial_sha256": "0"}).write(folder)
    noted = {"initial_sha256": "0", "initial": "/models/base", "names_all_texts": False}
    Origin.parse(folder).model_copy(update=noted).write(folder)
    lineage = json.loads((home_of(storage) / "v1" / "lineage.json").read_text())
    lineage["checkpoint"]["initial_sha256"], lineage["names_all_texts"] = "0", False
    write_atomic(home_of(storage) / "v1" / "lineage.json", json.dumps(lineage))
    assert any("started from /models/base, which is not in this storage" in remark for remark in find().remarks)
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])


def test_nothing_goes_while_the_tokens_of_a_training_are_gone_that_names_no_text(find, storage, made):
    one = made[1]["v1"]
    folder = started_from(storage, one, "")
    manifest = type(one.checkpoint).read(folder)
    manifest.model_copy(update={"initial_sha256": None}).write(folder)
    shutil.rmtree(home_of(storage) / "v1")
    assert find().unclear == []
    shutil.rmtree(storage.processed(one.tokens.key))
    check_nothing_goes(find, storage, f"{storage.name(folder)} was made of the tokens {one.tokens.key}, which are not")


def test_that_no_text_holds_it_is_no_all_clear_while_a_model_came_from_another(find, storage, made, secret):
    secret.write_text("in no text at all")
    assert (find().items, find().unclear) == ([], [])
    folder = started_from(storage, made[1]["v1"], "ab" * 32)
    assert find().unclear == [f"{storage.name(folder)} started from a model, which is not here"]


def test_what_says_that_it_came_from_the_text_goes_whatever_is_gone_between(find, storage, made):
    """As after years of `publish.keep_versions` and `textgen clean`: of the first models only the texts are left."""
    one, other = made[1]["v2"], made[1]["v1"]
    folder, texts = storage.training(other.checkpoint.folder.name), [other.raw.key, "gone", one.raw.key]
    Origin.parse(folder).model_copy(update={"texts": texts, "initial": None}).write(folder)
    for path in (home_of(storage) / "v2", storage.training(one.checkpoint.folder.name), home_of(storage) / "v1"):
        shutil.rmtree(path)
    shutil.rmtree(storage.processed(one.tokens.key))
    assert names(find(), "training") == {storage.name(folder)}


def test_a_version_that_says_that_it_came_from_the_text_goes(find, storage, made):
    version = home_of(storage) / "v1"
    lineage = json.loads((version / "lineage.json").read_text())
    write_atomic(version / "lineage.json", json.dumps({**lineage, "earlier_texts": [made[1]["v2"].raw.key]}))
    shutil.rmtree(storage.training(made[1]["v1"].checkpoint.folder.name))
    assert names(find(), "version") == {storage.name(version), storage.name(version.with_name("v2"))}


def test_nothing_goes_while_a_text_cannot_be_looked_in(find, storage, made):
    raw = storage.raw() / "files" / made[1]["v1"].raw.key
    parquet = raw / "train.parquet"
    content = parquet.read_bytes()
    parquet.chmod(0o644)
    parquet.write_bytes(content[:-1])
    withdrawal = find()
    (unclear,) = withdrawal.unclear
    assert "train.parquet is damaged" in unclear
    parquet.write_bytes(content)
    assert find().unclear == []
    shutil.rmtree(raw)
    withdrawal = find()
    assert withdrawal.unclear == [f"{storage.name(raw)} of {home_of(storage).name}@v1 is not there"]


def test_a_text_of_which_only_tokens_are_left_is_no_all_clear(find, storage, made):
    shutil.rmtree(storage.models())
    shutil.rmtree(storage.raw() / "files" / made[1]["v2"].raw.key)
    with pytest.raises(Damaged, match="not every text could"):
        find()


def test_versions_of_other_texts_stay_though_a_training_is_damaged(find, storage, made):
    """One of older code, without a note of its beginning, whose tokenizer another text has too: v1 and v2 went."""
    folder = storage.training(made[1]["v1"].checkpoint.folder.name)
    (folder / Origin.FILE).unlink()
    write_atomic(folder / Manifest.FILE, "{}")
    tokens = storage.processed(made[1]["v2"].tokens.key)
    taken = {"tokenizer.json": sha256_file(folder / "tokenizer.json")}
    type(made[1]["v2"].tokens).parse(tokens).model_copy(update={"tokenizer_sha256": taken}).write(tokens)
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])


@pytest.mark.parametrize("place", ["models/textgen/v2", "checkpoints", "processed", "raw/files"])
def test_nothing_goes_while_a_part_of_it_is_behind_a_link(find, storage, made, place, tmp_path):
    (path,) = [storage.local / name for name in made_of(made[1]["v2"]) if name.startswith(place)]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    check_nothing_goes(find, storage, f"{storage.name(path)} is of this text, and is or is in a link")


def test_nothing_goes_while_a_copy_of_a_file_of_it_is_elsewhere(find, storage, made):
    home = home_of(storage)
    copy = shutil.copytree(storage.training(made[1]["v2"].checkpoint.folder.name), storage.training("copies") / "mine")
    (copy / KEY_FILE).unlink()
    shutil.copytree(storage.raw() / "files" / made[1]["v2"].raw.key, storage.raw() / "backup")
    unclear = find().unclear
    assert any(f"{storage.name(copy)}/model.safetensors is a copy of a file of it" in one for one in unclear)
    assert any("raw/backup/train.parquet is a copy of a file of it" in one for one in unclear)
    shutil.rmtree(copy)
    shutil.rmtree(storage.raw() / "backup")
    shutil.copytree(home / "v2", home.with_name("best"))
    assert storage.name(home.with_name("best")) in names(find(), "copy")


@pytest.mark.parametrize("place", ["checkpoints/experiments/one", "mine"])
def test_a_training_that_a_person_put_elsewhere_goes_too(find, storage, made, place):
    out = unfinished(storage, made[1]["v2"])
    (storage.local / place).parent.mkdir(exist_ok=True)
    nested = out.rename(storage.local / place)
    with FileLock(lock_file(nested)):
        assert find().running == [storage.name(nested)]
    carry_out_withdrawal(find(), storage)
    assert not nested.exists()


def test_what_killed_runs_left_goes_too(find, storage):
    left = [storage.raw() / "files" / ".0123.abcdefgh", storage.processed() / ".0123.abcdefgh",
            storage.report() / f".0123{REMOVED}", storage.local / "wandb" / f".run-1{REMOVED}"]  # fmt: skip
    for path in left:
        path.mkdir(parents=True)
        (path / "train.parquet").write_text(SECRET)
    assert names(find(), "leftover") == {storage.name(path) for path in left}
    carry_out_withdrawal(find(), storage)
    assert not [path for path in left if path.exists()]


def test_what_a_killed_run_left_is_no_all_clear_where_the_texts_are_gone(find, storage):
    (storage.processed() / ".0123.abcdefgh").mkdir()
    shutil.rmtree(storage.raw())
    with pytest.raises(Damaged, match="not every text could"):
        find()


def test_a_removal_killed_while_it_deletes_tokens_is_completed(find, storage, made):
    tokens = storage.processed(made[1]["v2"].tokens.key)
    for folder in (home_of(storage) / "v2", storage.training(made[1]["v2"].checkpoint.folder.name)):
        shutil.rmtree(folder)
    left = tokens.rename(tokens.with_name(f".{tokens.name}{REMOVED}"))
    (left / Manifest.FILE).unlink()
    promote(home_of(storage), "v1", storage)
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])


@pytest.mark.parametrize("stage", ["processed", "raw/files"])
def test_what_is_being_made_is_named_and_nothing_is_removed(find, storage, stage):
    before, withdrawal = there(storage), find()
    with FileLock(storage.local / stage / ".0123.lock"):
        assert find().running == [f"{stage}/0123"]
        with pytest.raises(Failure, match=f"{stage}/0123: a run works there .* end it"):
            carry_out_withdrawal(withdrawal, storage)
    assert there(storage) == before


def test_if_the_champion_cannot_step_down_the_tokens_are_where_they_were(find, storage, monkeypatch):
    def fail(*arguments: Any) -> None:
        raise PermissionError

    before = there(storage)
    monkeypatch.setattr(textgen.retention.withdrawal, "step_down", fail)
    with pytest.raises(PermissionError):
        carry_out_withdrawal(find(), storage)
    assert there(storage) == before


def test_what_started_from_a_trunk_that_is_gone_goes_by_the_name_of_the_version(find, storage, made):
    secret = made[1]["v2"]
    training = {"training": {"init_from": f"{secret.published.name}@v2"}}
    folder = started_from(storage, made[1]["v1"], "ab" * 32, training)
    shutil.rmtree(storage.training(secret.checkpoint.folder.name))
    assert storage.name(folder) in names(find(), "training")
    shutil.rmtree(home_of(storage) / "v2")
    (home_of(storage) / "v2.withdrawn").write_text("")  # by a removal before this training was there
    assert storage.name(folder) in names(find(), "training")


def test_what_started_from_the_weights_of_a_damaged_training_goes(find, storage, made):
    secret = storage.training(made[1]["v2"].checkpoint.folder.name)
    folder = started_from(storage, made[1]["v1"], made[1]["v2"].checkpoint.weights_sha256)
    shutil.rmtree(storage.models())
    shutil.rmtree(secret / "states")
    write_atomic(secret / Manifest.FILE, "{}")
    secret.rename(secret.with_name(f"{secret.name}.damaged-1"))
    assert names(find(), "training") == {storage.name(folder), storage.name(secret)}
    assert find().unclear == []


@pytest.mark.parametrize("is_named", [True, False])
def test_a_training_that_started_from_its_weights_after_the_look_is_found(find, storage, made, is_named):
    withdrawal, other = find(), unfinished(storage, made[1]["v1"])
    start = storage.name(home_of(storage) / "v2") if is_named else None
    noted = {"initial_sha256": made[1]["v2"].checkpoint.weights_sha256, "initial": start, "names_all_texts": False}
    Origin.parse(other).model_copy(update=noted).write(other)
    with pytest.raises(Failure, match=f"{storage.name(other)}: made of the text meanwhile"):
        carry_out_withdrawal(withdrawal, storage)
    if is_named:
        carry_out_withdrawal(find(), storage)
        assert there(storage) == made_of(made[1]["v1"])
    else:
        check_nothing_goes(find, storage, f"{storage.name(other)} started from a model, which is not here")


def test_a_running_training_on_another_text_with_the_same_tokenizer_goes_on(find, storage, made):
    """As two texts have it that are told apart by GPT-2's tokenizer."""
    mine, other = (storage.processed(made[1][version].tokens.key) for version in ("v2", "v1"))
    tokens = type(made[1]["v1"].tokens)
    shutil.copyfile(mine / "tokenizer.json", other / "tokenizer.json")
    taken = tokens.parse(mine).tokenizer_sha256
    tokens.parse(other).model_copy(update={"tokenizer_sha256": taken}).write(other)
    out = unfinished(storage, made[1]["v1"])
    with FileLock(lock_file(out)):
        carry_out_withdrawal(find(), storage)
    assert out.exists() and other.exists() and not mine.exists()


@pytest.mark.parametrize("file", ["lineage", "tokens"])
def test_nothing_goes_while_what_may_be_of_it_is_damaged(find, storage, made, file):
    damaged = home_of(storage) / "v1" / "lineage.json"
    if file == "tokens":
        tokens = storage.processed(made[1]["v1"].tokens.key)
        damaged = tokens.rename(tokens.with_name("mine")) / Manifest.FILE
    write_atomic(damaged, "{}")
    check_nothing_goes(find, storage, f"{damaged} is damaged")
    shutil.rmtree(damaged.parent)
    carry_out_withdrawal(find(), storage)
    assert {folder.name for folder in storage.raw().glob("files/*/")} == {made[1]["v1"].raw.key}


def test_copies_that_a_person_made_go_too(find, storage, made):
    one, other = made[1]["v2"], made[1]["v1"]
    home, tokens, training = home_of(storage), storage.processed(one.tokens.key), storage.training(one.checkpoint.key)
    names = [(home / "v2", home / "v2-old"), (home / "v2", storage.models("aside.damaged-1") / "v2"),
             (tokens, tokens.with_name("mine")), (training, training.with_name("mine"))]  # fmt: skip
    mine = {Path(shutil.copytree(made_by_a_run, copy)) for made_by_a_run, copy in names}
    shutil.copytree(home / "v1", home / "v1-old")
    withdrawal = find()
    assert {storage.name(copy) for copy in mine} <= {item.name for item in withdrawal.items}
    carry_out_withdrawal(withdrawal, storage)
    assert not [copy for copy in mine if copy.exists()]
    (home.parent / "aside.damaged-1").rmdir()  # it is empty
    assert there(storage) == made_of(other) | {storage.name(home / "v1-old")}
    assert find().items == []


def test_what_was_made_of_a_text_that_was_renamed_goes_too(find, storage, made):
    raw = storage.raw() / "files" / made[1]["v2"].raw.key
    raw.rename(raw.with_name("renamed"))
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])
    assert len([path for path in storage.report().iterdir() if path.name[0] != "."]) == 1


def test_a_version_that_does_not_say_of_which_text_it_is_goes_by_its_weights(find, storage, made):
    write_atomic(home_of(storage) / "v2" / "lineage.json", "{}")
    assert find().unclear == []
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])
    assert read_champion(home_of(storage)) == "v1"


@pytest.mark.parametrize("sound", ["v2.damaged-1", "v2.damaged-2"])
def test_where_a_version_does_not_say_of_which_text_it_is_a_damaged_copy_does(find, storage, made, sound):
    version = home_of(storage) / "v2"
    (version / WEIGHTS_FILE).unlink()
    for copy in ("v2.damaged-1", "v2.damaged-2"):
        shutil.copytree(version, version.with_name(copy))
    for damaged in {"v2", "v2.damaged-1", "v2.damaged-2"} - {sound}:
        write_atomic(version.with_name(damaged) / "lineage.json", "{}")
    assert find().unclear == []
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])


def test_a_running_training_is_named_and_nothing_is_removed(find, storage, made):
    before, withdrawal = there(storage), find()
    out = unfinished(storage, made[1]["v2"])  # began after the look
    with FileLock(lock_file(out)):
        with pytest.raises(Failure, match=f"{storage.name(out)}: a run works there .* end it"):
            carry_out_withdrawal(withdrawal, storage)
        assert find().running == [storage.name(out)]
        assert there(storage) == before | {storage.name(out)}
    used = lock_file(storage.training(made[1]["v2"].checkpoint.folder.name))
    with FileLock(used), pytest.raises(Failure, match="in use"):
        carry_out_withdrawal(withdrawal, storage)
    assert there(storage) == before | {storage.name(out)}
    carry_out_withdrawal(find(), storage)


def test_what_was_made_of_the_text_after_the_look_goes_with_the_same_command(find, storage, made):
    withdrawal = find()
    late = shutil.copytree(home_of(storage) / "v2", home_of(storage) / "v3")
    with pytest.raises(Failure, match=f"{storage.name(Path(late))}: made of the text meanwhile"):
        carry_out_withdrawal(withdrawal, storage)
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])


@pytest.mark.parametrize("after", range(5))
def test_after_a_kill_the_same_command_removes_the_rest(find, storage, made, after, monkeypatch):
    removals = 0

    def dying(remove: Callable[..., None]) -> Callable[..., None]:
        def remove_or_die(path: Any, *rest: Any) -> None:
            nonlocal removals
            if removals == after:
                raise Interruption
            removals += 1
            remove(path, *rest)

        return remove_or_die

    module = textgen.retention.withdrawal
    monkeypatch.setattr(module, "withdraw", dying(module.withdraw))
    monkeypatch.setattr(module, "remove", dying(module.remove))
    with pytest.raises(Interruption):
        carry_out_withdrawal(find(), storage)
    monkeypatch.undo()
    assert read_champion(home_of(storage)) == "v1"
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])
    assert not [path for path in storage.local.rglob("*") if path.name.endswith(REMOVED)]


def test_a_removal_killed_in_its_last_folder_is_finished(find, storage):
    for stage in (storage.models(), storage.training(), storage.processed()):
        shutil.rmtree(stage)
    for folder in storage.raw().glob("files/*/"):
        folder.rename(folder.with_name(f".{folder.name}{REMOVED}"))
    withdrawal = find()
    assert {item.kind for item in withdrawal.items} == {"leftover"}
    carry_out_withdrawal(withdrawal, storage)
    assert not [path for path in storage.raw().rglob("*") if path.suffix == ".parquet"]
    with pytest.raises(InputError, match="there is no text"):
        find()


def test_copies_that_were_set_aside_go_too(find, storage, made):
    one = made[1]["v2"]
    copies = [storage.local / f"{name}.damaged-1" for name in made_of(one)]
    for copy in copies:
        shutil.copytree(copy.with_name(copy.name.removesuffix(".damaged-1")), copy)
    carry_out_withdrawal(find(), storage)
    assert not [copy for copy in copies if copy.exists()]


def test_what_was_set_aside_and_not_made_anew_goes_too(find, storage, made):
    copies = [(folder := storage.local / name).rename(f"{folder}.damaged-1") for name in made_of(made[1]["v2"])]
    assert len(copies) > 3
    carry_out_withdrawal(find(), storage)
    assert not [copy for copy in copies if copy.exists()]
    assert read_champion(home_of(storage)) == "v1"


@pytest.mark.parametrize("set_aside", [False, True])
def test_what_does_not_say_where_it_comes_from_goes_by_the_lineage_of_its_version(find, storage, made, set_aside):
    one = made[1]["v2"]
    folders = [storage.processed(one.tokens.key), storage.training(one.checkpoint.key)]
    for folder in folders:
        manifest = folder / Manifest.FILE
        manifest.chmod(0o644)
        manifest.write_bytes(manifest.read_bytes()[:100])
        if set_aside:
            folder.rename(folder.with_name(f"{folder.name}.damaged-1"))
    carry_out_withdrawal(find(), storage)
    assert there(storage) == made_of(made[1]["v1"])


def test_a_link_with_the_name_of_a_damaged_copy_is_left_alone(find, storage, made, tmp_path):
    version = storage.local / made[1]["v2"].published.folder.relative_to(made[0])
    version.rename(tmp_path / "elsewhere")
    link = version.with_name("v2.damaged-1")
    link.symlink_to(tmp_path / "elsewhere")
    check_nothing_goes(find, storage, f"{storage.name(link)} is of this text, and is or is in a link")
    assert link.is_symlink() and (tmp_path / "elsewhere" / WEIGHTS_FILE).exists()


def test_figures_and_records_of_it_go_too(find, storage, made):
    one = made[1]["v2"]
    mine = [storage.local / "cache" / "publish-1", storage.local / "results" / "2",
            storage.local / "wandb" / f"offline-run-1-{one.checkpoint.key}" / "run.wandb",
            storage.local / "wandb" / "pending" / f"{one.published.name}-v2.json"]  # fmt: skip
    others = [storage.local / "cache" / "publish-3", storage.local / "wandb" / "offline-run-1-another" / "run.wandb",
              storage.local / "wandb" / "pending" / f"{one.published.name}-v1.json"]  # fmt: skip
    for file in [*mine, *others]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"path": f"data/{'checkpoints/' + one.checkpoint.key if file in mine else ''}"}))
    reports = [path.name for path in storage.report().iterdir() if path.name[0] != "."]
    assert len(reports) == 2
    carry_out_withdrawal(find(), storage)
    assert not [file for file in mine if file.exists()]
    assert all(file.exists() for file in others)
    assert len([path for path in storage.report().iterdir() if path.name[0] != "."]) == 1


def test_a_version_on_the_hub_is_named(find, storage):
    record = {"repo": "me/mine", "version": "v2", "key": "k", "commit": "c"}
    (home_of(storage) / "hub.json").write_text(json.dumps(record))
    assert any("me/mine on the Hugging Face Hub has" in remark and "v2" in remark for remark in find().remarks)


def test_tokens_that_stay_with_a_tokenizer_of_the_text_are_named(find, storage, made):
    mine, other = (storage.processed(made[1][version].tokens.key) for version in ("v2", "v1"))
    taken = type(made[1]["v2"].tokens).parse(mine).tokenizer_sha256
    type(made[1]["v1"].tokens).parse(other).model_copy(update={"tokenizer_sha256": taken}).write(other)
    assert f"{storage.name(other)} stays, with a tokenizer that learned from this text" in find().remarks


def push_all(storage: Storage, versions: dict[str, Publication]) -> None:
    """Have a remote root hold what a storage here has."""
    for one in versions.values():
        for made in (one.raw, one.tokens, one.checkpoint, one.published):
            folder = storage.local / made.folder.relative_to(one.raw.folder.parents[2])
            shutil.copytree(made.folder, folder, dirs_exist_ok=True)
            storage.push(folder, made)
    home = home_of(storage)
    for version in versions:
        promote(home, version, storage)


def test_the_copies_on_a_remote_root_go_too_though_nothing_is_here(here, there, made, secret):
    _, versions = made
    push_all(here, versions)
    withdrawal = find_withdrawal(secret, DataConfig(), there)
    goes = made_of(versions["v2"])
    assert names(withdrawal, "version", "training", "tokens", "text") == goes
    assert any("each machine" in remark for remark in withdrawal.remarks)
    carry_out_withdrawal(withdrawal, there)
    remote = there.remote
    assert remote is not None
    left = [name for name in remote.files.find(remote.base) if any(part in name for part in goes)]
    assert {name.rpartition("/")[2] for name in left} == {".claim", "v2.withdrawn"}
    assert {folder.name for folder in there.folders(there.models(), "*/v*")} == {"v1"}
    here.bring_file(home_of(here) / "champion")
    assert read_champion(home_of(here)) == "v1"
    assert not here.claim(home_of(here) / "v2" / ".claim")  # its number is not given again
    assert find_withdrawal(secret, DataConfig(), here).of("version")  # the copies of this machine, by the same command


def test_a_training_of_the_remote_root_goes_though_a_part_of_it_is_here(here, there, made, secret):
    push_all(here, made[1])
    one = made[1]["v2"]
    folder = here.training(one.checkpoint.folder.name)
    Trunk(key="k", step=4, warmup_steps=0, eval_every=5, eval_blocks=None, optimizer="adamw").write(folder)
    for file in (KEY_FILE, Trunk.FILE):
        here.push_file(folder / file)
    here.delete(home_of(here) / "v2")  # only its training is left
    promote(home_of(here), "v1", here)
    bring_trunks(there)
    assert there.training(folder.name).exists()
    carry_out_withdrawal(find_withdrawal(secret, DataConfig(), there), there)
    assert there.remote is not None
    assert not [name for name in there.remote.files.find(there.remote.base) if folder.name in name]


def test_what_started_from_a_trunk_in_the_remote_root_goes(here, there, made, secret):
    push_all(here, made[1])
    one, other = made[1]["v2"], made[1]["v1"]
    trunk = here.training(one.checkpoint.folder.name) / "trunk"
    (state,) = sorted(one.checkpoint.folder.glob("states/*"))[-1:]
    kept = StateManifest.read(shutil.copytree(state, trunk / state.name))
    write_atomic(kept.folder / WEIGHTS_FILE, b"before the decay")
    sha256 = {**kept.sha256, WEIGHTS_FILE: sha256_file(kept.folder / WEIGHTS_FILE)}
    kept.model_copy(update={"sha256": sha256}).write(kept.folder)
    here.push(kept.folder, StateManifest.read(kept.folder))
    folder = started_from(here, other, sha256[WEIGHTS_FILE])
    here.push(folder, type(other.checkpoint).read(folder))
    assert here.name(folder) in names(find_withdrawal(secret, DataConfig(), there), "training")


def test_an_unfinished_training_of_another_machine_goes(here, there, made, secret):
    push_all(here, made[1])
    out = unfinished(here, made[1]["v2"])
    handover._push(here, out, max((out / "states").iterdir()))
    withdrawal = find_withdrawal(secret, DataConfig(), there)
    assert names(withdrawal, "unfinished") == {here.name(out)}
    carry_out_withdrawal(withdrawal, there)
    assert there.remote is not None
    assert not [name for name in there.remote.files.find(there.remote.base) if out.name in name]


def test_no_champion_is_no_champion_for_every_machine(here, there, made, secret):
    push_all(here, {"v2": made[1]["v2"]})
    carry_out_withdrawal(find_withdrawal(secret, DataConfig(), there), there)
    here.bring_file(home_of(here) / "champion")
    assert read_champion(home_of(here)) is None
