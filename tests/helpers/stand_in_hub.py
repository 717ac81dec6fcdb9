"""A Hugging Face Hub on loopback for the real client, in memory: enough of the protocol for push and pull, by LFS and
by Xet, with faults where a test asks for them. What it does was observed of the real one; it is not a specification.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_store import LARGE, Answer, Blob, Fault, Repo


class StandInHub:
    """repos by id; renamed: old id -> new; tokens -> read or write; objects: large files by SHA-256; log: what came.

    store: the folder that Xet keeps its chunks in; without one, a file that came by Xet cannot be served.
    """

    def __init__(self, store: Path) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.tokens = {"hf_writer": "write", "hf_reader": "read"}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []
        self.store, self.lock = store, threading.RLock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # closing waits for each
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    def fail(
        self, method: str, pattern: str, kind: int | str | Callable[[], None], times: int = 1, **headers: str
    ) -> None:
        """Add a fault."""
        self.faults.append(Fault(method, pattern, kind, times, {k.replace("_", "-"): v for k, v in headers.items()}))

    def make(self, id: str, **options: bool) -> Repo:
        """A repository as the Hub makes it, with one commit."""
        repo = self.repos[id] = Repo(**options)
        repo.commit("main", "initial commit", {".gitattributes": small(b"*.safetensors filter=lfs\n")})
        return repo

    def put(self, id: str, message: str, **files: bytes) -> str:
        """A commit of someone else's; __ in a name stands for a dot."""
        changes = {name.replace("__", "."): data for name, data in files.items()}
        return self.repos[id].commit("main", message, {n: self.blob(n, d) for n, d in changes.items()})

    def blob(self, name: str, data: bytes) -> Blob:
        """A file of the kind that its name asks for."""
        if not name.endswith(LARGE):
            return small(data)
        oid = hashlib.sha256(data).hexdigest()
        self.objects[oid] = data
        return Blob(oid, len(data), data, True)

    def held(self, id: str, revision: str = "main") -> dict[str, bytes | None]:
        """The files of a repository."""
        repo = self.repos[id]
        return {name: b.data for name, b in repo.commits[repo.find(revision) or ""].tree.items()}

    def messages(self, id: str, branch: str = "main") -> list[str]:
        """Of the commits of a branch, the newest first."""
        repo, found = self.repos[id], []
        at: str | None = repo.heads[branch]
        while at is not None:
            found.append(repo.commits[at].message)
            at = repo.commits[at].parent
        return found

    def count(self, method: str, pattern: str) -> int:
        """Requests of that method and path so far."""
        return sum(m == method and bool(re.search(pattern, path)) for m, path in self.log)

    def xet_hash(self, sha256: str) -> str | None:
        """What Xet calls a file: its hash stands in the store's shards some records of 48 bytes before its SHA-256."""

        def words(raw: bytes) -> bytes:
            return b"".join(raw[i : i + 8][::-1] for i in range(0, 32, 8))

        for shard in self.store.rglob("shards/*.mdb"):
            data = shard.read_bytes()
            at = data.find(words(bytes.fromhex(sha256)))
            for back in range(2, 200) if at >= 0 else ():
                start = at - 48 * back
                if start >= 0 and int.from_bytes(data[start + 36 : start + 40], "little") in (back - 1, (back - 1) / 2):
                    return words(data[start : start + 32]).hex()
        return None


