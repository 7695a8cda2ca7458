"""The task that measures how well a tokenizer that was kept fits new text."""

import logging

from prefect import task

from textgen.config import Config
from textgen.publishing.resolution import Resolution
from textgen.publishing.tokenizer_fit import TokenizerFit, fit_in_words, measure_fit
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest

log = logging.getLogger(__name__)


@task
def fit_tokenizer(
    config: Config, resolution: Resolution | None, raw: RawManifest, tokens: TokensManifest
) -> TokenizerFit | None:
    """Measure the kept tokenizer on the text and return its figures; None where the run made its own."""
    fit = measure_fit(resolution, raw, tokens, config, Storage(config.storage))
    if fit is not None:
        log.info("tokenizer: %s", fit_in_words(fit))
    return fit
