"""A training on another work pool: one live run for a training, waited for, cancelled, and told how it ended."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, FlowRun, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running, State

import tasks.dispatch
from tasks.cancel import cancel_children, ended_by, interrupted
from tasks.dispatch import (
    POLL_SECONDS,
    QUIET_SECONDS,
    SERVER_PATIENCE_SECONDS,
    explain,
    find_or_start,
    our_tag,
    persist,
    train_elsewhere,
    wait,
)
from tasks.follow import Followed
from tests.waiting import PATIENCE_SECONDS
from textgen.config import ComputeConfig, Config, StorageConfig
from textgen.errors import KINDS, Damaged, InputError, OutOfMemory, TrainingCancelled, TrainingLost
from textgen.storage import Storage

DEPLOYMENT = "train-nothing/elsewhere"
DAMAGE = Damaged("manifest.json is missing")
CONFIG = Config(compute=ComputeConfig(gpu_deployment=DEPLOYMENT), storage=StorageConfig(root="here"))


@flow(name="train-nothing")
def train_nothing(config: Any = None, tokens_key: str = "", folder: str = "") -> None:
    """Stand for the flow that trains: no worker runs it."""


@pytest.fixture(scope="module")
def client(prefect_server) -> Iterator[SyncPrefectClient]:
    """Return a client of a server that has a deployment on a pool without workers; made again, it is the same."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="elsewhere", type="process"), overwrite=True)
        client.create_deployment(client.create_flow(train_nothing), "elsewhere", work_pool_name="elsewhere")
        yield client


class Clock:
    """A clock that moves on only while somebody sleeps; `at_wake[n]` is called after the sleep of that number."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.at_wake: dict[int, Callable[[], object]] = {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        self.at_wake.get(len(self.slept), lambda: None)()


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    """Have our waits take no time, and return the clock that they go by."""
    clock = Clock()
    monkeypatch.setattr(tasks.dispatch, "time", clock)
    return clock


@pytest.fixture
def tag() -> str:
    """Return the tag of a training of the test's own."""
    return f"training:{uuid4().hex}"


@pytest.fixture
def start(client, tag) -> Callable[[], FlowRun]:
    """Return a function that finds or starts the run of the training."""
    return lambda: find_or_start(client, DEPLOYMENT, tag, {"folder": "k"})


def end(client: SyncPrefectClient, run: FlowRun, *states: State[Any]) -> FlowRun:
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


def test_a_run_of_the_deployment_is_started_with_its_parameters_and_tags(client, start, tag):
    run = client.read_flow_run(start().id)
    assert (run.work_pool_name, run.state_type) == ("elsewhere", StateType.SCHEDULED)
    assert run.parameters["folder"] == "k"
    assert {tag, our_tag()} <= set(run.tags)


@pytest.mark.parametrize("states", [[], [Pending()], [Pending(), Running()], [Pending(), Running(), Cancelling()]])
def test_a_live_run_is_joined(states, client, start):
    first = start()
    end(client, first, *states)
    assert start().id == first.id


def test_after_a_run_that_ended_comes_a_new_one(client, start):
    runs = [start()]
    for state in (Failed(), Crashed(), Cancelled()):
        end(client, runs[-1], state)
        runs.append(start())
        assert start().id == runs[-1].id
    assert len({run.id for run in runs}) == 4


def test_another_training_has_a_run_of_its_own(client, start):
    assert find_or_start(client, DEPLOYMENT, f"training:{uuid4().hex}", {}).id != start().id


def test_two_who_find_none_at_once_start_one_run(client, start, tag, monkeypatch):
    both_looked, read = threading.Barrier(2), SyncPrefectClient.read_flow_runs

    def look_together(self, **options: Any) -> list[FlowRun]:
        runs = read(self, **options)
        both_looked.wait(PATIENCE_SECONDS)
        return runs

    monkeypatch.setattr(SyncPrefectClient, "read_flow_runs", look_together)

    def start_one() -> UUID:
        with get_client(sync_client=True) as mine:
            return find_or_start(mine, DEPLOYMENT, tag, {}).id

    with ThreadPoolExecutor(2) as pool:
        first, second = [future.result() for future in [pool.submit(copy_context().run, start_one) for _ in range(2)]]
    assert first == second


