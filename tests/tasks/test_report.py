"""What a run shows: progress that moves and is never a reason to fail, metrics beside the champion's, the card."""

import base64
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

import tasks.report
import textgen.polling
from tasks.report import UPDATE_SECONDS, Progress, card, compare, show_model, shown, slug
from tests.trainings import Interruption
from tests.waiting import PATIENCE_SECONDS, until
from textgen.model.find import CHAMPION_FILE
from textgen.publishing.card import CARD_FILE
from textgen.publishing.verdict import background, headline, moved_in_markdown
from textgen.publishing.version import Decision
from textgen.text.stream import block_count
from textgen.training.plan import total_steps


@pytest.fixture(autouse=True)
def patience(monkeypatch) -> None:
    """Have a training wait for the last of its progress to be sent, however slow the machine is."""
    monkeypatch.setattr(tasks.report, "LEAVE_SECONDS", PATIENCE_SECONDS)


class Looks:
    """The looks at a training's progress, which come when the test says so: what its thread waits for in turn."""

    def __init__(self) -> None:
        self.asked: list[float] = []  # the seconds of each wait
        self.told = threading.Semaphore(0)
        self.is_set = False

    def wait(self, seconds: float) -> bool:
        self.asked.append(seconds)
        assert self.told.acquire(timeout=PATIENCE_SECONDS)
        return self.is_set

    def set(self) -> None:
        self.is_set = True
        self.told.release()

    def look(self) -> None:
        """Let the seconds of a wait pass, and return when the look that follows is over."""
        waits = until(lambda: len(self.asked), "the thread waits")
        self.told.release()
        until(lambda: len(self.asked) == waits + 1, "it waits again")


@pytest.fixture
def looks(monkeypatch) -> Looks:
    looks = Looks()
    monkeypatch.setattr(textgen.polling, "threading", SimpleNamespace(Event=lambda: looks, Thread=threading.Thread))
    return looks


