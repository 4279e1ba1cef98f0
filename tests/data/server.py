"""A small HTTP server for the download tests: ranges, broken lines, refusals."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror:
    """What the server does: ``content`` of each path, and how it misbehaves. ``requests`` records (path, Range)."""

    def __init__(self):
        self.content: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: dict[str, int] = {}  # path -> bytes sent before the line breaks, once
        self.ranges = True
        self.announce: int | None = None  # a Content-Length that is not true
        self.url = ""


@contextlib.contextmanager
def serve():
    """A ``Mirror`` at work; ``mirror.url`` is its address."""
    mirror = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked = self.headers.get("Range")
            mirror.requests.append((self.path, asked))
            body = mirror.content.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mirror.ranges else 0
            if start >= len(body) and start:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start if mirror.announce is None else mirror.announce))
            self.end_headers()
            self.wfile.write(body[start : mirror.break_after.pop(self.path, len(body))])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
