"""The gate: whether a challenger takes the champion's place, by numbers that the decision keeps."""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from textgen.config import Config, PublishConfig
from textgen.evaluation.scoring import Documents
from textgen.publishing.verdict import in_words
from textgen.publishing.version import Beside, Decision, Figures, Guard
from textgen.sections import HELD_OUT
from textgen.terminal import counted
from textgen.text.overlap import Overlaps
from textgen.text.report import TextReport, overlap_in_words

MOVED = 3  # documents that became better, and that became worse, which are named
RESAMPLES = 10_000
RESAMPLING_SEED = 0
GROUPS = 256
VALIDATION_BOUND_NATS = 0.02  # a token: about the noise of a few thousand words
# A model of 1M parameters has 0.9 and 0.0 at temperature 0.8; taking the likeliest token, 0.2 to 0.4 and 0.3 to 0.6.
LEAST_DISTINCT = 0.25
MOST_REPETITION = 0.5
MOST_RECITED = 0.5
BY_HAND = "`textgen models promote VERSION --name NAME` makes it the champion"


class Scores(NamedTuple):
    """What a model makes of the documents of each split."""

    name: str  # `this version`, the champion's, or `unigram`
    tokenizer_sha256: str
    splits: dict[str, Documents]
    # All tokens of a split over the scored ones; None where unknown words make them no account of the bytes.
    spread: dict[str, float | None]
    scored_again: bool = False  # a champion that was measured otherwise when it was published


class Rates(NamedTuple):
    """Two models on the same documents: nats [D] of each, and the denominators [D] that they are spread over."""

    unit: Literal["nats a token", "bits a byte"]
    challenger_D: Tensor
    opponent_D: Tensor
    weight_D: Tensor
    per_token: float  # of the unit: how much a nat a token is in it

    @property
    def difference(self) -> float:
        """Return the challenger's rate less the opponent's."""
        return ((self.challenger_D - self.opponent_D).sum() / self.weight_D.sum()).item()


class Comparison(NamedTuple):
    """How a difference of rates holds when other documents like these are drawn."""

    low: float
    high: float
    confidence: float


def rates(challenger: Scores, opponent: Scores, split: str) -> Rates | None:
    """Return both models' rates on a split, None where they cannot be compared.

    That is nats a token where both score the same tokens, and bits a byte where the tokenizers differ.
    """
    ours, theirs = challenger.splits[split], opponent.splits[split]
    same_tokenizer = challenger.tokenizer_sha256 == opponent.tokenizer_sha256
    if same_tokenizer and torch.equal(ours.tokens, theirs.tokens):
        return Rates("nats a token", ours.nats, theirs.nats, ours.tokens.double(), 1.0)
    our_spread, their_spread = challenger.spread[split], opponent.spread[split]
    if our_spread is None or their_spread is None or not torch.equal(ours.bytes, theirs.bytes):
        return None
    weight_D = ours.bytes * math.log(2)
    per_token = (ours.tokens.sum() * our_spread / weight_D.sum()).item()
    return Rates("bits a byte", ours.nats * our_spread, theirs.nats * their_spread, weight_D, per_token)


def side_by_side(challenger: Scores, opponent: Scores) -> dict[str, Beside]:
    """Return both models' figures on each split where they can be compared, test first."""
    beside = {}
    for split in ("test", "validation"):
        if (found := rates(challenger, opponent, split)) is not None and found.weight_D.sum():
            ours, theirs = (_figures(scores, split, found.unit == "nats a token") for scores in (challenger, opponent))
            beside[split] = Beside(documents=len(found.weight_D), challenger=ours, opponent=theirs)
    return beside


def _figures(scores: Scores, split: str, same_tokens: bool) -> Figures:
    documents, spread = scores.splits[split], scores.spread[split]
    nats = documents.nats.sum()
    loss = (nats / documents.tokens.sum()).item()
    bits = math.inf if spread is None else (nats * spread / (documents.bytes.sum() * math.log(2))).item()
    return Figures(loss_nats=finite(loss) if same_tokens else None, bits_per_byte=finite(bits))


