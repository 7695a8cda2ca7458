"""`textgen config`: every key, for a terminal, a pipe and a program."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import asdict
from pathlib import Path

import pytest

from textgen.__main__ import main
from textgen.config import find_config
from textgen.settings import list_settings
from textgen.terminal import BOLD, PLAIN

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"[* ] (?P<key>[a-z]+\.\w+)(?P<gap> +)(?P<value>\S.*?)  +(?P<origin>\S.*)")


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["config", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def on_a_terminal(columns: int, *arguments: str) -> str:
    """Return what the command writes on a terminal of so many columns."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "textgen", "config", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=writer) as process:
        os.close(writer)
        written = b""
        try:
            while part := os.read(reader, 65_536):
                written += part
        except OSError:  # EIO, the end on Linux
            pass
        os.close(reader)
    assert process.returncode == 0
    return written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 100, 300])
def test_the_text_fits_the_terminal_and_is_aligned(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = show(capsys, "training.max_steps=500", "data.files=[notes/one.txt, notes/two.txt, notes/three.txt]")
    assert max(map(len, lines)) <= min(columns, 120)
    rows = [found for line in lines if (found := ROW.fullmatch(line))]
    assert len(rows) == sum(bool(setting.section) for setting in list_settings(None, []))
    assert len({found.start("value") for found in rows}) == len({found.start("origin") for found in rows}) == 1
    origins = {found["key"]: found["origin"] for found in rows}
    assert origins["training.max_steps"] == origins["data.files"] == "command line"
    assert (origins["training.optimizer"], origins["training.adam_beta2"]) == ("default.yaml", "default")


def test_a_narrow_terminal_gets_everything(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    text = " ".join(" ".join(show(capsys)).split())
    assert all(setting.key in text and setting.meaning in text for setting in list_settings(None, []))


def test_what_differs_from_the_default_is_marked_and_counted(capsys):
    lines = show(capsys, "training.max_steps=500", "training.device=auto")
    marked = {line.split()[1]: line for line in lines if line.startswith("* ")}
    settings = list_settings(find_config("default"), ["training.max_steps=500"])
    assert list(marked) == [setting.key for setting in settings if setting.differs]
    assert "  500 (default 1000)  " in marked["training.max_steps"]
    assert lines[-1] == f"{len(settings)} keys; {len(marked)} differ from their defaults, marked *"


def test_what_differs_is_bold_on_a_terminal_and_the_text_acts_in_no_other_way():
    text = on_a_terminal(90, "training.max_steps=500", "data.text_column=\x1b[2J")
    bold = re.findall(f"^{re.escape(BOLD)}(.*){re.escape(PLAIN)}$", text, re.MULTILINE)
    assert any(line.startswith("* training.max_steps") for line in bold)
    assert "\x1b" not in text.replace(BOLD, "").replace(PLAIN, "")
    assert max(len(line.removeprefix(BOLD).removesuffix(PLAIN)) for line in text.splitlines()) <= 90
    assert [line for line in text.splitlines() if line.startswith("* ")] == []


def test_json_is_one_document_with_every_key(capsys):
    assert main(["config", "--config", "wikitext2", "seed=3", "--json"]) == 0
    expected = list_settings(find_config("wikitext2"), ["seed=3"])
    assert json.loads(capsys.readouterr().out) == [asdict(setting) for setting in expected]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["training.batchsize=3"], "the nearest is training.batch_size"),
        (["training.batch_size=0"], "training.batch_size=0: input should be greater than or equal to 1"),
        (["--config", "nowhere"], "--config nowhere: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, words):
    assert main(["config", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
