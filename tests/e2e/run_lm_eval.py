"""Run lm-eval's `wikitext` task: [[kind of model, its arguments, file of {"page": ...} lines], ...] in, results out."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

TASK = Path(lm_eval.tasks.__file__).parent / "wikitext" / "wikitext.yaml"


def run(kind: str, arguments: dict[str, Any], pages: str, manager: TaskManager) -> dict[str, Any]:
    """Return the figures, and for each document (log-likelihood, words), of the task as it is but for its data."""
    files = {split: pages for split in ("train", "validation", "test")}
    local = {
        "include": str(TASK),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(local, file)  # JSON is YAML
        file.flush()
        found = simple_evaluate(
            kind,
            model_args=arguments,
            tasks=[file.name],
            task_manager=manager,
            device="cpu",
            batch_size=32 if kind == "hf" else 1,
            bootstrap_iters=0,
        )
    documents = sorted(found["samples"]["wikitext"], key=lambda sample: sample["doc_id"])
    figures = {name.removesuffix(",none"): value for name, value in found["results"]["wikitext"].items()}
    return {**figures, "documents": [sample["word_perplexity"] for sample in documents]}


if __name__ == "__main__":
    manager = TaskManager(include_defaults=False)
    print(json.dumps([run(*asked, manager) for asked in json.load(sys.stdin)]))
