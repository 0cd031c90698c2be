"""Where the tools of a checkout are kept, and how each is installed exactly once.

Tools live under `target/tools/` (or `$CARGO_TARGET_DIR/tools/`), so that `cargo clean` removes them and nothing
outside the checkout changes. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent

Version = Tuple[int, int, int]


class ToolError(Exception):
    """A tool cannot be had; the text says what the user can do."""


def target_dir() -> Path:
    """Cargo's target directory of this checkout."""
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target")


def tools_dir() -> Path:
    """The directory of installed tools; it exists when this returns."""
    path = target_dir() / "tools"
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(text: str) -> None:
    """Tells the user on stderr, because stdout carries the answer of a finder."""
    print(text, file=sys.stderr, flush=True)


def parse_version(text: str) -> Optional[Version]:
    """The first `a.b` or `a.b.c` in a text as numbers, or None: "nats-server: v2.15.1" is (2, 15, 1)."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        return None
    major, minor, patch = found.groups()
    return int(major), int(minor), int(patch or 0)


def show_version(version: Version) -> str:
    return ".".join(str(part) for part in version)


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Holds the lock `name` among all processes of this checkout, so that two never install the same tool."""
    with open(tools_dir() / f"{name}.lock", "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that installs {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Closing the file releases the lock, a killed process included.
        yield


def run_step(command: list, failure: str, env: Optional[dict] = None) -> None:
    """Runs one step of an installation with its output on stderr; a failure raises `ToolError(failure)`."""
    try:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=env)
    except OSError as error:
        raise ToolError(f"{failure} ({error})") from error
    except subprocess.CalledProcessError as error:
        raise ToolError(f"{failure} (exit code {error.returncode}, its output is above)") from error
