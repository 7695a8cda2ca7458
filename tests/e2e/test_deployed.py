"""Deployed runs on a real server and real workers, from the API, the command and the UI's form in a real browser."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser import SCREENSHOTS, open_page, submit
from tests.e2e.conftest import SECRET
from tests.e2e.runs import STEPS, TINY, check_one_version, tiny_run
from tests.e2e.services import until

pytestmark = pytest.mark.slow  # a run is two processes that import torch, and workers look for it every two seconds
OVERHEAD = 10  # at most so many times what a flow of empty tasks takes
EMPTY_FLOW = """
from prefect import flow, runtime, task

@task
def nothing() -> None: ...

@flow
def empty() -> str:
    for _ in range(5):
        nothing()
    return runtime.flow_run.id

print(empty())
"""


@pytest.fixture(scope="module")
def first(stack, corpus, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Return a storage, and the run asked for through the API that was the first in it."""
    root = tmp_path_factory.mktemp("first") / "data"
    return root, stack.wait(stack.create_run(tiny_run(corpus, f"storage.root={root}")))


def test_a_run_from_the_api_trains_on_the_other_pool_and_publishes(first, stack, corpus):
    root, run = first
    assert (run["state_name"], run["name"]) == ("Completed", run["name"]), run["state"]["message"]
    assert run["name"].startswith(f"default steps={STEPS} seed=1")
    (child,) = stack.children(run["id"])
    assert (child["state_name"], child["work_pool_name"], run["work_pool_name"]) == ("Completed", "gpu", "cpu")
    assert (root / "models" / "tiny" / "champion").read_text() == "v1\n"

    shown = stack.artifacts(run["id"])
    assert run["state"]["message"] == "tiny v1: promoted (publish.policy=always)"
    assert shown["tiny-training-progress"] == 100, "of the training on the other pool"
    rows = json.loads(shown["tiny-evaluation"])
    assert {row["metric"] for row in rows} == {
        "loss (nats a token)", "token perplexity", "word perplexity", "bits a byte",
    }  # fmt: skip
    assert "data:image/png;base64," in shown["tiny-model-card"]
    until(lambda: stack.artifacts(child["id"])["tiny-training-progress"] == 100, "the end of the progress is shown")
    for run_id, stage in ((run["id"], "publish: "), (child["id"], "train: ")):
        until(lambda: any(line.startswith(stage) for line in stack.logs(run_id)), f"the line of {stage}")  # noqa: B023
    everything = json.dumps([run, child, stack.logs(run["id"]), stack.logs(child["id"]), shown])
    assert SECRET not in everything

    again = stack.wait(stack.create_run(tiny_run(corpus, f"storage.root={root}")))
    assert (again["state_type"], again["state_name"]) == ("COMPLETED", "Nothing to do")
    assert "those of tiny v1" in again["state"]["message"]
    assert again["total_run_time"] < run["total_run_time"]
    assert stack.children(again["id"]) == []


def test_a_flow_takes_little_longer_than_its_stages(stack, corpus, tmp_path, record_property):
    def empty_seconds() -> float:
        return stack.run(stack.command(sys.executable, "-c", EMPTY_FLOW).splitlines()[-1])["total_run_time"]

    empty, overheads = [empty_seconds()], []
    command = [sys.executable, "-m", "flows.train_flow", "--json", "training.max_steps=20", corpus, *TINY]
    for _ in range(2):
        result = json.loads(stack.command(*command, f"storage.root={tmp_path / 'data'}"))
        flow_seconds = stack.run(result["run_id"])["total_run_time"]
        stage_seconds = sum(stage["seconds"] for stage in result["stages"].values())
        overheads.append(flow_seconds - stage_seconds)
    empty.append(empty_seconds())
    record_property("empty_seconds", empty)
    record_property("overhead_seconds", overheads)
    assert min(overheads) < OVERHEAD * max(empty)


