"""The form in which a model leaves: a folder that transformers opens, and the same folder read back here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

from textgen.config import MAX_VOCAB_SIZE
from textgen.errors import Damaged, InputError, Refused
from textgen.files import read_json, write_atomic
from textgen.model.loss import Scorer
from textgen.model.transformer import LanguageModel, weight_shapes
from textgen.sections import ModelConfig
from textgen.terminal import brief, one_line
from textgen.text.encoding import end_id
from textgen.text.tokenizer import TOKENIZER_FILE, load_tokenizer, save_tokenizer

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
# While training only: the stock class has no such keys.
DROPOUTS = ("dropout", "embedding_dropout", "input_dropout", "output_dropout")
TIED_HEAD = "lm_head.weight"
MODEL_TYPE = "qwen3"
SIZES = {"vocab_size": MAX_VOCAB_SIZE, "max_position_embeddings": 2**31}  # of a description, with their bounds
# What else a description may say of a model, and all that can be read of it.
ONLY = {
    "model_type": MODEL_TYPE, "attention_bias": False, "hidden_act": "silu", "use_sliding_window": False,
}  # fmt: skip
ONLY_ROPE = "default"
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with its tokenizer and the context it was trained at."""

    model: LanguageModel
    tokenizer: Tokenizer
    seq_length: int
    scorer: Scorer | None = None  # scores a text instead of `model`: in eight bits, or several together

    @property
    def scored_by(self) -> LanguageModel | Scorer:
        """What scores a text: the scorer, or the model itself."""
        return self.scorer or self.model


def qwen3_config(model: ModelConfig, vocab_size: int, seq_length: int, end_id: int) -> dict[str, Any]:
    """Return the `config.json` with which transformers builds the same model."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": MODEL_TYPE,
        "attention_bias": False,
        "attention_dropout": model.attention_dropout,
        "bos_token_id": end_id,
        "dtype": "float32",
        "eos_token_id": end_id,
        "head_dim": model.resolved_head_dim,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "initializer_range": model.initializer_range,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": seq_length,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_hidden_layers,
        "num_key_value_heads": model.resolved_num_key_value_heads,
        "rms_norm_eps": model.rms_norm_eps,
        # transformers 5 reads rope_parameters; older readers, vLLM and llama.cpp read rope_theta
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tie_word_embeddings,
        "use_cache": True,
        "vocab_size": vocab_size,
    }


def write_description(
    folder: Path, model: ModelConfig, tokenizer: Tokenizer, vocab_size: int, seq_length: int
) -> list[str]:
    """Write all of a model's folder but its weights: configuration and tokenizer. Return the files' names."""
    end = end_id(tokenizer)
    config = qwen3_config(model, vocab_size, seq_length, end)
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    generation = {**ids, "do_sample": True, "max_new_tokens": max(1, seq_length // 2)}
    write_atomic(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    write_atomic(folder / GENERATION_CONFIG_FILE, json.dumps(generation, indent=2) + "\n")
    return [CONFIG_FILE, GENERATION_CONFIG_FILE, *save_tokenizer(tokenizer, folder, seq_length)]


def weights(model: LanguageModel) -> dict[str, Tensor]:
    """Return the tensors that are stored: in fp32 on the CPU, a tied head left out."""
    tied = {TIED_HEAD} if model.config.tie_word_embeddings else set()
    return {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }


def write_weights(model: LanguageModel, path: Path) -> None:
    """Write the weights with safetensors: the same weights give the same bytes."""
    write_atomic(path, save(weights(model), metadata={"format": "pt"}))


def read_weights(model: LanguageModel, path: Path) -> None:
    """Fill the model from a file of `write_weights`.

    Raises:
        Damaged: the file is cut off or holds other tensors.
    """
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except Exception as error:  # the Rust library's own class, or a shape that differs
        raise Damaged(f"{path} is damaged: {one_line(error)}") from error
    tied = [TIED_HEAD] if model.config.tie_word_embeddings else []
    if missing != tied or unexpected:
        raise Damaged(f"{path} is damaged: tensors missing {brief(missing)}, unexpected {brief(unexpected)}")


def check_shapes(path: Path, config: ModelConfig, vocab_size: int) -> None:
    """Check that a file of weights has the tensors that a model of this shape has, before anything is allocated.

    Raises:
        Damaged: it has others, or is no file of safetensors.
    """
    expected = weight_shapes(config, vocab_size)
    if config.tie_word_embeddings:
        del expected[TIED_HEAD]
    try:
        with safe_open(path, "pt") as file:
            stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in stored.items()}
            kinds = {name: tensor.get_dtype() for name, tensor in stored.items()}
    except Exception as error:  # the Rust library's own class
        raise Damaged(f"{path} is damaged: {one_line(error)}") from error
    for name in [*expected, *shapes]:
        if shapes.get(name) != expected.get(name):
            there, wanted = (of.get(name, "none") for of in (shapes, expected))
            raise Damaged(
                f"{path} or {CONFIG_FILE} is damaged: the tensor {brief(name)} has the shape {there}, not {wanted}"
            )
        if kinds[name] not in FLOATS:
            raise Damaged(f"{path} is damaged: the tensor {brief(name)} is of {brief(kinds[name])}")


def load_model(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Return the model of a published or a training folder, ready to evaluate.

    Raises:
        InputError: the folder holds no model.
        Damaged: it holds one that cannot be read.
    """
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"{folder}: there is no model here ({CONFIG_FILE} and {WEIGHTS_FILE})")
    config, vocab_size, seq_length = _read_description(folder / CONFIG_FILE)
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    if (ids := 1 + max(tokenizer.get_vocab().values(), default=0)) > vocab_size:
        raise Damaged(f"{folder}: the tokenizer has {ids:,} ids, the model {vocab_size:,}; one of the two is damaged")
    check_shapes(folder / WEIGHTS_FILE, config, vocab_size)
    model = LanguageModel(config, vocab_size)
    read_weights(model, folder / WEIGHTS_FILE)
    return LoadedModel(model.to(device).eval(), tokenizer, seq_length)


