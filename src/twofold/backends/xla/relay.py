"""Between jax's client in this process and jax's service in process 0: bytes are passed on, an end is not.

jax ends a process by ``abort()``, in words of its own, the moment its service closes a connection, so before anybody can
say that process 0 has died. Its client therefore talks to this relay, in the same process, and when process 0 is gone the
connection to the client stays open: who has died is said by the watch (``meeting.py``), which hears of it just then.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

_CHUNK = 1 << 16
_PATIENCE = 60.0  # seconds for the service to start, which it does once all processes have met


class Relay:
    """Listens on a port of this machine's own; what comes in goes to ``address``, and back."""

    def __init__(self, address: tuple[str, int]):
        self.address = address
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()  # the ends of connections; whoever serves one closes them
        self._closed = threading.Event()
        self._start(self._accept)

    @property
    def place(self) -> str:
        """Where the client connects."""
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, name="relay", daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self._start(self._serve, self._server.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        """A connection, until both ends have ended."""
        with self._kept(client):
            service = self._reach()
            if service is None:  # nobody is there: the client hears it, and tries again
                return
            with self._kept(service):
                back = self._start(self._pass_on, service, client)  # the client does not hear of the service's end
                self._pass_on(client, service)
                with contextlib.suppress(OSError):
                    service.shutdown(socket.SHUT_WR)
                back.join()

    @contextlib.contextmanager
    def _kept(self, end: socket.socket) -> Iterator[None]:
        """Within the block ``close`` ends the connection; after it the socket is closed."""
        self._open.add(end)
        try:
            with contextlib.suppress(OSError):  # it has just ended
                if self._closed.is_set():
                    end.shutdown(socket.SHUT_RDWR)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield
        finally:
            self._open.discard(end)
            end.close()

    def _reach(self) -> socket.socket | None:
        """A connection to the service, as soon as it listens."""
        end = time.monotonic() + _PATIENCE
        while not self._closed.is_set() and time.monotonic() < end:
            try:
                service = socket.create_connection(self.address, timeout=_PATIENCE)
            except OSError:
                time.sleep(0.05)
                continue
            service.settimeout(None)
            return service
        return None

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        """Bytes until the source ends; into the void where the target has."""
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                with contextlib.suppress(OSError):
                    target.sendall(data)

    def close(self) -> None:
        """Pass on nothing more."""
        self._closed.set()
        for each in (self._server, *list(self._open)):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._server.close()
