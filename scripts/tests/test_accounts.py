"""Compose offers the accounts of deploy/nats/accounts.conf; what crosses them is proven by `make prove-security`."""

import unittest

import accounts
from find_broker import find_broker
from stage import free_port

try:
    from composed import ComposedStage, is_possible
except ImportError:
    ComposedStage, is_possible = None, lambda: False

FILES = ("docker-compose.yml", "docker-compose.secured.yml", "docker-compose.accounts.yml")


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
