"""The gate: who is promoted among equal, better and worse models, and what is never promoted."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from textgen.config import PublishConfig
from textgen.evaluation.scoring import Documents
from textgen.publishing.gate import (
    Scores,
    compare,
    decide,
    guard_finite,
    guard_generation,
    guard_whole,
    most_moved,
    rates,
)
from textgen.publishing.version import Decision, Guard

DRAWS = 200
CONFIDENCE = 0.95
MOST_OF_EQUAL = 18  # promoted of 200 equal ones: binomial(200, 0.05) is above it once in 150 times
GATE = PublishConfig(policy="gate")


class Text(NamedTuple):
    """Documents to draw: how many, and how unlike their lengths are."""

    documents: int
    spread_of_length: float  # standard deviation of the logarithm


# As the tests splits of the embedded corpus and of WikiText-2 are, then few and many, and a text of rows.
TEXTS = [Text(25, 1.4), Text(62, 0.6), Text(8, 1.0), Text(1000, 0.7)]


def draw_tokens(text: Text, generator: torch.Generator) -> Tensor:
    return (6.5 + text.spread_of_length * torch.randn(text.documents, generator=generator)).exp().long() + 1


def draw_pair(text: Text, better: float, seed: int, of_documents: float = 0.05) -> tuple[Scores, Scores]:
    """Return a challenger and a champion whose losses differ by `better` nats a token, more or less by document."""
    generator = torch.Generator().manual_seed(seed)
    splits: tuple[dict, dict] = {}, {}
    for split in ("validation", "test"):
        tokens_D = draw_tokens(text, generator)
        level_D, own_D, noise_D = torch.randn(3, text.documents, generator=generator, dtype=torch.float64)
        champion_D = tokens_D * (3 + 0.3 * level_D)
        difference_D = tokens_D * (better + of_documents * own_D) + tokens_D.sqrt() * 0.5 * noise_D
        for nats_D, into in ((champion_D - difference_D, splits[0]), (champion_D, splits[1])):
            into[split] = Documents(nats_D, tokens_D, tokens_D, 3 * tokens_D)
    spread = {"validation": 1.0, "test": 1.0}
    return Scores("this version", "same", splits[0], spread), Scores("v1", "same", splits[1], spread)


def count_promoted(text: Text, better: float, first_seed: int, policy: PublishConfig = GATE, **noise: float) -> int:
    pairs = (draw_pair(text, better, first_seed + draw, **noise) for draw in range(DRAWS))
    return sum(decide(policy, *pair, [], "sliding").promoted for pair in pairs)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("of_documents", [0.0, 0.05, 0.2])
def test_an_equal_model_is_promoted_at_most_at_the_stated_rate(text, of_documents, record_property):
    # judged by the comparison alone: the guard of validation would only lower it
    promoted = 0
    for draw in range(DRAWS):
        found = rates(*draw_pair(text, 0.0, 1000 + draw, of_documents=of_documents), "test")
        promoted += compare(found, 0.0, CONFIDENCE).confidence >= CONFIDENCE
    record_property("promoted", promoted)
    assert promoted <= MOST_OF_EQUAL


@pytest.mark.parametrize("text", TEXTS)
def test_a_model_that_is_better_by_just_the_minimum_counts_as_equal(text, record_property):
    policy = PublishConfig(policy="gate", min_improvement_nats=0.1)
    promoted = count_promoted(text, 0.1, 5000, policy)
    record_property("promoted", promoted)
    assert promoted <= MOST_OF_EQUAL


@pytest.mark.parametrize("text", TEXTS)
def test_a_clearly_better_model_is_nearly_always_promoted(text, record_property):
    promoted = count_promoted(text, 0.15, 2000)
    record_property("promoted", promoted)
    assert promoted >= 0.97 * DRAWS


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("worse", [0.05, 0.15])
def test_a_worse_model_is_hardly_ever_promoted(text, worse):
    assert count_promoted(text, -worse, 3000) <= 2


def test_the_error_rate_follows_the_configured_confidence():
    strict = PublishConfig(policy="gate", confidence=0.99)
    assert count_promoted(TEXTS[1], 0.0, 4000, strict) <= 7  # binomial(200, 0.01) is above it once in 700 times


def test_the_same_model_is_not_promoted_over_itself():
    challenger, _ = draw_pair(TEXTS[0], 0.0, 0)
    decision = decide(GATE, challenger, challenger._replace(name="v1"), [], "sliding")
    assert (decision.promoted, decision.difference, decision.confidence) == (False, 0, 0)


@pytest.mark.parametrize(
    ("documents", "confidence", "promoted"),
    [(1, 0.95, False), (4, 0.95, False), (5, 0.95, True), (4, 0.9375, True), (9, 0.999, False), (10, 0.999, True),
     (14, 0.999, True)],
)  # fmt: skip
def test_too_few_documents_are_no_evidence_and_the_reason_says_so(documents, confidence, promoted):
    """Of 4 documents even a model better on all of them is so by chance once in 16 times."""
    policy = PublishConfig(policy="gate", confidence=confidence)
    decision = decide(policy, *draw_pair(Text(documents, 0.1), 1.0, 0), [], "sliding")
    assert decision.promoted == promoted
    assert decision.confidence == pytest.approx(1 - 0.5**documents, abs=0.0 if documents < 14 else 0.0005)
    assert ("at most" in decision.reason) != promoted
    if documents == 4 and not promoted:
        assert decision.reason.endswith("; 4 documents can give 93.75% at most")


def test_a_document_without_a_scored_token_is_no_evidence():
    """The first document of one token has none under `sliding`, and the last ones have none under `blocks`."""
    challenger, champion = draw_pair(Text(5, 0.1), 1.0, 0)
    nats_D, tokens_D = (torch.cat([array, array.new_zeros(2)]) for array in challenger.splits["test"][:2])
    wide = {"words": torch.ones(7), "bytes": torch.ones(7, dtype=torch.int64), "tokens": tokens_D}
    theirs_D = torch.cat([champion.splits["test"].nats, nats_D.new_zeros(2)])
    for sha256 in ("same", "other"):  # nats a token, bits a byte
        pair = changed(challenger, "test", nats=nats_D, **wide), changed(champion, "test", nats=theirs_D, **wide)
        decision = decide(GATE, pair[0]._replace(tokenizer_sha256=sha256), pair[1], [], "sliding")
        assert decision.confidence == 1 - 0.5**5
        pair = [changed(scores, "test", nats=scores.splits["test"].nats.index_fill(0, torch.tensor(4), 0.0),
                        tokens=tokens_D.index_fill(0, torch.tensor(4), 0)) for scores in pair]  # fmt: skip
        decision = decide(GATE, pair[0]._replace(tokenizer_sha256=sha256), pair[1], [], "sliding")
        assert decision.reason.endswith("; 4 documents can give 93.75% at most")


def test_the_confidence_is_that_of_the_sign_test_over_all_ways_to_flip_the_documents():
    """The oracle goes through every sign of every document's difference; the gate draws random halves."""
    challenger, champion = draw_pair(Text(10, 1.0), 0.03, 7)
    found = rates(challenger, champion, "test")
    difference_D = (found.challenger_D - found.opponent_D + 0.01 * found.weight_D).tolist()
    below = 0
    for flips in range(2**10):
        flipped = sum(-x if flips >> place & 1 else x for place, x in enumerate(difference_D))
        below += sum(difference_D) < flipped - 1e-9
    assert compare(found, 0.01, CONFIDENCE).confidence == below / 2**10


