"""Sampling: what transformers keeps, the distribution that is asked for, and a draw that depends on its seed alone."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from textgen.inference.sampling import (
    FIRST_CANDIDATES,
    SamplingConfig,
    draw,
    keep,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    penalize,
    sample,
    uniform,
)

VOCAB_SIZE = 50
SEEDS = st.integers(0, 2**32)


def random_logits(seed: int, size: int = VOCAB_SIZE) -> Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_k", [1, 2, 10, 50, 80])
def test_top_k_keeps_what_transformers_keeps(top_k):
    from transformers import TopKLogitsWarper

    logits_V = random_logits(0)
    logits_V[:5] = logits_V[5]  # equals stay together
    assert torch.equal(keep_top_k(logits_V, top_k), TopKLogitsWarper(top_k)(None, logits_V[None])[0])


@pytest.mark.parametrize("size", [VOCAB_SIZE, 3 * FIRST_CANDIDATES])
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(top_p, size):
    from transformers import TopPLogitsWarper

    for seed in range(3):
        logits_V = random_logits(seed, size)
        assert torch.equal(keep_top_p(logits_V, top_p), TopPLogitsWarper(top_p)(None, logits_V[None])[0])


def test_top_p_of_many_equal_tokens_sorts_them_all():
    logits_V = random_logits(0, 3 * FIRST_CANDIDATES) * 1e-4
    kept = int(keep_top_p(logits_V, 0.9).isfinite().sum())
    assert kept == pytest.approx(0.9 * 3 * FIRST_CANDIDATES, rel=0.001)


@pytest.mark.parametrize("min_p", [1e-9, 0.01, 0.1, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p):
    from transformers import MinPLogitsWarper

    for seed in range(3):
        logits_V = random_logits(seed)
        assert torch.equal(keep_min_p(logits_V, min_p), MinPLogitsWarper(min_p)(None, logits_V[None])[0])


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    SEEDS, st.floats(0.05, 5), st.integers(0, 60), st.floats(0.01, 1), st.floats(0, 1), st.floats(0.2, 5),
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20),
)  # fmt: skip
def test_the_distribution_is_that_of_transformers_processors(seed, temperature, top_k, top_p, min_p, penalty, ids):
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits_V = random_logits(seed)
    stock = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
    stock += [TopKLogitsWarper(top_k)] if top_k else []
    stock += [TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
    expected_V = LogitsProcessorList(stock)(torch.tensor([ids]), logits_V[None].clone())[0]
    sampling = SamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    half = len(ids) // 2
    found_V = keep(penalize(logits_V, sampling, ids[:half], ids[half:]) / temperature, sampling)
    assert torch.allclose(found_V.softmax(-1), expected_V.softmax(-1), atol=1e-6)


def test_presence_and_frequency_penalties_are_those_of_openais_reference():
    sampling = SamplingConfig(presence_penalty=0.5, frequency_penalty=0.25)
    found_V = penalize(torch.zeros(5), sampling, [4], [0, 2, 2, 2])
    assert found_V.tolist() == [-0.75, 0, -1.25, 0, 0]


def test_settings_that_are_off_leave_the_logits_alone():
    logits_V = random_logits(0)
    assert torch.equal(keep(penalize(logits_V, SamplingConfig(), [1], [2]), SamplingConfig()), logits_V)


DRAWS, CHI_SQUARE_LIMIT = 5000, 24.3  # exceeded once in 1000 seeds, with 7 degrees of freedom


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, 8),
        ({"temperature": 0.5}, 8),
        ({"temperature": 2.0, "top_k": 3}, 3),
        ({"top_p": 0.8}, 5),
        ({"min_p": 0.31}, 4),
    ],
)
def test_tokens_are_drawn_as_often_as_their_softmax_says(fields, kept):
    sampling, probabilities_V = SamplingConfig(**fields), torch.tensor([0.2, 0.05, 0.3, 0.1, 0.15, 0.06, 0.09, 0.05])
    expected_V = probabilities_V ** (1 / sampling.temperature)
    expected_V[expected_V.argsort(descending=True)[kept:]] = 0
    expected_V *= DRAWS / expected_V.sum()

    logits_V = probabilities_V.log()
    drawn = Counter(sample(logits_V, sampling, [], [], uniform(0, 0, place)) for place in range(DRAWS))
    assert drawn.keys() == set(expected_V.nonzero().flatten().tolist())
    assert sum((drawn[id] - expected_V[id].item()) ** 2 / expected_V[id].item() for id in drawn) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize(("number", "id"), [(0.0, 1), (0.249, 1), (0.251, 2), (0.999999, 2)])
def test_a_draw_is_where_its_number_lies_and_never_a_token_without_probability(number, id):
    logits_V = torch.tensor([0.0, 0.25, 0.75, 0.0]).log()
    assert draw(torch.stack([logits_V, logits_V.flip(0)]), [number, 0.5]) == [id, 1]


def test_numbers_depend_on_the_seed_the_choice_and_the_place():
    numbers = [uniform(seed, choice, place) for seed in (0, 2**63 - 1) for choice in range(9) for place in range(99)]
    assert len(set(numbers)) == len(numbers) and all(0 <= number < 1 for number in numbers)
    assert uniform(7, 0, 3) == uniform(7, 0, 3)


@pytest.mark.parametrize("temperature", [0, 1e-6, 1e-30, 1e-45, 1e-320])
def test_a_temperature_of_nearly_0_takes_the_likeliest_token(temperature):
    sampling = SamplingConfig(temperature=temperature)
    assert sample(torch.tensor([1.0, 3.0, 2.0]), sampling, [], [], 0.999) == 1


def test_log_probabilities_are_those_of_the_model_with_the_likeliest_first():
    logits_V = random_logits(0)
    found = log_probabilities(logits_V, 7, 3)
    assert (found.id, found.nats) == (7, pytest.approx(logits_V.log_softmax(-1)[7].item()))
    assert [id for id, _ in found.top] == logits_V.argsort(descending=True)[:3].tolist()
    assert log_probabilities(logits_V, 7, 0).top == []


@pytest.mark.parametrize("fields", [{"temperature": float("nan")}, {"top_p": 0}, {"stop": ("",)}, {"top_k": -1}])
def test_settings_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValidationError):
        SamplingConfig(**fields)
