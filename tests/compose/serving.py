"""The stack as `docker compose up` makes it: it answers, is confined, grows, changes versions and restarts."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time

from engine import run
from find_nats_cli import NoGo, find_nats_cli
from images import Images
from load import Load
from stack import Stack, expect, until

# The longest that a program may take to leave, as it is set by default, in seconds.
DRAIN_TIMEOUTS = {"apiproxy": 9, "worker": 8, "provisioner": 5, "producer": 10, "consumer": 10}
# Of the load, and how often what is done under it is done.
PER_SECOND, SWITCHES, ROUNDS = 500, 3, 3
# Who may be root, and for what: to hand volumes to the others, once.
ONCE_AS_ROOT = "ownership"
# Networks that lead nowhere else.
INTERNAL = ("gateway", "workers", "control")
# Bytes of a limit below which a container is limited at all.
SOME_LIMIT = 4 << 30


def answers(stack: Stack, _: Images) -> str:
    """`docker compose up -d`, and a request goes through all of it."""
    began = time.monotonic()
    stack.compose("up", "--detach")
    stack.await_healthy("nats", "apiproxy")
    stack.instances(2)
    up_seconds = time.monotonic() - began
    answer = stack.get("/sum?n=1&n=2&n=3")
    expect((answer.status, answer.json()) == (200, {"sum": 6}), f"/sum: {answer}")
    expect(stack.get("/readyz", stack.admin).status == 200, "the gateway answers and says that it is not ready")
    return f"two workers answered {up_seconds:.0f} s after the start"


def check_confined(stack: Stack, services: tuple) -> int:
    """What each container may do, by the engine's own account; returns how many were looked at."""
    looked = 0
    for service in services:
        for told in stack.engine.inspect(*stack.containers(service, every=True)):
            looked += 1
            host, config, state = told["HostConfig"], told["Config"], told["State"]
            name = told["Name"]
            expect(host["ReadonlyRootfs"], f"{name}: its root can be written")
            expect(host["CapDrop"] == ["ALL"], f"{name}: keeps capabilities")
            expect(any("no-new-privileges" in option for option in host["SecurityOpt"] or []), f"{name}: may get privileges")
            expect(not host["Privileged"] and host["PidMode"] == "" and host["NetworkMode"] != "host", f"{name}: shares the host's")
            expect(0 < host["Memory"] < SOME_LIMIT, f"{name}: no limit on memory")
            expect(0 < (host["PidsLimit"] or 0) <= 256, f"{name}: no limit on processes")
            mounts = [mount["Source"] for mount in told["Mounts"]]
            expect(("/var/run/docker.sock" in mounts) == (service == "engine-proxy"), f"{name}: {mounts}")
            if service == ONCE_AS_ROOT:
                expect(state["ExitCode"] == 0 and not state["Running"] and host["NetworkMode"] == "none", f"{name}: {state}")
                continue
            expect(config["User"].split(":")[0] not in ("", "0", "root"), f"{name}: runs as {config['User'] or 'root'}")
            expect(host["NanoCpus"] > 0, f"{name}: no limit on processor time")
            expect(host["RestartPolicy"]["Name"] == "unless-stopped", f"{name}: {host['RestartPolicy']}")
            grace = config.get("StopTimeout") or 10
            drain = DRAIN_TIMEOUTS.get(service.replace("-green", ""), 0)
            expect(grace >= drain + 2 or not drain, f"{name}: {grace} s to leave, and it takes {drain} s")
            expect("Health" in state or service.startswith(("worker", "engine-proxy", "collector", "jaeger", "prometheus", "grafana")), f"{name}: no health check")
            expect(not state["OOMKilled"] and told["RestartCount"] == 0, f"{name}: restarted {told['RestartCount']} times")
    return looked


def confined(stack: Stack, _: Images) -> str:
    """Read-only root, no capabilities, not root, limits, checks, restart policies, time to leave."""
    looked = check_confined(stack, ("ownership", "nats", "apiproxy", "worker"))
    ports = [
        (told["Name"], port, where["HostIp"])
        for service in ("nats", "apiproxy", "worker")
        for told in stack.engine.inspect(*stack.containers(service))
        for port, wheres in (told["NetworkSettings"]["Ports"] or {}).items()
        for where in wheres or []
    ]
    expect(all(address == "127.0.0.1" for _, _, address in ports), f"published to others: {ports}")
    expect(not any(name.startswith("/natsway_worker") or "worker" in name for name, _, _ in ports), f"a worker has a port: {ports}")
    return f"{looked} containers"


