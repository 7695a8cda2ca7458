"""The model with a cache: what it reads at once, and then a token at a time, is what the whole model makes of it."""

import random

import pytest
import torch
from torch import Tensor, nn

from textgen.model.cached import CachedModel
from textgen.model.loss import next_token_nats
from textgen.model.matrix import INT8_ROWS, matrix, multiply, multiply_alone
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig

VOCAB_SIZE, LENGTH, ROWS = 67, 24, 5
PLAIN = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**PLAIN, "num_key_value_heads": 2, "tie_word_embeddings": False}
WIDE_HEADS = {**GROUPED, "head_dim": 10, "rope_theta": 500.0}
ONE_KEY_VALUE_HEAD = {**PLAIN, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}
SHAPES = [PLAIN, GROUPED, WIDE_HEADS, ONE_KEY_VALUE_HEAD]


def new_model(shape: dict) -> LanguageModel:
    """Return a model whose weights, the norms' too, are far from where they start, so that each one matters."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(**shape), VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def random_texts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [source.choices(range(VOCAB_SIZE), k=length) for length in lengths]


def whole(model: LanguageModel, text: list[int]) -> Tensor:
    """Return the logits [T, V] that the model gives for a text on its own."""
    with torch.inference_mode():
        return model(torch.tensor([text]))[0]


def read_and_step(cached: CachedModel, texts: list[list[int]], read: list[int]) -> list[Tensor]:
    """Return the logits of texts of which the first `read` tokens are read at once, the others in steps.

    Texts that are through are given their last token again, which changes nothing.
    """
    hidden = cached.read([text[:size] for text, size in zip(texts, read, strict=True)], list(range(len(texts))))
    found = [cached.logits(hidden_TC) for hidden_TC in hidden]
    for step in range(max(map(len, texts))):
        places = [min(size + step, len(text) - 1) for text, size in zip(texts, read, strict=True)]
        logits_BV = cached.step([text[place] for text, place in zip(texts, places, strict=True)], places)
        for row, place in enumerate(places):
            if place == len(found[row]):
                found[row] = torch.cat((found[row], logits_BV[row : row + 1]))
    return found


def check(found: list[Tensor], model: LanguageModel, texts: list[list[int]]) -> None:
    for logits_TV, text in zip(found, texts, strict=True):
        torch.testing.assert_close(logits_TV, whole(model, text), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_text_read_and_then_gone_on_with_is_the_whole_text(shape):
    model, texts = new_model(shape), random_texts([LENGTH])
    for read in (1, 7, LENGTH - 1):
        check(read_and_step(CachedModel(model, LENGTH, 1), texts, [read]), model, texts)


@pytest.mark.parametrize("shape", SHAPES)
def test_texts_of_different_lengths_do_not_touch_each_other(shape):
    model, texts = new_model(shape), random_texts([5, LENGTH, 2, 13])
    check(read_and_step(CachedModel(model, LENGTH, ROWS), texts, [2, 9, 1, 13]), model, texts)


def test_texts_of_one_length_need_no_mask():
    model, texts = new_model(GROUPED), random_texts([9, 9, 9])
    check(read_and_step(CachedModel(model, LENGTH, ROWS), texts, [4, 4, 4]), model, texts)


def test_a_row_is_used_again_after_a_longer_text():
    model = new_model(GROUPED)
    cached = CachedModel(model, LENGTH, ROWS)
    for seed, lengths in enumerate([[LENGTH, LENGTH, 20], [6, 3, 12]]):
        texts = random_texts(lengths, seed)
        check(read_and_step(cached, texts, [2, 3, 1]), model, texts)


def test_a_text_goes_on_in_the_row_that_it_is_moved_to():
    model, texts = new_model(WIDE_HEADS), random_texts([8, 12])
    cached = CachedModel(model, LENGTH, ROWS)
    cached.read([random_texts([20], seed=1)[0], texts[0][:-1], texts[1][:-1]], [0, 1, 3])
    cached.copy(3, 0, len(texts[1]) - 1)
    logits_BV = cached.step([texts[1][-1], texts[0][-1]], [11, 7])
    for logits_V, text in zip(logits_BV, reversed(texts), strict=True):
        torch.testing.assert_close(logits_V, whole(model, text)[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_row_gives_does_not_depend_on_the_others_where_it_is_deterministic(shape):
    model, texts = new_model(shape), random_texts([5, LENGTH, 2, 13])
    read = [2, 9, 1, 13]
    together = read_and_step(CachedModel(model, LENGTH, ROWS, deterministic=True), texts, read)
    check(together, model, texts)
    for row, text in enumerate(texts):
        [alone] = read_and_step(CachedModel(model, LENGTH, ROWS, deterministic=True), [text], [read[row]])
        assert torch.equal(alone, together[row])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_nats_of_a_text_are_those_of_the_evaluation(shape):
    model, texts = new_model(shape), torch.tensor(random_texts([LENGTH + 1] * 3))
    found_BT = CachedModel(model, LENGTH, ROWS).nats(texts[:, :-1], texts[:, 1:])
    torch.testing.assert_close(found_BT, next_token_nats(model, texts[:, :-1], texts[:, 1:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_step_that_is_compiled_gives_what_the_other_one_does(shape, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)  # a compiler is for the slow tests
    model, texts = new_model(shape), random_texts([LENGTH])
    cached, seconds = CachedModel(model, LENGTH, ROWS), iter([2.0, 1.0])
    monkeypatch.setattr(cached, "_step_seconds", lambda: next(seconds))
    assert cached.compile()
    check(read_and_step(cached, texts, [1]), model, texts)


def test_eight_bits_are_the_same_for_one_row_and_for_many():
    torch.manual_seed(0)
    x_NI, layers = torch.randn(INT8_ROWS, 40), [nn.Linear(40, outputs, bias=False) for outputs in (30, 7, 1)]
    by = matrix(layers, int8=True)
    many_NO = multiply(x_NI, by)
    for multiply_one in (multiply, multiply_alone):
        rows_NO = torch.cat([multiply_one(x_1I, by) for x_1I in x_NI.split(1)])
        torch.testing.assert_close(rows_NO, many_NO, atol=0.02, rtol=0.02)


def test_eight_bits_are_as_near_as_eight_bits_are():
    model, texts = new_model(GROUPED), random_texts([9, LENGTH])
    found = read_and_step(CachedModel(model, LENGTH, ROWS, int8=True), texts, [4, 7])
    for logits_TV, text in zip(found, texts, strict=True):
        expected_TV = whole(model, text)
        error = (logits_TV - expected_TV).abs().max() / expected_TV.abs().max()
        assert 1e-4 < error < 0.05
