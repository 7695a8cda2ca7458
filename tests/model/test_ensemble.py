"""An ensemble: the mean of the probabilities, of models that can be compared token by token."""

import json
from dataclasses import replace

import pytest
import torch

from textgen.__main__ import main
from textgen.config import TokenizerConfig
from textgen.errors import InputError
from textgen.model.ensemble import Ensemble, join
from textgen.model.pretrained import load_model
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig
from textgen.storage import Storage
from textgen.text.tokens import tokenize
from textgen.training.train import train


def test_the_probabilities_are_averaged():
    torch.manual_seed(0)
    shape = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, initializer_range=0.5)
    models = [LanguageModel(shape, 50).eval() for _ in range(3)]
    ids_BS = torch.randint(50, (4, 9))
    x_BT, y_BT = ids_BS[:, :-1], ids_BS[:, 1:]
    with torch.no_grad():
        probabilities_BTV = torch.stack([model(x_BT).double().softmax(-1) for model in models]).mean(0)
    expected = -probabilities_BTV.gather(2, y_BT[..., None])[..., 0].log()
    torch.testing.assert_close(Ensemble(models).nats(x_BT, y_BT), expected.float())


def test_the_command_measures_several_models_together(checkpoint, tokens, make_config, tmp_path, capsys):
    other = train(tokens, make_config().model_copy(update={"seed": 2}), tmp_path / "other", lambda step, figures: None)
    (tmp_path / "text.txt").write_text("a text\nof three rows\nof words\n")

    def measure(*arguments: object) -> dict:
        assert main(["evaluate", *map(str, arguments), "--root", str(tokens.root), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    def losses(*arguments: object) -> list[float]:
        """Return the losses in nats of the first model, of the other and of both."""
        of = "text" if "--text" in arguments else "test"
        by = [measure(*models, *arguments)[of]["loss_nats"] for models in ([ours], [theirs], [ours, theirs])]
        assert measure(theirs, ours, *arguments)[of]["loss_nats"] == pytest.approx(by[2], abs=1e-6)
        return by

    ours, theirs = checkpoint.folder, other.folder
    for arguments in ([], ["--protocol", "lm-eval"], ["--weights", "int8"], ["--text", tmp_path / "text.txt"]):
        first, second, both = losses(*arguments)
        assert first != second and both < (first + second) / 2  # -ln is convex
    assert measure(ours, theirs)["models"] == [str(ours), str(theirs)]
    assert measure(ours, ours)["test"]["loss_nats"] == pytest.approx(measure(ours)["test"]["loss_nats"], abs=1e-6)
    assert main(["evaluate", str(ours), str(theirs), "--root", str(tokens.root)]) == 0
    assert capsys.readouterr().out.startswith("the mean of the probabilities of 2 models\nsliding: context 16")


def test_models_that_cannot_be_averaged_are_refused(checkpoint, tokens, raw, make_config, tmp_path, capsys):
    storage = Storage.at(tmp_path / "data")

    def refusal(tokenizer: TokenizerConfig, end_of_document: bool, out: str) -> str:
        others = tokenize(raw, tokenizer, storage, end_of_document)
        other = train(others, make_config(), tmp_path / out, lambda step, figures: None)
        assert main(["evaluate", str(checkpoint.folder), str(other.folder), "--root", str(tokens.root)]) == 2
        return capsys.readouterr().err

    assert "were trained on different tokens" in refusal(tokens.tokenizer, False, "without_ends")
    assert "have different tokenizers" in refusal(TokenizerConfig(kind="bpe", vocab_size=280), True, "smaller")
    ours = load_model(checkpoint.folder)
    with pytest.raises(InputError, match="the context of a is 16 tokens, that of b 8"):
        join([ours, replace(ours, seq_length=8)], ["a", "b"])
    assert join([ours], ["a"]) is ours
