"""Three brokers as docker-compose.secured.yml has them in the profile `cluster`, as processes of this machine.

The configuration is what is shipped in deploy/nats, and the secrets are made by its script; only addresses and paths are
others. Standard library only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

from permissions import PERMISSIONS
from stage import HTTP, ROLES, Running, Stage, free_port, password, with_setup

SHIPPED = PERMISSIONS.parent
NAMES = ("nats-1", "nats-2", "nats-3")
# Four connections between any two: three for messages, one for the system's account.
ROUTES = 4 * (len(NAMES) - 1)


@dataclass
class Member:
    """One of the brokers."""

    name: str
    home: Path
    port: int = field(default_factory=free_port)
    monitor: int = field(default_factory=free_port)
    route: int = field(default_factory=free_port)
    running: Optional[Running] = None


class SecuredCluster(Stage):
    """A stage with three brokers. That they die is for `kill`, and no part of the plays here."""

    loses_brokers = False

    def _begin(self, broker: Path, permissions: str) -> None:
        self.broker = broker
        self.secrets = self.directory / "secrets"
        subprocess.run([str(SHIPPED / "make-secrets.sh"), str(self.secrets)], capture_output=True, text=True, check=True)
        lines = (self.secrets / "passwords.env").read_text(encoding="utf-8").splitlines()
        self.settings = dict(line.split("=", 1) for line in lines)
        self.members = [Member(name, self.directory / name) for name in NAMES]
        for member in self.members:
            self.configure(member, permissions)
            self.begin(member)
        self.until("the brokers have found each other", self.is_whole)

    def configure(self, member: Member, permissions: str) -> None:
        """Writes a member's configuration: what is shipped, with this machine's addresses and paths in it."""
        member.home.mkdir()
        here = {
            "port: 4222\n": f"host: 127.0.0.1\nport: {member.port}\ntrace: true\nlogfile: \"{member.home}/server.log\"\n",
            "http_port: 8222\n": f"http: \"127.0.0.1:{member.monitor}\"\n",
            "http: \"127.0.0.1:8222\"\n": f"http: \"127.0.0.1:{member.monitor}\"\n",
            "store_dir: /jetstream\n": f"store_dir: \"{member.home}/jetstream\"\n",
            "port: 6222\n": f"host: 127.0.0.1\nport: {member.route}\n",
            "\"/tls/": f"\"{self.secrets}/",
            **{f"nats://{other.name}:6222\n": f"nats://127.0.0.1:{other.route}\n" for other in self.members},
        }
        found = set()
        for file in SHIPPED.glob("*.conf"):
            text = permissions if file == PERMISSIONS else file.read_text(encoding="utf-8")
            for there, ours in here.items():
                if there in text:
                    found.add(there)
                    text = text.replace(there, ours)
            (member.home / file.name).write_text(with_setup(text) if file == PERMISSIONS else text, encoding="utf-8")
        assert found == set(here), f"not in deploy/nats any more: {set(here) - found}"

    def begin(self, member: Member) -> None:
        """Starts a member, with the command of the Compose file."""
        command = [str(self.broker), "--config", str(member.home / "secured-cluster.conf")]
        passwords = {name: value for name, value in self.settings.items() if name.endswith("_PASSWORD")}
        member.running = self._spawn("broker", command, {**passwords, "SERVER_NAME": member.name})

    def kill(self, member: Member) -> None:
        """Ends a member at once, as `kill -9` does."""
        assert member.running is not None
        member.running.process.kill()
        member.running.process.wait()

    def is_whole(self) -> bool:
        """Whether every member has all its routes, and JetStream is well at each."""
        return all(
            len(look(member, "/routez").get("routes", [])) == ROUTES and look(member, "/healthz").get("status") == "ok"
            for member in self.members
        )

    def copies(self, stream: str) -> int:
        """How many copies a stream has, by what the members say."""
        page = "/jsz?streams=true&config=true"
        told: List[int] = [0]
        for member in self.members:
            for account in look(member, page).get("account_details", []):
                told += [s["config"]["num_replicas"] for s in account.get("stream_detail", []) if s["name"] == stream]
        return max(told)

    def credentials(self, role: str) -> Dict[str, str]:
        """As the Compose files hand them out, with all addresses."""
        given = self.settings.get(f"NATSWAY_{role.upper()}_PASSWORD", password(role))
        return {
            "NATS_USER": role,
            "NATS_PASSWORD": given,
            "NATS_CA": str(self.secrets / "authority.pem"),
            "NATS_URL": ",".join(f"nats://127.0.0.1:{member.port}" for member in self.members),
            "NATSWAY_ROUTES_REPLICAS": "3",
            "NATSWAY_LEASE_REPLICAS": "3",
            "SHIPPER_STREAM_REPLICAS": "3",
        }

    def told_secrets(self) -> List[str]:
        """The roles whose password is in a log of ours."""
        logs = "".join(running.text() for running in self.running if running.role != "broker")
        return [role for role in ROLES if self.settings[f"NATSWAY_{role.upper()}_PASSWORD"] in logs]

    def server_log(self) -> str:
        logs = [member.home / "server.log" for member in self.members]
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())


def look(member: Member, page: str) -> Dict[str, object]:
    """A page of a member's monitoring; empty when there is none."""
    try:
        with HTTP.open(f"http://127.0.0.1:{member.monitor}{page}", timeout=10) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return {}


def is_possible() -> bool:
    """Whether certificates can be made here."""
    return shutil.which("openssl") is not None
