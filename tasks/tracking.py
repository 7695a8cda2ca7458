"""Weights & Biases: the record of a run. The only module that imports wandb, and never a reason for a run to fail."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext
from pydantic import BaseModel, ConfigDict

from textgen.config import Config, TrackingConfig
from textgen.errors import FAILURE, USER_MISTAKE, Damaged
from textgen.files import read_json, write_atomic
from textgen.model.find import read_champion
from textgen.publishing.version import LINEAGE_FILE, PublishedManifest, read_lineage
from textgen.storage import Storage
from textgen.terminal import one_line, printable

log = logging.getLogger(__name__)

INIT_TIMEOUT_SECONDS = 30
UPLOAD_TIMEOUT_SECONDS = 1800
PENDING_FOLDER = Path("wandb", "pending")  # under the root: published versions that are yet to be sent
SENT_FOLDER = Path("wandb", "champions")  # by name, the version that has the alias `champion`
INPUTS = ("raw", "tokens")  # of a model, in its lineage
_unreachable = False  # the server did not answer this process: the stages after do not wait for it again
_warned: set[str] = set()  # what this process has said already


@contextmanager
def forgiving(consequence: str) -> Iterator[None]:
    """Turn any failure of the block into a warning that ends with the consequence, given once."""
    try:
        yield
    except Exception as error:  # the server's, the client's, the disk's, the environment's: the work is what counts
        _warn(f"{one_line(error)}; {consequence}")


def _warn(message: str) -> None:
    """Log a warning, once a process."""
    if message not in _warned:
        _warned.add(message)
        log.warning("Weights & Biases: %s", message)


class Tracker:
    """A W&B run that is opened when the first figure comes, so that a stage that does nothing leaves no run behind.

    After a failure nothing more is recorded.
    """

    def __init__(self, config: Config, key: str, job_type: str) -> None:
        self.config, self.key, self.job_type = config, key, job_type
        self._run: Any = None
        self._recording = config.tracking.mode != "disabled"

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record figures of a training step."""
        self._record(lambda run: run.log(figures, step=step))

    def summarize(self, figures: dict[str, float | None]) -> None:
        """Record figures of the whole run."""
        known = {name: value for name, value in figures.items() if value is not None}
        self._record(lambda run: run.summary.update(known))

    @property
    def url(self) -> str | None:
        """Return the address of the run on the server, None where it is recorded offline or not at all."""
        is_online = self._run is not None and self._recording and not self._run.offline  # else asking is a warning
        return self._run.url if is_online else None

    def _record(self, record: Callable[[Any], object]) -> None:
        if not self._recording:
            return
        self._recording = False  # unless this goes well
        with forgiving("the run is not recorded further"):
            record(self.run)
            self._recording = True

    @property
    def run(self) -> Any:
        if self._run is None:
            self._run = self._open()
            self._run.define_metric("train/tokens")
            self._run.define_metric("train/*", step_metric="train/tokens")
            self._run.define_metric("validation/loss_nats", summary="min")
        return self._run

    def _open(self) -> Any:
        """Open the run, offline where W&B refuses. Later stages do not ask a server again that did not answer."""
        global _unreachable
        import wandb

        mode = "offline" if _unreachable else "as it was set"
        try:
            if not _unreachable:
                mode = choose_mode(self.config.tracking)
            return self._init(mode)
        except Exception as error:  # of the server, of the client, of a setting in the environment
            if mode == "offline":
                raise
            _unreachable = _unreachable or mode == "online"
            wandb.teardown()  # the failed run still holds its id
            run = self._init("offline")
            _warn(f"{one_line(error)}; recording offline")
            return run

    def _init(self, mode: Any) -> Any:
        import wandb

        options = _options(self.config.tracking, self.config.root, self.key, flow_run_id())
        described = self.config.model_dump(mode="json")
        return wandb.init(mode=mode, job_type=self.job_type, config=described, **options)

    def close(self, failed: bool) -> None:
        """End the record, if there is one."""
        if self._run is not None:
            with forgiving("the end of the run is not recorded"):
                self._run.finish(exit_code=int(failed))


@contextmanager
def track(config: Config, key: str, job_type: str) -> Iterator[Tracker]:
    """Yield the tracker of one stage of the training `key`."""
    tracker = Tracker(config, key, job_type)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


def choose_mode(tracking: TrackingConfig) -> str:
    """Return W&B's mode: `auto` is WANDB_MODE if that is set (wandb checks it), else online with a key."""
    if tracking.mode != "auto":
        return tracking.mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    import wandb
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return get_netrc_auth(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url) is not None


def flow_run_id() -> str | None:
    """Return the id of the flow run that this is a part of, None outside one."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context is not None and context.flow_run is not None else None


def _options(tracking: TrackingConfig, root: Path, key: str, group: str | None) -> dict[str, Any]:
    """Return what every part of the record of the training `key` is opened with."""
    import wandb

    return {
        "project": tracking.project,
        "entity": tracking.entity,
        "id": key,  # the training's: a retry goes on in the same run
        "resume": "allow",
        "group": group,
        "dir": root,
        "settings": wandb.Settings(console="off", silent=True, init_timeout=INIT_TIMEOUT_SECONDS),
    }


class Pending(BaseModel):
    """A published version that is to be sent; the rest is in its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    training_key: str
    group: str | None
    tracking: TrackingConfig


