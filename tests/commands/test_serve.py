"""`textgen serve`: what it is started with."""

import pytest

from textgen.__main__ import main
from textgen.commands.serve import KEY_VARIABLE, Registry
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
