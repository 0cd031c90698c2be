"""The log shipper: lines of files of this machine arrive once and in order, over kills of both of its sides."""

from __future__ import annotations

import tempfile
from pathlib import Path

from images import DEBIAN, Images
from serving import check_confined
from stack import Stack, expect, until

LINES, PART = 4_000, 500
HOST = "compose-test"


def shipper(stack: Stack, _: Images) -> str:
    """Writes while the producer, then the consumer, is killed; compares what arrived."""
    with tempfile.TemporaryDirectory(prefix="natsway-lines-") as home:
        # The producer is nobody here.
        Path(home).chmod(0o755)
        log = Path(home, "app.log")
        log.touch(mode=0o644)
        stack.settings.update(SHIPPER_LOGS=home, SHIPPER_HOST=HOST)
        stack.compose("up", "--detach", "ownership", "nats", "producer", "consumer", profiles=("shipper",))
        stack.await_healthy("nats", "producer", "consumer")
        looked = check_confined(stack, ("producer", "consumer"))
        written = write(log, 0)
        for victim in ("producer", "consumer"):
            stack.engine.run("kill", "--signal", "KILL", stack.the(victim))
            written = write(log, written)
            stack.engine.run("start", stack.containers(victim, every=True)[0])
            written = write(log, written)
        while written < LINES:
            written = write(log, written)
        wanted = log.read_text(encoding="utf-8")
        arrived = until("every line has arrived", 90, lambda: same_length(stack, wanted))
        expect(arrived == wanted, "lines are lost, repeated or out of order")
        stack.await_healthy("producer", "consumer")
        stack.compose("rm", "--stop", "--force", "producer", "consumer", profiles=("shipper",))
    return f"{LINES} lines once and in order over a kill of each side; {looked} more containers confined"


def write(log: Path, written: int) -> int:
    with log.open("a", encoding="utf-8") as out:
        out.writelines(f"line {number} of {LINES}\n" for number in range(written, written + PART))
    return written + PART


def same_length(stack: Stack, wanted: str) -> str:
    """What the consumer has stored of our host, once that is as long as it must become."""
    told = stack.engine.run(
        "run", "--rm", "--volumes-from", stack.the("consumer"), "--network", "none", DEBIAN,
        "bash", "-c", f"shopt -s nullglob; for file in /data/{HOST}*/*.log; do cat $file; done",
    )
    return told if len(told) >= len(wanted) else ""
