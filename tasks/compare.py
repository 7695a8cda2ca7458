"""What a run that has a champion shows in the Prefect UI: the new version beside it. It is never a reason to fail."""

import base64
import logging

from prefect.artifacts import create_markdown_artifact

from tasks.report import slug
from textgen.comparison.compare import compare_runs
from textgen.comparison.plot import plot_curves
from textgen.comparison.words import in_markdown, title_of
from textgen.config import VERSION, Config
from textgen.publishing.markdown import inline
from textgen.publishing.runs import find_run
from textgen.publishing.version import PublishedManifest
from textgen.storage import Storage

log = logging.getLogger(__name__)


def show_beside_champion(published: PublishedManifest, config: Config) -> None:
    """Show the tables and the curves of a version and of the champion that the gate compared it with."""
    opponent = published.decision.opponent if published.decision is not None else None
    if opponent is None or not VERSION.fullmatch(opponent):
        return
    storage = Storage(config.storage)
    try:
        names = [f"{published.name}@{version}" for version in (opponent, published.version)]
        comparison = compare_runs([find_run(name, storage, published.name) for name in names], storage)
        picture = base64.b64encode(plot_curves(comparison)).decode()
        shown = f"{in_markdown(comparison, everything=False)}\n\n![curves](data:image/png;base64,{picture})"
        create_markdown_artifact(shown, f"{slug(published.name)}-beside-champion", inline(title_of(comparison)))
    except Exception as error:  # the version is published
        log.warning("%s could not be shown beside %s: %s", published.version, opponent, error)
