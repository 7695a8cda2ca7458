"""A training that starts from another model: `training.init_from`."""

from dataclasses import dataclass
from pathlib import Path

from textgen.config import Config
from textgen.errors import InputError
from textgen.files import read_json, sha256_file
from textgen.model.find import LINEAGE_FILE, find_start
from textgen.model.pretrained import WEIGHTS_FILE, load_finite_model, qwen3_config, read_weights
from textgen.model.transformer import LanguageModel
from textgen.storage import Storage
from textgen.text.tokens import TokensManifest, load_manifest_tokenizer
from textgen.training.folder import KEY_FILE, bring_origin
from textgen.training.state import OPTIMIZER_FILE, StateManifest
from textgen.training.trunk import Trunk, find_trunk, read_trunk

MAY_DIFFER = {"attention_dropout", "initializer_range"}  # of a model's description


@dataclass(frozen=True)
class OtherModel:
    """The model that `training.init_from` names, as it was found."""

    folder: Path
    kept: StateManifest | None  # what its training kept where its decay began, to start from in place of its weights
    weights_sha256: str  # of those that are started from

    @property
    def key_part(self) -> str | list[str]:
        """What a training's key has of it."""
        return self.weights_sha256 if self.kept is None else [self.weights_sha256, self.kept.sha256[OPTIMIZER_FILE]]


def find_other(config: Config) -> OtherModel | None:
    """Return the model to start from; None where there is none to, as before this model's own first champion.

    Raises:
        InputError: there is no such model.
        Damaged: a file of it is not what its manifest says.
    """
    storage = Storage(config.storage)
    if (folder := find_start(config, storage)) is None:
        return None
    if not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"training.init_from={config.training.init_from!r}: there is no {folder / WEIGHTS_FILE}")
    kept = find_kept(folder, storage, config.training.optimizer) if config.training.schedule == "wsd" else None
    return OtherModel(folder, kept, sha256_file((kept.folder if kept is not None else folder) / WEIGHTS_FILE))


def initial_sha256(config: Config) -> str | None:
    """Return the sha256 of the weights that a training starts from, None where they are drawn.

    Raises:
        InputError: there is no such model as `training.init_from` names.
        Damaged: a file of it is not what its manifest says.
    """
    other = find_other(config)
    return other.weights_sha256 if other is not None else None


def find_kept(folder: Path, storage: Storage, optimizer: str) -> StateManifest | None:
    """Return the state that the training of a model kept where its decay began, if it has moments of `optimizer`.

    Raises:
        Damaged: the lineage of the model names no folder of a training.
    """
    if (folder / LINEAGE_FILE).is_file():  # a published version; else it is the training itself
        record = read_json(folder / LINEAGE_FILE).get("checkpoint")
        if not isinstance(record, dict) or "folder" not in record:
            return None
        folder = storage.inside(record["folder"])
        bring_origin(storage, folder)
        storage.bring_file(folder / Trunk.FILE)
        if not (folder / KEY_FILE).is_file() or (folder / KEY_FILE).read_text().strip() != record.get("key"):
            return None
    trunk = find_trunk(folder.parent, lambda trunk: trunk.folder == folder and trunk.optimizer == optimizer)
    if trunk is None:
        return None
    storage.bring(trunk.state, StateManifest)
    return read_trunk(trunk)


def in_words(config: Config, other: OtherModel | None) -> str:
    """Return what a training with an `init_from` starts from."""
    name = f"training.init_from={config.training.init_from!r}"
    if other is None:
        return f"{name}: there is no champion; starting from zero"
    if other.kept is not None:
        step = other.kept.progress.step
        return f"{name}: starting from the weights and the optimizer of its training at step {step}, before its decay"
    if config.training.schedule == "wsd":
        return f"{name}: starting from its weights; its training kept no state before a decay that fits"
    return f"{name}: starting from its weights"


def start_from(other: OtherModel, config: Config, model: LanguageModel, tokens: TokensManifest) -> None:
    """Fill `model` with the other model's weights, or those that its training kept.

    Raises:
        InputError: the other model has another shape or another tokenizer.
        Damaged: a file of it is not what its manifest says.
    """
    loaded = load_finite_model(other.folder)
    theirs, ours = (
        qwen3_config(one.config, one.vocab_size, config.data.seq_length, end_id=0) for one in (loaded.model, model)
    )
    if different := [name for name in ours if ours[name] != theirs[name] and name not in MAY_DIFFER]:
        settings = ", ".join(f"{name}={theirs[name]} where this one has {ours[name]}" for name in different)
        raise InputError(f"training.init_from={config.training.init_from!r}: that model has {settings}")
    if loaded.tokenizer.to_str() != load_manifest_tokenizer(tokens).to_str():
        raise InputError(f"training.init_from={config.training.init_from!r}: that model has another tokenizer")
    if other.kept is None:
        model.load_state_dict(loaded.model.state_dict())
    else:
        read_weights(model, other.kept.folder / WEIGHTS_FILE)
