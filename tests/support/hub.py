"""A model hub for tests: a directory as a repository, by as much of the Hugging Face Hub's API as clients need.

`python tests/support/hub.py --repo ORG/NAME --directory DIR` runs it on its own; clients find it by HF_ENDPOINT.
The standard library is all it needs, so that any Python image can run it. Files go by plain HTTP: Xet is not
offered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK = 1 << 18


@dataclass(frozen=True)
class File:
    """One file of the repository."""

    name: str
    path: Path
    size: int
    etag: str


@dataclass
class Hub:
    """What is served, and to whom. The fields may be changed while it serves."""

    repo: str
    directory: Path
    token: str | None = None
    """Without it the repository is not to be seen, or when `gated` its files are not to be had."""
    gated: bool = False
    bytes_per_second: float | None = None
    """Of each file that is sent."""
    failure: int | None = None
    """The status of every answer, as of a hub that is down."""
    cut_after: int | None = None
    """Bytes of a file after which the connection breaks."""
    requests: list[str] = field(default_factory=list)
    """Method and path of all requests so far."""

    def files(self) -> dict[str, File]:
        """By name. The tag stands for name, size and time, so that no content need be read."""
        found: dict[str, File] = {}
        for path in sorted(self.directory.rglob("*")):
            name = path.relative_to(self.directory).as_posix()
            if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
                status = path.stat()
                tag = hashlib.sha1(f"{name} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
                found[name] = File(name, path, status.st_size, tag)
        return found

    def commit(self) -> str:
        """What the branch `main` points to: it changes with the files."""
        return hashlib.sha1("".join(file.etag for file in self.files().values()).encode()).hexdigest()

    def handle(self, request: _Request) -> None:
        """Answer one request."""
        path = urlsplit(request.path).path
        self.requests.append(f"{request.command} {path}")
        if self.failure is not None:
            return request.refuse(self.failure, "")
        if path == "/":
            return request.answer({"repo": self.repo})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            repo, kind, revision = match.groups()
            if self._denied(request, repo, unquote(revision or "main"), files=False):
                return None
            return request.answer(self._tree() if kind == "tree" else self._info())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = match.groups()
            if self._denied(request, repo, unquote(revision), files=True):
                return None
            file = self.files().get(unquote(name))
            if file is None:
                return request.refuse(404, "EntryNotFound")
            return request.send(file, self.commit(), self)
        return request.refuse(404, "")

    def _denied(self, request: _Request, repo: str, revision: str, *, files: bool) -> bool:
        """Whether the request may not see this, in which case it has been told so, in the real hub's words."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        refused = self.token is not None and given != self.token
        if repo != self.repo or (refused and not self.gated):
            request.refuse(404 if given else 401, "RepoNotFound")
        elif refused and files:
            request.refuse(403 if given else 401, "GatedRepo")
        elif revision not in ("main", self.commit()):
            request.refuse(404, "RevisionNotFound")
        else:
            return False
        return True

    def _info(self) -> object:
        siblings = [{"rfilename": f.name, "size": f.size, "blobId": f.etag} for f in self.files().values()]
        gated = "manual" if self.gated else False
        return {"id": self.repo, "modelId": self.repo, "sha": self.commit(), "gated": gated, "siblings": siblings}

    def _tree(self) -> object:
        return [{"type": "file", "path": f.name, "size": f.size, "oid": f.etag} for f in self.files().values()]


class _Request(BaseHTTPRequestHandler):
    """One connection of a client; `hub` is set in the subclass that each server makes."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.hub.handle(self)

    def do_HEAD(self) -> None:
        self.hub.handle(self)

    def answer(self, content: object) -> None:
        """200, with JSON."""
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._finish(body)

    def refuse(self, status: int, code: str) -> None:
        """An error; clients tell its kind by the header that holds `code`."""
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self._finish(b"")

    def _finish(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send(self, file: File, commit: str, hub: Hub) -> None:
        """The file, or what is left of it after the first byte that the client asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if asked and start >= file.size:
            return self.refuse(416, "")
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{file.size - 1}/{file.size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", f'"{file.etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(file.size - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        began, sent = time.monotonic(), 0
        with file.path.open("rb") as stream:
            stream.seek(start)
            while chunk := stream.read(CHUNK if hub.bytes_per_second is None else 1 << 14):
                self.wfile.write(chunk)
                sent += len(chunk)
                if hub.cut_after is not None and sent >= hub.cut_after:
                    self.close_connection = True
                    return None
                if hub.bytes_per_second is not None:
                    time.sleep(max(0.0, began + sent / hub.bytes_per_second - time.monotonic()))
        return None

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client has gone: a download that was ended
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        if os.environ.get("HUB_LOG"):
            super().log_message(format, *args)


def make_server(hub: Hub, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server of `hub` on a port of its own; not yet running."""
    server = ThreadingHTTPServer((host, port), type("_BoundRequest", (_Request,), {"hub": hub}))
    server.daemon_threads = True
    return server


@contextmanager
def running(hub: Hub) -> Iterator[str]:
    """Serve `hub` from a thread; gives what HF_ENDPOINT should be."""
    server = make_server(hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a directory as a repository of a model hub.")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME")
    parser.add_argument("--directory", required=True, type=Path, metavar="DIR")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--token", help="what clients must send to see the repository")
    parser.add_argument("--gated", action="store_true", help="the token is needed for the files alone")
    parser.add_argument("--bytes-per-second", type=float, metavar="N", help="of each file that is sent")
    options = parser.parse_args()
    if not options.directory.is_dir():
        parser.error(f"--directory {options.directory}: no such directory")
    hub = Hub(
        options.repo,
        options.directory,
        token=options.token,
        gated=options.gated,
        bytes_per_second=options.bytes_per_second,
    )
    print(f"serving {options.repo} on port {options.port}", flush=True)
    make_server(hub, options.host, options.port).serve_forever()


if __name__ == "__main__":
    main()
