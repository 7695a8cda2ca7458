"""The part of a Hub's HTTP API that takes uploads: repositories made, large files by LFS, a commit as one request."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any, Self

from tests.fake_hub import FakeHub, HubHandler, Repository

FIRST = {".gitattributes": b"*.safetensors filter=lfs\n"}  # what a new repository holds


class UploadHub(FakeHub):
    """A Hub that a version can be pushed to. `failures` are the statuses that a kind of request is answered with.

    `look` is called at every request for a change, before anything is changed.
    """

    def __init__(self) -> None:
        super().__init__(UploadHandler)
        self.blobs: dict[str, bytes] = {}
        self.failures: dict[str, int] = {}
        self.tokens: set[str | None] = set()
        self.private: dict[str, bool] = {}
        self.look: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        return super().__enter__()

    def files(self, repository: str) -> dict[str, bytes]:
        """Return what a reader of the branch main of a model repository sees."""
        found = self.repositories[f"models/{repository}"]
        return found.commits[found.main]

    def commits(self, repository: str) -> int:
        """Return how many commits were pushed to a model repository."""
        return len(self.repositories[f"models/{repository}"].commits) - 1

    def uploads(self) -> int:
        """Return how many times the bytes of a large file came."""
        return sum(request.startswith("PUT ") for request in self.requests)


class UploadHandler(HubHandler):
    """Answers the requests of one connection, uploads too."""

    hub: UploadHub

    def do_POST(self) -> None:
        body = self.read_body()
        path = self.path.split("?")[0].strip("/")
        self.hub.look()
        self.hub.requests.append(f"POST /{path}")
        self.hub.tokens.add(self.headers.get("Authorization"))
        parts = path.split("/")
        action = next(
            (name for name in ("create", "preupload", "batch", "commit", "validate-yaml") if name in parts), ""
        )
        if action in self.hub.failures:
            self.refuse(self.hub.failures[action], {"X-Error-Message": f"no {action}"})
        elif action == "create":
            self.create(json.loads(body))
        elif action == "preupload":
            self.preupload("/".join(parts[2:4]), json.loads(body))
        elif action == "batch":
            self.batch(json.loads(body))
        elif action == "commit":
            self.commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
        elif action == "validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        else:
            self.refuse(404, {})

    def do_PUT(self) -> None:
        data, oid = self.read_body(), self.path.rsplit("/", 1)[-1]
        self.hub.look()
        self.hub.requests.append(f"PUT /{oid}")
        if "put" in self.hub.failures:
            self.refuse(self.hub.failures["put"], {})
            return
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.blobs[oid] = data
        self.send(200, {}, b"")

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if f"models/{name}" in self.hub.repositories:
            self.send(409, {"Content-Type": "application/json"}, json.dumps({"url": f"{self.hub.url}/{name}"}).encode())
            return
        self.hub.repositories[f"models/{name}"] = Repository()
        self.hub.push(f"models/{name}", FIRST)
        self.hub.private[name] = wanted.get("visibility") == "private"
        self.send_json({"url": f"{self.hub.url}/{name}"})

    def preupload(self, name: str, wanted: dict[str, Any]) -> None:
        files = self.hub.files(name)
        described = []
        for file in wanted["files"]:
            path, is_large = file["path"], file["path"].endswith(".safetensors")
            known = None
            if (data := files.get(path)) is not None:
                git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
                known = hashlib.sha256(data).hexdigest() if is_large else git
            mode = "lfs" if is_large else "regular"
            described.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self.send_json({"files": described})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for object in wanted["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{object['oid']}"}}
            objects.append({**object, **({} if object["oid"] in self.hub.blobs else {"actions": upload})})
        self.send_json({"transfer": "basic", "objects": objects})

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository, files = self.hub.repositories[f"models/{name}"], dict(self.hub.files(name))
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header" if value.get("parentCommit", repository.main) != repository.main:
                    self.refuse(412, {"X-Error-Message": "the branch has moved"})
                    return
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
        commit = self.hub.push(f"models/{name}", files)
        self.send_json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})
