"""What comes from the Hugging Face Hub, and what is said and left when nothing does: real clients, a Hub of our own."""

import errno
import io
import socket
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import State, StateType
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks.fetch import fetch
from tasks.stage import is_transient
from tests.fake_hub import Failure, FakeHub
from tests.hub_clients import ask
from textgen.errors import Damaged, InputError, SourceUnavailable
from textgen.hub import ask_hub, pin, pinned
from textgen.sections import SPLITS
from textgen.text.corpus import RawManifest, read_rows
from textgen.text.sources import CORPUS_WAYS_ON
from textgen.text.tokenizer import GPT2_REPO, GPT2_WAYS_ON, load_tokenizer

DATASET, MODEL = "owner/tiny", f"models/{GPT2_REPO}"
ROWS = {"train": ["", " = Heading = \n", "one two three\n"], "validation": ["naïve 塔\n"], "test": ["a b\n", "c\n"]}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WAYS_ON = ("data.path=", "data.dataset_name=python-docs")


@dataclass(frozen=True)
class Broken:
    """How a dataset on the Hub is broken, and whether the fetch that fails of it is worth another try."""

    failure: Failure
    transient: bool
    failing: str = ""  # the files that fail; "": every request, the one for the commit first


BROKEN = {
    "busy": Broken(503, True),
    "busy-with-the-readme": Broken(503, True, "README.md"),
    "busy-with-the-text": Broken(503, True, ".parquet"),
    "asked-too-often": Broken(429, True),
    "asked-too-often-for-the-text": Broken(429, True, ".parquet"),
    "cut": Broken("no answer", True),
    "cut-at-the-text": Broken("no answer", True, ".parquet"),
    "cut-within-the-text": Broken("half a file", True, ".parquet"),
    "not-the-hub": Broken("a web page", True),
    "absent": Broken(404, False),
    "absent-readme-and-all": Broken(404, False, "README.md"),
    "absent-text": Broken(404, False, ".parquet"),
    "not-for-you": Broken(401, False),
    "text-not-for-you": Broken(401, False, ".parquet"),
}


def dataset(rows: dict[str, list[str]]) -> dict[str, bytes]:
    """Return the files of a dataset with one configuration, laid out as those of wikitext are."""
    files, listed = {}, ["---", "configs:", "- config_name: small", "  data_files:"]
    for split in SPLITS:
        path, file = f"small/{split}-00000-of-00001.parquet", io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": rows[split]}), file)
        files[path] = file.getvalue()
        listed += [f"  - split: {split}", f"    path: {path}"]
    return {"README.md": "\n".join([*listed, "---", ""]).encode(), **files}


def tokenizer_json() -> bytes:
    words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2, "<|endoftext|>": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return words.to_str().encode()


def files_under(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix != ".lock")


def tried_again(error: Exception, started: datetime | None = None) -> bool:
    """Return whether Prefect runs the fetch task again after it raised `error`, if it was started then or just now."""
    run = TaskRun(task_key="fetch", dynamic_key="0", start_time=started or datetime.now(UTC))
    return is_transient(fetch, run, State(type=StateType.FAILED, data=error))


@dataclass(frozen=True)
class Run:
    """What a process that fetched got, and how often it asked the Hub for what."""

    got: dict[str, dict[str, Any]]
    requests: Counter[str]

    def manifest(self, name: str) -> RawManifest:
        return RawManifest.model_validate(self.got[name]["manifest"])