def networks(stack: Stack, _: Images) -> str:
    """Neither of gateway and worker reaches the other, by address or by name; both reach the broker."""
    gateway = stack.the("apiproxy")
    worker = stack.containers("worker")[0]
    told = {each["Id"]: each["NetworkSettings"]["Networks"] for each in stack.engine.inspect(gateway, worker)}
    expect(not set(told[gateway]) & set(told[worker]), f"they share a network: {told}")

    def addresses(container: str) -> list:
        return [network["IPAddress"] for network in told[container].values()]

    def connects(container: str, host: str, port: int) -> str:
        done = stack.from_network_of(container, f"timeout 3 bash -c '</dev/tcp/{host}/{port}' 2>&1; echo status $?")
        return done.stdout

    for container in (gateway, worker):
        expect("status 0" in connects(container, "nats", 4222), "the broker is not reached")
    # A port where nobody listens is refused by one who can be reached, and so tells that he can.
    self_test = connects(worker, "127.0.0.1", 9)
    expect("refused" in self_test, f"the probe does not tell: {self_test}")
    for source, target, port in ((gateway, worker, 9), (worker, gateway, 8080), (worker, gateway, 8081)):
        for address in addresses(target):
            seen = connects(source, address, port)
            expect("status 0" not in seen and "refused" not in seen, f"{address}:{port} is reached: {seen}")
    for source, name in ((gateway, "worker"), (worker, "apiproxy")):
        done = stack.from_network_of(source, f"getent hosts {name}; echo status $?")
        expect("status 2" in done.stdout, f"{name} has an address there: {done.stdout}")
    told = stack.engine.run("network", "inspect", "--format", "{{.Name}} {{.Internal}}", *map("natsway_{}".format, INTERNAL))
    expect(told.split()[1::2] == ["true"] * len(INTERNAL), f"networks with a way out: {told}")
    return "no route and no name either way, and their networks lead nowhere else"


def streams(stack: Stack, _: Images) -> str:
    """A body that is no message comes whole, by a pipe on the broker: neither reaches the other."""
    sizes = (100_000, 5_000_000)
    for size in sizes:
        answer = stack.get(f"/download?bytes={size}&chunked=true")
        expect(answer.status == 200 and answer.text == "x" * size, f"{answer.status}, {len(answer.text)} of {size} bytes")
    echoed = echo(stack, b"by a pipe")
    expect(echoed == b"by a pipe", f"the WebSocket gave back {echoed!r}")
    metrics = stack.get("/metrics", stack.admin).text
    figures = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line and not line.startswith("#"))
    pipes, tunnels = float(figures.get("natsway_pipes", 0)), float(figures.get("natsway_tunnels", 0))
    expect(1 <= pipes == tunnels, f"{pipes} pipes of {tunnels} tunnels")
    return f"bodies of {' and '.join(map(str, sizes))} bytes, and a WebSocket; {pipes:.0f} pipes, and no other tunnel"