def small(data: bytes) -> Blob:
    """A file that is part of a commit."""
    return Blob(hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), len(data), data, False)


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet: else each waits for the client's acknowledgement of its head
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """Every method goes one way."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self._fault()
        if fault is not None and callable(fault.kind):
            fault.kind()
        if fault is not None and fault.kind == "drop":
            return self._drop()
        if fault is not None and isinstance(fault.kind, int):
            return self._send(Answer(fault.kind, b"<html>trouble</html>", **fault.headers), None)
        try:
            with self.hub.lock:
                self._route(body)
            answer = Answer(404, {"error": "no such page"})
        except Answer as e:
            answer = e
        self._send(answer, fault.kind if fault is not None and isinstance(fault.kind, str) else None)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names that http.server asks for

    def _fault(self) -> Fault | None:
        with self.hub.lock:
            self.hub.log.append((self.command, self.path))
            for fault in self.hub.faults:
                if fault.times > 0 and fault.method == self.command and re.search(fault.pattern, self.path):
                    fault.times -= 1
                    return fault
        return None

    def finish(self) -> None:
        """Close, also where the client has gone."""
        try:
            super().finish()
        except OSError:
            self.rfile.close()

    def handle(self) -> None:
        """A client that goes in the middle is no mistake."""
        with contextlib.suppress(OSError):
            super().handle()

    def _drop(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer, fault: str | None) -> None:
        if fault == "lose":
            return self._drop()
        body = answer.body
        if fault == "flip" and body:
            body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
        if fault == "short":
            body = body[: len(body) // 2]
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        if fault == "cut":
            self._drop()

    def _route(self, body: bytes) -> None:
        url = urlsplit(self.path)
        path, query = url.path, parse_qs(url.query)
        for pattern, method in ROUTES:
            if (match := re.fullmatch(pattern, path)) and method.__name__.startswith(f"{self.command.lower()}_"):
                method(self, *(unquote(g) for g in match.groups() if g is not None), body=body, query=query)

    def _role(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.hub.tokens:
            raise Answer(
                401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials in Authorization header"
            )
        return self.hub.tokens.get(given)

    def _repo(self, id: str, *, write: bool = False, content: bool = False) -> Repo:
        """The repository, where this token may do that to it."""
        if id in self.hub.renamed:
            raise Answer(307, Location=self.path.replace(id, self.hub.renamed[id]))
        role, repo = self._role(), self.hub.repos.get(id)
        if repo is None or (repo.private and role is None):
            raise Answer(404 if role else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if repo.gated and content:
            raise Answer(403 if role else 401, {"error": "restricted"}, X_Error_Code="GatedRepo")
        if write and role != "write":
            raise Answer(403 if role else 401, {"error": "You don't have the rights: your token has the role read"})
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        if (found := repo.find(revision)) is None:
            raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return found

    def post_create(self, *, body: bytes, query: Any) -> None:
        asked = json.loads(body)
        if (role := self._role()) != "write":
            raise Answer(403 if role else 401, {"error": "You don't have the rights to create a model there"})
        id = f"{asked['organization']}/{asked['name']}"
        if id in self.hub.repos:
            raise Answer(409, {"error": "You already created this model repo"})
        self.hub.make(id, private=asked.get("visibility") == "private" or asked.get("private") is True)
        raise Answer(200, {"url": f"{self.hub.url}/{id}", "name": id})

    def post_yaml(self, *, body: bytes, query: Any) -> None:
        text = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---", text, re.S)
        try:
            assert match is None or isinstance(yaml.safe_load(match[1]), dict)
        except (yaml.YAMLError, AssertionError) as e:
            raise Answer(400, {"errors": [{"message": str(e) or "no mapping"}], "warnings": []}) from e
        raise Answer(200, {"errors": [], "warnings": []})

    def get_info(self, id: str, revision: str = "main", *, body: bytes, query: Any) -> None:
        repo = self._repo(id)
        commit = self._commit(repo, revision)
        files = []
        for name, b in repo.commits[commit].tree.items():
            files.append({"rfilename": name, "size": b.size, "blobId": b.oid})
            if b.large:
                files[-1]["lfs"] = {"sha256": b.oid, "size": b.size, "pointerSize": 130}
        raise Answer(200, {"id": id, "sha": commit, "private": repo.private, "gated": repo.gated, "siblings": files})

    def get_refs(self, id: str, *, body: bytes, query: Any) -> None:
        repo = self._repo(id)

        def listed(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in refs.items()]

        raise Answer(200, {"branches": listed(repo.heads, "heads"), "tags": listed(repo.tags, "tags"), "converts": []})

    def post_tag(self, id: str, revision: str, *, body: bytes, query: Any) -> None:
        repo, name = self._repo(id, write=True), json.loads(body)["tag"]
        if name in repo.tags:
            raise Answer(409, {"error": "Tag reference exists already"})
        repo.tags[name] = self._commit(repo, revision)
        raise Answer()

    def post_branch(self, id: str, name: str, *, body: bytes, query: Any) -> None:
        repo = self._repo(id, write=True)
        if name in repo.heads:
            raise Answer(409, {"error": "Reference already exists"})
        repo.heads[name] = repo.heads["main"]
        raise Answer()

    def post_preupload(self, id: str, revision: str, *, body: bytes, query: Any) -> None:
        repo = self._repo(id, write=True)
        tree, files = repo.commits[self._commit(repo, revision)].tree, []
        for f in json.loads(body)["files"]:
            mode = "lfs" if f["path"].endswith(LARGE) else "regular"
            old = tree.get(f["path"])
            files.append(
                {"path": f["path"], "uploadMode": mode, "shouldIgnore": False, "oid": old.oid if old else None}
            )
        raise Answer(200, {"files": files})

    def post_batch(self, id: str, *, body: bytes, query: Any) -> None:
        self._repo(id, write=True)
        objects = json.loads(body)["objects"]
        for o in objects:
            if o["oid"] not in self.hub.objects:
                put = {"href": f"{self.hub.url}/lfs/{o['oid']}"}
                o["actions"] = {"upload": put, "verify": {"href": f"{self.hub.url}/verify"}}
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def put_object(self, oid: str, *, body: bytes, query: Any) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, {"error": "content does not match its SHA-256"})
        self.hub.objects[oid] = body
        raise Answer(ETag=oid)

    def post_verify(self, *, body: bytes, query: Any) -> None:
        raise Answer(200 if json.loads(body)["oid"] in self.hub.objects else 404, {})

    def get_xet(self, id: str, mode: str, revision: str, *, body: bytes, query: Any) -> None:
        self._repo(id, write=mode == "write", content=True)
        expires = int(time.time()) + 3600
        cas = {
            "X_Xet_Cas_Url": f"local://{self.hub.store}",
            "X_Xet_Access_Token": "t",
            "X_Xet_Token_Expiration": f"{expires}",
        }
        raise Answer(200, {"casUrl": cas["X_Xet_Cas_Url"], "accessToken": "t", "exp": expires}, **cas)

    def post_commit(self, id: str, branch: str, *, body: bytes, query: Any) -> None:
        repo = self._repo(id, write=True)
        lines = [json.loads(line) for line in body.splitlines()]
        header, changes = lines[0]["value"], {}
        if header.get("parentCommit") not in (None, self._commit(repo, branch)):
            raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                changes[value["path"]] = small(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                data = self.hub.objects.get(value["oid"])
                if data is None and self.hub.xet_hash(value["oid"]) is None:
                    raise Answer(400, {"error": f"{value['path']} was not uploaded"})
                changes[value["path"]] = Blob(value["oid"], value["size"], data, True)
            else:
                changes[value["path"]] = None
        oid = repo.commit(branch, header["summary"], changes)
        raise Answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{id}/commit/{oid}"})

    def head_file(self, id: str, revision: str, name: str, *, body: bytes, query: Any) -> None:
        repo = self._repo(id, content=True)
        commit = self._commit(repo, revision)
        blob = repo.commits[commit].tree.get(name)
        if blob is None:
            raise Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        headers = {"X_Repo_Commit": commit, "ETag": f'"{blob.oid}"', "Accept_Ranges": "bytes"}
        if blob.large:
            headers |= {"X_Linked_Etag": f'"{blob.oid}"', "X_Linked_Size": f"{blob.size}"}
            if blob.data is None and (hash_ := self.hub.xet_hash(blob.oid)):
                auth = f"{self.hub.url}/api/models/{id}/xet-read-token/{commit}"
                headers |= {"X_Xet_Hash": hash_, "Link": f'<{auth}>; rel="xet-auth"'}
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        raise Answer(206 if start else 200, (blob.data or b"")[start:], **headers, **self._size(blob, start))

    def get_file(self, *args: str, **options: Any) -> None:
        self.head_file(*args, **options)

    def _size(self, blob: Blob, start: int) -> dict[str, str]:
        if self.command == "HEAD":
            return {"Content_Length": f"{blob.size}"}
        return {"Content_Range": f"bytes {start}-{blob.size - 1}/{blob.size}"} if start else {}


_ID = r"([\w.-]+/[\w.-]+)"


ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/api/repos/create", _Handler.post_create),
    (r"/api/validate-yaml", _Handler.post_yaml),
    (rf"/api/models/{_ID}", _Handler.get_info),
    (rf"/api/models/{_ID}/revision/(.+)", _Handler.get_info),
    (rf"/api/models/{_ID}/refs", _Handler.get_refs),
    (rf"/api/models/{_ID}/tag/(.+)", _Handler.post_tag),
    (rf"/api/models/{_ID}/branch/(.+)", _Handler.post_branch),
    (rf"/api/models/{_ID}/preupload/(.+)", _Handler.post_preupload),
    (rf"/api/models/{_ID}/commit/(.+)", _Handler.post_commit),
    (rf"/api/models/{_ID}/xet-(read|write)-token/(.+)", _Handler.get_xet),
    (rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.post_batch),
    (r"/lfs/(\w+)", _Handler.put_object),
    (r"/verify", _Handler.post_verify),
    (rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler.head_file),
    (rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler.get_file),
]
