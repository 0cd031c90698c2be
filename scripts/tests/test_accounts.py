"""Between the accounts of deploy/nats/accounts.conf nothing crosses but what is said to, and Compose offers them; `make prove-security`
leaves out every line and tries everything as everybody."""

import os
import random
import unittest

import accounts
import crossings
import permissions
from accounts import AccountsStage
from find_broker import find_broker
from secured_cluster import is_possible
from stage import free_port
from tooling import ROOT

try:
    from composed import ComposedStage
except ImportError:
    ComposedStage = None

# How many users try everything, and how many lines are left out: chosen anew by SECURITY_SEED.
USERS, LINES = 4, 3
SEED = int(os.environ.get("SECURITY_SEED", "1"))

FILES = ("docker-compose.yml", "docker-compose.secured.yml", "docker-compose.accounts.yml")


class Reading(unittest.TestCase):
    def test_every_user_is_in_one_account_with_a_secret_from_the_environment(self):
        text = accounts.text()
        names = [user.name for user in accounts.users()]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(len(names), text.count("{ user: "))
        for user in accounts.users():
            self.assertIn(f"user: {user.name},", text)
            self.assertIn(f"$NATSWAY_{user.name.upper().replace('-', '_')}_PASSWORD", text)
            self.assertTrue(accounts.permissions_of(user), f"{user.name} may do nothing, or everything")

    def test_every_export_is_imported_once_and_both_are_one_crossing(self):
        lines = accounts.lines()
        for line in (line for line in lines if line.direction == "import"):
            self.assertEqual(len([c for c in crossings.crossings() if crossings.crosses_by(c, line)]), 1, line)
        self.assertEqual(len(lines), 2 * len(crossings.crossings()))

    def test_nobody_may_publish_where_a_message_says(self):
        said = [line for line in accounts.text().splitlines() if not line.lstrip().startswith("#")]
        self.assertNotIn("allow_responses", "\n".join(said))


class OnARealBroker(unittest.TestCase):
    def test_nothing_crosses_but_what_is_listed_and_as_many_answers_come_back(self):
        faults, tried = crossings.boundaries(find_broker())
        self.assertEqual(faults, [])
        self.assertGreater(tried, 500)

    def test_users_reach_what_is_listed_and_nothing_else(self):
        # One of each kind that reaches another account, and others by chance.
        users = {user.name: user for user in crossings.who()}
        chosen = [users.pop(name) for name in ("caller", "team-a-worker")] + random.Random(SEED).sample(sorted(users.values(), key=str), USERS - 2)
        faults, _ = crossings.prove(find_broker(), chosen)
        self.assertEqual(faults, [], [user.name for user in chosen])

    def test_a_line_that_is_left_out_is_noticed(self):
        for line in random.Random(SEED).sample(accounts.lines(), LINES):
            with self.subTest(seed=SEED, line=str(line)):
                self.assertEqual(crossings.drop(find_broker(), line), [])

    def test_what_crosses_beyond_that_is_found(self):
        text = accounts.text()
        metrics = '      { stream: { account: TEAM_A, subject: "natsway.metrics.caller.*" }, to: "natsway.metrics.team-a.*" }\n'
        for before, after in (
            # An import that hands on what a team says as if a gateway had.
            (metrics, metrics.replace("natsway.metrics.team-a.*", "natsway.metrics.gateway.*")),
            # A team that hears what another one does.
            ('exports: [\n      { service: "svc.team-b.>"', 'imports: [{ stream: { account: SHIPPER, subject: "logs.>" } }]\n    '
             'exports: [\n      { service: "svc.team-b.>"'),
        ):
            self.assertIn(before, text)
            changed = text.replace(before, after)
            if "logs.>" in after:
                changed = changed.replace("  SHIPPER {\n", '  SHIPPER {\n    exports: [{ stream: "logs.>", accounts: [TEAM_B] }]\n')
            with self.subTest(after), AccountsStage(find_broker(), changed) as stage:
                found = crossings.passages(stage, crossings.subjects())
                expected = crossings.expected_passages(crossings.subjects(), crossings.crossings())
                self.assertTrue([fault for fault in crossings.differing(found, expected) if fault.startswith("CROSSES")])

    def test_a_right_too_many_is_found(self):
        block = "MAY_WORK_FOR_B {\n  publish: { allow: [\n"
        self.assertIn(block, accounts.text())
        changed = accounts.text().replace(block, f'{block}    "natsway.metrics.gateway.*"\n')
        user = next(user for user in accounts.users() if user.name == "team-b-worker")
        with AccountsStage(find_broker(), changed) as stage:
            told, _ = crossings.says(stage, user, accounts.permissions_of(user), crossings.subjects())
        self.assertIn("team-b-worker may publish natsway.metrics.gateway.x", told)


