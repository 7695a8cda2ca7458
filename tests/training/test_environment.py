"""What a training records of the code and the packages that it ran with."""

import subprocess
from pathlib import Path

import pytest

from textgen.training import environment
from textgen.training.environment import COMMIT_VARIABLE, read_environment

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_the_commit_is_recorded_for_a_user_who_does_not_own_the_checkout(monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "true")
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert "dubious ownership" in asked.stderr, "git does not mind here: nothing is tested"
    commit = read_environment().git_commit
    assert commit is not None
    assert len(commit.removesuffix("+changes")) == 40


def test_an_image_without_a_checkout_has_its_commit_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    for given, recorded in (("a" * 40, "a" * 40), ("", None)):
        monkeypatch.setenv(COMMIT_VARIABLE, given)
        assert read_environment().git_commit == recorded
