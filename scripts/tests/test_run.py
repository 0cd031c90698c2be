"""`make run` on real processes and free ports: it comes up, answers, and leaves nothing behind however it ends.

The programs are compiled for development, because the tests of the workspace need that build anyway.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path

from demo_config import Address, port_problem
from tooling import ROOT

# Compiling everything is in it.
UP_SECONDS = 900
DOWN_SECONDS = 60


def free_ports(count):
    """Ports below the range that outgoing connections use."""
    ports = random.sample(range(12_000, 32_000), 200)
    return [port for port in ports if port_problem(Address("127.0.0.1", port)) is None][:count]


def runs(pid):
    """Whether a process is there and no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text(encoding="utf-8").rpartition(") ")[2][0] != "Z"
        except OSError:
            return False
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(listed.strip()) and not listed.startswith("Z")


FLAGS = ("--listen", "--admin-listen", "--nats-listen", "--nats-monitor")


def at(ports):
    """The arguments for these ports, in the order of FLAGS."""
    return [part for flag, port in zip(FLAGS, ports) for part in (flag, f"127.0.0.1:{port}")]


def environment(**changes):
    """The environment without the settings that a developer may have exported."""
    ours = ("NATS_URL", "NATSWAY_LISTEN", "NATSWAY_ADMIN_LISTEN")
    return {**{key: value for key, value in os.environ.items() if key not in ours}, **changes}


