"""Load on the gateway, by oha."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import Dict, Optional

from engine import Missing
from stack import Broken
from tooling import target_dir

# Ended long before; so a test that hangs leaves no load behind.
LONGEST_SECONDS = 300
END_SECONDS = 30


def find_oha() -> str:
    """The path of oha. Raises Missing."""
    installed = target_dir() / "tools" / "bin" / "oha"
    found = os.environ.get("NATSWAY_OHA") or (str(installed) if installed.exists() else shutil.which("oha"))
    if found is None:
        raise Missing("oha is not installed: `make tools` does it")
    return found


@dataclass(frozen=True)
class Report:
    """What became of the requests."""

    statuses: Dict[int, int]
    errors: Dict[str, int]
    seconds: float
    slowest_ms: float

    @property
    def total(self) -> int:
        return sum(self.statuses.values()) + sum(self.errors.values())

    @property
    def failed(self) -> int:
        good = sum(count for status, count in self.statuses.items() if 200 <= status < 300)
        return self.total - good

    def __str__(self) -> str:
        odd = {**{status: count for status, count in self.statuses.items() if status != 200}, **self.errors}
        what = f" {odd}" if odd else ""
        return f"{self.failed} of {self.total} failed{what}, {self.total / max(self.seconds, 0.1):.0f}/s, slowest {self.slowest_ms:.0f} ms"


class Load:
    """Requests at a rate over a few connections, from entering this context until `end` is called."""

    def __init__(self, url: str, per_second: int = 200, connections: int = 8) -> None:
        self.command = [
            find_oha(), "--no-tui", "--output-format", "json", "-z", f"{LONGEST_SECONDS}s",
            "-q", str(per_second), "-c", str(connections), "-t", "30s", url,
        ]
        self.process: Optional[subprocess.Popen] = None

    def __enter__(self) -> "Load":
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return self

    def end(self) -> Report:
        """Stops sending and counts. A request that is out at this moment counts as neither."""
        process = self.process
        if process is None or process.poll() is not None:
            raise Broken("the load ended by itself")
        process.send_signal(signal.SIGINT)
        told, complaint = process.communicate(timeout=END_SECONDS)
        try:
            document = json.loads(told)
        except ValueError:
            raise Broken(f"oha told nothing: {complaint.strip()[-300:]}") from None
        errors = {what: count for what, count in document["errorDistribution"].items() if "aborted" not in what}
        summary = document["summary"]
        return Report(
            {int(status): count for status, count in document["statusCodeDistribution"].items()},
            errors,
            float(summary["total"]),
            float(summary["slowest"] or 0) * 1000,
        )

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
