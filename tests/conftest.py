"""Loads the fixtures only in processes that run tests: xdist's controller would import torch for nothing."""

import gc

import pytest


def pytest_configure(config: pytest.Config) -> None:
    hands_out = config.getoption("dist", "no") != "no" and not config.getoption("collectonly")
    if hasattr(config, "workerinput") or not hands_out:
        gc.disable()  # until all is imported: it would take a sixth of that time
        config.pluginmanager.import_plugin("tests.fixtures")
