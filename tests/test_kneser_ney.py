"""The baseline is a probability distribution, and the one of the textbook."""

import math
import random

import pytest

from tests.kneser_ney import KneserNeyTrigram

V = 7
STREAM = random.Random(0).choices(range(V - 1), weights=[9, 5, 3, 2, 1, 1], k=400)  # the last id never occurs


@pytest.mark.parametrize("context", [(), (0,), (6,), (0, 1), (1, 6), (6, 0), (5, 5)])
def test_probabilities_sum_to_one_and_none_is_zero(context):
    model = KneserNeyTrigram(STREAM, V)
    probabilities = [model.probability(token, context) for token in range(V)]
    assert sum(probabilities) == pytest.approx(1)
    assert min(probabilities) > 0


def test_a_probability_is_that_of_the_definition_worked_by_hand():
    # Trigrams of 0 1 0 1 0 2: 010 twice, 101 once, 102 once. Bigram types: 10 (after 0), 01, 02 (after 1).
    model = KneserNeyTrigram([0, 1, 0, 1, 0, 2], 3)
    discount_3, discount_2, discount_1 = 2 / (2 + 2 * 1), 1.0, 1.0  # n1 / (n1 + 2 n2): 2 of 3 once; all once; all once
    p_1 = (1 - discount_1) / 3 + discount_1 * 3 / 3 * (1 / 3)
    p_2 = (1 - discount_2) / 2 + discount_2 * 2 / 2 * p_1
    p_3 = (1 - discount_3) / 2 + discount_3 * 2 / 2 * p_2
    assert model.probability(2, (1, 0)) == pytest.approx(p_3)


def test_perplexity_is_the_exponential_of_the_mean_loss():
    model, text = KneserNeyTrigram(STREAM, V), [0, 1, 6, 2]
    losses = [model.probability(1, (0,)), model.probability(6, (0, 1)), model.probability(2, (1, 6))]
    assert model.perplexity(text) == pytest.approx(math.exp(-sum(map(math.log, losses)) / 3))


def test_a_stream_like_the_one_trained_on_is_no_surprise():
    model = KneserNeyTrigram([0, 1, 2] * 50, V)
    assert model.perplexity([0, 1, 2] * 10) < 1.2