def most_moved(challenger: Scores, opponent: Scores, split: str = "test") -> list[tuple[int, float, float]]:
    """Return the documents of a split on which the models are furthest apart, with both rates, in order of the gain.

    They are MOVED that became better and MOVED that became worse, fewer where there are no more. Chance moves the rate
    of a short document more than that of a long one, by about the root of its length. So the difference of the rates
    times that root says which moved most; a long document does not come first for its length alone.
    """
    if (found := rates(challenger, opponent, split)) is None:
        return []
    difference_D = (found.challenger_D - found.opponent_D) / found.weight_D.sqrt()
    difference_D = difference_D.nan_to_num(0.0, 0.0, 0.0)  # of no scored token, or of a loss that is not finite
    order_D = difference_D.argsort(stable=True).tolist()
    better = [number for number in order_D[:MOVED] if difference_D[number] < 0]
    worse = [number for number in order_D[-MOVED:] if difference_D[number] > 0]
    rates_D2 = torch.stack([found.challenger_D, found.opponent_D], 1) / found.weight_D[:, None]
    moved = [(number, *rates_D2[number].tolist()) for number in [*better, *worse]]
    return sorted(moved, key=lambda one: one[1] - one[2])


def compare(rates: Rates, min_improvement: float, required: float) -> Comparison:
    """Return the confidence that the challenger is better by more than `min_improvement`, and bounds at `required`.

    The difference is recomputed on random subsets of the documents; each document is included with probability 1/2
    (Hartigan 1969, "Using subsample values as typical values"). The usual bootstrap, with replacement, promotes too
    often if a few long documents are most of the text. With this one, an equal challenger is promoted with probability
    1 - `required` at most, for any number and any lengths of documents, if the differences are symmetric. Neighbouring
    documents are grouped, into GROUPS groups, because rows of one article are not independent. If there are few groups,
    every subset is used once.
    """
    groups = min(GROUPS, len(rates.weight_D))
    group_D = torch.arange(len(rates.weight_D)) * groups // len(rates.weight_D)
    sums_G2 = torch.zeros(groups, 2, dtype=torch.float64).index_add_(
        0, group_D, torch.stack([rates.challenger_D - rates.opponent_D, rates.weight_D.double()], 1)
    )
    difference_R, weight_R = (_halves(groups) @ sums_G2).T
    difference_R = difference_R / weight_R  # nan for no documents at all: evidence of nothing
    above = math.ceil(required * len(difference_R)) - 1
    low = difference_R.nan_to_num(-math.inf).kthvalue(len(difference_R) - above).values
    high = difference_R.nan_to_num(math.inf).kthvalue(above + 1).values
    return Comparison(low.item(), high.item(), (difference_R < -min_improvement).double().mean().item())


def documents_needed(required: float) -> int:
    """Return how many documents of test can give that confidence."""
    return next(count for count in range(1, GROUPS) if most_confidence(count) >= required)


def most_confidence(scored_documents: int) -> float:
    """Return the confidence in a challenger that is better on each of so many documents: by chance, once in 2^D."""
    return 1 - 0.5 ** min(GROUPS, scored_documents)


@functools.lru_cache(maxsize=1)
def _halves(groups: int) -> Tensor:
    """Return the random subsets [R, G] as 0 and 1: every subset of few groups, else RESAMPLES of a fixed seed."""
    if 2**groups <= RESAMPLES:
        return (torch.arange(2**groups)[:, None] >> torch.arange(groups) & 1).double()
    generator = torch.Generator().manual_seed(RESAMPLING_SEED)
    return torch.randint(2, (RESAMPLES, groups), generator=generator).double()


