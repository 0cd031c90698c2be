"""Somebody with a role's credentials and no good intentions: a client of the broker that sends what none of our programs would.

It speaks the broker's protocol itself, so that no client library stands between an attack and the broker. Standard
library only, Python >= 3.9.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple

# An answer of a broker on this machine; what does not come in this time does not come.
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Heard:
    """A message that came."""

    subject: str
    reply: str
    headers: bytes
    payload: bytes


class Intruder:
    """A connection with a user's name and password. Everything is asked of the broker at once, and `settle` waits for its verdicts."""

    def __init__(self, port: int, user: str, password: str, inbox: str = "") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
        self._socket.settimeout(0.05)
        self._buffer = b""
        self._greeted = False
        self._pongs = 0
        self._next_sid = 0
        self.heard: List[Heard] = []
        # What the broker has refused: verb and subject.
        self.refused: List[Tuple[str, str]] = []
        self.inbox = f"{inbox or '_INBOX_' + user}.{secrets.token_hex(8)}"
        self.listens = False
        self._wait(lambda: self._greeted, "the broker's greeting")
        options = {"verbose": False, "user": user, "pass": password, "headers": True, "no_responders": True, "protocol": 1}
        self._send(f"CONNECT {json.dumps(options)}\r\n".encode())
        self.settle()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Intruder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """Sends a message, perhaps with a reply subject of its own choice."""
        self._send(f"PUB {subject} {reply + ' ' if reply else ''}{len(payload)}\r\n".encode() + payload + b"\r\n")

    def subscribe(self, subject: str, queue: str = "") -> None:
        """Asks to hear a subject."""
        self._next_sid += 1
        self._send(f"SUB {subject} {queue + ' ' if queue else ''}{self._next_sid}\r\n".encode())

    def settle(self) -> None:
        """Waits until the broker has done all that was asked before: its objections and what it delivers are here then."""
        wanted = self._pongs + 1
        self._send(b"PING\r\n")
        self._wait(lambda: self._pongs >= wanted, "the broker's PONG")

    def may_publish(self, subject: str, payload: bytes = b"", reply: str = "") -> bool:
        """Sends a message, and says whether the broker took it."""
        self.publish(subject, payload, reply)
        self.settle()
        return ("publish", subject) not in self.refused

    def ask(self, subject: str, question: object = b"") -> Optional[Heard]:
        """Sends a request and gives its answer, if one comes and the broker lets it be asked."""
        if not self.listens:
            self.subscribe(f"{self.inbox}.*")
            self.listens = True
        payload = question if isinstance(question, bytes) else json.dumps(question).encode()
        reply = f"{self.inbox}.{secrets.token_hex(4)}"
        if not self.may_publish(subject, payload, reply):
            return None
        came: Callable[[], List[Heard]] = lambda: [heard for heard in self.heard if heard.subject == reply]
        self.until(came, ANSWER_SECONDS)
        return came()[0] if came() else None

    def until(self, holds: Callable[[], object], within: float) -> bool:
        """Listens until something holds; whether it came to that."""
        deadline = time.monotonic() + within
        while not holds():
            if time.monotonic() > deadline:
                return False
            self._receive()
        return True

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(ANSWER_SECONDS)
        self._socket.sendall(data)
        self._socket.settimeout(0.05)

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        if not self.until(holds, ANSWER_SECONDS):
            raise TimeoutError(f"{what} did not come")

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65536)
        except (TimeoutError, socket.timeout):
            return
        if not data:
            raise ConnectionError("the broker has closed the connection")
        self._buffer += data
        self._read_lines()

    def _read_lines(self) -> None:
        while b"\r\n" in self._buffer:
            line, rest = self._buffer.split(b"\r\n", 1)
            words = line.decode(errors="replace").split(" ")
            if words[0] in ("MSG", "HMSG"):
                whole = int(words[-1])
                if len(rest) < whole + 2:
                    return
                self._take(words, rest[:whole])
                rest = rest[whole + 2 :]
            elif words[0] == "-ERR":
                self._object(line.decode(errors="replace"))
            elif words[0] == "INFO":
                self._greeted = True
            elif words[0] == "PONG":
                self._pongs += 1
            elif words[0] == "PING":
                self._send(b"PONG\r\n")
            self._buffer = rest

    def _take(self, words: List[str], whole: bytes) -> None:
        headed = words[0] == "HMSG"
        head = int(words[-2]) if headed else 0
        # MSG subject sid [reply] bytes, HMSG subject sid [reply] head bytes
        reply = words[3] if len(words) == (6 if headed else 5) else ""
        self.heard.append(Heard(words[1], reply, whole[:head], whole[head:]))

    def _object(self, line: str) -> None:
        """Reads `-ERR 'Permissions Violation for Publish to "subject"'`; anything else that the broker objects to is an end."""
        verbs: Dict[str, str] = {"Publish to": "publish", "Publish with Reply of": "reply", "Subscription to": "subscribe"}
        for words, verb in verbs.items():
            begin = f"Permissions Violation for {words} \""
            if begin in line:
                self.refused.append((verb, line.split(begin, 1)[1].split('"', 1)[0]))
                return
        raise ConnectionError(line)
