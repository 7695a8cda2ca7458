"""The contest: the challenger's losses by document beside the champion's, or a unigram model's, and the decision."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from textgen.config import Config
from textgen.errors import Damaged, InputError
from textgen.evaluation.evaluate import evaluate_split, evaluation_key
from textgen.evaluation.protocols import read_split, read_tokens_split, windows_of
from textgen.evaluation.scoring import Documents, Metrics, SplitMetrics, read_documents, scored_parts
from textgen.files import write_atomic
from textgen.model.device import autocast, choose_device, share_cores
from textgen.model.find import read_champion
from textgen.model.pretrained import load_model
from textgen.publishing.candidate import Candidate
from textgen.publishing.gate import BY_HAND, Scores, decide, most_moved
from textgen.publishing.registry import earlier_texts, find_champion, trained_text
from textgen.publishing.version import (
    DOCUMENTS_FILE,
    METRICS_FILE,
    Decision,
    Guard,
    Moved,
    PublishedManifest,
    read_lineage,
)
from textgen.sections import HELD_OUT
from textgen.storage import Storage
from textgen.terminal import counted, shorten
from textgen.text.corpus import RawManifest, document_hashes, read_parts
from textgen.text.documents import Part, by_document, first_words
from textgen.text.overlap import Runs
from textgen.text.report import DocumentList
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.text.tokens import TokensManifest, count_ids, load_manifest_tokenizer
from textgen.training.checkpoint import CheckpointManifest

log = logging.getLogger(__name__)

NAMED = 5  # documents that were left out
OPENING_WORDS, OPENING_CHARACTERS = 8, 60  # of a document that moved
MOST_SEEN = 0.2  # of a document's words, in runs of 13, may be of the champion's text; a document with more is left out


def check_fractions(raw: RawManifest, config: Config, storage: Storage) -> None:
    """Check that no document moves from the champion's test or validation into train.

    Raises:
        InputError: a fraction of the split is smaller than that of the champion's text.
    """
    if "test_fraction" not in raw.source or (folder := find_champion(config, storage)) is None:
        return
    try:
        last = read_lineage(folder, "raw", "source")
    except Damaged:  # which the publish stage names and sets aside
        return
    for name in ("validation_fraction", "test_fraction"):
        if raw.source[name] < (before := last.get(name, 0.0)):
            raise InputError(
                f"data.{name}={raw.source[name]:g} is below the {before:g} of {config.name} {folder.name}: documents "
                "that it was measured on would be trained on; keep the fraction, or use another name"
            )


def hold_contest(
    home: Path, champion: PublishedManifest | None, candidate: Candidate, storage: Storage, guards: list[Guard]
) -> Decision:
    """Return whether the challenger is promoted, by the documents of test that the champion was not trained on.

    Where these cannot be told, because the champion's text is gone, the comparison is made and promotes nothing.

    Args:
        home: The folder of the versions.
        champion: The version in use, None before there is a sound one.
        candidate: The challenger and what it was made of.
        storage: Where the champion's text is.
        guards: What the challenger must hold whatever it is compared with.
    """
    policy, protocol = candidate.config.publish, candidate.metrics.protocol
    unknown: Damaged | None = None
    challenger = score_challenger(candidate.metrics, candidate.checkpoint.sha256[TOKENIZER_FILE])
    opponent = _score_opponent(home, champion, challenger, candidate)
    compared = list(range(len(challenger.splits["test"].tokens)))  # documents of test, by number
    left_out: dict[str, list[str]] = {split: [] for split in HELD_OUT}
    if champion is not None and opponent is not None:
        try:
            seen = seen_documents(champion, candidate.raw, storage) or {}
        except Damaged as damage:
            seen, unknown = {}, damage
        if any(len(seen_D) != len(challenger.splits[split].tokens) for split, seen_D in seen.items()):
            log.warning(
                "text that %s was trained on is not left out: %s cuts documents otherwise", champion.version, protocol
            )
            seen = {}
        for split, seen_D in seen.items():
            documents = DocumentList(candidate.raw, split)
            left_out[split] = [documents.name(number) for number in seen_D.nonzero().flatten().tolist()]
        if seen:
            challenger, opponent = without(challenger, seen), without(opponent, seen)
            compared = (~seen["test"]).nonzero().flatten().tolist()
    decision = decide(policy, challenger, opponent, guards, protocol)
    if opponent is not None and decision.splits:
        moved = [(compared[number], ours, theirs) for number, ours, theirs in most_moved(challenger, opponent)]
        words_D = read_documents(candidate.metrics, "test").words
        with_names = name_moved(moved, candidate.raw, "test", words_D, candidate.metrics.protocol)
        decision = decision.model_copy(update={"moved": with_names})
    if champion is not None and unknown is not None:
        reason = (
            f"{decision.reason}; but {champion.version} may have been trained on documents of test, and its text "
            f"cannot be looked at: {unknown}; {BY_HAND}"
        )
        return decision.model_copy(update={"promoted": False, "reason": reason})
    if not any(left_out.values()):
        return decision
    reason = "; ".join([decision.reason, *(_left_out_in_words(*one) for one in left_out.items() if one[1])])
    update = {"left_out": left_out["test"], "left_out_of_validation": left_out["validation"], "reason": reason}
    return decision.model_copy(update=update)


def _left_out_in_words(split: str, names: Sequence[str]) -> str:
    named = ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)
    return f"{counted(len(names), 'document')} of {split} left out, known to the champion: {named}"


def name_moved(
    moved: Sequence[tuple[int, float, float]], raw: RawManifest | None, split: str, words_D: Tensor, protocol: str
) -> list[Moved]:
    """Return documents of a split, by number, with a name and first words by which a person knows them.

    Where the text is gone, or is cut otherwise by the protocol, the number is the name.
    """
    openings, numbers, count = dict[int, str](), {number for number, *_ in moved}, 0
    for count, texts in enumerate(() if raw is None else by_document(read_parts(raw, split)), 1):
        if count - 1 in numbers:
            openings[count - 1] = shorten(" ".join(first_words(texts, OPENING_WORDS)), OPENING_CHARACTERS)
    listed = DocumentList(raw, split) if raw is not None and count == len(words_D) else None  # `lm-eval` cuts otherwise
    return [
        Moved(
            name=f"document {number + 1} of {split}, as {protocol} cuts it" if listed is None else listed.name(number),
            opening="" if listed is None else openings[number],
            words=int(words_D[number]),
            challenger=ours,
            opponent=theirs,
        )
        for number, ours, theirs in moved
    ]


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


def score_challenger(metrics: Metrics, tokenizer_sha256: str) -> Scores:
    """Return the scores of the model that `metrics` are of."""
    documents = {split: read_documents(metrics, split) for split in HELD_OUT}
    spread = {split: spread_of(metrics.splits[split]) for split in HELD_OUT}
    return Scores("this version", tokenizer_sha256, documents, spread)


def score_champion(champion: PublishedManifest, candidate: Candidate) -> Scores:
    """Return the scores of a published model on the candidate's text, by the candidate's protocol.

    They are those that it was published with, if these are of the same tokens and protocol, batch size, device and
    precision; otherwise it is scored now, in its own context and with its own tokenizer.
    """
    folder, sha256, config = champion.folder, champion.sha256, candidate.config
    stored = json.loads((folder / METRICS_FILE).read_bytes())
    seq_length, stride = stored["seq_length"], config.evaluation.stride
    stride = None if stride is None else min(stride, seq_length)
    evaluation = config.evaluation.model_copy(update={"stride": stride})
    data = config.data.model_copy(update={"seq_length": seq_length})
    as_its_own = config.model_copy(update={"data": data, "evaluation": evaluation})
    if DOCUMENTS_FILE in sha256 and stored["key"] == evaluation_key(
        champion.checkpoint_sha256, candidate.tokens, as_its_own
    ):
        metrics = Metrics.model_validate(stored)
        documents = read_scores(folder / DOCUMENTS_FILE)
        spread = {split: spread_of(metrics.splits[split]) for split in HELD_OUT}
        return Scores(folder.name, sha256[TOKENIZER_FILE], documents, spread)
    log.info("%s, the champion, is scored again: its figures were measured otherwise", folder.name)
    share_cores()
    device = choose_device(config.training.device)
    loaded = load_model(folder, device)
    with autocast(device, config.training.precision):
        measured = {
            split: evaluate_split(loaded, candidate.raw, split, trained_with_ends(champion), evaluation)
            for split in HELD_OUT
        }
    documents = {split: one.documents for split, one in measured.items()}
    spread = {split: spread_of(one.metrics) for split, one in measured.items()}
    return Scores(folder.name, sha256[TOKENIZER_FILE], documents, spread, scored_again=True)


def score_unigram(challenger: Scores, candidate: Candidate) -> Scores:
    """Return the scores of a unigram model of the train split, add-one smoothed, on the challenger's tokens."""
    tokens, metrics = candidate.tokens, candidate.metrics
    counts_V = count_ids(tokens, "train").double() + 1
    nats_V = counts_V.sum().log() - counts_V.log()
    documents = {}
    for split in HELD_OUT:
        if metrics.protocol == "lm-eval":
            tokenizer, evaluation = load_manifest_tokenizer(tokens), candidate.config.evaluation
            text = read_split(tokenizer, candidate.raw, split, tokens.end_of_document, evaluation, metrics.seq_length)
        else:
            text = read_tokens_split(tokens, split, metrics.protocol, metrics.seq_length, metrics.stride)
        nats_D = torch.zeros(len(text.documents["tokens"]), dtype=torch.float64)
        for positions_S, document_S in scored_parts(text):
            nats_D.index_add_(0, document_S, nats_V[text.ids_N[positions_S].long()])
        documents[split] = challenger.splits[split]._replace(nats=nats_D)
    return challenger._replace(name="unigram", splits=documents)


