"""What becomes of programs whose permissions are taken away while they run, and given back; docs/security.md has it."""

import unittest
import urllib.error

import permissions
import plays
from find_broker import find_broker
from stage import HTTP, Stage

WHOLE = permissions.PERMISSIONS.read_text(encoding="utf-8")


def lacking(role, direction, subject):
    """All permissions but this one."""
    (missed,) = [p for p in permissions.read() if (p.role, p.direction, p.subject) == (role, direction, subject)]
    return permissions.without(missed)


class Revoked(unittest.TestCase):
    def setUp(self):
        self.stage = Stage(find_broker(), WHOLE)
        self.addCleanup(self.stage.__exit__)
        self.stage.set_up()
        (self.stage.directory / "routes.toml").write_text(plays.ROUTES, encoding="utf-8")
        self.gateway = plays.start_gateway(self.stage, self.stage.listen, self.stage.admin)
        self.worker = self.stage.start("worker", "worker", "--subject", "svc.demo.blue")
        plays.expect_status(self.stage, 200)

    def ready(self):
        """What /readyz answers."""
        try:
            with HTTP.open(f"http://127.0.0.1:{self.stage.admin}/readyz", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def test_a_worker_that_may_not_hear_requests_says_so_and_ends_when_that_stays(self):
        stage, worker = self.stage, self.worker
        stage.permit(lacking("worker", "subscribe", "svc.> q"))
        stage.until("the worker says that it does not serve", lambda: "not serving" in worker.text())
        self.assertIsNone(worker.process.poll(), "a mistake may be mended within half a minute")
        plays.expect_status(stage, 503)
        stage.until("the worker ends", lambda: worker.process.poll() is not None, 120.0)
        self.assertEqual(worker.process.returncode, 1)
        self.assertIn("svc.demo.blue", worker.text().splitlines()[-1])

    def test_a_worker_that_may_hear_them_again_serves_again(self):
        stage, worker = self.stage, self.worker
        stage.permit(lacking("worker", "subscribe", "svc.> q"))
        stage.until("the worker says that it does not serve", lambda: "not serving" in worker.text())
        stage.permit(WHOLE)
        plays.expect_status(stage, 200)
        stage.stop(worker)

    def test_a_gateway_that_may_not_hear_replies_is_not_ready_until_it_may(self):
        stage = self.stage
        stage.permit(lacking("gateway", "subscribe", "_INBOX_apiproxy.>"))
        stage.until("it is not ready", lambda: self.ready()[0] == 503)
        stage.until("it names what it may not hear", lambda: "_INBOX_apiproxy" in self.ready()[1])
        plays.expect_status(stage, 503)
        stage.permit(WHOLE)
        stage.until("it is ready again", lambda: self.ready()[0] == 200)
        plays.expect_status(stage, 200)

    def test_a_gateway_that_may_not_send_requests_says_so_and_sends_when_it_may(self):
        stage = self.stage
        stage.permit(lacking("gateway", "publish", "svc.>"))
        self.assertNotEqual(stage.get("/version", timeout=3.0)[0], 200)
        objection = 'operation="publish" subject="svc.demo.blue"'
        stage.until("it says why", lambda: objection in self.gateway.text())
        stage.permit(WHOLE)
        plays.expect_status(stage, 200)


if __name__ == "__main__":
    unittest.main()
