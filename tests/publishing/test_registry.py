"""The registry: versions that stay as they are, one champion, the way back, and what a flipped byte comes to."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

import textgen.publishing.publish
import textgen.publishing.registry
from tests.publications import leave_out_pictures
from tests.trainings import ignore
from tests.waiting import until
from textgen.__main__ import main
from textgen.config import Config, EvaluationConfig, StorageConfig
from textgen.errors import Damaged, InputError, Refused
from textgen.evaluation.evaluate import evaluate, evaluate_split
from textgen.evaluation.scoring import read_documents
from textgen.files import sha256_file, write_atomic
from textgen.model.find import NO_CHAMPION, read_champion, resolve
from textgen.model.pretrained import WEIGHTS_FILE, load_model
from textgen.publishing.contenders import expected_tokens, score_challenger, score_champion, score_unigram
from textgen.publishing.publish import publish
from textgen.publishing.registry import promote, prune, read_history, read_sound, rollback
from textgen.publishing.version import PublishedManifest, Sample
from textgen.sections import HELD_OUT
from textgen.storage import Storage
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.text.tokens import load_manifest_tokenizer, load_stream
from textgen.training.train import train


@pytest.fixture
def local() -> Storage:
    return Storage(StorageConfig())


def add_version(home: Path, number: int, promoted: bool = True) -> None:
    """Write a version of one small file."""
    folder = home / f"v{number}"
    write_atomic(folder / WEIGHTS_FILE, f"the weights of version {number}")
    PublishedManifest(
        key=str(number),
        name=home.name,
        version=folder.name,
        promoted=promoted,
        reason=f"reason {number}",
        checkpoint_sha256=str(number),
        tokens_key="tokens",
        raw_sha256={},
        bits_per_byte=2.5,
        samples=[],
        sha256={WEIGHTS_FILE: sha256_file(folder / WEIGHTS_FILE)},
    ).write(folder)


@pytest.fixture
def home(tmp_path, local) -> Path:
    """Return the folder of the models `base`: v1 to v4, promoted one after the other."""
    home = tmp_path / "models" / "base"
    for number in range(1, 5):
        add_version(home, number)
        promote(home, f"v{number}", local)
    return home


def test_rollback_goes_back_one_champion_at_a_time(home, local):
    assert [rollback(home, local).version for _ in range(3)] == ["v3", "v2", "v1"]
    with pytest.raises(InputError, match="base: there is no champion before v1 to go back to"):
        rollback(home, local)
    assert (home / "champion").read_text() == "v1\n"


def test_a_version_that_was_rolled_back_is_not_come_back_to(home, local):
    rollback(home, local)
    add_version(home, 5)
    promote(home, "v5", local)
    assert [rollback(home, local).version for _ in range(3)] == ["v3", "v2", "v1"]


def test_rollback_undoes_a_promotion_of_an_old_version(home, local):
    promote(home, "v1", local)
    assert [rollback(home, local).version for _ in range(4)] == ["v4", "v3", "v2", "v1"]


def test_promoting_the_champion_changes_nothing(home, local):
    before = read_history(home)
    promote(home, "v4", local)
    assert read_history(home) == before


def test_a_way_that_was_written_and_not_taken_does_not_count(home, local):
    """A process was killed after the history and before the champion."""
    history = read_history(home)
    write_atomic(
        home / "history.json", history.model_copy(update={"champions": [*history.champions, "v1"]}).model_dump_json()
    )
    assert rollback(home, local).version == "v3"


@pytest.mark.parametrize("damage", ["delete", "damage"])
def test_without_its_history_a_registry_goes_back_by_what_the_versions_say(damage, home, local):
    add_version(home, 5, promoted=False)
    (home / "history.json").unlink() if damage == "delete" else (home / "history.json").write_text('{"champions": [')
    assert [rollback(home, local).version for _ in range(3)] == ["v3", "v2", "v1"]


@pytest.mark.parametrize("content", [b"../../x\n", b"", b"\xff\xfe", b"v1/../..", b"v" * 10**6, b"\x1b[31mv1"])
def test_a_champion_file_that_names_no_version_is_damage_that_a_promotion_mends(content, home, local):
    (home / "champion").write_bytes(content)
    with pytest.raises(Damaged, match=r"champion is damaged: .* is no version") as damage:
        read_champion(home)
    assert len(str(damage.value)) < 500
    promote(home, "v2", local)
    assert read_champion(home) == "v2"
    assert rollback(home, local).version == "v4", "the champion that the history has last"


@pytest.mark.parametrize("content", ['{"champions": ["../../x"]}', '{"settled": "/tmp"}', "[" * 100_000, "3"])
def test_a_history_that_names_no_versions_is_set_aside(content, home, local, caplog):
    (home / "history.json").write_text(content)
    assert rollback(home, local).version == "v3"
    assert "history.json is damaged" in caplog.text


@pytest.mark.parametrize("version", ["v9", "champion", "../v1", ""])
def test_what_is_no_version_is_not_promoted(version, home, local):
    with pytest.raises(InputError, match="has v1, v2, v3, v4"):
        promote(home, version, local)


def test_a_damaged_version_is_neither_promoted_nor_rolled_back_to(home, local, flip_bit):
    flip_bit(home / "v3" / WEIGHTS_FILE)
    with pytest.raises(Damaged, match=r"v3/model\.safetensors is damaged"):
        rollback(home, local)
    with pytest.raises(Damaged, match=r"v3/model\.safetensors is damaged"):
        promote(home, "v3", local)
    assert read_champion(home) == "v4"
    assert promote(home, "v2", local).version == "v2"


@pytest.mark.parametrize(
    ("champion", "keep", "left"),
    [("v4", None, ["v1", "v2", "v3", "v4"]), ("v4", 1, ["v3", "v4"]), ("v4", 3, ["v2", "v3", "v4"]),
     ("v1", 1, ["v1", "v4"]), ("v2", 1, ["v1", "v2", "v4"]), ("v4", 9, ["v1", "v2", "v3", "v4"])],
)  # fmt: skip
def test_retention_keeps_the_newest_the_champion_and_the_one_before_it(champion, keep, left, home, local):
    while read_champion(home) != champion:
        rollback(home, local)
    deleted = prune(home, keep, local)
    assert sorted(path.name for path in home.glob("v*")) == left
    assert sorted([*deleted, *left]) == ["v1", "v2", "v3", "v4"]
    if champion != "v1":
        assert rollback(home, local).version == f"v{int(champion[1]) - 1}"


def test_rollback_passes_over_a_version_that_was_deleted(home, local):
    shutil.rmtree(home / "v3")
    assert rollback(home, local).version == "v2"


@pytest.fixture
def remote(home, request) -> tuple[Storage, Path]:
    """Return a remote root with the versions of `home`, and where another machine has them."""
    url, name = f"memory://{request.node.name}", "models/base"
    machines = [
        Storage(StorageConfig(root=url, cache=str(home.parents[1] / machine))) for machine in ("first", "second")
    ]
    ours, theirs = (storage.local / name for storage in machines)
    shutil.copytree(home, ours)
    for folder in ours.glob("v*"):
        machines[0].push(folder, PublishedManifest.read(folder))
    machines[0].push_file(ours / "champion")
    machines[0].push_file(ours / "history.json")
    return (machines[0], ours), (machines[1], theirs)


def test_machines_that_share_a_root_promote_roll_back_and_delete_for_each_other(remote):
    (first, ours), (second, theirs) = remote
    assert promote(theirs, "v2", second).version == "v2"
    assert rollback(ours, first).version == "v4"
    assert rollback(theirs, second).version == "v3"
    assert rollback(ours, first).version == "v2"
    assert sorted(prune(ours, 1, first)) == ["v3"]
    memory = fsspec.filesystem("memory")
    assert not memory.exists(f"{first.root.removeprefix('memory:/')}/models/base/v3")
    assert rollback(theirs, second).version == "v1"
    assert (ours / "champion").read_text() == "v2\n"  # until it asks


def test_a_version_that_another_machine_deleted_is_neither_promoted_nor_rolled_back_to(remote):
    """It became the champion of every machine, and was nowhere but here."""
    (first, ours), (second, theirs) = remote
    promote(theirs, "v2", second)
    promote(theirs, "v4", second)
    first.delete(ours / "v2")
    first.delete(ours / "v3")
    assert (theirs / "v3").is_dir()
    with pytest.raises(InputError, match=r"base@v3: it is not in memory:.*: another machine deleted it"):
        promote(theirs, "v3", second)
    assert rollback(theirs, second).version == "v1"


def test_a_machine_finds_the_models_of_a_shared_root(remote):
    _, (second, theirs) = remote
    assert resolve("base@champion", second) == theirs / "v4"
    assert resolve("base@v1", second) == theirs / "v1"
    with pytest.raises(InputError, match="no such model"):
        resolve("base@v9", second)


@pytest.mark.parametrize("named", [None, NO_CHAMPION], ids=["before the first", "after the last"])
def test_a_champion_is_said_not_to_be_there(named, home, tmp_path, capsys):
    if named is None:
        (home / "champion").unlink()
    else:
        (home / "champion").write_text(f"{named}\n")
    said = f"base@champion: there is no champion; {home} has v1, v2, v3, v4"
    with pytest.raises(InputError) as caught:
        resolve("base@champion", Storage.at(tmp_path))
    assert str(caught.value) == said
    assert run_models(capsys, "show", "--name", "base", "--root", str(tmp_path)) == (2, "", said + "\n")


def run_models(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["models", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_commands_list_show_promote_and_roll_back(home, capsys):
    of = ("--name", "base", "--root", str(home.parents[1]))
    code, out, _ = run_models(capsys, "list", *of)
    assert (code, [line.split()[:2] for line in out.splitlines()][-1]) == (0, ["v4", "champion"])
    rows = json.loads(run_models(capsys, "list", *of, "--json")[1])
    assert [(row["version"], row["champion"]) for row in rows] == [
        ("v1", False), ("v2", False), ("v3", False), ("v4", True),
    ]  # fmt: skip
    assert run_models(capsys, "promote", "v2", *of) == (0, "base@champion is v2 now\n", "")
    assert json.loads(run_models(capsys, "show", *of, "--json")[1])["version"] == "v2"
    assert run_models(capsys, "rollback", *of, "--json")[1] == '{"name": "base", "champion": "v4"}\n'
    code, out, _ = run_models(capsys, "show", "v1", *of)
    assert code == 0 and "reason 1" in out


def test_list_and_show_do_not_wait_for_a_publication(home, capsys, caplog):
    caplog.set_level("INFO")
    of = ("--name", "base", "--root", str(home.parents[1]))
    with FileLock(home / ".lock"):
        waiting = threading.Thread(target=main, args=(["models", "list", *of],), daemon=True)
        waiting.start()
        until(lambda: "waiting" in caplog.text or not waiting.is_alive(), "it ends, or says that it waits")
        assert not waiting.is_alive()
        assert run_models(capsys, "show", "v2", *of)[0] == 0


def test_a_promotion_says_that_it_waits(home, local, caplog):
    caplog.set_level("INFO")
    with FileLock(home / ".lock"):
        waiting = threading.Thread(target=promote, args=(home, "v1", local))
        waiting.start()
        until(lambda: caplog.records or not waiting.is_alive(), "the promotion says something")
        assert waiting.is_alive()
        assert read_champion(home) == "v4"
    waiting.join()
    assert caplog.messages == ["base: waiting for another process, that publishes or promotes, to end"]
    assert read_champion(home) == "v1"


def test_a_version_that_is_deleted_while_it_is_read_is_not_there(home, capsys, monkeypatch):
    """Retention deletes in another process, and the readers hold no lock."""
    parse = PublishedManifest.parse

    def delete_before(folder: Path) -> PublishedManifest:
        if folder.name == "v2":
            shutil.rmtree(folder, ignore_errors=True)
        return parse(folder)

    monkeypatch.setattr(PublishedManifest, "parse", delete_before)
    of = ("--name", "base", "--root", str(home.parents[1]))
    shutil.copytree(home / "v2", home.parents[1] / "kept")
    code, out, err = run_models(capsys, "show", "v2", *of)
    assert (code, out) == (2, "") and err.startswith("base@v2: no such model")
    shutil.copytree(home.parents[1] / "kept", home / "v2")
    rows = json.loads(run_models(capsys, "list", *of, "--json")[1])
    assert [row["version"] for row in rows] == ["v1", "v3", "v4"]


@pytest.mark.parametrize(
    "arguments", [("show", "v9"), ("promote", "v9"), ("list", "--name", "nobody"), ("rollback", "--name", "nobody")]
)
def test_a_command_on_a_model_that_is_not_there_is_a_users_mistake(arguments, home, capsys):
    arguments = arguments if "--name" in arguments else (*arguments, "--name", "base")
    code, out, err = run_models(capsys, *arguments, "--root", str(home.parents[1]))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not (home.parent / "nobody").exists()


@pytest.mark.parametrize("name", ["", ".", "../models/base", "base/v1", "/tmp"])
@pytest.mark.parametrize("command", ["list", "show", "rollback"])
def test_a_name_that_no_model_has_is_a_users_mistake(command, name, home, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run_models(capsys, command, "--name", name, "--root", str(tmp_path))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"--name={name!r}: string should match pattern")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_flipped_byte_in_any_published_file_is_named_wherever_the_model_is_used(
    publication, tmp_path, flip_bit, capsys
):
    home = tmp_path / "models" / "textgen"
    for file in sorted(publication.published.folder.iterdir()):
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(publication.published.folder, home / "v1")
        write_atomic(home / "champion", "v1\n")
        flip_bit(home / "v1" / file.name)
        code, out, err = run_models(capsys, "show", "v1", "--root", str(tmp_path))
        assert (code, out) == (1, "") and err.startswith(f"{home / 'v1' / file.name} is damaged"), file.name
        for model in ("textgen@champion", "textgen@v1", str(home / "v1")):
            with pytest.raises(Damaged, match=f"{file.name} is damaged"):
                resolve(model, Storage.at(tmp_path))
        assert main(["generate", "textgen@v1", "--prompt", "the", "--root", str(tmp_path)]) == 1


# What follows publishes the corpus's own trainings.


@pytest.fixture(scope="module")
def better(publication, tmp_path_factory):
    """Return the checkpoint of a longer training than the publication's, and its metrics."""
    config = publication.config.model_copy(
        update={"training": publication.config.training.model_copy(update={"max_steps": 60})}
    )
    checkpoint = train(publication.tokens, config, tmp_path_factory.mktemp("better") / "out", ignore)
    return checkpoint, evaluate(checkpoint.folder, publication.tokens, config)


