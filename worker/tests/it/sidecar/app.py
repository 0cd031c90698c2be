"""An app that knows nothing of us: HTTP/1.1 by the standard library, at the port that PORT says.

BEHAVIOUR is a directory in which a test makes files: `unhealthy` has /health answer 503, `stubborn` has SIGTERM
ignored, and each SIGHUP leaves `hup`.
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

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


def terminate(*_):
    print("app: told to end", file=sys.stderr, flush=True)
    if not (BEHAVIOUR / "stubborn").exists():
        os._exit(7)


signal.signal(signal.SIGTERM, terminate)
signal.signal(signal.SIGHUP, lambda *_: (BEHAVIOUR / "hup").touch())
ThreadingHTTPServer.request_queue_size = 128
server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App)
print("app: listening", flush=True)
server.serve_forever()
