"""What a command ends with: one line that acts on no terminal, and an exit code."""

import errno
import os
import sys
from pathlib import Path

import pytest

from textgen.__main__ import main
from textgen.errors import FAILURE, INTERRUPTED, USER_MISTAKE, Failure, InputError, carry_out
from textgen.terminal import say

LONG = "x" * 300


def ending_with(error: BaseException) -> int:
    def fail() -> None:
        raise error

    return carry_out(fail)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("data.path=\x1b[31m"), USER_MISTAKE, "data.path=\\x1b[31m"),
        (Failure("no server\x07"), FAILURE, "no server\\x07"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/d/f"), FAILURE, "/d/f: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a\nb"), FAILURE, "a b: Permission denied"),
        (ConnectionError("gone"), FAILURE, "ConnectionError: gone"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), FAILURE, "Broken pipe"),  # of another pipe than stdout
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert ending_with(error) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["written at the end", "written on the way"])
def test_a_command_whose_reader_is_gone_ends_in_silence(lines, monkeypatch, capfd):
    """As after `| head`: there was a message, and another one from Python when it wrote the rest at its end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert carry_out(lambda: say("a line\n" * lines)) == 0
        say("what Python writes at its end")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", LONG, "--prompt", "a"],
        ["generate", f"{LONG}@v1", "--prompt", "a"],
        ["generate", "../../x@champion", "--prompt", "a"],
        ["generate", "a@v1", "--prompt", "a", "--root", "file:///x"],
        ["generate", "a@v1", "--prompt", "\udcff"],
        ["evaluate", f"/{LONG}"],
        ["models", "list", "--root", "s3:///x"],
        ["models", "list", "--root", "nonsense://x"],
        ["models", "list", "--root", f"/{LONG}"],
        ["models", "list", "--name", LONG],
        ["train", "--config", LONG, "--tokens", "t", "--out", "o"],
        ["train", "--config", "default", "--tokens", LONG, "--out", "o"],
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_a_name_that_no_file_can_have_is_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (FAILURE, USER_MISTAKE)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_an_interrupted_command_says_what_is_kept(capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert carry_out(interrupt) == carry_out(interrupt, interrupted="nothing is kept") == INTERRUPTED
    assert capsys.readouterr().err == "interrupted; the same command continues\ninterrupted; nothing is kept\n"


def test_a_command_with_closed_streams_works(monkeypatch):
    """As after `<&-` and `>&-` in a shell: there was a traceback, as Python has no stdin or stdout then."""
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, None)

    def ask() -> None:
        assert not sys.stdin.isatty() and not sys.stdin.read()
        say("a line")

    assert carry_out(ask) == 0
    sys.stdin.close()
    sys.stdout.close()
