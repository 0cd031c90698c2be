#!/usr/bin/env python3
"""Asks nginx, as a proxy, every case of apiproxy/tests/it/http1_cases.jsonl, and prints where it answers something else.

nginx comes from NATSWAY_NGINX or PATH (Debian: `apt-get install nginx`); without it this says so and ends with 3. With
--write the differences become the cases' `nginx`, a list of statuses; otherwise the exit code is 1 when they are others
than those there. nginx is one opinion: a case goes by its RFC. Standard library only.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Dict, List, Optional

from tooling import ROOT, say

CASES = ROOT / "apiproxy" / "tests" / "it" / "http1_cases.jsonl"
NO_NGINX = 3
# The case with the longest wait has a body that does not go on.
ANSWER_SECONDS = 4.0
MORE_SECONDS = 0.15
# The bounds that the test gives the gateway.
CONFIG = """
daemon off;
master_process off;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    client_header_buffer_size 512;
    large_client_header_buffers 4 2k;
    client_max_body_size 1000;
    client_body_timeout 1s;
    lingering_timeout 1s;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
        }}
    }}
}}
"""


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers 200 to whatever nginx lets through."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok")

    def __getattr__(self, name: str):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def statuses(port: int, case: Dict) -> List[int]:
    """What comes back for a case: the status of each answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as client:
        try:
            client.sendall(case["send"].replace("\u2026", "x" * case.get("fill", 0)).encode("latin-1"))
            if case.get("shut"):
                client.shutdown(socket.SHUT_WR)
        except OSError:
            # Refused before all was sent.
            pass
        return read(client, len(case["expect"]))


def read(client: socket.socket, expected: int) -> List[int]:
    received, found = b"", []
    ends = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < ends:
        client.settimeout(MORE_SECONDS if len(found) >= expected else max(0.01, ends - time.monotonic()))
        try:
            piece = client.recv(65536)
        except OSError:
            break
        if not piece:
            break
        received += piece
        found = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", received)]
    return found


def expected(case: Dict) -> List[int]:
    return [int(answer.split()[0]) for answer in case["expect"]]


def await_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    raise SystemExit("compare_http1: nginx does not listen; its own words are above")


def ask_all(nginx: str, cases: List[Dict]) -> List[List[int]]:
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    upstream.daemon_threads = True
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        port = free_port()
        config = Path(home) / "nginx.conf"
        config.write_text(CONFIG.format(home=home, port=port, upstream=upstream.server_port), encoding="utf-8")
        process = subprocess.Popen([nginx, "-p", home, "-c", str(config), "-e", f"{home}/error.log"])
        try:
            await_port(port, process)
            return [statuses(port, case) for case in cases]
        finally:
            process.terminate()
            process.wait()


def with_answer(case: Dict, found: List[int]) -> Dict:
    """A case with what nginx answers, if that is something else."""
    case = {key: value for key, value in case.items() if key != "nginx"}
    return case if found == expected(case) else {**case, "nginx": found}


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the differences into the file of cases")
    options = parser.parse_args(arguments)
    nginx = os.environ.get("NATSWAY_NGINX") or shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        say("*** SKIPPED: nginx is not in PATH: install it (Debian: apt-get install nginx), or name it in NATSWAY_NGINX")
        return NO_NGINX
    before = [json.loads(line) for line in CASES.read_text(encoding="ascii").splitlines()]
    after = [with_answer(case, found) for case, found in zip(before, ask_all(nginx, before))]
    for case in after:
        if "nginx" in case:
            print(f"{case['rfc']:>18}  {case['name']}: {expected(case)}, nginx {case['nginx']}")
    differ = sum("nginx" in case for case in after)
    print(f"{len(after)} cases, {differ} that nginx answers otherwise")
    if options.write:
        CASES.write_text("".join(json.dumps(case) + "\n" for case in after), encoding="ascii")
        return 0
    return int(after != before)


if __name__ == "__main__":
    sys.exit(main())