def track_model(config: Config, published: PublishedManifest, training_key: str) -> None:
    """Record a published version as an artifact, now if the server is there, else at the next `replay`."""
    with forgiving(f"{published.name} {published.version} is not recorded"):
        _track_model(config, published, training_key)


def _track_model(config: Config, published: PublishedManifest, training_key: str) -> None:
    if (mode := choose_mode(config.tracking)) == "disabled":
        return
    pending = Pending(
        name=published.name, version=published.version, training_key=training_key, group=flow_run_id(),
        tracking=config.tracking,
    )  # fmt: skip
    file = config.root / PENDING_FOLDER / f"{published.name}-{published.version}.json"
    write_atomic(file, pending.model_dump_json(indent=2) + "\n")
    if mode != "online" or _unreachable:
        return
    try:
        _send(pending, config.root)
    except Exception as error:  # the server's, the client's, the network's: the model is published all the same
        log.warning(
            "Weights & Biases: %s; `python -m tasks.tracking replay` sends what is in %s", one_line(error), file.parent
        )
    else:
        file.unlink()


def track_champion(config: Config, published: PublishedManifest) -> None:
    """Have the alias `champion` on the champion, where the last one that was sent is another version."""
    with forgiving(f"the champion of {published.name} is not recorded"):
        _track_champion(config, published)


def _track_champion(config: Config, published: PublishedManifest) -> None:
    home = published.folder.parent
    champion, pending = read_champion(home), config.root / PENDING_FOLDER
    if champion is None or champion == _last_sent(config.root, published.name):
        return
    if (pending / f"{published.name}-{champion}.json").exists():  # its turn comes with `replay`
        return
    try:
        manifest = PublishedManifest.read(home / champion)
    except Damaged as damage:
        log.warning("Weights & Biases: %s is not recorded as the champion: %s", champion, damage)
        return
    _track_model(config, manifest, read_lineage(manifest.folder, "checkpoint", "key"))


def _last_sent(root: Path, name: str) -> str | None:
    file = root / SENT_FOLDER / name
    return file.read_text().strip() if file.exists() else None


def replay(root: Path) -> int:
    """Send the published versions that are pending under `root`; return the exit code."""
    files = sorted((root / PENDING_FOLDER).glob("*.json"))
    if files and not _has_key():
        print("Weights & Biases: there is no key; set WANDB_API_KEY, or run `wandb login`", file=sys.stderr)
        return USER_MISTAKE
    failed = False
    for file in files:
        outcome = "sent"
        try:
            pending = Pending.model_validate_json(file.read_bytes())
            if (Storage.at(root).models(pending.name) / pending.version).is_dir():
                _send(pending, root)
            else:
                outcome = "no longer there"
        except Exception as error:  # as in `track_model`: it can be sent again
            print(printable(f"{file.stem}: {one_line(error)}; it is still in {file}"), file=sys.stderr)
            failed = True
            continue
        file.unlink()
        print(f"{file.stem}: {outcome}", file=sys.stderr)
    return FAILURE if failed else 0


def _send(pending: Pending, root: Path) -> None:
    """Record a version, its inputs and its place in the registry. What the server has already is not sent again."""
    import wandb

    home = Storage.at(root).models(pending.name)
    published = PublishedManifest.read(home / pending.version)
    lineage = read_json(published.folder / LINEAGE_FILE)
    options = _options(pending.tracking, root, pending.training_key, pending.group)
    aliases = [f"{pending.name}-{pending.version}"]  # v1, v2, … are the server's own
    is_champion = read_champion(home) == pending.version
    if is_champion:
        aliases.append("champion")
    try:
        opened = wandb.init(mode="online", job_type="publish", **options)
    except Exception:
        wandb.teardown()  # the failed run still holds its id
        raise
    with opened as run:
        for kind in INPUTS:
            run.use_artifact(input_artifact(kind, lineage[kind]))
        logged = run.log_artifact(model_artifact(published, lineage), aliases=aliases)
        logged.wait(timeout=UPLOAD_TIMEOUT_SECONDS)
        if is_champion and pending.tracking.registry is not None:
            target = f"wandb-registry-{pending.tracking.registry}/{pending.name}"
            run.link_artifact(logged, target, aliases=aliases)
    if is_champion:
        write_atomic(root / SENT_FOLDER / pending.name, pending.version + "\n")


def input_artifact(kind: str, record: dict[str, Any]) -> Any:
    """Return an artifact that names the files of a stage by their sha256, and holds none."""
    import wandb

    metadata = {"folder": record["folder"], "key": record["key"]}
    artifact = wandb.Artifact(f"{kind}-{record['key']}", type="dataset", metadata=metadata)
    with artifact.new_file("sha256.json") as file:
        json.dump(record["sha256"], file, indent=2)
    return artifact


def model_artifact(published: PublishedManifest, lineage: dict[str, Any]) -> Any:
    """Return the artifact of a published version: its folder, and what it comes from."""
    import wandb

    known = {name: lineage[name] for name in ("git_commit", "flow_run", "decision")}
    artifact = wandb.Artifact(published.name, type="model", metadata={"version": published.version, **known})
    artifact.add_dir(str(published.folder), policy="immutable", skip_cache=True)
    return artifact


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m tasks.tracking replay` and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.tracking", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser(
        "replay", help="send the published versions that could not be sent when they were made"
    )
    command.add_argument("--root", type=Path, default=Path("data"), help="the storage root")
    return replay(parser.parse_args(arguments).root)


if __name__ == "__main__":
    sys.exit(main())
