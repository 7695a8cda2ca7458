"""The folder in which a model leaves: stock transformers opens it and gives the same, and damage shows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from textgen.errors import Damaged, InputError, Refused
from textgen.model import pretrained
from textgen.model.pretrained import (
    CONFIG_FILE,
    TIED_HEAD,
    WEIGHTS_FILE,
    check_with_transformers,
    load_model,
    write_weights,
)
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig
from textgen.text.corpus import read_rows
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.training.train import train

# Dimensions that are no multiple of a vector register, at a length of one over a block of the attention's kernel
AWKWARD = {"hidden_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "rope_theta": 500.0}


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["bpe", "word", "gpt2"])
def test_transformers_opens_what_training_leaves_and_gives_the_same(
    kind, tied, make_tokens, raw, make_config, tmp_path
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = make_tokens(kind)
    config = make_config(
        data={"seq_length": 33},
        model={**AWKWARD, "tie_word_embeddings": tied, "dropout": 0.1, "embedding_dropout": 0.1},
        training={"max_steps": 2, "warmup_steps": 0},
    )
    folder = train(tokens, config, tmp_path / "out", lambda step, figures: None).folder
    rows, ours = list(read_rows(raw, "validation")), load_model(folder)
    check_with_transformers(folder, rows)

    tokenizer, stock = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = [id for row in rows for id in tokenizer(row)["input_ids"]]
    assert ids == [id for row in rows for id in ours.tokenizer.encode(row).ids]
    assert tokenizer.model_max_length == ours.seq_length == stock.config.max_position_embeddings == 33
    end_id = ours.tokenizer.token_to_id("<eos>" if kind == "word" else "<|endoftext|>")
    assert tokenizer.eos_token_id == stock.config.eos_token_id == stock.generation_config.eos_token_id == end_id
    with torch.no_grad():
        ids_BT = torch.tensor(ids[:66]).view(2, 33)
        assert torch.equal(stock(ids_BT, use_cache=False).logits, ours.model(ids_BT))


def test_a_decoded_row_is_the_row(checkpoint, raw):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    for row in read_rows(raw, "test"):
        assert tokenizer.decode(tokenizer(row)["input_ids"]) == row


def test_another_rotary_base_in_the_stock_copy_is_refused(checkpoint, raw, tmp_path):
    folder = copy(checkpoint.folder, tmp_path / "model")
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 9999.0})
    with pytest.raises(Refused, match="logits differ by up to"):
        check_with_transformers(folder, list(read_rows(raw, "validation")))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.self_attn.k_norm.weight"])
def test_a_weight_that_differs_in_the_stock_copy_is_refused(name, checkpoint, raw, monkeypatch):
    def load_another(folder: Path) -> pretrained.LoadedModel:
        loaded = load_model(folder)
        with torch.no_grad():
            loaded.model.get_parameter(name).flatten()[-1].mul_(1 + 1e-3)
        return loaded

    monkeypatch.setattr(pretrained, "load_model", load_another)
    with pytest.raises(Refused, match="logits differ by up to"):
        check_with_transformers(checkpoint.folder, list(read_rows(raw, "validation")))


def test_a_stock_tokenizer_that_gives_other_ids_is_refused(checkpoint, raw, monkeypatch):
    def load_another(folder: Path) -> pretrained.LoadedModel:
        loaded = load_model(folder)
        loaded.tokenizer.enable_truncation(3)
        return loaded

    monkeypatch.setattr(pretrained, "load_model", load_another)
    with pytest.raises(Refused, match="tokenizes"):
        check_with_transformers(checkpoint.folder, list(read_rows(raw, "validation")))


def test_the_same_weights_give_the_same_bytes(opinionated, tmp_path):
    folder, loaded = opinionated
    for name in ("one.safetensors", "another.safetensors"):
        write_weights(loaded.model, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_not_stored(tied, tmp_path):
    config = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, tie_word_embeddings=tied)
    model = LanguageModel(config, vocab_size=20)
    write_weights(model, tmp_path / WEIGHTS_FILE)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    assert model.state_dict().keys() - stored.keys() == ({TIED_HEAD} if tied else set())
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())


def test_new_and_old_readers_find_the_same_rotary_base(opinionated):
    config = json.loads((opinionated[0] / CONFIG_FILE).read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0


def test_a_loaded_model_is_the_one_that_was_written(opinionated, tmp_path):
    folder, loaded = opinionated
    assert not loaded.model.training
    write_weights(loaded.model, tmp_path / WEIGHTS_FILE)
    torch.testing.assert_close(load_file(tmp_path / WEIGHTS_FILE), load_file(folder / WEIGHTS_FILE), atol=0, rtol=0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / WEIGHTS_FILE),
        lambda folder: (folder / WEIGHTS_FILE).write_bytes(b""),
        lambda folder: change_config(folder, num_hidden_layers=2),
        lambda folder: change_config(folder, hidden_size=16),
        lambda folder: change_config(folder, tie_word_embeddings=False),
        lambda folder: change_config(folder, rms_norm_eps="small"),
        lambda folder: (folder / CONFIG_FILE).write_text("{"),
        lambda folder: (folder / CONFIG_FILE).write_text("[]"),
        lambda folder: (folder / CONFIG_FILE).write_text("{}"),
    ],
    ids=["cut", "empty", "layers", "shape", "head", "type", "no JSON", "no mapping", "no keys"],
)
def test_a_model_that_cannot_be_read_is_damaged(damage, checkpoint, tmp_path):
    folder = copy(checkpoint.folder, tmp_path / "model")
    damage(folder)
    with pytest.raises(Damaged, match="is damaged"):
        load_model(folder)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE])
def test_a_folder_that_lacks_a_file_holds_no_model(file, checkpoint, tmp_path):
    folder = copy(checkpoint.folder, tmp_path / "model")
    (folder / file).unlink()
    with pytest.raises(InputError, match="there is no"):
        load_model(folder)