class Run:
    """One `make run`, with its output collected."""

    def __init__(self, *arguments, ports=4, **changes):
        self.ports = free_ports(ports)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "run.py"), "--profile", "dev", *at(self.ports), *arguments],
            env=environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def output(self):
        return "\n".join(self.lines)

    def await_line(self, text):
        end = time.monotonic() + UP_SECONDS
        while not any(text in line for line in list(self.lines)):
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"no line with {text!r}:\n{self.output()}")
            time.sleep(0.05)

    def pids(self):
        return {name: int(pid) for name, pid in re.findall(r"^([\w-]+) +\| started, pid (\d+)$", self.output(), re.M)}

    def wait(self):
        code = self.process.wait(UP_SECONDS)
        self.reader.join(DOWN_SECONDS)
        self.process.stdout.close()
        return code

    def end(self):
        """For a test that failed half-way."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(DOWN_SECONDS)


class Runs(unittest.TestCase):
    def run_demo(self, *arguments, **changes):
        run = Run(*arguments, **changes)
        self.addCleanup(run.end)
        return run

    def assert_nothing_left(self, run):
        end = time.monotonic() + DOWN_SECONDS
        while left := self.left_of(run):
            self.assertLess(time.monotonic(), end, f"still there: {left}\n{run.output()}")
            time.sleep(0.05)

    def left_of(self, run):
        """The processes that still run and the ports that are still used: a killed process can be gone before them."""
        processes = [f"{name} (pid {pid})" for name, pid in run.pids().items() if runs(pid)]
        ports = [f"port {port}" for port in run.ports if port_problem(Address("127.0.0.1", port))]
        return processes + ports

    def test_check_answers_three_requests_and_goes_down(self):
        run = self.run_demo("--check", "--workers", "3")
        self.assertEqual(run.wait(), 0, run.output())
        self.assertIn('/sum?n=1&n=2&n=3 -> 200 {"sum":6}', run.output())
        self.assertEqual(set(run.pids()), {"broker", "gateway", "worker-1", "worker-2", "worker-3"})
        self.assert_nothing_left(run)

    def test_ctrl_c_ends_everything(self):
        run = self.run_demo()
        run.await_line("Ctrl-C stops everything")
        self.assertIn(f"curl 'http://127.0.0.1:{run.ports[0]}/version'", run.output())
        run.process.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(), 0, run.output())
        self.assertNotIn("killed", run.output())
        self.assertIn("Server Exiting", run.output(), "the broker leaves in good order, after the others")
        self.assert_nothing_left(run)

    def test_a_child_that_dies_ends_everything_and_is_named(self):
        run = self.run_demo()
        run.await_line("Ctrl-C stops everything")
        os.kill(run.pids()["worker-2"], signal.SIGKILL)
        self.assertEqual(run.wait(), 1, run.output())
        self.assertRegex(run.output(), r"run: worker-2 \(pid \d+\) was killed by SIGKILL; its last lines:")
        self.assert_nothing_left(run)

    @unittest.skipUnless(sys.platform == "linux", "only Linux tells a child that its parent was killed")
    def test_a_killed_run_takes_everything_along(self):
        run = self.run_demo()
        run.await_line("Ctrl-C stops everything")
        run.process.kill()
        run.wait()
        self.assert_nothing_left(run)

    def test_a_running_broker_is_used_and_left_alone(self):
        first = self.run_demo()
        first.await_line("Ctrl-C stops everything")
        second = free_ports(2)
        check = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "run.py"), "--profile", "dev", "--check"],
            env=environment(
                NATSWAY_LISTEN=f"127.0.0.1:{second[0]}",
                NATSWAY_ADMIN_LISTEN=f"127.0.0.1:{second[1]}",
                NATS_URL=f"nats://127.0.0.1:{first.ports[2]}",
            ),
            capture_output=True,
            text=True,
            timeout=UP_SECONDS,
            check=False,
        )
        self.assertEqual(check.returncode, 0, check.stdout + check.stderr)
        self.assertNotIn("broker ", check.stdout)
        self.assertTrue(runs(first.pids()["broker"]))
        first.process.terminate()
        self.assertEqual(first.wait(), 0, first.output())
        self.assert_nothing_left(first)


    @unittest.skipUnless(Path("/proc/self/cmdline").exists(), "command lines are read from /proc")
    def test_a_brokers_password_is_on_no_command_line_and_in_no_output(self):
        first = self.run_demo()
        first.await_line("Ctrl-C stops everything")
        # A broker without users takes any.
        url = f"nats://somebody:s3cr%2Ft@127.0.0.1:{first.ports[2]}"
        second = self.run_demo(ports=2, NATS_URL=url)
        second.await_line("Ctrl-C stops everything")
        for name, pid in second.pids().items():
            line = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
            self.assertNotIn("s3cr", line, name)
            self.assertIn(url, Path(f"/proc/{pid}/environ").read_text(encoding="utf-8"), name)
        self.assertIn(f"nats://***@127.0.0.1:{first.ports[2]}", second.output())
        for run in (second, first):
            run.process.terminate()
            self.assertEqual(run.wait(), 0, run.output())
            self.assertNotIn("s3cr", run.output())


class Refusals(unittest.TestCase):
    """What is wrong is said before anything is built or started."""

    def refused(self, *arguments, **changes):
        command = [sys.executable, str(ROOT / "scripts" / "run.py"), *arguments]
        refused = subprocess.run(
            command, env=environment(**changes), capture_output=True, text=True, timeout=DOWN_SECONDS, check=False
        )
        self.assertEqual((refused.returncode, refused.stdout), (2, ""))
        return refused.stderr

    def test_a_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            text = self.refused("--listen", f"127.0.0.1:{port}")
        self.assertIn(f"run: 127.0.0.1:{port}, where the gateway should listen, is in use", text)

    def test_a_missing_cargo(self):
        self.assertIn("cargo is not in PATH: install Rust", self.refused(CARGO="/no/such/cargo"))

    def test_a_broker_that_will_not_do(self):
        # A program that is there, and is no nats-server at all.
        text = self.refused(*at(free_ports(4)), NATSWAY_NATS_SERVER="/bin/sh")
        self.assertIn("NATSWAY_NATS_SERVER=/bin/sh: expected", text)

    def test_a_broker_that_does_not_answer(self):
        text = self.refused(*at(free_ports(2)), NATS_URL="nats://127.0.0.1:1")
        self.assertIn("no broker answers there", text)
