"""A small stand-in for the hub: the endpoints that its client calls in a push, over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

TOKEN = "hf_ofTheTestsOwnStandIn"
USER = "ada"
LFS = ".safetensors"

Answer = tuple[int, Any]
Files = dict[str, bytes]


@dataclass
class Repo:
    """A repository: its visibility, its card's front matter, and its commits as whole trees."""

    private: bool
    card: dict[str, Any] | None = None
    commits: list[tuple[str, str, Files]] = field(default_factory=list)  # id, message, tree

    def __post_init__(self) -> None:
        self.add("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})

    @property
    def files(self) -> Files:
        """The newest tree."""
        return self.commits[-1][2]

    @property
    def messages(self) -> list[str]:
        return [message for _, message, _ in self.commits]

    def add(self, message: str, files: Files) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid


@dataclass
class Hub:
    """The state of the server, and the faults that a test asks for.

    `refusals`: part of a path → the status, error code and message it is answered with.
    `dies_at`: from the first request whose path holds it, connections are cut without an answer.
    `meanwhile` happens when a large file arrives.
    `ignored`: names that a .gitignore in every repository excludes.
    """

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: Files = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refusals: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    dies_at: str | None = None
    dead: bool = False
    meanwhile: Callable[[], object] | None = None
    ignored: tuple[str, ...] = ()

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Status and JSON content for one request whose token was valid."""
        for pattern, handler in _ROUTES.items():
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                return handler(self, body, **found.groupdict())
        return 404, {"error": f"no such endpoint: {method} {path}"}


def _whoami(hub: Hub, body: bytes) -> Answer:
    return 200, {"name": USER, "type": "user"}


def _info(hub: Hub, body: bytes, repo: str, revision: str | None = None) -> Answer:
    found = hub.repos.get(repo)
    if found is None:
        return 404, {"error": "Repository not found", "code": "RepoNotFound"}
    oid, _, files = next(c for c in reversed(found.commits) if revision in (None, "main", c[0]))
    return 200, {
        "id": repo,
        "sha": oid,
        "private": found.private,
        "cardData": found.card,
        "siblings": [{"rfilename": name} for name in files],
    }


def _create(hub: Hub, body: bytes) -> Answer:
    asked = json.loads(body)
    name = f"{asked.get('organization') or USER}/{asked['name']}"
    if name in hub.repos:
        return 409, {"error": "You already created this model repo"}
    hub.repos[name] = Repo(
        private=asked.get("visibility") == "private" or bool(asked.get("private"))
    )
    return 200, {"url": f"{hub.address}/{name}", "name": name}


def _validate(hub: Hub, body: bytes) -> Answer:
    _, front, _ = json.loads(body)["content"].split("---\n", 2)
    if not isinstance(yaml.safe_load(front), dict):
        return 400, {"errors": [{"message": "no metadata"}]}
    return 200, {"warnings": []}


def _preupload(hub: Hub, body: bytes, repo: str) -> Answer:
    there = hub.repos[repo].files
    files = []
    for asked in json.loads(body)["files"]:
        name = asked["path"]
        large = name.endswith(LFS)
        files.append(
            {
                "path": name,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": name in hub.ignored,
                "oid": _oid(there[name], large) if name in there else None,
            }
        )
    return 200, {"files": files}


def _oid(content: bytes, large: bool) -> str:
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _batch(hub: Hub, body: bytes, repo: str) -> Answer:
    objects = []
    for asked in json.loads(body)["objects"]:
        upload = {"href": f"{hub.address}/upload/{asked['oid']}"}
        known = asked["oid"] in hub.objects
        objects.append({**asked, **({} if known else {"actions": {"upload": upload}})})
    return 200, {"transfer": "basic", "objects": objects}


def _store(hub: Hub, body: bytes, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "the content is not what its id says"}
    hub.objects[oid] = body
    if hub.meanwhile is not None:
        hub.meanwhile()
    return 200, {}


def _commit(hub: Hub, body: bytes, repo: str) -> Answer:
    found = hub.repos[repo]
    files, message = dict(found.files), ""
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            message = value["summary"]
            if value.get("parentCommit", found.commits[-1][0]) != found.commits[-1][0]:
                return 412, {"error": "A commit has happened since."}
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.objects[value["oid"]]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
        else:
            return 400, {"error": f"unknown operation {line['key']}"}
    oid = found.add(message, files)
    return 200, {"commitUrl": f"{hub.address}/{repo}/commit/{oid}", "commitOid": oid}


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Callable[..., Answer]] = {
    r"GET /api/whoami-v2": _whoami,
    r"POST /api/repos/create": _create,
    r"POST /api/validate-yaml": _validate,
    rf"GET /api/models/{_REPO}": _info,
    rf"GET /api/models/{_REPO}/revision/(?P<revision>\w+)": _info,
    rf"POST /api/models/{_REPO}/preupload/main": _preupload,
    rf"POST /api/models/{_REPO}/commit/main": _commit,
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": _batch,
    r"PUT /upload/(?P<oid>[0-9a-f]{64})": _store,
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        body = self._body()
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.dead |= self.hub.dies_at is not None and self.hub.dies_at in path
        if self.hub.dead:
            self.close_connection = True
            return
        self._send(*self._checked(path, body))

    do_GET = do_POST = do_PUT = _serve

    def _checked(self, path: str, body: bytes) -> Answer:
        for part, (status, code, message) in self.hub.refusals.items():
            if part in path:
                return status, {"error": message, "code": code}
        stored = path.startswith("/upload/")  # a signed address, which takes no token
        if not stored and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        return self.hub.answer(self.command, path, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status >= 400 and "error" in content:
            self.send_header("X-Error-Message", content["error"])
            self.send_header("X-Error-Code", content.get("code", ""))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Silent."""


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub without repositories on a free port of this machine, until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
