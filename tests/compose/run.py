#!/usr/bin/env python3
"""`make compose-test`: docker-compose.yml and the Dockerfile as they are, on a real engine, under load and faults.

It needs an engine (20.10 or newer), Compose, oha (`make tools`) and, where images cannot be pulled, what images.py says.
Nothing of a project `natsway` that is there already is touched: then it refuses. The exit code is 0 when every promise
held, 1 when one did not, and 2 when something that is needed is missing.

    BIN_SOURCE=prebuilt   takes the programs of target/release, as `cargo build --release` leaves them, or those of
                          NATSWAY_BIN_DIR, instead of compiling in the Dockerfile
    ONLY=scale,cluster    only these; --list names all
    KEEP=1                leaves the stack up when something failed
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, List, Optional, Set, Tuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "scripts")]

import broker_loss  # noqa: E402
import demand  # noqa: E402
import documented  # noqa: E402
import lines  # noqa: E402
import mishaps  # noqa: E402
import observed  # noqa: E402
import restored  # noqa: E402
import secured  # noqa: E402
import serving  # noqa: E402
from engine import Engine, Failed, Missing  # noqa: E402
from images import Images, by_tag, image_named  # noqa: E402
from load import find_oha  # noqa: E402
from stack import Broken, Stack  # noqa: E402
from tooling import ROOT, ToolError, say, target_dir  # noqa: E402

BUILD_SECONDS = 3600
PROGRAMS = ("apiproxy", "worker", "provisioner", "producer", "consumer", "cg")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# In this order; what stands in one line runs on one stack.
SCENARIOS: List[Tuple[str, Callable[[Stack, Images], str]]] = [
    ("answers", serving.answers),
    ("confined", serving.confined),
    ("networks", serving.networks),
    ("streams", serving.streams),
    ("scale", serving.scale),
    ("tools", serving.tools),
    ("versions", serving.versions),
    ("restart", serving.restart),
    ("stop", serving.stop),
    ("documented", documented.documented),
    ("restored", restored.restored),
    ("provisioner", demand.provisioner),
    ("mishaps", mishaps.mishaps),
    ("shipper", lines.shipper),
    ("observability", observed.observability),
    ("secured", secured.secured),
    ("cluster", broker_loss.cluster),
]


def build(stack: Stack, images: Images, source: str) -> str:
    """Builds the images by the Dockerfile, from what it names."""
    for image in sorted(bases_of(source)):
        images.need(image)
    images.need(image_named("docker-compose.yml", "nats"))
    if source == "prebuilt":
        gather()
    arguments = ["build", "--build-arg", f"BIN_SOURCE={source}", *services_of_ours()]
    profiles = ("green", "provisioner", "shipper")
    stack.compose(*arguments, profiles=profiles, seconds=BUILD_SECONDS)
    listed = stack.engine.run("image", "ls", "--format", "{{.Repository}} {{.Size}}", "natsway/*")
    return f"BIN_SOURCE={source}: " + ", ".join(sorted(set(listed.strip().splitlines())))


def bases_of(source: str) -> Set[str]:
    """The images that the Dockerfile begins from."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    bases = set(map(by_tag, re.findall(r"^FROM (?:--platform=\S+ )?(\S+:\S+)", text, re.MULTILINE)))
    return bases if source == "compile" else {base for base in bases if not base.startswith("rust")}


def services_of_ours() -> List[str]:
    return re.findall(r"^FROM base AS (\w+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)


def gather() -> None:
    """Puts the programs of target/release, or of NATSWAY_BIN_DIR, where BIN_SOURCE=prebuilt looks for them."""
    home = ROOT / "dist"
    home.mkdir(exist_ok=True)
    named = os.environ.get("NATSWAY_BIN_DIR")
    for program in PROGRAMS:
        built = (Path(named) if named else target_dir() / "release") / program
        if not built.exists():
            raise Missing(f"{built} is not there: cargo build --release --bins --features natsway-partitioned-consumer/cli")
        shutil.copy2(built, home / program)
    shutil.copy2(CERTIFICATES, home / CERTIFICATES.name)


def chosen() -> List[Tuple[str, Callable[[Stack, Images], str]]]:
    only = [name for name in os.environ.get("ONLY", "").split(",") if name]
    unknown = set(only) - {name for name, _ in SCENARIOS}
    if unknown:
        raise Missing(f"ONLY={','.join(sorted(unknown))}: expected of {', '.join(name for name, _ in SCENARIOS)}")
    return [(name, scenario) for name, scenario in SCENARIOS if name in only or not only]


def log_failures(stack: Stack) -> None:
    figures = stack.get("/metrics", stack.admin).text.splitlines()
    odd = [line for line in figures if line.startswith(("natsway_problems_total", "natsway_failed_attempts_total")) and not line.endswith(" 0")]
    say("--- figures of the gateway\n" + "\n".join(odd))
    for service in ("nats", "apiproxy", "worker", "worker-green", "provisioner", "engine-proxy", "nats-1", "producer", "consumer"):
        words = stack.logs(service)
        if words.strip():
            say(f"--- last lines of {service}\n{words}")


def go(source: str) -> int:
    # A stop by a signal cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    engine = Engine()
    find_oha()
    images, stack = Images(engine), Stack(engine)
    scenarios = chosen()
    stack.refuse_if_there()
    print(f"engine {engine.version}, compose {engine.compose_version}, gateway at {stack.base}", flush=True)
    failed = []
    try:
        for name, scenario in [("build", lambda stack, images: build(stack, images, source)), *scenarios]:
            began = time.monotonic()
            try:
                told = scenario(stack, images)
                verdict = "SKIP" if told.startswith("SKIPPED") else "ok  "
            except (Broken, Failed, subprocess.TimeoutExpired, OSError, ValueError, KeyError) as error:
                failed.append(name)
                told, verdict = f"{type(error).__name__}: {error}", "FAIL"
                log_failures(stack)
            print(f"{verdict} {name:14} {time.monotonic() - began:5.0f} s  {told}", flush=True)
            if failed and (name == "build" or os.environ.get("KEEP")):
                break
    finally:
        if failed and os.environ.get("KEEP"):
            say("KEEP: the stack is left as it is; `docker compose --profile '*' down --volumes` removes it")
        else:
            stack.down()
            images.forget()
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "every promise held", flush=True)
    return 1 if failed else 0


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the scenarios and leave")
    told = parser.parse_args(arguments)
    if told.list:
        print("\n".join(name for name, _ in SCENARIOS))
        return 0
    source = os.environ.get("BIN_SOURCE", "compile")
    if source not in ("compile", "prebuilt"):
        say(f"compose-test: BIN_SOURCE={source}: expected compile or prebuilt")
        return 2
    try:
        return go(source)
    except (Missing, ToolError) as error:
        say(f"compose-test: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
