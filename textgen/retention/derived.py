"""What was made of some texts: tokens, trainings, versions, and whatever was started from their weights."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from textgen.config import VERSION
from textgen.errors import Damaged
from textgen.files import REMOVED, sha256_file
from textgen.model.find import number_of
from textgen.publishing.version import LINEAGE_FILE
from textgen.retention.origins import (
    Begun,
    Lineage,
    Made,
    Stage,
    Training,
    Trunks,
    folders_in,
    lineage_of_version,
    not_made_anew,
    parsed,
    trainings,
    undamaged,
)
from textgen.storage import Storage
from textgen.text.tokenizer import TOKENIZER_FILE

RECORDS = ("cache", "results")  # Prefect's, of finished stages
ANY_WEIGHTS = ".safetensors"


class Model(NamedTuple):
    """A folder with a model that was published, and what it was made of."""

    kind: str  # "version", or "copy": a copy of one under another name
    name: str  # NAME@v3
    folder: Path
    copies: list[Path]  # the folder, and what was set aside of it
    lineage: Lineage | Damaged  # Damaged: none of them says

    def stages(self) -> list[Stage]:
        """Return what it says of its text, its tokens and its training, nothing where it does not."""
        if isinstance(self.lineage, Damaged):
            return []
        return [self.lineage.raw, self.lineage.tokens, self.lineage.checkpoint]

    def weights(self) -> set[str]:
        """Return the sha256 of its weights, as it says or else as they are."""
        if isinstance(self.lineage, Damaged):
            return {sha256 for copy in self.copies for sha256 in _weights_in(copy)}
        return {sha256 for file, sha256 in self.lineage.checkpoint.sha256.items() if file.endswith(ANY_WEIGHTS)}


class Derived:
    """What was made of some texts: found from the texts on, so that each comes after what it was made of."""

    def __init__(self, storage: Storage, raws: Iterable[str]) -> None:
        """Look for it.

        Args:
            storage: Where to look.
            raws: The folders of the texts, under the root.
        """
        self.storage = storage
        self.raws = {*map(undamaged, raws)}
        self.raw_keys = {raw.split("/")[-1] for raw in self.raws}
        self.weights = set[str]()  # sha256 of every file of weights that was made of the texts
        self.tokenizers, self.other_tokenizers = set[str](), set[str]()
        self.remarks, self.running = list[str](), list[str]()
        self.unclear = list[str]()  # what may have been made of the texts: it does not say
        models = [*self.models()]
        self.named = set[str]()  # folders of tokens and trainings, by the lineages of versions of the texts
        for model in models:
            if isinstance(model.lineage, Lineage) and model.lineage.raw.folder in self.raws:
                self.named |= {model.lineage.tokens.folder, model.lineage.checkpoint.folder}
        self.tokens_keys = set[str]()
        self.tokens = self.find_tokens()
        self.kinds = dict[Path, str]()  # of trainings and versions, each after what it was made of
        self.names = list[str]()  # of the versions
        known, count = [*trainings(storage), *self.set_aside(), *self.elsewhere()], -1
        while len(self.kinds) > count:  # models may have started from one another
            count = len(self.kinds)
            self.add_trainings(known)
            self.add_models(models)
        for model in models:
            if isinstance(model.lineage, Damaged) and model.folder not in self.kinds:
                self.unclear.append(str(model.lineage))
        for training in known if self.weights else ():
            if training.origin is None and training.folder not in self.kinds and _holds_weights(training.folder):
                name, state = storage.name(training.folder), "damaged" if training.is_damaged else "unfinished"
                self.unclear.append(f"{name} is {state}, and does not say from what it started")

    def find_tokens(self) -> list[Path]:
        """Return the folders of the tokens of the texts, and note their tokenizers and those of other tokens."""
        same_text = list[dict[str, str]]()
        for raw in self.raws:
            with suppress(Damaged):
                text = self.storage.read_manifest(self.storage.inside(raw), Made)
                same_text.append(text.texts_sha256())
                self.raw_keys.add(text.key)
        home, found, learned = self.storage.processed(), list[Path](), list[tuple[Path, str]]()
        there = {*folders_in(home), *home.glob(f".*{REMOVED}"), *self.storage.folders(home, "*")}
        originals = {copy: folder for folder, copy in not_made_anew(home)}
        for folder in sorted(there | originals.keys()):
            try:
                made = self.storage.read_manifest(folder, Made)
            except Damaged as damage:
                original = originals.get(folder, folder)
                if self.storage.name(original) in self.named:
                    self.tokens_keys.add(original.name)
                    found.append(original)
                else:
                    self.unclear.append(str(damage))
                continue
            of_them = made.raw_key in self.raw_keys or made.raw_sha256 in same_text
            tokenizer = made.tokenizer_sha256.get(TOKENIZER_FILE, "")
            if of_them:
                self.tokenizers.add(tokenizer)
                self.tokens_keys.add(made.key)
                hidden = folder.name.startswith(".")
                found.append(self.storage.processed(made.key) if hidden else originals.get(folder, folder))
            else:
                self.other_tokenizers.add(tokenizer)
                if made.tokenizer.get("kind") != "gpt2":
                    learned.append((folder, tokenizer))
        for folder, tokenizer in learned:
            if tokenizer in self.tokenizers:
                self.remarks.append(f"{self.storage.name(folder)} stays, with a tokenizer that learned from this text")
        return sorted(set(found))

    def models(self) -> Iterator[Model]:
        """Yield the versions of this machine, of each name the oldest first, and copies of them under other names.

        A damaged copy says what was made of what where the version itself does not, or is not there.
        """
        for home in _folders(self.storage.models()):
            copies = defaultdict[str, list[Path]](list)
            for path in _folders(home):
                copies[undamaged(path.name)].append(path)
            for version in sorted(copies, key=lambda version: (number_of(version), version)):
                is_version = VERSION.fullmatch(version) and undamaged(home.name) == home.name
                if is_version or any(map(_holds_a_model, copies[version])):
                    kind, name = "version" if is_version else "copy", f"{home.name}@{version}"
                    yield Model(kind, name, home / version, copies[version], _first_lineage(copies[version]))

    def set_aside(self) -> Iterator[Training]:
        """Yield the trainings that are there only as damaged copies."""
        for folder, copy in not_made_anew(self.storage.training()):
            made = parsed(Made, copy)
            origin = made or parsed(Begun, copy)
            yield Training(folder, folder.name, made, origin, is_damaged=made is None, is_running=False)

    def elsewhere(self) -> Iterator[Training]:
        """Yield the finished trainings that are only in the remote root."""
        for folder in self.storage.folders(self.storage.training(), "*"):
            if not folder.exists():
                with suppress(Damaged):
                    made = self.storage.read_manifest(folder, Made)
                    yield Training(folder, made.key, made, made, is_damaged=False, is_running=False)

    @property
    def trainings(self) -> list[Path]:
        return [folder for folder, kind in self.kinds.items() if kind in ("training", "unfinished")]

    @property
    def versions(self) -> list[Path]:
        return [folder for folder, kind in self.kinds.items() if kind == "version"]

    def add_trainings(self, known: Sequence[Training]) -> None:
        """Add the trainings on the tokens, or from the weights, that were found so far."""
        for training in known:
            if training.folder in self.kinds or (kind := self.kind_of(training)) is None:
                continue
            self.kinds[training.folder] = kind
            self.weights |= {*_weights(training.made)}
            if training.made is None:
                self.weights |= {*_weights_in(training.folder)}
            for state in [*training.states, *training.kept_states]:
                with suppress(Damaged):
                    self.weights |= {*_weights(Made.parse(state))}
            if training.is_running:
                self.running.append(self.storage.name(training.folder))

    def kind_of(self, training: Training) -> str | None:
        """Return what a training is, None where it was not made of the texts, or does not say."""
        kind = "unfinished" if training.made is None and not training.is_damaged else "training"
        if self.storage.name(training.folder) in self.named:
            return kind
        if (origin := training.origin) is not None:
            return kind if origin.tokens_key in self.tokens_keys or origin.initial_sha256 in self.weights else None
        tokenizer = training.tokenizer_sha256
        if tokenizer is None:  # it has hardly begun
            return None
        if tokenizer in self.tokenizers and tokenizer in self.other_tokenizers:
            self.remarks.append(f"{self.storage.name(training.folder)}: unfinished, and may be of another text")
        return "unfinished" if tokenizer in self.tokenizers else None

    def add_models(self, models: Sequence[Model]) -> None:
        """Add the versions, and copies of versions, of what was found so far."""
        made = {self.storage.name(folder) for folder in [*self.tokens, *self.trainings]} | self.raws
        for model in models:
            if model.folder in self.kinds:
                continue
            stages, weights = model.stages(), model.weights()
            initial = {stage.initial_sha256 for stage in stages}
            if made.intersection(stage.folder for stage in stages) or self.weights & (weights | initial):
                self.kinds[model.folder] = model.kind
                self.names += [model.name] if model.kind == "version" else []
                self.named |= {stage.folder for stage in stages[2:]}
                self.weights |= weights

    def trunks(self) -> list[Path]:
        """Return the folders with a trunk of the trainings, that are in none of them."""
        names = {folder.name for folder in [*self.trainings, *self.tokens]}
        home = self.storage.training()
        return [
            file.parent if file.parent != home else file
            for file, words in Trunks(self.storage).words_by_file.items()
            if words is not None and words & names and not {*self.trainings}.intersection(file.parents)
        ]

    def reports(self) -> list[Path]:
        """Return the folders with figures of the texts."""
        found = []
        for home in (self.storage.report(), self.storage.drift()):
            for folder in sorted({*folders_in(home), *self.storage.folders(home, "*")}):
                with suppress(Damaged):
                    if self.storage.read_manifest(folder, Made).raw_key in self.raw_keys:
                        found.append(folder)
        return found

    def records(self) -> list[Path]:
        """Return Prefect's records of stages that made any of it: they may quote the text."""
        names = [self.storage.name(path).encode() for path in [*self.versions, *self.trainings, *self.tokens]]
        names += [raw.encode() for raw in self.raws]
        folders = [self.storage.local / name for name in RECORDS]
        files = [file for folder in folders if folder.is_dir() for file in sorted(folder.rglob("*")) if file.is_file()]
        return [file for file in files if _has(file, names)]

    def wandb(self) -> list[Path]:
        """Return the folders of W&B's runs of the trainings, and what is yet to be sent of the versions."""
        home = self.storage.local / "wandb"
        ids = {f"-{name}" for folder in self.trainings for name in (folder.name, folder.name.split("-")[0])}
        runs = [folder for folder in folders_in(home) if folder.name.endswith(tuple(ids))]
        pending = [home / "pending" / f"{name.replace('@', '-')}.json" for name in self.names]
        return [*runs, *(file for file in pending if file.exists())]


