"""What `make run` was asked for, checked: every mistake is told at once, before anything is started."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import re
import socket
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple
from urllib.parse import SplitResult, urlsplit

from tooling import ToolError, Version, parse_version, show_version

MOST_WORKERS = 64
DIAL_SECONDS = 3.0


class Mistakes(Exception):
    """What the user has to change, one sentence a line."""


@dataclass(frozen=True)
class Address:
    """An IP address and port that something listens on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def dialled(self) -> Address:
        """The address that a client on this machine dials: nobody can dial 0.0.0.0."""
        ip = ipaddress.ip_address(self.host)
        if not ip.is_unspecified:
            return self
        return Address("::1" if ip.version == 6 else "127.0.0.1", self.port)


@dataclass(frozen=True)
class Config:
    listen: Address
    admin: Address
    nats: Address
    monitor: Address
    # A broker that runs already; None: one is started at `nats`.
    nats_url: Optional[str]
    workers: int
    check: bool
    profile: str

    def listeners(self) -> List[Tuple[str, Address, str]]:
        """What is going to listen: who, where, and how the user changes that."""
        ours = [
            ("the gateway", self.listen, "--listen or NATSWAY_LISTEN"),
            ("the gateway's admin page", self.admin, "--admin-listen or NATSWAY_ADMIN_LISTEN"),
        ]
        if self.nats_url is None:
            ours.append(("the broker", self.nats, "--nats-listen, or name a running broker in NATS_URL"))
            ours.append(("the broker's monitoring page", self.monitor, "--nats-monitor"))
        return ours


def read_config(arguments: Sequence[str], environment: Dict[str, str]) -> Config:
    """The configuration of a command line and an environment. Raises Mistakes; `--help` exits."""
    args = _parser().parse_args(arguments)
    mistakes: List[str] = []

    def address(flag: str, given: Optional[str], variable: Optional[str], default: str) -> Address:
        name, text = flag, given
        if text is None and variable is not None and environment.get(variable):
            name, text = variable, environment[variable]
        try:
            return parse_address(default if text is None else text)
        except ValueError as error:
            mistakes.append(f"{name}={text}: {error}")
            return parse_address(default)

    config = Config(
        listen=address("--listen", args.listen, "NATSWAY_LISTEN", "127.0.0.1:8080"),
        admin=address("--admin-listen", args.admin_listen, "NATSWAY_ADMIN_LISTEN", "127.0.0.1:8081"),
        nats=address("--nats-listen", args.nats_listen, None, "127.0.0.1:4222"),
        monitor=address("--nats-monitor", args.nats_monitor, None, "127.0.0.1:8222"),
        nats_url=args.nats_url or environment.get("NATS_URL") or None,
        workers=args.workers,
        check=args.check,
        profile=args.profile,
    )
    if not 1 <= config.workers <= MOST_WORKERS:
        mistakes.append(f"--workers={config.workers}: expected 1..={MOST_WORKERS}")
    if config.nats_url is not None and (args.nats_listen or args.nats_monitor):
        mistakes.append(
            f"NATS_URL={without_secrets(config.nats_url)}: that broker is used and none is started, "
            "so --nats-listen and --nats-monitor have no meaning; unset one or the other"
        )
    seen: Dict[Address, str] = {}
    for who, where, how in config.listeners():
        if where in seen:
            mistakes.append(f"{who} and {seen[where]} cannot both listen on {where}; change it with {how}")
        seen[where] = who
    if mistakes:
        raise Mistakes("\n".join(mistakes))
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make run",
        description="Starts a broker, the gateway and demo workers on this machine, and stops them on Ctrl-C.",
        epilog="With make: make run ARGS='--workers 4'. A variable stands in for a flag that is not given.",
    )
    parser.add_argument("--listen", metavar="ADDRESS", help="the gateway [NATSWAY_LISTEN, 127.0.0.1:8080]")
    parser.add_argument("--admin-listen", metavar="ADDRESS", help="its admin page [NATSWAY_ADMIN_LISTEN, 127.0.0.1:8081]")
    parser.add_argument("--nats-listen", metavar="ADDRESS", help="the broker that is started [127.0.0.1:4222]")
    parser.add_argument("--nats-monitor", metavar="ADDRESS", help="its monitoring page [127.0.0.1:8222]")
    parser.add_argument("--nats-url", metavar="URL", help="use this running broker, start none; with a password rather by the variable [NATS_URL]")
    parser.add_argument("--workers", metavar="N", type=int, default=2, help=f"worker processes, 1 to {MOST_WORKERS} [2]")
    parser.add_argument("--profile", metavar="NAME", default="release", help="cargo profile: release or dev [release]")
    parser.add_argument("--check", action="store_true", help="come up, try the three requests, go down")
    return parser


