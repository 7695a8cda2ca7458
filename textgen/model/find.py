"""Where a model is, by its name: a folder, NAME@champion or NAME@v3."""

from pathlib import Path

from pydantic import ConfigDict

from textgen.config import VERSION, Config
from textgen.errors import Damaged, InputError
from textgen.files import Manifest, expand_home
from textgen.storage import Storage
from textgen.terminal import brief

CHAMPION_FILE = "champion"
LINEAGE_FILE = "lineage.json"
NO_CHAMPION = "none"  # in that file, after the champion was withdrawn and there was none before it
LONGEST_VERSION = 100  # bytes


class ModelManifest(Manifest):
    """What the manifest of a training and that of a published version have in common."""

    model_config = ConfigDict(extra="ignore")

    NAMES = ("key", "tokens_key")

    tokens_key: str
    sha256: dict[str, str]

    def sha256_by_file(self) -> dict[str, str]:
        return self.sha256


def read_champion(home: Path) -> str | None:
    """Return the version in use of the models in `home`, None where there is none.

    Raises:
        Damaged: the file names no version.
    """
    file = home / CHAMPION_FILE
    try:
        with file.open("rb") as stored:
            version = stored.read(LONGEST_VERSION).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    if version == NO_CHAMPION:
        return None
    if not VERSION.fullmatch(version):
        mends = f"`textgen models promote VERSION --name {file.parent.name}`, with the --root of the runs, mends it"
        raise Damaged(f"{file} is damaged: {brief(version)} is no version; {mends}")
    return version


def bring_champion(home: Path, storage: Storage) -> str | None:
    """Return the version in use of the models in `home`, as the remote root says; None where there is none.

    Raises:
        Damaged: the file names no version.
        StorageUnavailable: the remote root did not answer.
    """
    storage.bring_file(home / CHAMPION_FILE)
    return read_champion(home)


def numbers(home: Path) -> list[int]:
    """Return the numbers of the versions that are there, in order."""
    return sorted(int(match[1]) for path in home.glob("v*") if (match := VERSION.fullmatch(path.name)))


def number_of(version: str) -> int:
    """Return a version's number, 0 for what is no version."""
    match = VERSION.fullmatch(version)
    return int(match[1]) if match else 0


def find_version(home: Path, version: str | None) -> Path:
    """Return the folder of a version. `version` is None where the models have no champion.

    Raises:
        InputError: there is no such version.
    """
    there = ", ".join(f"v{number}" for number in numbers(home)) or "no version"
    if version is None:
        raise InputError(f"{home.name}@champion: there is no champion; {home} has {there}")
    if not VERSION.fullmatch(version) or not (home / version).is_dir():
        raise InputError(f"{home.name}@{version}: no such model; {home} has {there}")
    return home / version


def find_named(key: str, name: str | None, config: Config, storage: Storage) -> Path | None:
    """Return the folder of the model that a key of the configuration names, None where it names none.

    None too where it names the model's own champion and there is none.

    Raises:
        InputError: there is no such model.
        Damaged: a file of it is not what its manifest says.
    """
    if name is None:
        return None
    names_our_own = name == f"{config.name}@champion" and not Path(name).is_dir()
    if names_our_own and bring_champion(storage.models(config.name), storage) is None:
        return None
    try:
        return resolve(name, storage)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def find_start(config: Config, storage: Storage) -> Path | None:
    """Return the folder of the model that `training.init_from` names, None where the training starts from zero.

    Raises:
        InputError: there is no such model.
        Damaged: a file of it is not what its manifest says.
    """
    return find_named("training.init_from", config.training.init_from, config, storage)


def bring_version(name: str, version: str, storage: Storage) -> Path:
    """Return the folder of a version, or of the one that `champion` names, here also from a remote root.

    Raises:
        InputError: there is no such version.
        StorageUnavailable: the remote root did not answer.
        Damaged: a file that was brought, or the champion's, is not what was written.
    """
    home = storage.models(name)
    wanted = bring_champion(home, storage) if version == "champion" else version
    if wanted is not None and VERSION.fullmatch(wanted):
        storage.bring(home / wanted, ModelManifest)
    return find_version(home, wanted)


def resolve(name: str, storage: Storage) -> Path:
    """Return the folder of MODEL: a published or a training folder, `NAME@champion` or `NAME@v3`.

    Raises:
        InputError: there is no such model.
        StorageUnavailable: the remote root did not answer.
        Damaged: a file differs from its manifest. A training has a manifest only when it is finished.
    """
    folder = expand_home(name)
    if not folder.is_dir():
        base, at, version = name.rpartition("@")
        if not at:
            raise InputError(f"{name!r}: no such folder; a published model is NAME@champion or NAME@v3")
        folder = bring_version(base, version, storage)
    if (folder / ModelManifest.FILE).exists():
        ModelManifest.read(folder)
    return folder