@dataclass(frozen=True)
class Story:
    """Three processes, one after the other; before the second, the dataset and GPT-2's repository got new commits."""

    commits: tuple[str, str]
    gpt2_commit: str
    root: Path
    first: Run
    again: Run  # with the same storage
    elsewhere: Run  # with an empty one


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("hub")
    with FakeHub() as hub:

        def run(root: Path) -> Run:
            asked_before = len(hub.requests)
            data = {"dataset_name": DATASET, "dataset_config": "small", "root": str(root)}
            asked = {"data": data, "gpt2": {"gpt2": True, "root": str(root)}, "old": {**data, "revision": commit}}
            return Run(ask(hub.url, folder, asked), Counter(hub.requests[asked_before:]))

        commit = hub.push(f"datasets/{DATASET}", dataset(ROWS))
        gpt2_commit = hub.push(MODEL, {"tokenizer.json": tokenizer_json(), "model.safetensors": b"not wanted"})
        first = run(folder / "data")
        newer = hub.push(f"datasets/{DATASET}", dataset({**ROWS, "test": ["newer\n"]}))
        hub.push(MODEL, {"tokenizer.json": b"{}"})
        again = run(folder / "data")
        elsewhere = run(folder / "elsewhere")
    return Story((commit, newer), gpt2_commit, folder / "data", first, again, elsewhere)


def test_a_dataset_is_frozen_as_it_was_at_its_commit(story):
    manifest = story.first.manifest("data")
    assert manifest.revision == story.commits[0]
    assert manifest.source == {
        "kind": "hub", "dataset_name": DATASET, "dataset_config": "small", "revision": story.commits[0],
    }  # fmt: skip
    for split, rows in ROWS.items():
        frozen = manifest.splits[split]
        assert list(read_rows(manifest, split)) == rows
        assert (frozen.rows, frozen.words) == (len(rows), sum(len(row.split()) for row in rows))
        assert frozen.text_bytes == sum(len(row.encode()) for row in rows)
    assert files_under(manifest.folder.parent) == sorted(
        [manifest.key, *(f"{manifest.key}/{file}" for file in ("manifest.json", *manifest.sha256_by_file())),
         "revisions.json"]
    )  # fmt: skip


def test_each_file_of_a_dataset_is_downloaded_once(story):
    downloads = {path: times for path, times in story.first.requests.items() if path.startswith("GET /datasets/")}
    files = [f"GET /datasets/{DATASET}/resolve/{story.commits[0]}/{file}" for file in dataset(ROWS)]
    assert downloads == dict.fromkeys(files, 1)


def test_a_second_run_asks_the_hub_nothing(story):
    assert story.first.requests.total() > 0
    assert story.again.requests.total() == 0
    assert story.again.manifest("data") == story.first.manifest("data")


def test_a_branch_that_moves_does_not_move_a_pinned_corpus(story):
    assert story.again.manifest("data").revision == story.commits[0]
    assert story.elsewhere.manifest("data").revision == story.commits[1]
    assert list(read_rows(story.elsewhere.manifest("data"), "test")) == ["newer\n"]


def test_an_older_commit_can_be_asked_for(story):
    assert story.elsewhere.manifest("old").revision == story.commits[0]
    assert list(read_rows(story.elsewhere.manifest("old"), "test")) == ROWS["test"]


def test_gpt2s_tokenizer_is_frozen_and_pinned(story):
    file = Path(story.first.got["gpt2"]["file"])
    assert file.read_bytes() == tokenizer_json()
    assert load_tokenizer(file).encode("two one").ids == [1, 0]
    home = story.root / "raw" / "gpt2"
    assert file == home / story.gpt2_commit / "tokenizer.json"
    assert files_under(home) == sorted(
        [story.gpt2_commit, f"{story.gpt2_commit}/manifest.json", f"{story.gpt2_commit}/tokenizer.json",
         "revisions.json"]
    )  # fmt: skip
    assert story.again.got["gpt2"]["file"] == str(file)
    assert Path(story.elsewhere.got["gpt2"]["file"]).read_bytes() == b"{}"


def test_of_gpt2s_repository_only_the_tokenizer_is_downloaded(story):
    assert [path for path in story.first.requests if path.startswith(f"GET /{GPT2_REPO}")] == [
        f"GET /{GPT2_REPO}/resolve/{story.gpt2_commit}/tokenizer.json"
    ]


