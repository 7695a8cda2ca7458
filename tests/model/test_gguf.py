"""A model as GGUF: the package's own reader finds the weights, the dimensions and the tokenizer."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, LlamaFileType, TokenType
from safetensors.numpy import load_file
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from textgen.__main__ import main
from textgen.errors import USER_MISTAKE, InputError
from textgen.model import gguf
from textgen.model.gguf import write_gguf
from textgen.model.pretrained import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoadedModel,
    load_model,
    write_description,
    write_weights,
)
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.text.tokens import load_manifest_tokenizer

TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
TENSORS_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}


def gguf_name(name: str) -> str:
    if name in TENSORS:
        return TENSORS[name]
    number, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{TENSORS_OF_A_LAYER[part.removesuffix('.weight')]}.weight"


def contents(path: Path) -> dict:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


@pytest.fixture
def make_model(make_tokens, make_config, tmp_path):
    """Return a function that writes a model whose every dimension differs, its norms too, and loads it."""

    def make(tied: bool = True, kind: str = "bpe", padding: int = 0) -> tuple[Path, LoadedModel]:
        dimensions = {
            "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 6, "rope_theta": 500.0, "rms_norm_eps": 1e-4,
        }  # fmt: skip
        config: ModelConfig = make_config(model={**dimensions, "tie_word_embeddings": tied}).model
        tokens = make_tokens(kind)
        vocab_size, folder = tokens.vocab_size + padding, tmp_path / "model"
        torch.manual_seed(0)
        model = LanguageModel(config, vocab_size)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        write_weights(model, folder / WEIGHTS_FILE)
        write_description(folder, config, load_manifest_tokenizer(tokens), vocab_size, seq_length=33)
        return folder, load_model(folder)

    return make


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_that_of_the_published_file_bit_for_bit(tied, make_model, tmp_path):
    folder, loaded = make_model(tied)
    write_gguf(loaded, tmp_path / "model.gguf")
    stored = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    published = {gguf_name(name): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    assert stored.keys() == published.keys()
    assert ("output.weight" in stored) is not tied
    for name, tensor in published.items():
        assert stored[name].dtype == np.float32
        assert stored[name].shape == tensor.shape and stored[name].tobytes() == tensor.tobytes(), name


def test_the_dimensions_are_those_of_the_published_configuration(make_model, tmp_path):
    folder, loaded = make_model()
    write_gguf(loaded, tmp_path / "model.gguf")
    fields, config = contents(tmp_path / "model.gguf"), json.loads((folder / CONFIG_FILE).read_text())
    assert fields["general.architecture"] == config["model_type"] == "qwen3"
    assert fields["general.file_type"] == LlamaFileType.ALL_F32
    dimensions = {key: value for key, value in fields.items() if key.startswith("qwen3.")}
    expected = {f"qwen3.{key}": config[name] for key, name in KEYS.items()}
    assert dimensions == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_the_tokenizer_is_the_published_one(kind, make_model, tmp_path):
    folder, loaded = make_model(kind=kind)
    write_gguf(loaded, tmp_path / "model.gguf")
    fields, stored = contents(tmp_path / "model.gguf"), json.loads((folder / TOKENIZER_FILE).read_text())
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert {token: id for id, token in enumerate(tokens)} == stored["model"]["vocab"]
    assert [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]] == stored["model"]["merges"]
    end_id = tokens.index("<|endoftext|>")
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.bos_token_id"] == end_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert {id: type for id, type in enumerate(types) if type != TokenType.NORMAL} == {end_id: TokenType.CONTROL}


def test_ids_beyond_the_tokenizers_are_unused_tokens_and_a_users_own_are_kept(make_model, tmp_path):
    _, loaded = make_model(padding=3)
    size = loaded.tokenizer.get_vocab_size()
    loaded.tokenizer.add_tokens([AddedToken("塔 lamp", special=False)])
    write_gguf(loaded, tmp_path / "model.gguf")
    fields = contents(tmp_path / "model.gguf")
    assert fields["tokenizer.ggml.tokens"][size:] == ["塔 lamp", f"[PAD{size + 1}]", f"[PAD{size + 2}]"]
    last = [TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.UNUSED]
    assert fields["tokenizer.ggml.token_type"][size - 1 :] == last


def test_a_word_tokenizer_is_refused_in_one_line(make_model, tmp_path, capsys):
    folder, _ = make_model(kind="word")
    assert main(["gguf", str(folder), str(tmp_path / "model.gguf")]) == USER_MISTAKE
    assert re.fullmatch(r"tokenizer: GGUF has no form for this one \(WordLevel\).*\n", capsys.readouterr().err)
    assert not (tmp_path / "model.gguf").exists()


def ignore_merges(tokenizer: Tokenizer) -> None:
    tokenizer.model.ignore_merges = True


def normalize(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()


def prefix_a_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def split_nothing(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split_digits(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), tokenizer.pre_tokenizer])


def end_each_text(tokenizer: Tokenizer) -> None:
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[end])


@pytest.mark.parametrize(
    "change", [ignore_merges, normalize, prefix_a_space, split_nothing, split_digits, end_each_text]
)
def test_a_tokenizer_that_llama_cpp_would_run_otherwise_is_refused(change, make_model, tmp_path):
    _, loaded = make_model()
    change(loaded.tokenizer)
    with pytest.raises(InputError, match="GGUF has no form for this one"):
        write_gguf(loaded, tmp_path / "model.gguf")


def test_a_tokenizer_with_the_byte_level_processor_of_gpt2s_own_file_is_written(make_model, tmp_path):
    _, loaded = make_model()
    loaded.tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    write_gguf(loaded, tmp_path / "model.gguf")
    assert GGUFReader(tmp_path / "model.gguf").tensors


def test_a_file_that_is_there_is_replaced_when_the_new_one_is_whole(make_model, tmp_path, monkeypatch):
    _, loaded = make_model()
    out = tmp_path / "out" / "model.gguf"
    out.parent.mkdir()
    out.write_bytes(b"old")

    def fail(writer: gguf.GGUFWriter) -> None:
        writer.write_ti_data_to_file()
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
        write_gguf(loaded, out)
    assert out.read_bytes() == b"old"
    write_gguf(loaded, out)
    assert len(GGUFReader(out).tensors) == 35
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]


def test_the_same_model_gives_the_same_bytes(make_model, tmp_path):
    _, loaded = make_model()
    write_gguf(loaded, tmp_path / "one.gguf")
    write_gguf(loaded, tmp_path / "another.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "another.gguf").read_bytes()


def test_a_folder_is_no_file_to_write(make_model, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        write_gguf(make_model()[1], tmp_path)


def test_the_command_writes_the_champion_and_prints_its_path_alone(publication, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "new" / "model.gguf"
    assert main(["gguf", "textgen@champion", str(out), "--root", publication.config.storage.root]) == 0
    assert (capsys.readouterr().out, caplog.text) == (f"{out}\n", "")
    stored = {tensor.name: tensor.data for tensor in GGUFReader(out).tensors}
    for name, tensor in load_file(publication.published.folder / WEIGHTS_FILE).items():
        assert np.array_equal(stored[gguf_name(name)], tensor)
