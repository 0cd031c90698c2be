"""A way to the broker that holds up what a client says from a certain text on, so that a race has a known winner."""

from __future__ import annotations

import socket
import threading


class Valve:
    """Passes bytes between clients and a port of this machine. What a client sends is held from the chunk on that has the
    text in it, until `open` is called; all else goes through."""

    def __init__(self, port: int, text: bytes) -> None:
        self.text = text
        # Set when something is held, and when nothing is held any more.
        self.held, self.opened = threading.Event(), threading.Event()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def open(self) -> None:
        """Lets go of what is held, for good."""
        self.opened.set()

    def close(self) -> None:
        """Takes no more clients."""
        self.open()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client, server, self.text), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, None), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, text: "bytes | None") -> None:
        try:
            while True:
                chunk = source.recv(65536)
                if not chunk:
                    break
                if text is not None and text in chunk and not self.opened.is_set():
                    self.held.set()
                    self.opened.wait()
                sink.sendall(chunk)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
