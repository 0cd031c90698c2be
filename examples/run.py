#!/usr/bin/env python3
"""Runs an example with a broker of its own, and a gateway where it has a route: `python3 examples/run.py fastapi`.

What an app needs is installed below target/examples by the ordinary tools (pip, npm, go). Ctrl-C ends all of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Dict, List, Optional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from find_broker import find_broker  # noqa: E402
from supervise import ChildDied, Stopped, Supervisor  # noqa: E402
from tooling import ToolError, run_step, say, target_dir  # noqa: E402

EXAMPLES = ROOT / "examples"
# Those without a sidecar: programs of this workspace, started in this order, and whether they end by themselves.
PROGRAMS = {"axum": (["axum"], False), "signal": (["signal-publisher", "signal-subscriber"], False), "two-groups": (["two-groups"], True)}
# A path that each of them answers with 200, where it is not /health.
PROBES = {"axum": "/todos/"}
READY_SECONDS = 60.0
LEAVE_SECONDS = 20.0
# A proxy of the environment must not stand between us and 127.0.0.1.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def installed(name: str) -> Dict[str, str]:
    """Installs what an example needs, once, and returns the environment in which its command finds it."""
    source, home = EXAMPLES / name, target_dir() / "examples" / name
    home.mkdir(parents=True, exist_ok=True)
    path: List[str] = []
    environment: Dict[str, str] = {}
    if (source / "requirements.txt").exists():
        venv = home / "venv"
        stamp = venv / "requirements.txt"
        wanted = (source / "requirements.txt").read_text(encoding="utf-8")
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
            run_step([sys.executable, "-m", "venv", str(venv)], "a virtual environment cannot be made")
            pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
            run_step([*pip, "--requirement", str(source / "requirements.txt")], "pip could not install the example")
            stamp.write_text(wanted, encoding="utf-8")
        path.append(str(venv / "bin"))
        # So that nothing is written into the checkout.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if (source / "package.json").exists():
        shutil.copy2(source / "package.json", home)
        if not (home / "node_modules").exists():
            npm = ["npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", "--no-package-lock"]
            run_step(npm, "npm could not install the example")
        # A program finds its packages above itself.
        for script in source.glob("*.js"):
            shutil.copy2(script, home)
    if (source / "go.mod").exists():
        build = ["go", "build", "-C", str(source), "-o", str((ROOT / home / "hello").resolve()), "."]
        run_step(build, "go could not build the example")
    if path:
        environment["PATH"] = os.pathsep.join(path)
    return environment


def directory_of(name: str) -> Path:
    """Where an example's command is run: beside what was built for it, else in its source."""
    source, home = EXAMPLES / name, target_dir() / "examples" / name
    is_built = (source / "package.json").exists() or (source / "go.mod").exists()
    return home if is_built else source


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def programs(name: str) -> Path:
    """The directory of our own programs, built if nobody says where they are; examples are in one below it."""
    if named := os.environ.get("NATSWAY_BIN_DIR"):
        return Path(named)
    cargo = os.environ.get("CARGO", "cargo")
    build = [cargo, "build", "--manifest-path", str(ROOT / "Cargo.toml"), "--package", "natsway-apiproxy", "--package", "natsway-worker", "--bins"]
    run_step(build, "the programs cannot be built")
    wanted = [argument for program in PROGRAMS.get(name, ([], False))[0] for argument in ("--example", program)]
    if wanted:
        build = [cargo, "build", "--manifest-path", str(ROOT / "Cargo.toml"), "--package", "natsway-worker", *wanted]
        run_step(build, "the example cannot be built")
    return target_dir() / "debug"


class Example:
    """A broker, a gateway if the example has a route, and the example."""

    def __init__(self, name: str, supervisor: Supervisor, port: int) -> None:
        self.name, self.supervisor, self.port = name, supervisor, port
        self.admin = free_port()
        self.brokers, self.gateways, self.sidecars = [], [], []

    def up(self) -> None:
        environment = installed(self.name)
        binaries, broker_port = programs(self.name), free_port()
        home = target_dir() / "examples" / self.name / f"broker-{broker_port}"
        broker = [str(find_broker()), "--addr", "127.0.0.1", "--port", str(broker_port), "--jetstream", "--store_dir", str(home)]
        self.brokers = [self.supervisor.start("broker", broker)]
        self.await_port(broker_port)
        path = [environment.pop("PATH", ""), str(binaries), os.environ["PATH"]]
        variables = {**os.environ, **environment, "PATH": os.pathsep.join(filter(None, path))}
        variables["NATS_URL"] = f"nats://127.0.0.1:{broker_port}"
        routes = EXAMPLES / self.name / "routes.toml"
        if routes.exists():
            gateway = [str(binaries / "apiproxy"), "--routes", str(routes)]
            gateway += ["--listen", f"127.0.0.1:{self.port}", "--admin-listen", f"127.0.0.1:{self.admin}"]
            self.gateways = [self.supervisor.start("gateway", gateway, variables)]
        for command in self.commands(binaries):
            self.sidecars.append(self.supervisor.start("example", command, variables))
        if routes.exists():
            self.await_ready()

    def commands(self, binaries: Path) -> List[List[str]]:
        """What is started for the example itself."""
        if self.name in PROGRAMS:
            return [[str(binaries / "examples" / program)] for program in PROGRAMS[self.name][0]]
        return [["env", "-C", str(directory_of(self.name)), "sh", str(EXAMPLES / self.name / "sidecar.sh")]]

    def await_port(self, port: int) -> None:
        """Waits until the broker takes connections."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            self.supervisor.pump(0.05)
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                return
            except OSError:
                continue
        raise ToolError(f"the broker takes no connection after {READY_SECONDS:.0f} s")

    def await_ready(self) -> None:
        """Waits until a request is answered by the app."""
        end, last = time.monotonic() + READY_SECONDS, ""
        path = PROBES.get(self.name, "/health")
        while time.monotonic() < end:
            self.supervisor.pump(0.1)
            try:
                with HTTP.open(f"http://127.0.0.1:{self.port}{path}", timeout=2.0) as response:
                    if response.status == 200:
                        return
            except (OSError, urllib.error.URLError) as error:
                last = str(error)
        raise ToolError(f"{self.name}: not ready after {READY_SECONDS:.0f} s: {last}")


def main(arguments: Optional[List[str]] = None) -> int:
    names = sorted([path.parent.name for path in EXAMPLES.glob("*/sidecar.sh")] + list(PROGRAMS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names)
    parser.add_argument("--port", type=int, default=8080, help="where clients connect")
    parsed = parser.parse_args(arguments)
    supervisor = Supervisor(len("gateway"))
    ends = PROGRAMS.get(parsed.name, ([], False))[1]
    example = Example(parsed.name, supervisor, parsed.port)
    try:
        example.up()
        if example.gateways:
            supervisor.tell(f"{parsed.name} is up: curl http://127.0.0.1:{parsed.port}{PROBES.get(parsed.name, '/')}    Ctrl-C stops everything")
        else:
            supervisor.tell(f"{parsed.name} is up    Ctrl-C stops everything")
        while True:
            supervisor.pump(60.0)
    except Stopped:
        return 0
    except ChildDied as error:
        if ends and all(child.process.poll() == 0 for child in example.sidecars):
            return 0
        say(f"example: {error}")
        return 1
    except ToolError as error:
        say(f"example: {error}")
        return 1
    finally:
        # The sidecar first, so that what it has in hand gets its answers.
        for children in ("sidecars", "gateways", "brokers"):
            supervisor.stop(getattr(example, children), time.monotonic() + LEAVE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
