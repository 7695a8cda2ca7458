"""What was made of some texts: tokens, trainings, versions, and whatever was started from their weights."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from textgen.errors import Damaged
from textgen.files import REMOVED, sha256_file
from textgen.publishing.registry import WITHDRAWN
from textgen.retention.origins import (
    ANY_WEIGHTS,
    Lineage,
    Made,
    Model,
    Training,
    Trunks,
    all_trainings,
    folders_in,
    is_linked,
    models,
    not_made_anew,
    undamaged,
)
from textgen.storage import Storage
from textgen.text.tokenizer import TOKENIZER_FILE

RECORDS = ("cache", "results")  # Prefect's, of finished stages
HOLDING = (".parquet", ".pt", ANY_WEIGHTS)  # ends the name of a file with a text, tokens or weights


class Derived:
    """What was made of some texts, listed so that each thing follows what it was made of."""

    def __init__(self, storage: Storage, raws: Iterable[str], weights: Iterable[str] = ()) -> None:
        """Look for it.

        Args:
            storage: Where to look.
            raws: The folders of the texts, under the root.
            weights: The sha256 of weights that are known to be made of them, though what held them may be gone.
        """
        self.storage = storage
        self.raws = {*map(undamaged, raws)}
        self.raw_keys = {raw.split("/")[-1] for raw in self.raws}
        self.weights = {*weights}  # sha256 of every file of weights that was made of the texts
        self.remarks, self.running = list[str](), list[str]()
        self.unclear = list[str]()  # what may have been made of the texts: it does not say
        there = [*models(storage)]
        self.told = set[str]()  # folders of tokens and trainings of the texts, as their versions say
        for model in there:
            if isinstance(model.lineage, Lineage) and model.lineage.raw.folder in self.raws:
                self.told |= {model.lineage.tokens.folder, model.lineage.checkpoint.folder}
        self.tokenizers, self.other_tokenizers = set[str](), set[str]()
        self.tokens_keys, self.other_tokens_keys = set[str](), set[str]()
        self.tokens = self.find_tokens()
        self.kinds = dict[Path, str]()  # of trainings, versions and their copies, each after what it was made of
        self.names = list[str]()  # of the versions
        known, count = [*all_trainings(storage)], -1
        while len(self.kinds) > count:  # models may have started from one another
            count = len(self.kinds)
            self.add_trainings(known)
            self.add_models(there)
        others = [training for training in known if training.folder not in self.kinds]
        other_models = [model for model in there if model.folder not in self.kinds]
        self.find_unclear(others, other_models)
        self.find_links([*known, *there])
        self.find_copies({*(one.folder for one in others), *(one.folder for one in other_models)})

    def find_tokens(self) -> list[Path]:
        """Return the folders of the tokens of the texts, and note their tokenizers and those of other tokens."""
        same_text = list[dict[str, str]]()
        for raw in self.raws:
            with suppress(Damaged):
                text = self.storage.read_manifest(self.storage.inside(raw), Made)
                same_text.append(text.texts_sha256())
                self.raw_keys.add(text.key)
        home, found, others = self.storage.processed(), list[Path](), list[tuple[Path, str]]()
        there = {*folders_in(home, links=True), *home.glob(f".*{REMOVED}"), *self.storage.folders(home, "*")}
        originals, learned = {copy: folder for folder, copy in not_made_anew(home)}, set[str]()
        for folder in sorted(there | originals.keys()):
            original = originals.get(folder, folder)
            try:
                made = self.storage.read_manifest(folder, Made)
            except Damaged as damage:
                if folder.name.startswith("."):  # what a killed removal left: it goes as a leftover
                    continue
                if self.storage.name(original) in self.told:
                    self.tokens_keys.add(original.name)
                    found.append(original)
                else:
                    self.unclear.append(str(damage))
                continue
            tokenizer = made.tokenizer_sha256.get(TOKENIZER_FILE, "")
            if made.raw_key in self.raw_keys or made.raw_sha256 in same_text:
                self.tokens_keys.add(made.key)
                self.tokenizers.add(tokenizer)
                learned |= {tokenizer} if made.tokenizer.get("path") is None else set()
                found.append(self.storage.processed(made.key) if folder.name.startswith(".") else original)
            else:
                self.other_tokens_keys.add(made.key)
                self.other_tokenizers.add(tokenizer)
                others += [(folder, tokenizer)] if made.tokenizer.get("kind") != "gpt2" else []
        for folder, tokenizer in others:
            if tokenizer in learned:
                self.remarks.append(f"{self.storage.name(folder)} stays, with a tokenizer that learned from this text")
        return sorted(set(found))

    @property
    def trainings(self) -> list[Path]:
        return [folder for folder, kind in self.kinds.items() if kind in ("training", "unfinished")]

    @property
    def versions(self) -> list[Path]:
        return [folder for folder, kind in self.kinds.items() if kind == "version"]

    def add_trainings(self, known: Sequence[Training]) -> None:
        """Add the trainings on the tokens, or from the models, that were found so far."""
        for training in known:
            if training.folder not in self.kinds and self.is_of_them(training):
                is_unfinished = training.made is None and not training.is_damaged
                self.kinds[training.folder] = "unfinished" if is_unfinished else "training"
                self.weights |= training.weights(self.storage)
                if training.is_running:
                    self.running.append(self.storage.name(training.folder))

    def is_of_them(self, training: Training) -> bool:
        """Return whether a training was made of the texts, as far as it says."""
        if self.storage.name(training.folder) in self.told:
            return True
        if (origin := training.origin) is None:  # its tokenizer tells, if no other text has it
            return training.tokenizer_sha256 in self.tokenizers - self.other_tokenizers
        is_on_them = origin.tokens_key in self.tokens_keys or not self.raw_keys.isdisjoint(origin.texts)
        return is_on_them or self.is_started_from(origin.initial_sha256, origin.initial)

    def is_started_from(self, sha256: str | None, initial: str | None) -> bool:
        """Return whether weights of this sha256, or in this folder under the root, are a start that was made of them.

        So is a version that was withdrawn before.
        """
        if initial is not None and (self.storage.local / f"{initial}{WITHDRAWN}").is_file():
            return True
        return sha256 in self.weights or any(self.storage.name(folder) == initial for folder in self.kinds)

    def add_models(self, there: Sequence[Model]) -> None:
        """Add the versions, and copies of versions, of what was found so far."""
        made = {self.storage.name(folder) for folder in [*self.tokens, *self.trainings]} | self.raws
        for model in there:
            if model.folder in self.kinds:
                continue
            is_of_them, weights, lineage = False, model.weights(), model.lineage
            if isinstance(lineage, Lineage):
                folders = {lineage.raw.folder, lineage.tokens.folder, lineage.checkpoint.folder}
                is_of_them = bool(made & folders or self.raw_keys & lineage.text_keys)
                is_of_them |= self.is_started_from(lineage.checkpoint.initial_sha256, lineage.initial)
            if is_of_them or weights & self.weights:
                self.kinds[model.folder] = model.kind
                self.names += [model.name] if model.kind == "version" else []
                self.told |= {lineage.checkpoint.folder} if isinstance(lineage, Lineage) else set()
                self.weights |= weights

    def find_unclear(self, trainings: Sequence[Training], models: Sequence[Model]) -> None:
        """Note which of the trainings and models that were not found do not say enough to tell."""
        lineages = {self.storage.name(one.folder): one.lineage for one in models if isinstance(one.lineage, Lineage)}
        told = {lineage.checkpoint.folder for lineage in lineages.values()}
        said = {self.storage.name(training.folder) for training in trainings if training.origin is not None}
        starts = [
            (name, lineage.start, lineage.initial)
            for name, lineage in lineages.items()
            if lineage.checkpoint.folder not in said
        ]
        self.unclear += [str(model.lineage) for model in models if isinstance(model.lineage, Damaged)]
        for training in trainings:
            name, origin = self.storage.name(training.folder), training.origin
            if origin is not None:
                starts.append((name, training.start, origin.initial))
                if not origin.texts and origin.tokens_key not in self.other_tokens_keys and name not in told:
                    self.unclear.append(f"{name} was made of the tokens {origin.tokens_key}, which are not here")
            elif name not in told and training.holds_weights():
                state = "damaged" if training.is_damaged else "unfinished"
                self.unclear.append(f"{name} is {state}, and does not say of what it was made")
        if not any(sha256 for _, sha256, _ in starts):
            return
        folders = {*lineages, *(self.storage.name(training.folder) for training in trainings)}
        weights = {sha256 for training in trainings for sha256 in training.weights(self.storage)}
        weights |= {sha256 for model in models for sha256 in model.weights()}
        for name, sha256, initial in starts:
            if sha256 is None or sha256 in weights or initial in folders:
                continue
            if initial is not None and Path(initial).is_absolute():
                self.remarks.append(
                    f"{name} stays; it started from {initial}, which is not in this storage: look there"
                )
            else:
                self.unclear.append(f"{name} started from {initial or 'a model'}, which is not here")

    def find_links(self, known: Sequence[Training | Model]) -> None:
        """Note what of it is behind a link, which may lead anywhere: a removal would leave what it leads to."""
        paths = [*self.tokens, *(self.storage.local / raw for raw in self.raws)]
        paths += [copy for one in known if one.folder in self.kinds for copy in one.copies]
        for path in paths:
            if is_linked(path, self.storage):
                self.unclear.append(
                    f"{self.storage.name(path)} is of this text, and is or is in a link: remove what it leads to"
                )

    def find_copies(self, others: Collection[Path]) -> None:
        """Note the files that are copies of a file of it, in a place where nothing was looked for."""
        folders = [*self.tokens, *self.kinds, *(self.storage.local / raw for raw in self.raws)]
        known = {*folders, *others, *folders_in(self.storage.processed()), *self.storage.raw().glob("*/*/")}
        by_size = defaultdict[int, set[Path]](set)
        for folder in folders:
            for file in _files_in(folder):
                by_size[file.stat().st_size].add(file)
        for file in _files_in(self.storage.local) if by_size else ():
            above = [folder for folder in file.parents if self.storage.local in folder.parents]
            if known.isdisjoint(folder.with_name(undamaged(folder.name)) for folder in above):
                originals = by_size.get(file.stat().st_size, set())
                if originals and sha256_file(file) in map(sha256_file, originals):
                    self.unclear.append(f"{self.storage.name(file)} is a copy of a file of it")

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


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder that hold a text, tokens or weights; none behind a link."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # what is being made, or removed
        paths = [Path(place, file) for file in files if file.endswith(HOLDING)]
        yield from (path for path in paths if not path.is_symlink())


def _has(file: Path, names: Sequence[bytes]) -> bool:
    content = file.read_bytes()
    return any(name in content for name in names)
