"""Which versions a run takes for the models that its configuration names, as NAME@champion: for all of its stages.

A run that promotes its model moves the champion, so the same command would start from the new one and train again.
Therefore a run with the text and the configuration that made the champion takes the versions that were taken then.
"""

import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from textgen.config import RECORDED, VERSION_NAME, Config, TokenizerConfig, parse_config
from textgen.errors import Damaged, InputError
from textgen.files import read_json
from textgen.model.find import bring_version, find_named
from textgen.publishing.registry import find_champion
from textgen.publishing.version import LINEAGE_FILE, PublishedManifest, read_lineage
from textgen.storage import Storage
from textgen.text.corpus import RawManifest

log = logging.getLogger(__name__)

TOKENIZER, START = "tokenizer.path", "training.init_from"
WITHOUT_CHAMPION = {TOKENIZER: "this run makes its own", START: "starting from zero"}


class Resolution(BaseModel):
    """What a configuration asked for, and the versions that a run took for the models that it names."""

    model_config = ConfigDict(frozen=True)

    asked: dict[str, Any]  # the configuration as it was given
    versions: dict[str, str | None]  # NAME@v3 by the key that names a model; null: none, before the first champion


def resolve_champions(config: Config, raw: RawManifest, storage: Storage) -> tuple[Config, Resolution | None]:
    """Return the configuration with versions in place of NAME@champion, and what was resolved; None where nothing was.

    With the tokenizer of a version comes its kind.

    Raises:
        InputError: there is no such model.
        Damaged: a file of it is not what its manifest says.
    """
    given = {TOKENIZER: config.tokenizer.path, START: config.training.init_from}
    names = {key: name for key, name in given.items() if name is not None and is_version_name(name)}
    if not names:
        return config, None
    own = f"{config.name}@champion"
    before = versions_of_champion(config, raw, storage) if own in names.values() else {}
    versions = {
        key: before[key] if name == own and key in before else find_version_name(key, name, config, storage)
        for key, name in names.items()
    }
    asked = config.model_dump(mode="json", include=RECORDED)
    return with_versions(config, versions, storage), Resolution(asked=asked, versions=versions)


def is_version_name(name: str) -> bool:
    """Return whether a name is NAME@champion or NAME@v3, and not a folder of that name."""
    return VERSION_NAME.fullmatch(name) is not None and not Path(name).is_dir()


def find_version_name(key: str, name: str, config: Config, storage: Storage) -> str | None:
    """Return the version that a name is now, as NAME@v3; None where there is no champion, which is logged."""
    if (folder := find_named(key, name, config, storage)) is None:
        log.info("%s=%r: there is no champion; %s", key, name, WITHOUT_CHAMPION[key])
        return None
    return f"{folder.parent.name}@{folder.name}"


def versions_of_champion(config: Config, raw: RawManifest, storage: Storage) -> dict[str, str | None]:
    """Return what the run that made the champion took, if its text and configuration were these; else nothing."""
    if (folder := find_champion(config, storage)) is None:
        return {}
    try:
        champion = PublishedManifest.parse(folder)
        resolution = Resolution.model_validate(read_json(folder / LINEAGE_FILE).get("resolution"))
        asked = parse_config(resolution.asked)
    except (Damaged, ValidationError, InputError):  # as of an older commit, which recorded none
        return {}
    is_same_text = champion.raw_sha256 == {split: text.sha256 for split, text in raw.splits.items()}
    if not is_same_text or settings_of(asked) != settings_of(config):
        return {}
    name = f"{config.name}@{folder.name}"
    for version in filter(None, resolution.versions.values()):
        try:
            folder_of(version, storage)
        except InputError:
            log.info("%s was made of this text, from %s, which is no longer there", name, version)
            return {}
    log.info("%s was made of this text by this configuration: this run takes what was taken then", name)
    return resolution.versions


def settings_of(config: Config) -> list[Any]:
    """Return what the weights depend on, as it is given: a name of a model is a name."""
    data, training = config.data, config.training
    return [
        config.seed, data.seq_length, data.end_of_document, config.tokenizer, config.model.key_part(),
        training.key_part(), training.sequences_per_step, training.init_from,
    ]  # fmt: skip


def with_versions(config: Config, versions: dict[str, str | None], storage: Storage) -> Config:
    """Return the configuration with versions where it names models, and the kind of the tokenizer that is taken."""
    tokenizer, training = config.tokenizer, config.training
    if TOKENIZER in versions:
        path = versions[TOKENIZER]
        tokenizer = tokenizer.model_copy(update={"path": path})
        if path is not None:
            kind = read_lineage(folder_of(path, storage), "config", "tokenizer")["kind"]
            tokenizer = TokenizerConfig.model_validate({**tokenizer.model_dump(), "kind": kind})
    if START in versions:
        training = training.model_copy(update={"init_from": versions[START]})
    return config.model_copy(update={"tokenizer": tokenizer, "training": training})


def folder_of(version: str, storage: Storage) -> Path:
    """Return the folder of NAME@v3.

    Raises:
        InputError: there is no such version.
    """
    name, _, number = version.partition("@")
    return bring_version(name, number, storage)
