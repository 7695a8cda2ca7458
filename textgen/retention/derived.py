"""What was made of some texts: tokens, trainings, versions, and whatever was started from their weights."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from textgen.errors import Damaged
from textgen.files import REMOVED
from textgen.publishing.registry import WITHDRAWN
from textgen.retention.origins import (
    Lineage,
    Made,
    Model,
    Training,
    Trunks,
    all_trainings,
    folders_in,
    models,
    not_made_anew,
    undamaged,
)
from textgen.storage import Storage
from textgen.text.tokenizer import TOKENIZER_FILE

RECORDS = ("cache", "results")  # Prefect's, of finished stages


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
        self.tokens_keys = set[str]()
        self.tokens = self.find_tokens()
        self.kinds = dict[Path, str]()  # of trainings, versions and their copies, each after what it was made of
        self.names = list[str]()  # of the versions
        known, count = [*all_trainings(storage)], -1
        while len(self.kinds) > count:  # models may have started from one another
            count = len(self.kinds)
            self.add_trainings(known)
            self.add_models(there)
        self.find_unclear(
            [training for training in known if training.folder not in self.kinds],
            [model for model in there if model.folder not in self.kinds],
        )

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
                if self.storage.name(original) in self.told:
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
        name = self.storage.name(training.folder)
        if name in self.told:
            return True
        if (origin := training.origin) is not None:
            return origin.tokens_key in self.tokens_keys or self.is_started_from(origin.initial_sha256, origin.initial)
        tokenizer = training.tokenizer_sha256
        if tokenizer in self.tokenizers and tokenizer in self.other_tokenizers:
            self.remarks.append(f"{name}: unfinished, and may be of another text")
        return tokenizer in self.tokenizers

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
                is_of_them = bool(made & folders)
                is_of_them |= self.is_started_from(lineage.checkpoint.initial_sha256, lineage.initial)
            if is_of_them or weights & self.weights:
                self.kinds[model.folder] = model.kind
                self.names += [model.name] if model.kind == "version" else []
                self.told |= {lineage.checkpoint.folder} if isinstance(lineage, Lineage) else set()
                self.weights |= weights

    def find_unclear(self, trainings: Sequence[Training], models: Sequence[Model]) -> None:
        """Note which of the trainings and models that were not found do not say enough to tell."""
        self.unclear += [str(model.lineage) for model in models if isinstance(model.lineage, Damaged)]
        for training in trainings:
            if training.origin is None and training.holds_weights():
                name, state = self.storage.name(training.folder), "damaged" if training.is_damaged else "unfinished"
                self.unclear.append(f"{name} is {state}, and does not say from what it started")
        if not (starts := self.starts(trainings, models)):
            return
        folders = [one.folder for one in trainings] + [one.folder for one in models]
        there = {*map(self.storage.name, folders)}
        weights = {sha256 for training in trainings for sha256 in training.weights(self.storage)}
        weights |= {sha256 for model in models for sha256 in model.weights()}
        for name, sha256, initial in starts:
            if sha256 not in weights and initial not in there:
                self.unclear.append(f"{name} started from {initial or 'a model'}, which is not here")

    def starts(self, trainings: Sequence[Training], models: Sequence[Model]) -> list[tuple[str, str, str | None]]:
        """Return from what each of them started: its folder, the sha256 of those weights, and their folder."""
        origins = {self.storage.name(one.folder): one.origin for one in trainings if one.origin is not None}
        found = [(name, origin.initial_sha256, origin.initial) for name, origin in origins.items()]
        for model in models:
            if isinstance(lineage := model.lineage, Lineage) and lineage.checkpoint.folder not in origins:
                found.append((self.storage.name(model.folder), lineage.checkpoint.initial_sha256, lineage.initial))
        return [(name, sha256, initial) for name, sha256, initial in found if sha256 is not None]

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


def _has(file: Path, names: Sequence[bytes]) -> bool:
    content = file.read_bytes()
    return any(name in content for name in names)
