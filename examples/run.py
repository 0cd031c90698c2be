#!/usr/bin/env python3
"""Runs an example with a broker and a gateway of its own: `python3 examples/run.py fastapi`.

What the app needs is installed below target/examples by the ordinary tools (pip, npm, go). Ctrl-C ends all of it.
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


def programs() -> Path:
    """The directory of our own programs, built if nobody says where they are."""
    if named := os.environ.get("NATSWAY_BIN_DIR"):
        return Path(named)
    cargo = os.environ.get("CARGO", "cargo")
    build = [cargo, "build", "--manifest-path", str(ROOT / "Cargo.toml"), "--workspace", "--bins"]
    run_step(build, "the programs cannot be built")
    return target_dir() / "debug"


class Example:
    """A broker, a gateway and an example."""

    def __init__(self, name: str, supervisor: Supervisor, port: int) -> None:
        self.name, self.supervisor, self.port = name, supervisor, port
        self.admin = free_port()
        self.brokers, self.gateways, self.sidecars = [], [], []

    def up(self) -> None:
        environment = installed(self.name)
        binaries, broker_port = programs(), free_port()
        home = target_dir() / "examples" / self.name / f"broker-{broker_port}"
        broker = [str(find_broker()), "--addr", "127.0.0.1", "--port", str(broker_port), "--jetstream", "--store_dir", str(home)]
        self.brokers = [self.supervisor.start("broker", broker)]
        path = [environment.pop("PATH", ""), str(binaries), os.environ["PATH"]]
        variables = {**os.environ, **environment, "PATH": os.pathsep.join(filter(None, path))}
        variables["NATS_URL"] = f"nats://127.0.0.1:{broker_port}"
        gateway = [str(binaries / "apiproxy"), "--routes", str(EXAMPLES / self.name / "routes.toml")]
        gateway += ["--listen", f"127.0.0.1:{self.port}", "--admin-listen", f"127.0.0.1:{self.admin}"]
        self.gateways = [self.supervisor.start("gateway", gateway, variables)]
        command = ["env", "-C", str(directory_of(self.name)), "sh", str(EXAMPLES / self.name / "sidecar.sh")]
        self.sidecars = [self.supervisor.start("sidecar", command, variables)]
        self.await_ready()

    def await_ready(self) -> None:
        """Waits until a request is answered by the app."""
        end, last = time.monotonic() + READY_SECONDS, ""
        while time.monotonic() < end:
            self.supervisor.pump(0.1)
            try:
                with HTTP.open(f"http://127.0.0.1:{self.port}/health", timeout=2.0) as response:
                    if response.status == 200:
                        return
            except (OSError, urllib.error.URLError) as error:
                last = str(error)
        raise ToolError(f"{self.name}: not ready after {READY_SECONDS:.0f} s: {last}")


def main(arguments: Optional[List[str]] = None) -> int:
    names = sorted(path.parent.name for path in EXAMPLES.glob("*/sidecar.sh"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names)
    parser.add_argument("--port", type=int, default=8080, help="where clients connect")
    parsed = parser.parse_args(arguments)
    supervisor = Supervisor(len("gateway"))
    example = Example(parsed.name, supervisor, parsed.port)
    try:
        example.up()
        supervisor.tell(f"{parsed.name} is up: curl http://127.0.0.1:{parsed.port}/    Ctrl-C stops everything")
        while True:
            supervisor.pump(60.0)
    except Stopped:
        return 0
    except (ChildDied, ToolError) as error:
        say(f"example: {error}")
        return 1
    finally:
        # The sidecar first, so that what it has in hand gets its answers.
        for children in ("sidecars", "gateways", "brokers"):
            supervisor.stop(getattr(example, children), time.monotonic() + LEAVE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
