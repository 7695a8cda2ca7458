"""What a training ran with: the commit of the code, Python, and the packages that figures depend on."""

import functools
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

COMMIT_VARIABLE = "TEXTGEN_COMMIT"  # what an image, which has no checkout, was built from
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy")


class Environment(BaseModel):
    """What a training ran with, at its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    git_commit: str | None  # with `+changes` where the checkout differs; None where neither it nor an image says
    python: str
    packages: dict[str, str]


def read_environment() -> Environment:
    """Return what this process runs with."""
    return Environment(git_commit=_git_commit(), python=sys.version.split()[0], packages=_packages())


def _packages() -> dict[str, str]:
    versions = {package: _version(package) for package in PACKAGES}
    return {package: found for package, found in versions.items() if found is not None}


@functools.cache
def _version(package: str) -> str | None:
    """Return the version of a package, None where it is not installed: a training needs some of them only."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the checkout that this file is tracked in (an installed copy may lie in another one).

    An image has none: its commit is in the environment, if it was given when it was built.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes").strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT_VARIABLE) or None


def _git(*arguments: str) -> str:
    """Return what git prints; that another user owns the checkout is no matter, as it is only read."""
    command = ["git", "-c", "safe.directory=*", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
