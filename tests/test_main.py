"""The arguments of `textgen`."""

import pytest

from textgen import __main__
from textgen.__main__ import main
from textgen.commands import data, train


@pytest.mark.parametrize("command", [data, train])
@pytest.mark.parametrize(
    "arguments", [["a=1", "--json", "b=2", "c=3"], ["--json", "a=1", "b=2", "c=3"], ["a=1", "b=2", "c=3", "--json"],
                  ["a=1", "--config", "f", "b=2", "--json", "c=3"]],
)  # fmt: skip
def test_options_may_stand_between_overrides(monkeypatch, command, arguments):
    taken = []
    monkeypatch.setattr(command, "_run", taken.append)
    needed = ["--config", "f", "--tokens", "t", "--out", "o"] if command is train else []
    assert main([command.__name__.split(".")[-1], *needed, *arguments]) == 0
    assert taken[0].overrides == ["a=1", "b=2", "c=3"]
    assert taken[0].json


@pytest.mark.parametrize(
    "arguments", [["data", "a=1", "--jsn", "b=2"], ["data", "a=1", "--json", "b=2", "-x"], ["models", "list", "a=1"],
                  ["gguf", "a", "b", "c"]],
)  # fmt: skip
def test_an_argument_that_is_not_known_is_refused(monkeypatch, capsys, arguments):
    monkeypatch.setattr(__main__, "carry_out", None)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "unrecognized arguments: " in capsys.readouterr().err


def test_a_root_for_a_command_with_a_configuration_is_a_setting(capsys):
    """Other commands take `--root`, and the hints of a run have it."""
    with pytest.raises(SystemExit, match="2"):
        main(["clean", "--root", "elsewhere"])
    assert "for another root write storage.root=ROOT" in capsys.readouterr().err