def decide_without_comparison(policy: PublishConfig, guards: list[Guard]) -> Decision:
    """Return whether a challenger is promoted under the policies `always` and `never`."""
    failed = [guard for guard in guards if not guard.passed and guard.always]
    reason = f"publish.policy={policy.policy}" + "".join(f"; {guard.in_words()}" for guard in failed[:1])
    return Decision(promoted=policy.policy == "always" and not failed, reason=reason, guards=guards)


def decide(
    policy: PublishConfig, challenger: Scores, opponent: Scores | None, guards: list[Guard], protocol: str
) -> Decision:
    """Return whether the challenger is promoted: always and never as `policy` says, or by the comparison on test.

    Under `gate` no opponent means that there were champions and none is sound. Under every policy a guard
    that always counts and failed keeps it from being promoted.
    """
    if policy.policy != "gate":
        return decide_without_comparison(policy, guards)
    if opponent is None:
        reason = f"no champion is sound, so there is none to compare it with; {BY_HAND}"
        return Decision(promoted=False, reason=reason, protocol=protocol, guards=guards)
    found = rates(challenger, opponent, "test")
    if found is None or not len(found.weight_D):
        lacking = "another tokenizer, and unknown words leave no bits a byte"
        if found is not None:
            lacking = "no document of test is left"
        reason = f"it cannot be compared with {opponent.name}: {lacking}; {BY_HAND}"
        return Decision(promoted=False, reason=reason, opponent=opponent.name, protocol=protocol, guards=guards)
    guards = [*guards, guard_validation(challenger, opponent)]
    min_improvement = policy.min_improvement_nats * found.per_token
    comparison = compare(found, min_improvement, policy.confidence)
    better = comparison.confidence >= policy.confidence
    failed = [guard for guard in guards if not guard.passed]
    scored = int(challenger.splits["test"].tokens.count_nonzero())
    doubts = []
    if found.difference < 0 and not better:
        more = f" by more than {min_improvement:g}" if min_improvement else ""
        sure = f"{comparison.confidence:.2%} sure that it is better{more}"
        doubts.append(f"{sure}, {100 * policy.confidence:g}% is needed")
    if (most := most_confidence(scored)) < policy.confidence:
        doubts.append(f"{counted(scored, 'document')} can give {most:.2%} at most")
    total = found.weight_D.sum()
    decision = Decision(
        promoted=better and not failed,
        reason="",  # in words, by these figures
        opponent=opponent.name,
        protocol=protocol,
        unit=found.unit,
        documents=len(found.weight_D),
        challenger=finite((found.challenger_D.sum() / total).item()),
        champion=finite((found.opponent_D.sum() / total).item()),
        difference=finite(found.difference),
        low=finite(comparison.low),
        high=finite(comparison.high),
        confidence=comparison.confidence,
        min_improvement=min_improvement,
        required_confidence=policy.confidence,
        guards=guards,
        scored_again=opponent.scored_again,
        splits=side_by_side(challenger, opponent),
    )
    reason = "; ".join([in_words(decision), *doubts, *(guard.in_words() for guard in failed)])
    return decision.model_copy(update={"reason": reason})


def guard_validation(challenger: Scores, opponent: Scores) -> Guard:
    """Return the guard of the validation split: not worse there by more than VALIDATION_BOUND_NATS a token."""
    found = rates(challenger, opponent, "validation")
    if found is None:
        return Guard(name="difference on validation", passed=False, value=None, bound=VALIDATION_BOUND_NATS)
    if not len(found.weight_D):
        detail = "no document of validation is left"
        return Guard(
            name="difference on validation", passed=False, value=None, bound=VALIDATION_BOUND_NATS, detail=detail
        )
    bound = VALIDATION_BOUND_NATS * found.per_token
    passed = found.difference <= bound
    return Guard(name="difference on validation", passed=passed, value=finite(found.difference), bound=bound)


def overlap_guard(split: str) -> str:
    """Return the name of the guard of a held-out split's overlap with train."""
    return f"share of {split} that stands in train"


