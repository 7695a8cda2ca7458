"""The form in which a model leaves: a folder that transformers opens, and the same folder read back here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

from textgen.errors import Damaged, InputError, Refused
from textgen.files import write_atomic
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig
from textgen.text.tokenizer import TOKENIZER_FILE, end_id, load_tokenizer, save_tokenizer

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
# While training only: the stock class has no such keys.
DROPOUTS = ("dropout", "embedding_dropout", "input_dropout", "output_dropout")
TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with its tokenizer and the context it was trained at."""

    model: LanguageModel
    tokenizer: Tokenizer
    seq_length: int


def qwen3_config(model: ModelConfig, vocab_size: int, seq_length: int, end_id: int) -> dict[str, Any]:
    """Return the `config.json` with which transformers builds the same model."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
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
    generation = {"bos_token_id": end, "eos_token_id": end, "do_sample": True, "max_length": seq_length}
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
        raise Damaged(f"{path} is damaged: {error}") from error
    tied = [TIED_HEAD] if model.config.tie_word_embeddings else []
    if missing != tied or unexpected:
        raise Damaged(f"{path} is damaged: tensors missing {missing}, unexpected {unexpected}")


def load_model(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Return the model of a published or a training folder, ready to evaluate.

    Raises:
        InputError: the folder holds no model.
        Damaged: it holds one that cannot be read.
    """
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"{folder}: there is no model here ({CONFIG_FILE} and {WEIGHTS_FILE})")
    try:
        stored = json.loads((folder / CONFIG_FILE).read_bytes())
        known = {key: stored[key] for key in ModelConfig.model_fields if key not in DROPOUTS}
        config = ModelConfig.model_validate(known)
        vocab_size, seq_length = stored["vocab_size"], stored["max_position_embeddings"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / CONFIG_FILE} is damaged: {error!r}") from error
    model = LanguageModel(config, vocab_size)
    read_weights(model, folder / WEIGHTS_FILE)
    return LoadedModel(model.to(device).eval(), load_tokenizer(folder / TOKENIZER_FILE), seq_length)


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
