"""The contest: with what a challenger is compared, on which documents of test, and the decision."""

from contextlib import suppress
from pathlib import Path

from textgen.errors import Damaged
from textgen.model.find import read_champion
from textgen.publishing.candidate import Candidate
from textgen.publishing.contenders import (
    score_challenger,
    score_champion,
    score_unigram,
    seen_documents,
    without,
)
from textgen.publishing.gate import Scores, decide
from textgen.publishing.version import Decision, Guard, PublishedManifest
from textgen.storage import Storage
from textgen.text.report import DocumentList
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.training.checkpoint import CheckpointManifest

NAMED = 5  # documents that were left out


def hold_contest(
    home: Path, champion: PublishedManifest | None, candidate: Candidate, storage: Storage, guards: list[Guard]
) -> Decision:
    """Return whether the challenger is promoted, by the documents of test that the champion was not trained on.

    Args:
        home: The folder of the versions.
        champion: The version in use, None before there is a sound one.
        candidate: The challenger and what it was made of.
        storage: Where the champion's text is.
        guards: What the challenger must hold whatever it is compared with.
    """
    policy, protocol, left_out = candidate.config.publish, candidate.metrics.protocol, list[str]()
    challenger = score_challenger(candidate.metrics, candidate.checkpoint.sha256[TOKENIZER_FILE])
    opponent = _score_opponent(home, champion, challenger, candidate)
    if champion is not None and opponent is not None:
        seen_D = seen_documents(champion, candidate.raw, storage)
        if seen_D is not None and len(seen_D) == len(challenger.splits["test"].tokens):
            documents = DocumentList(candidate.raw, "test")
            left_out = [documents.name(number) for number in seen_D.nonzero().flatten().tolist()]
            challenger, opponent = without(challenger, seen_D), without(opponent, seen_D)
    decision = decide(policy, challenger, opponent, guards, protocol)
    if not left_out:
        return decision
    named = ", ".join(left_out[:NAMED]) + ", …" * (len(left_out) > NAMED)
    plural = "document" if len(left_out) == 1 else "documents"
    reason = f"{decision.reason}; {len(left_out)} {plural} of test left out, known to the champion: {named}"
    return decision.model_copy(update={"left_out": left_out, "reason": reason})


def _score_opponent(
    home: Path, champion: PublishedManifest | None, scores: Scores, candidate: Candidate
) -> Scores | None:
    """Return the scores that the gate compares with: the champion's, or a unigram model's for the first version."""
    if candidate.config.publish.policy != "gate":
        return None
    if champion is not None:
        return score_champion(champion, candidate)
    return score_unigram(scores, candidate) if _is_first(home, candidate.checkpoint) else None


def _is_first(home: Path, checkpoint: CheckpointManifest) -> bool:
    """Return whether there was no champion before, or only a damaged one of this very checkpoint."""
    if (champion := read_champion(home)) is None:
        return True
    for folder in home.glob(f"{champion}.damaged-*"):
        with suppress(Damaged):
            if PublishedManifest.parse(folder).checkpoint_sha256 == checkpoint.weights_sha256:
                return True
    return False
