"""The commands on published models: list, show, promote, rollback."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textgen.commands.arguments import ROOT_HELP, Commands
from textgen.config import StorageConfig, parse_config
from textgen.errors import Damaged, InputError
from textgen.terminal import columns, say

if TYPE_CHECKING:
    from textgen.publishing.version import PublishedManifest


def add_models(commands: Commands) -> None:
    """Add `models` and its commands to the commands."""
    parser = commands.add_parser("models", help="published models: list, show, promote, rollback")
    of_models = parser.add_subparsers(required=True, metavar="command")
    for name, run, help_text in (
        ("list", _list, "the versions"),
        ("show", _show, "a version, verified, and why it was promoted or not"),
        ("promote", _promote, "make a version the champion"),
        ("rollback", _rollback, "make the champion before this one the champion again"),
    ):
        command = of_models.add_parser(name, help=help_text)
        if name == "show":
            command.add_argument("version", nargs="?", metavar="VERSION", help="as v3; else the champion")
        if name == "promote":
            command.add_argument("version", metavar="VERSION", help="as v3")
        command.add_argument("--name", default="textgen", help="the model's name in the registry")
        command.add_argument("--root", default=StorageConfig().root, help=ROOT_HELP)
        command.add_argument("--json", action="store_true")
        command.set_defaults(run=run)


def _list(options: argparse.Namespace) -> None:
    from textgen.model.find import numbers, read_champion
    from textgen.publishing.registry import opened_to_read
    from textgen.publishing.version import PublishedManifest

    storage, home = _open(options)
    rows, manifests = [], dict[str, PublishedManifest]()
    with opened_to_read(home, storage):
        champion = read_champion(home)
        for version in (f"v{number}" for number in numbers(home)):
            row = {"version": version, "champion": version == champion}
            try:
                manifests[version] = manifest = PublishedManifest.parse(home / version)
                rows.append({**row, "bits_per_byte": manifest.bits_per_byte, "reason": manifest.reason})
            except Damaged as damage:
                if (home / version).is_dir():  # else it was deleted just now
                    rows.append({**row, "bits_per_byte": None, "reason": str(damage)})
    if options.json:
        say(json.dumps(rows, indent=2))
        return
    for line in _list_lines(rows, manifests):
        say(line)


def _list_lines(rows: Sequence[dict[str, Any]], manifests: "dict[str, PublishedManifest]") -> Iterator[str]:
    """Yield a line a version, and say which figures were measured on another text than the champion's."""
    from textgen.publishing.verdict import decision_of, headline
    from textgen.publishing.version import measured_on

    champion = next((row["version"] for row in rows if row["champion"]), None)
    measured = {version: measured_on(manifest) for version, manifest in manifests.items()}
    reference = champion if champion in measured else next(reversed(measured), None)
    table, others = [("version", "", "bits a byte on validation", "against", "verdict")], False
    for row in rows:
        bits, opponent, verdict = "-", "-", row["reason"]
        if (version := row["version"]) in manifests:
            decision = decision_of(manifests[version])
            opponent, verdict = decision.opponent or "-", headline(decision)
        if row["bits_per_byte"] is not None:
            is_other = measured[version] != measured[reference or version]
            others = others or is_other
            bits = f"{row['bits_per_byte']:.4f}{' of another text' * is_other}"
        table.append((version, "champion" if row["champion"] else "", bits, opponent, verdict))
    if rows:
        yield from columns(table)
    if others:
        yield f"of another text, or by another protocol, than that of {reference}: the two figures cannot be compared"


def _show(options: argparse.Namespace) -> None:
    from textgen.model.find import find_version, read_champion
    from textgen.publishing.registry import opened_to_read
    from textgen.publishing.verdict import decision_of, headline, in_lines
    from textgen.publishing.version import PublishedManifest

    storage, home = _open(options)
    with opened_to_read(home, storage):
        champion = read_champion(home)
        folder = find_version(home, champion if options.version is None else options.version)
        try:
            manifest = PublishedManifest.read(folder)
        except Damaged:
            find_version(home, folder.name)  # it may have been deleted just now
            raise
        shown = {**manifest.content(), "champion": folder.name == champion, "path": str(folder)}
    if options.json:
        say(json.dumps(shown, indent=2))
        return
    decision = decision_of(manifest)
    place = "the champion" if folder.name == champion else f"the champion is {champion or 'none'}"
    say(f"{home.name} {folder.name}: {headline(decision)}; {place}")
    for line in in_lines(decision, folder.name):
        say(line)
    say("")
    for guard in decision.guards:
        say(f"{'passed' if guard.passed else 'FAILED':18} {guard.in_words()}")
    for name in ("protocol", "path", "checkpoint_sha256", "tokens_key"):
        say(f"{name:18} {shown.get(name, decision.protocol) or '-'}")


def _promote(options: argparse.Namespace) -> None:
    from textgen.publishing.registry import promote

    storage, home = _open(options)
    _report(options, home, promote(home, options.version, storage).version)


def _rollback(options: argparse.Namespace) -> None:
    from textgen.publishing.registry import rollback

    storage, home = _open(options)
    _report(options, home, rollback(home, storage).version)


def _open(options: argparse.Namespace) -> tuple[Any, Path]:
    """Return the storage and the folder of the models in it.

    Raises:
        InputError: there are none of that name, or it is no name of a model.
    """
    from textgen.storage import Storage

    try:
        parse_config({"name": options.name})
    except InputError as error:
        raise InputError(f"--{error}") from None
    storage = Storage.at(options.root)
    home = storage.models(options.name)
    if not home.is_dir() and not storage.folders(home, "v*"):
        raise InputError(f"--name {options.name}: there is no such model in {options.root}")
    return storage, home


def _report(options: argparse.Namespace, home: Path, champion: str) -> None:
    if options.json:
        say(json.dumps({"name": home.name, "champion": champion}))
    else:
        say(f"{home.name}@champion is {champion} now")
