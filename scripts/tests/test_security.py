"""The secured deployment is what its files say; what permissions allow is proven by `make prove-security`."""

import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import accounts
from find_broker import find_broker
from stage import ROLES, SHIPPED, free_port, variable
from tooling import ROOT


class Deployment(unittest.TestCase):
    @unittest.skipIf(shutil.which("openssl") is None, "openssl is not installed: no certificates are made")
    def test_the_broker_takes_the_secured_configuration_and_what_is_made_for_it(self):
        folder = SHIPPED
        with tempfile.TemporaryDirectory(prefix="natsway-secrets-") as home:
            made = Path(home, "secrets")
            maker = [str(folder / "make-secrets.sh"), str(made), "broker.example,10.1.2.3"]
            subprocess.run(maker, capture_output=True, text=True, check=True)
            self.assertEqual(made.stat().st_mode & 0o777, 0o700)
            self.assertNotIn("PASSWORD", (made / "compose.env").read_text(encoding="utf-8"), "the shell sees none")
            passwords = dict(line.split("=", 1) for line in (made / "passwords.env").read_text(encoding="utf-8").splitlines())
            users = {user.name for user in accounts.users()}
            self.assertLessEqual(set(ROLES), users)
            self.assertEqual(set(passwords), {variable(user) for user in users})
            self.assertEqual(len(set(passwords.values())), len(users))
            for user in users:
                own = (made / f"{user}.password").read_text(encoding="utf-8")
                self.assertEqual(own, passwords[variable(user)] + "\n")
            # Where the container has them.
            for name in ("nats.conf", "users.conf", "permissions.conf"):
                shutil.copy(folder / name, home)
            config = Path(home, "secured.conf")
            config.write_text((folder / "secured.conf").read_text(encoding="utf-8").replace("/tls/", f"{made}/"), encoding="utf-8")
            done = subprocess.run(
                [str(find_broker()), "--config", str(config), "-t"],
                env={**os.environ, "SERVER_NAME": "nats", **passwords}, capture_output=True, text=True, check=False,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            for name in ("nats", "localhost", "broker.example"):
                self.assertIn("does match", shown(made / "broker.pem", "-checkhost", name))
            for address in ("127.0.0.1", "10.1.2.3"):
                self.assertIn("does match", shown(made / "broker.pem", "-checkip", address))
            self.assertIn("does NOT match", shown(made / "broker.pem", "-checkhost", "elsewhere.example"))
            # Again: another certificate, by the same authority, and what was handed out stays.
            kept = {name: (made / name).read_bytes() for name in ("authority.key", "authority.pem", "compose.env", "passwords.env")}
            first = (made / "broker.pem").read_bytes()
            subprocess.run(maker, capture_output=True, text=True, check=True)
            self.assertNotEqual((made / "broker.pem").read_bytes(), first)
            self.assertEqual({name: (made / name).read_bytes() for name in kept}, kept)
            # Passwords that an earlier version put into compose.env are kept, and no longer there.
            (made / "worker.password").unlink()
            with (made / "compose.env").open("a", encoding="utf-8") as file:
                file.write("NATSWAY_WORKER_PASSWORD=pold\n")
            subprocess.run(maker, capture_output=True, text=True, check=True)
            self.assertEqual((made / "worker.password").read_text(encoding="utf-8"), "pold\n")
            self.assertIn("NATSWAY_WORKER_PASSWORD=pold\n", (made / "passwords.env").read_text(encoding="utf-8"))
            self.assertEqual((made / "compose.env").read_bytes(), kept["compose.env"])
            (made / "authority.key").unlink()
            refused = subprocess.run(maker, capture_output=True, text=True, check=False)
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn("has no authority.key", refused.stderr)

    def test_the_compose_file_hands_each_program_the_user_of_its_role(self):
        secured = (ROOT / "docker-compose.secured.yml").read_text(encoding="utf-8")
        plain = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        services = re.findall(r"^  (\w[\w-]*):\n((?:    .*\n|\n|  #.*\n)*)", secured.split("\nservices:\n")[1], re.MULTILINE)
        self.assertGreater(len(services), 5)
        for name, body in services:
            if name not in ("operator", "setup", "setup-shipper"):
                self.assertRegex(plain, rf"(?m)^  {name}:", f"{name} is in docker-compose.yml")
            user = re.search(r"NATS_USER: (\w+)", body)
            if user:
                self.assertIn(user.group(1), ROLES)
                self.assertIn(f"NATS_PASSWORD_FILE: /run/secrets/{user.group(1)}\n", body)
                self.assertIn(f"    secrets: [{user.group(1)}]\n", body)
                self.assertIn(f"  {user.group(1)}: {{ file: ", secured)
        # Whoever may inspect containers sees no password: none is in a variable of one.
        self.assertNotRegex(secured, r"PASSWORD: |\$\{\w+_PASSWORD")

    def test_the_monitoring_pages_are_for_the_brokers_own_container(self):
        text = (SHIPPED / "secured.conf").read_text(encoding="utf-8")
        monitor, client = free_port(), free_port()
        with tempfile.TemporaryDirectory(prefix="natsway-monitor-") as home:
            lines = re.search(r"(?m)^http: .*$", text)
            self.assertIsNotNone(lines, "secured.conf says nothing of them")
            plain = (SHIPPED / "nats.conf").read_text(encoding="utf-8")
            plain = plain.replace("4222", str(client)).replace("8222", str(monitor)).replace("/jetstream", f"{home}/js")
            config = Path(home, "server.conf")
            config.write_text(plain + lines.group(0).replace("8222", str(monitor)) + "\n", encoding="utf-8")
            with (Path(home, "log")).open("w+", encoding="utf-8") as log:
                server = subprocess.Popen([str(find_broker()), "--config", str(config)], stderr=log, env={**os.environ, "SERVER_NAME": "x"})
                try:
                    deadline = time.monotonic() + 30
                    while "Server is ready" not in (told := Path(home, "log").read_text(encoding="utf-8")):
                        self.assertLess(time.monotonic(), deadline, told)
                        time.sleep(0.05)
                finally:
                    server.kill()
                    server.wait()
            self.assertIn(f"Starting http monitor on 127.0.0.1:{monitor}", told)


def shown(certificate, *question):
    command = ["openssl", "x509", "-in", str(certificate), "-noout", *question]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    unittest.main()
