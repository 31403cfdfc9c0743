"""A server on this machine that answers as the Hub does to huggingface_hub: listings, files, uploads and refusals.

Repositories are lists of commits, kept in memory. A file of at least `LARGE` bytes is stored as by Git LFS: its address
redirects to one without the repository's name, and an upload of it goes through the LFS batch API.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 1000
READER, OWNER = "hf_reader", "hf_owner"


@dataclass
class Repository:
    """One repository: its commits, oldest first, and what its branches and tags point to."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add files to a branch, and return the commit."""
        content = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        digest = hashlib.sha1(repr(sorted(content.items())).encode() + branch.encode()).hexdigest()
        self.commits[digest], self.refs[branch] = content, digest
        return digest

    def resolved(self, revision: str) -> str | None:
        """The commit that a revision names."""
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Hub:
    """The repositories of a server, and what was asked of it."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    status: int | None = None
    large: int = LARGE
    address: str = ""

    @property
    def elsewhere(self) -> str:
        """The address of the storage of large files, which is another host: it must not get the token."""
        return self.address.replace("127.0.0.1", "localhost")

    def add(self, name: str, files: Mapping[str, bytes] | Path, **settings: Any) -> str:
        """Add a repository with these files, or those of a folder; return its commit."""
        self.repositories[name] = Repository(**settings)
        return self.repositories[name].commit(files if isinstance(files, Mapping) else content_of(files))

    def fetched(self) -> set[str]:
        """The paths of the files whose content was asked for."""
        marks = [path.partition("/resolve/")[2] for method, path in self.asked if method == "GET"]
        return {mark.partition("/")[2] for mark in marks if mark}


def content_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their paths in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def oid(content: bytes) -> str:
    """The name of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, value: Any = None, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        named = {"X_Error_Code": code} if code else {}
        self._send(status, {"error": message}, X_Error_Message=message, **named)

    @property
    def _token(self) -> str | None:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ") or None

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.asked.append((self.command, path))
        if self.hub.status is not None:
            self._refuse(self.hub.status, None, "out of order")
        elif self._token not in (None, READER, OWNER):
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif path.startswith("/lfs/"):
            assert self._token is None, "the token is for the Hub alone"
            self._object(path.removeprefix("/lfs/"), body)
        elif path.startswith("/verify/"):
            self._send(200 if json.loads(body)["oid"] in self.hub.objects else 404, {})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"), urlsplit(self.path).path, parse_qs(parts.query), body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/resolve/" in path:
            self._resolve(path)
        else:
            self._refuse(404, None, "Not found")

    def _readable(self, name: str, *, content: bool) -> Repository | None:
        """The repository, unless the caller may not see it, or its files, which it is then answered."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self._token is None):
            message = "Repository not found" if self._token else "Invalid username or password."
            self._refuse(404 if self._token else 401, "RepoNotFound", message)
            return None
        if content and found.gated and self._token is None:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        if content and found.gated and self._token == READER:
            self._refuse(403, "GatedRepo", f"Access to model {name} is restricted and you are not in the list.")
            return None
        return found

    def _api(self, path: str, raw: str, query: Mapping[str, list[str]], body: bytes) -> None:
        owner, name, *rest = path.split("/")
        action = rest[0] if rest else "info"
        repository = self._readable(f"{owner}/{name}", content=action == "tree")
        if repository is None:
            return
        if action in ("branch", "preupload", "commit"):
            revision = unquote(raw.rsplit("/", 1)[1])
            getattr(self, f"_{action}")(f"{owner}/{name}", repository, revision, body)
            return
        _, _, _, _, _, _, *after = [*raw.split("/"), "", ""]
        revision, place = unquote(after[0]) or "main", unquote("/".join(part for part in after[1:] if part))
        commit = repository.resolved(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        content = repository.commits[commit]
        if action == "tree":
            found = [self._entry(path, data) for path, data in content.items() if path.startswith(place)]
            if found:
                self._send(200, found)
            else:
                self._refuse(404, "EntryNotFound", f"{place} does not exist on {revision}")
            return
        sizes = {path: {"size": len(data), "blobId": oid(data)} for path, data in content.items()}
        siblings = [{"rfilename": path, **(about if "blobs" in query else {})} for path, about in sizes.items()]
        about = {"id": f"{owner}/{name}", "sha": commit, "private": repository.private, "siblings": siblings}
        self._send(200, {**about, "modelId": about["id"], "gated": repository.gated, "tags": [], "downloads": 0})

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": oid(data)}
        if len(data) >= self.hub.large:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _resolve(self, path: str) -> None:
        owner, name, _, rest = path.lstrip("/").split("/", 3)
        repository = self._readable(f"{owner}/{name}", content=True)
        if repository is None:
            return
        revision, _, file = rest.partition("/")
        commit = repository.resolved(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        data = repository.commits[commit].get(file)
        if data is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif len(data) < self.hub.large:
            self._send(200, data, X_Repo_Commit=commit, ETag=f'"{oid(data)}"')
        else:
            digest = hashlib.sha256(data).hexdigest()
            self.hub.objects[digest] = data
            linked = {"X_Linked_Size": str(len(data)), "X_Linked_Etag": f'"{digest}"'}
            self._send(302, b"", X_Repo_Commit=commit, Location=f"{self.hub.elsewhere}/lfs/{digest}", **linked)

    def _object(self, digest: str, body: bytes) -> None:
        if self.command == "PUT":
            self.hub.objects[hashlib.sha256(body).hexdigest()] = body
            self._send(200, b"")
        else:
            self._send(200, self.hub.objects[digest], ETag=f'"{digest}"')

    def _writes(self, name: str) -> bool:
        if self._token != OWNER or not name.startswith("me/"):
            code = 401 if self._token is None else 403
            self._refuse(code, None, "You don't have the rights to write there" if self._token else "Unauthorized")
            return False
        return True

    def _create(self, wanted: Mapping[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self._writes(name):
            return
        found = name in self.hub.repositories
        if not found:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.hub.repositories[name] = Repository(private=private)
            self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(409 if found else 200, {"url": f"{self.hub.address}/{name}", "error": "exists"})

    def _branch(self, name: str, repository: Repository, branch: str, _: bytes) -> None:
        if self._writes(name):
            found = branch in repository.refs
            repository.refs.setdefault(branch, repository.refs["main"])
            self._send(409 if found else 201, {})

    def _preupload(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        if not self._writes(name):
            return
        there = repository.commits[repository.refs[revision]]
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["size"] >= self.hub.large else "regular",
                "shouldIgnore": one["path"] in self.hub.ignored,
                "oid": oid(there[one["path"]]) if one["path"] in there else None,
            }
            for one in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def _batch(self, wanted: Mapping[str, Any]) -> None:
        objects = []
        for one in wanted["objects"]:
            place = f"{self.hub.elsewhere}/lfs/{one['oid']}"
            actions = {"upload": {"href": place}, "verify": {"href": f"{self.hub.address}/verify/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.hub.objects else {"actions": actions})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        if not self._writes(name):
            return
        added: dict[str, bytes] = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                added[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert item["key"] == "header", item
        commit = repository.commit(added, revision)
        self._send(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a server for the length of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