def test_a_deployment_that_is_not_there_is_the_users_mistake(client, tag):
    with pytest.raises(InputError, match=r"^compute.gpu_deployment='train-model/no': the server has no such"):
        find_or_start(client, "train-model/no", tag, {})


def test_a_deployment_that_trains_nothing_is_the_users_mistake(client, tag):
    schema = {"type": "object", "properties": {"steps": {"type": "integer"}}, "required": ["steps"]}
    flow_id = client.create_flow(train_nothing)
    client.create_deployment(
        flow_id, "other", work_pool_name="elsewhere", parameter_openapi_schema=schema, enforce_parameter_schema=True
    )
    with pytest.raises(InputError) as error:
        find_or_start(client, "train-nothing/other", tag, {"folder": "k"})
    assert str(error.value) == "compute.gpu_deployment='train-nothing/other': it takes no training's parameters"


def test_waiting_ends_when_the_run_does(client, start, clock):
    run = start()
    clock.at_wake = {
        1: lambda: end(client, run, Pending(), Running()),
        4: lambda: end(client, run, Failed(message="no")),
    }
    ended = wait(client, run, 100)
    assert clock.slept == [POLL_SECONDS] * 4
    assert (ended.id, ended.state_type, ended.state.message) == (run.id, StateType.FAILED, "no")


def test_a_run_shows_how_far_the_one_is_that_it_waits_for_from_its_first_look_on(client, start, clock, caplog):
    """It was shown in the training's own run alone, and not in the one that a person had started."""
    caplog.set_level(logging.INFO)
    shown: list[tuple[float, str]] = []

    def show(step: int) -> None:
        progress = {"type": "progress", "flow_run_id": str(run.id), "data": step, "description": f"step {step} of 100"}
        client.request("POST", "/artifacts/", json=progress).raise_for_status()

    def look(run: FlowRun) -> None:
        followed.look(run)
        (artifact,) = of_this_run()
        shown.append((artifact.data, artifact.description))

    def of_this_run() -> list[Artifact]:
        own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run.id)]))
        return client.read_artifacts(artifact_filter=own)

    run, followed = start(), Followed(client, "My.Model")
    clock.at_wake = {
        1: lambda: end(client, run, Pending(), Running()),
        2: lambda: show(20),
        3: lambda: show(60),
        4: lambda: end(client, run, Crashed()),
    }

    @flow
    def waiting() -> str:
        wait(client, run, 100, look)
        return of_this_run()[0].key

    assert waiting() == "my-model-training-progress"
    link = f"[{run.name}](../../runs/flow-run/{run.id})"
    assert shown == [
        (0, f"{link}: waiting for a worker of the work pool elsewhere"), (0, f"{link}: starting"),
        (20, f"{link}: step 20 of 100"), (60, f"{link}: step 60 of 100"), (60, f"{link}: Crashed at step 60 of 100"),
    ]  # fmt: skip
    logged = [record.message for record in caplog.records if record.name == "tasks.follow"]
    assert logged == [f"{run.name}: waiting for a worker of the work pool elsewhere"], "a line every half minute"


def test_a_run_that_is_cancelled_before_it_started_is_not_shown_as_starting(client, start, clock, monkeypatch):
    run, followed, shown = start(), Followed(client, "My.Model"), list[str]()
    monkeypatch.setattr(followed.artifact, "show", lambda percent, text: shown.append(text))
    clock.at_wake = {1: lambda: end(client, run, Cancelled())}
    wait(client, run, 100, followed.look)
    assert [text.partition(": ")[2] for text in shown] == [
        "waiting for a worker of the work pool elsewhere", "Cancelled before the training began",
    ]  # fmt: skip


def test_a_progress_that_cannot_be_shown_is_one_warning(client, start, clock, caplog):
    run, followed = start().model_copy(update={"start_time": datetime.now(UTC)}), Followed(None, "textgen")
    for _ in range(3):
        followed.look(run)
    assert [record.levelname for record in caplog.records if record.name == "tasks.follow"] == ["WARNING"]