def guard_overlap(report: TextReport, max_overlap: float) -> list[Guard]:
    """Return the guards of the held-out splits: little enough of them stands in train, as the report says."""
    guards = []
    for split in HELD_OUT:
        found = report.splits[split]
        assert found.overlap is not None
        worst = "; ".join(f"{one.name} {one.share:.0%}" for one in found.worst)
        passed = found.overlap <= max_overlap
        guards.append(
            Guard(
                name=overlap_guard(split),
                passed=passed,
                value=found.overlap,
                bound=max_overlap,
                detail=None if passed else f"most: {worst}",
            )
        )
    return guards


def guard_recital(samples: Overlaps) -> Guard:
    """Return the guard of the samples: little enough of them stands in train, in runs of 13 words."""
    return Guard(
        name="share of the samples that stands in train", passed=samples.share <= MOST_RECITED, value=samples.share,
        bound=MOST_RECITED, detail=f"longest run {samples.longest} words" if samples.longest else None,
    )  # fmt: skip


def guard_finite(challenger: Scores) -> Guard:
    """Return the guard of the documents of every split: none has a loss that is no finite number."""
    count = sum(int((~documents.nats.isfinite()).sum()) for documents in challenger.splits.values())
    return Guard(name="finite loss: documents without one", passed=count == 0, value=count, bound=0, always=True)


def guard_whole(challenger: Scores, tokens_by_split: dict[str, int]) -> list[Guard]:
    """Return the guard of each split: as many tokens were scored as its protocol scores."""
    guards = []
    for split, expected in tokens_by_split.items():
        scored = int(challenger.splits[split].tokens.sum())
        name = f"scored tokens of {split}"
        guards.append(Guard(name=name, passed=scored == expected, value=scored, bound=expected, always=True))
    return guards


def guard_generation(continuations: Sequence[Sequence[int]]) -> list[Guard]:
    """Return the guards of what the model writes after fixed prompts, as ids.

    distinct-2 (Li et al. 2016, arXiv:1510.03055): different pairs of tokens over all pairs. Repetition, seq-rep-4
    (Welleck et al. 2019, arXiv:1908.04319): the part of four tokens in a row that were there before, the mean of the
    continuations. One that is too short to tell holds both.
    """
    pairs = [pair for ids in continuations for pair in _grams(ids, 2)]
    distinct = len(set(pairs)) / len(pairs) if pairs else 1.0
    repeated = [1 - len(set(grams)) / len(grams) for ids in continuations if (grams := _grams(ids, 4))]
    repetition = sum(repeated) / len(repeated) if repeated else 0.0
    return [
        Guard(
            name="distinct-2 of the samples", passed=distinct >= LEAST_DISTINCT, value=distinct, bound=LEAST_DISTINCT
        ),
        Guard(
            name="repetition in the samples",
            passed=repetition <= MOST_REPETITION,
            value=repetition,
            bound=MOST_REPETITION,
        ),
    ]


def _grams(ids: Sequence[int], length: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + length]) for start in range(len(ids) - length + 1)]


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def gate_warnings(report: TextReport, config: Config) -> list[str]:
    """Return why the gate will not promote a model of this text, a line a reason."""
    if config.publish.policy != "gate":
        return []
    lines = []
    documents, needed = report.splits["test"].documents, documents_needed(config.publish.confidence)
    if documents < needed:
        lines.append(
            f"the gate cannot decide: test has {counted(documents, 'document')}, and {needed} are needed for "
            f"publish.confidence={config.publish.confidence:g}; add text, raise data.test_fraction, or cut "
            "documents smaller with data.document"
        )
    for split in HELD_OUT:
        if (report.splits[split].overlap or 0.0) > config.data.max_overlap:
            lines.append(
                f"the gate will refuse the model: {overlap_in_words(split, report.splits[split])}; "
                f"data.max_overlap={config.data.max_overlap:g}"
            )
    return lines
