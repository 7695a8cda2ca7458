"""`textgen serve`: what it is started with."""

import json
import socket

import pytest

from textgen.__main__ import main
from textgen.commands.serve import KEY_VARIABLE, Fixed, Registry, check_address
from textgen.errors import USER_MISTAKE, InputError
from textgen.model.device import choose_device
from textgen.storage import Storage


@pytest.mark.parametrize("key", ["clé", "a\n", " a", "\udcff"])
def test_a_key_that_no_header_can_carry_is_refused(key, tmp_path, monkeypatch, capsys):
    """No client could give it, and a byte that is not UTF-8 made each request an error of the server."""
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert main(["serve", "--root", str(tmp_path)]) == USER_MISTAKE
    assert KEY_VARIABLE in capsys.readouterr().err


@pytest.mark.parametrize("version", ["", "v", "champion", "../../other", "v" * 300, "v" + "9" * 300])
def test_a_request_names_a_version_and_no_folder(version, tmp_path):
    """A name that was longer than a file's may be was an error of the server."""
    registry = Registry("textgen", Storage.at(str(tmp_path)), choose_device("cpu"))
    with pytest.raises(InputError, match="a version is named as"):
        registry.load(f"textgen@{version}")


def test_a_model_that_stays_has_the_name_that_it_was_published_under_or_its_folders(tmp_path):
    """A folder's path was the name, up to an @ in it; and textgen@champion was answered by any version."""
    folder = tmp_path / "a@b" / "mine"
    folder.mkdir(parents=True)
    source = Fixed(folder, choose_device("cpu"))
    assert (source.names, source.current()) == (("mine",), "mine")
    (folder / "manifest.json").write_text(json.dumps({"name": "textgen", "version": "v3"}))
    source = Fixed(folder, choose_device("cpu"))
    assert (source.names, source.current()) == (("textgen",), "textgen@v3")


def test_a_port_that_is_taken_is_refused_before_a_model_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port={port}: Address already in use"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", 0)
    with pytest.raises(InputError, match=r"--host=nowhere\.invalid"):
        check_address("nowhere.invalid", 0)
