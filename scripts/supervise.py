"""Runs several programs as one: their output in one stream, and an end for all of them.

Single-threaded on purpose: the code between fork and exec (see `_before_exec`) is safe only while no other thread
holds a lock. Whoever waits for something calls `Supervisor.pump`, which passes output on meanwhile.
"""

from __future__ import annotations

import collections
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Dict, List, Optional, Sequence

COLOURS = ("36", "35", "32", "33", "34", "31")
TAIL_LINES = 20
# A line without an end is passed on in pieces of this size, so that no output can fill the memory.
LONGEST_LINE_BYTES = 64 * 1024
LOOK_SECONDS = 0.1
STEP_LEAVE_SECONDS = 5.0
PR_SET_PDEATHSIG = 1

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Stopped(Exception):
    """The user asked for the end, by Ctrl-C or SIGTERM."""


class ChildDied(Exception):
    """A program ended that should run on; the text says which, how, and what it wrote last."""


def wants_colour(is_terminal: bool, environment: Dict[str, str]) -> bool:
    """Colour only where a person reads it and has not said no (no-color.org)."""
    return is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def label(name: str, width: int, colour: Optional[str]) -> str:
    """What stands before each line of a program."""
    text = f"{name:<{width}} |"
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def describe_exit(code: int) -> str:
    """How a program ended, as `subprocess` tells it: a negative code is a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class LineSplitter:
    """Cuts a stream of bytes into lines of text."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> List[str]:
        """The lines that are complete now. No data means the end: the rest is a line too."""
        *lines, rest = (self._rest + data).split(b"\n")
        if rest and (not data or len(rest) >= LONGEST_LINE_BYTES):
            lines.append(rest)
            rest = b""
        self._rest = rest
        return [line.rstrip(b"\r").decode("utf-8", "replace") for line in lines]


class Child:
    """One program, the leader of its own process group."""

    def __init__(self, name: str, process: subprocess.Popen, prefix: str) -> None:
        self.name = name
        self.process = process
        self.prefix = prefix
        self.splitter = LineSplitter()
        self.tail: collections.deque = collections.deque(maxlen=TAIL_LINES)

    def signal(self, number: int) -> None:
        """Signals the whole group; nothing happens when it has ended."""
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            # macOS answers EPERM for a group of which only a zombie is left.
            pass

    def end(self, seconds: float) -> None:
        """Asks it to leave and kills it when it is not gone by then; nothing happens when it has ended."""
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def runs(self) -> bool:
        return self.process.poll() is None


class Supervisor:
    """The programs of one run, in the order of their start."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._children: List[Child] = []
        self._selector = selectors.DefaultSelector()
        self._colour = wants_colour(sys.stdout.isatty(), dict(os.environ))
        self._stopping = False
        self._asked = 0
        self._hurry = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._asked += 1
        # `make` passes a SIGTERM on that may have come here too, but a second Ctrl-C is a person who will not wait.
        self._hurry = self._hurry or (number == signal.SIGINT and self._stopping)

    def tell(self, text: str) -> None:
        """Prints a line of our own between those of the programs."""
        try:
            print(text, flush=True)
        except BrokenPipeError:
            # Nobody reads any more (`make run | head`): go down, and write the rest nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._asked += 1

    def start(self, name: str, command: Sequence[str], env: Optional[Dict[str, str]] = None) -> Child:
        """Starts a program whose output is passed on with its name before each line."""
        process = _spawn(command, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        colour = COLOURS[len(self._children) % len(COLOURS)] if self._colour else None
        child = Child(name, process, label(name, self._width, colour))
        self._children.append(child)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, child)
        self.tell(f"{child.prefix} started, pid {process.pid}")
        return child

    def run(self, command: Sequence[str]) -> int:
        """Runs a program to its end with the terminal as its output, and returns its exit code; Stopped ends it."""
        step = Child(command[0], _spawn(command, None), "")
        try:
            while step.runs():
                self.check_stop()
                time.sleep(LOOK_SECONDS)
        finally:
            step.end(STEP_LEAVE_SECONDS)
        return step.process.returncode

    def check_stop(self) -> None:
        if self._asked and not self._stopping:
            raise Stopped

    def pump(self, seconds: float) -> None:
        """Passes output on for this long. Raises Stopped or ChildDied as soon as that is so."""
        end = time.monotonic() + seconds
        while True:
            self.check_stop()
            self._pass_on(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))
            for child in self._children:
                if not child.runs():
                    raise ChildDied(self._obituary(child))
            if time.monotonic() >= end:
                return

    def stop(self, children: Sequence[Child], deadline: float) -> bool:
        """Asks these programs to leave, kills those that are not gone at the deadline (`time.monotonic`), and forgets
        them. False when one had to be killed."""
        self._stopping = True
        for child in children:
            child.signal(signal.SIGTERM)
        while any(child.runs() for child in children) and time.monotonic() < deadline and not self._hurry:
            self._pass_on(LOOK_SECONDS)
        willing = True
        for child in children:
            if child.runs():
                willing = False
                self.tell(f"{child.prefix} did not leave in time: killed")
            child.signal(signal.SIGKILL)
            child.process.wait()
        self._pass_on(0)
        for child in children:
            self._children.remove(child)
        return willing

    def _pass_on(self, seconds: float) -> None:
        if not self._selector.get_map():
            time.sleep(seconds)
            return
        for key, _ in self._selector.select(seconds):
            child = key.data
            try:
                data = os.read(key.fd, LONGEST_LINE_BYTES)
            except BlockingIOError:
                continue
            if not data:
                self._selector.unregister(key.fileobj)
            for line in child.splitter.feed(data):
                child.tail.append(line)
                self.tell(f"{child.prefix} {line}")

    def _obituary(self, child: Child) -> str:
        self._pass_on(0)
        heading = f"{child.name} (pid {child.process.pid}) {describe_exit(child.process.returncode)}"
        if not child.tail:
            return f"{heading}, and wrote nothing"
        return "\n  ".join([f"{heading}; its last lines:", *child.tail])


def _spawn(command: Sequence[str], env: Optional[Dict[str, str]], **streams: int) -> subprocess.Popen:
    return subprocess.Popen(
        list(command), env=env, stdin=subprocess.DEVNULL, preexec_fn=_before_exec(os.getpid()), **streams
    )


def _before_exec(parent: int):
    """What a child does first: it leads a process group of its own, so that Ctrl-C reaches only us, and on Linux it
    dies with us even when we are killed."""

    def prepare() -> None:
        os.setpgid(0, 0)
        if _LIBC is not None:
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return prepare
