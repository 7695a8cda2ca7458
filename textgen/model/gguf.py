"""A model as one GGUF file, in fp32, as llama.cpp runs it."""

import json
import tempfile
from contextlib import closing
from pathlib import Path

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map
from tokenizers import Tokenizer

from textgen.errors import InputError
from textgen.files import flush
from textgen.model.pretrained import LoadedModel, weights
from textgen.text.encoding import end_id


def write_gguf(loaded: LoadedModel, path: Path) -> None:
    """Write a model and its tokenizer; a file that is there is replaced by a whole one or stays as it was.

    Raises:
        InputError: the path is a folder, or llama.cpp would tokenize otherwise.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; the model is written as one file")
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[MODEL_ARCH.QWEN3])
    _add_architecture(writer, loaded)
    _add_tokenizer(writer, loaded.tokenizer, loaded.model.vocab_size)
    names = get_tensor_name_map(MODEL_ARCH.QWEN3, loaded.model.config.num_hidden_layers)
    for name, tensor in weights(loaded.model).items():
        gguf_name = names.get_name(name, try_suffixes=[".weight"])
        assert gguf_name is not None, name
        writer.add_tensor(gguf_name, tensor.numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        with closing(writer):
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        flush(temporary)
        temporary.rename(path)
    flush(path.parent)


def _add_architecture(writer: GGUFWriter, loaded: LoadedModel) -> None:
    config = loaded.model.config
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(loaded.seq_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.resolved_num_key_value_heads)
    writer.add_key_length(config.resolved_head_dim)
    writer.add_value_length(config.resolved_head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(loaded.model.vocab_size)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    stored = json.loads(tokenizer.to_str())
    bpe, splits, ends = stored["model"], stored["pre_tokenizer"] or {}, stored["post_processor"] or {}
    if not (
        bpe["type"] == "BPE"
        and not bpe["ignore_merges"]
        and (splits.get("type"), splits.get("use_regex"), splits.get("add_prefix_space")) == ("ByteLevel", True, False)
        and stored["normalizer"] is None
        and ends.get("type", "ByteLevel") == "ByteLevel"
    ):
        raise InputError(
            f"tokenizer: GGUF has no form for this one ({bpe['type']}), only for a byte-level BPE that splits text "
            "as GPT-2's does (tokenizer.kind bpe or gpt2)"
        )
    types = {id: TokenType.NORMAL for id in tokenizer.get_vocab(with_added_tokens=False).values()}
    for token in stored["added_tokens"]:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokenizer.id_to_token(id) or f"[PAD{id}]" for id in range(vocab_size)])
    writer.add_token_types([types.get(id, TokenType.UNUSED) for id in range(vocab_size)])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(end_id(tokenizer))
    writer.add_eos_token_id(end_id(tokenizer))
    writer.add_add_bos_token(False)
