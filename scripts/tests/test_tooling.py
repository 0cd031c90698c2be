"""The broker and the nats command line are found, installed once, or refused with a reason."""

import os
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from find_broker import pinned_version
from find_h2spec import H2SPEC
from find_nats_cli import NATS_CLI
from tooling import ROOT, parse_version, show_version

SCRIPTS = ROOT / "scripts"
GO_TOOLS = (NATS_CLI, H2SPEC)


class Versions(unittest.TestCase):
    def test_a_version_is_read_from_what_programs_print(self):
        for text, version in (
            ("nats-server: v2.15.1", (2, 15, 1)),
            ("nats-server: v2.9\n", (2, 9, 0)),
            ("2.12.0-RC.2", (2, 12, 0)),
            ("nothing", None),
        ):
            with self.subTest(text):
                self.assertEqual(parse_version(text), version)

    def test_versions_compare_as_numbers(self):
        self.assertGreater(parse_version("2.11.0"), parse_version("2.9.25"))
        self.assertEqual(show_version((2, 11, 0)), "2.11.0")

    def test_the_pins_can_be_read(self):
        self.assertGreaterEqual(pinned_version(), (2, 11, 0))
        for tool in GO_TOOLS:
            go_mod = (tool.module / "go.mod").read_text(encoding="utf-8")
            self.assertRegex(tool.pinned_version(go_mod), r"^v\d+\.\d+\.\d+$")


class FindBroker(unittest.TestCase):
    """Runs the script as the tests and `make run` do, with programs that only tell a version."""

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def program(self, prints):
        path = Path(self.directory.name) / "nats-server"
        path.write_text(f"#!/bin/sh\necho '{prints}'\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def find(self, **environment):
        kept = {key: value for key, value in os.environ.items() if key != "NATSWAY_NATS_SERVER"}
        script = [sys.executable, str(SCRIPTS / "find_broker.py")]
        return subprocess.run(script, env={**kept, **environment}, capture_output=True, text=True, check=False)

    def test_a_named_broker_is_used(self):
        path = self.program("nats-server: v2.11.0")
        found = self.find(NATSWAY_NATS_SERVER=path)
        self.assertEqual((found.returncode, found.stdout), (0, f"{path}\n"))

    def test_a_named_broker_that_will_not_do_is_an_error(self):
        for prints in ("nats-server: v2.10.9", "somebody else 9.9"):
            with self.subTest(prints):
                found = self.find(NATSWAY_NATS_SERVER=self.program(prints))
                self.assertEqual((found.returncode, found.stdout), (2, ""))
                self.assertIn("NATSWAY_NATS_SERVER=", found.stderr)
        self.assertEqual(self.find(NATSWAY_NATS_SERVER="/no/such/file").returncode, 2)

    def test_a_broker_in_path_is_used_unless_it_is_too_old(self):
        path = self.program("nats-server: v2.11.0")
        search = f"{self.directory.name}{os.pathsep}{os.environ['PATH']}"
        self.assertEqual(self.find(PATH=search).stdout, f"{path}\n")
        self.program("nats-server: v2.9.1")
        found = self.find(PATH=search)
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertNotEqual(found.stdout, f"{path}\n")
        self.assertIn("version 2.9.1 is too old", found.stderr)


class FindGoTools(unittest.TestCase):
    def test_a_missing_go_is_told_apart(self):
        for script in ("find_nats_cli.py", "find_h2spec.py"):
            with self.subTest(script), tempfile.TemporaryDirectory() as empty:
                environment = {"PATH": empty, "CARGO_TARGET_DIR": empty}
                command = [sys.executable, str(SCRIPTS / script)]
                found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                self.assertEqual(found.returncode, 3)
                self.assertIn("go is not in PATH", found.stderr)

    def test_a_program_that_is_named_must_be_one(self):
        with tempfile.TemporaryDirectory() as empty:
            for tool in GO_TOOLS:
                with self.subTest(tool.name):
                    script = [sys.executable, str(SCRIPTS / f"find_{tool.directory.replace('-', '_')}.py")]
                    environment = {**os.environ, tool.variable: f"{empty}/none"}
                    found = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
                    self.assertEqual(found.returncode, 2)
                    self.assertIn(f"{tool.variable}={empty}/none: expected the path of a program", found.stderr)


class FindPeer(unittest.TestCase):
    def find(self, *arguments, **environment):
        script = [sys.executable, str(SCRIPTS / "find_peer.py"), *arguments]
        return subprocess.run(script, env={**os.environ, **environment}, capture_output=True, text=True, check=False)

    def test_a_peer_that_is_not_installed_says_how_to_get_it(self):
        with tempfile.TemporaryDirectory() as empty:
            found = self.find("--installed", "fabio", PATH=empty, CARGO_TARGET_DIR=empty)
        self.assertEqual((found.returncode, found.stdout), (2, ""))
        self.assertIn("fabio is not installed: `make peers` installs v", found.stderr)

    def test_a_peer_in_path_is_used(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "consul"
            path.write_text("#!/bin/sh\n", encoding="utf-8")
            path.chmod(0o755)
            found = self.find("--installed", "consul", PATH=directory)
        self.assertEqual((found.returncode, found.stdout), (0, f"{path}\n"))
