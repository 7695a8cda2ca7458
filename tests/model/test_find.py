"""Where a model is found by its name, and that what is found there is what was left there."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from textgen.__main__ import main
from textgen.config import TokenizerConfig
from textgen.errors import Damaged, InputError
from textgen.files import canonical_json
from textgen.model.find import resolve
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.storage import Storage
from textgen.text.tokenizer import TOKENIZER_FILE, find_tokenizer_file
from textgen.text.tokens import TokensManifest
from textgen.training.warm_start import initial_sha256


@pytest.fixture
def changed(checkpoint, tmp_path, flip_bit) -> Path:
    """Return a training folder whose weights were changed after its end."""
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "training"))
    flip_bit(folder / WEIGHTS_FILE)
    return folder


def test_a_training_whose_weights_were_changed_is_not_used(changed, make_config, capsys):
    with pytest.raises(Damaged, match=WEIGHTS_FILE):
        resolve(str(changed), Storage.at(changed.parent))
    assert main(["generate", str(changed), "--prompt", "a"]) == 1
    assert f"{changed / WEIGHTS_FILE} is damaged" in capsys.readouterr().err
    with pytest.raises(Damaged, match=WEIGHTS_FILE):
        initial_sha256(make_config(training={"init_from": str(changed)}))


def test_a_training_that_goes_on_has_no_manifest_and_is_found(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "training"))
    (folder / "manifest.json").unlink()
    assert resolve(str(folder), Storage.at(tmp_path)) == folder


def test_in_every_name_of_a_file_a_tilde_is_the_home_folder(checkpoint, tmp_path, monkeypatch, capsys):
    """No shell expands it in `tokenizer.path=~/…` or `--text=~/…`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(checkpoint.folder, tmp_path / "mine")
    (tmp_path / "text.txt").write_text("the old river winds")
    storage = Storage.at(tmp_path)
    assert resolve("~/mine", storage) == tmp_path / "mine"
    gpt2 = TokenizerConfig(kind="gpt2", path="~/mine")
    assert find_tokenizer_file(gpt2, storage) == tmp_path / "mine" / TOKENIZER_FILE
    assert main(["evaluate", "~/mine", "--text=~/text.txt", "--root=~/data"]) == 0, capsys.readouterr().err


def test_a_name_that_is_no_model_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        resolve("nothing", Storage.at(tmp_path))
    with pytest.raises(InputError, match="no such model"):
        resolve("textgen@v1", Storage.at(tmp_path))


def test_tokens_of_an_older_format_are_called_that(publication, tmp_path, capsys):
    """Version 1 of the tokens named no file of documents."""
    root = Path(shutil.copytree(publication.config.root, tmp_path / "data"))
    home = root / "processed" / publication.tokens.key
    content = json.loads((home / TokensManifest.FILE).read_bytes())
    for split in content["splits"].values():
        del split["documents_file"], split["documents_sha256"]
    del content["manifest_sha256"]
    write_manifest(home, content)
    assert main(["evaluate", "textgen@v1", "--root", str(root)]) == 1
    said = capsys.readouterr().err
    assert "older format" in said
    assert "damaged" not in said


def write_manifest(folder: Path, content: dict) -> None:
    """Write a manifest with the sha256 of itself, as an older version of this package did."""
    digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()
    (folder / TokensManifest.FILE).write_text(json.dumps({**content, "manifest_sha256": digest}))


def test_tokens_on_another_disk_are_measured_as_lm_eval_does(publication, tmp_path, capsys):
    root = Path(shutil.copytree(publication.config.root, tmp_path / "data"))
    shutil.move(root / "processed", tmp_path / "elsewhere")
    (root / "processed").symlink_to(tmp_path / "elsewhere")
    command = ["evaluate", "textgen@v1", "--root", str(root), "--protocol", "lm-eval", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == "lm-eval"
