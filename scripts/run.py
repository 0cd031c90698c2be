#!/usr/bin/env python3
"""`make run`: a broker, the gateway and demo workers on this machine, until Ctrl-C.

Needs Rust and Python >= 3.9, nothing else. The exit code is 0 after a wanted end, 2 when something has to be changed
before a start (a port in use, no cargo, an old broker), and 1 when a program died or did not get ready.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Set

from demo_config import Config, Mistakes, check_broker, check_ports, dial_broker, read_config, without_secrets
from find_broker import OLDEST, find_broker
from supervise import Child, ChildDied, Stopped, Supervisor
from tooling import ROOT, ToolError, say, target_dir

SUBJECT = "svc.demo.blue"
ROUTES = ROOT / "apiproxy" / "routes.demo.toml"
READY_SECONDS = 60.0
LEAVE_SECONDS = 15.0
BROKER_LEAVE_SECONDS = 10.0
LOOK_SECONDS = 0.1
REQUEST_SECONDS = 10.0
# A look that hangs keeps Ctrl-C waiting.
PROBE_SECONDS = 2.0

# A proxy of the environment must not stand between us and 127.0.0.1.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NotReady(Exception):
    """Something came up, but does not do its work; the text says what was seen last."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, of any status."""

    status: int
    body: str

    def member(self, name: str) -> object:
        """A member of the JSON object in the body; None when there is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return None
        return value.get(name) if isinstance(value, dict) else None


@dataclass(frozen=True)
class Trial:
    """A request to try: as curl's arguments, as we send it, and how its answer is known to be right."""

    curl: str
    path: str
    body: Optional[bytes]
    right: Callable[[Answer], bool]


TRIALS = (
    Trial("'{base}/version'", "/version", None, lambda answer: answer.member("subject") == SUBJECT),
    Trial("'{base}/sum?n=1&n=2&n=3'", "/sum?n=1&n=2&n=3", None, lambda answer: answer.member("sum") == 6),
    Trial("--data hello '{base}/echo'", "/echo", b"hello", lambda answer: "hello" in answer.body),
)


def fetch(url: str, body: Optional[bytes] = None, seconds: float = PROBE_SECONDS) -> Answer:
    """Sends one request. Raises OSError when nothing answers."""
    try:
        with HTTP.open(urllib.request.Request(url, data=body), timeout=seconds) as response:
            return Answer(response.status, response.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode("utf-8", "replace"))