def artifacts(run_id: str) -> dict[str, list[Artifact]]:
    """Return the artifacts of a flow run by key."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)]))
    found: dict[str, list[Artifact]] = {}
    with get_client(sync_client=True) as client:
        for artifact in client.read_artifacts(artifact_filter=of_run):
            found.setdefault(artifact.key, []).append(artifact)
    return found


def in_a_run(show: Callable[[], Any]) -> dict[str, list[Artifact]]:
    """Call `show` in a flow run and return the artifacts that it made."""

    @flow
    def showing() -> str:
        show()
        return flow_run.id

    return artifacts(showing())


@pytest.fixture
def sent(monkeypatch) -> list[tuple[float, str]]:
    """Return a list that receives the progress that is sent, in place of a server."""
    sent: list[tuple[float, str]] = []

    def create(percent: float, key: str, text: str) -> UUID:
        sent.append((percent, text))
        return UUID(int=1)

    monkeypatch.setattr(tasks.report, "create_progress_artifact", create)
    monkeypatch.setattr(
        tasks.report, "update_progress_artifact", lambda artifact, percent, text: sent.append((percent, text))
    )
    return sent


def test_progress_says_the_figures_that_there_are():
    progress = Progress("tiny", 2000)
    assert progress.in_words() == "step 0 of 2,000"
    progress.log(10, {"train/loss_nats": 2.3456, "train/tokens": 640.0})
    assert progress.in_words() == "step 10 of 2,000, loss 2.346"
    progress.log(1000, {"validation/loss_nats": 2.5, "train/tokens_per_second": 12345.6, "train/mfu": 0.654})
    assert progress.in_words() == (
        "step 1,000 of 2,000, loss 2.346, validation 2.500, 12,346 tokens/s, 65% of the matrix peak"
    )


def test_progress_says_how_long_the_rest_takes():
    progress = Progress("tiny", 2000)
    progress.log(500, {"train/tokens": 500.0 * 64, "train/tokens_per_second": 200.0})
    assert progress.in_words() == "step 500 of 2,000, about 8.0 minutes left, 200 tokens/s"
    progress.log(2000, {"train/tokens": 2000.0 * 64, "train/tokens_per_second": 200.0})
    assert progress.in_words() == "step 2,000 of 2,000, 200 tokens/s"


def test_progress_is_sent_where_it_moved(sent):
    progress = Progress("tiny", 20)
    progress.send()
    progress.send()
    progress.log(5, {"train/loss_nats": 2.5})
    progress.send()
    progress.send()
    assert sent == [(0.0, "step 0 of 20"), (25.0, "step 5 of 20, loss 2.500")]


def test_progress_is_sent_every_few_seconds_and_at_the_end(sent, looks, make_config, tokens):
    with shown(make_config(), tokens) as progress:
        for step in range(1, 21):
            progress.log(step, {"train/loss_nats": float(step)})
            if step in (4, 5, 13):
                looks.look()
    assert sent == [(5.0 * step, f"step {step} of 20, loss {step}.000") for step in (4, 5, 13, 20)]
    assert looks.asked == [UPDATE_SECONDS] * 4


def test_the_end_of_a_training_that_fails_is_sent_too(sent, make_config, tokens):
    with pytest.raises(Interruption), shown(make_config(), tokens) as progress:
        progress.log(13, {})
        raise Interruption
    assert sent == [(65.0, "step 13 of 20")]


def test_epochs_are_counted_in_steps(sent, make_config, tokens):
    config = make_config(training={"epochs": 2, "max_steps": None})
    steps = total_steps(config.training, block_count(tokens.splits["train"].tokens, config.data.seq_length))
    with shown(config, tokens):
        pass
    assert sent == [(0.0, f"step 0 of {steps}")]


@pytest.mark.usefixtures("prefect_server")
def test_the_server_shows_the_progress_and_a_link_to_the_record(make_config, tokens):
    def show() -> None:
        with shown(make_config().model_copy(update={"name": "My.Model"}), tokens) as progress:
            progress.link(None)
            progress.log(10, {"train/loss_nats": 2.5})
            progress.link("https://wandb.example/run/1")

    found = in_a_run(show)
    assert set(found) == {"my-model-training-progress", "my-model-weights-and-biases"}
    (progress,), (link,) = found["my-model-training-progress"], found["my-model-weights-and-biases"]
    assert (progress.type, progress.data, progress.description) == ("progress", 50.0, "step 10 of 20, loss 2.500")
    assert "https://wandb.example/run/1" in link.data


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://h/a)[x](javascript:y)\n<img>", "https://h/a%29%5Bx%5D%28javascript:y%29%0A%3Cimg%3E"),
        ("javascript:alert(1)", None),
    ],
)
def test_an_address_is_a_link_and_no_other_markup(url, link, monkeypatch):
    made = []
    monkeypatch.setattr(tasks.report, "create_progress_artifact", lambda percent, key, text: UUID(int=1))
    monkeypatch.setattr(tasks.report, "create_link_artifact", lambda link, text, **rest: made.append(link))
    progress = Progress("tiny", 20)
    progress.link(url)
    progress.send()
    assert made == ([link] if link else [])


def test_a_server_that_does_not_answer_is_one_warning(looks, make_config, tokens, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/api"
        away = temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0})
        with away, shown(make_config(), tokens) as progress:
            for step in range(1, 4):
                progress.log(step, {})
                looks.look()
    warnings = [record.message for record in caplog.records if record.name == "tasks.report"]
    assert len(warnings) == 1
    assert "the progress could not be shown" in warnings[0]


def test_a_first_version_is_beside_the_unigram_model_that_it_had_to_beat(publication):
    rows = compare(publication.published, publication.metrics)
    assert [row["split"] for row in rows] == ["test"] * 3 + ["validation"] * 3
    assert {tuple(row) for row in rows} == {("split", "documents", "metric", "v1", "unigram", "difference")}
    decision, test = publication.published.decision, publication.metrics.splits["test"]
    assert rows[0] == {
        "split": "test", "documents": "20", "metric": "loss (nats a token)", "v1": f"{test.loss_nats:.4f}",
        "unigram": f"{decision.champion:.4f}", "difference": f"{-decision.difference:.4f} better",
    }  # fmt: skip
    assert rows[1]["v1"] == f"{test.token_perplexity:.2f}"
    assert (rows[2]["metric"], rows[2]["v1"]) == ("bits a byte", f"{test.bits_per_byte:.4f}")


@pytest.mark.parametrize("policy", ["always", "never"])
def test_what_was_not_compared_stands_alone(policy, publication, tmp_path):
    """The champion's figures, of whatever text it was published with, stood beside it."""
    home = tmp_path / "models"
    shutil.copytree(publication.published.folder, home / "v1")
    (home / CHAMPION_FILE).write_text("v1\n")
    shutil.copytree(home / "v1", home / "v2")
    decision = Decision(promoted=policy == "always", reason=f"publish.policy={policy}")
    update = {"version": "v2", "path": str(home / "v2"), "decision": decision}
    rows = compare(publication.published.model_copy(update=update), publication.metrics)
    assert [row["split"] for row in rows] == ["validation"] * 4 + ["test"] * 4
    assert {tuple(row) for row in rows} == {("split", "metric", "v2")}
    test = publication.metrics.splits["test"]
    assert rows[4] == {"split": "test", "metric": "loss (nats a token)", "v2": f"{test.loss_nats:.4f}"}
    assert rows[7] == {"split": "test", "metric": "bits a byte", "v2": f"{test.bits_per_byte:.4f}"}


