#!/usr/bin/env python3
"""Real clients of streams: each is run straight against a service, and against the same behind a gateway and a worker.

It builds what is ours, and installs nothing: what is not there is skipped, and named. Where it looks, beside PATH:

    CLIENTS_BIN=<directory>      Go's interop client as `client`, grpcurl and ghz: `go install` puts them there
                                 (google.golang.org/grpc/interop/client, github.com/fullstorydev/grpcurl/cmd/grpcurl,
                                 github.com/bojand/ghz/cmd/ghz)
    CLIENTS_PYTHON=<program>     a Python with `websockets` and `httpx`
    CLIENTS_NODE=<directory>     where `npm install ws playwright-core` was run
    BROWSER=<program>            a Chromium [default: chromium of PATH]

    BYTES=<count>                what curl uploads [5 GiB]
    ONLY=grpc,curl               only those whose name holds one of these

The exit code is 0 when every client that there is was content behind the gateway, 1 when one was not, 2 when something
of ours does not start.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))

from tooling import ROOT, target_dir  # noqa: E402

BYTES = int(os.environ.get("BYTES", 5 << 30))
STREAMED_BYTES = 64 << 20
START_SECONDS = 30
CLIENT_SECONDS = 900

INTEROP = (
    "empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
    "timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message",
    "special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service",
)  # fmt: skip

ROUTES = """
[[route]]
name = "interop"
path = "/{*rest}"
timeout = "600s"
[[route.target]]
version = "blue"
subject = "svc.interop.blue"
"""


class Skipped(Exception):
    """The client is not there."""


class Failed(Exception):
    """The client is not content."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def program(name: str) -> str:
    directory = os.environ.get("CLIENTS_BIN", "")
    found = shutil.which(name, path=os.pathsep.join([directory, os.environ["PATH"]]))
    if not found:
        raise Skipped(f"{name} is not installed")
    return found


def run(*command: object, **options: object) -> str:
    """The last line of what a client says."""
    words = [str(word) for word in command]
    ended = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=CLIENT_SECONDS, **options  # type: ignore[call-overload]
    )
    lines = ended.stdout.strip().splitlines() or [""]
    if ended.returncode:
        raise Failed(f"{Path(words[0]).name} ended with {ended.returncode}: {' | '.join(lines[-4:])}")
    return lines[-1]


def curl(port: int, form: Tuple[str, ...]) -> str:
    """Uploads zeros to a handler that hashes them."""
    with tempfile.NamedTemporaryFile() as zeros:
        os.truncate(zeros.name, BYTES)
        began = time.monotonic()
        answer = json.loads(
            run(program("curl"), "-sS", "--fail-with-body", "-X", "POST", "-T", zeros.name, *form, f"http://127.0.0.1:{port}/hash")
        )
        took = time.monotonic() - began
    if answer != {"bytes": BYTES, "sha256": digest_of_zeros()}:
        raise Failed(f"the handler got {answer}")
    return f"{BYTES / (1 << 30):.1f} GiB, {BYTES / (1 << 20) / took:.0f} MiB/s"


def digest_of_zeros(known: Dict[int, str] = {}) -> str:  # noqa: B006
    if BYTES not in known:
        piece, left, sum = bytes(1 << 20), BYTES, hashlib.sha256()
        while left:
            sum.update(piece[: min(left, len(piece))])
            left -= min(left, len(piece))
        known[BYTES] = sum.hexdigest()
    return known[BYTES]


def python(script: str, *arguments: object) -> str:
    interpreter = os.environ.get("CLIENTS_PYTHON", sys.executable)
    wanted = {"sockets.py": "websockets", "streams_httpx.py": "httpx"}[script]
    if subprocess.run([interpreter, "-c", f"import {wanted}"], stderr=subprocess.DEVNULL, check=False).returncode:
        raise Skipped(f"{wanted} is not installed for {interpreter}")
    return run(interpreter, HERE / script, *arguments)


def node_modules(package: str) -> Path:
    modules = Path(os.environ.get("CLIENTS_NODE", HERE)) / "node_modules"
    if not (modules / package).exists():
        raise Skipped(f"{package} of npm is not installed")
    return modules


def interop(port: int) -> str:
    """Each case of gRPC's own client."""
    client, failed = program("client"), []
    for case in INTEROP:
        try:
            run(client, f"--server_port={port}", "--use_tls=false", f"--test_case={case}")
        except Failed as why:
            failed.append(f"{case}: {why}")
    if failed:
        raise Failed(f"{len(INTEROP) - len(failed)} of {len(INTEROP)}: {'; '.join(failed)}")
    return f"{len(INTEROP)} of {len(INTEROP)} cases"