@pytest.fixture
def publish_here(publication, monkeypatch, tmp_path):
    """Return a function that publishes a checkpoint in a root of the test's own, which has the publication's v1."""
    monkeypatch.setattr(textgen.publishing.publish, "check_with_transformers", lambda folder, rows: None)
    leave_out_pictures(monkeypatch.setattr)
    shutil.copytree(publication.config.root / "models", tmp_path / "models")
    write_atomic(tmp_path / "models" / "textgen" / "champion", "v1\n")
    storage = StorageConfig(root=str(tmp_path))

    def publish_here(checkpoint, metrics, **changed) -> PublishedManifest:
        config = publication.config.model_copy(
            update={"storage": storage, "publish": publication.config.publish.model_copy(update=changed)}
        )
        return publish(
            replace(publication.candidate, checkpoint=checkpoint, metrics=metrics, config=config), Storage(storage)
        )

    return publish_here


def test_a_better_model_is_promoted_and_its_decision_is_kept(publish_here, better, tmp_path, caplog):
    caplog.set_level("INFO")
    published = publish_here(*better)
    decision = published.decision
    assert (published.promoted, decision.promoted, decision.opponent) == (True, True, "v1")
    assert decision.difference < 0 and decision.confidence >= 0.95 and decision.documents == 20
    assert decision.difference == pytest.approx(decision.challenger - decision.champion)
    assert decision.challenger == pytest.approx(better[1].splits["test"].loss_nats)
    assert all(guard.passed for guard in decision.guards) and len(decision.guards) == 9
    assert read_champion(tmp_path / "models" / "textgen") == "v2"
    assert "scored again" not in caplog.text
    assert f"textgen v2: promoted: {published.reason}" in caplog.text


