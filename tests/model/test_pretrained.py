"""The folder in which a model leaves: stock transformers opens it and gives the same, and damage shows."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.waiting import narrow
from textgen.errors import Damaged, InputError, Refused
from textgen.model import pretrained
from textgen.model.pretrained import (
    CONFIG_FILE,
    TIED_HEAD,
    WEIGHTS_FILE,
    check_with_transformers,
    load_finite_model,
    load_model,
    write_weights,
)
from textgen.model.transformer import LanguageModel, weight_shapes
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


def test_transformers_pipeline_continues_a_batch_as_each_alone_and_warns_of_nothing(opinionated, capfd):
    from transformers import AutoTokenizer, pipeline

    folder, loaded = opinionated
    assert AutoTokenizer.from_pretrained(folder)(["the old river", "the"], padding=True)["attention_mask"][1][0] == 0
    capfd.readouterr()
    write = pipeline("text-generation", str(folder), device="cpu")
    prompts = ["the old river", "the"]
    alone = [write(prompt, max_new_tokens=5, do_sample=False)[0]["generated_text"] for prompt in prompts]
    together = write(prompts, batch_size=2, max_new_tokens=5, do_sample=False)
    assert [text["generated_text"] for [text] in together] == alone
    [text] = write(prompts[0])
    assert len(loaded.tokenizer.encode(text["generated_text"]).ids) > 5
    said = capfd.readouterr()
    assert "max_length" not in said.err + said.out and "pad_token" not in said.err + said.out


def test_a_decoded_row_is_the_row(checkpoint, raw):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    for row in read_rows(raw, "test"):
        assert tokenizer.decode(tokenizer(row)["input_ids"]) == row


def test_another_rotary_base_for_the_stock_class_is_damage(checkpoint, tmp_path):
    folder = copy(checkpoint.folder, tmp_path / "model")
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 9999.0})
    with pytest.raises(Damaged, match="rope_theta is not that of rope_parameters"):
        load_model(folder)


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


def change_weights(folder: Path, **tensors: Tensor) -> None:
    stored = load_file(folder / WEIGHTS_FILE)
    save_file({**stored, **{f"model.{name}.weight": tensor for name, tensor in tensors.items()}}, folder / WEIGHTS_FILE)


def write_header(folder: Path, header: bytes, length: int | None = None) -> None:
    """Write a file of weights with this header, of this length as it says itself."""
    length = len(header) if length is None else length
    (folder / WEIGHTS_FILE).write_bytes(length.to_bytes(8, "little") + header)


NAN_NORM = torch.full((narrow(32),), torch.nan)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: change_config(folder, hidden_size=10**9),
        lambda folder: change_config(folder, num_hidden_layers=10**5),
        lambda folder: change_config(folder, num_hidden_layers=1000),
        lambda folder: change_config(folder, intermediate_size=2**20),
        lambda folder: change_config(folder, vocab_size=10**9),
        lambda folder: change_config(folder, vocab_size=2**31),
        lambda folder: change_config(folder, vocab_size=299),
        lambda folder: change_config(folder, vocab_size=-1),
        lambda folder: change_config(folder, vocab_size=True),
        lambda folder: change_config(folder, vocab_size="many"),
        lambda folder: change_config(folder, max_position_embeddings=0),
        lambda folder: change_config(folder, max_position_embeddings=10**18),
        lambda folder: change_config(folder, max_position_embeddings=2.5),
        lambda folder: change_config(folder, hidden_size=-32),
        lambda folder: change_config(folder, hidden_size=32.5),
        lambda folder: change_config(folder, rms_norm_eps=float("nan")),
        lambda folder: change_config(folder, rope_theta="x" * 10**6),
        lambda folder: (folder / CONFIG_FILE).write_text("[" * 100_000),
        lambda folder: (folder / CONFIG_FILE).write_text('{"hidden_size": ' + "9" * 5_000 + "}"),
        lambda folder: (folder / CONFIG_FILE).write_bytes(b"\xff\xfe"),
        lambda folder: change_weights(folder, norm=NAN_NORM),
        lambda folder: change_weights(folder, norm=torch.ones(narrow(32), dtype=torch.int64)),
        lambda folder: change_weights(folder, another=torch.ones(3)),
        lambda folder: write_header(folder, b"{}", 2**60),
        lambda folder: write_header(folder, b"[" * 100_000),
        lambda folder: write_header(
            folder, b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}'
        ),
        lambda folder: write_header(folder, b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [9, 4]}}'),
    ],
)
def test_a_model_of_somebody_else_that_lies_is_one_short_line(damage, checkpoint, tmp_path):
    folder = copy(checkpoint.folder, tmp_path / "model")
    damage(folder)
    with pytest.raises(Damaged, match="damaged") as error:
        load_finite_model(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llama"}, "model_type='llama'; only qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; only silu"),
        ({"attention_bias": True}, "attention_bias=True; only False"),
        ({"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window=True; only False"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}, "rope_type='linear'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn'; only default"),
    ],
)
def test_a_model_of_another_kind_is_named(checkpoint, tmp_path, changes, named):
    folder = copy(checkpoint.folder, tmp_path / "model")
    change_config(folder, **changes)
    with pytest.raises(InputError, match=re.escape(named)):
        load_model(folder)


def test_a_model_that_transformers_saved_again_is_read(checkpoint, tmp_path):
    """It writes `rope_parameters` alone, and more keys than ours."""
    folder = copy(checkpoint.folder, tmp_path / "model")
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(folder)
    (folder / CONFIG_FILE).unlink()
    stock.save_pretrained(folder)
    assert "rope_theta" not in json.loads((folder / CONFIG_FILE).read_text())
    again, first = load_model(folder).model.state_dict(), load_model(checkpoint.folder).model.state_dict()
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    assert load_model(folder).model.config.rope_theta == load_model(checkpoint.folder).model.config.rope_theta


@pytest.mark.parametrize("shape", [{}, AWKWARD, {"tie_word_embeddings": False, "num_hidden_layers": 2}])
def test_the_shapes_are_those_of_the_model(shape):
    config = ModelConfig(**{"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, **shape})
    state = LanguageModel(config, vocab_size=20).state_dict()
    assert weight_shapes(config, 20) == {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE])
def test_a_folder_that_lacks_a_file_holds_no_model(file, checkpoint, tmp_path):
    folder = copy(checkpoint.folder, tmp_path / "model")
    (folder / file).unlink()
    with pytest.raises(InputError, match="there is no"):
        load_model(folder)
