"""The task that looks at the text before a training: what is in it, and what will keep the gate closed."""

import logging

from prefect import task

from tasks.report import show_text
from textgen.config import Config
from textgen.publishing.contenders import check_fractions
from textgen.publishing.gate import gate_warnings
from textgen.storage import Storage
from textgen.text.corpus import RawManifest, left_out_now
from textgen.text.report import TextReport, report_on, text_in_words

log = logging.getLogger(__name__)


@task
def look(config: Config, raw: RawManifest) -> TextReport:
    """Return the report on the text, after saying what is in it.

    Raises:
        InputError: documents of the champion's test would be trained on.
    """
    storage = Storage(config.storage)
    storage.bring(raw.folder, RawManifest)
    check_fractions(raw, config, storage)
    report = report_on(raw, storage)
    for line in text_in_words(raw, report, left_out_now(config.data, raw, storage)):
        log.info("%s", line)
    for line in gate_warnings(report, config):
        log.warning("%s", line)
    show_text(config.name, report)
    return report
