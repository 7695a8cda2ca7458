"""A Hugging Face Hub on 127.0.0.1: as much of its HTTP API as the downloads of textgen use, with failures to order."""

import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

Failure = int | Literal["no answer", "half a file", "a web page"]

REFUSALS = {  # the headers by which huggingface_hub tells the Hub's refusals apart
    401: {"X-Error-Message": "Invalid credentials in Authorization header"},
    404: {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
    429: {"Retry-After": "3"},
}


@dataclass
class Repository:
    """Commits, each the bytes of its files by path, and the commit that the branch main is at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""
    failure: Failure | None = None
    failing: str = ""


class FakeHub:
    """A Hub that serves what `push` was given while its `with` block runs. `requests` are those it got, in order."""

    def __init__(self, handler: "type[HubHandler] | None" = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler or HubHandler,), {"hub": self}))
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
        commit = sha1(f"{repository} {len(commits)} {sorted(files.items())}".encode())
        commits[commit] = files
        self.repositories[repository].main = commit
        return commit

    def fail(self, repository: str, failure: Failure, failing: str = "") -> None:
        """Fail the requests for the files of a repository with `failing` in their path; "": every request to it."""
        self.repositories[repository].failure = failure
        self.repositories[repository].failing = failing


class HubHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, each after it has read all of it: a client may send before it reads."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.read_body()
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} /{path}")
        parts = path.removeprefix("api/").split("/")
        if parts[0] not in ("datasets", "models"):
            parts.insert(0, "models")  # a model's files have no prefix
        name, (action, revision, *inner) = "/".join(parts[:3]), parts[3:] or ["revision", "main"]
        file = "/".join(inner)
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.refuse(404, REFUSALS[404])
            return
        if repository.failure is not None and repository.failing in file:
            self.fail(repository, file)
            return
        commit = repository.main if revision == "main" else revision
        files = repository.commits.get(commit)
        if files is None:
            self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        elif action == "revision":
            self.send_json({"id": name.partition("/")[2], "sha": commit, "siblings": [{"rfilename": f} for f in files]})
        elif action == "tree":
            self.send_json(describe(files, file))
        elif action == "paths-info":
            self.send_json([entry for path in parse_qs(body.decode())["paths"] for entry in describe(files, path)])
        elif file in files:
            self.send(200, {"ETag": f'"{sha1(files[file])}"', "X-Repo-Commit": commit}, files[file])
        else:
            self.refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    do_HEAD = do_POST = do_GET

    def read_body(self) -> bytes:
        """Return the whole body of the request, sent in one piece or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def fail(self, repository: Repository, file: str) -> None:
        """Fail as was ordered: with a status, a page that is no answer of the Hub, or a connection that is cut."""
        match repository.failure:
            case int(status):
                self.refuse(status, REFUSALS.get(status, {}))
            case "a web page":  # as a hotel's network shows to everyone who has not signed in
                self.send(200, {"Content-Type": "text/html"}, b"<html>Welcome</html>")
            case "half a file":
                data = repository.commits[repository.main][file]
                self.send(200, {"ETag": f'"{sha1(data)}"', "X-Repo-Commit": repository.main}, data, len(data) // 2)
                if self.command == "GET":
                    self.cut()
            case "no answer":
                self.cut()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, headers: dict[str, str], body: bytes, sent_bytes: int | None = None) -> None:
        """Answer a request; of the body, which a HEAD does without, only the first `sent_bytes`."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent_bytes])

    def send_json(self, value: Any) -> None:
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send(status, {**headers, "Content-Type": "application/json"}, b"{}")

    def log_message(self, *_: object) -> None:
        """Keep quiet: `requests` is the log."""


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def describe(files: dict[str, bytes], path: str) -> list[dict[str, Any]]:
    """Return what the Hub's API says of a file, or of the files and folders directly in a folder ("": the root)."""
    if path in files:
        return [{"type": "file", "path": path, "size": len(files[path]), "oid": sha1(files[path])}]
    folder = f"{path}/" if path else ""
    children = {folder + file.removeprefix(folder).split("/")[0] for file in files if file.startswith(folder)}
    described = [
        describe(files, child) if child in files else [{"type": "directory", "path": child, "oid": sha1(b"")}]
        for child in sorted(children)
    ]
    return [entry for entries in described for entry in entries]
