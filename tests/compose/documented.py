"""The commands with the engine in docs/operations.md, as they stand there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator, List

from images import Images
from load import Load
from stack import Stack, expect
from tooling import ROOT

PAGE = ROOT / "docs" / "operations.md"
# These need images that cannot be had everywhere, or brokers of their own, and are run by observed.py and broker_loss.py.
ELSEWHERE = ("--profile observability", "--profile cluster")
COMMAND_SECONDS = 300
FOLLOW_SECONDS = 5
# `docker compose`, whichever Compose this is.
SHELL = 'docker() { if [ "$1" = compose ]; then shift; $COMPOSE_COMMAND "$@"; else "$DOCKER_COMMAND" "$@"; fi; }; set -e; '


def bare(block: str) -> List[str]:
    """A block's commands, without the comments behind them."""
    lines = (re.sub(r"\s+#\s.*$", "", line).strip() for line in block.splitlines())
    return [line for line in lines if line]


def shell_blocks(page: Path, *markers: str) -> Iterator[str]:
    """The first block of a page that bears a marker, for each marker in turn, as commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for marker in markers:
        yield from ["\n".join(bare(block)) for block in blocks if marker in block][:1]


def shell_lines() -> Iterator[str]:
    """The commands of the operating guide."""
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield from bare(block)


def engine_lines(marker: str = "") -> List[str]:
    """Those that use the engine and bear the marker."""
    return [line for line in shell_lines() if "docker " in line and marker in line]


def typed(stack: Stack, line: str) -> subprocess.CompletedProcess:
    """Runs a line of the page at this stack's ports."""
    environment = {**stack.environment(), "COMPOSE_COMMAND": " ".join(stack.engine.compose), "DOCKER_COMMAND": stack.engine.docker or ""}
    here = line.replace("127.0.0.1:8080", f"127.0.0.1:{stack.ports['NATSWAY_PORT']}")
    # There is no terminal here, which Compose v1 must be told.
    here = here.replace("compose exec -T ", "compose exec ").replace("compose exec ", "compose exec -T ").replace("compose run ", "compose run -T ")
    # The images were built from the files already, and a build by another source would not be theirs.
    here = here.replace(" --build", "")
    follows = " -f " in here
    command = ["timeout", str(FOLLOW_SECONDS), "bash", "-c", SHELL + here] if follows else ["bash", "-c", SHELL + here]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=COMMAND_SECONDS, check=False,
    )
    # 124: it followed until it was stopped.
    expect(done.returncode in ((0, 124) if follows else (0,)), f"`{line}`: exit code {done.returncode}: {done.stdout[-400:]}{done.stderr[-800:]}")
    return done


def documented(stack: Stack, _: Images) -> str:
    """Runs them in their order under load, and no request fails."""
    lines = [line for line in engine_lines() if not any(other in line for other in ELSEWHERE)]
    expect(len(lines) > 8, f"{PAGE} shows few commands: {lines}")
    # The page's own order, with what it says must be there first.
    stack.compose("up", "--detach")
    stack.await_healthy("nats", "apiproxy")
    stack.instances(2)
    with tempfile.TemporaryDirectory(prefix="natsway-documented-") as home, Load(stack.base + "/version") as load:
        for line in lines:
            # The checkout may have such a file already.
            typed(stack, line.replace("routes-backup.toml", f"{home}/routes-backup.toml"))
        stack.await_healthy("nats", "apiproxy")
        report = load.end()
    expect(report.failed == 0, f"while an operator did all this: {report}")
    stack.compose("up", "--detach", "--scale", "worker=2")
    stack.compose("stop", "worker-green", profiles=("green",))
    return f"{len(lines)} commands of docs/operations.md under load: {report}"
