"""What every stage shares: its retries, its cache key, and the check of a cached result before it is believed."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.serializers import JSONSerializer
from prefect.states import State
from prefect.utilities.importtools import to_qualified_name
from pydantic import BaseModel, ConfigDict

from tasks.redact import redacted
from textgen.config import Config
from textgen.errors import Damaged, Failure, SourceUnavailable, StorageUnavailable
from textgen.files import Manifest, content_key, mark_used, set_aside
from textgen.publishing import index
from textgen.storage import Storage

log = logging.getLogger(__name__)

NETWORK_RETRY_SECONDS = [1.0, 4.0, 10.0]
NETWORK_PATIENCE_SECONDS = 20  # with the client's own waits of up to 23 s, a user hears within a minute
CACHE_FOLDER = "cache"
NAMES_A_CLASS = ("__class__", "__exc_type__")  # in the JSON of Prefect's records


class StageReport(BaseModel):
    """How long a stage took and whether its result was there already."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    cached: bool


def flow_run_id() -> str | None:
    """Return the id of the flow run that this is a part of, None outside one."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context is not None and context.flow_run is not None else None


def is_transient(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether to try a failed task again: where the Hub or the storage did not answer, and not for long."""
    try:
        state.result()
    except StorageUnavailable as error:
        return error.transient
    except SourceUnavailable as error:
        waited = (datetime.now(UTC) - run.start_time).total_seconds() if run.start_time is not None else 0.0
        if error.transient and waited < NETWORK_PATIENCE_SECONDS:
            log.warning("the Hugging Face Hub did not answer; trying again")
            return True
    except Exception:  # every other failure is final, and is reported where the flow reads the result
        return False
    return False


def stage(
    makes: type[Manifest],
    key: Callable[..., str | None],
    retry_if: Callable[[Task[Any, Any], TaskRun, State[Any]], bool] | None = None,
    retry_seconds: Sequence[float] = (),
) -> Callable[[Callable[..., Any]], Task[..., Any]]:
    """Return a decorator: a task whose result, a manifest of type `makes`, is cached under `key` of its own arguments.

    The record of a cached result is JSON. One that is not this task's is not loaded, and the stage runs.
    A failure of which `retry_if` is true is tried again after each of `retry_seconds`.
    """

    def cache_key(context: TaskRunContext, arguments: dict[str, Any]) -> str | None:
        content, root = key(**arguments), arguments["config"].root
        if content is None:
            return None
        # A result holds paths: where the storage was moved, or is reached from elsewhere, it is another result.
        name = f"{context.task.name}-{content_key(content, str(root), str(root.resolve()))}"
        return name if can_be_loaded(root.resolve() / CACHE_FOLDER / name, makes) else None

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        return task(
            cache_key_fn=cache_key,
            persist_result=True,
            result_serializer="json",
            retries=len(retry_seconds),
            retry_delay_seconds=list(retry_seconds),
            retry_condition_fn=retry_if,
        )(redacted()(function))

    return decorate


def can_be_loaded(record: Path, makes: type[Manifest]) -> bool:
    """Return whether Prefect may load a cached record, or write one where there is none.

    A record that is not of a `makes` is set aside. One that cannot be read is left, and nothing is cached. Prefect uses
    the serializer that a record names and imports every class that it names. A pickle, or a record of other classes,
    could run any code; a class that has moved comes back as a dict.
    """
    try:
        check_record(record, makes)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError) as error:
        set_aside(record, Damaged(f"{record} is not a record of a {makes.__name__} ({' '.join(str(error).split())})"))
    except OSError as error:
        log.warning("%s cannot be read (%s): the result is not cached", record, error.strerror)
        return False
    return True


def check_record(record: Path, makes: type[Manifest]) -> None:
    """Check that a record holds a `makes` as JSON, and names no other class and no other serializer.

    Raises:
        ValueError, KeyError, TypeError: it does not.
        FileNotFoundError: there is none.
    """
    content = json.loads(record.read_bytes())
    serializer, expected = content["metadata"]["serializer"], JSONSerializer().model_dump()
    if serializer != expected:
        raise ValueError(f"written by the serializer {serializer}")
    objects: list[dict[str, Any]] = []

    def note(found: dict[str, Any]) -> dict[str, Any]:
        objects.append(found)
        return found

    json.loads(content["result"], object_hook=note)
    named = [found[name] for found in objects for name in NAMES_A_CLASS if name in found]
    if named != [to_qualified_name(makes)]:
        raise ValueError(f"of the classes {named}")
    makes.model_validate(objects[-1]["data"])  # the outermost object ends last


def note_in_index(stage: str, manifest: Manifest, config: Config) -> None:
    """Note in data/index.json what a stage made. It is no reason for a run to fail."""
    try:
        index.note(Storage(config.storage), stage, manifest, config, flow_run_id())
    except (Failure, KeyError, OSError) as error:  # KeyError: of a version that an old commit made
        log.warning("%s was not noted in the index: %s", manifest.key, error)


def run_stage(stage_task: Task[..., Any], config: Config, **arguments: Any) -> tuple[Any, StageReport]:
    """Run a stage and return its manifest and report.

    Prefect's cache checks that a result was recorded. A hit is believed only if the files verify and the manifest
    beside them says the same; otherwise the stage runs again.
    """
    started = time.monotonic()
    stage_task = stage_task.with_options(result_storage=config.root.resolve() / CACHE_FOLDER)
    state = stage_task(config=config, **arguments, return_state=True)
    manifest: Manifest = state.result()
    cached = state.name == "Cached"
    if cached:
        mark_used(manifest.folder)
        try:
            if not manifest.says_the_same(type(manifest).read(manifest.folder)):
                raise Damaged(f"{manifest.folder}: its manifest says something else than the cached record")
        except Damaged as damage:
            log.warning("%s: the cached result of %s is not believed", damage, stage_task.name)
            manifest = stage_task.with_options(refresh_cache=True)(config=config, **arguments)
            cached = False
    cached = cached or not manifest.built
    report = StageReport(seconds=time.monotonic() - started, cached=cached)
    log.info("%s: %s", stage_task.name, "cached" if cached else f"{report.seconds:.1f} seconds")
    note_in_index(stage_task.name, manifest.model_copy(update={"built": not cached}), config)
    return manifest.model_copy(update={"built": False}), report
