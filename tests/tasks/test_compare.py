"""A run that has a champion shows both side by side; one without a champion shows nothing; neither can fail by it."""

import re

import pytest

from tasks.compare import show_beside_champion
from tests.tasks.test_report import in_a_run

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_version_is_shown_beside_the_champion_that_the_gate_compared_it_with(rivals):
    second, _ = rivals
    found = in_a_run(lambda: show_beside_champion(second.published, second.config))
    ((artifact,),) = found.values()
    assert artifact.key == "textgen-beside-champion" and artifact.type == "markdown"
    assert artifact.data.startswith("# textgen v1 beside textgen v2\n")
    assert f"{second.published.decision.difference:+.3f}" in artifact.data
    assert re.search(r"!\[curves\]\(data:image/png;base64,iVBORw0KGgo", artifact.data)


def test_without_a_champion_nothing_is_shown(publication):
    assert publication.published.decision.opponent == "unigram"
    assert in_a_run(lambda: show_beside_champion(publication.published, publication.config)) == {}


def test_a_version_that_cannot_be_compared_is_a_warning(rivals, caplog):
    _, third = rivals
    elsewhere = third.config.model_copy(update={"storage": third.config.storage.model_copy(update={"root": "nowhere"})})
    assert in_a_run(lambda: show_beside_champion(third.published, elsewhere)) == {}
    assert "could not be shown beside v2" in caplog.text