@pytest.mark.parametrize(
    ("states", "becomes"), [([], StateType.CANCELLED), ([Pending(), Running()], StateType.CANCELLING)]
)
def test_a_run_that_takes_too_long_is_cancelled(states, becomes, client, start, clock):
    run = start()
    end(client, run, *states)
    with pytest.raises(TrainingCancelled, match=r"compute.timeout_seconds=9.5 have passed"):
        wait(client, run, 9.5)
    assert 9.5 < clock.now <= 9.5 + POLL_SECONDS
    assert client.read_flow_run(run.id).state_type == becomes


@pytest.mark.parametrize("timeout_seconds", [QUIET_SECONDS, QUIET_SECONDS + 5 * POLL_SECONDS])
def test_a_pool_without_a_worker_is_mentioned_once_after_a_while(timeout_seconds, client, start, caplog):
    run = start()
    with pytest.raises(TrainingCancelled):
        wait(client, run, timeout_seconds)
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    mentioned = f"no worker of the work pool elsewhere has taken the run {run.name} yet"
    assert lines == ([mentioned] if timeout_seconds > QUIET_SECONDS else [])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Flow run encountered an exception: OutOfMemory: 3 GiB are too few", OutOfMemory("3 GiB are too few")),
        ("Flow run encountered an exception: InputError: seed=-1: no", InputError("seed=-1: no")),
        ("Flow run encountered an exception: RuntimeError: no", None),
        (None, None),
    ],
)
def test_a_failed_run_is_told_in_its_own_words(message, expected):
    error = explain(ended(Failed(message=message)), CONFIG, DAMAGE)
    expected = expected or TrainingLost(f"the run red-fox of {DEPLOYMENT} ended Failed: {message}")
    assert (type(error), str(error)) == (type(expected), str(expected))


def ended(state: State[Any], *tags: str) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="red-fox", state=state, tags=list(tags))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_failure_of_ours_keeps_its_kind(kind):
    error = explain(ended(Failed(message=f"Flow run encountered an exception: {kind.__name__}: no")), CONFIG, DAMAGE)
    assert (type(error), str(error)) == (kind, "no")


def test_a_run_without_a_state_is_continued_by_another_one():
    error = explain(ended(Completed()).model_copy(update={"state": None}), CONFIG, DAMAGE)
    assert type(error) is TrainingLost
    assert "no state" in str(error)


def test_a_crash_is_continued_by_another_run():
    error = explain(ended(Crashed(message="no sign of life for 300 seconds")), CONFIG, DAMAGE)
    assert type(error) is TrainingLost
    assert str(error) == f"the run red-fox of {DEPLOYMENT} ended Crashed: no sign of life for 300 seconds"


def test_a_cancelled_run_that_we_started_is_final_and_one_that_we_joined_is_not(prefect_server):
    @flow
    def explain_both() -> list[str]:
        runs = [ended(Cancelled(), our_tag()), ended(Cancelled(), "started-by:another")]
        return [type(explain(run, CONFIG, DAMAGE)).__name__ for run in runs]

    assert explain_both() == ["TrainingCancelled", "TrainingLost"]


def test_a_completed_run_that_left_nothing_here_used_another_storage():
    error = explain(ended(Completed()), CONFIG, DAMAGE)
    assert type(error) is InputError
    assert str(error) == f"{DEPLOYMENT} trained in another storage than storage.root=here: {DAMAGE}"


def refusal(status: int) -> PrefectHTTPStatusError:
    request = httpx.Request("GET", "http://server/api")
    return PrefectHTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


