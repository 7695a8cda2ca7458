"""`textgen serve`: the version in use, behind OpenAI's API."""

import argparse
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from textgen.commands.arguments import MODEL_HELP, ROOT_HELP, Commands, add_mode, read_mode
from textgen.config import Config, StorageConfig
from textgen.errors import FAILURE, InputError

if TYPE_CHECKING:
    import torch

    from textgen.inference.worker import Version
    from textgen.storage import Storage

log = logging.getLogger(__name__)

KEY_VARIABLE = "TEXTGEN_API_KEY"
LOCAL = ("127.0.0.1", "::1", "localhost")
DRAIN_SECONDS = 300  # for the answers that are under way when the server is told to end
REMOTE_SECONDS = 10  # between two looks at which version a remote root has in use


def add_serve(commands: Commands) -> None:
    """Add `serve` to the commands."""
    parser = commands.add_parser("serve", help="serve the version in use behind OpenAI's API")
    parser.add_argument("--model", default=f"{Config().name}@champion", help=f"{MODEL_HELP}; default: %(default)s")
    parser.add_argument("--root", default=StorageConfig().root, help=ROOT_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rows", type=int, default=16, help="how many texts are written at once")
    add_mode(parser, compiled=True)
    parser.add_argument("--allow-origin", metavar="URL", help="a site whose pages may ask this server")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import uvicorn

    from textgen.inference.server import Settings, make_app
    from textgen.model.device import choose_device, prepare_cpu
    from textgen.storage import Storage

    if options.rows < 1:
        raise InputError(f"--rows={options.rows}: one or more are needed")
    if not 0 <= options.port < 2**16:
        raise InputError(f"--port={options.port}: 0 to 65535 are needed")
    key = os.environ.get(KEY_VARIABLE) or None
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise InputError(f"{KEY_VARIABLE}: printable ASCII is needed, without spaces around it, as in an HTTP header")
    check_address(options.host, options.port)
    if key is None and options.host not in LOCAL:
        log.warning("without %s, everybody who can reach %s may use this server", KEY_VARIABLE, options.host)
    storage, device = Storage.at(options.root), choose_device(options.device, "--device")
    source = find_source(options.model, storage, device)
    log.info("serving %s of %s", options.model, options.root)
    if not storage.is_remote and not storage.local.is_dir():
        log.warning("--root=%s: there is no such folder yet", options.root)
    prepare_cpu(1)
    settings = Settings(
        key=key, allow_origin=options.allow_origin, rows=options.rows, mode=read_mode(options),
        follow_seconds=REMOTE_SECONDS if storage.is_remote else Settings.follow_seconds,
    )  # fmt: skip
    app = make_app(source, settings)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: object) -> None:
            if shared := getattr(app.state, "shared", None):
                shared.draining = True
            self.force_exit = self.should_exit  # the second time
            self.should_exit = True

    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    server = Server(
        uvicorn.Config(
            app, host=options.host, port=options.port, log_config=None, access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )  # fmt: skip
    server.run()
    if server.force_exit:
        os._exit(FAILURE)  # the engine still computes, and Python's own end would abort within torch
    if not server.started:
        sys.exit(FAILURE)


def check_address(host: str, port: int) -> None:
    """Check that a server can listen there, before a model is loaded.

    Raises:
        InputError: there is no such host here, or the port is taken.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        raise InputError(f"--host={host} --port={port}: {error.strerror}") from None


def find_source(model: str, storage: "Storage", device: "torch.device") -> "Fixed | Registry":
    """Return where the versions of MODEL come from: one that stays, or the champion as it moves."""
    from textgen.model.find import resolve

    name, at, version = model.rpartition("@")
    if at and version == "champion":
        return Registry(name, storage, device)
    return Fixed(resolve(model, storage), device)


class Fixed:
    """A model that stays the one it is: a published version has its own name, any other that of its folder."""

    def __init__(self, folder: Path, device: "torch.device") -> None:
        from textgen.publishing.version import read_name

        self.folder, self.device = folder, device
        published = read_name(folder)
        self.name = folder.resolve().name if published is None else published[0]
        self.version = self.name if published is None else "@".join(published)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def current(self) -> str:
        return self.version

    def load(self, version: str) -> "Version":
        if version != self.version:
            raise InputError(f"{version}: this server was started for {self.version}")
        return load_version(version, self.folder, self.device)


class Registry:
    """The published versions of a name, of which the champion is in use."""

    def __init__(self, name: str, storage: "Storage", device: "torch.device") -> None:
        self.name, self.storage, self.device = name, storage, device

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, f"{self.name}@champion"

    def current(self) -> str | None:
        from textgen.model.find import bring_champion

        version = bring_champion(self.storage.models(self.name), self.storage)
        return None if version is None else f"{self.name}@{version}"

    def load(self, version: str) -> "Version":
        from textgen.config import VERSION
        from textgen.model.find import resolve

        if not VERSION.fullmatch(version.removeprefix(f"{self.name}@")):
            raise InputError(f"{version!r}: a version is named as {self.name}@v3")
        return load_version(version, resolve(version, self.storage), self.device)


def load_version(name: str, folder: Path, device: "torch.device") -> "Version":
    """Return the model of a folder that was checked against its manifest, with its figures."""
    from textgen.inference.worker import Probe, Version
    from textgen.model.pretrained import load_finite_model
    from textgen.publishing.version import figures_on_test, read_probe

    found = read_probe(folder)
    probe = None if found is None else Probe(*found)
    return Version(name, load_finite_model(folder, device), figures_on_test(folder), probe)
