"""Who may import whom: flows -> tasks -> textgen, and never back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "textgen": {"tasks", "flows", "prefect", "wandb"},
    "tasks": {"flows"},
    "flows": {"wandb"},
}
HEAVY = {"datasets", "transformers", "huggingface_hub", "pyarrow", "matplotlib"}


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_from_flows_to_tasks_to_textgen(package):
    for path in (ROOT / package).glob("*.py"):
        assert not imported(path) & FORBIDDEN[package], path


def test_only_tracking_imports_wandb():
    importers = [
        path.name for package in FORBIDDEN for path in (ROOT / package).glob("*.py") if "wandb" in imported(path)
    ]
    assert importers == ["tracking.py"]


def test_the_library_imports_heavy_packages_only_inside_functions():
    for path in (ROOT / "textgen").glob("*.py"):
        assert not imported(path, top_level_only=True) & HEAVY, path


def test_the_training_command_loads_nothing_but_its_few_packages():
    code = "import sys, textgen.train; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & (HEAVY | {"prefect", "wandb"})
