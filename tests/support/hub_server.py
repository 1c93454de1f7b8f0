"""A small hub of our own: the routes of huggingface.co that this project uses, in one process.

It stands in for a real hub, which tests cannot reach. It was written after what `huggingface_hub`
sends and expects, and after the hub's documented answers; it is no proof of how a real hub behaves.

    GET  /api/{models,datasets}/{id}/revision/{rev}           the commit of a branch, tag or commit
    GET  /api/{models,datasets}/{id}/tree/{commit}[/{folder}] the files, in pages with a Link header
    HEAD, GET /[datasets/]{id}/resolve/{commit}/{path}        a redirect: of a small file to
                                                              /api/resolve-cache of the hub itself,
                                                              of a large one to a second host (a
                                                              CDN), which refuses tokens, with the
                                                              headers of a file in Xet storage
    POST /api/repos/create, /api/validate-yaml                publishing
    POST /api/models/{id}/preupload/{rev}                     which files go to the LFS store
    POST /{id}.git/info/lfs/objects/batch, PUT to the CDN     uploads to it, in one part or many,
    POST /api/complete_multipart                              which are then put together
    POST /api/models/{id}/commit/{rev}                        a commit, as lines of JSON

Not spoken: Xet's own protocol (tests that upload set HF_HUB_DISABLE_XET), pull requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_BYTES = 4096
"""Files of this size, and all `.safetensors`, lie in the LFS store."""

PAGE = 3
"""Entries of one page of a listing; few, so that every listing has several pages."""


@dataclass
class Repo:
    """A repository: its commits, and where its branches are."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit of exactly these files."""
        commit = secrets.token_hex(20)
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def head(self, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.commits[self.branches[branch]]


@dataclass
class Request:
    """What a handler saw, for tests to look at."""

    method: str
    path: str
    token: str
    range: str


class Hub:
    """Repositories by their names, and how the server behaves.

    Attributes:
        endpoint: For HF_ENDPOINT.
        tokens: Tokens that may read private repositories, and write.
        requests: All requests so far.
        faults: Called with the method and path of each request; what it returns, a status and
            headers, is answered instead. None answers as usual.
        ignores_ranges: Whether files are always sent whole.
        broken: How many of the next files are to break off in the middle.
        uploaded: The LFS store.
        part_bytes: Larger files are uploaded in parts of this size; None if all in one.
        parts: Uploaded parts, by the digest of the file and their numbers.
    """

    def __init__(self) -> None:
        self.endpoint = self.cdn = ""
        self.repos: dict[str, Repo] = {}
        self.tokens = {"hf_secret_of_the_tests"}
        self.requests: list[Request] = []
        self.faults: Callable[[str, str], tuple[int, dict[str, str]] | None] = lambda *_: None
        self.ignores_ranges = False
        self.broken = 0
        self.uploaded: dict[str, bytes] = {}
        self.part_bytes: int | None = None
        self.parts: dict[tuple[str, int], bytes] = {}

    def add(self, name: str, source: Path | dict[str, bytes], **options: Any) -> Repo:
        """A new repository with one commit: the files of a directory, or as given."""
        repo = Repo(**options)
        if isinstance(source, Path):
            source = {
                path.relative_to(source).as_posix(): path.read_bytes()
                for path in sorted(source.rglob("*"))
                if path.is_file()
            }
        repo.push(source)
        self.repos[name] = repo
        return repo

    def asked(self, method: str, part: str) -> list[Request]:
        """Requests with that method whose path contains `part`."""
        return [each for each in self.requests if each.method == method and part in each.path]


def is_large(path: str, data: bytes) -> bool:
    """Whether the hub keeps a file in its LFS store."""
    return path.endswith(".safetensors") or len(data) >= LFS_BYTES


def blob_id(data: bytes) -> str:
    """The name that git has for a file."""
    head = f"blob {len(data)}\0".encode()
    return hashlib.sha1(head + data, usedforsecurity=False).hexdigest()


def sha256(data: bytes) -> str:
    """The name that the LFS store has for a file."""
    return hashlib.sha256(data).hexdigest()


def xet_hash(data: bytes) -> str:
    """Stands for the name that Xet storage has for a file: another one than the LFS store's."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


class _Answer(Exception):
    def __init__(
        self, status: int, body: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def _error(status: int, code: str) -> _Answer:
    return _Answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle(self) -> None:
        with suppress(ConnectionError):  # A client may close at any time.
            super().handle()

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size) if size else self._chunks()
        parts = urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.token, self.query = token, parse_qs(parts.query)
        wanted = self.headers.get("Range") or ""
        self.hub.requests.append(Request(self.command, self.path, token, wanted))
        try:
            fault = self.hub.faults(self.command, self.path)
            if fault is not None:
                raise _Answer(fault[0], {"error": "as the test wants"}, fault[1])
            self.route(parts.path)
        except _Answer as answer:
            self.send(answer)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _chunks(self) -> bytes:
        """A body without a length."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        data = b""
        while count := int(self.rfile.readline(), 16):
            data += self.rfile.read(count)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.broken > 0 and "ETag" in answer.headers:
            self.hub.broken -= 1
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
            return
        self.wfile.write(answer.body)

    def route(self, path: str) -> None:
        raise NotImplementedError

    def file(self, data: bytes, headers: dict[str, str]) -> _Answer:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if match is None or self.hub.ignores_ranges:
            return _Answer(200, data, headers)
        first, last = int(match[1]), min(int(match[2]), len(data) - 1)
        if first > last:
            return _Answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return _Answer(206, data[first : last + 1], headers)


class _Cdn(_Handler):
    """The other host, whose URLs are signed and need no token."""

    def route(self, path: str) -> None:
        if self.token:
            raise _error(400, "a token was sent to another host than the hub")
        digest, _, part = path.removeprefix("/lfs/").partition("/")
        if part:
            self.hub.parts[digest, int(part)] = self.body
            raise _Answer(200, b"", {"ETag": f'"{sha256(self.body)}"'})
        if self.command == "PUT":
            if sha256(self.body) != digest:
                raise _error(400, "BadDigest")
            self.hub.uploaded[digest] = self.body
            raise _Answer(200, {})
        data = self.hub.uploaded[digest]
        raise self.file(data, {"ETag": f'"{xet_hash(data)}"'})


class _Hub(_Handler):
    def route(self, path: str) -> None:
        routes: dict[str, Callable[..., None]] = {
            r"GET /api/(models|datasets)/([^/]+/[^/]+)/revision/([^/]+)": self.revision,
            r"GET /api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(/.*)?": self.tree,
            r"(?:GET|HEAD) /(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.resolve,
            r"(?:GET|HEAD) /api/resolve-cache/(models|datasets)/([^/]+/[^/]+)/([^/]+)/(.+)": (
                self.cached
            ),
            r"GET /api/(models)/([^/]+/[^/]+)": self.revision,
            r"POST /api/repos/create": self.create,
            r"POST /api/validate-yaml": self.yaml,
            r"POST /api/models/([^/]+/[^/]+)/preupload/([^/]+)": self.preupload,
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": self.batch,
            r"POST /api/complete_multipart": self.complete,
            r"POST /api/models/([^/]+/[^/]+)/commit/([^/]+)": self.commit,
        }
        for pattern, handler in routes.items():
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                handler(*(unquote(part) if part else "" for part in match.groups()))
        raise _error(404, "NoSuchRoute")

    def repo(self, kind: str, name: str, *, writes: bool = False) -> Repo:
        known = self.token in self.hub.tokens
        if self.token and not known:
            raise _error(401, "Invalid credentials in Authorization header")
        repo = self.hub.repos.get(f"datasets/{name}" if kind.startswith("datasets") else name)
        if repo is None or (repo.private and not known) or (writes and not known):
            raise _error(401 if not known else 404, "RepoNotFound")
        return repo

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise _error(404, "RevisionNotFound")
        return commit, repo.commits[commit]

    def revision(self, kind: str, name: str, revision: str = "main") -> None:
        repo = self.repo(kind, name)
        commit, files = self.files(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        raise _Answer(
            200,
            {
                "id": name,
                "sha": commit,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "siblings": siblings,
                "tags": [],
            },
        )

    def tree(self, kind: str, name: str, revision: str, folder: str) -> None:
        _, files = self.files(self.repo(kind, name), revision)
        root = folder.strip("/")
        inside = f"{root}/" if root else ""
        found = [_tree_entry(path, data) for path, data in files.items() if path.startswith(inside)]
        if root and not found:
            raise _error(404, "EntryNotFound")
        folders = {entry["path"].rpartition("/")[0] for entry in found} - {"", root}
        found += [{"type": "directory", "path": each, "oid": "0" * 40} for each in folders]
        first = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(found):
            # Mirrors of a hub hand its own links on.
            link = f"https://hub.invalid/somewhere?recursive=true&cursor={first + PAGE}"
            headers["Link"] = f'<{link}>; rel="next"'
        raise _Answer(200, found[first : first + PAGE], headers)

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self.repo(kind, name)
        if repo.gated and self.token not in self.hub.tokens:
            raise _error(401 if not self.token else 403, "GatedRepo")
        commit, files = self.files(repo, revision)
        if path not in files:
            raise _error(404, "EntryNotFound")
        data = files[path]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not is_large(path, data):
            place = f"{'datasets' if kind else 'models'}/{name}/{commit}/{quote(path)}"
            raise _Answer(307, b"", {**headers, "Location": f"/api/resolve-cache/{place}"})
        digest = sha256(data)
        self.hub.uploaded[digest] = data
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
        # Clients of Xet would fetch a token from the first link, and pieces by the second.
        token = f"{self.hub.endpoint}/api/models/{name}/xet-read-token/{commit}"
        pieces = f"https://cas.invalid/v1/reconstructions/{xet_hash(data)}"
        headers["X-Xet-Hash"] = xet_hash(data)
        headers["Link"] = f'<{token}>; rel="xet-auth", <{pieces}>; rel="xet-reconstruction-info"'
        raise _Answer(302, b"", {**headers, "Location": f"{self.hub.cdn}/lfs/{digest}"})

    def cached(self, kind: str, name: str, commit: str, path: str) -> None:
        data = self.repo(kind, name).commits[commit][path]
        raise self.file(data, {"X-Repo-Commit": commit, "ETag": f'"{blob_id(data)}"'})

    def create(self) -> None:
        if self.token not in self.hub.tokens:
            raise _error(401, "Unauthorized")
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            raise _error(409, "AlreadyExists")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        raise _Answer(200, {"url": f"{self.hub.endpoint}/{name}", "id": name, "name": name})

    def yaml(self) -> None:
        raise _Answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        self.repo("models", name, writes=True)
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs"
                if is_large(each["path"], b"x" * min(each["size"], LFS_BYTES))
                else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(self.body)["files"]
        ]
        raise _Answer(200, {"files": files})

    def batch(self, name: str) -> None:
        self.repo("models", name, writes=True)
        objects = []
        for each in json.loads(self.body)["objects"]:
            if each["oid"] in self.hub.uploaded:
                objects.append(each)
                continue
            objects.append({**each, "actions": {"upload": self.upload(each["oid"], each["size"])}})
        raise _Answer(200, {"transfer": "multipart", "objects": objects})

    def upload(self, digest: str, size: int) -> dict[str, Any]:
        """Where a file goes: to one place, or each of its parts to another."""
        place, step = f"{self.hub.cdn}/lfs/{digest}", self.hub.part_bytes
        if step is None or size <= step:
            return {"href": place, "header": {}}
        parts = {f"{number + 1:05d}": f"{place}/{number + 1}" for number in range(-(-size // step))}
        href = f"{self.hub.endpoint}/api/complete_multipart"
        return {"href": href, "header": {"chunk_size": str(step), **parts}}

    def complete(self) -> None:
        asked = json.loads(self.body)
        digest = asked["oid"]
        parts = [self.hub.parts[digest, each["partNumber"]] for each in asked["parts"]]
        if [each["etag"] for each in asked["parts"]] != [f'"{sha256(each)}"' for each in parts]:
            raise _error(400, "BadPart")
        if sha256(b"".join(parts)) != digest:
            raise _error(400, "BadDigest")
        self.hub.uploaded[digest] = b"".join(parts)
        raise _Answer(200, {})

    def commit(self, name: str, revision: str) -> None:
        repo = self.repo("models", name, writes=True)
        files = dict(repo.head(revision))
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                if value.get("parentCommit", repo.branches[revision]) != repo.branches[revision]:
                    raise _error(412, "the branch has moved")
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _error(400, f"unknown operation {entry['key']}")
        commit = repo.push(files, revision)
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        raise _Answer(200, {"success": True, "commitOid": commit, "commitUrl": url})


def _tree_entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
    if is_large(path, data):
        pointer = f"oid sha256:{sha256(data)}\nsize {len(data)}\n".encode()
        lfs = {"oid": sha256(data), "size": len(data), "pointerSize": len(pointer)}
        entry |= {"oid": blob_id(pointer), "lfs": lfs, "xetHash": xet_hash(data)}
    return entry


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on two ports of the loopback interface: itself, and its CDN."""
    hub = Hub()
    servers = []
    for kind in (_Hub, _Cdn):
        handler = type(kind.__name__, (kind,), {"hub": hub})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append((server, threading.Thread(target=server.serve_forever)))
    # Of another name too: clients compare whole origins.
    hub.endpoint = f"http://127.0.0.1:{servers[0][0].server_port}"
    hub.cdn = f"http://localhost:{servers[1][0].server_port}"
    for _, thread in servers:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in servers:
            server.shutdown()
            thread.join()
            server.server_close()