def echo(stack: Stack, text: bytes) -> bytes:
    """What the demo's WebSocket gives back of a message of less than 126 bytes (RFC 6455)."""
    host, port = stack.base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as client:
        fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        client.sendall(f"GET /ws HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode())
        read = client.makefile("rb")
        status = read.readline()
        expect(b" 101 " in status, f"no WebSocket: {status!r}")
        while read.readline() != b"\r\n":
            pass
        # Text, whole, with a mask that changes nothing.
        client.sendall(bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text)
        head = read.read(2)
        return read.read(head[1])


def scale(stack: Stack, _: Images) -> str:
    """`--scale worker=4`: four answer, and none before stopped for it."""
    before = stack.instances(2)
    with Load(stack.base + "/version") as load:
        stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=4")
        after = stack.instances(4)
        expect(before <= after, "the first two did not stay")
        stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=2")
        until("two are left", 60, lambda: len(stack.containers("worker")) == 2)
        report = load.end()
    expect(report.failed == 0, f"scaling out and in: {report}")
    return f"to 4 and back to 2: {report}"


def tools(stack: Stack, _: Images) -> str:
    """NATS's own command line and nats-top, against the stack as it was started."""
    try:
        nats = str(find_nats_cli())
    except NoGo as error:
        return f"SKIPPED: {error}"
    server = ["--server", stack.nats_url]
    listed = run([nats, *server, "micro", "ls", "--json"], 30)
    expect(listed.returncode == 0 and "demo" in listed.stdout, f"nats micro ls: {listed.stdout}{listed.stderr}")
    figures = run([nats, *server, "micro", "stats", "demo"], 30)
    expect(figures.returncode == 0, f"nats micro stats: {figures.stderr}")
    bucket = run([nats, *server, "kv", "get", "natsway-routes", "demo", "--raw"], 30)
    expect(bucket.returncode == 0 and json.loads(bucket.stdout)["name"] == "demo", f"nats kv get: {bucket.stdout}{bucket.stderr}")
    trip = run([nats, *server, "rtt"], 30)
    expect(trip.returncode == 0, f"nats rtt: {trip.stderr}")
    return "nats micro ls, micro stats, kv get and rtt; " + top(stack)


def top(stack: Stack) -> str:
    """nats-top prints its table without a terminal when it is told how often."""
    program = os.environ.get("NATSWAY_NATS_TOP") or shutil.which("nats-top")
    if program is None:
        return "nats-top SKIPPED: not in PATH, and NATSWAY_NATS_TOP does not name it"
    shown = run([program, "-s", "127.0.0.1", "-m", str(stack.ports["NATSWAY_MONITOR_PORT"]), "-o", "-", "-r", "1"], 30)
    expect(shown.returncode == 0 and "apiproxy" in shown.stdout, f"nats-top: {shown.stdout}{shown.stderr}")
    return "nats-top lists the gateway's connections"


def versions(stack: Stack, _: Images) -> str:
    """From blue to green by subject and back, under load."""
    stack.compose("up", "--detach", "--no-recreate", profiles=("green",))
    until("both green workers run", 60, lambda: len(stack.containers("worker-green")) == 2)
    with Load(stack.base + "/version", PER_SECOND) as load:
        for target in ("green", "blue") * SWITCHES:
            # Green may not have said that it is there when the first look is taken.
            stack.inside("apiproxy", "apiproxy", "rollout", "start", "demo", "--to", target, "--strategy", "blue-green", "--smoke", "/version", "--follow", seconds=120)
            subjects = {stack.get("/version").json()["subject"] for _ in range(20)}
            expect(subjects == {f"svc.demo.{target}"}, f"after the change to {target}: {subjects}")
        report = load.end()
    expect(report.failed == 0, f"to green and back: {report}")
    stack.compose("stop", "worker-green", profiles=("green",))
    return f"{SWITCHES} times to green and back: {report}"


def restart(stack: Stack, _: Images) -> str:
    """Every worker replaced in turn, as docs/operations.md says."""
    with Load(stack.base + "/version", PER_SECOND) as load:
        for container in stack.containers("worker") * ROUNDS:
            before = stack.instances(2)
            stack.engine.run("restart", "--time", "15", container)
            until("a new instance answers", 60, lambda: stack.instances(2) - before)
        report = load.end()
    expect(report.failed == 0, f"rolling restart: {report}")
    return f"each worker {ROUNDS} times: {report}"


def stop(stack: Stack, _: Images) -> str:
    """A gateway that is told to stop says so first, finishes what it has, and leaves by itself in time."""
    gateway = stack.the("apiproxy")
    stopped = threading.Thread(target=stack.engine.run, args=("stop", "--time", "15", gateway))
    answered: list = []
    slow = threading.Thread(target=lambda: answered.append(stack.get("/slow?ms=3000")))
    slow.start()
    until("the request is out", 20, lambda: "natsway_in_flight" in stack.get("/metrics", stack.admin).text and in_flight(stack) >= 1)
    began = time.monotonic()
    stopped.start()
    stopped.join(60)
    took = time.monotonic() - began
    slow.join(60)
    state = stack.engine.inspect(gateway)[0]["State"]
    expect(answered and answered[0].status == 200, f"the request that it had: {answered}")
    expect(state["ExitCode"] == 0, f"it had to be killed: exit code {state['ExitCode']}")
    expect(took < 15, f"it took {took:.1f} s")
    stack.compose("up", "--detach", "--no-recreate")
    stack.await_healthy("apiproxy")
    return f"a request of 3 s was answered, and it left in {took:.1f} s"


def in_flight(stack: Stack) -> float:
    lines = stack.get("/metrics", stack.admin).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("natsway_in_flight{"))
