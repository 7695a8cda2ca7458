"""Where a published model comes from: lineage.json, of which each hash is that of a file or of a record."""

from typing import Any

from textgen.files import Manifest
from textgen.publishing.candidate import Candidate
from textgen.publishing.tokenizer_fit import bytes_per_token
from textgen.publishing.version import Decision
from textgen.storage import Storage
from textgen.training.folder import Origin


def lineage_of(candidate: Candidate, decision: Decision, flow_run_id: str | None) -> dict[str, Any]:
    """Return where a model comes from: data, tokens, weights, configuration, code, packages, run and decision.

    Code and packages are the training's: null and empty if it did not record them. The run is the one that published.

    A `folder` is under the storage root; its `sha256` are of the files in it, and its `key` is that of its manifest.
    `earlier_texts` are the keys of the other texts that it came from, those of the models that its training and theirs
    started from; `names_all_texts` is whether each of these said its own.
    """
    checkpoint, metrics, tokens, raw = candidate.checkpoint, candidate.metrics, candidate.tokens, candidate.raw
    storage, environment = Storage(candidate.config.storage), checkpoint.environment
    resolution, fit = candidate.resolution, candidate.fit
    trained = storage.training(checkpoint.folder.name)
    origin = Origin.of(checkpoint.folder, checkpoint.key)
    return {
        "earlier_texts": [key for key in origin.texts if key != raw.key] if origin is not None else [],
        "names_all_texts": origin.names_all_texts if origin is not None else checkpoint.initial_sha256 is None,
        "raw": {**_record(raw, storage.name(storage.raw(raw.name) / raw.key)), "source": raw.source},
        "tokens": {
            **_record(tokens, storage.name(storage.processed(tokens.key))),
            "end_of_document": tokens.end_of_document,
            "bytes_per_token": bytes_per_token(tokens),
        },
        "checkpoint": {
            **_record(checkpoint, storage.name(trained)),
            "step": checkpoint.best_step,
            "initial_sha256": checkpoint.initial_sha256,
        },
        "evaluation": {
            **_record(metrics, storage.name(trained / "evaluations" / metrics.key)),
            **metrics.model_dump(include={"protocol", "seq_length", "stride"}),
        },
        "config": checkpoint.config,
        "resolution": resolution.model_dump(mode="json") if resolution is not None else None,
        "tokenizer": fit.model_dump(include={"made_for", "bytes_per_token_then"}) if fit is not None else None,
        "git_commit": environment.git_commit if environment else None,
        "python": environment.python if environment else None,
        "packages": environment.packages if environment else {},
        "flow_run": flow_run_id,
        "decision": decision.model_dump(mode="json"),
    }


def _record(manifest: Manifest, folder: str) -> dict[str, Any]:
    return {"folder": folder, "key": manifest.key, "sha256": manifest.sha256_by_file()}
