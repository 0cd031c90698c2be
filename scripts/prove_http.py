#!/usr/bin/env python3
"""Has real clients upload what the gateway refuses, and asks nginx what it makes of our cases of HTTP/1.

Go's and Node's clients send 5 MB to a route that takes 64 KiB, a connection each. Every one must read its 413: a socket
that is closed too early resets the connection, and the client sees a broken pipe. Prints a line of JSON for each client;
a client that is not on this machine is named and skipped. Ends with 1 when an answer was lost. Standard library only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Dict, List

import compare_http1
import permissions
from find_broker import find_broker
from stage import Stage
from tooling import ROOT, ToolError, say

RUNS = 40
BODY_BYTES = 5_000_000
CLIENTS = ROOT / "scripts" / "http_clients"
CLIENT_SECONDS = 300
ROUTES = """
[[route]]
name = "upload"
path = "/{*rest}"
target = [{ version = "blue", subject = "svc.upload.blue" }]
"""


def commands(url: str) -> Dict[str, List[str]]:
    """How each client is run, by the program that it needs."""
    arguments = [url, str(RUNS), str(BODY_BYTES)]
    return {
        "go": ["go", "run", str(CLIENTS / "main.go"), *arguments],
        "node": ["node", str(CLIENTS / "clients.mjs"), *arguments],
    }


def upload(url: str) -> int:
    """Runs every client that is there; gives how many answers were lost."""
    lost = 0
    for program, command in commands(url).items():
        if shutil.which(program) is None:
            say(f"*** SKIPPED: no {program} in PATH, so its clients are not tried")
            continue
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=CLIENT_SECONDS)
        for line in done.stdout.splitlines():
            outcomes = json.loads(line)["outcomes"]
            lost += sum(outcomes.values()) - outcomes.get("413", 0)
            print(line, flush=True)
    return lost


def main() -> int:
    try:
        broker = find_broker()
    except ToolError as error:
        say(f"prove_http: {error}")
        return 2
    with Stage(broker, permissions.PERMISSIONS.read_text(encoding="utf-8")) as stage:
        routes = stage.directory / "routes.toml"
        routes.write_text(ROUTES, encoding="utf-8")
        listen = ("--listen", f"127.0.0.1:{stage.listen}", "--admin-listen", f"127.0.0.1:{stage.admin}")
        stage.start("gateway", "apiproxy", "--routes", str(routes), "--static-routes", *listen)
        stage.until("the gateway is ready", lambda: "natsway_client_connections" in stage.metrics())
        lost = upload(f"http://127.0.0.1:{stage.listen}/")
    print(json.dumps({"proof": "http", "body_bytes": BODY_BYTES, "runs": RUNS, "lost": lost}))
    compared = compare_http1.main([])
    return int(lost > 0 or compared == 1)


if __name__ == "__main__":
    sys.exit(main())