@dataclass(frozen=True)
class Failed:
    """What came of fetching from a Hub that fails, and where it should have left nothing."""

    got: dict[str, dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Failed:
    folder = tmp_path_factory.mktemp("failing")
    with FakeHub() as hub:
        asked: dict[str, dict[str, Any]] = {}
        for name, broken in BROKEN.items():
            hub.push(f"datasets/owner/{name}", dataset(ROWS))
            hub.fail(f"datasets/owner/{name}", broken.failure, broken.failing)
            asked[name] = {"dataset_name": f"owner/{name}", "dataset_config": "small"}
        hub.push("datasets/owner/empty", {"LICENSE": b"none"})
        asked["empty"] = {"dataset_name": "owner/empty"}
        hub.push("datasets/owner/whole", dataset(ROWS))
        asked["another revision"] = {"dataset_name": "owner/whole", "revision": "v2"}
        asked["another commit"] = {"dataset_name": "owner/whole", "revision": COMMIT}
        asked["another configuration"] = {"dataset_name": "owner/whole", "dataset_config": "large"}
        hub.push(MODEL, {"tokenizer.json": tokenizer_json()})
        hub.fail(MODEL, 503, "tokenizer.json")
        asked["gpt2"] = {"gpt2": True}
        for name, settings in asked.items():
            settings["root"] = str(folder / name)
        return Failed(ask(hub.url, folder, asked), folder)


@pytest.mark.parametrize("name", BROKEN)
def test_a_failed_download_names_the_dataset_and_two_ways_on(failed, name):
    got = failed.got[name]
    assert got["refused"] == "SourceUnavailable"
    assert got["message"].startswith(f"owner/{name} could not be had from the Hugging Face Hub (")
    assert got["message"].endswith(f"Two ways on: {CORPUS_WAYS_ON}")
    assert all(way in got["message"] for way in WAYS_ON)
    assert "\n" not in got["message"]


@pytest.mark.parametrize("name", [name for name, broken in BROKEN.items() if broken.failure in (401, 429, 503)])
def test_a_failed_download_says_what_the_hub_answered(failed, name):
    assert str(BROKEN[name].failure) in failed.got[name]["message"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_task_tries_a_failed_download_again_if_it_can_pass(failed, name):
    got = failed.got[name]
    assert got["transient"] is BROKEN[name].transient
    assert tried_again(SourceUnavailable(got["message"], got["transient"])) is BROKEN[name].transient


@pytest.mark.parametrize("name", BROKEN)
def test_a_failed_download_leaves_nothing_behind(failed, name):
    assert set(files_under(failed.folder / name)) <= {"raw", f"raw/owner--{name}"}


def test_a_dataset_without_data_files_is_not_asked_for_again(failed):
    assert failed.got["empty"]["refused"] == "SourceUnavailable"
    assert failed.got["empty"]["transient"] is False


@pytest.mark.parametrize("what", ["revision", "commit"])
def test_a_revision_that_is_not_there_is_not_asked_for_again(failed, what):
    assert failed.got[f"another {what}"]["refused"] == "SourceUnavailable"
    assert failed.got[f"another {what}"]["transient"] is False


def test_a_configuration_that_is_not_there_is_the_users_mistake(failed):
    got = failed.got["another configuration"]
    assert got["refused"] == "InputError"
    assert "owner/whole" in got["message"] and "large" in got["message"] and "small" in got["message"]


def test_gpt2s_tokenizer_that_cannot_be_had_names_two_ways_on_and_leaves_nothing(failed):
    got = failed.got["gpt2"]
    assert (got["refused"], got["transient"]) == ("SourceUnavailable", True)
    assert got["message"].startswith(GPT2_REPO) and got["message"].endswith(GPT2_WAYS_ON)
    assert "503" in got["message"]
    assert files_under(failed.folder / "gpt2") == ["raw", "raw/gpt2"]


def test_a_hub_that_cannot_be_reached_may_be_reached_later(tmp_path):
    asked = {
        "branch": {"dataset_name": DATASET, "root": str(tmp_path / "branch")},
        "commit": {"dataset_name": DATASET, "revision": COMMIT, "root": str(tmp_path / "commit")},
    }
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        answers = ask(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path, asked)
    for name, got in answers.items():
        assert (got["refused"], got["transient"]) == ("SourceUnavailable", True)
        assert DATASET in got["message"] and all(way in got["message"] for way in WAYS_ON)
        assert set(files_under(tmp_path / name)) <= {"raw", "raw/owner--tiny"}


def test_offline_the_hub_is_not_asked_and_the_refusal_is_quick_and_final(tmp_path):
    asked = {
        "branch": {"dataset_name": DATASET, "root": str(tmp_path / "branch")},
        "commit": {"dataset_name": DATASET, "revision": COMMIT, "root": str(tmp_path / "commit")},
        "gpt2": {"gpt2": True, "root": str(tmp_path / "gpt2")},
    }
    with FakeHub() as hub:
        hub.push(f"datasets/{DATASET}", dataset(ROWS))
        hub.push(MODEL, {"tokenizer.json": tokenizer_json()})
        for name, got in ask(hub.url, tmp_path, asked, HF_HUB_OFFLINE="1").items():
            assert (got["refused"], got["transient"]) == ("SourceUnavailable", False)
            assert "offline" in got["message"].lower()
            assert got["waits"] == []
            assert set(files_under(tmp_path / name)) <= {"raw", "raw/owner--tiny", "raw/gpt2"}
        assert hub.requests == []


def test_a_full_disk_is_not_blamed_on_the_hub():
    def fill_the_disk() -> None:
        try:
            raise ConnectionError("the Hub had no README.md, which is no failure")
        except ConnectionError:
            raise OSError(errno.ENOSPC, "No space left on device")  # noqa: B904  as `datasets` raises within a handler

    with pytest.raises(OSError, match="No space left"):
        ask_hub(DATASET, CORPUS_WAYS_ON, fill_the_disk)


@pytest.mark.parametrize(
    "error", [InputError("there is no such folder"), Damaged("train.parquet is damaged"), ConnectionError("refused")]
)
def test_a_task_does_not_try_again_what_did_not_come_from_the_hub(error):
    assert not tried_again(error)


def test_the_tasks_that_ask_the_hub_or_the_storage_try_again():
    from tasks.evaluate import evaluate
    from tasks.fetch import fetch
    from tasks.publish import publish
    from tasks.stage import NETWORK_RETRY_SECONDS, is_transient
    from tasks.tokenize import tokenize
    from tasks.train import can_resume, train

    for task in (fetch, tokenize, publish):
        assert (task.retries, task.retry_delay_seconds) == (len(NETWORK_RETRY_SECONDS), NETWORK_RETRY_SECONDS)
        assert task.retry_condition_fn is is_transient
    assert train.retry_condition_fn is can_resume
    assert evaluate.retries == 0


def test_a_task_does_not_try_for_longer_than_a_user_waits(monkeypatch):
    import tasks.stage

    error, now = SourceUnavailable("busy", transient=True), datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(tasks.stage, "datetime", SimpleNamespace(now=lambda zone: now))
    patience = timedelta(seconds=tasks.stage.NETWORK_PATIENCE_SECONDS)
    assert tried_again(error, now - patience + timedelta(seconds=0.1))
    assert not tried_again(error, now - patience)


def test_a_damaged_pin_is_set_aside_and_named(tmp_path, caplog):
    pin(tmp_path, None, "c" * 40)
    assert pinned(tmp_path, None) == "c" * 40
    (tmp_path / "revisions.json").write_text('{"": "cc')
    assert pinned(tmp_path, None) is None
    assert "revisions.json is damaged" in caplog.text
    assert (tmp_path / "revisions.json.damaged-1").exists()


@pytest.mark.parametrize("content", ['{"": "../../../x"}', '{"": 3}', "[]", "[" * 100_000], ids=lambda text: text[:9])
def test_a_pin_that_is_no_commit_is_not_believed(content, tmp_path, caplog):
    (tmp_path / "revisions.json").write_text(content)
    assert pinned(tmp_path, None) is None
    assert "revisions.json is damaged" in caplog.text
