"""A broker with permissions and the programs that use it, for as long as a test needs them.

Each stage has its own directory, ports and store; whatever was started ends with it. Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

from tooling import ROOT, target_dir

# The broker's configuration, as it is shipped.
SHIPPED = ROOT / "deploy" / "nats"
PERMISSIONS = SHIPPED / "permissions.conf"

ROLES = ("admin", "gateway", "worker", "caller", "operator", "provisioner", "groups", "member", "producer", "consumer")

# A cold start on a machine that does other things as well.
DEADLINE = 60.0
LOOK_SECONDS = 0.1
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))

VIOLATION = re.compile(r'user:([\w-]+)" - (Publish|Subscription) Violation - .*?Subject "([^"]+)"')


class Failed(Exception):
    """Something did not do its work; the text says what."""


@dataclass
class Running:
    """A program with a log of its own."""

    role: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def printed(self) -> str:
        """Its standard output so far."""
        return self.log.with_suffix(".out").read_text(encoding="utf-8", errors="replace")

    def text(self) -> str:
        """All of its output so far, what it printed first."""
        return self.printed() + self.log.read_text(encoding="utf-8", errors="replace")


def password(role: str) -> str:
    """A role's secret; none of these may ever be in a log."""
    return f"secret-of-{role}"


def variable(role: str) -> str:
    """What the broker's configuration calls it."""
    return f"NATSWAY_{role.upper().replace('-', '_')}_PASSWORD"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _own_group() -> None:
    os.setpgid(0, 0)


class Stage:
    """A running broker and what was started with it."""

    def __init__(self, broker: Path, permissions: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="natsway-stage-"))
        self.running: List[Running] = []
        self.listen, self.admin = free_port(), free_port()
        try:
            self._begin(broker, permissions)
        except BaseException:
            self.__exit__()
            raise

    def _begin(self, broker: Path, permissions: str) -> None:
        self.port = free_port()
        (self.directory / PERMISSIONS.name).write_text(permissions, encoding="utf-8")
        (self.directory / "server.conf").write_text(
            f'host: 127.0.0.1\nport: {self.port}\ntrace: true\nlogfile: "{self.directory}/server.log"\n'
            f'jetstream {{ store_dir: "{self.directory}/jetstream" }}\ninclude ./{PERMISSIONS.name}\n',
            encoding="utf-8",
        )
        passwords = {variable(role): password(role) for role in ROLES}
        self.server = self._spawn("broker", [str(broker), "--config", str(self.directory / "server.conf")], passwords)
        self.until("the broker listens", self._listens)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        for one in reversed(self.running):
            if one.process.poll() is None:
                os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def credentials(self, role: str) -> Dict[str, str]:
        """What a program of a role is told of the broker."""
        return {"NATS_USER": role, "NATS_PASSWORD": password(role), "NATS_URL": f"nats://127.0.0.1:{self.port}"}

    def start(self, role: str, program: str, *arguments: str, **variables: str) -> Running:
        """Starts one of our programs as a role."""
        given = {**self.credentials(role), **variables}
        # A context of the machine's owner must not lead cg elsewhere.
        given["XDG_CONFIG_HOME"] = str(self.directory)
        path = Path(os.environ.get("NATSWAY_BIN_DIR", str(target_dir() / "debug"))) / program
        return self._spawn(role, [str(path), *arguments], given)

    def run(self, role: str, program: str, *arguments: str, within: float = DEADLINE, **variables: str) -> str:
        """Runs one of our programs as a role to its end, and returns what it printed. It has to succeed."""
        running = self.start(role, program, *arguments, **variables)
        self.until(f"{program} {' '.join(arguments)} ends", lambda: running.process.poll() is not None, within)
        if running.process.returncode != 0:
            raise Failed(f"{program} {' '.join(arguments)}: exit code {running.process.returncode}: {running.text()}")
        return running.printed()

    def set_up(self, *arguments: str) -> None:
        """Has an administrator make the buckets and streams that programs need, and finds that there is nothing left to do."""
        self.run("admin", "apiproxy", "setup", *arguments)
        self.run("admin", "apiproxy", "setup", "--dry-run", *arguments)

    def stop(self, running: Running) -> None:
        """Asks a program to leave, and waits until it has, in peace."""
        running.process.send_signal(signal.SIGTERM)
        self.until(f"{running.role} leaves", lambda: running.process.poll() is not None)
        if running.process.returncode != 0:
            raise Failed(f"{running.role} left with exit code {running.process.returncode}: {running.text()[-2000:]}")

    def until(self, what: str, holds: Callable[[], object], within: float = DEADLINE) -> None:
        """Looks until something holds."""
        deadline = time.monotonic() + within
        while not holds():
            if time.monotonic() > deadline:
                raise Failed(f"within {within:.0f} s it was not so that {what}{self._last_words()}")
            time.sleep(LOOK_SECONDS)

    def _last_words(self) -> str:
        """The end of each log, for whoever has to find out why."""
        ends = [(running, running.text().splitlines()[-3:]) for running in self.running]
        state = lambda process: "runs" if process.poll() is None else f"ended with {process.returncode}"
        return "".join(f"\n--- {running.role} {state(running.process)}\n" + "\n".join(end) for running, end in ends)

    def violations(self) -> List[Tuple[str, str, str]]:
        """What was not permitted so far: operation, role and subject."""
        return [(operation, role, subject) for role, operation, subject in VIOLATION.findall(self.server_log())]

    def server_log(self) -> str:
        path = self.directory / "server.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def get(self, path: str, timeout: float = 10.0) -> Tuple[int, str]:
        """A GET at the gateway; status 0 when there is no answer."""
        try:
            with HTTP.open(f"http://127.0.0.1:{self.listen}{path}", timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> str:
        """The gateway's page of metrics; empty when there is none."""
        try:
            with HTTP.open(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def _listens(self) -> bool:
        if self.server.process.poll() is not None:
            raise Failed(f"the broker ended: {self.server.text()}{self.server_log()[-2000:]}")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def _spawn(self, role: str, command: Sequence[str], variables: Dict[str, str]) -> Running:
        log = self.directory / f"{len(self.running)}-{role}.log"
        with open(log, "wb") as log_file, open(log.with_suffix(".out"), "wb") as out:
            process = subprocess.Popen(
                command,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log_file,
                cwd=self.directory,
                preexec_fn=_own_group,
            )
        running = Running(role, process, log)
        self.running.append(running)
        return running
