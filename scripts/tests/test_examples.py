"""What people copy: each example's files belong together, and one whose toolchain is here is run with its one command.

`make prove-apps` installs and runs the others.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest
import urllib.error
import urllib.request

from tests.test_run import environment, free_ports
from tooling import ROOT, target_dir

EXAMPLES = ROOT / "examples"
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))
UP_SECONDS = 90


class Files(unittest.TestCase):
    def test_each_route_leads_to_the_subject_of_its_sidecar(self):
        commands = sorted(EXAMPLES.glob("*/sidecar.sh"))
        self.assertGreater(len(commands), 3)
        for command in commands:
            text = command.read_text(encoding="utf-8")
            routes = (command.parent / "routes.toml").read_text(encoding="utf-8")
            subject = re.search(r"--subject (\S+)", text)[1]
            self.assertIn(f'subject = "{subject}"', routes, command)
            self.assertTrue(os.access(command, os.X_OK), command)
            subprocess.run(["sh", "-n", str(command)], check=True)

    def test_each_example_is_listed(self):
        listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
        for directory in EXAMPLES.iterdir():
            if directory.is_dir() and not directory.name.startswith("_"):
                self.assertIn(f"| [{directory.name}]({directory.name}) |", listed)

    def test_python_examples_are_python(self):
        for path in [*EXAMPLES.glob("*/*.py"), *(ROOT / "proofs" / "apps").glob("*.py")]:
            compile(path.read_text(encoding="utf-8"), str(path), "exec")


class Go(unittest.TestCase):
    """The one whose toolchain installs nothing: its module has no dependencies."""

    def test_it_is_up_with_one_command_and_down_with_another(self):
        if shutil.which("go") is None:
            self.skipTest("no go")
        (port,) = free_ports(1)
        command = [sys.executable, str(EXAMPLES / "run.py"), "go", "--port", str(port)]
        variables = environment(NATSWAY_BIN_DIR=str(ROOT / target_dir() / "debug"))
        # It says what it does on its own output, which a failure shows.
        with subprocess.Popen(command, env=variables, cwd=ROOT) as process:
            try:
                answer = self.await_answer(process, f"http://127.0.0.1:{port}/")
                self.assertEqual(answer["host"], f"127.0.0.1:{port}")
                self.assertEqual(answer["client"], "127.0.0.1")
                with HTTP.open(f"http://127.0.0.1:{port}/events", timeout=30) as events:
                    self.assertEqual(events.read().count(b"data: tick\n\n"), 5)
            finally:
                process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(60), 0)

    def await_answer(self, process, address):
        end = time.monotonic() + UP_SECONDS
        while time.monotonic() < end and process.poll() is None:
            try:
                with HTTP.open(address, timeout=5) as response:
                    return json.load(response)
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        self.fail("the example was not up in time")


if __name__ == "__main__":
    unittest.main()