def test_new_data_is_trained_on_and_force_trains_without_any(first, stack, corpus):
    root, run = first
    assert run["state_name"] == "Completed"
    parameters = tiny_run(corpus, f"storage.root={root}")
    train_file = Path(corpus.split("train: ")[1].split(",")[0])
    before = train_file.read_text()
    try:
        train_file.write_text(before + "one more cat\n")
        assert stack.wait(stack.create_run(parameters))["state_name"] == "Completed"
    finally:
        train_file.write_text(before)
    assert sorted(path.name for path in root.glob("models/tiny/v*")) == ["v1", "v2"]
    assert stack.wait(stack.create_run(parameters))["state_name"] == "Nothing to do"
    forced = stack.wait(stack.create_run(tiny_run(corpus, f"storage.root={root}", force=True)))
    assert forced["state_name"] == "Completed"
    assert len(stack.children(forced["id"])) == 1
    assert len(list(root.glob("checkpoints/*/manifest.json"))) == 3
    assert sorted(path.name for path in root.glob("models/tiny/v*")) == ["v1", "v2"], "the same bytes: no new version"


@pytest.mark.parametrize(
    ("parameters_of_a_mistake", "words"),
    [
        ({"training": {"steps": 0}}, "less than the minimum"),
        ({"training": {"learning_rate": "fast"}}, "learning_rate"),
        ({"config": "no-such-file"}, "no-such-file"),
        ({"run": {"promote": "perhaps"}}, "perhaps"),
        ({"overrides": ["training.max_step=3"]}, "training.max_step=3"),
        ({"training": {"epochs": 1}}, "epochs"),
    ],
)
def test_a_bad_value_is_refused_before_a_run_starts(parameters_of_a_mistake, words, stack):
    answer = stack.request_run(parameters_of_a_mistake)
    assert answer.status_code in (409, 422)
    assert words in answer.text


@pytest.fixture
def page() -> Iterator[Page]:
    with open_page() as page:
        yield page


def test_a_run_from_the_form_is_seen_to_its_model_card(stack, corpus, page, tmp_path):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.goto(f"{stack.url}/deployments")
    page.get_by_role("link", name="on-demand", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    numbers = page.get_by_role("spinbutton")
    expect(numbers).to_have_count(5)
    steps, learning_rate, _, _, seed = numbers.all()
    learning_rate.fill("0.003")
    seed.fill("7")
    overrides, texts = (corpus, f"storage.root={tmp_path / 'data'}", *TINY), page.get_by_role("textbox")
    before = texts.count()
    for number, override in enumerate(overrides, start=1):
        page.get_by_role("button", name="Add item").click()
        expect(texts).to_have_count(before + number)
        texts.last.fill(override)
    steps.fill("0")
    page.screenshot(path=SCREENSHOTS / "1-form.png", full_page=True)
    assert submit(page).status == httpx.codes.CONFLICT
    expect(page.get_by_text("0 is less than the minimum of 1").first).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "2-refused.png", full_page=True)

    steps.fill(str(STEPS))
    created = submit(page)
    assert created.status == httpx.codes.CREATED
    run_id = created.json()["id"]
    page.wait_for_url("**/deployments/deployment/*?tab=Runs")
    page.locator(f"a[href*='/runs/flow-run/{run_id}']").first.click()
    page.wait_for_url(f"**/runs/flow-run/{run_id}*")
    page.goto("about:blank")  # what moves on the page of a live run takes a whole processor
    stack.wait(run_id)
    page.go_back()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "3-completed.png", full_page=True)
    parameters = stack.run(run_id)["parameters"]
    assert parameters["training"] == {"steps": STEPS, "learning_rate": 0.003, "seed": 7}

    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("tiny-model-card").first.click()
    curve = page.get_by_alt_text("Loss while training").first
    expect(curve).to_be_visible()
    assert curve.evaluate("image => image.complete && image.naturalWidth") > 400
    page.screenshot(path=SCREENSHOTS / "4-model-card.png", full_page=True)