def test_the_card_has_its_pictures_in_it_and_no_front_matter(publication):
    folder = publication.published.folder
    text = card(folder)
    assert text.lstrip().startswith("# textgen v1")
    assert "model-index" not in text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (folder / CARD_FILE).read_text("utf-8"))
    assert pictures, "the card shows a curve"
    for name in pictures:
        assert f"]({name})" not in text
        assert base64.b64encode((folder / name).read_bytes()).decode() in text
    inlined = re.findall(r"!\[[^]]*\]\(data:image/png;base64,([^)]*)\)", text)
    assert [base64.b64decode(data)[:8] for data in inlined] == [b"\x89PNG\r\n\x1a\n"] * len(pictures)


@pytest.mark.usefixtures("prefect_server")
def test_the_server_shows_the_metrics_and_the_card(publication):
    found = in_a_run(lambda: show_model(publication.published, publication.metrics))
    assert set(found) == {"textgen-evaluation", "textgen-documents-that-moved", "textgen-model-card"}
    (table,), (markdown,) = found["textgen-evaluation"], found["textgen-model-card"]
    decision = publication.published.decision
    assert json.loads(table.data) == compare(publication.published, publication.metrics)
    assert table.description == f"Evaluation of textgen v1: {headline(decision)}. {background(decision)}"
    assert markdown.description == f"Published version textgen v1: {headline(decision)}."
    (documents,) = found["textgen-documents-that-moved"]
    assert documents.data == moved_in_markdown(decision, "v1")
    assert "data:image/png;base64," in markdown.data


@pytest.mark.usefixtures("prefect_server")  # else it starts one of its own
def test_a_model_that_cannot_be_shown_is_a_warning(publication, tmp_path, caplog):
    show_model(publication.published.model_copy(update={"path": str(tmp_path / "gone" / "v1")}), publication.metrics)
    assert "the model could not be shown" in caplog.text


@pytest.mark.parametrize(
    ("name", "key"), [("textgen", "textgen"), ("My_Model.v2", "my-model-v2"), ("Größe 塔", "gr--e--")]
)
def test_an_artifacts_key_is_of_lowercase_letters_digits_and_dashes(name, key):
    assert slug(name) == key
