"""The provisioner's Docker backend through the socket proxy: containers come and go with the load."""

from __future__ import annotations

import json
from pathlib import Path

from images import DEBIAN, Images, image_named
from load import Load
from serving import check_confined
from stack import Stack, expect, until

SOCKET = Path("/var/run/docker.sock")
# Of deploy/provisioner.toml.
LEAST, MOST = 2, 8
# Requests of a tenth of a second at this rate keep 20 places busy: three workers and a bit at 8 places each.
PATH, PER_SECOND, CONNECTIONS = "/slow?ms=100", 200, 64
WANTED = 3
# Ways to a directory of the host, of which no worker of these files has one.
MOUNTS = (
    {"Binds": ["/:/host"]},
    {"Mounts": [{"Type": "bind", "Source": "/etc", "Target": "/host"}]},
    {"Mounts": [{"Type": "volume", "Target": "/host", "VolumeOptions": {"DriverConfig": {"Options": {"type": "none", "o": "bind", "device": "/"}}}}]},
    {"VolumesFrom": ["natsway-engine-proxy-1"]},
)
NOWHERE = "natsway/nowhere:none"


def provisioner(stack: Stack, images: Images) -> str:
    """Out under load, set right after `docker compose up`, in without load, and never out of bounds."""
    why_not = proxy_or_why_not(stack, images)
    if why_not:
        return why_not
    profiles = ("provisioner",)
    stack.compose("up", "--detach", profiles=profiles)
    stack.await_healthy("provisioner")
    stack.await_healthy("apiproxy")
    stack.instances(LEAST)
    looked = check_confined(stack, ("engine-proxy", "provisioner"))
    refused(stack)
    most = LEAST
    with Load(stack.base + PATH, PER_SECOND, CONNECTIONS) as load:
        most = max(most, until("workers are added", 120, lambda: enough(stack)))
        before = set(stack.containers("worker"))
        stack.compose("up", "--detach", profiles=profiles)
        after = len(stack.containers("worker"))
        most = max(most, until("workers are added again", 120, lambda: enough(stack)))
        report = load.end()
    expect(report.failed == 0, f"while containers came and went: {report}")
    until("the workers that are not needed leave", 180, lambda: len(stack.containers("worker")) == LEAST)
    until("what has ended is removed", 60, lambda: len(stack.containers("worker", every=True)) == LEAST)
    expect(most <= MOST, f"{most} workers, above the bound")
    stack.compose("rm", "--stop", "--force", "provisioner", "engine-proxy", profiles=profiles)
    return f"{LEAST} to {most} workers and back, `up` left {after} of {len(before)}; {report}; {looked} more containers confined"


def proxy_or_why_not(stack: Stack, images: Images) -> str:
    """Sees to the proxy's image and its right to use the engine's socket; else why that cannot be."""
    proxy = image_named("docker-compose.yml", "wollomatic/socket-proxy")
    if not images.provide(proxy):
        return f"SKIPPED: {proxy}: {images.unavailable[proxy]}"
    if not SOCKET.exists():
        return f"SKIPPED: no {SOCKET}, which docker-compose.yml hands to the proxy"
    stack.settings["DOCKER_GID"] = str(SOCKET.stat().st_gid)
    return ""


def enough(stack: Stack) -> int:
    """How many workers run, when they are as many as the load needs."""
    running = len(stack.containers("worker"))
    expect(running <= MOST, f"{running} workers, above the bound")
    return running if running >= WANTED else 0


def refused(stack: Stack) -> None:
    """The proxy passes on nothing but what scaling needs."""
    worker = stack.containers("worker")[0]
    for method, path in (
        ("POST", f"/containers/{worker}/exec"),
        ("POST", f"/containers/{worker}/kill"),
        ("GET", f"/containers/{worker}/archive?path=/etc"),
        ("GET", "/images/json"),
        ("GET", "/info"),
        ("POST", "/volumes/create"),
        ("POST", "/networks/create"),
        ("POST", "/networks/natsway_edge/disconnect"),
    ):
        status = asked(stack, method, path)
        expect(status == 403, f"{method} {path} through the proxy: {status}")
    for host in MOUNTS:
        for version in ("", "/v1.40"):
            status = created(stack, host, version)
            expect(status == 403, f"a container with {host} at `{version}`: {status}")
    # What docs/provisioner.md says is not kept apart; the engine itself refuses the image.
    for host in ({}, {"Privileged": True}, {"PidMode": "host"}):
        status = created(stack, host)
        expect(status == 404, f"a container with {host or 'nothing special'}: {status}")
    expect(asked(stack, "GET", "/containers/json") == 200, "the proxy refuses what it should pass on")


def created(stack: Stack, host: dict, version: str = "") -> int:
    """The status when a container of an image that is nowhere is asked for."""
    return asked(stack, "POST", f"{version}/containers/create", json.dumps({"Image": NOWHERE, "HostConfig": host}))


def asked(stack: Stack, method: str, path: str, body: str = "") -> int:
    """The status of a request to the proxy's socket, from where the provisioner sends it."""
    script = (
        "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => '/run/engine/docker.sock') or die $!;"
        " my ($line, $body) = @ARGV; my $fields = 'Content-Type: application/json';"
        " print $s qq($line HTTP/1.0\\r\\nHost: docker\\r\\n$fields\\r\\nContent-Length: ${\\length $body}\\r\\n\\r\\n$body);"
        " print scalar <$s>;"
    )
    volumes = ("--volumes-from", stack.the("engine-proxy"), "--user", "65532:65532", "--network", "none")
    told = stack.engine.run("run", "--rm", *volumes, DEBIAN, "perl", "-e", script, f"{method} {path}", body)
    return int(told.split()[1])
