"""A remote root: what goes there and comes from there is whole and verified, or it is said why not."""

import hashlib
import json
import logging
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainings import Interruption
from textgen.config import StorageConfig, parse_config
from textgen.errors import Damaged, InputError, StorageUnavailable
from textgen.files import Manifest, build_once, canonical_json, is_plain_name, sha256_file
from textgen.storage import Storage

FILES = {"one.bin": random.Random(1).randbytes(1000), "two.bin": random.Random(2).randbytes(2000)}


class Notes(Manifest):
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256


def make(folder: Path, files: dict[str, bytes] = FILES) -> Notes:
    """Make a folder of files with a manifest."""

    def fill(temporary: Path) -> Notes:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        sha256 = {name: sha256_file(temporary / name) for name in files}
        return Notes(key=folder.name, sha256=sha256)

    return build_once(folder, Notes, fill)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != Notes.FILE}


@pytest.fixture
def remote(remote_root) -> Callable[[str], str]:
    """Return a function from a path under the remote root to its path in the file system of the remote root."""
    _, base = fsspec.url_to_fs(remote_root)
    return lambda path: f"{base}/{path}"


def flip_remote_bit(path: str) -> None:
    data = bytearray(MemoryFileSystem().cat_file(path))
    data[len(data) // 2] ^= 1
    MemoryFileSystem().pipe_file(path, bytes(data))


def test_what_one_machine_made_the_other_has(here, there, caplog):
    caplog.set_level(logging.INFO)
    made = make(here.local / "raw" / "k")
    here.push(made.folder, made)
    there.bring(there.local / "raw" / "k", Notes)
    assert Notes.read(there.local / "raw" / "k").content() == made.content()
    assert contents(there.local / "raw" / "k") == FILES
    assert "k came from" in caplog.text
    assert not [path for path in (there.local / "raw").iterdir() if path.name not in ("k", ".k.arriving.lock")]


def test_what_nobody_made_is_not_brought(here):
    here.bring(here.local / "raw" / "k", Notes)
    assert not (here.local / "raw" / "k").exists()


def test_a_folder_that_is_here_is_not_fetched(here, monkeypatch):
    made = make(here.local / "k")
    here.push(made.folder, made)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", None)
    here.bring(made.folder, Notes)


def test_a_damaged_folder_here_is_set_aside_and_comes_anew(here, flip_bit):
    made = make(here.local / "k")
    here.push(made.folder, made)
    flip_bit(made.folder / "two.bin")
    here.bring(made.folder, Notes)
    assert contents(made.folder) == FILES
    assert (here.local / "k.damaged-1").is_dir()


def test_an_object_that_comes_damaged_once_is_fetched_again(here, there, monkeypatch, caplog):
    made = make(here.local / "k")
    here.push(made.folder, made)
    get_file, fetched = MemoryFileSystem.get_file, []

    def damage_the_first(self, source: str, target: str, **options) -> None:
        get_file(self, source, target, **options)
        fetched.append(source)
        if len(fetched) == 1:
            Path(target).write_bytes(b"something else")

    monkeypatch.setattr(MemoryFileSystem, "get_file", damage_the_first)
    there.bring(there.local / "k", Notes)
    assert contents(there.local / "k") == FILES
    assert "one.bin is damaged" in caplog.text
    assert "set aside" not in caplog.text


@pytest.mark.parametrize("damage", ["flip", "flip the manifest", "remove"])
def test_a_damaged_object_is_set_aside_there_and_made_anew(damage, here, there, remote, caplog):
    made = make(here.local / "k")
    here.push(made.folder, made)
    match damage:
        case "flip":
            flip_remote_bit(remote("k/two.bin"))
        case "flip the manifest":
            flip_remote_bit(remote("k/manifest.json"))
        case "remove":
            MemoryFileSystem().rm_file(remote("k/two.bin"))
    there.bring(there.local / "k", Notes)
    assert not (there.local / "k").exists()
    assert MemoryFileSystem().find(remote("k")) == []
    assert MemoryFileSystem().exists(remote("k.damaged-1/manifest.json"))
    assert f"{remote('k')}: set aside there as {remote('k.damaged-1')}" in caplog.text
    anew = make(there.local / "k")
    there.push(anew.folder, anew)
    Notes.read(made.folder)
    here.bring(here.local / "k", Notes)
    assert contents(here.local / "k") == FILES


def test_a_second_damaged_folder_does_not_replace_the_first_one(here, there, remote):
    for number in (1, 2):
        made = make(here.local / "k")
        here.push(made.folder, made)
        flip_remote_bit(remote("k/one.bin"))
        there.bring(there.local / "k", Notes)
        assert MemoryFileSystem().exists(remote(f"k.damaged-{number}/one.bin"))


@pytest.mark.parametrize("sent", [0, 1])
def test_a_push_that_is_interrupted_leaves_nothing_to_find_and_is_taken_up(sent, here, there, monkeypatch):
    made = make(here.local / "raw" / "k")
    put_file, calls = MemoryFileSystem.put_file, []

    def fail_at(self, *arguments, **options) -> None:
        calls.append(arguments)
        if len(calls) > sent:
            raise Interruption
        put_file(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", fail_at)
        with pytest.raises(StorageUnavailable, match="Interruption"):
            here.push(made.folder, made)
    home = there.local / "raw"
    there.bring(home / "k", Notes)
    assert not (home / "k").exists()
    assert there.folders(home, "*") == []
    here.push(made.folder, made)
    there.bring(home / "k", Notes)
    assert contents(home / "k") == FILES
    assert there.folders(home, "*") == [home / "k"]


def test_a_folder_that_differs_there_is_gone_before_the_new_files_come(here, there, monkeypatch):
    home, put_file, seen = here.local / "raw", MemoryFileSystem.put_file, []
    theirs = make(there.local / "raw" / "k", {**FILES, "two.bin": b"another ending"})
    there.push(theirs.folder, theirs)
    assert here.folders(home, "*") == [home / "k"]

    def look_first(self, *arguments, **options) -> None:
        seen.append(here.folders(home, "*"))
        put_file(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", look_first)
    ours = make(home / "k")
    here.push(ours.folder, ours)
    assert seen == [[], []]
    assert here.folders(home, "*") == [home / "k"]


def test_a_push_of_what_is_there_sends_nothing_and_of_what_is_lost_there_sends_that(here, there, remote, monkeypatch):
    made = make(here.local / "k")
    here.push(made.folder, made)
    MemoryFileSystem().rm_file(remote("k/one.bin"))
    put_file, sent = MemoryFileSystem.put_file, []

    def note(self, source: str, *arguments, **options) -> None:
        sent.append(Path(source).name)
        put_file(self, source, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", note)
    here.push(made.folder, made)
    here.push(made.folder, made)
    assert sent == ["one.bin"]


def test_a_training_folder_that_is_there_is_completed_and_keeps_what_else_it_has(here, there):
    made = make(here.local / "k")
    here.push(made.folder, made)
    folder = there.local / "k"
    (folder / "states").mkdir(parents=True)
    (folder / "one.bin").write_bytes(b"not finished")
    there.bring(folder, Notes)
    assert Notes.read(folder).content() == made.content()
    assert (folder / "states").is_dir()
    assert {path.name for path in folder.iterdir()} == {*FILES, "states", Notes.FILE}
    assert not (there.local / ".k.arrived").exists()


def test_of_two_claims_one_is_granted(here, there):
    assert here.claim(here.local / "v1" / "claim")
    assert not there.claim(there.local / "v1" / "claim")
    assert there.claim(there.local / "v2" / "claim")


def test_a_small_file_is_as_it_was_pushed_last(here, there):
    for text in ("v1", "v2"):
        (here.local / "models").mkdir(parents=True, exist_ok=True)
        (here.local / "models" / "champion").write_text(text)
        here.push_file(here.local / "models" / "champion")
        there.bring_file(there.local / "models" / "champion")
        assert (there.local / "models" / "champion").read_text() == text
    there.bring_file(there.local / "models" / "nothing")
    here.push_file(here.local / "models" / "nothing")
    assert not (there.local / "models" / "nothing").exists()


def test_folders_are_found_by_their_manifests_and_deleted_whole(here, there, remote):
    for name in ("v2", "v1", "w1"):
        made = make(here.local / "models" / name)
        here.push(made.folder, made)
    MemoryFileSystem().pipe_file(remote("models/v3/one.bin"), b"on its way")
    home = there.local / "models"
    assert there.folders(home, "v*") == [home / "v1", home / "v2"]
    assert there.folders(home, "v*", whole=False) == [home / "v1", home / "v2", home / "v3"]
    there.delete(home / "v3")
    there.delete(home / "v1")
    assert there.folders(home, "v*") == [home / "v2"]
    assert there.folders(home, "v*", whole=False) == [home / "v2"]


@pytest.mark.parametrize("method", ["cat_file", "get_file"])
def test_a_root_that_does_not_answer_is_one_line(method, here, there, monkeypatch):
    made = make(here.local / "k")
    here.push(made.folder, made)

    def refuse(*arguments, **options) -> None:
        raise PermissionError("Access\nDenied")

    monkeypatch.setattr(MemoryFileSystem, method, refuse)
    with pytest.raises(StorageUnavailable) as error:
        there.bring(there.local / "k", Notes)
    assert str(error.value) == f"storage.root={there.root}: PermissionError: Access Denied"
    assert not error.value.transient
    assert [path.name for path in there.local.iterdir()] == [".k.arriving.lock"]


def test_an_address_where_nobody_listens_is_one_line(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/bucket"
        storage = Storage(StorageConfig(root=url, cache=str(tmp_path)))
        with pytest.raises(StorageUnavailable, match=f"^storage.root={url}: ClientConnectorError: [^\n]*$") as error:
            storage.bring(storage.local / "k", Notes)
    assert error.value.transient


def test_without_credentials_nothing_is_asked_again(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    storage = Storage(StorageConfig(root="s3://bucket/x", cache=str(tmp_path)))
    with pytest.raises(StorageUnavailable, match=r"NoCredentialsError|PermissionError") as error:
        storage.bring(storage.local / "k", Notes)
    assert not error.value.transient


@pytest.mark.parametrize(
    ("root", "words"), [("nope://bucket/x", "Protocol not known: nope"), ("dropbox://bucket/x", "dropbox")]
)
def test_a_url_of_no_known_kind_is_the_users_mistake(root, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        Storage(StorageConfig(root=root, cache=str(tmp_path)))
    assert f"storage.root='{root}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_url_of_a_folder_is_the_users_mistake():
    with pytest.raises(InputError, match=r"^storage\.root='file:///data': a folder is named by its path, as '/data'$"):
        parse_config({"storage": {"root": "file:///data"}})


def test_a_folder_as_root_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(fsspec, "url_to_fs", None)
    storage = Storage(StorageConfig(root=str(tmp_path)))
    made = make(tmp_path / "k")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    storage.push(made.folder, made)
    storage.bring(tmp_path / "k", Notes)
    storage.bring(tmp_path / "other", Notes)
    storage.push_file(tmp_path / "k" / "one.bin")
    storage.bring_file(tmp_path / "k" / "one.bin")
    storage.delete(made.folder)
    assert storage.claim(tmp_path / "claim") and storage.claim(tmp_path / "claim")
    assert storage.folders(tmp_path, "*") == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_roots_do_not_share_a_cache(tmp_path):
    ours, theirs = (
        StorageConfig(root=f"s3://{bucket}/textgen", cache=str(tmp_path)).local for bucket in ("ours", "theirs")
    )
    assert ours != theirs
    assert ours.parent == theirs.parent == tmp_path


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert StorageConfig(root="~/data").local == tmp_path / "data"
    assert StorageConfig(root="s3://bucket/x", cache="~/cache").local.parent == tmp_path / "cache"
    assert StorageConfig(root="s3://bucket/~x").root == "s3://bucket/~x"


@pytest.mark.parametrize("name", ["", "..", "../../x", "/tmp", "a/b", "a\\b", "a\0b", "x" * 300])
def test_no_name_leads_out_of_its_stage(here, name):
    for stage in (here.processed, here.training, here.models, here.drift, *([here.raw] if name else [])):
        with pytest.raises(InputError, match="no name of a folder"):
            stage(name)


@pytest.mark.parametrize("path", ["", "/etc", "raw/../../x", "raw//k", "raw\\k", "..", None, 3, ["raw"], "a\0b"])
def test_no_path_that_somebody_else_wrote_leads_out_of_the_root(here, path):
    with pytest.raises(Damaged, match="no path under"):
        here.inside(path)
    assert here.inside("raw/.hidden/k") == here.local / "raw" / ".hidden" / "k"


def signed(content: dict[str, Any]) -> bytes:
    """Return the manifest that somebody who knows the format would write."""
    digest = hashlib.sha256(canonical_json(content).encode(errors="surrogatepass")).hexdigest()
    return json.dumps({**content, "manifest_sha256": digest}).encode()


NAMES = st.text() | st.sampled_from(["../x", "..", "/tmp/x", "a\\b", "one.bin", "a/b", ".x", "manifest.json"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
CONTENTS = st.fixed_dictionaries({"key": NAMES | JSON, "sha256": st.dictionaries(NAMES, JSON) | JSON})


@settings(
    max_examples=100, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(st.binary() | CONTENTS.map(signed) | st.dictionaries(NAMES, JSON).map(signed), st.binary())
def test_whatever_a_remote_manifest_says_nothing_is_written_outside_its_folder(tmp_path_factory, manifest, data):
    home = tmp_path_factory.mktemp("any")
    there = Storage(StorageConfig(root=f"memory:/{home}/remote", cache=str(home / "cache")))
    place = there.remote.place(there.local.resolve() / "raw" / "k")
    MemoryFileSystem().pipe_file(f"{place}/{Notes.FILE}", manifest)
    for name in ("one.bin", "x", "../x", "../../x"):
        MemoryFileSystem().pipe_file(f"{place}/{name}", data)
    there.bring(there.local / "raw" / "k", Notes)
    written = {path for path in home.rglob("*") if path.is_file()}
    locks = {path for path in written if path.name.endswith(".lock")}
    assert all(path.parent == (there.local / "raw" / "k") for path in written - locks)
    if (there.local / "raw" / "k").exists():
        assert is_plain_name(Notes.read(there.local / "raw" / "k").key)


def test_a_manifest_of_somebody_else_writes_no_file_outside_its_folder(there):
    place = there.remote.place(there.local.resolve() / "raw" / "k")
    name = "../../models/textgen/champion"
    content = {"key": "k", "sha256": {name: hashlib.sha256(b"v9").hexdigest()}}
    MemoryFileSystem().pipe_file(f"{place}/{Notes.FILE}", signed(content))
    MemoryFileSystem().pipe_file(there.remote.place(there.local.resolve() / "models/textgen/champion"), b"v9")
    there.bring(there.local / "raw" / "k", Notes)
    assert not (there.local / "models").exists()
    assert not (there.local / "raw" / "k").exists()


@pytest.mark.parametrize("root", ["s3://", "s3:///x", "gs:///x", "://x", "s3a:///"])
def test_a_url_whose_bucket_is_missing_is_refused(root):
    with pytest.raises(InputError, match="names no bucket"):
        Storage.at(root)


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_root_that_cannot_be_written_is_named_before_the_work(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"storage\.root="):
        Storage.at(tmp_path / name).check_writable()
    Storage.at(tmp_path / "new" / "folder").check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_root_that_not_even_the_superuser_can_write_is_named():
    with pytest.raises(InputError, match=r"storage\.root='/proc/data': /proc cannot be written"):
        Storage.at("/proc/data").check_writable()
