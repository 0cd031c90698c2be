#!/usr/bin/env python3
"""Prints the path of NATS's own command line (`nats`), building the pinned version with Go when it is not there.

In this order: the file that NATSWAY_NATS_CLI names, and the version of nats-cli/go.mod under target/tools/. The path
goes to stdout, everything else to stderr; the exit code is 0, 3 when there is no Go to build it with, else 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

from go_tool import GoTool, NoGo, print_path
from tooling import ROOT

__all__ = ["NATS_CLI", "NoGo", "find_nats_cli"]

NATS_CLI = GoTool(
    name="the nats command line",
    directory="nats-cli",
    module=ROOT / "scripts" / "nats-cli",
    repository="github.com/nats-io/natscli",
    package="github.com/nats-io/natscli/nats",
    variable="NATSWAY_NATS_CLI",
)


def find_nats_cli() -> Path:
    """The path of the command line. Raises NoGo, or ToolError when it does not build."""
    return NATS_CLI.find()


if __name__ == "__main__":
    sys.exit(print_path(NATS_CLI))