def grpcurl(port: int) -> str:
    """Unary, and both ways at once."""
    call = [program("grpcurl"), "-plaintext", "-import-path", HERE, "-proto", "interop.proto", "-d"]
    service = f"127.0.0.1:{port}", "grpc.testing.TestService/"
    text = lambda data, method: subprocess.run(  # noqa: E731
        [str(word) for word in [*call, json.dumps(data), service[0], service[1] + method]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    ).stdout  # fmt: skip
    if text({"response_size": 3}, "UnaryCall").split() != '{ "payload": { "body": "AAAA" } }'.split():
        raise Failed(f"unary: {text({'response_size': 3}, 'UnaryCall')}")
    asked = {"response_parameters": [{"size": 3}, {"size": 6, "interval_us": 1000}]}
    for method in ("StreamingOutputCall", "FullDuplexCall"):
        answer = text(asked, method)
        if answer.count("AAAA") != 3 or "rror" in answer:
            raise Failed(f"{method}: {answer}")
    return "unary, server streaming, both ways"


def ghz(port: int) -> str:
    """Many unary calls."""
    command = [
        program("ghz"), "--insecure", "--proto", HERE / "interop.proto", "--call", "grpc.testing.TestService/UnaryCall",
        "-d", '{"response_size": 100}', "-n", 4_000, "-c", 8, "-O", "json", f"127.0.0.1:{port}",
    ]  # fmt: skip
    output = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, timeout=120, check=False).stdout
    report = json.loads(output)
    if report["statusCodeDistribution"] != {"OK": 4_000}:
        raise Failed(f"{report['statusCodeDistribution']} {report['errorDistribution']}")
    median = next(at["latency"] for at in report["latencyDistribution"] if at["percentage"] == 50)
    return f"4,000 calls, {report['rps']:.0f}/s, median {median / 1e6:.2f} ms"


def reqwest(base: str) -> str:
    cargo = program("cargo")
    target = target_dir() / "clients"
    run(cargo, "build", "--quiet", "--manifest-path", HERE / "reqwest/Cargo.toml", "--target-dir", target)
    return run(target / "debug/streams-by-reqwest", base, STREAMED_BYTES)


def browser(base: str) -> str:
    path = os.environ.get("BROWSER") or shutil.which("chromium")
    if not path:
        raise Skipped("no Chromium is installed")
    return run(program("node"), HERE / "browser.mjs", f"{base}/", node_modules("playwright-core"), path)


def clients() -> List[Tuple[str, Callable[[int], str]]]:
    """Their names, and what runs them against a port."""
    base = "http://127.0.0.1:{}".format
    web_socket = "ws://127.0.0.1:{}/ws".format
    return [
        ("curl, a length that is said", lambda port: curl(port, ())),
        ("curl, in chunks", lambda port: curl(port, ("-H", "Transfer-Encoding: chunked"))),
        ("curl, HTTP/2", lambda port: curl(port, ("--http2-prior-knowledge",))),
        ("websockets of Python", lambda port: python("sockets.py", web_socket(port))),
        ("ws of npm", lambda port: run(program("node"), HERE / "sockets.mjs", web_socket(port), node_modules("ws"))),
        ("interop client of grpc-go", interop),
        ("grpcurl", grpcurl),
        ("ghz", ghz),
        ("browser", lambda port: browser(base(port))),
        ("reqwest", lambda port: reqwest(base(port))),
        ("net/http of Go", lambda port: run(program("go"), "run", HERE / "streams.go", base(port), STREAMED_BYTES)),
        ("fetch of Node", lambda port: run(program("node"), HERE / "streams.mjs", base(port), STREAMED_BYTES)),
        ("httpx of Python", lambda port: python("streams_httpx.py", base(port), STREAMED_BYTES)),
    ]


@contextlib.contextmanager
def started(*command: object) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def answers(port: int, path: str) -> None:
    """Waits until something answers there with 200."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing answers at port {port}")


def attempt(client: Callable[[int], str], port: int) -> Tuple[str, Optional[str]]:
    """How it ended, and what the client says."""
    try:
        return "passed", client(port)
    except Skipped as why:
        return "skipped", str(why)
    except (Failed, subprocess.TimeoutExpired, ValueError, KeyError) as why:
        return "FAILED", str(why)


def main() -> int:
    build = ["cargo", "build", "--workspace"]
    if os.environ.get("RELEASE"):
        build.append("--release")
    if not os.environ.get("NATSWAY_BIN_DIR"):
        subprocess.run([*build, "--bins", "--examples"], cwd=ROOT, check=True)
    profile = "release" if os.environ.get("RELEASE") else "debug"
    binaries = Path(os.environ.get("NATSWAY_BIN_DIR") or target_dir() / profile)
    find = subprocess.run([sys.executable, ROOT / "scripts/find_broker.py"], stdout=subprocess.PIPE, text=True, check=True)
    broker, only = find.stdout.strip(), os.environ.get("ONLY", "").split(",")
    ports = {name: free_port() for name in ("broker", "gateway", "admin", "direct")}
    service = binaries / "examples/interop"
    url = f"nats://127.0.0.1:{ports['broker']}"
    failed = 0
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "routes.toml").write_text(ROUTES)
        stack.enter_context(started(broker, "-a", "127.0.0.1", "-p", ports["broker"]))
        stack.enter_context(started(service, f"127.0.0.1:{ports['direct']}"))
        stack.enter_context(
            started(
                binaries / "apiproxy", "--listen", f"127.0.0.1:{ports['gateway']}", "--admin-listen",
                f"127.0.0.1:{ports['admin']}", "--nats-url", url, "--static-routes", "--routes", directory / "routes.toml",
            )
        )  # fmt: skip
        answers(ports["admin"], "/readyz")
        stack.enter_context(started(service, url))
        answers(ports["gateway"], "/")
        answers(ports["direct"], "/")
        for name, client in clients():
            if not any(part in name for part in only):
                continue
            for way in ("direct", "gateway"):
                ended, said = attempt(client, ports[way])
                print(f"{name:32} {way:8} {ended:8} {said}", flush=True)
                failed += ended == "FAILED" and way == "gateway"
                if ended == "skipped":
                    break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
