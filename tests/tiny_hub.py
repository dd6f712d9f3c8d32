"""A small stand-in for the Hugging Face hub: as much of its protocol as its client needs to push and to load."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_right"


@dataclass
class Repository:
    """Its states, oldest first: path -> content."""

    private: bool = False
    states: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=list)

    def find(self, revision: str) -> int | None:
        """Number of the state that a branch or commit stands for."""
        commits = [commit_of(number) for number in range(len(self.states))]
        return len(commits) - 1 if revision == "main" else commits.index(revision) if revision in commits else None


def commit_of(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Listens on a free port of this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # by sha256
        self.requests: list[str] = []
        self.failing: dict[str, int] = {}  # path -> status that it is answered with


@contextmanager
def serve() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what HF_ENDPOINT and the like would set at the client's first import."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path in self.server.failing:
            return self.refuse(self.server.failing[path], "")
        if path == "/api/validate-yaml":
            return self.answer({})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.startswith("/lfs/"):
            self.server.large_files[path.rpartition("/")[2]] = body
            return self.answer({})
        patterns = (
            (r"/(.+?)/resolve/([^/]+)/(.+)", self.resolve),
            (r"/(.+?)\.git/info/lfs/objects/batch", lambda *_: self.batch(json.loads(body))),
            (r"/api/models/(.+?)/preupload/(.+)", lambda *_: self.preupload(json.loads(body))),
            (r"/api/models/(.+?)/commit/(.+)", lambda name, _: self.commit(name, body)),
            (r"/api/models/(.+?)/tree/(.+)", self.tree),
            (r"/api/models/(.+?)/revision/(.+)", self.info),
            (r"/api/models/([^/]+/[^/]+)", self.info),
        )
        for pattern, action in patterns:
            if match := re.fullmatch(pattern, path):
                repository = self.server.repositories.get(match[1])
                if repository is None or (repository.private and not self.logged_in()):
                    return self.refuse(404 if self.logged_in() else 401, "RepoNotFound")
                return action(*match.groups())  # type: ignore[no-any-return, operator]
        return self.refuse(404, "EntryNotFound")

    def logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # --- answers

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", X_Error_Code=code, Content_Type="application/json")

    # --- reading

    def state(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        number = self.server.repositories[name].find(revision)
        if number is None:
            self.refuse(404, "RevisionNotFound")
            return None
        return commit_of(number), self.server.repositories[name].states[number]

    def info(self, name: str, revision: str = "main") -> None:
        if found := self.state(name, revision):
            self.answer({"id": name, "sha": found[0], "siblings": [{"rfilename": path} for path in found[1]]})

    def tree(self, name: str, revision: str) -> None:
        if found := self.state(name, revision):
            files = found[1].items()
            oid = hashlib.sha1
            self.answer([{"type": "file", "path": p, "size": len(c), "oid": oid(c).hexdigest()} for p, c in files])

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self.state(name, revision)):
            return
        commit, files = found
        if path not in files:
            self.refuse(404, "EntryNotFound")
            return
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        self.send(200, files[path], ETag=etag, X_Repo_Commit=commit)

    # --- writing

    def create(self, wanted: dict[str, Any]) -> None:
        if not self.logged_in():
            self.refuse(401, "")
            return
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            self.send(409, json.dumps({"url": f"{self.server.url}/{name}"}).encode())
            return
        self.server.repositories[name] = Repository(
            wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        self.answer({"url": f"{self.server.url}/{name}"})

    def preupload(self, wanted: dict[str, Any]) -> None:
        files = [file["path"] for file in wanted["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
        self.answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}} for o in wanted["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, name: str, body: bytes) -> None:
        if not self.logged_in():
            self.refuse(403, "")
            return
        repository = self.server.repositories[name]
        files = dict(repository.states[-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.states.append(files)
        commit = commit_of(len(repository.states) - 1)
        self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})