def seen_documents(champion: PublishedManifest, raw: RawManifest, storage: Storage) -> dict[str, Tensor] | None:
    """Return which documents of each held-out split the champion was trained on, or on much of them [D].

    What it was trained on is its own text and those of the models that it started from. A document of fewer than 13
    words has no run that could be found; one of any length is known by its content's hash. None where its train split
    is this one, which is apart from the others, and it came from no other text.

    Raises:
        Damaged: its own text is no longer there, or one of the texts is not what it was.
    """
    is_same_text = champion.raw_sha256.get("train") == raw.splits["train"].sha256
    own = [] if is_same_text else [trained_text(champion, storage)]
    if not (trained := [*own, *earlier_texts(champion, storage)]):
        return None
    runs = Runs({split: read_parts(raw, split) for split in HELD_OUT})
    known = np.empty(0, np.uint64) if own else document_hashes(raw, "train")
    for text in trained:
        hashes_D = document_hashes(text, "train")
        runs.look_in(_documents_of(read_parts(text, "train"), ~np.isin(hashes_D, known)))
        known = np.union1d(known, hashes_D)
    seen = {}
    for split, overlap in runs.overlaps().items():
        is_same_D = np.isin(document_hashes(raw, split), known)
        seen[split] = torch.from_numpy(is_same_D | (overlap.covered_D > MOST_SEEN * overlap.words_D))
    return seen


