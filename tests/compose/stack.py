"""The deployment of docker-compose.yml as it stands, on ports of this machine that are free."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple, TypeVar

from demo_config import Address, port_problem
from engine import Engine, Failed, Missing, demanded, run
from images import DEBIAN
from tooling import ROOT

# What deploy/provisioner.toml calls the project, as .env does.
PROJECT = "natsway"
PROFILES = ("green", "provisioner", "shipper", "observability", "cluster")
FILES = ("docker-compose.yml",)
UP_SECONDS = 300
DOWN_SECONDS = 180
LOOK_SECONDS = 0.2
# The variables of docker-compose.yml for ports of this machine.
PORTS = (
    "NATSWAY_PORT", "NATSWAY_ADMIN_PORT", "NATSWAY_NATS_PORT", "NATSWAY_MONITOR_PORT", "NATSWAY_PROMETHEUS_PORT", "NATSWAY_JAEGER_PORT",
)

Seen = TypeVar("Seen")
# A proxy of the environment must not stand between us and 127.0.0.1.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Broken(AssertionError):
    """A promise does not hold; the text says which, and what was seen."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer of any status; status 0 is no answer."""

    status: int
    text: str

    def json(self) -> dict:
        return json.loads(self.text)


def expect(holds: object, what: str) -> None:
    """Fails the scenario unless this holds."""
    if not holds:
        raise Broken(what)


def until(what: str, seconds: float, look: Callable[[], Optional[Seen]]) -> Seen:
    """Looks until there is something true to see, and returns it."""
    end = time.monotonic() + seconds
    while True:
        problem = "nothing yet"
        try:
            seen = look()
            if seen:
                return seen
        except (OSError, ValueError, Failed) as error:
            problem = str(error)
        if time.monotonic() > end:
            raise Broken(f"{what}: not within {seconds:.0f} s ({problem})")
        time.sleep(LOOK_SECONDS)


class Stack:
    """One project, brought up and taken down as a whole."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ports = dict(zip(PORTS, free_ports(len(PORTS))))
        self.settings: Dict[str, str] = {}
        self.files: Tuple[str, ...] = FILES

    # ---- life

    def refuse_if_there(self) -> None:
        """What belongs to somebody is neither used nor removed."""
        for kind in (("ps", "--all"), ("volume", "ls")):
            if self.engine.run(*kind, "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").strip():
                raise Missing(
                    f"a project `{PROJECT}` is there already, and this test would destroy it: "
                    "take it down with its volumes (docker compose down --volumes), or run this elsewhere"
                )

    def environment(self) -> Dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("NATSWAY_", "NATS_", "OTEL_", "SHIPPER_", "COMPOSE_"))}
        ports = {name: str(port) for name, port in self.ports.items()}
        # The gateway is for everybody by default, and in a test for nobody else.
        ports["NATSWAY_PORT"] = f"127.0.0.1:{self.ports['NATSWAY_PORT']}"
        old = {"COMPOSE_DOCKER_CLI_BUILD": "1"} if self.engine.is_compose_v1 else {}
        return {**ours, **ports, **old, "DOCKER_BUILDKIT": "1", **self.settings}

    def compose(self, *arguments: str, profiles: Tuple[str, ...] = (), seconds: float = UP_SECONDS) -> str:
        """Runs Compose in the checkout, and returns its output."""
        chosen = [part for profile in profiles for part in ("--profile", profile)]
        files = [part for file in self.files for part in ("--file", str(ROOT / file))]
        command = [*self.engine.compose, "--project-directory", str(ROOT), *files]
        return demanded(run([*command, *chosen, *arguments], seconds, self.environment()))

    def down(self) -> None:
        """Removes containers, networks and volumes, those of the provisioner too."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", profiles=PROFILES, seconds=DOWN_SECONDS)
        self.settings, self.files = {}, FILES

    # ---- what runs

    def containers(self, service: str, every: bool = False) -> List[str]:
        """Ids of a service's containers, those that run unless `every`, the oldest first."""
        filters = [f"label=com.docker.compose.project={PROJECT}", f"label=com.docker.compose.service={service}"]
        arguments = [part for each in filters for part in ("--filter", each)]
        listed = self.engine.run("ps", "--quiet", "--no-trunc", *(["--all"] if every else []), *arguments)
        return listed.split()[::-1]

    def the(self, service: str) -> str:
        """The only container of a service."""
        found = self.containers(service)
        expect(len(found) == 1, f"{service}: expected one container that runs, found {len(found)}")
        return found[0]

    def health(self, service: str) -> List[str]:
        """What each container's check says: healthy, unhealthy, starting, or none."""
        return [told["State"].get("Health", {}).get("Status", "none") for told in self.engine.inspect(*self.containers(service))]

    def await_healthy(self, *services: str, seconds: float = 90) -> None:
        for service in services:
            until(f"{service} is healthy", seconds, lambda: set(self.health(service)) == {"healthy"})

    def logs(self, service: str, lines: int = 25) -> str:
        parts = []
        for container in self.containers(service, every=True):
            told = self.engine.quiet("logs", "--tail", "100000", container)
            # The access log would push the rest out.
            parts += [line for line in (told.stdout + told.stderr).splitlines() if '"target":"access"' not in line][-lines:]
        return "\n".join(parts)

    def inside(self, service: str, *command: str, seconds: float = 60) -> str:
        """Runs a program of the image in a service's container, and returns its output."""
        return self.engine.run("exec", self.containers(service)[0], *command, seconds=seconds)

    def from_network_of(self, container: str, script: str):
        """Runs shell in the network of a container, whose own image needs no shell for it."""
        return self.engine.quiet("run", "--rm", "--network", f"container:{container}", DEBIAN, "bash", "-c", script, seconds=60)

    # ---- requests

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.ports['NATSWAY_PORT']}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.ports['NATSWAY_ADMIN_PORT']}"

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.ports['NATSWAY_NATS_PORT']}"

    def get(self, path: str, base: Optional[str] = None) -> Answer:
        return fetch((base or self.base) + path)

    def instances(self, wanted: int, seconds: float = 60) -> set:
        """The workers that answer, when there are as many as wanted."""
        seen = set()

        def look() -> bool:
            for _ in range(20):
                answer = self.get("/version")
                if answer.status == 200:
                    seen.add(answer.json()["instance"])
            return len(seen) >= wanted

        until(f"{wanted} workers answer", seconds, look)
        return seen


def fetch(url: str) -> Answer:
    try:
        with HTTP.open(url, timeout=10) as response:
            return Answer(response.status, response.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode("utf-8", "replace"))
    except OSError as error:
        return Answer(0, str(error))


def free_ports(count: int) -> List[int]:
    """Ports of 127.0.0.1 below the range that outgoing connections use, the same in each run where they are free."""
    found = [port for port in range(18_080, 19_080, 7) if port_problem(Address("127.0.0.1", port)) is None]
    if len(found) < count:
        raise Missing("no free ports between 18080 and 19080 on 127.0.0.1")
    return found[:count]
