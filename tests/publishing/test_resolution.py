"""Weeks of growing text: which versions a run takes for NAME@champion, and that the same text makes nothing new."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import tiny_config
from tests.publications import Publication, make
from textgen.config import Config
from textgen.errors import InputError
from textgen.files import sha256_file
from textgen.publishing.registry import promote, rollback
from textgen.publishing.resolution import START, TOKENIZER, Resolution, resolve_champions
from textgen.publishing.tokenizer_fit import (
    TokenizerFit,
    bytes_per_token,
    fit_in_words,
    measure_fit,
    measure_saving,
    origin_of,
)
from textgen.publishing.version import LINEAGE_FILE, PublishedManifest
from textgen.sections import SPLITS
from textgen.storage import Storage
from textgen.text import corpus
from textgen.text.corpus import RawManifest
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.text.tokens import load_stream, tokenize
from textgen.training.plan import train_key

OWN = "textgen@champion"


def weekly(root: Path, **sections: Any) -> Config:
    """Return the recipe of a week, on the text beside the storage in `root`."""
    values: dict[str, Any] = {
        "name": "textgen",
        "data": {"files": {split: str(root / "text" / f"{split}.txt") for split in SPLITS}, "document": "line"},
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "path": OWN},
        "training": {"init_from": OWN},
        "publish": {"policy": "always"},
        "storage": {"root": str(root / "data")},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(section, dict) else section
    top = {name: values.pop(name) for name in ("name", "seed") if name in values}
    return tiny_config(**values).model_copy(update=top)


def resolve(root: Path, **sections: Any) -> tuple[Config, RawManifest, Resolution]:
    """Return the configuration that a run would have now, its text, and what it would take for the names in it."""
    config = weekly(root, **sections)
    raw = corpus.fetch(config.data, Storage(config.storage))
    config, resolution = resolve_champions(config, raw, Storage(config.storage))
    assert resolution is not None
    return config, raw, resolution


def record(version: Path, **changes: Any) -> None:
    """Change what the lineage of a version says."""
    path = version / LINEAGE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    manifest = PublishedManifest.parse(version)
    manifest.model_copy(update={"sha256": {**manifest.sha256, path.name: sha256_file(path)}}).write(version)


@pytest.fixture(scope="module")
def weeks(publication, tmp_path_factory) -> tuple[Publication, Publication]:
    """Return what a first week made, and a second one of more text."""
    root = tmp_path_factory.mktemp("weeks")
    shutil.copytree(publication.config.root.parent / "text", root / "text")
    _, _, resolution = resolve(root)
    shutil.copytree(publication.config.root, root / "data", dirs_exist_ok=True)
    record(root / "data" / "models" / "textgen" / "v1", resolution=resolution.model_dump())
    with (root / "text" / "train.txt").open("a") as file:
        file.write("the old river and the small tower\n")
    return publication, make(weekly(root))


@pytest.fixture
def root(weeks, tmp_path) -> Path:
    """Return a copy of their root, whose champion is v2 and whose text is that of the second week."""
    return Path(shutil.copytree(weeks[1].config.root.parent, tmp_path / "root"))


def versions(root: Path, **sections: Any) -> dict[str, str | None]:
    """Return the versions that a run would take now."""
    return resolve(root, **sections)[2].versions


def keys(root: Path) -> tuple[str, str]:
    """Return the keys of the tokens and of the training that a run would make now."""
    config, raw, _ = resolve(root)
    tokens = tokenize(raw, config.tokenizer, Storage(config.storage))
    return tokens.key, train_key(tokens, config)


def both(version: str | None) -> dict[str, str | None]:
    return {TOKENIZER: version, START: version}


def test_the_first_week_starts_from_zero_with_a_tokenizer_of_its_own(publication, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    shutil.copytree(publication.config.root.parent / "text", tmp_path / "text")
    assert versions(tmp_path) == both(None)
    assert keys(tmp_path) == (publication.tokens.key, publication.checkpoint.key)
    assert f"tokenizer.path='{OWN}': there is no champion; this run makes its own" in caplog.messages
    assert f"training.init_from='{OWN}': there is no champion; starting from zero" in caplog.messages


def test_the_next_week_takes_the_champions_weights_and_tokenizer(weeks):
    first, second = weeks
    assert (second.config.tokenizer.path, second.config.training.init_from) == ("textgen@v1", "textgen@v1")
    assert second.checkpoint.initial_sha256 == first.checkpoint.weights_sha256
    files = [one.tokens.folder / TOKENIZER_FILE for one in weeks]
    assert files[0].read_bytes() == files[1].read_bytes()
    before, after = (load_stream(one.tokens, "train").tolist() for one in weeks)
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert (second.published.version, second.published.promoted) == ("v2", True)
    assert ", trained on the text of textgen@v1 (" in (second.published.folder / "README.md").read_text()


def test_the_same_text_again_takes_what_the_champions_run_took_and_makes_nothing_new(weeks, root):
    """It would have gone on from the champion that it had made itself, also after a crash past the promotion."""
    assert versions(root) == both("textgen@v1")
    assert keys(root) == (weeks[1].tokens.key, weeks[1].checkpoint.key)


def test_so_does_the_first_weeks_text_while_its_model_is_the_champion(weeks, root):
    shutil.copy(weeks[0].config.root.parent / "text" / "train.txt", root / "text")
    promote(root / "data" / "models" / "textgen", "v1", Storage.at(root / "data"))
    assert versions(root) == both(None)
    assert keys(root) == (weeks[0].tokens.key, weeks[0].checkpoint.key)


def test_after_a_rollback_the_run_that_was_rolled_back_makes_nothing_new(weeks, root):
    rollback(root / "data" / "models" / "textgen", Storage.at(root / "data"))
    assert versions(root) == both("textgen@v1")
    assert keys(root) == (weeks[1].tokens.key, weeks[1].checkpoint.key)


@pytest.mark.parametrize("change", [{"seed": 2}, {"training": {"max_steps": 30}}, {"tokenizer": {"vocab_size": 310}}])
def test_another_configuration_goes_on_from_the_champion(change, root):
    assert versions(root, **change) == both("textgen@v2")


def test_more_text_goes_on_from_the_champion(root):
    with (root / "text" / "train.txt").open("a") as file:
        file.write("one more line\n")
    assert versions(root) == both("textgen@v2")


def test_what_does_not_shape_the_weights_may_differ(root):
    assert versions(root, training={"log_every": 1}, publish={"keep_versions": 9}) == both("textgen@v1")


def test_a_model_that_is_gone_leaves_the_champion(root, caplog):
    caplog.set_level(logging.INFO)
    shutil.rmtree(root / "data" / "models" / "textgen" / "v1")
    assert versions(root) == both("textgen@v2")
    assert "textgen@v2 was made of this text, from textgen@v1, which is no longer there" in caplog.messages


def test_a_lineage_of_an_older_commit_leaves_the_champion(root):
    record(root / "data" / "models" / "textgen" / "v2", resolution=None, tokenizer=None, tokens={})
    assert versions(root) == both("textgen@v2")
    assert origin_of("textgen@v2", Storage.at(root / "data")) == ("textgen@v2", None)


def test_the_champion_of_another_name_is_its_champion_now(root):
    config, _, resolution = resolve(root, name="other", tokenizer={"kind": "word"})
    assert resolution.versions == both("textgen@v2")
    assert config.tokenizer.kind == "bpe", "the kind comes with the tokenizer"
    with pytest.raises(InputError, match=r"^tokenizer\.path: nobody@champion: there is no champion"):
        resolve(root, tokenizer={"path": "nobody@champion"})


def test_nothing_is_resolved_where_no_version_is_named(root, publication):
    config = weekly(root, tokenizer={"path": None}, training={"init_from": str(root)})
    assert resolve_champions(config, publication.raw, Storage(config.storage)) == (config, None)


def test_a_kept_tokenizer_is_measured_beside_the_text_that_it_learned_from(weeks, root):
    for split in SPLITS:
        with (root / "text" / f"{split}.txt").open("a") as file:
            file.write("".join(f"ÄÖÜ ẞØÅ ÑÇÐ ÞŁŠ {number}\n" for number in range(40)))
    config, raw, resolution = resolve(root)
    tokens = tokenize(raw, config.tokenizer, Storage(config.storage))
    fit = measure_fit(resolution, raw, tokens, config, Storage(config.storage))
    assert fit is not None and fit.saving is not None
    assert (fit.made_for, fit.bytes_per_token_then) == ("textgen@v1", bytes_per_token(weeks[0].tokens))
    assert fit.bytes_per_token == bytes_per_token(tokens)
    assert fit.saving > 0.01
    assert measure_saving(weeks[0].raw, weeks[0].tokens) == 0, "it would be the same tokenizer"


def test_a_new_tokenizer_is_advised_where_it_pays():
    figures = {"bytes_per_token": 4.0, "bytes_per_token_then": 4.1, "saving": 0.0}
    fit = TokenizerFit(key="1", raw_key="1", made_for="mine@v1", **figures)
    words = "that of mine@v1, 4.00 bytes a token, 4.10 on the text that it learned from"
    assert fit_in_words(fit) == f"{words}; a new one would need no fewer tokens"
    assert fit_in_words(fit.model_copy(update={"saving": 0.012})) == f"{words}; a new one would need 1.2% fewer tokens"
    advice = "; a new one would need 7% fewer tokens: for one run, set tokenizer.path=null training.init_from=null"
    assert fit_in_words(fit.model_copy(update={"saving": 0.07})) == words + advice
    assert fit_in_words(fit.model_copy(update={"saving": None})) == words