class Page(unittest.TestCase):
    def test_the_page_shows_what_crosses_and_what_remains(self):
        page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
        section = page.split("\n### What crosses\n")[1].split("\n## ")[0]
        shown = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith(("| what |", "| id |"))]
        self.assertEqual(shown, crossings.table())


@unittest.skipIf(ComposedStage is None, "PyYAML is not installed: the Compose files are not read")
@unittest.skipUnless(is_possible(), "openssl is not installed: no certificates are made")
class Compose(unittest.TestCase):
    def test_a_request_a_rollout_and_lines_cross_as_the_files_have_them(self):
        with ComposedStage(find_broker(), *FILES) as stage:
            stage.run_service("setup", "apiproxy")
            stage.run_service("setup-shipper", "apiproxy")
            here = {"NATSWAY_LISTEN": f"127.0.0.1:{stage.listen}", "NATSWAY_ADMIN_LISTEN": f"127.0.0.1:{stage.admin}"}
            stage.start_service("apiproxy", "apiproxy", **here)
            stand_in = stage.start_service("stand-in", "apiproxy")
            worker = stage.start_service("worker", "worker")
            stage.until("a request is answered", lambda: stage.get("/version")[0] == 200)
            green = stage.start_service("worker-green", "worker")
            stage.until("green serves", lambda: "serving" in green.text())
            started = ("rollout", "start", "demo", "--to", "green", "--strategy", "blue-green", "--stop-old", "--follow")
            stage.run_service("operator", "apiproxy", *started)
            stage.until("green answers", lambda: "svc.team-a.demo.green" in stage.get("/version")[1])
            stage.until("the old worker was asked to leave", lambda: worker.process.poll() is not None)
            stage.stop(green)
            stage.until("somebody stands in", lambda: "standing in for the last worker" in stand_in.text())
            lines = stage.directory / "app.log"
            lines.write_text("line 1\n", encoding="utf-8")
            metrics = lambda: {"SHIPPER_METRICS": f"127.0.0.1:{free_port()}"}
            stage.start_service("producer", "producer", SHIPPER_FILE=str(lines), SHIPPER_STATE=str(stage.directory / "state"), **metrics())
            stage.start_service("consumer", "consumer", SHIPPER_DIRECTORY=str(stage.directory / "lines"), **metrics())
            arrived = lambda: any("line 1" in f.read_text(encoding="utf-8") for f in (stage.directory / "lines").rglob("*.log"))
            stage.until("a line arrived", arrived)
            self.assertEqual(stage.violations(), [])

    def test_no_service_of_a_team_is_given_a_secret_of_another_account(self):
        stage = ComposedStage.__new__(ComposedStage)
        stage.variables = {"NATSWAY_SECRETS": "/secrets"}
        from composed import merged

        stage.files = merged(*FILES)
        teams = {user.name: user.account for user in accounts.users()}
        for name, service in stage.files["services"].items():
            user = dict(service.get("environment") or {}).get("NATS_USER")
            if user is None:
                continue
            given = [path.stem for place, path in stage.mounts(name).items() if place.startswith("/run/secrets/")]
            with self.subTest(name):
                self.assertIn(user, teams)
                self.assertEqual(given, [user], "its own password and no other")
                self.assertEqual(service["environment"]["NATS_PASSWORD_FILE"], f"/run/secrets/{service['secrets'][0]}")


if __name__ == "__main__":
    unittest.main()
