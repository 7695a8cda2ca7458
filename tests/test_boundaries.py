"""Who may import whom: flows -> tasks -> textgen, and within textgen from a room to those below it."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "textgen": {"tasks", "flows", "tests", "prefect", "wandb"},
    "tasks": {"flows", "tests"},
    "flows": {"tests", "wandb"},
}
# The rooms of textgen from the top; those of one line may not import each other. Below all of them is the ground floor.
ROOMS = [
    {"commands"}, {"comparison", "retention"}, {"publishing"}, {"training"},
    {"evaluation", "inference"}, {"model"}, {"text"},
]  # fmt: skip
HEAVY = {"datasets", "transformers", "huggingface_hub", "pyarrow", "matplotlib"}


def imported(path: Path, when_loaded: bool = False) -> set[str]:
    """Return the packages that a file imports: anywhere, or as soon as it is loaded itself."""
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name.split(".")[0] for alias in aliases}
            case ast.ImportFrom(module=module, level=level):
                assert level == 0, f"{path}, line {node.lineno}: imports are absolute"
                names.add(module.split(".")[0])
            case ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"):
                raise AssertionError(f"{path}, line {node.lineno}: an import that cannot be read")
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if when_loaded:
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() if when_loaded:
                continue
        nodes += ast.iter_child_nodes(node)
    return names


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def loaded_by(module: str) -> set[str]:
    """Return the packages that a process has loaded after it imported a module."""
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_from_flows_to_tasks_to_textgen(package):
    assert files(package)
    for path in files(package):
        assert not imported(path) & FORBIDDEN[package], path


def test_only_tracking_imports_wandb_and_only_when_it_records():
    importers = [path for package in FORBIDDEN for path in files(package) if "wandb" in imported(path)]
    assert {path.name for path in importers} == {"tracking.py", "wandb_run.py"}
    assert not any("wandb" in imported(path, when_loaded=True) for path in importers)


def test_the_library_imports_heavy_packages_only_inside_functions():
    for path in files("textgen"):
        assert not imported(path, when_loaded=True) & HEAVY, path


def test_the_training_command_loads_nothing_but_its_few_packages():
    assert not loaded_by("textgen.training.train") & (HEAVY | {"prefect", "wandb"})


def test_a_flow_and_the_hook_of_its_cancellation_load_no_torch():
    """A command's temporary server starts meanwhile, and a cancellation is to pass on at once."""
    assert not loaded_by("flows.train_flow, tasks.cancel") & (HEAVY | {"torch", "wandb"})


def test_what_lists_runs_loads_no_torch():
    assert not loaded_by("textgen.commands.runs, textgen.publishing.runs") & (HEAVY | {"torch"})


def test_the_configuration_is_shown_without_torch():
    code = "import sys; from textgen.__main__ import main; main(['config']); print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in run.stderr.split()} & (HEAVY | {"torch", "numpy"})


def test_a_room_imports_only_those_below_it():
    for above, rooms in enumerate(ROOMS):
        for room in rooms:
            forbidden = set().union(*ROOMS[: above + 1]) - {room}
            for path in files(f"textgen/{room}"):
                assert not imported_rooms(path) & forbidden, path
    for path in (ROOT / "textgen").glob("*.py"):
        assert path.name == "__main__.py" or not imported_rooms(path), path


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms of textgen that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "textgen" and len(part) > 1} & set().union(*ROOMS)


@pytest.mark.parametrize(
    "package", ["flows", "tasks", "textgen", *(f"textgen/{room}" for room in sorted(set().union(*ROOMS)))]
)
def test_a_package_says_what_each_of_its_files_is(package):
    named = set(
        re.findall(r"`(\w+)`", ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or "")
    )
    there = {path.stem for path in (ROOT / package).glob("*.py") if not path.stem.startswith("__")}
    if package == "textgen/commands":  # a file a command
        there = {"arguments"}
    rooms = {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}
    assert named & (there | rooms) == there | rooms


def test_every_room_has_its_place_and_is_packaged():
    there = {path.parent.name for path in (ROOT / "textgen").glob("*/__init__.py")}
    assert there == set().union(*ROOMS)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(packages) == {"textgen", "textgen.configs", *(f"textgen.{room}" for room in there)}
