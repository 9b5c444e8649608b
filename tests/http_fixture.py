"""A web server on the loopback interface: serves bytes, and misbehaves as told."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site:
    """What is served, by path; what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Callable[[dict[str, str], dict[str, str]], tuple[int, dict[str, str], bytes]]] = {}
        """Path -> a function of query and headers that gives status, headers and body."""
        self.breaks: dict[str, list[int]] = {}
        """Path -> after how many bytes the next answers break off."""
        self.ranges = True
        """False: a server that knows no Range."""
        self.asked: list[tuple[str, str, str]] = []
        """(method, path, Range) of every request."""
        self.url = ""

    def json(self, path: str, value: Any, headers: dict[str, str] | None = None) -> None:
        self.answers[path] = lambda query, sent: (200, headers or {}, json.dumps(value).encode())

    def sent(self, path: str) -> list[str]:
        """The Range of every GET of a path."""
        return [asked for method, name, asked in self.asked if (method, name) == ("GET", path)]


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            path, wanted = urllib.parse.unquote(parts.path), self.headers.get("Range", "")
            site.asked.append((self.command, path, wanted))
            if path in site.answers:
                query = dict(urllib.parse.parse_qsl(parts.query))
                self._send(*site.answers[path](query, {k.lower(): v for k, v in self.headers.items()}))
            elif path in site.files:
                self._file(path, wanted)
            else:
                self._send(404, {}, b"")

        def _file(self, path: str, wanted: str) -> None:
            body, total = site.files[path], len(site.files[path])
            start = int(wanted.removeprefix("bytes=").partition("-")[0] or 0) if wanted and site.ranges else 0
            if start >= total > 0:
                return self._send(416, {"Content-Range": f"bytes */{total}"}, b"")
            headers = {"Content-Range": f"bytes {start}-{total - 1}/{total}"} if wanted and site.ranges else {}
            limit = site.breaks[path].pop(0) if site.breaks.get(path) and self.command == "GET" else None
            self._send(206 if headers else 200, headers, body[start:], limit)

        def _send(self, status: int, headers: dict[str, str], body: bytes, limit: int | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:limit])
            if limit is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Tests read `Site.asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
