"""The champion on the Hub: its own client, a Hub of our own; whole or not at all, resumed, and never made twice."""

import shutil

import huggingface_hub
import pytest

import textgen.publishing.upload
from tasks import upload as task
from tests.fake_uploads import FIRST, UploadHub
from tests.waiting import PATIENCE_SECONDS
from textgen.config import PublishConfig
from textgen.errors import Damaged, PushFailed
from textgen.publishing.upload import RECORD_FILE, upload
from textgen.publishing.version import PublishedManifest
from textgen.storage import Storage

REPO = "owner/tiny"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own calls


@pytest.fixture
def hub(monkeypatch):
    """Run a Hub, and have the client upload to it by LFS, with a token from the environment."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(textgen.publishing.upload, "ANSWER_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with UploadHub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        yield server


@pytest.fixture
def published(publication, tmp_path):
    """Return a published model in a folder of the test's own."""
    home = publication.published.folder.parent
    shutil.copytree(home, tmp_path / "data" / "models" / home.name)
    return PublishedManifest.read(tmp_path / "data" / "models" / home.name / "v1")


@pytest.fixture
def storage(publication, tmp_path):
    return Storage(publication.config.storage.model_copy(update={"root": str(tmp_path / "data")}))


def contents(published):
    return {path.name: path.read_bytes() for path in published.folder.iterdir()}


def test_a_version_is_one_commit_of_a_private_repository_with_the_files_as_they_are(hub, published, storage):
    pushed = upload(published, REPO, storage)
    assert hub.files(REPO) == {**FIRST, **contents(published)}
    assert hub.commits(REPO) == 1
    assert pushed.commit == hub.repositories[f"models/{REPO}"].main
    assert hub.private == {REPO: True}
    assert hub.tokens == {"Bearer hf_test"}


def test_the_version_last_pushed_asks_no_network(hub, published, storage):
    first = upload(published, REPO, storage)
    asked = len(hub.requests)
    assert upload(published, REPO, storage) == first
    assert len(hub.requests) == asked


def test_without_its_record_a_version_that_is_there_makes_no_second_commit(hub, published, storage):
    first = upload(published, REPO, storage)
    (published.folder.parent / RECORD_FILE).unlink()
    assert upload(published, REPO, storage) == first
    assert (hub.commits(REPO), hub.uploads()) == (1, 1)


@pytest.mark.parametrize("request_kind", ["create", "preupload", "batch", "put", "commit"])
def test_a_failure_at_any_request_shows_readers_nothing_and_the_next_push_ends_the_work(
    hub, published, storage, request_kind
):
    hub.failures = {request_kind: 503}
    with pytest.raises(PushFailed, match=REPO) as caught:
        upload(published, REPO, storage)
    assert caught.value.transient
    if f"models/{REPO}" in hub.repositories:
        assert hub.files(REPO) == FIRST
    uploaded = hub.uploads() if request_kind == "commit" else 0
    hub.failures = {}
    hub.requests.clear()
    upload(published, REPO, storage)
    assert hub.files(REPO) == {**FIRST, **contents(published)}
    assert hub.uploads() == 1 - uploaded


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_worth_another_try(hub, published, storage, status):
    hub.failures = {"create": status}
    with pytest.raises(PushFailed) as caught:
        upload(published, REPO, storage)
    assert not caught.value.transient
    assert "hf_test" not in str(caught.value)


def test_a_repository_that_somebody_else_changed_meanwhile_is_not_overwritten(hub, published, storage, monkeypatch):
    send = huggingface_hub.HfApi.preupload_lfs_files

    def change_meanwhile(*arguments, **options):
        send(*arguments, **options)
        hub.push(f"models/{REPO}", {**FIRST, "theirs.txt": b"theirs"})

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", change_meanwhile)
    with pytest.raises(PushFailed, match="412"):
        upload(published, REPO, storage)
    monkeypatch.undo()


def test_files_of_others_in_the_repository_stay(hub, published, storage):
    hub.push(f"models/{REPO}", {**FIRST, "LICENSE": b"theirs"})
    upload(published, REPO, storage)
    assert hub.files(REPO)["LICENSE"] == b"theirs"


def test_a_reader_sees_the_old_version_or_the_new_one(hub, published, storage):
    hub.push(f"models/{REPO}", {**FIRST, **{name: b"old" for name in contents(published)}})
    seen = []

    def read():
        seen.append({data == b"old" for name, data in hub.files(REPO).items() if name not in FIRST})

    hub.look = read  # as often as something can have changed
    upload(published, REPO, storage)
    read()
    *before, after = seen
    assert len(before) == sum(request.startswith(("POST", "PUT")) for request in hub.requests) >= 4
    assert before == [{True}] * len(before)
    assert after == {False}


def test_a_damaged_version_is_not_pushed(hub, published, storage, flip_bit):
    flip_bit(published.folder / "model.safetensors")
    with pytest.raises(Damaged):
        upload(published, REPO, storage)
    assert hub.requests == []


def test_the_champion_is_pushed_whichever_version_a_run_published(publication, published, monkeypatch):
    home, pushed = published.folder.parent, []
    monkeypatch.setattr(task, "upload", lambda config, published: pushed.append(published.version) or "commit")
    config = publication.config.model_copy(update={"publish": PublishConfig(hub_repo=REPO)})
    shutil.copytree(published.folder, home / "v2")
    newest = published.model_copy(update={"version": "v2", "promoted": False, "path": str(home / "v2")})
    newest.write(home / "v2")
    assert task.upload_champion(config, newest) == "commit"
    (home / "champion").write_text("v2\n")
    assert task.upload_champion(config, published) == "commit"
    assert pushed == ["v1", "v2"]


@pytest.mark.parametrize("champion", [None, "v2"])
def test_without_a_champion_that_is_there_nothing_is_pushed(champion, publication, published, monkeypatch):
    monkeypatch.setattr(task, "upload", None)
    config = publication.config.model_copy(update={"publish": PublishConfig(hub_repo=REPO)})
    file = published.folder.parent / "champion"
    file.unlink() if champion is None else file.write_text(f"{champion}\n")
    assert task.upload_champion(config, published) is None


def test_a_failed_push_is_a_warning(publication, published, monkeypatch, caplog):
    def fail(config, published):
        raise PushFailed("publish.hub_repo=owner/tiny: no answer", True)

    monkeypatch.setattr(task, "upload", fail)
    assert task.upload_champion(publication.config, published) is None
    assert caplog.text == ""
    config = publication.config.model_copy(update={"publish": PublishConfig(hub_repo=REPO)})
    assert task.upload_champion(config, published) is None
    assert "owner/tiny: no answer; the next run tries again" in caplog.text
