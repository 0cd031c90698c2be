"""The permissions of deploy/nats are sufficient, each is used, and dropping one is noticed; `make prove-security` drops all."""

import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import accounts
import attacks
import permissions
from find_broker import find_broker
from permissions import Permission, matches
from prove_security import drop, whole
from stage import ROLES, Stage, free_port, variable
from tooling import ROOT

# How many permissions are dropped here, each of another role: chosen anew by SECURITY_SEED.
SAMPLE = 3


class Reading(unittest.TestCase):
    def test_subjects_match_as_the_broker_has_them(self):
        for pattern, subject, whether in (
            ("svc.>", "svc.demo.blue", True),
            ("svc.>", "svc", False),
            ("natsway.worker.*", "natsway.worker.x", True),
            ("natsway.worker.*", "natsway.worker.x.y", False),
            ("natsway.metrics.*.*", "natsway.metrics.*.*", True),
            ("a.*", "a.>", True),
            ("a.b", "a.>", False),
            ("a.*.b", "a.>", False),
        ):
            self.assertEqual(matches(pattern, subject), whether, (pattern, subject))

    def test_a_permission_for_a_queue_group_covers_no_other_subscription(self):
        queue = Permission("worker", "subscribe", "svc.> q", 1)
        self.assertTrue(queue.covers("subscribe", "svc.demo.blue", "q"))
        self.assertFalse(queue.covers("subscribe", "svc.demo.blue", ""))
        self.assertFalse(queue.covers("publish", "svc.demo.blue", ""))

    def test_every_role_has_permissions_and_a_user_with_a_secret_from_the_environment(self):
        text = permissions.PERMISSIONS.read_text(encoding="utf-8")
        found = permissions.read()
        self.assertEqual({permission.role for permission in found}, set(ROLES))
        for role in ROLES:
            self.assertIn(f"password: $NATSWAY_{role.upper()}_PASSWORD", text)

    def test_each_line_can_be_dropped_alone(self):
        for permission in permissions.read_all():
            text = permissions.text_for(permission.role)
            lacking = permissions.without(permission)
            self.assertNotEqual(lacking, text, permission)
            self.assertLessEqual(len(text.splitlines()) - len(lacking.splitlines()), 1)

    def test_no_role_may_read_what_is_addressed_to_another(self):
        inboxes = {}
        for permission in permissions.read():
            if permission.direction == "subscribe" and permission.subject.startswith("_INBOX"):
                inboxes.setdefault(permission.subject, set()).add(permission.role)
        shared = {subject: roles for subject, roles in inboxes.items() if len(roles) > 1}
        # Members and those who make groups use one program; a caller is a worker.
        self.assertEqual(shared, {"_INBOX_cg.>": {"groups", "member"}, "_INBOX_worker.>": {"worker", "caller"}})


    def test_nobody_may_publish_where_a_message_says(self):
        for file in (permissions.PERMISSIONS, permissions.EXTRA):
            said = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
            self.assertNotIn("allow_responses", "\n".join(said))

    def test_only_administrators_may_make_and_change_streams(self):
        may = {p.role for p in permissions.read_all() if re.match(r"\$JS\.API\.(STREAM\.(CREATE|UPDATE|DELETE)|>)", p.subject)}
        self.assertEqual(may, {"admin"})


