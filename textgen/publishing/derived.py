"""What was made of some texts: tokens, trainings, versions, and whatever was started from their weights."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from textgen.config import VERSION
from textgen.errors import Damaged
from textgen.files import REMOVED
from textgen.publishing.origins import (
    DAMAGED,
    Lineage,
    Made,
    Training,
    Trunks,
    folders_in,
    lineage_of_version,
    not_made_anew,
    trainings,
    versions,
)
from textgen.storage import Storage
from textgen.text.tokenizer import TOKENIZER_FILE

RECORDS = ("cache", "results")  # Prefect's, of finished stages
ANY_WEIGHTS = ".safetensors"


class Derived:
    """What was made of some texts: found from the texts on, so that each comes after what it was made of."""

    def __init__(self, storage: Storage, raws: Iterable[str]) -> None:
        """Look for it.

        Args:
            storage: Where to look.
            raws: The folders of the texts, under the root.
        """
        self.storage = storage
        self.raws = {matched[1] if (matched := DAMAGED.fullmatch(raw)) else raw for raw in raws}
        self.raw_keys = {raw.split("/")[-1] for raw in self.raws}
        self.weights = set[str]()  # sha256 of every file of weights that was made of the texts
        self.tokenizers, self.other_tokenizers = set[str](), set[str]()
        self.remarks, self.running = list[str](), list[str]()
        lineages = [*self.lineages()]
        self.named = set[str]()  # folders of tokens and trainings, by the lineages of versions of the texts
        for _, _, lineage in lineages:
            if lineage.raw.folder in self.raws:
                self.named |= {lineage.tokens.folder, lineage.checkpoint.folder}
        self.tokens = self.find_tokens()
        self.kinds = dict[Path, str]()  # of trainings and versions, each after what it was made of
        self.names = list[str]()  # of the versions
        known, count = [*trainings(storage), *self.set_aside(), *self.elsewhere()], -1
        while len(self.kinds) > count:  # models may have started from one another
            count = len(self.kinds)
            self.add_trainings(known)
            self.add_versions(lineages)
        for training in known if self.names else ():
            if training.made is None and training.folder not in self.kinds:
                name, state = storage.name(training.folder), "damaged" if training.is_damaged else "unfinished"
                self.remarks.append(f"{name} stays; it is {state}: whether it started from one of these is not known")

    def find_tokens(self) -> list[Path]:
        """Return the folders of the tokens of the texts, and note their tokenizers and those of other tokens."""
        same_text = list[dict[str, str]]()
        for raw in self.raws:
            with suppress(Damaged):
                same_text.append(self.storage.read_manifest(self.storage.inside(raw), Made).texts_sha256())
        home, found, learned = self.storage.processed(), list[Path](), list[tuple[Path, str]]()
        there = {*folders_in(home), *home.glob(f".*{REMOVED}"), *self.storage.folders(home, "*")}
        originals = {copy: folder for folder, copy in not_made_anew(home)}
        for folder in sorted(there | originals.keys()):
            try:
                made = self.storage.read_manifest(folder, Made)
            except Damaged as damage:
                original = originals.get(folder, folder)
                if self.storage.name(original) in self.named:
                    found.append(original)
                else:
                    self.remarks.append(f"not told whether it is of this text: {damage}")
                continue
            of_them = made.raw_key in self.raw_keys or made.raw_sha256 in same_text
            tokenizer = made.tokenizer_sha256.get(TOKENIZER_FILE, "")
            if of_them:
                self.tokenizers.add(tokenizer)
                found.append(self.storage.processed(made.key))
            else:
                self.other_tokenizers.add(tokenizer)
                if made.tokenizer.get("kind") != "gpt2":
                    learned.append((folder, tokenizer))
        for folder, tokenizer in learned:
            if tokenizer in self.tokenizers:
                self.remarks.append(f"{self.storage.name(folder)} stays, with a tokenizer that learned from this text")
        return sorted(set(found))

    def lineages(self) -> Iterator[tuple[str, Path, Lineage]]:
        """Yield the versions with what they were made of."""
        there = [(name, folder, folder) for name, folder in versions(self.storage)]
        for home in folders_in(self.storage.models()):
            copies = [(folder, copy) for folder, copy in not_made_anew(home) if VERSION.fullmatch(folder.name)]
            there += [(f"{home.name}@{folder.name}", folder, copy) for folder, copy in copies]
        for name, folder, copy in there:
            try:
                yield name, folder, lineage_of_version(copy)
            except Damaged as damage:
                self.remarks.append(f"{name}: not told whether it is of this text: {damage}")

    def set_aside(self) -> Iterator[Training]:
        """Yield the trainings that are there only as damaged copies."""
        for folder, copy in not_made_anew(self.storage.training()):
            made = None
            with suppress(Damaged):
                made = Made.parse(copy)
            yield Training(folder, folder.name, made, is_damaged=made is None, is_running=False)

    def elsewhere(self) -> Iterator[Training]:
        """Yield the finished trainings that are only in the remote root."""
        for folder in self.storage.folders(self.storage.training(), "*"):
            if not folder.exists():
                with suppress(Damaged):
                    made = self.storage.read_manifest(folder, Made)
                    yield Training(folder, made.key, made, is_damaged=False, is_running=False)

    @property
    def trainings(self) -> list[Path]:
        return [folder for folder, kind in self.kinds.items() if kind != "version"]

    @property
    def versions(self) -> list[Path]:
        return [folder for folder, kind in self.kinds.items() if kind == "version"]

    def add_trainings(self, known: Sequence[Training]) -> None:
        """Add the trainings on the tokens, or from the weights, that were found so far."""
        keys = {folder.name for folder in self.tokens}
        for training in known:
            if training.folder in self.kinds or (kind := self.kind_of(training, keys)) is None:
                continue
            self.kinds[training.folder] = kind
            self.weights |= {*_weights(training.made)}
            for state in [*training.states, *training.kept_states]:
                with suppress(Damaged):
                    self.weights |= {*_weights(Made.parse(state))}
            if training.is_running:
                self.running.append(self.storage.name(training.folder))

    def kind_of(self, training: Training, keys: set[str]) -> str | None:
        """Return what a training is, None where it was not made of the texts."""
        if self.storage.name(training.folder) in self.named:
            return "training"
        if (made := training.made) is not None:
            return "training" if made.tokens_key in keys or made.initial_sha256 in self.weights else None
        tokenizer = training.tokenizer_sha256
        if tokenizer is None:  # it has hardly begun
            return None
        if tokenizer in self.tokenizers and tokenizer in self.other_tokenizers:
            self.remarks.append(f"{self.storage.name(training.folder)}: unfinished, and may be of another text")
        return "unfinished" if tokenizer in self.tokenizers else None

    def add_versions(self, lineages: Sequence[tuple[str, Path, Lineage]]) -> None:
        """Add the versions of what was found so far."""
        made = {self.storage.name(folder) for folder in [*self.tokens, *self.trainings]} | self.raws
        for name, folder, lineage in lineages:
            checkpoint = lineage.checkpoint
            weights = {*checkpoint.sha256.values(), checkpoint.initial_sha256}
            of_them = made & {lineage.raw.folder, lineage.tokens.folder, checkpoint.folder} or weights & self.weights
            if of_them and folder not in self.kinds:
                self.kinds[folder] = "version"
                self.names.append(name)
                self.named.add(checkpoint.folder)
                self.weights |= {sha256 for file, sha256 in checkpoint.sha256.items() if file.endswith(ANY_WEIGHTS)}

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


def _has(file: Path, names: Sequence[bytes]) -> bool:
    content = file.read_bytes()
    return any(name in content for name in names)
