"""A training that starts from another model's weights: `training.init_from`."""

from textgen.config import Config
from textgen.errors import InputError
from textgen.files import sha256_file
from textgen.model.find import resolve
from textgen.model.pretrained import WEIGHTS_FILE, load_finite_model, qwen3_config
from textgen.model.transformer import LanguageModel
from textgen.storage import Storage
from textgen.text.tokens import TokensManifest, load_manifest_tokenizer

MAY_DIFFER = {"attention_dropout", "initializer_range"}  # of a model's description


def initial_sha256(config: Config) -> str | None:
    """Return the sha256 of the weights that `training.init_from` names, None where it names none.

    Raises:
        InputError: there is no such model.
        Damaged: a file of it is not what its manifest says.
    """
    if config.training.init_from is None:
        return None
    weights = resolve(config.training.init_from, Storage(config.storage)) / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"training.init_from={config.training.init_from!r}: there is no {weights}")
    return sha256_file(weights)


def start_from(config: Config, model: LanguageModel, tokens: TokensManifest) -> None:
    """Fill `model` with the weights that `training.init_from` names, if it names any.

    Raises:
        InputError: that model is absent, or has another shape or another tokenizer.
        Damaged: a file of it is not what its manifest says.
    """
    if config.training.init_from is None:
        return
    folder = resolve(config.training.init_from, Storage(config.storage))
    loaded = load_finite_model(folder)
    theirs, ours = (
        qwen3_config(one.config, one.vocab_size, config.data.seq_length, end_id=0) for one in (loaded.model, model)
    )
    if different := [name for name in ours if ours[name] != theirs[name] and name not in MAY_DIFFER]:
        settings = ", ".join(f"{name}={theirs[name]} where this one has {ours[name]}" for name in different)
        raise InputError(f"training.init_from={config.training.init_from!r}: that model has {settings}")
    if loaded.tokenizer.to_str() != load_manifest_tokenizer(tokens).to_str():
        raise InputError(f"training.init_from={config.training.init_from!r}: that model has another tokenizer")
    model.load_state_dict(loaded.model.state_dict())