def _documents_of(parts: Iterable[Part], wanted_D: np.ndarray) -> Iterator[Part]:
    """Yield the parts of the documents that are wanted."""
    number = -1
    for part in parts if wanted_D.any() else ():
        number += part.begins
        if wanted_D[number]:
            yield part


def without(scores: Scores, seen: Mapping[str, Tensor]) -> Scores:
    """Return the scores without some documents of each split."""
    kept = {split: Documents(*(array[~seen_D] for array in scores.splits[split])) for split, seen_D in seen.items()}
    return scores._replace(splits={**scores.splits, **kept})


def trained_with_ends(champion: PublishedManifest) -> bool:
    """Return whether a published model was trained with an end of text after each document."""
    with suppress(Damaged):  # it says nothing of it where it is older
        return bool(read_lineage(champion.folder, "tokens", "end_of_document"))
    return False


def expected_tokens(metrics: Metrics, tokens: TokensManifest) -> dict[str, int]:
    """Return how many tokens of each split the protocol of `metrics` scores."""
    expected = {}
    for split in HELD_OUT:
        if metrics.protocol == "lm-eval":  # which reads the text otherwise, and scores all that it reads
            expected[split] = metrics.splits[split].tokens
        else:
            windows = windows_of(metrics.protocol, tokens.splits[split].tokens, metrics.seq_length, metrics.stride)
            expected[split] = sum(scored for _, _, scored in windows)
    return expected


def write_scores(scores: Scores, path: Path) -> None:
    """Write the documents of each split as JSON, in which a figure keeps all its digits."""
    content = {
        split: {name: array.tolist() for name, array in documents._asdict().items()}
        for split, documents in scores.splits.items()
    }
    write_atomic(path, json.dumps(content) + "\n")


def read_scores(path: Path) -> dict[str, Documents]:
    """Return the documents of each split as `write_scores` wrote them."""
    types = {name: torch.float64 if name == "nats" else torch.int64 for name in Documents._fields}
    return {
        split: Documents(**{name: torch.tensor(arrays[name], dtype=types[name]) for name in Documents._fields})
        for split, arrays in json.loads(path.read_bytes()).items()
    }


def spread_of(metrics: SplitMetrics) -> float | None:
    """Return all tokens of a split over the scored ones, None where they are no account of the bytes."""
    return None if metrics.bits_per_byte is None else metrics.tokens / metrics.tokens_scored
