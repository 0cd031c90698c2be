"""docker-compose.secured.yml, as docs/security.md says: TLS, and a user of the broker for each role."""

from __future__ import annotations

import re
import socket
import tempfile
from pathlib import Path
from typing import Dict

import demand
import lines
from broker_loss import MEMBERS, SETTINGS
from documented import shell_blocks, typed
from engine import run
from find_nats_cli import NoGo, find_nats_cli
from images import Images
from load import Load
from serving import check_confined
from stack import FILES, Stack, expect, until
from tooling import ROOT

PAGE = ROOT / "docs" / "security.md"
SECURED = (*FILES, "docker-compose.secured.yml")
# Those who must not see more than three files of the directory, nor a password that is not theirs.
PROGRAMS = ("apiproxy", "worker")


def secured(stack: Stack, images: Images) -> str:
    """The page's commands on a fresh stack; then scaling, log lines and a change of version, and the broker objects to nothing."""
    try:
        nats = str(find_nats_cli())
    except NoGo as error:
        return f"SKIPPED: {error}"
    stack.down()
    with tempfile.TemporaryDirectory(prefix="natsway-secured-") as home:
        directory = Path(home, "secrets")
        blocks = list(shell_blocks(PAGE, "make-secrets.sh", "NATS_USER=operator"))
        expect(len(blocks) == 2, f"{PAGE} does not say how to start, or how to look: {blocks}")
        shown = followed(stack, "\n".join(blocks), directory, nats)
        expect("demo" in shown and '"svc.demo.blue"' in shown, f"routes ls and kv get show {shown[-600:]}")
        settings = read(directory / "passwords.env")
        stack.files = SECURED
        stack.settings.update(read(directory / "compose.env"))
        stack.await_healthy("nats", "apiproxy")
        stack.instances(2)
        expect(stack.get("/sum?n=1&n=2&n=3").json() == {"sum": 6}, "/sum is not answered")
        looked = check_confined(stack, ("nats", *PROGRAMS))
        told = [handed_out(stack, settings), shut(stack, nats, directory, settings), changed(stack), renewed(stack, directory, nats)]
        told.append("provisioner: " + demand.provisioner(stack, images))
        told.append("shipper: " + lines.shipper(stack, images))
        objections = [line for line in stack.logs("nats", 100_000).splitlines() if "Violation" in line and "NATS CLI" not in line]
        expect(not objections, f"the broker objects to what our programs do: {objections[:3]}")
        secrets = [value for name, value in settings.items() if name.endswith("_PASSWORD")]
        every = "".join(stack.logs(service, 100_000) for service in ("nats", *PROGRAMS, "worker-green"))
        expect(not any(secret in every for secret in secrets), "a log has a password")
        stack.down()
        told.append(clustered(stack, directory, nats))
    return f"{looked} containers confined; {'; '.join(told)}; the broker objected to nothing that they did"


def followed(stack: Stack, block: str, directory: Path, nats: str) -> str:
    """Runs a block of the page as a whole, with the secrets elsewhere, since those of the checkout are somebody's."""
    here = re.sub(r"\bsecrets/", f"{directory}/", block.replace("make-secrets.sh", f"make-secrets.sh {directory}"))
    here = here.replace("127.0.0.1:4222", f"127.0.0.1:{stack.ports['NATSWAY_NATS_PORT']}").replace("nats --server", f"{nats} --server")
    return typed(stack, here).stdout


def read(file: Path) -> Dict[str, str]:
    """The settings that the page has the shell take over, but COMPOSE_FILE, which is what `files` is."""
    pairs = [line.split("=", 1) for line in file.read_text(encoding="utf-8").splitlines()]
    return {name: value for name, value in pairs if name != "COMPOSE_FILE"}


def handed_out(stack: Stack, settings: Dict[str, str]) -> str:
    """Whoever inspects containers sees no password, and each program is given its own and nothing of the others'."""
    own = {"apiproxy": "gateway", "worker": "worker", "nats": "passwords"}
    for service, secret in own.items():
        for told in stack.engine.inspect(*stack.containers(service)):
            shows = {name for name, value in settings.items() if value in str(told)}
            expect(not shows, f"{service} shows {sorted(shows)}")
            mounted = {mount["Destination"] for mount in told["Mounts"] if mount["Destination"].startswith("/run/secrets/")}
            expect(mounted == {f"/run/secrets/{secret}"}, f"{service} was handed {sorted(mounted)}")
            if service != "nats":
                mounted = {Path(mount["Source"]).name for mount in told["Mounts"] if "/tls/" in mount["Destination"]}
                expect(mounted == {"authority.pem"}, f"{service} sees {sorted(mounted)}")
    return "each was handed its own password only"


