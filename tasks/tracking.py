"""Published versions in Weights & Biases: on the page of their run, and as artifacts, now or by `replay`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks import run_page
from tasks.tracker import Tracker, forgiving, warn
from tasks.wandb_run import choose_mode, has_key, is_unreachable, run_name, run_options, track
from textgen.config import Config, TrackingConfig
from textgen.errors import Damaged, Failure, InputError, carry_out
from textgen.files import expand_home, read_json, write_atomic
from textgen.model.find import number_of, read_champion
from textgen.model.pretrained import WEIGHTS_FILE
from textgen.publishing.version import LINEAGE_FILE, PublishedManifest, read_lineage
from textgen.storage import Storage
from textgen.terminal import counted, one_line, printable
from textgen.training.checkpoint import CheckpointManifest

log = logging.getLogger(__name__)

UPLOAD_TIMEOUT_SECONDS = 60  # of a version: its weights stay where they are
PENDING_FOLDER = Path("wandb", "pending")  # under the root: published versions that are yet to be sent
SENT_FOLDER = Path("wandb", "champions")  # by name, the version that has the alias `champion`
INPUTS = ("raw", "tokens")  # of a model, in its lineage
REPLAY = "`python -m tasks.tracking replay` sends it"


class Pending(BaseModel):
    """A published version that is to be sent; the rest is in its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    training_key: str  # the id of its run
    group: str | None
    tracking: TrackingConfig

    def file(self, root: Path) -> Path:
        return root / PENDING_FOLDER / f"{self.name}-{self.version}.json"


def track_model(config: Config, published: PublishedManifest, checkpoint: CheckpointManifest) -> None:
    """Show a published version on its run's page, and record it as an artifact: now, or at the next `replay`."""
    if config.tracking.mode == "disabled":
        return
    with forgiving(f"{published.name} {published.version} is not recorded"):
        pending = _note(config, published, checkpoint.folder.name)
        title = run_page.title_of(published, run_name(config, checkpoint.folder))
        facts = {"parameters": checkpoint.parameters, "steps": checkpoint.steps}
        with track(config, checkpoint.folder, **facts) as tracker:
            tracker.do(lambda run: _show(run, published, title))
            if pending is not None:
                tracker.do(lambda run: _send_now(run, pending, config.root))


def _show(run: Any, published: PublishedManifest, title: str) -> None:
    """Show what was published, and why, on the page of a run."""
    import wandb

    with forgiving(f"the page of {published.name} {published.version} is not complete"):
        run.name, run.notes = title, run_page.notes_of(published)
        outcome = "promoted" if published.promoted else "not promoted"
        run.tags = tuple(dict.fromkeys([*(run.tags or ()), published.version, outcome]))
        figures = run_page.decision_figures(published)
        tables = {
            name: wandb.Table(columns=list(titles), data=[list(row) for row in rows])
            for name, (titles, rows) in run_page.tables_of(published).items()
        }  # in the summary: `wandb leet` draws a curve of the rows of one in the history
        run.summary.update({name: value for name, value in {**figures, **tables}.items() if value is not None})
        run.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted(published.folder.glob("*.png"))})


def _note(config: Config, published: PublishedManifest, id: str) -> Pending | None:
    """Note that a version is to be sent; None where W&B is disabled."""
    if choose_mode(config.tracking) == "disabled":
        return None
    pending = Pending(
        name=published.name, version=published.version, training_key=id, group=config.name, tracking=config.tracking
    )
    write_atomic(pending.file(config.root), pending.model_dump_json(indent=2) + "\n")
    return pending


def _send_now(run: Any, pending: Pending, root: Path) -> None:
    """Send a version if the run is on the server; else it waits for `replay`."""
    if run.offline:
        if is_unreachable():
            warn(f"{pending.name} {pending.version} is not sent; {REPLAY}")
        return
    try:
        _send(run, pending, root)
    except Exception as error:  # the server's, the client's, the network's: the model is published all the same
        log.warning("Weights & Biases: %s; %s, from %s", one_line(error), REPLAY, pending.file(root).parent)
    else:
        pending.file(root).unlink()


def track_champion(config: Config, published: PublishedManifest) -> None:
    """Have the alias `champion` on the champion, where the last one that was sent is another version."""
    if config.tracking.mode == "disabled":
        return
    with forgiving(f"the champion of {published.name} is not recorded"):
        _track_champion(config, published)


