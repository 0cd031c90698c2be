"""The container engine of this machine, and whether it will do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Dict, List, Optional, Sequence

COMMAND_SECONDS = 120


class Missing(Exception):
    """Something that this test needs is not on the machine; the text says what, and what to do."""


class Failed(Exception):
    """A command of the engine or of Compose failed; the text has its last words."""


def run(command: Sequence[str], seconds: float = COMMAND_SECONDS, env: Optional[Dict[str, str]] = None) -> subprocess.CompletedProcess:
    """Runs a command to its end, whatever that is. Raises subprocess.TimeoutExpired."""
    return subprocess.run(
        list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False, env=env
    )


def demanded(done: subprocess.CompletedProcess) -> str:
    """The output of a command that must have succeeded."""
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise Failed(f"{' '.join(done.args)}: exit code {done.returncode}: {words}")
    return done.stdout


class Engine:
    """`docker`, and the Compose that goes with it. DOCKER and COMPOSE name others than those in PATH."""

    def __init__(self) -> None:
        self.docker = os.environ.get("DOCKER") or shutil.which("docker")
        if self.docker is None:
            raise Missing("docker is not in PATH: install Docker Engine >= 20.10 with Compose")
        try:
            told = run([self.docker, "version", "--format", "{{.Server.Version}}"])
        except OSError as error:
            raise Missing(f"DOCKER={self.docker}: expected the path of docker: {error}") from error
        if told.returncode != 0:
            raise Missing(f"no engine answers: start it, or get the right to use its socket: {told.stderr.strip()[-300:]}")
        self.version = told.stdout.strip()
        self.compose = self.find_compose()
        self.compose_version = run([*self.compose, "version", "--short"]).stdout.strip()

    def find_compose(self) -> List[str]:
        """The command line of Compose v2, or else of v1."""
        named = os.environ.get("COMPOSE")
        if named:
            return named.split()
        if run([self.docker, "compose", "version"]).returncode == 0:
            return [self.docker, "compose"]
        old = shutil.which("docker-compose")
        if old is None:
            raise Missing("neither `docker compose` nor docker-compose is there: install the Compose plugin")
        return [old]

    @property
    def is_compose_v1(self) -> bool:
        return self.compose_version.lstrip("v").startswith("1.")

    def quiet(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess:
        """A command of the engine that may fail."""
        return run([self.docker, *arguments], seconds)

    def run(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """The output of a command of the engine. Raises Failed."""
        return demanded(self.quiet(*arguments, seconds=seconds))

    def inspect(self, *names: str) -> List[dict]:
        """Everything about containers, in this order."""
        return json.loads(self.run("inspect", "--type", "container", *names)) if names else []