def test_the_bounds_tell_the_same_as_the_confidence():
    for draw in range(50):
        found = rates(*draw_pair(TEXTS[1], 0.02, draw), "test")
        comparison = compare(found, 0.01, CONFIDENCE)
        assert comparison.low < found.difference < comparison.high
        assert (comparison.high < -0.01) == (comparison.confidence >= CONFIDENCE)


def test_the_same_figures_give_the_same_decision():
    first, second = (decide(GATE, *draw_pair(TEXTS[0], 0.05, 3), [], "sliding") for _ in range(2))
    assert first == second


def test_the_documents_that_moved_most_are_named_both_ways_beyond_what_chance_does():
    """A short document's rate moves by much for nothing, and a long one's total does."""
    tokens_D = torch.tensor([1, 400, 10_000, 400, 400, 1, 100, 100, 100])
    change_D = torch.tensor([-0.9, -0.2, -0.02, 0.3, 0.0, 0.8, -0.15, 0.05, 0.1], dtype=torch.float64)
    champion = Documents(3.0 * tokens_D.double(), tokens_D, tokens_D, 3 * tokens_D)
    scores = Scores("v1", "same", {"test": champion}, {"test": 1.0})
    moved = most_moved(changed(scores, "test", nats=champion.nats + change_D * tokens_D), scores)
    assert [number for number, *_ in moved] == [1, 6, 2, 8, 3, 5]
    for number, ours, theirs in moved:
        assert (ours, theirs) == (pytest.approx(3 + change_D[number].item()), 3.0)


