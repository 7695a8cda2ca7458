"""`pip install .`: the command `textgen`, with the shipped configurations, outside the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import textgen

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # builds a wheel
def test_the_installed_command_has_its_version_and_finds_the_shipped_configs(tmp_path):
    checkout = shutil.copytree(
        ROOT, tmp_path / "checkout", ignore=shutil.ignore_patterns(".venv", ".git", "data", "old_data", "*_cache")
    )
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "installed"]
    subprocess.run([*install, checkout], check=True)
    shutil.rmtree(checkout)
    (tmp_path / "installed" / "configs").mkdir()  # of another package

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, tmp_path / "installed" / "bin" / "textgen", *arguments],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")}, capture_output=True, text=True,
        )  # fmt: skip

    assert command("--version").stdout == f"textgen {textgen.__version__}\n"
    where = ("--tokens", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    known, unknown = command("train", "--config", "wikitext2", *where), command("train", "--config", "mine", *where)
    assert (known.returncode, known.stderr) == (2, f"--tokens {tmp_path / 'nowhere'}: there is no such folder\n")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no such file" in unknown.stderr and "wikitext2" in unknown.stderr
    assert (tmp_path / "installed" / "textgen" / "publishing" / "card.md").is_file()
    assert (tmp_path / "installed" / "textgen" / "py.typed").is_file()
