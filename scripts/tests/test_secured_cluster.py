"""Three brokers with accounts and TLS, as the Compose files have them: every program works, and any one broker may go."""

import re
import threading
import time
import unittest

import permissions
import plays
from find_broker import find_broker
from secured_cluster import NAMES, SHIPPED, SecuredCluster, is_possible, look
from tooling import ROOT

# Threads that ask at once, and how many answers are awaited before a broker is killed and after.
CLIENTS, ANSWERS = 4, 200


class Load:
    """GETs without a pause, for as long as it is open."""

    def __init__(self, stage):
        self.stage, self.answers, self.failures, self.ends = stage, 0, [], False
        self.threads = [threading.Thread(target=self.ask) for _ in range(CLIENTS)]

    def ask(self):
        while not self.ends:
            status, text = self.stage.get("/version", timeout=60.0)
            if status == 200:
                self.answers += 1
            else:
                self.failures.append(f"{status} {text[:200]}")
                time.sleep(0.1)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ends = True
        for thread in self.threads:
            thread.join()

    def more(self):
        wanted = self.answers + ANSWERS
        self.stage.until(f"{ANSWERS} more requests are answered", lambda: self.answers >= wanted or self.failures)


@unittest.skipUnless(is_possible(), "openssl is not installed: no certificates are made")
class Cluster(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stage = SecuredCluster(find_broker(), permissions.PERMISSIONS.read_text(encoding="utf-8"))
        cls.addClassCleanup(cls.stage.__exit__)

    def gateway(self):
        stage = self.stage
        stage.set_up()
        (stage.directory / "routes.toml").write_text(plays.ROUTES, encoding="utf-8")
        gateway = plays.start_gateway(stage, stage.listen, stage.admin)
        stage.until("the routes are in force", lambda: "routes in force" in gateway.text())
        return gateway

    def test_every_program_does_its_job_and_the_brokers_object_to_nothing(self):
        stage = self.stage
        plays.serve(stage, self.gateway())
        plays.shipping(stage)
        plays.groups(stage)
        for stream in ("KV_natsway-routes", "KV_natsway-lease", "KV_natsway-leases", "LOGS", "KV_natsway-shipper"):
            stage.until(f"{stream} has a copy at each", lambda stream=stream: stage.copies(stream) == len(NAMES))
        self.assertEqual(stage.violations(), [])
        self.assertEqual(stage.told_secrets(), [])

    def test_each_broker_is_killed_under_load_and_no_request_fails(self):
        stage = self.stage
        gateway = self.gateway()
        workers = [stage.start("worker", "worker", "--subject", "svc.demo.blue") for _ in range(3)]
        plays.expect_status(stage, 200)
        with Load(stage) as load:
            for member in stage.members:
                load.more()
                stage.kill(member)
                load.more()
                stage.begin(member)
                stage.until("the broker is back", stage.is_whole)
        self.assertEqual(load.failures, [])
        for running in (*workers, gateway):
            stage.stop(running)
        self.assertEqual(stage.violations(), [])

    def test_who_has_not_the_brokers_certificate_is_no_broker_among_them(self):
        stage = self.stage
        home = stage.directory / "stranger"
        home.mkdir()
        route = f"nats://127.0.0.1:{stage.members[0].route}"
        # A certificate by the authority of clients will not do, nor none at all.
        stranger = f"cert_file: \"{stage.secrets}/broker.pem\", key_file: \"{stage.secrets}/broker.key\", ca_file: \"{stage.secrets}/cluster.pem\""
        for name, tls in (("plain", ""), ("client", f"tls {{ {stranger} }}")):
            config = home / f"{name}.conf"
            config.write_text(
                f"server_name: {name}\nhost: 127.0.0.1\nport: -1\n"
                f"cluster {{ name: natsway, host: 127.0.0.1, port: -1, routes: [ {route} ]\n{tls} }}\n",
                encoding="utf-8",
            )
            refused = "TLS route handshake error"
            before = stage.server_log().count(refused)
            running = stage._spawn("broker", [str(stage.broker), "--config", str(config)], {})
            with self.subTest(name):
                stage.until("it is refused", lambda before=before: stage.server_log().count(refused) > before)
                names = lambda: {route["remote_name"] for route in look(stage.members[0], "/routez").get("routes", [])}
                stage.until("only the others are there", lambda: names() == set(NAMES[1:]))
            running.process.kill()
            running.process.wait()


class Shipped(unittest.TestCase):
    """What the test above cannot see of the Compose files."""

    def test_the_members_are_the_services_and_get_what_their_configuration_names(self):
        secured = (ROOT / "docker-compose.secured.yml").read_text(encoding="utf-8")
        member = re.search(r"^  nats-1: &member\n((?:    .*\n)+)", secured, re.MULTILINE).group(1)
        for other in NAMES[1:]:
            self.assertIn(f"\n  {other}: *member\n", secured)
        self.assertIn('command: ["--config", "/etc/nats/secured-cluster.conf"]', member)
        wanted = set()
        for file in ("secured-cluster.conf", "secured.conf"):
            wanted |= set(re.findall(r'"(/tls/[\w.]+)"', (SHIPPED / file).read_text(encoding="utf-8")))
        self.assertEqual(set(re.findall(r":(/tls/[\w.]+):ro", member)), wanted)
        routes = re.findall(r"nats://([\w-]+):6222", (SHIPPED / "members.conf").read_text(encoding="utf-8"))
        self.assertEqual(tuple(routes), NAMES)


if __name__ == "__main__":
    unittest.main()