def test_the_pages_of_a_run_are_whole_in_both_themes_and_lead_to_its_training(first, stack, page):
    """In the UI that people come to, the second one; pictures show what no test sees."""
    _, run = first
    (child,) = stack.children(run["id"])
    on_demand = f"deployments/deployment/{stack.get('deployments/name/train-flow/on-demand')['id']}"
    of_run, of_child = f"runs/flow-run/{run['id']}", f"runs/flow-run/{child['id']}"
    places = {
        "deployment": (on_demand, run["name"]), "form": (f"{on_demand}/run", "Warm-up steps"),
        "flows": ("flows", "train-model"), "runs": ("runs", child["name"]), "artifacts": ("artifacts", "tiny-text"),
        "run": (f"{of_run}?tab=Details", "tiny v1: promoted"), "log": (f"{of_run}?tab=Logs", "Beginning flow run"),
        "run-artifacts": (f"{of_run}?tab=Artifacts", "tiny-evaluation"), "child": (f"{of_child}?tab=Logs", "Beginning"),
        **{key: (f"artifacts/key/{key}", run["name"]) for key in stack.artifacts(run["id"])},
    }  # fmt: skip
    for name, (place, words) in places.items():
        page.goto(f"{stack.url}/v2/{place}")
        expect(page.get_by_text(words).first).to_be_visible()
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.screenshot(path=SCREENSHOTS / f"ui-{name}-{theme}.png", full_page=True)
    body = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}, "type": {"any_": ["progress"]}}}
    (progress,) = stack.post("artifacts/filter", body)
    page.goto(f"{stack.url}/v2/artifacts/artifact/{progress['id']}")
    page.get_by_role("link", name=child["name"]).click()
    page.wait_for_url(f"**/v2/{of_child}*")


def test_of_two_runs_asked_for_at_once_one_trains_and_one_version_comes_out(stack, parameters, tmp_path):
    runs = [stack.create_run(parameters()), stack.create_run(parameters())]
    assert sorted(stack.wait(run_id)["state_name"] for run_id in runs) == ["Completed", "Nothing to do"]
    assert sum(len(stack.children(run_id)) for run_id in runs) == 1
    check_one_version(tmp_path / "data")


def test_the_next_monday_is_scheduled(stack):
    scheduled = stack.get("deployments/name/train-flow/scheduled")["id"]
    body = {"deployments": {"id": {"any_": [scheduled]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 1}
    (run,) = until(lambda: stack.post("flow_runs/filter", body), "the scheduler has run")
    start = datetime.fromisoformat(run["expected_start_time"])
    assert (start.weekday(), start.hour, start.minute, run["state_name"]) == (0, 3, 0, "Scheduled")
    assert start - datetime.now(UTC) < timedelta(days=7)


def test_the_weekly_recipe_waits_for_text(stack):
    run = stack.wait(stack.create_run({}, "train-flow/scheduled"))
    assert (run["state_name"], run["parameters"]["config"]) == ("Nothing to train on yet", "weekly")
    assert run["state"]["message"] == "Nothing to train on yet: put your text into data/text"


def test_a_schedule_for_wikitext_is_there_and_inactive(stack):
    schedules = stack.get("deployments/name/train-flow/scheduled")["schedules"]
    assert {one["slug"]: (one["active"], one["parameters"].get("config")) for one in schedules} == {
        "weekly": (True, None), "wikitext2": (False, "wikitext2"),
    }  # fmt: skip


def test_setting_up_twice_doubles_nothing(stack, tmp_path):
    def there() -> dict[str, list[str]]:
        names = {
            "work_pools": stack.post("work_pools/filter", {}),
            "automations": stack.post("automations/filter", {}),
            "deployments": stack.post("deployments/filter", {}),
            "block_documents": stack.post("block_documents/filter", {}),
        }
        return {kind: sorted(item["name"] for item in items) for kind, items in names.items()}

    before = there()
    stack.set_up(str(tmp_path))
    assert there() == before
    assert before["work_pools"] == ["cpu", "gpu"]
    assert before["deployments"] == ["gpu", "on-demand", "scheduled"]
