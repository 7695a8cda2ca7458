"""The embedded corpus: the docstrings of the running interpreter's standard library."""

import ast
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from textgen.sections import SPLITS

STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)  # and what holds statements
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Left out, as no library documentation: tests, an application, demos, bundled wheels.
NOT_DOCUMENTATION = {
    "__pycache__", "ensurepip", "idle_test", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip
GROUP_SIZE = 20  # modules are sorted by size, so that every split has long ones and short ones; of every 20 in a row,
SPLIT_OF_PLACE = {9: "validation", 10: "test"}  # one goes to validation, one to test, and the others to train


def standard_library() -> dict[str, Path]:
    """Return the source file of every module of the running interpreter's standard library, by module name."""
    stdlib, modules = Path(sysconfig.get_path("stdlib")), {}
    for folder, subfolders, files in os.walk(stdlib):
        subfolders[:] = set(subfolders) - NOT_DOCUMENTATION  # site-packages may hold fifty times as much
        for file in files:
            path = Path(folder, file)
            parts = path.relative_to(stdlib).with_suffix("").parts
            if path.suffix == ".py" and parts[0] in sys.stdlib_module_names and parts[-1] not in NOT_DOCUMENTATION:
                modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def python_docs() -> dict[str, list[str]]:
    """Return the docstrings of the standard library, a document a module, in three splits.

    A paragraph appears once in the corpus, and no paragraph of validation or test occurs within the text of train,
    white space aside: what is measured there was not seen.
    """
    modules = {name: list(_paragraphs(path)) for name, path in standard_library().items()}
    sizes = {name: sum(map(len, paragraphs)) for name, paragraphs in modules.items() if paragraphs}
    by_size = sorted(sizes, key=lambda name: (-sizes[name], name))
    documents: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    for name in sorted(by_size):
        place = by_size.index(name) % GROUP_SIZE
        documents[SPLIT_OF_PLACE.get(place, "train")].append(modules[name])
    train_text = "\n".join(_folded(p) for paragraphs in documents["train"] for p in paragraphs)
    splits: dict[str, list[str]] = {}
    seen: set[str] = set()
    for split in SPLITS:
        rows = []
        for paragraphs in documents[split]:
            kept = []
            for paragraph in paragraphs:
                folded = _folded(paragraph)
                if folded not in seen and (split == "train" or folded not in train_text):
                    seen.add(folded)
                    kept.append(paragraph)
            if kept:
                rows.append("\n\n".join(kept) + "\n\n")
        splits[split] = rows
    return splits


def _paragraphs(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a module's docstrings, in the order of the source."""
    nodes: list[ast.AST] = [ast.parse(path.read_bytes())]
    for node in nodes:  # grows: statements in statements, but not their expressions, which are most of a module
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS)]
    documented = [node for node in nodes if isinstance(node, DOCUMENTED)]
    for node in sorted(documented, key=lambda node: getattr(node, "lineno", 0)):
        for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
            if paragraph.strip():
                yield paragraph.strip("\n").rstrip()


def _folded(paragraph: str) -> str:
    return " ".join(paragraph.split())