def test_publishing_a_checkpoint_twice_makes_one_version(publish_here, better, tmp_path):
    first = publish_here(*better)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert publish_here(*better) == first
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_publishing_again_does_not_undo_a_rollback(publish_here, better, tmp_path):
    publish_here(*better)
    rollback(tmp_path / "models" / "textgen", Storage(StorageConfig(root=str(tmp_path))))
    publish_here(*better)
    assert read_champion(tmp_path / "models" / "textgen") == "v1"


def test_a_promotion_that_was_cut_short_is_made_good(publish_here, better, tmp_path):
    publish_here(*better)
    (tmp_path / "models" / "textgen" / "champion").write_text("v1\n")
    publish_here(*better)
    assert read_champion(tmp_path / "models" / "textgen") == "v2"


@pytest.fixture(scope="module")
def another(publication, better, tmp_path_factory):
    """Return a checkpoint about as good as `better`, and its metrics."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] *= 1.001

    checkpoint = rewrite(tmp_path_factory.mktemp("another") / "out", better[0], change)
    return checkpoint, evaluate(checkpoint.folder, publication.tokens, publication.config)


def test_in_a_damaged_champions_place_comes_the_sound_one_before_it(
    publish_here, better, another, tmp_path, flip_bit, caplog
):
    home = tmp_path / "models" / "textgen"
    publish_here(*better)
    flip_bit(home / "v2" / "README.md")
    published = publish_here(*another)
    assert (published.version, published.promoted, published.decision.opponent) == ("v3", True, "v1")
    assert "textgen: the champion, v2, is not sound: v1, the champion before it, is the champion again" in caplog.text
    assert read_history(home).until("v3") == ["v1", "v3"]


def test_a_publish_that_makes_nothing_mends_the_champion_too(publication, publish_here, better, tmp_path, flip_bit):
    home = tmp_path / "models" / "textgen"
    publish_here(*better)
    flip_bit(home / "v2" / "README.md")
    assert publish_here(publication.checkpoint, publication.metrics).version == "v1"
    assert read_champion(home) == "v1"


@pytest.mark.parametrize(("policy", "promoted"), [("gate", False), ("always", True)])
def test_where_no_champion_is_sound_the_gate_promotes_nothing(
    policy, promoted, publish_here, better, tmp_path, flip_bit
):
    flip_bit(tmp_path / "models" / "textgen" / "v1" / "README.md")
    published = publish_here(*better, policy=policy)
    assert (published.version, published.promoted) == ("v2", promoted)
    if policy == "gate":
        assert "no champion is sound" in published.reason and "models promote VERSION" in published.reason


def test_a_damaged_first_champion_is_published_and_promoted_again(publication, publish_here, tmp_path, flip_bit):
    flip_bit(tmp_path / "models" / "textgen" / "v1" / "README.md")
    published = publish_here(publication.checkpoint, publication.metrics)
    assert (published.version, published.promoted, published.decision.opponent) == ("v2", True, "unigram")
    assert read_champion(tmp_path / "models" / "textgen") == "v2"


@pytest.mark.parametrize("at", ["history.json", "champion"])
def test_a_mending_that_was_cut_short_is_made_good(at, home, local, flip_bit, monkeypatch):
    def cut_short(path: Path, data: str) -> None:
        if path.name == at:
            raise KeyboardInterrupt
        write_atomic(path, data)

    flip_bit(home / "v4" / WEIGHTS_FILE)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(textgen.publishing.registry, "write_atomic", cut_short)
        read_sound(home, local)
    published, champion = read_sound(home, local)
    assert [manifest.version for manifest in published] == ["v1", "v2", "v3"]
    assert champion.version == read_champion(home) == "v3"
    assert rollback(home, local).version == "v2"


def test_without_its_history_a_damaged_champion_gives_way_too(home, local, flip_bit):
    (home / "history.json").unlink()
    flip_bit(home / "v4" / WEIGHTS_FILE)
    assert read_sound(home, local)[1].version == read_champion(home) == "v3"


def rewrite(folder: Path, checkpoint, change) -> object:
    """Return the manifest of a copy of a checkpoint whose weights `change` has changed."""
    shutil.copytree(checkpoint.folder, folder)
    weights = load_file(folder / WEIGHTS_FILE)
    change(weights)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    sha256 = {**checkpoint.sha256, WEIGHTS_FILE: sha256_file(folder / WEIGHTS_FILE)}
    checkpoint.model_copy(update={"sha256": sha256}).write(folder)
    return type(checkpoint).read(folder)


def test_a_loss_that_is_no_number_is_refused_under_every_policy(publication, publish_here, better, tmp_path):
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][:] = 3e38  # the largest numbers that there are: logits overflow

    broken = rewrite(tmp_path / "broken", better[0], change)
    metrics = evaluate(broken.folder, publication.tokens, publication.config)
    for policy in ("gate", "always", "never"):
        with pytest.raises(Refused, match="is not published: finite"):
            publish_here(broken, metrics, policy=policy)
    assert [path.name for path in (tmp_path / "models" / "textgen").glob("v*")] == ["v1"]


def test_truncated_weights_are_not_published(publish_here, better, tmp_path):
    checkpoint, metrics = better
    shutil.copytree(checkpoint.folder, tmp_path / "cut")
    data = (checkpoint.folder / WEIGHTS_FILE).read_bytes()
    (tmp_path / "cut" / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(Damaged, match=WEIGHTS_FILE):
        publish_here(checkpoint.model_copy(update={"path": str(tmp_path / "cut")}), metrics)
    assert [path.name for path in (tmp_path / "models" / "textgen").glob("v*")] == ["v1"]


def test_a_model_that_repeats_a_token_is_not_promoted(publish_here, better, monkeypatch):
    drawn = [Sample(prompt="the", continuation="a")], [[7] * 48]
    monkeypatch.setattr(textgen.publishing.publish, "draw_samples", lambda checkpoint, raw, seed: drawn)
    published = publish_here(*better)
    assert not published.promoted and "distinct-2" in published.reason


def scores_of_v1(publication, config: Config):
    return score_champion(publication.published, replace(publication.candidate, config=config))


def test_the_champion_is_scored_again_where_the_protocol_differs(publication, make_config, caplog):
    caplog.set_level("INFO")
    kept = scores_of_v1(publication, publication.config)
    assert "scored again" not in caplog.text
    evaluation = EvaluationConfig(protocol="blocks")
    other = scores_of_v1(publication, publication.config.model_copy(update={"evaluation": evaluation}))
    assert "v1, the champion, is scored again: its figures were measured otherwise" in caplog.text
    loaded = load_model(publication.published.folder)
    for split in HELD_OUT:
        stored = read_documents(publication.metrics, split)
        assert all(torch.equal(*pair) for pair in zip(kept.splits[split], stored, strict=True))
        expected = evaluate_split(loaded, publication.raw, split, True, evaluation).documents
        assert all(torch.equal(*pair) for pair in zip(other.splits[split], expected, strict=True))


@pytest.mark.parametrize("protocol", ["sliding", "blocks", "lm-eval"])
def test_the_unigram_model_gives_each_token_its_smoothed_frequency(publication, protocol):
    config = publication.config.model_copy(update={"evaluation": EvaluationConfig(protocol=protocol)})
    metrics = evaluate(publication.checkpoint.folder, publication.tokens, config)
    challenger = score_challenger(metrics, publication.checkpoint.sha256[TOKENIZER_FILE])
    assert expected_tokens(metrics, publication.tokens) == {
        split: int(documents.tokens.sum()) for split, documents in challenger.splits.items()
    }
    unigram = score_unigram(challenger, replace(publication.candidate, metrics=metrics, config=config))
    train_ids, ids = (load_stream(publication.tokens, split).tolist() for split in ("train", "test"))
    total = len(train_ids) + publication.tokens.vocab_size
    nats = [-torch.tensor((train_ids.count(id) + 1) / total, dtype=torch.float64).log().item() for id in ids]
    end = load_manifest_tokenizer(publication.tokens).token_to_id("<|endoftext|>")
    inside = [nat for nat, id in zip(nats, ids, strict=True) if id != end]
    scored = {"sliding": nats[1:], "blocks": nats[1 : (len(nats) - 1) // 16 * 16 + 1], "lm-eval": inside}[protocol]
    assert unigram.splits["test"].nats.sum().item() == pytest.approx(sum(scored))
    assert (unigram.splits["test"].nats > 0).all()