def unanswered() -> None:
    """Ask an address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        httpx.get(f"http://127.0.0.1:{unused.getsockname()[1]}", trust_env=False)


def answers(*errors: Exception | Callable[[], None]) -> tuple[Callable[[], str], list[int]]:
    """Return a question that fails in these ways and then is answered, and a list of the times it was asked."""
    asked: list[int] = []

    def ask() -> str:
        asked.append(len(asked))
        if len(asked) <= len(errors):
            failure = errors[len(asked) - 1]
            if isinstance(failure, Exception):
                raise failure
            failure()
        return "yes"

    return ask, asked


def test_a_server_that_is_down_for_a_while_is_asked_again(caplog):
    ask, asked = answers(refusal(503), unanswered, refusal(500))
    assert persist(ask) == "yes"
    assert len(asked) == 4
    assert caplog.text.count("the Prefect server does not answer") == 3


@pytest.mark.parametrize("error", [refusal(404), refusal(409), ObjectNotFound(refusal(404)), ValueError("no")])
def test_an_answer_that_is_no_is_taken(error):
    ask, asked = answers(error)
    with pytest.raises(type(error)):
        persist(ask)
    assert len(asked) == 1


@pytest.mark.parametrize("failure", [refusal(503), unanswered])
def test_patience_has_an_end(failure, clock, monkeypatch):
    patience = SERVER_PATIENCE_SECONDS if failure is not unanswered else 5 * POLL_SECONDS  # asking takes a moment
    monkeypatch.setattr(tasks.dispatch, "SERVER_PATIENCE_SECONDS", patience)
    ask, asked = answers(*[failure] * 1000)
    with pytest.raises((PrefectHTTPStatusError, httpx.ConnectError)):
        persist(ask)
    assert patience < clock.now <= patience + POLL_SECONDS
    assert 2 <= len(asked) == len(clock.slept) + 1 < 1000


def test_a_training_that_is_finished_here_starts_no_run(checkpoint, tokens, tmp_path):
    config = CONFIG.model_copy(update={"storage": StorageConfig(root=str(tmp_path))})
    assert train_elsewhere(config, tokens, checkpoint.folder, Storage(config.storage)) == checkpoint


def test_a_command_that_ctrl_c_ends_is_cancelled_with_its_children(client, tag):
    """It was Crashed, and the training on the other pool went on."""

    @flow
    def command() -> Any:
        child = find_or_start(client, DEPLOYMENT, tag, {}).id
        state = interrupted(KeyboardInterrupt())
        return Completed(data=[state.type, client.read_flow_run(child).state_type])

    assert command() == [StateType.CANCELLED, StateType.CANCELLED]


def test_a_run_of_a_worker_that_ctrl_c_ends_is_not_cancelled(monkeypatch):
    """The worker ends: another one continues its run."""
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid4()))
    with pytest.raises(KeyboardInterrupt):
        interrupted(KeyboardInterrupt())


def test_a_cancelled_run_cancels_its_children_at_once(client, tag, start):
    @flow
    def parent() -> tuple[str, list[str]]:
        waiting, running, done = [find_or_start(client, DEPLOYMENT, f"{tag}-{number}", {}).id for number in range(3)]
        return flow_run.id, [str(waiting), str(running), str(done)]

    stranger = start()
    parent_id, children = parent()
    waiting, running, done = [client.read_flow_run(UUID(child)) for child in children]
    end(client, running, Pending(), Running())
    end(client, done, Completed())
    run = client.read_flow_run(UUID(parent_id))
    cancel_children(flow=parent, flow_run=run, state=run.state)
    kinds = [client.read_flow_run(child.id).state_type for child in (waiting, running, done, stranger)]
    assert kinds == [StateType.CANCELLED, StateType.CANCELLING, StateType.COMPLETED, StateType.SCHEDULED]


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_run_that_is_told_to_end_is_cancelled_only_if_somebody_cancelled_it(cancelled, client):
    @flow
    def told_to_end() -> Any:
        if cancelled:
            client.set_flow_run_state(UUID(flow_run.id), Cancelling(), force=True)
        try:
            return ended_by(TerminationSignal(15))
        except TerminationSignal:
            return Completed(name="Passed on")

    state = told_to_end(return_state=True)
    assert (state.type, state.name) == (
        (StateType.CANCELLED, "Cancelled") if cancelled else (StateType.COMPLETED, "Passed on")
    )
    if cancelled:
        assert "the next run continues it" in state.message