def _track_champion(config: Config, published: PublishedManifest) -> None:
    home = published.folder.parent
    champion, pending_folder = read_champion(home), config.root / PENDING_FOLDER
    if champion is None or champion == _last_sent(config.root, published.name):
        return
    if (pending_folder / f"{published.name}-{champion}.json").exists():  # its turn comes with `replay`
        return
    try:
        manifest = PublishedManifest.read(home / champion)
    except Damaged as damage:
        log.warning("Weights & Biases: %s is not recorded as the champion: %s", champion, damage)
        return
    training = PurePosixPath(read_lineage(manifest.folder, "checkpoint", "folder")).name
    if (pending := _note(config, manifest, training)) is None:
        return
    if choose_mode(config.tracking) == "online" and not is_unreachable():
        tracker = Tracker(lambda: _resume(pending, config.root))
        tracker.do(lambda run: _send_now(run, pending, config.root))
        tracker.close()


def _last_sent(root: Path, name: str) -> str | None:
    file = root / SENT_FOLDER / name
    return file.read_text().strip() if file.exists() else None


def replay(root: Path) -> None:
    """Send the published versions that are pending under `root`.

    Raises:
        InputError: there is no such root, or no key for the server.
        Failure: a version could not be sent.
    """
    if not root.is_dir():
        raise InputError(f"--root={str(root)!r}: there is no such folder")
    files = sorted((root / PENDING_FOLDER).glob("*.json"), key=_order)
    if files and not has_key():
        raise InputError("Weights & Biases: there is no key; set WANDB_API_KEY, or run `wandb login`")
    if not files:
        print("nothing is to be sent", file=sys.stderr)
    failed = 0
    for file in files:
        outcome = "sent"
        try:
            pending = Pending.model_validate_json(file.read_bytes())
            if (Storage.at(root).models(pending.name) / pending.version).is_dir():
                with _resume(pending, root) as run:
                    _send(run, pending, root)
            else:
                outcome = "no longer there"
        except Exception as error:  # as in `_send_now`: it can be sent again
            print(printable(f"{file.stem}: {one_line(error)}; it is still in {file}"), file=sys.stderr)
            failed += 1
            continue
        file.unlink()
        print(f"{file.stem}: {outcome}", file=sys.stderr)
    if failed:
        raise Failure(f"{counted(failed, 'version')} could not be sent; the same command sends what is left")


def _order(pending: Path) -> tuple[str, int]:
    """Return a key to sort by: the name, then the version's number. What the server gets last is its `latest`."""
    name, _, version = pending.stem.rpartition("-")
    return name, number_of(version)


def _resume(pending: Pending, root: Path) -> Any:
    """Open the run of a published version on the server, as it is there."""
    import wandb

    try:
        return wandb.init(mode="online", **run_options(pending.tracking, root, pending.training_key, pending.group))
    except Exception:
        wandb.teardown()  # the failed run still holds its id
        raise


def _send(run: Any, pending: Pending, root: Path) -> None:
    """Record a version, its inputs and its place in the registry. What the server has already is not sent again."""
    storage = Storage.at(root)
    home = storage.models(pending.name)
    published = PublishedManifest.read(home / pending.version)
    lineage = read_json(published.folder / LINEAGE_FILE)
    aliases = [f"{pending.name}-{pending.version}"]  # v1, v2, … are the server's own
    is_champion = read_champion(home) == pending.version
    if is_champion:
        aliases.append("champion")
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

    metadata = {name: value for name, value in record.items() if name != "sha256"}
    artifact = wandb.Artifact(f"{kind}-{record['key']}", type="dataset", metadata=metadata)
    with artifact.new_file("sha256.json") as file:
        json.dump(record["sha256"], file, indent=2)
    return artifact


def model_artifact(published: PublishedManifest, lineage: dict[str, Any]) -> Any:
    """Return the artifact of a published version: its small files, its weights by reference, what it comes from."""
    import wandb

    known = {name: lineage[name] for name in ("git_commit", "flow_run", "decision")}
    keys = {f"{kind}_key": lineage[kind]["key"] for kind in (*INPUTS, "checkpoint", "evaluation")}
    metadata = {"version": published.version, "weights_sha256": published.checkpoint_sha256, **keys, **known}
    artifact = wandb.Artifact(published.name, type="model", metadata=metadata)
    for path in sorted(published.folder.iterdir()):
        if path.name == WEIGHTS_FILE:
            artifact.add_reference(path.absolute().as_uri(), name=path.name)
        else:
            artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m tasks.tracking replay` and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.tracking", description="Send to Weights & Biases what waits."
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser(
        "replay", help="send the published versions that could not be sent when they were made"
    )
    command.add_argument("--root", type=expand_home, default=Path("data"), help="the storage root")
    root = parser.parse_args(arguments).root
    return carry_out(lambda: replay(root))


if __name__ == "__main__":
    sys.exit(main())
