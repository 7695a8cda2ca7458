"""Loads the fixtures only in processes that run tests: xdist's controller would import torch for nothing."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    hands_out = config.getoption("dist", "no") != "no" and not config.getoption("collectonly")
    if hasattr(config, "workerinput") or not hands_out:
        config.pluginmanager.import_plugin("tests.fixtures")
