"""The command on a real terminal: one bar a stage and whole lines, a summary to read. Screenshots: data/screenshots."""

import html
import os
import shlex
import subprocess
import sys
from itertools import groupby

import pytest

from tests.e2e.browser import SCREENSHOTS, open_page
from tests.e2e.runs import ROOT, TINY
from tests.screen import COLUMNS, Cell, lines_on_screen, open_terminal, read_terminal, text_on_screen

PAGE = f"""<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #1b1d22; color: #d8dae0; font: 14px/1.35 "DejaVu Sans Mono", monospace; }}
pre {{ margin: 0; padding: 16px; width: {COLUMNS}ch; white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; }}
b {{ color: #fff; }}
</style><pre>"""


def on_terminal(home: dict[str, str], *command: str) -> str:
    """Run a command on a terminal and return all that it wrote there."""
    with open_terminal() as (screen, program):
        process = subprocess.Popen(command, cwd=ROOT, env=home, stdin=program, stdout=program, stderr=program)
        os.close(program)
        written = read_terminal(screen)
    assert process.wait() == 0, written
    return written


def screenshot(lines: list[list[Cell]], name: str) -> None:
    """Keep a picture of what stands on a terminal."""
    parts = []
    for line in lines:
        for bold, cells in groupby(line, key=lambda cell: cell[1]):
            text = html.escape("".join(character for character, _ in cells))
            parts.append(f"<b>{text}</b>" if bold else text)
        parts.append("\n")
    with open_page() as page:
        page.set_viewport_size({"width": 900, "height": 400})
        page.set_content(PAGE + "".join(parts))
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"terminal-{name}.png", full_page=True)


@pytest.mark.slow  # starts two servers
def test_a_run_on_a_terminal_is_one_bar_a_stage_and_ends_in_a_command_that_works(home, corpus, tmp_path):
    home = {**home, "TERM": "xterm", "WANDB_MODE": "offline"}
    settings = [corpus, f"storage.root={tmp_path / 'data'}", *TINY, "tracking.mode=auto", "training.max_steps=40"]
    command = [sys.executable, "-m", "flows.train_flow", *settings]
    first = on_terminal(home, *command)
    lines = text_on_screen(first)
    assert first.count("\r") > first.count("\r\n") and "train: " in first, "there is a bar"
    assert not [line for line in lines if "%|" in line], "no bar is left"
    assert not [line for line in lines if "wandb" in line.lower() or "Prefect collects" in line]
    screenshot(lines_on_screen(first), "first-run")
    again = on_terminal(home, *command)
    assert "Traceback" not in first + again
    assert "Nothing to do: " in next(line for line in text_on_screen(again) if line.startswith(("Nothing", "tiny")))
    screenshot(lines_on_screen(again), "nothing-to-do")
    (following,) = [line.removeprefix("Next:") for line in lines if line.startswith("Next:")]
    written = on_terminal(home, "bash", "-c", f"{following} --max-tokens 5")
    assert written.startswith(shlex.split(following)[-1])


def test_a_command_ends_in_silence_when_its_reader_is_gone():
    command = f"{shlex.quote(sys.executable)} -m textgen config | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
