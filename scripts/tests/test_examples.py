"""What people copy: each example's files belong together, and those that install nothing are run with their one command.

`make prove-apps` installs and runs the others.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
import urllib.error
import urllib.request

from tests.test_run import environment, free_ports
from tooling import ROOT, target_dir

EXAMPLES = ROOT / "examples"
BINARIES = ROOT / target_dir() / "debug"
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


class Routes(unittest.TestCase):
    """A gateway takes each route, and an address of it leads to the example's subject."""

    def test_each_is_one_that_a_gateway_serves(self):
        apiproxy = BINARIES / "apiproxy"
        if not apiproxy.exists():
            self.skipTest("apiproxy is not built")
        files = sorted(EXAMPLES.glob("*/routes.toml"))
        self.assertGreater(len(files), 5)
        for routes in files:
            checked = subprocess.run(
                [str(apiproxy), "--check", "--routes", str(routes)], env=environment(), capture_output=True, text=True, check=False)
            self.assertEqual(checked.returncode, 0, f"{routes}: {checked.stdout}{checked.stderr}")


class Commands(unittest.TestCase):
    """Those that need no more than what is here."""

    def run_example(self, name, port=None):
        command = [sys.executable, str(EXAMPLES / "run.py"), name] + (["--port", str(port)] if port else [])
        # It says what it does on its own output, which a failure shows.
        return subprocess.Popen(
            command, env=environment(NATSWAY_BIN_DIR=str(BINARIES)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ends(self, process):
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(60), 0)

    def built(self, *programs):
        for program in programs:
            if not (BINARIES / "examples" / program).exists():
                self.skipTest(f"{program} is not built: cargo build --examples")

    def test_go_is_up_with_one_command_and_down_with_another(self):
        if shutil.which("go") is None:
            self.skipTest("no go")
        (port,) = free_ports(1)
        process = self.run_example("go", port)
        self.drain(process)
        try:
            answer = self.await_answer(process, f"http://127.0.0.1:{port}/")
            self.assertEqual(answer["host"], f"127.0.0.1:{port}")
            self.assertEqual(answer["client"], "127.0.0.1")
            with HTTP.open(f"http://127.0.0.1:{port}/events", timeout=30) as events:
                self.assertEqual(events.read().count(b"data: tick\n\n"), 5)
        finally:
            self.ends(process)

    def test_axum_keeps_what_is_written(self):
        self.built("axum")
        (port,) = free_ports(1)
        process = self.run_example("axum", port)
        self.drain(process)
        try:
            self.assertEqual(self.await_answer(process, f"http://127.0.0.1:{port}/todos/"), {})
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/todos/1", data=b'"buy milk"', headers={"content-type": "application/json"}, method="PUT")
            HTTP.open(request, timeout=30).close()
            self.assertEqual(self.await_answer(process, f"http://127.0.0.1:{port}/todos/1"), "buy milk")
        finally:
            self.ends(process)

    def test_two_groups_ends_by_itself(self):
        self.built("two-groups")
        with self.run_example("two-groups") as process:
            told, _ = process.communicate(timeout=UP_SECONDS)
        self.assertEqual(process.returncode, 0, told)
        self.assertIn("billing: 3 members, 1000 messages", told)
        self.assertIn("audit: 2 members, 1000 messages", told)

    def test_signal_has_both_run(self):
        self.built("signal-publisher", "signal-subscriber")
        process = self.run_example("signal")
        told = self.drain(process)
        try:
            end = time.monotonic() + UP_SECONDS
            while not any(", by " in line for line in list(told)):
                self.assertIsNone(process.poll(), told)
                self.assertLess(time.monotonic(), end, told)
                time.sleep(0.1)
        finally:
            self.ends(process)

    def drain(self, process):
        """Reads what it says, so that it is never held up."""
        told = []

        def read():
            with process.stdout:
                for line in process.stdout:
                    told.append(line)

        threading.Thread(target=read, daemon=True).start()
        self.addCleanup(lambda: print("".join(told[-40:]), file=sys.stderr) if process.returncode else None)
        return told

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
