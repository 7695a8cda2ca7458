"""Prefect's settings in the environment: what it cannot work with is one line, before a server starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.prefect_settings import check_address, check_home, check_settings
from textgen.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_written_is_named(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"PREFECT_HOME=.*cannot be written"):
        check_home(tmp_path / name, has_server=False)


def test_a_folder_that_can_be_written_is_made(tmp_path):
    check_home(tmp_path / "a" / "b", has_server=False)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_with_a_server_elsewhere_the_folder_need_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    check_home(tmp_path / "file" / "below", has_server=True)
    with pytest.raises(InputError, match="PREFECT_HOME"):
        check_home(tmp_path / ("x" * 300), has_server=True)


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://[", "http://h:x/api", "http://h:0", "ftp://h", "://h"])
def test_what_is_no_address_of_a_server_is_named(url):
    with pytest.raises(InputError, match=r"PREFECT_API_URL=.* as http://h"):
        check_address("PREFECT_API_URL", url, "http://h")
    check_address("PREFECT_API_URL", "https://h:4200/api", "http://h")


@pytest.mark.parametrize(
    ("module", "setting"),
    [
        ("flows.train_flow", "PREFECT_HOME"),
        ("flows.train_flow", "PREFECT_LOGGING_LEVEL"),
        ("flows.train_flow", "HF_ENDPOINT"),
        ("flows.setup", "PREFECT_HOME"),
    ],
)
def test_a_setting_that_prefect_cannot_work_with_is_one_line_and_exit_code_2(module, setting, tmp_path):
    (tmp_path / "file").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path / "home")
    environment[setting] = str(tmp_path / "file")
    run = subprocess.run([sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert len(run.stderr.splitlines()) == 1


def test_an_empty_setting_is_one_that_is_not_set(tmp_path, monkeypatch):
    for name, value in {"PREFECT_API_URL": "", "HF_ENDPOINT": "", "PREFECT_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    check_settings()
    assert "PREFECT_HOME" in os.environ
    assert "PREFECT_API_URL" not in os.environ
    assert "HF_ENDPOINT" not in os.environ
