#!/usr/bin/env python3
"""Prints the path of `h2spec`, the conformance suite for HTTP/2 servers, building the pinned version with Go when it is not there.

In this order: the file that NATSWAY_H2SPEC names, and the version of h2spec/go.mod under target/tools/. The path goes to
stdout, everything else to stderr; the exit code is 0, 3 when there is no Go to build it with, else 2.
"""

from __future__ import annotations

import sys

from go_tool import GoTool, print_path
from tooling import ROOT

H2SPEC = GoTool(
    name="h2spec",
    directory="h2spec",
    module=ROOT / "scripts" / "h2spec",
    repository="github.com/summerwind/h2spec",
    package="github.com/summerwind/h2spec/cmd/h2spec",
    variable="NATSWAY_H2SPEC",
)


if __name__ == "__main__":
    sys.exit(print_path(H2SPEC))
