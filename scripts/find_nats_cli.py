#!/usr/bin/env python3
"""Prints the path of NATS's own command line (`nats`), building the pinned version with Go when it is not there.

In this order: the file that NATSWAY_NATS_CLI names, and the version of nats-cli/go.mod under target/tools/. The path
goes to stdout, everything else to stderr; the exit code is 0, 3 when there is no Go to build it with, else 2.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from tooling import ROOT, ToolError, exclusive, run_step, say, tools_dir

MODULE = ROOT / "scripts" / "nats-cli"
PACKAGE = "github.com/nats-io/natscli/nats"


class NoGo(ToolError):
    """There is no Go on this machine."""


def find_nats_cli() -> Path:
    """The path of the command line. Raises NoGo, or ToolError when it does not build."""
    named = os.environ.get("NATSWAY_NATS_CLI")
    if named:
        if not os.access(named, os.X_OK):
            raise ToolError(f"NATSWAY_NATS_CLI={named}: expected the path of a program")
        return Path(named).absolute()
    version = pinned_version((MODULE / "go.mod").read_text(encoding="utf-8"))
    name = f"nats-cli-{version}"
    program = tools_dir() / name / "nats"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise NoGo("go is not in PATH: install Go >= 1.25 (https://go.dev/doc/install), or name a nats program in NATSWAY_NATS_CLI")
    with exclusive(name):
        if not program.exists():
            build(go, program, version)
    return program


def pinned_version(go_mod: str) -> str:
    """The version that a go.mod file pins: `v0.4.0`."""
    found = re.search(r"github\.com/nats-io/natscli (v[0-9.]+)", go_mod)
    if found is None:
        raise ToolError(f"{MODULE / 'go.mod'}: expected a line github.com/nats-io/natscli VERSION")
    return found.group(1)


def build(go: str, program: Path, version: str) -> None:
    say(f"building the nats command line {version} into {program.parent} (a minute or two, once)")
    program.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole: what is at `program` always runs.
    half = program.with_suffix(".part")
    command = [go, "build", "-C", str(MODULE), "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(half), PACKAGE]
    run_step(command, "go could not build the nats command line; check the network, and that Go is >= 1.25")
    half.rename(program)


def main() -> int:
    try:
        print(find_nats_cli())
    except ToolError as error:
        say(f"find_nats_cli: {error}")
        return 3 if isinstance(error, NoGo) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