def parse_address(text: str) -> Address:
    """Reads `127.0.0.1:8080` or `[::1]:8080`. Raises ValueError with what was expected."""
    expectation = "expected an IP address and a port, such as 127.0.0.1:8080"
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(expectation)
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(expectation) from None
    if bracketed != (ip.version == 6):
        raise ValueError(expectation)
    return Address(str(ip), int(port))


def port_problem(address: Address) -> Optional[str]:
    """Why nothing can listen on the address, or None."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do: connections that have just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "is in use"
            if error.errno == errno.EADDRNOTAVAIL:
                return "is not an address of this machine"
            return f"cannot be listened on ({error.strerror})"
    return None


def check_ports(config: Config) -> None:
    """Raises Mistakes with every address that nothing can listen on."""
    mistakes = []
    for who, where, how in config.listeners():
        problem = port_problem(where)
        if problem:
            mistakes.append(f"{where}, where {who} should listen, {problem}; choose another with {how}")
    if mistakes:
        raise Mistakes("\n".join(mistakes))


def without_secrets(urls: str) -> str:
    """The addresses as they may be printed: everything between `://`, or the beginning, and the last `@` of each is
    secret. An address begins behind a comma where a scheme follows, for a password may hold commas."""
    addresses = re.split(r",(?=\s*[A-Za-z0-9]+://)", urls)
    return ",".join(re.sub(r"(?s)^(.*?://|).*@", r"\1***@", address) for address in addresses)


def broker_addresses(urls: str) -> List[SplitResult]:
    """The addresses in a list with commas between. Raises ToolError, without what a parser made of a password."""
    parts = [urlsplit_or_none(one.strip()) for one in urls.split(",") if one.strip()]
    found = [part for part in parts if part is not None]
    if not found or len(found) < len(parts):
        raise ToolError(
            f"NATS_URL={without_secrets(urls)}: expected nats://host:port or tls://host:port, several with commas "
            "between; what is neither letter nor digit in a user name or password must be percent-encoded"
        )
    return found


def urlsplit_or_none(url: str) -> Optional[SplitResult]:
    """The parts of an address that has a host and, if any, a port."""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        # Asked for here, because a port that is none is told only then.
        sound = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    # An `@` behind the host belongs to a password with a `/` in it, whose beginning was taken for the host.
    cut_short = "@" in url and "@" not in parts.netloc
    return parts if sound and not cut_short else None


def parse_info(line: str) -> Dict[str, object]:
    """What a NATS server says of itself in its first line. Raises ValueError when it is no NATS server."""
    if not line.startswith("INFO "):
        raise ValueError("no nats-server")
    info = json.loads(line[len("INFO "):])
    if not isinstance(info, dict):
        raise ValueError("no nats-server")
    return info


def dial_broker(host: str, port: int) -> Dict[str, object]:
    """The INFO of the server at this address. Raises OSError or ValueError when there is none."""
    with socket.create_connection((host, port), timeout=DIAL_SECONDS) as connection:
        with connection.makefile("r", encoding="utf-8", errors="replace") as lines:
            return parse_info(lines.readline(1 << 20))


def check_broker(url: str, oldest: Version) -> None:
    """Raises ToolError unless a new enough broker answers at one of the URLs (commas between)."""
    reasons = []
    for parts in broker_addresses(url):
        if parts.scheme not in ("nats", "tls"):
            # Reached in other ways, which only the programs themselves can try.
            return
        host, port = parts.hostname or "", parts.port or 4222
        shown = f"{parts.scheme}://{host}:{port}"
        try:
            info = dial_broker(host, port)
        except (OSError, ValueError) as error:
            reasons.append(f"NATS_URL={shown}: no broker answers there ({error})")
            continue
        version = parse_version(str(info.get("version", "")))
        if version is None or version < oldest:
            raise ToolError(
                f"NATS_URL={shown}: that broker is version {info.get('version')}, natsway needs >= {show_version(oldest)}"
            )
        return
    raise ToolError("\n".join([*reasons, "start that broker, or unset NATS_URL to have one started here"]))
