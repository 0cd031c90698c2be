"""An app that knows nothing of us: HTTP/1.1 by the standard library, at the port that PORT says.

BEHAVIOUR is a directory in which a test makes files: `unhealthy` has /health answer 503, `stubborn` has SIGTERM
ignored, `thorough` has it take its time to end and leave `finished`, and each SIGHUP leaves `hup`. Its process stands
in `pid`.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BEHAVIOUR = Path(os.environ["BEHAVIOUR"])


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length).decode()
        target = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        status = 200
        if target.path == "/health" and (BEHAVIOUR / "unhealthy").exists():
            status = 503
        if target.path == "/slow":
            (BEHAVIOUR / "began").touch()
            time.sleep(int(query["ms"]) / 1000)
        if target.path == "/trailers":
            return self.trailers(int(query["bytes"]))
        if target.path == "/exit":
            os._exit(int(query["code"]))
        seen = {
            "pid": os.getpid(),
            "method": self.command,
            "path": self.path,
            "body": body,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "variables": [name for name in os.environ if name.startswith("NATSWAY_")],
        }
        text = json.dumps(seen).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def trailers(self, size):
        """A body in chunks, and behind it what was announced."""
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.send_header("trailer", "x-checksum")
        self.end_headers()
        self.wfile.write(f"{size:x}\r\n".encode() + b"x" * size + b"\r\n")
        self.wfile.write(b"0\r\nx-checksum: right\r\n\r\n")

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


def terminate(*_):
    print("app: told to end", file=sys.stderr, flush=True)
    if (BEHAVIOUR / "stubborn").exists():
        return
    if (BEHAVIOUR / "thorough").exists():
        time.sleep(1)
        (BEHAVIOUR / "finished").touch()
    os._exit(7)


signal.signal(signal.SIGTERM, terminate)
signal.signal(signal.SIGHUP, lambda *_: (BEHAVIOUR / "hup").touch())
ThreadingHTTPServer.request_queue_size = 128
(BEHAVIOUR / "pid").write_text(str(os.getpid()))
server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App)
print("app: listening", flush=True)
server.serve_forever()
