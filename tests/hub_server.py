"""A small server that speaks the Hugging Face Hub's interface as far as models are pushed and pulled, data sets read.

It keeps commits in memory: a repository is a list of them, each a mapping of paths to contents. Small files come in the
commit's own body, large ones beforehand by Git LFS, both as `huggingface_hub` sends them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_writes": ("someone", True), "hf_reads": ("someone", False)}
"""Tokens, whose they are, and whether they may write."""


@dataclass
class Repository:
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a branch, a tag or a commit, and its files."""
        wanted = self.refs.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == wanted), None)

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}".encode() + b"".join(files.values())).hexdigest()
        self.commits.append((digest, files))
        self.refs["main"] = digest
        return digest


@dataclass
class Hub:
    """The state of the server.

    Attributes:
        url: Its address.
        repositories: By `owner/name`.
        asked: Every request so far: method and path.
        sent: Bytes of files that were sent.
        fails: Whether files are refused from now on, as by a server that is down.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    fails: bool = False


def client_settings(hub: Hub, folder: Path) -> dict[str, Any]:
    """Constants of `huggingface_hub` with which it asks this server and keeps what it downloads in a folder."""
    return {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(folder / "no-token"),
    }


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.body = self._read_body()
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append((self.command, path))
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            self._json(401, {"error": "Invalid credentials in Authorization header"})
            return
        self.user, self.writes = TOKENS.get(token, (None, False))
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                answer(self, *match.groups())
                return
        self._json(404, {"error": f"nothing here: {self.command} {path}"})

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, status: int, value: Any, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _repository(self, name: str) -> Repository | None:
        """A repository that the asker may see; else the error is sent, the same for hidden and for missing ones."""
        found = self.state.repositories.get(name)
        if found is None or (found.private and name.split("/", maxsplit=1)[0] != self.user):
            status = 401 if self.user is None else 404
            self._json(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return found

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(name)
        if repository is None:
            return None
        found = repository.files(revision)
        if found is None:
            self._json(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
        return found

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        if not self.writes or name.split("/", maxsplit=1)[0] != self.user:
            self._json(403, {"error": "You don't have the rights to create a model under this namespace"})
            return
        if name in self.state.repositories:
            self._json(409, {"error": "You already created this model repo", "url": f"{self.state.url}/{name}"})
            return
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.state.repositories[name] = repository = Repository(private)
        repository.commit({".gitattributes": b""})
        self._json(200, {"url": f"{self.state.url}/{name}", "name": name, "id": name})

    def info(self, name: str, revision: str | None = None) -> None:
        found = self._commit(name, revision or "main")
        if found is not None:
            private = self.state.repositories[name].private
            siblings = [{"rfilename": path} for path in found[1]]
            card = re.match(r"---\n(.*?)\n---", found[1].get("README.md", b"").decode(), re.DOTALL)
            more = {"cardData": yaml.safe_load(card[1])} if card else {}
            self._json(200, {"id": name, "sha": found[0], "private": private, "siblings": siblings, "tags": [], **more})

    def tree(self, name: str, revision: str, folder: str = "") -> None:
        found = self._commit(name, revision)
        inside = {} if found is None else {p: each for p, each in found[1].items() if p.startswith(folder)}
        if found is not None and not inside:
            self._json(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        elif found is not None:
            entries = []
            for path, content in inside.items():
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
                if _is_large(path):
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 100}
                entries.append(entry)
            self._json(200, entries)

    def paths_info(self, name: str, revision: str) -> None:
        found = self._commit(name, revision)
        if found is not None:
            wanted = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
            entries = [
                {"type": "file", "path": path, "size": len(found[1][path]), "oid": _blob(found[1][path])}
                for path in wanted
                if path in found[1]
            ]
            self._json(200, entries)

    def preupload(self, name: str, revision: str) -> None:
        if self._repository(name) is not None:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if _is_large(each["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(self.body)["files"]
            ]
            self._json(200, {"files": files})

    def batch(self, name: str) -> None:
        if self._repository(name) is not None:
            objects = [
                {
                    **each,
                    "actions": {"upload": {"href": f"{self.state.url}/upload/{each['oid']}", "header": {}}},
                }
                for each in json.loads(self.body)["objects"]
            ]
            self._json(200, {"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.state.large[digest] = self.body
        self._send(200, b"")

    def commit(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if not self.writes:
            self._json(403, {"error": "Forbidden: you must use a write token to upload to a repository."})
            return
        found = repository.files(revision)
        files = {} if found is None else dict(found[1])
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"])
        digest = repository.commit(files)
        self._json(200, {"commitUrl": f"{self.state.url}/{name}/commit/{digest}", "commitOid": digest})

    def validate_yaml(self) -> None:
        self._json(200, {"errors": [], "warnings": []})

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self._commit(name, revision)
        if found is None:
            return
        if path not in found[1]:
            self._json(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        if self.state.fails:
            self._json(503, {"error": "Service unavailable"})
            return
        content = found[1][path]
        etag = hashlib.sha256(content).hexdigest() if _is_large(path) else _blob(content)
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range") or "")
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": found[0], "Accept_Ranges": "bytes"}
        if part:
            first, last = int(part[1]), min(int(part[2]), len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        self.state.sent += len(content) if self.command == "GET" else 0
        self._send(206 if part else 200, content, **headers)


def _is_large(path: str) -> bool:
    return fnmatch(path, "*.safetensors")


def _blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.validate_yaml),
    (rf"/api/models/{_NAME}", _Handler.info),
    (rf"/api/models/{_NAME}/revision/(.+)", _Handler.info),
    (rf"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    (rf"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    (rf"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/upload/(\w+)", _Handler.upload),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (rf"/api/datasets/{_NAME}", _Handler.info),
    (rf"/api/datasets/{_NAME}/revision/(.+)", _Handler.info),
    (rf"/api/datasets/{_NAME}/tree/([^/]+)", _Handler.tree),
    (rf"/api/datasets/{_NAME}/tree/([^/]+)/(.+)", _Handler.tree),
    (rf"/api/datasets/{_NAME}/paths-info/([^/]+)", _Handler.paths_info),
    (rf"/datasets/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
)
