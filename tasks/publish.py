"""The task that publishes the checkpoint."""

from tasks.stage import NETWORK_RETRY_SECONDS, flow_run_id, is_transient, stage
from tasks.tracking import track_model
from textgen.config import Config
from textgen.evaluation.scoring import Metrics
from textgen.files import content_key
from textgen.publishing import publish as publishing
from textgen.publishing.candidate import Candidate
from textgen.publishing.resolution import Resolution
from textgen.publishing.tokenizer_fit import measure_fit
from textgen.publishing.version import PublishedManifest
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.handover import bring_training


def key(config: Config, checkpoint: CheckpointManifest, *others: object, **named: object) -> str:
    return content_key(publishing.PUBLISH_VERSION, config.name, config.publish.policy, checkpoint.weights_sha256)


@stage(PublishedManifest, key, retry_if=is_transient, retry_seconds=NETWORK_RETRY_SECONDS)
def publish(
    config: Config,
    checkpoint: CheckpointManifest,
    metrics: Metrics,
    tokens: TokensManifest,
    raw: RawManifest,
    resolution: Resolution | None = None,
) -> PublishedManifest:
    """Publish the checkpoint as the next version in data/models and return its manifest."""
    storage = Storage(config.storage)
    storage.bring(raw.folder, RawManifest)
    storage.bring(tokens.folder, TokensManifest)
    bring_training(storage, checkpoint.folder)
    storage.bring(metrics.folder, Metrics)
    fit = measure_fit(resolution, raw, tokens, config, storage)  # it was measured before, and is read
    candidate = Candidate(checkpoint, metrics, tokens, raw, config, resolution, fit)
    published = publishing.publish(candidate, storage, flow_run_id())
    track_model(config, published, checkpoint)
    return published