def test_models_with_other_tokenizers_are_compared_in_bits_a_byte():
    challenger, champion = draw_pair(TEXTS[1], 0.15, 0)
    finer = {
        split: documents._replace(tokens=2 * documents.tokens) for split, documents in challenger.splits.items()
    }  # twice the tokens for the same nats: half the loss a token, the same bits a byte
    same = decide(GATE, challenger, champion, [], "sliding")
    other = decide(GATE, challenger._replace(tokenizer_sha256="other", splits=finer), champion, [], "sliding")
    assert (same.unit, other.unit) == ("nats a token", "bits a byte")
    assert other.confidence == same.confidence
    assert other.difference == pytest.approx(same.difference / (3 * math.log(2)))
    unscored = decide(
        GATE, challenger._replace(tokenizer_sha256="other", spread={"validation": 1.0, "test": 2.0}), champion, [], ""
    )
    assert unscored.challenger == pytest.approx(2 * other.challenger)


def test_the_minimum_in_nats_a_token_is_the_same_in_bits_a_byte():
    challenger, champion = draw_pair(TEXTS[1], 0.15, 0)
    policy = PublishConfig(policy="gate", min_improvement_nats=0.12)
    decision = decide(policy, challenger._replace(tokenizer_sha256="other"), champion, [], "sliding")
    assert decision.min_improvement == pytest.approx(0.12 / (3 * math.log(2)))
    assert decision.confidence == decide(policy, challenger, champion, [], "sliding").confidence


def test_without_bits_a_byte_nothing_is_promoted_over_another_tokenizer():
    challenger, champion = draw_pair(TEXTS[1], 1.0, 0)
    unknown = challenger._replace(tokenizer_sha256="other", spread={"validation": None, "test": None})
    decision = decide(GATE, unknown, champion, [], "sliding")
    assert not decision.promoted and "cannot be compared with v1" in decision.reason
    assert decision.reason.endswith("`textgen models promote VERSION --name NAME` makes it the champion")
    assert decide(PublishConfig(policy="always"), unknown, champion, [], "sliding").promoted


def changed(scores: Scores, split: str, **arrays: Tensor) -> Scores:
    return scores._replace(splits={**scores.splits, split: scores.splits[split]._replace(**arrays)})


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("policy", ["gate", "always"])
def test_a_model_with_a_loss_that_is_not_finite_is_never_promoted(policy, loss, split):
    challenger, champion = draw_pair(TEXTS[0], 1.0, 0)
    nats_D = challenger.splits[split].nats.clone()
    nats_D[3] = loss
    broken = changed(challenger, split, nats=nats_D)
    decision = decide(PublishConfig(policy=policy), broken, champion, [guard_finite(broken)], "sliding")
    assert not decision.promoted and "finite" in decision.reason
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


