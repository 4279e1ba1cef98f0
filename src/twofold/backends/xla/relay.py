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

_CHUNK = 1 << 16
_PATIENCE = 60.0  # seconds for the service to start, which it does once all processes have met


class Relay:
    """Listens on a port of this machine's own; what comes in goes to ``address``, and back."""

    def __init__(self, address: tuple[str, int]):
        self.address = address
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._server]
        self._closed = threading.Event()
        self._start(self._accept)

    @property
    def place(self) -> str:
        """Where the client connects."""
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def _start(self, work: object, *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, name="relay", daemon=True).start()  # type: ignore[arg-type]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client = self._server.accept()[0]
                self._open.append(client)
                self._start(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        end = time.monotonic() + _PATIENCE
        while not self._closed.is_set() and time.monotonic() < end:
            try:
                service = socket.create_connection(self.address, timeout=_PATIENCE)
            except OSError:
                time.sleep(0.05)
                continue
            service.settimeout(None)
            self._open.append(service)
            for end_of in (client, service):
                end_of.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._pass_on, client, service)
            return self._pass_on(service, client, tell=False)
        return client.close()  # nobody is there: the client hears it, and tries again

    def _pass_on(self, source: socket.socket, target: socket.socket, tell: bool = True) -> None:
        """Bytes until the source ends; ``tell`` the target of it."""
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                target.sendall(data)
        if tell:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Pass on nothing more."""
        self._closed.set()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
