"""What goes wrong between the provisioner and the engine: no room for another container, and a stop that nobody finished."""

from __future__ import annotations

import json

from demand import CONNECTIONS, LEAST, PATH, PER_SECOND, WANTED, enough, proxy_or_why_not
from images import DEBIAN, Images
from load import Load
from stack import Stack, expect, until

# A second network of the workers, with room for them and three more.
SECOND, SUBNET, ROOM_FOR_OTHERS = "natsway-compose-test-second", "10.213.77.0/29", 3
FILLERS = "io.natsway.compose-test.filler"
# As the provisioner marks who has to leave.
LEAVING = "-natsway-leaving"


def mishaps(stack: Stack, images: Images) -> str:
    """Workers in two networks, of which one is full for a while; then a provisioner that dies between the two steps of a stop."""
    why_not = proxy_or_why_not(stack, images)
    if why_not:
        return why_not
    profiles = ("provisioner",)
    stack.compose("up", "--detach")
    stack.await_healthy("apiproxy")
    stack.instances(LEAST)
    stack.engine.run("network", "create", "--internal", "--subnet", SUBNET, SECOND)
    try:
        for worker in stack.containers("worker"):
            stack.engine.run("network", "connect", SECOND, worker)
        for _ in range(ROOM_FOR_OTHERS):
            stack.engine.run("run", "--detach", "--label", FILLERS, "--network", SECOND, DEBIAN, "sleep", "600")
        stack.compose("up", "--detach", "--no-recreate", profiles=profiles)
        stack.await_healthy("provisioner")
        with Load(stack.base + PATH, PER_SECOND, CONNECTIONS) as load:
            tries = refused_starts(stack)
            make_room(stack)
            until("workers are added once there is room", 180, lambda: enough(stack))
            in_both(stack)
            stopped = unfinished_stop(stack)
            report = load.end()
        expect(report.failed == 0, f"while containers could not be started or stopped: {report}")
        until("the workers that are not needed leave", 180, lambda: len(stack.containers("worker", every=True)) == LEAST)
        stack.compose("rm", "--stop", "--force", "provisioner", "engine-proxy", profiles=profiles)
    finally:
        make_room(stack)
        for worker in stack.containers("worker", every=True):
            stack.engine.quiet("network", "disconnect", "--force", SECOND, worker)
        stack.engine.quiet("network", "rm", SECOND)
    return f"{tries} starts failed and left nothing, then {WANTED} in both networks; {stopped}; {report}"


def refused_starts(stack: Stack) -> int:
    """How often a start failed, once that was twice; a container that cannot be started is gone again."""

    def failures() -> int:
        return stack.logs("provisioner", 1000).count("no available IPv4 addresses")

    until("starts fail because a network is full", 120, lambda: failures() >= 2)
    # At most the one that is being tried at this moment.
    there = len(stack.containers("worker", every=True))
    expect(there <= LEAST + 1, f"{there} containers of workers, after {failures()} that could not be started")
    # The gateway tells of it, and an alert goes by that.
    until("it is told", 60, lambda: "natsway_target_obstructed{" in obstructed(stack) and obstructed(stack).endswith(" 1"))
    return failures()


def obstructed(stack: Stack) -> str:
    page = stack.get("/metrics", stack.admin).text.splitlines()
    return next((line for line in page if line.startswith("natsway_target_obstructed{")), "")


def make_room(stack: Stack) -> None:
    fillers = stack.engine.run("ps", "--all", "--quiet", "--filter", f"label={FILLERS}").split()
    if fillers:
        stack.engine.run("rm", "--force", *fillers)


def in_both(stack: Stack) -> None:
    for told in stack.engine.inspect(*stack.containers("worker")):
        joined = set(told["NetworkSettings"]["Networks"])
        expect(joined == {"natsway_workers", SECOND}, f"{told['Name']} is in {json.dumps(sorted(joined))}")


def unfinished_stop(stack: Stack) -> str:
    """One that is marked and was never told to stop, as a provisioner leaves it that dies in between."""
    stack.engine.run("kill", "--signal", "KILL", stack.the("provisioner"))
    newest = stack.containers("worker")[-1]
    name = stack.engine.inspect(newest)[0]["Name"].lstrip("/")
    stack.engine.run("rename", newest, name + LEAVING)
    stack.engine.run("start", stack.containers("provisioner", every=True)[0])
    until("what was marked is stopped and removed", 120, lambda: newest not in stack.containers("worker", every=True))
    until("another has come in its place", 180, lambda: enough(stack))
    return "one that was only marked was stopped by the next provisioner"