class Attack(unittest.TestCase):
    """What was once possible to a worker; prove_security has the other attacks."""

    def test_a_worker_does_not_grant_itself_a_subject_by_a_message_to_itself(self):
        with Stage(find_broker(), permissions.PERMISSIONS.read_text(encoding="utf-8")) as stage:
            with stage.intruder("setup") as owner, stage.intruder("worker") as worker:
                routes = {"name": "KV_natsway-routes", "subjects": ["$KV.natsway-routes.>"]}
                self.assertIsNotNone(owner.ask("$JS.API.STREAM.CREATE.KV_natsway-routes", routes))
                self.assertTrue(owner.may_publish("$KV.natsway-routes.demo", b"the owner's"))
                for target in ("$KV.natsway-routes.demo", "$JS.API.STREAM.PURGE.KV_natsway-routes", "natsway.drain.svc.demo.blue"):
                    worker.subscribe(worker.inbox)
                    worker.publish(worker.inbox, b"", target)
                    worker.settle()
                    self.assertTrue(worker.until(lambda: any(h.reply == target for h in worker.heard), 5.0), "it hears itself")
                    self.assertFalse(worker.may_publish(target, b"the worker's"), target)
                stored = json.loads(owner.ask("$JS.API.STREAM.INFO.KV_natsway-routes").payload)
                self.assertEqual(stored["state"]["messages"], 1)


    def test_what_is_not_permitted_is_not_possible_and_the_list_of_what_remains_is_exact(self):
        faults, tried = attacks.prove(find_broker(), extras=False)
        self.assertEqual(faults, [])
        self.assertGreater(tried, 1_000)

    def test_a_worker_guesses_no_other_workers_token(self):
        faults, guesses = attacks.forged_replies(find_broker())
        self.assertEqual(faults, [])
        self.assertGreater(guesses, 900)

    def test_a_role_speaks_for_no_other_in_metrics_but_where_that_is_said(self):
        faults, tried = attacks.forged_metrics(find_broker())
        self.assertEqual(faults, [])
        self.assertGreater(tried, 30)

    def test_an_attack_that_succeeds_is_found(self):
        for role, first, more in (
            ("producer", "logs.>", {"$JS.API.DIRECT.GET.LOGS.>": "own-words-elsewhere", "$JS.API.STREAM.UPDATE.LOGS": "changes-stream"}),
            # One to whom JetStream answers nothing.
            ("worker", "_INBOX_worker.>", {
                "$JS.API.STREAM.INFO.LOGS": "answered-elsewhere",
                "$JS.API.CONSUMER.CREATE.LOGS.>": "delivered-elsewhere",
                "$JS.API.CONSUMER.DELETE.KV_natsway-routes.*": "ends-consumers-of-others",
                "natsway.metrics.gateway.*": "metrics-of-gateways",
            }),
        ):
            text = permissions.PERMISSIONS.read_text(encoding="utf-8")
            before, after = text.split(f"MAY_{role.upper()} {{")
            after = after.replace(f'    "{first}"', "".join(f'    "{subject}"\n' for subject in more) + f'    "{first}"', 1)
            with self.subTest(role), Stage(find_broker(), f"{before}MAY_{role.upper()} {{{after}") as stage:
                attacks.furnish(stage)
                found = {name for name, _, _ in attacks.found(stage, role)}
                self.assertLessEqual(set(more.values()), found)

    def test_the_page_shows_what_remains(self):
        page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
        shown = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5 and "remains.json" not in line]
        rows = {row for row in shown if row.split("`")[1] in attacks.remaining()}
        self.assertEqual(rows, set(attacks.table()))


class Deployment(unittest.TestCase):
    @unittest.skipIf(shutil.which("openssl") is None, "openssl is not installed: no certificates are made")
    def test_the_broker_takes_the_secured_configuration_and_what_is_made_for_it(self):
        folder = permissions.PERMISSIONS.parent
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
        text = (permissions.PERMISSIONS.parent / "secured.conf").read_text(encoding="utf-8")
        monitor, client = free_port(), free_port()
        with tempfile.TemporaryDirectory(prefix="natsway-monitor-") as home:
            lines = re.search(r"(?m)^http: .*$", text)
            self.assertIsNotNone(lines, "secured.conf says nothing of them")
            plain = (permissions.PERMISSIONS.parent / "nats.conf").read_text(encoding="utf-8")
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


class OnARealBroker(unittest.TestCase):
    def test_every_program_does_its_job_and_each_permission_is_used(self):
        self.assertEqual(whole(find_broker()), [])

    def test_a_dropped_permission_is_noticed_and_told(self):
        seed = int(os.environ.get("SECURITY_SEED", "1"))
        chosen = random.Random(seed).sample(permissions.read_all(), SAMPLE)
        for permission in chosen:
            with self.subTest(seed=seed, permission=str(permission)):
                verdict = drop(find_broker(), permission)
                self.assertNotEqual(verdict.outcome, "survived")
                self.assertIsNot(verdict.told, False, verdict.detail)


if __name__ == "__main__":
    unittest.main()
