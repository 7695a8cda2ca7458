"""Secrets of the environment reach no log record, however they get into it."""

import io
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.exceptions import CancelledRun

from tasks.redact import BLOT, redact, redacted
from tasks.stage import run_stage, stage
from tests.waiting import until
from textgen.config import Config
from textgen.errors import Failure, InputError
from textgen.files import Manifest

ROOT = Path(__file__).parents[2]
SECRET = "sk-not-for-anyone-0123456789"


@pytest.fixture(autouse=True)
def secret(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)


@pytest.fixture(params=["textgen.text.corpus", "tasks.stage", "prefect.engine", "httpx"])
def logged(request) -> Callable[..., str]:
    """Return a function that logs something on a logger and returns what a handler prints of it."""

    def log(*arguments: object, **options: object) -> str:
        logger, stream = logging.getLogger(request.param), io.StringIO()
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        try:
            logger.error(*arguments, **options)
        finally:
            logger.removeHandler(handler)
        return stream.getvalue()

    return log


class Address:
    """What shows a secret only when it is printed."""

    def __str__(self) -> str:
        return f"https://user:{SECRET}@host"


@pytest.mark.parametrize(
    "arguments",
    [
        (f"the key is {SECRET}!",),
        ("the key is %s!", SECRET),
        ("%(key)s!", {"key": SECRET}),
        ("%s and %r!", Address(), [SECRET]),
    ],
)
def test_a_secret_in_a_message_or_its_arguments_is_blotted_out(arguments, logged):
    text = logged(*arguments)
    assert SECRET not in text
    assert BLOT in text
    assert text.endswith("!\n")


def test_control_characters_of_foreign_text_are_their_escapes(logged):
    assert logged("read %s", "\x1b[31m/t/a[/b]c") == "read \\x1b[31m/t/a[/b]c\n"


def test_a_message_without_a_secret_keeps_its_arguments():
    record = logging.getLogger("textgen").makeRecord("textgen", 20, "", 1, "%d of %d", (3, 4), None)
    assert (record.msg, record.args, record.getMessage()) == ("%d of %d", (3, 4), "3 of 4")


def test_a_secret_in_a_traceback_and_its_causes_is_blotted_out(logged):
    def fail() -> None:
        try:
            try:
                raise KeyError(f"first {SECRET}")
            except KeyError as error:
                raise ValueError(f"second {SECRET}") from error
        except ValueError as error:
            raise ExceptionGroup("third", [RuntimeError(f"fourth {SECRET}")]) from error

    try:
        fail()
    except ExceptionGroup:
        text = logged("it failed", exc_info=True)
    assert SECRET not in text
    for part in (f"first {BLOT}", f"second {BLOT}", "third", f"fourth {BLOT}", "in fail", "it failed"):
        assert part in text


def test_a_traceback_without_a_secret_stays_an_exception():
    try:
        raise ValueError("nothing secret")
    except ValueError as error:
        record = logging.getLogger("textgen").makeRecord("textgen", 40, "", 1, "no", (), sys.exc_info())
        assert record.exc_info[1] is error


@pytest.mark.parametrize("kind", [InputError, Failure, CancelledRun])
def test_an_error_whose_message_says_all_has_no_traceback(kind, logged):
    try:
        raise kind("seed=x: an integer was expected")
    except kind as error:
        text = logged("Encountered exception during execution: %r", error, exc_info=True)
    assert text == f"Encountered exception during execution: {kind.__name__}('seed=x: an integer was expected')\n"


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("HF_TOKEN", True), ("AWS_SECRET_ACCESS_KEY", True), ("PREFECT_API_AUTH_STRING", True), ("PGPASSWORD", True),
        ("DB_PASSWORD", True), ("TEXTGEN_NOTIFY_URL", True), ("GOOGLE_APPLICATION_CREDENTIALS", True),
        ("hf_token", True), ("WANDB_APIKEY", True), ("SSH_PASSPHRASE", True), ("DB_CONNECTION_STRING", True),
        ("MONKEY", False), ("TOKENIZERS_PARALLELISM", False), ("KEYBOARD", False), ("PREFECT_API_URL", False),
    ],
)  # fmt: skip
def test_names_tell_which_values_are_secrets(name, hidden, monkeypatch):
    monkeypatch.setenv(name, "some-long-value")
    assert redact("it is some-long-value.") == (f"it is {BLOT}." if hidden else "it is some-long-value.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://prefect:{SECRET}@host/database"),
        ("HTTPS_PROXY", f"http://user:{SECRET}@proxy:3128"),
        ("PREFECT_API_AUTH_STRING", f"admin:{SECRET}"),
    ],
)
def test_a_password_within_a_value_is_a_secret(name, value, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv(name, value)
    assert redact(f"user, {SECRET}, host") == f"user, {BLOT}, host"


class Stubborn(Exception):
    """What keeps its message where nobody else can change it."""

    def __str__(self) -> str:
        return f"no entry with {SECRET}"


@pytest.mark.parametrize(
    "error", [ValueError(f"no entry with {SECRET}"), KeyError(SECRET), Stubborn(), OSError(5, SECRET)]
)
@pytest.mark.parametrize("within", ["flow", "stage"])
def test_a_secret_in_an_exception_is_in_no_state_of_a_run(within, error, prefect_server, make_config, tmp_path):
    config = make_config(storage={"root": str(tmp_path)})

    @stage(Manifest, lambda config: None)
    def fail(config: Config) -> None:
        raise error

    @flow
    @redacted()
    def failing() -> None:
        if within == "stage":
            run_stage(fail, config)
        raise error

    run_id = failing(return_state=True).state_details.flow_run_id
    with get_client(sync_client=True) as client:
        of_the_flow = FlowRunFilter(id={"any_": [run_id]})

        def ended_runs() -> list[FlowRun | TaskRun]:
            runs = [client.read_flow_run(run_id), *client.read_task_runs(flow_run_filter=of_the_flow)]
            return [run for run in runs if run.state is not None and run.state.is_final()]

        expected = 2 if within == "stage" else 1  # a task run's state comes a moment later, as an event
        runs = until(lambda: found if len(found := ended_runs()) >= expected else [], "the runs have ended")
    assert [run.state_name for run in runs] == ["Failed"] * expected
    for run in runs:
        assert SECRET not in run.state.message
        assert BLOT in run.state.message


def test_an_exception_without_a_secret_is_left_as_it_is():
    error = KeyError("nothing", 3)
    with pytest.raises(KeyError) as caught, redacted():
        raise error
    assert caught.value is error
    assert error.args == ("nothing", 3)


def test_short_values_are_words_that_logs_need(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "train")
    monkeypatch.setenv("NO_TOKEN", "")
    assert redact("train: cached") == "train: cached"


def test_a_secret_that_holds_another_one_is_blotted_out_whole(monkeypatch):
    monkeypatch.setenv("LONG_TOKEN", f"{SECRET}-and-more")
    assert redact(f"{SECRET}-and-more {SECRET}") == f"{BLOT} {BLOT}"


def test_arguments_that_do_not_fit_are_left_to_the_handlers():
    record = logging.getLogger("textgen").makeRecord("textgen", 20, "", 1, "%d", ("word",), None)
    assert record.args == ("word",)


def test_importing_a_task_is_enough():
    code = f"import tasks, logging; logging.basicConfig(); logging.getLogger('anyone').error('{SECRET}')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stderr == f"ERROR:anyone:{BLOT}\n"