def _weights(made: Made | None) -> Iterator[str]:
    for file, sha256 in (made.sha256 if made is not None else {}).items():
        if file.endswith(ANY_WEIGHTS):
            yield sha256


def _folders(home: Path) -> list[Path]:
    """Return the folders in another one, also those that were set aside."""
    return sorted(
        path
        for path in (home.iterdir() if home.is_dir() else ())
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    )


def _holds_a_model(folder: Path) -> bool:
    return (folder / LINEAGE_FILE).is_file() or any(folder.glob(f"*{ANY_WEIGHTS}"))


def _holds_weights(training: Path) -> bool:
    """Return whether there are weights in a training folder, or in a damaged copy of it."""
    return any(
        any(copy.rglob(f"*{ANY_WEIGHTS}")) for copy in (training, *training.parent.glob(f"{training.name}.damaged-*"))
    )


def _first_lineage(copies: Sequence[Path]) -> Lineage | Damaged:
    """Return where a version comes from, by the first of its copies that says it, or why none does."""
    damages = list[Damaged]()
    for copy in copies:
        try:
            return lineage_of_version(copy)
        except Damaged as damage:
            damages.append(damage)
    return damages[0]


def _weights_in(folder: Path) -> Iterator[str]:
    """Yield the sha256 of each file of weights in a folder."""
    return map(sha256_file, folder.glob(f"*{ANY_WEIGHTS}"))


def _has(file: Path, names: Sequence[bytes]) -> bool:
    content = file.read_bytes()
    return any(name in content for name in names)
