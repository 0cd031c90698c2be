"""The services of several Compose files, one upon the other, as processes of this machine: what a container would read, from files here.

Merges what ours use of Compose: mappings key by key, volumes by their place in the container, other lists one behind the other. Needs
PyYAML.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import yaml

from stage import SHIPPED, Running, Stage, free_port
from tooling import ROOT


def merged(*names: str) -> Dict[str, Dict[str, object]]:
    """What these files say together."""
    whole: Dict[str, Dict[str, object]] = {}
    for name in names:
        upon(whole, yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))
    return whole


def upon(below: Dict[str, object], above: Dict[str, object]) -> None:
    for key, value in above.items():
        held = below.get(key)
        if isinstance(held, dict) and isinstance(value, dict):
            upon(held, value)
        elif isinstance(held, list) and isinstance(value, list) and key not in ("command", "entrypoint"):
            places = {str(one).split(":")[1] for one in value} if key == "volumes" else set()
            below[key] = [one for one in held if key != "volumes" or str(one).split(":")[1] not in places] + value
        else:
            below[key] = value


def substituted(text: object, variables: Dict[str, str]) -> str:
    """What Compose makes of `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: variables.get(m.group(1), m.group(2) or ""), str(text))


class ComposedStage(Stage):
    """A stage whose broker and programs have what the Compose files give their containers."""

    def __init__(self, broker: Path, *files: str) -> None:
        self.files = merged(*files)
        super().__init__(broker, "")

    def _begin(self, broker: Path, permissions: str) -> None:
        self.broker, self.port = broker, free_port()
        self.secrets = self.directory / "secrets"
        subprocess.run([str(SHIPPED / "make-secrets.sh"), str(self.secrets)], capture_output=True, text=True, check=True)
        self.variables = {"NATSWAY_SECRETS": str(self.secrets), "NATS_URL": f"nats://127.0.0.1:{self.port}"}
        home = self.directory / "nats"
        home.mkdir()
        for target, source in self.mounts("nats").items():
            if target == "/etc/nats":
                for file in source.glob("*.conf"):
                    self.place(home / file.name, file)
        # A file upon one of the directory's.
        for target, source in self.mounts("nats").items():
            if target.startswith("/etc/nats/"):
                self.place(home / Path(target).name, source)
        config = Path(str(self.command("nats")[-1])).name
        lines = (self.secrets / "passwords.env").read_text(encoding="utf-8").splitlines()
        passwords = dict(line.split("=", 1) for line in lines)
        given = {**passwords, **self.environment("nats")}
        self.server = self._spawn("broker", [str(broker), "--config", str(home / config)], given)
        self.until("the broker listens", self._listens)

    def place(self, target: Path, source: Path) -> None:
        """A file of the broker's, with this machine's addresses and paths."""
        text = source.read_text(encoding="utf-8")
        for there, here in {
            "port: 4222\n": f"host: 127.0.0.1\nport: {self.port}\ntrace: true\nlogfile: \"{self.directory}/server.log\"\n",
            "http_port: 8222\n": f"http: \"127.0.0.1:{free_port()}\"\n",
            "http: \"127.0.0.1:8222\"\n": f"http: \"127.0.0.1:{free_port()}\"\n",
            "store_dir: /jetstream\n": f"store_dir: \"{self.directory}/jetstream\"\n",
            "\"/tls/": f"\"{self.secrets}/",
        }.items():
            text = text.replace(there, here)
        target.write_text(text, encoding="utf-8")

    def service(self, name: str) -> Dict[str, object]:
        return dict(self.files["services"][name])

    def command(self, name: str) -> List[str]:
        return [substituted(word, self.variables) for word in self.service(name).get("command", [])]

    def mounts(self, name: str) -> Dict[str, Path]:
        """Where files of this machine are in a container."""
        found: Dict[str, Path] = {}
        for volume in self.service(name).get("volumes", []):
            source, target = substituted(volume, self.variables).split(":")[:2]
            if source.startswith((".", "/")):
                found[target] = ROOT / source
        secrets = self.files["secrets"]
        for secret in self.service(name).get("secrets", []):
            found[f"/run/secrets/{secret}"] = Path(substituted(dict(secrets[secret])["file"], self.variables))
        return found

    def environment(self, name: str) -> Dict[str, str]:
        """A container's variables, with files where they are on this machine. What is given without a value comes from the shell."""
        mounts = self.mounts(name)
        given = dict(self.service(name).get("environment") or {})
        told = {key: substituted(value, self.variables) for key, value in given.items() if value is not None}
        return {key: str(mounts.get(value, value)) for key, value in told.items()}

    def start_service(self, name: str, program: str, *arguments: str, **variables: str) -> Running:
        """Starts a service's program with what its container is given. `variables` are addresses of this machine."""
        return self.start(name, program, *self.command(name), *arguments, **{**self.environment(name), **variables})

    def run_service(self, name: str, program: str, *arguments: str) -> str:
        """Runs a service's program to its end; it has to succeed."""
        running = self.start_service(name, program, *arguments)
        self.until(f"{name} ends", lambda: running.process.poll() is not None)
        assert running.process.returncode == 0, running.text()
        return running.printed()

    def credentials(self, role: str) -> Dict[str, str]:
        return {}


def is_possible() -> bool:
    """Whether certificates can be made here."""
    return shutil.which("openssl") is not None
