"""A Hugging Face Hub on 127.0.0.1: as much of its HTTP API as the downloads of textgen use, with failures to order."""

import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

Failure = int | Literal["no answer", "half a file"]

RETRY_AFTER_SECONDS = 3
HEADERS = {
    401: {"X-Error-Message": "Invalid credentials in Authorization header"},  # an expired token
    404: {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
    429: {"Retry-After": str(RETRY_AFTER_SECONDS)},
}


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@dataclass
class Repository:
    """Commits, each the bytes of its files by path, and the commit that the branch main is at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""
    failure: Failure | None = None
    failing: str = ""  # a part of the paths of the requests that fail


class FakeHub:
    """A Hub that serves what `push` was given while its `with` block runs. `requests` are those it got, in order."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(HubHandler):
            def __init__(self, *arguments: Any) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def push(self, repository: str, files: dict[str, bytes]) -> str:
        """Make `files` the newest commit of a repository ("datasets/owner/name", "models/owner/name"); return it."""
        commits = self.repositories.setdefault(repository, Repository()).commits
        content = [(path, sha1(data)) for path, data in sorted(files.items())]
        commit = hashlib.sha1(f"{repository} {len(commits)} {content}".encode()).hexdigest()
        commits[commit] = files
        self.repositories[repository].main = commit
        return commit

    def fail(self, repository: str, failure: Failure | None, failing: str = "") -> None:
        """Fail the requests to a repository whose path has `failing` in it: with a status, or a connection cut."""
        self.repositories[repository].failure = failure
        self.repositories[repository].failing = failing


class HubHandler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} /{path}")
        api = path.startswith("api/")
        parts = path.removeprefix("api/").split("/")
        if parts[0] not in ("datasets", "models"):
            parts.insert(0, "models")  # a model's files have no prefix
        repository, (action, revision, *inner) = "/".join(parts[:3]), parts[3:] or ["revision", "main"]
        if (found := self.hub.repositories.get(repository)) is None:
            return self.refuse(404)
        if found.failure is not None and found.failing in "/".join([action, *inner]):
            return self.break_off(found, "/".join(inner)) if isinstance(found.failure, str) else self.refuse(found.failure)
        commit = found.main if revision == "main" else revision
        if (files := found.commits.get(commit)) is None:
            return self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        match action:
            case "revision":
                name = repository.partition("/")[2]
                self.answer_json({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
            case "tree" if api:
                self.answer_json(self.describe(files, "/".join(inner)))
            case "paths-info" if api:
                wanted = parse_qs(body.decode())["paths"]
                self.answer_json([entry for path in wanted for entry in self.describe(files, path)])
            case "resolve" if "/".join(inner) in files:
                data = files["/".join(inner)]
                self.answer(data, {"ETag": f'"{sha1(data)}"', "X-Repo-Commit": commit})
            case "resolve":
                self.refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            case _:
                raise AssertionError(f"the fake Hub does not know {self.command} {self.path}")

    do_HEAD = do_POST = do_GET

    def describe(self, files: dict[str, bytes], path: str) -> list[dict[str, Any]]:
        """Return the Hub's descriptions of a file, or of the files in a folder and of the folders in it."""
        inside = {path} if path in files else {file for file in files if file.startswith(f"{path}/" if path else "")}
        depth = path.count("/") + 1 if path and path not in files else path.count("/")
        folders = {"/".join(file.split("/")[: depth + 1]) for file in inside} - inside
        return [
            *({"type": "directory", "path": folder, "oid": sha1(folder.encode())} for folder in sorted(folders)),
            *(
                {"type": "file", "path": file, "size": len(files[file]), "oid": sha1(files[file])}
                for file in sorted(inside)
                if file.count("/") == depth
            ),
        ]

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any) -> None:
        self.answer(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.answer(b'{"error": "ordered"}', headers or HEADERS.get(status, {}), status)

    def break_off(self, repository: Repository, file: str) -> None:
        """Close the connection: without an answer, or in the middle of a file."""
        if repository.failure == "half a file":
            data = repository.commits[repository.main][file]
            self.send_response(200)
            self.send_header("ETag", f'"{sha1(data)}"')
            self.send_header("X-Repo-Commit", repository.main)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(data[: len(data) // 2])
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Keep quiet: `requests` is the log."""