class Demo:
    """The programs of one run, and how they come up and go down."""

    def __init__(self, config: Config, supervisor: Supervisor) -> None:
        self.config = config
        self.supervisor = supervisor
        self.brokers: List[Child] = []
        self.gateways: List[Child] = []
        self.workers: List[Child] = []
        self.base = f"http://{config.listen.dialled()}"
        self.admin = f"http://{config.admin.dialled()}"
        self.nats_url = config.nats_url or f"nats://{config.nats.dialled()}"

    def up(self, cargo: str, broker: Optional[Path]) -> None:
        """Builds and starts everything, and returns when requests are answered."""
        binaries = self.build(cargo)
        if broker is not None:
            self.start_broker(broker)
        env = self.child_environment()
        gateway = [str(binaries / "apiproxy"), "--routes", str(ROUTES)]
        gateway += ["--listen", str(self.config.listen), "--admin-listen", str(self.config.admin)]
        self.gateways.append(self.supervisor.start("gateway", gateway, env))
        for number in range(1, self.config.workers + 1):
            worker = [str(binaries / "worker"), "--subject", SUBJECT]
            self.workers.append(self.supervisor.start(f"worker-{number}", worker, env))
        self.await_ready("the gateway", self.gateway_problem)
        seen: Set[object] = set()
        self.await_ready("the workers", lambda: self.worker_problem(seen))

    def build(self, cargo: str) -> Path:
        """Compiles the two programs and returns their directory."""
        profile = self.config.profile
        command = [cargo, "build", "--manifest-path", str(ROOT / "Cargo.toml"), "--profile", profile]
        code = self.supervisor.run([*command, "--bin", "apiproxy", "--bin", "worker"])
        if code != 0:
            raise NotReady("cargo build failed, its output is above")
        return target_dir() / ("debug" if profile == "dev" else profile)

    def start_broker(self, broker: Path) -> None:
        # One store for each port, because two servers must never share one.
        home = target_dir() / "run" / f"broker-{self.config.nats.port}"
        home.mkdir(parents=True, exist_ok=True)
        name = f"natsway-{os.getpid()}"
        config = home / "server.conf"
        config.write_text(broker_config(self.config, name, home), encoding="utf-8")
        self.brokers.append(self.supervisor.start("broker", [str(broker), "--config", str(config)]))
        self.await_ready("the broker", lambda: self.broker_problem(name))

    def child_environment(self) -> Dict[str, str]:
        """The settings that the user exported reach the programs, but for those of another broker than ours.

        The broker's address goes this way too, for it may hold a password, and everybody can read command lines.
        """
        own_broker = self.config.nats_url is None
        kept = {key: value for key, value in os.environ.items() if not (own_broker and key.startswith("NATS_"))}
        return {**kept, "NATS_URL": self.nats_url}

    def await_ready(self, who: str, problem: Callable[[], Optional[str]]) -> None:
        """Looks until there is no problem any more."""
        end = time.monotonic() + READY_SECONDS
        while True:
            self.supervisor.pump(LOOK_SECONDS)
            try:
                last = problem()
            except (OSError, ValueError) as error:
                last = str(error)
            if last is None:
                return
            if time.monotonic() > end:
                raise NotReady(f"{who}: not ready after {READY_SECONDS:.0f} s: {last}")

    def broker_problem(self, name: str) -> Optional[str]:
        where = self.config.nats.dialled()
        found = dial_broker(where.host, where.port).get("server_name")
        return None if found == name else f"another server ({found}) listens on {where}"

    def gateway_problem(self) -> Optional[str]:
        answer = fetch(f"{self.admin}/readyz")
        return None if answer.status == 200 else f"{self.admin}/readyz says {answer.status}: {answer.body.strip()}"

    def worker_problem(self, seen: Set[object]) -> Optional[str]:
        """A real request through all of it, until every worker has answered one."""
        answer = fetch(f"{self.base}/version")
        if answer.status != 200:
            return f"{self.base}/version says {answer.status}: {answer.body.strip()}"
        seen.add(answer.member("instance"))
        return None if len(seen) >= self.config.workers else f"{len(seen)} of {self.config.workers} workers answer"

    def try_requests(self) -> bool:
        """Sends the three requests and tells what came back; whether all is right."""
        fine = True
        for trial in TRIALS:
            answer = fetch(self.base + trial.path, trial.body, REQUEST_SECONDS)
            right = answer.status == 200 and trial.right(answer)
            fine = fine and right
            verdict = "" if right else " (WRONG)"
            self.supervisor.tell(f"{trial.path} -> {answer.status} {answer.body.strip()}{verdict}")
        return fine

    def welcome(self) -> None:
        config = self.config
        started = f"monitoring http://{config.monitor.dialled()}" if config.nats_url is None else "not started here"
        lines = [
            "",
            "Natsway is up.",
            "",
            f"  gateway  {self.base}",
            f"  admin    {self.admin}/readyz and {self.admin}/metrics",
            f"  broker   {without_secrets(self.nats_url)} ({started})",
            f"  workers  {config.workers} on {SUBJECT}",
            "",
            "Try:",
            *(f"  curl {trial.curl.format(base=self.base)}" for trial in TRIALS),
            "",
            "Ctrl-C stops everything.",
            "",
        ]
        self.supervisor.tell("\n".join(lines))

    def down(self) -> bool:
        """Stops everything in the order in which no request is lost; False when something had to be killed."""
        deadline = time.monotonic() + LEAVE_SECONDS
        willing = self.supervisor.stop(self.gateways, deadline)
        willing = self.supervisor.stop(self.workers, deadline) and willing
        return self.supervisor.stop(self.brokers, time.monotonic() + BROKER_LEAVE_SECONDS) and willing


def broker_config(config: Config, name: str, home: Path) -> str:
    """The broker's configuration file. Frozen workers are noticed by the short pings."""
    quote = json.dumps
    return "\n".join(
        [
            f"server_name: {quote(name)}",
            f"listen: {quote(str(config.nats))}",
            f"http: {quote(str(config.monitor))}",
            'ping_interval: "2s"',
            "ping_max: 2",
            f"jetstream {{ store_dir: {quote(str(home / 'store'))} }}",
            "",
        ]
    )


def run(config: Config, cargo: str, broker: Optional[Path]) -> int:
    supervisor = Supervisor(width=len("worker-10"))
    demo = Demo(config, supervisor)
    code, failure = 0, ""
    try:
        demo.up(cargo, broker)
        if config.check:
            code = 0 if demo.try_requests() else 1
        else:
            demo.welcome()
            while True:
                supervisor.pump(3600)
    except Stopped:
        code = 1 if config.check else 0
    except (ChildDied, NotReady, OSError) as error:
        code, failure = 1, str(error)
        say(f"run: {failure}")
    finally:
        supervisor.tell("stopping")
        willing = demo.down()
    supervisor.tell("stopped, nothing is left behind")
    if failure:
        # Once more, because the logs of the others' leaving have scrolled the reason away.
        say(f"run: stopped because {failure.splitlines()[0]}")
    return code if willing or not config.check else 1


def main() -> int:
    try:
        config = read_config(sys.argv[1:], dict(os.environ))
        cargo = shutil.which(os.environ.get("CARGO", "cargo"))
        if cargo is None:
            raise ToolError("cargo is not in PATH: install Rust from https://rustup.rs, then open a new shell")
        check_ports(config)
        broker = None
        if config.nats_url is None:
            broker = find_broker()
        else:
            check_broker(config.nats_url, OLDEST)
    except (Mistakes, ToolError) as error:
        for line in str(error).splitlines():
            say(f"run: {line}")
        return 2
    except KeyboardInterrupt:
        return 0
    return run(config, cargo, broker)


if __name__ == "__main__":
    sys.exit(main())
