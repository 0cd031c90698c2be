#!/usr/bin/env python3
"""Prints the path of Prometheus's `promtool`, taking it out of Debian's package when the machine has none.

In this order: the file that NATSWAY_PROMTOOL names, `promtool` in PATH, and the package `prometheus` of Debian or Ubuntu,
unpacked under target/tools/ without being installed (so no server is started). The path goes to stdout, everything else to
stderr; the exit code is 0, 3 when there is no package to take it from, else 2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tooling import ToolError, exclusive, run_step, say, tools_dir

NAME = "prometheus-of-debian"
DOWNLOAD_SECONDS = 300


class NoPackage(ToolError):
    """There is no package to take promtool from."""


def find_promtool() -> Path:
    """The path of promtool. Raises NoPackage, or ToolError with what to do."""
    named = os.environ.get("NATSWAY_PROMTOOL")
    if named:
        if not os.access(named, os.X_OK):
            raise ToolError(f"NATSWAY_PROMTOOL={named}: expected the path of a program")
        return Path(named).absolute()
    found = shutil.which("promtool")
    return Path(found).absolute() if found else unpacked("promtool")


def unpacked(program: str) -> Path:
    """A program of the package: `promtool` or `prometheus`."""
    home = tools_dir() / NAME
    if not home.exists():
        with exclusive(NAME):
            if not home.exists():
                unpack(home)
    return home / "usr" / "bin" / program


def unpack(home: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise NoPackage("promtool is not in PATH: install Prometheus, or name promtool in NATSWAY_PROMTOOL")
    say(f"unpacking promtool into {home} (20 MB, once)")
    half = home.with_suffix(".part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    download = subprocess.run(
        ["apt-get", "download", "prometheus"], cwd=half, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=DOWNLOAD_SECONDS, check=False,
    )
    packages = list(half.glob("prometheus_*.deb"))
    if download.returncode != 0 or not packages:
        raise NoPackage(f"apt-get has no package prometheus; name promtool in NATSWAY_PROMTOOL: {download.stderr.strip()[-300:]}")
    run_step(["dpkg-deb", "--extract", str(packages[0]), str(half)], "the package prometheus cannot be unpacked")
    packages[0].unlink()
    # Renamed when it is whole.
    half.rename(home)


def main() -> int:
    try:
        print(find_promtool())
    except ToolError as error:
        say(f"find_promtool: {error}")
        return 3 if isinstance(error, NoPackage) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
