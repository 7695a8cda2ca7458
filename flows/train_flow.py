"""The parent flow: fetch, tokenize, train, evaluate, publish; and the command `python -m flows.train_flow`."""

from flows.command_line import check_training, read_command
from flows.prefect_settings import check_settings

if __name__ == "__main__":
    command = read_command()
    check_settings()

import argparse
import contextvars
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from prefect import flow, get_client
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.form import ConfigName, DataChoices, Override, RunChoices, TrainingChoices, make_config, run_name
from flows.server import chosen_server
from flows.summary import summarize
from tasks.cancel import cancel_children, interrupted
from tasks.redact import redact, redacted
from textgen.bar import Console
from textgen.errors import Failure, carry_out
from textgen.terminal import printable, say
from textgen.text.local_files import NO_TEXT_YET, is_awaited

SERVER_HINT = (
    "PREFECT_API_URL names the server; without it the command uses one that runs on this machine, or starts a "
    "temporary one, whose errors PREFECT_SERVER_LOGGING_LEVEL=ERROR shows"
)


def name_run() -> str:
    """Return the name of a run: its configuration and what differs from it."""
    return run_name(flow_run.parameters)


@flow(
    name="train-flow",
    flow_run_name=name_run,
    on_cancellation=[cancel_children],
    persist_result=True,
    result_serializer="json",
)
@redacted()
def train_flow(
    config: ConfigName = "default",
    data: DataChoices = DataChoices(),  # noqa: B008  frozen
    training: TrainingChoices = TrainingChoices(),  # noqa: B008
    run: RunChoices = RunChoices(),  # noqa: B008
    overrides: list[Override] = [],  # noqa: B006  Prefect hands on a copy
) -> Any:
    """Make a published language model out of a corpus and return what each stage made.

    A stage whose inputs did not change is not run again; where none did, there is nothing to do.

    Args:
        config: The configuration to start from, a file of configs/.
        data: The text to train on: one source. What is left empty is as in the configuration.
        training: How to train. What is left empty is as in the configuration.
        run: What to do, and where.
        overrides: Other settings, as section.key=value, over everything above. `textgen config` shows every key.
    """
    made = make_config(config, training, run, overrides, data)
    if is_awaited(made.data.files):
        return Completed(name=NO_TEXT_YET.partition(":")[0], message=NO_TEXT_YET)
    from flows.stages import run_stages  # with them comes torch, which loads while the temporary server starts

    check_training(made)
    try:
        return run_stages(made, run)
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)


def main(options: argparse.Namespace) -> int:
    """Run the flow as the command says and return the exit code."""
    return carry_out(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    run = RunChoices(force=options.force, refresh=options.refresh)
    with chosen_server() as server:
        print(printable(redact(f"Prefect's server: {server}")), file=sys.stderr)
        with server_started():
            import textgen.training.train  # noqa: F401  with it torch, which takes as long
        try:
            result: Any = train_flow(options.config, run=run, overrides=options.overrides)
        except CancelledRun:
            raise KeyboardInterrupt from None
    if options.json:
        say(json.dumps(result, indent=2))
    else:
        if sys.stderr.isatty():  # between the log and the summary
            print(file=sys.stderr)
        summarize(result)


@contextmanager
def server_started() -> Iterator[None]:
    """Start Prefect's temporary server, if one is needed, while the block runs; at its end it answers.

    The server ignores Ctrl-C: the end of the run is still recorded in it.

    Raises:
        Failure: no server answers.
    """
    failures: list[Exception] = []

    def start() -> None:
        try:
            with get_client(sync_client=True) as client:
                failure = client.api_healthcheck()
        except Exception as error:
            failure = error
        if failure is not None:
            failures.append(failure)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which threads and new processes inherit
    thread = threading.Thread(target=contextvars.copy_context().run, args=(start,), name="server")
    thread.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        thread.join()
        if failures:
            raise Failure(f"the Prefect server does not answer: {failures[0]}; {SERVER_HINT}") from failures[0]


def terminate(number: int, frame: FrameType | None) -> None:
    """Leave on SIGTERM as programs do, so that the temporary server ends too."""
    raise SystemExit(128 + number)


def leave_once(number: int, frame: FrameType | None) -> None:
    """Leave on Ctrl-C. A second one is ignored: it would keep the run from being recorded as cancelled."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def set_up_console() -> None:
    """Show our own lines on stderr and not Prefect's, which are in the run's log; `main` says what failed."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.name.startswith("prefect"))
    console = Console()
    for name in ("textgen", "tasks"):
        logging.getLogger(name).addHandler(console)
        logging.getLogger(name).propagate = False


if __name__ == "__main__":
    set_up_console()
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background of a shell
        signal.signal(signal.SIGINT, leave_once)
    sys.exit(main(command))