def shut(stack: Stack, nats: str, directory: Path, settings: Dict[str, str]) -> str:
    """The broker's port is no use without TLS, its authority and a password, and each role keeps to its own."""
    port = stack.ports["NATSWAY_NATS_PORT"]
    authority = ["--tlsca", str(directory / "authority.pem")]
    user = ["--user", "operator", "--password", settings["NATSWAY_OPERATOR_PASSWORD"]]
    worker = ["--user", "worker", "--password", settings["NATSWAY_WORKER_PASSWORD"]]

    def reads_routes(*arguments: str) -> bool:
        asked = ["--server", f"tls://127.0.0.1:{port}", "--inbox-prefix", "_INBOX_operator", *arguments]
        return run([nats, *asked, "kv", "get", "natsway-routes", "demo", "--raw"], 30).returncode == 0

    expect(reads_routes(*authority, *user), "nats does not read a route as operator")
    expect(not reads_routes(*user), "nats connects without the authority")
    expect(not reads_routes(*authority), "nats connects without a password")
    expect(not reads_routes(*authority, "--user", "operator", "--password", "wrong"), "nats connects with a wrong password")
    expect(not reads_routes(*authority, *worker), "a worker reads what is an operator's")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.recv(4096)
        plain.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
        answer = b""
        while part := plain.recv(4096):
            answer += part
            expect(b"PONG" not in answer, "the broker talks in the clear")
    return "no way in without TLS, the authority and a password"


def renewed(stack: Stack, directory: Path, nats: str) -> str:
    """The broker's next certificate, while requests go on."""
    (block,) = shell_blocks(PAGE, "kill -s HUP")

    with Load(stack.base + "/version") as load:
        followed(stack, f"set -a; . secrets/compose.env; set +a\n{block}", directory, nats)
        until("the broker has read its new certificate", 60, lambda: "Reloaded: tls = enabled" in stack.logs("nats", 100_000))
        # New connections are made by it.
        stack.engine.run("restart", "--time", "15", stack.containers("worker")[0])
        stack.instances(2)
        report = load.end()
    expect(report.failed == 0, f"while the certificate was renewed: {report}")
    return f"certificate renewed: {report}"


def clustered(stack: Stack, directory: Path, nats: str) -> str:
    """The page's three brokers, one of which is killed, and all of which read their certificates anew, under load."""
    blocks = list(shell_blocks(PAGE, "--profile cluster up", "HUP nats-1"))
    expect(len(blocks) == 2, f"{PAGE} does not say how to start three brokers, or how to renew: {blocks}")
    up, renew = (f"set -a; . secrets/compose.env; set +a\n{block}" for block in blocks)
    followed(stack, up, directory, nats)
    stack.files = SECURED
    stack.settings.update({**read(directory / "compose.env"), **SETTINGS})
    stack.await_healthy(*MEMBERS, "apiproxy")
    stack.instances(2)
    with Load(stack.base + "/version") as load:
        stack.engine.run("kill", "--signal", "KILL", stack.the(MEMBERS[0]))
        stack.engine.run("start", stack.containers(MEMBERS[0], every=True)[0])
        stack.await_healthy(MEMBERS[0])
        followed(stack, renew, directory, nats)
        stack.instances(2)
        report = load.end()
    expect(report.failed == 0, f"one of three brokers killed: {report}")
    told = "".join(stack.logs(member, 100_000) for member in MEMBERS)
    expect("Violation" not in told, "the three brokers object to what our programs do")
    stack.down()
    return f"three brokers, one killed: {report}"


def changed(stack: Stack) -> str:
    """Blue to green and back by an operator's own account."""
    stack.compose("up", "--detach", "--no-recreate", profiles=("green",))
    until("both green workers run", 60, lambda: len(stack.containers("worker-green")) == 2)
    with Load(stack.base + "/version") as load:
        for target in ("green", "blue"):
            stack.compose("run", "--rm", "-T", "operator", "rollout", "start", "demo", "--to", target,
                          "--strategy", "blue-green", "--smoke", "/version", "--follow", seconds=120)
            subjects = {stack.get("/version").json()["subject"] for _ in range(20)}
            expect(subjects == {f"svc.demo.{target}"}, f"after the change to {target}: {subjects}")
        report = load.end()
    expect(report.failed == 0, f"to green and back: {report}")
    stack.compose("stop", "worker-green", profiles=("green",))
    return f"to green and back as operator: {report}"
