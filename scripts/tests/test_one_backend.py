"""`examples/one-backend`: the same backend in four languages answers whatever clients send, as they ask.

A language is skipped, by name, where it or its client of NATS is not there. Go fetches its client by itself.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

from find_broker import find_broker
from find_nats_cli import find_nats_cli
from go_tool import NoGo
from tests.test_run import environment, free_ports
from tooling import ROOT, target_dir

EXAMPLE = ROOT / "examples" / "one-backend"
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))
UP_SECONDS = 60
FORM = "application/x-www-form-urlencoded"
MULTIPART = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nann\r\n--x--\r\n'


def ask(address, body=None, **headers):
    """The status, the type and the body of an answer."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(address, data=body, headers=fields)
    try:
        with HTTP.open(request, timeout=20) as response:
            return response.status, response.headers["content-type"], response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read()


class OneBackend(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        build = [os.environ.get("CARGO", "cargo"), "build", "--quiet", "--workspace", "--bins"]
        if "NATSWAY_BIN_DIR" not in os.environ:
            subprocess.run(build, cwd=ROOT, check=True)
        programs = Path(os.environ.get("NATSWAY_BIN_DIR", ROOT / target_dir() / "debug"))
        broker, listen, admin = free_ports(3)
        cls.variables = environment(NATS_URL=f"nats://127.0.0.1:{broker}")
        cls.start([str(find_broker()), "--addr", "127.0.0.1", "--port", str(broker)])
        gateway = [str(programs / "apiproxy"), "--static-routes", "--routes", str(EXAMPLE / "routes.toml")]
        cls.start([*gateway, "--listen", f"127.0.0.1:{listen}", "--admin-listen", f"127.0.0.1:{admin}"])
        cls.address = f"http://127.0.0.1:{listen}/hello"

    @classmethod
    def start(cls, command, **options):
        """A program that ends with the class."""
        process = subprocess.Popen(command, env=cls.variables, **options)
        cls.addClassCleanup(cls.end, process)
        return process

    @staticmethod
    def end(process):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def serve(self, command, **options):
        """Runs a backend and asks it in every way."""
        process = self.start(command, **options)
        try:
            end = time.monotonic() + UP_SECONDS
            while time.monotonic() < end and process.poll() is None:
                try:
                    if ask(f"{self.address}?name=ann")[0] == 200:
                        break
                except OSError:
                    pass
                time.sleep(0.1)
            self.answers()
        finally:
            self.end(process)

    def answers(self):
        ann = {"hello": "ann"}
        for body, content_type, query in [
            (None, None, "?name=ann"),
            (b"name=ann", FORM, ""),
            (MULTIPART, "multipart/form-data; boundary=x", ""),
            (b'{"name": "ann"}', "application/json", "?name=eve"),
            (b"\x81\xa4name\xa3ann", "application/msgpack", ""),
            (b"\xa1\x64name\x63ann", "application/cbor", ""),
        ]:
            headers = {"content_type": content_type} if content_type else {}
            status, kind, answer = ask(self.address + query, body, **headers)
            self.assertEqual((status, kind, json.loads(answer)), (200, "application/json", ann), content_type)
        for accept, expected in [
            ("application/msgpack", b"\x81\xa5hello\xa3ann"),
            ("application/cbor", b"\xa1\x65hello\x63ann"),
            (FORM, b"hello=ann"),
            ("text/plain;q=0.9, image/png", b'{"hello":"ann"}'),
        ]:
            status, kind, answer = ask(f"{self.address}?name=ann", accept=accept)
            self.assertEqual((status, answer), (200, expected), accept)
            self.assertTrue(kind.startswith(accept.split(";")[0]), kind)
        status, kind, answer = ask(f"{self.address}?name=ann&callback=show.it", accept="*/*")
        self.assertEqual((status, kind), (200, "text/javascript; charset=utf-8"))
        self.assertTrue(answer.startswith(b"/**/show.it({") and answer.endswith(b"});"), answer)
        status, _, answer = ask(self.address)
        self.assertEqual((status, json.loads(answer)), (400, {"error": "who are you?"}))
        odd = 'a"b\\c'
        status, _, answer = ask(self.address, json.dumps({"name": odd}).encode(), content_type="application/json")
        self.assertEqual((status, json.loads(answer)), (200, {"hello": odd}))
        self.assertEqual(ask(self.address, accept="image/png")[0], 406)
        self.assertEqual(ask(f"{self.address}?callback=a()", accept="*/*")[0], 400)

    def test_python(self):
        found = subprocess.run([sys.executable, "-c", "import nats"], capture_output=True, check=False)
        if found.returncode != 0:
            self.skipTest("SKIPPED: python has no nats-py")
        self.serve([sys.executable, "-B", str(EXAMPLE / "hello.py")])

    def test_node(self):
        node = shutil.which("node")
        if node is None:
            self.skipTest("SKIPPED: no node")
        found = subprocess.run([node, "-e", 'require("nats")'], cwd=EXAMPLE, capture_output=True, check=False)
        if found.returncode != 0:
            self.skipTest("SKIPPED: node has no package nats (NODE_PATH says where packages are)")
        self.serve([node, str(EXAMPLE / "hello.js")])

    def test_go(self):
        if shutil.which("go") is None:
            self.skipTest("SKIPPED: no go")
        with tempfile.TemporaryDirectory() as home:
            program = str(Path(home) / "hello")
            built = subprocess.run(["go", "build", "-o", program, "."], cwd=EXAMPLE, capture_output=True, text=True, check=False)
            if built.returncode != 0 and "dial tcp" in built.stderr:
                self.skipTest("SKIPPED: go cannot fetch nats.go")
            self.assertEqual(built.returncode, 0, built.stderr)
            self.serve([program])

    def test_shell(self):
        try:
            nats = find_nats_cli()
        except NoGo as error:
            self.skipTest(f"SKIPPED: {error}")
        command = [str(nats), "reply", "--queue", "q", "svc.hello.v1", "--command", "sh hello.sh"]
        self.serve(command, cwd=EXAMPLE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    unittest.main()