@pytest.mark.parametrize("policy", ["gate", "always"])
def test_a_model_scored_on_a_part_of_the_text_is_never_promoted(policy):
    challenger, champion = draw_pair(TEXTS[0], 1.0, 0)
    expected = {split: int(documents.tokens.sum()) for split, documents in challenger.splits.items()}
    tokens_D = challenger.splits["test"].tokens.clone()
    tokens_D[-1] -= 1
    cut_off = changed(challenger, "test", tokens=tokens_D)
    assert decide(PublishConfig(policy=policy), challenger, champion, guard_whole(challenger, expected), "").promoted
    decision = decide(PublishConfig(policy=policy), cut_off, champion, guard_whole(cut_off, expected), "sliding")
    assert not decision.promoted and "scored tokens of test" in decision.reason


def test_a_guard_in_words_counts_in_full():
    assert Guard(name="scored tokens", passed=True, value=30_116, bound=30_116).in_words() == (
        "scored tokens: 30,116, bound 30,116"
    )
    assert Guard(name="share", passed=False, value=0.123456, bound=0.05).in_words() == "share: 0.1235, bound 0.05"
    assert Guard(name="loss", passed=False, value=None, bound=0).in_words() == "loss: no figure, bound 0"


def test_a_model_that_is_worse_on_validation_beyond_the_bound_is_not_promoted():
    challenger, champion = draw_pair(TEXTS[1], 0.15, 0)
    for worse, promoted in ((0.01, True), (0.03, False)):
        documents = champion.splits["validation"]
        regressed = changed(challenger, "validation", nats=documents.nats + worse * documents.tokens)
        decision = decide(GATE, regressed, champion, [], "sliding")
        assert decision.promoted == promoted
        assert decision.guards[-1].value == pytest.approx(worse)


REPEATED = [[7] * 48] * 3
IN_A_LOOP = [[1, 2, 3, 4, 5, 6, 7, 8] * 6] * 3
THE_SAME_PAIR = [[1, 2] * 24] * 3


def passed(continuations: list[list[int]]) -> list[bool]:
    return [guard.passed for guard in guard_generation(continuations)]


@pytest.mark.parametrize("continuations", [REPEATED, IN_A_LOOP, THE_SAME_PAIR])
def test_a_model_that_repeats_itself_is_not_promoted_however_good_its_loss(continuations):
    decision = decide(GATE, *draw_pair(TEXTS[0], 1.0, 0), guard_generation(continuations), "sliding")
    assert not decision.promoted and "distinct-2" in decision.reason and "repetition" in decision.reason


def test_ordinary_text_is_not_degenerate():
    sentence = "the cat sat on the mat and saw that two birds sat on the old tower under the lamp by the river"
    assert passed([list(sentence.encode())]) == [True, True]


@pytest.mark.parametrize("continuations", [[], [[], []], [[1]]])
def test_what_is_too_short_to_tell_is_not_called_degenerate(continuations):
    assert passed(continuations) == [True, True]


@pytest.mark.parametrize(("policy", "promoted"), [("always", True), ("never", False)])
def test_always_and_never_promote_whatever_the_comparison(policy, promoted):
    worse = decide(PublishConfig(policy=policy), *draw_pair(TEXTS[0], -1.0, 0), guard_generation(REPEATED), "sliding")
    assert (worse.promoted, worse.reason, worse.difference) == (promoted, f"publish.policy={policy}", None)


def test_without_a_document_there_is_no_comparison():
    challenger, champion = draw_pair(Text(8, 1.0), 0.5, seed=1)
    nothing = Documents(*(array[:0] for array in challenger.splits["test"]))
    pair = (scores._replace(splits={**scores.splits, "test": nothing}) for scores in (challenger, champion))
    decision = decide(GATE, *pair, [], "sliding")
    assert not decision.promoted
    assert decision.reason.startswith("it cannot be compared with v1: no document of test is left; ")
