"""Three brokers in place of one: any of them is killed under load, and the gateway goes on."""

from __future__ import annotations

import time

from documented import engine_lines, typed
from images import Images
from load import Load
from stack import Stack, expect, until

MEMBERS = ("nats-1", "nats-2", "nats-3")
SETTINGS = {
    "NATS_URL": ",".join(f"nats://{member}:4222" for member in MEMBERS),
    "NATSWAY_ROUTES_REPLICAS": "3",
}
PROFILES = ("cluster",)
# How long after a kill requests may still wait for the gateway's connection to move.
MOVE_SECONDS = 10


def cluster(stack: Stack, _: Images) -> str:
    """kill -9 of each broker in turn: no GET fails after the gateway's own retries."""
    stack.down()
    stack.settings.update(SETTINGS)
    typed(stack, next(line for line in engine_lines("--scale nats=0")) + " --scale worker=3")
    truth = watch_health(stack)
    stack.await_healthy(*MEMBERS)
    stack.instances(3)
    reports = []
    for member in MEMBERS:
        with Load(stack.base + "/version") as load:
            # Long enough to see that nothing fails before.
            wait_for_requests(stack, 200)
            stack.engine.run("kill", "--signal", "KILL", stack.the(member))
            wait_for_requests(stack, 200 * MOVE_SECONDS // 2)
            stack.engine.run("start", stack.containers(member, every=True)[0])
            stack.await_healthy(member)
            report = load.end()
        reports.append(f"{member} killed: {report}")
        expect(report.failed == 0, "; ".join(reports))
        stack.instances(3)
    return f"{truth}; " + "; ".join(reports) + f"; {rolled(stack)}"


def rolled(stack: Stack) -> str:
    """The upgrade of docs/operations.md: each broker in turn, which leaves in lame-duck mode."""
    if stack.engine.is_compose_v1:
        return "rolling upgrade SKIPPED: Compose v1 has no --wait"
    (line,) = engine_lines("--wait")
    # Nothing changed, so nothing would be replaced.
    line = line.replace(" --no-deps", " --no-deps --force-recreate")
    with Load(stack.base + "/version") as load:
        typed(stack, line)
        report = load.end()
    expect(report.failed == 0, f"brokers replaced in turn: {report}")
    return f"each replaced: {report}"


def wait_for_requests(stack: Stack, count: int) -> None:
    """Waits until the gateway has answered so many more."""
    began = answered(stack)
    until(f"{count} more answers", 60, lambda: answered(stack) - began >= count)


def answered(stack: Stack) -> float:
    lines = stack.get("/metrics", stack.admin).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("natsway_responses_total{"))


def watch_health(stack: Stack) -> str:
    """While the brokers find each other: never is the gateway called healthy when it has no routes."""
    end = time.monotonic() + 120
    looks = 0
    while time.monotonic() < end:
        looks += 1
        said = stack.health("apiproxy")
        answer = stack.get("/version")
        if said == ["healthy"]:
            expect(answer.status == 200, f"healthy, and answers {answer.status} {answer.text[:200]}")
            return f"healthy after {looks} looks, and answering"
    expect(False, f"not healthy within 120 s: {said}, {answer}")
    return ""