def load_finite_model(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Return the model of a folder, which may be somebody else's. The gate of a publish measures what is not finite.

    Raises:
        InputError: the folder holds no model.
        Damaged: it holds one that cannot be read, or whose weights are not finite.
    """
    loaded = load_model(folder, device)
    for name, parameter in loaded.model.named_parameters():
        if not parameter.isfinite().all():
            raise Damaged(f"{folder / WEIGHTS_FILE} is damaged: {name} has numbers that are not finite")
    return loaded


def _read_description(path: Path) -> tuple[ModelConfig, int, int]:
    """Return the shape, the vocabulary's size and the context that a config.json describes.

    Raises:
        Damaged: it describes no model of ours.
        InputError: it describes a model of another kind.
    """
    stored = read_json(path)
    for key, only in ONLY.items():
        if (value := stored.get(key)) not in (None, only):
            raise InputError(f"{path}: {key}={brief(value)}; only {only} can be read")
    for key in ("rope_parameters", "rope_scaling"):  # transformers 5 writes the first alone, older releases the second
        if not isinstance(rope := stored.get(key), dict):
            continue
        if (kind := rope.get("rope_type", rope.get("type", ONLY_ROPE))) != ONLY_ROPE:
            raise InputError(f"{path}: rope_type={brief(kind)}; only {ONLY_ROPE} can be read")
        theta = rope.get("rope_theta", stored.get("rope_theta"))
        if stored.setdefault("rope_theta", theta) != theta:
            raise Damaged(f"{path} is damaged: rope_theta is not that of rope_parameters")
    wanted = [*(key for key in ModelConfig.model_fields if key not in DROPOUTS), *SIZES]
    if missing := [key for key in wanted if key not in stored]:
        raise Damaged(f"{path} is damaged: it has no {', '.join(missing)}")
    for key, largest in SIZES.items():
        if type(stored[key]) is not int or not 1 <= stored[key] <= largest:
            raise Damaged(f"{path} is damaged: {key}={brief(stored[key])} is no number from 1 to {largest:,}")
    try:
        config = ModelConfig.model_validate({key: stored[key] for key in wanted if key not in SIZES})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = "".join(f"{part}={brief(first['input'])}: " for part in first["loc"])
        raise Damaged(f"{path} is damaged: {key}{one_line(first['msg'])}") from error
    return config, *(stored[key] for key in SIZES)


def check_with_transformers(folder: Path, rows: list[str]) -> None:
    """Check that transformers opens `folder` and gives the same ids and, in fp32, the same logits bit for bit.

    The stock class runs without its cache, whose layout of the keys can move the last bits at some head sizes.

    Raises:
        Refused: it does not.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    ours = load_model(folder)
    stock_tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = []
    for row in rows:
        row_ids = ours.tokenizer.encode(row).ids
        if stock_tokenizer(row, verbose=False)["input_ids"] != row_ids:
            raise Refused(f"{folder}: transformers tokenizes {row[:40]!r}… otherwise")
        ids += row_ids
    ids_1T = torch.tensor([ids[: ours.seq_length]])
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        difference = (stock(ids_1T, use_cache=False).logits - ours.model(ids_1T)).abs().max().item()
    if difference != 0:
        raise Refused(f"{folder}: transformers' logits differ by up to {difference}")
