"""Publishing: a checkpoint becomes the next version, with its card and its decision, and the champion if it is better.

Each step is atomic. After a kill the old or the new champion is in use, and the next run finishes the work.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from safetensors.torch import load_file

from textgen.errors import Refused
from textgen.evaluation.scoring import Metrics, arrays_file
from textgen.files import new_folder, sha256_file, verify, write_atomic
from textgen.inference.engine import Engine, Request, complete
from textgen.inference.sampling import SamplingConfig
from textgen.model.find import number_of, read_champion
from textgen.model.pretrained import check_with_transformers, load_model
from textgen.publishing.candidate import Candidate
from textgen.publishing.card import write_card
from textgen.publishing.contenders import expected_tokens, hold_contest, score_challenger, write_scores
from textgen.publishing.gate import (
    decide_without_comparison,
    guard_finite,
    guard_generation,
    guard_overlap,
    guard_recital,
    guard_whole,
)
from textgen.publishing.lineage import lineage_of
from textgen.publishing.registry import opened, prune, read_sound, settle
from textgen.publishing.version import (
    CLAIM_FILE,
    DOCUMENTS_FILE,
    LINEAGE_FILE,
    METRICS_FILE,
    PROBE_FILE,
    PublishedManifest,
    Sample,
)
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, read_parts, read_rows, read_unit_parts
from textgen.text.documents import Part, by_document, first_words
from textgen.text.overlap import Overlaps, Runs
from textgen.text.report import report_on
from textgen.text.tokenizer import TOKENIZER_FILE
from textgen.text.tokens import TokensManifest, load_stream
from textgen.training.checkpoint import CheckpointManifest

log = logging.getLogger(__name__)

PUBLISH_VERSION = 2  # of the published form; a change makes every publish key new

PROBE_TOKENS = 256
SAMPLES = 3
SAMPLE_PROMPT_WORDS = 8
SAMPLE_CHECK_ROWS = 64  # rows whose ids stock transformers must give too
SAMPLING = SamplingConfig(max_tokens=48, temperature=0.8, top_k=50)


def publish(candidate: Candidate, storage: Storage, flow_run_id: str | None = None) -> PublishedManifest:
    """Publish a checkpoint as the next version of `config.name`, promote it if it is better, and return its manifest.

    A checkpoint that is published already is returned as it is, and promoted where the policy has become `always`.

    Raises:
        Refused: its losses are not finite, or stock transformers does not give the same logits or ids.
        Damaged: a file of the checkpoint is not what the training left.
    """
    checkpoint, config = candidate.checkpoint, candidate.config
    home = storage.models(config.name)
    with opened(home, storage):
        in_use = read_champion(home)
        published, champion = read_sound(home, storage)
        for manifest in published:
            if manifest.checkpoint_sha256 == checkpoint.weights_sha256:
                break
        else:
            manifest = _publish(_next_folder(home, storage), champion, candidate, storage, flow_run_id)
        storage.push(manifest.folder, manifest)
        settle(home, manifest, storage)
        if not manifest.promoted and config.publish.policy == "always":  # it was published under another policy
            guards = manifest.decision.guards if manifest.decision is not None else []
            again = decide_without_comparison(config.publish, guards)
            update = {"promoted": again.promoted, "reason": again.reason, "decision": again}
            settle(home, promoted := manifest.model_copy(update=update), storage)
            if read_champion(home) == manifest.version:
                manifest = promoted
        if read_champion(home) != in_use:
            manifest = manifest.as_built()  # the run did something
        for version in prune(home, config.publish.keep_versions, storage):
            log.info("%s %s was deleted: publish.keep_versions=%d", home.name, version, config.publish.keep_versions)
        return manifest


def _next_folder(home: Path, storage: Storage) -> Path:
    """Return the folder of the next version, that no other machine will take."""
    number = 1 + max((number_of(path.name.split(".")[0]) for path in home.glob("v*")), default=0)
    while not storage.claim(home / f"v{number}" / CLAIM_FILE):
        number += 1
    return home / f"v{number}"


def _publish(
    folder: Path,
    champion: PublishedManifest | None,
    candidate: Candidate,
    storage: Storage,
    flow_run_id: str | None,
) -> PublishedManifest:
    checkpoint, metrics, config = candidate.checkpoint, candidate.metrics, candidate.config
    scores = score_challenger(metrics, checkpoint.sha256[TOKENIZER_FILE])
    if not (finite := guard_finite(scores)).passed:
        raise Refused(f"{checkpoint.folder} is not published: {finite.in_words()}")
    samples, continuations = draw_samples(checkpoint, candidate.raw, config.seed)
    report = report_on(candidate.raw, storage)
    guards = [
        finite,
        *guard_whole(scores, expected_tokens(metrics, candidate.tokens)),
        *guard_generation(continuations),
        *guard_overlap(report, config.data.max_overlap),
        guard_recital(recital(samples, candidate.raw)),
    ]
    decision = hold_contest(folder.parent, champion, candidate, storage, guards)
    verdict = "promoted" if decision.promoted else "not promoted"
    log.info("%s %s: %s: %s", config.name, folder.name, verdict, decision.reason)
    with new_folder(folder) as temporary:
        for name in checkpoint.sha256:
            shutil.copyfile(checkpoint.folder / name, temporary / name)
        verify(temporary, checkpoint.sha256)
        write_atomic(temporary / METRICS_FILE, json.dumps(metrics.content(), indent=2) + "\n")
        write_scores(scores, temporary / DOCUMENTS_FILE)
        write_probe(metrics, candidate.tokens, temporary / PROBE_FILE)
        lineage = lineage_of(candidate, decision, flow_run_id)
        write_atomic(temporary / LINEAGE_FILE, json.dumps(lineage, indent=2) + "\n")
        write_card(temporary, folder.name, candidate, report, samples, decision, lineage)
        rows = filter(None, read_rows(candidate.raw, "validation"))
        check_with_transformers(temporary, list(islice(rows, SAMPLE_CHECK_ROWS)))
        PublishedManifest(
            key=checkpoint.weights_sha256,
            name=config.name,
            version=folder.name,
            promoted=decision.promoted,
            reason=decision.reason,
            decision=decision,
            checkpoint_sha256=checkpoint.weights_sha256,
            tokens_key=candidate.tokens.key,
            raw_sha256=candidate.tokens.raw_sha256,
            bits_per_byte=metrics.splits["validation"].bits_per_byte,
            samples=samples,
            sha256={path.name: sha256_file(path) for path in sorted(temporary.iterdir())},
        ).write(temporary)
    return PublishedManifest.read(folder).as_built()


def write_probe(metrics: Metrics, tokens: TokensManifest, path: Path) -> None:
    """Write the first ids of the validation stream and what the evaluation made of them.

    The first window of `sliding` and `blocks` begins with the stream; `lm-eval` scores another text, and writes none.
    """
    if metrics.protocol == "lm-eval":
        return
    ids_N = load_stream(tokens, "validation")[: min(metrics.seq_length, PROBE_TOKENS)].tolist()
    nats_S = load_file(metrics.folder / arrays_file("validation"))["token_nats"]
    write_atomic(path, json.dumps({"ids": ids_N, "nats": nats_S[: len(ids_N) - 1].tolist()}) + "\n")


def recital(samples: Sequence[Sample], raw: RawManifest) -> Overlaps:
    """Return how much of what the model wrote stands in the train split."""
    runs = Runs({"samples": (Part(sample.continuation, True) for sample in samples)})
    runs.look_in(read_parts(raw, "train"))
    return runs.overlaps()["samples"]


def draw_samples(checkpoint: CheckpointManifest, raw: RawManifest, seed: int) -> tuple[list[Sample], list[list[int]]]:
    """Return what the model writes after the first words of documents spread over validation, and that as ids."""
    long, short = list[str](), list[str]()
    for texts in by_document(read_unit_parts(raw, "validation")):
        words = first_words(texts, 2 * SAMPLE_PROMPT_WORDS)
        prompts = short if len(words) < 2 * SAMPLE_PROMPT_WORDS else long
        if words and not (long and prompts is short):
            prompts.append(" ".join(words[:SAMPLE_PROMPT_WORDS]))
    prompts = long or short or [""]
    chosen = [prompts[number * len(prompts) // SAMPLES] for number in range(SAMPLES)]
    engine = Engine(load_model(checkpoint.folder), rows=SAMPLES)
    requests = [
        Request(engine.encode(prompt), SAMPLING.model_copy(update={"seed": seed}), choice)
        for choice, prompt in enumerate(chosen)
    ]
    written = list(complete(engine, requests))
    samples = [Sample(prompt=prompt, continuation=one.text) for prompt, one in zip(chosen, written, strict=True)]
    return samples, [[token.id for token in one.tokens if token.id != engine.end] for one in written]
