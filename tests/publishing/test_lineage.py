"""lineage.json: each hash in it is that of a file, and each key that of a record."""

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from textgen.files import Manifest, canonical_json, sha256_file
from textgen.publishing.card import environment_in_words
from textgen.publishing.lineage import lineage_of
from textgen.publishing.version import LINEAGE_FILE, Decision
from textgen.sections import SPLITS
from textgen.training import environment
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.environment import Environment
from textgen.training.folder import Origin

STAGES = ("raw", "tokens", "checkpoint", "evaluation")
HEX = re.compile(r"[0-9a-f]{16,64}")


@pytest.fixture(scope="module")
def lineage(publication):
    return json.loads((publication.published.folder / LINEAGE_FILE).read_text())


def hashes(value: object, path: str = "") -> dict[str, str]:
    """Return everything in a JSON value that looks like a hash, by where it is."""
    if isinstance(value, dict):
        return {at: text for key, inner in value.items() for at, text in hashes(inner, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {at: text for key, inner in enumerate(value) for at, text in hashes(inner, f"{path}/{key}").items()}
    return {path: value} if isinstance(value, str) and HEX.fullmatch(value) else {}


def test_each_hash_is_that_of_a_file_or_of_a_record(publication, lineage):
    root, left = publication.config.root, hashes(lineage)
    for stage in STAGES:
        folder = root / lineage[stage]["folder"]
        stored = json.loads((folder / Manifest.FILE).read_text())
        assert left.pop(f"/{stage}/key") == stored["key"]
        for name in lineage[stage]["sha256"]:
            assert left.pop(f"/{stage}/sha256/{name}") == sha256_file(folder / name)
    assert {name.partition(".")[0] for name in lineage["raw"]["sha256"]} == set(SPLITS)
    for split in SPLITS:  # the text files that were frozen
        (sha256,) = lineage["raw"]["source"]["files"][split]
        assert left.pop(f"/raw/source/files/{split}/0") == sha256
        assert sha256 == sha256_file(publication.config.root.parent / "text" / f"{split}.txt")
    commit = left.pop("/git_commit", None)
    if commit is not None:
        subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], check=True)
    assert left == {}


def test_the_weights_in_the_lineage_are_those_that_are_published(publication, lineage):
    weights = publication.published.folder / "model.safetensors"
    assert lineage["checkpoint"]["sha256"][weights.name] == sha256_file(weights)


def test_the_lineage_names_all_texts_that_the_model_came_from(publication, lineage, tmp_path):
    assert (lineage["earlier_texts"], lineage["names_all_texts"]) == ([], True)
    started = publication.checkpoint.model_copy(update={"path": "elsewhere", "initial_sha256": "0"})  # by older code
    later = lineage_of(replace(publication.candidate, checkpoint=started), publication.published.decision, None)
    assert (later["earlier_texts"], later["names_all_texts"]) == ([], False)
    folder = Path(shutil.copytree(publication.checkpoint.folder, tmp_path / "other"))
    Origin.parse(folder).model_copy(update={"texts": [publication.raw.key, "a", "b"]}).write(folder)
    checkpoint = publication.checkpoint.model_copy(update={"path": str(folder)})
    later = lineage_of(replace(publication.candidate, checkpoint=checkpoint), publication.published.decision, None)
    assert (later["earlier_texts"], later["names_all_texts"]) == (["a", "b"], True)


def test_the_lineage_names_the_run_the_decision_the_configuration_and_the_packages(publication, lineage):
    assert lineage["flow_run"] == "run-1"
    assert lineage["decision"]["promoted"] is True
    assert lineage["decision"]["reason"] == publication.published.reason
    assert lineage["config"]["seed"] == publication.config.seed
    assert lineage["packages"]["torch"]


def test_code_and_packages_are_those_of_the_training_whenever_it_is_published(publication, monkeypatch):
    def describe(checkpoint: CheckpointManifest) -> dict:
        candidate = replace(publication.candidate, checkpoint=checkpoint)
        return lineage_of(candidate, Decision(promoted=True, reason="publish.policy=always"), None)

    before = describe(publication.checkpoint)
    assert before["git_commit"] == publication.checkpoint.environment.git_commit
    then = Environment(git_commit="a" * 40, python="3.11.0", packages={"torch": "2.0.0"})
    after = describe(publication.checkpoint.model_copy(update={"environment": then}))
    assert {name: after[name] for name in then.model_dump()} == then.model_dump()
    monkeypatch.setattr(environment, "_git_commit", lambda: "b" * 40)
    assert describe(publication.checkpoint) == before


def test_a_training_that_recorded_no_environment_is_read_and_published_without_one(publication, tmp_path):
    content = publication.checkpoint.content()
    del content["environment"]
    digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()
    (tmp_path / Manifest.FILE).write_text(json.dumps({**content, "manifest_sha256": digest}))
    old = CheckpointManifest.parse(tmp_path)
    candidate = replace(publication.candidate, checkpoint=old)
    lineage = lineage_of(candidate, publication.published.decision, None)
    assert (lineage["git_commit"], lineage["python"], lineage["packages"]) == (None, None, {})
    assert environment_in_words(lineage) == "What the training ran with was not recorded."


def test_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert list(environment.read_environment().packages) == ["torch"]
