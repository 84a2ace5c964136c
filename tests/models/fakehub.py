"""A small Hub on 127.0.0.1: repositories are folders with one commit; gated and missing ones answer as there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class FakeHub:
    """What the server holds and what was asked of it.

    Attributes:
        repos: Folder of each repository id.
        gated: Ids whose files are refused (the listing is public, as on the Hub).
        status: The status of that refusal: 401 without a token, 403 with one that has no access.
        missing: The status for repositories that are not there: 401 without a token, 404 with one, 403 if disabled.
        requests: "METHOD path" of every request.
    """

    repos: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    status: int = 401
    missing: int = 401
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, repo_id: str) -> str:
        return hashlib.sha1(repo_id.encode()).hexdigest()

    def fetched(self) -> list[str]:
        """The files whose content was downloaded."""
        return [
            r.split("/resolve/")[1].split("/", 1)[1] for r in self.requests if r.startswith("GET") and "/resolve/" in r
        ]


@contextmanager
def serve() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def send(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if path.startswith("/api/models/"):
                repo_id, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                return self.listing(repo_id, revision or "main")
            repo_id, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            return self.content(repo_id, revision, name)

        def known(self, repo_id: str, revision: str) -> bool:
            if repo_id not in hub.repos:
                self.send(hub.missing, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                return False
            if revision not in ("main", hub.commit(repo_id)):
                self.send(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
                return False
            return True

        def listing(self, repo_id: str, revision: str) -> None:
            if not self.known(repo_id, revision):
                return
            root = hub.repos[repo_id]
            names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
            body = {"id": repo_id, "sha": hub.commit(repo_id), "siblings": [{"rfilename": n} for n in names]}
            self.send(200, json.dumps(body).encode(), Content_Type="application/json")

        def content(self, repo_id: str, revision: str, name: str) -> None:
            if not self.known(repo_id, revision):
                return
            commit = {"X_Repo_Commit": hub.commit(repo_id)}
            if repo_id in hub.gated:
                return self.send(hub.status, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted", **commit)
            path = hub.repos[repo_id] / name
            if not path.is_file():
                return self.send(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", **commit)
            body = path.read_bytes()
            self.send(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', **commit)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
