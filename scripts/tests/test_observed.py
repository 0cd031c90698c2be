"""docs/configuration.md and docs/metrics.md say what the programs do, and logs tell what they promise and no secret."""

import json
import re
import unittest

import document_settings
from find_broker import find_broker
from stage import HTTP, PERMISSIONS, ROLES, Stage, free_port, password
from tooling import ROOT

METRICS = ROOT / "docs" / "metrics.md"
ROW = re.compile(r"^\| `((?:natsway|shipper)_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? ", re.MULTILINE)
ROUTES = """
[[route]]
name = "demo"
path = "/{*rest}"
target = [{ version = "blue", subject = "svc.demo.blue" }]
[[route]]
name = "total"
path = "/total"
target = [{ version = "blue", subject = "svc.total.blue" }]
"""
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def documented(program):
    """Name, kind and labels of each metric that the page has for a program."""
    section = METRICS.read_text(encoding="utf-8").split(f"\n## {program}\n")[1].split("\n## ")[0]
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(section)}


def scraped(page):
    """The same of a real page."""
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    labels = {name: set() for name in kinds}
    for sample, given in SAMPLE.findall(page):
        family = sample if sample in kinds else re.sub(r"_(bucket|sum|count)$", "", sample)
        labels[family] |= set(re.findall(r"(\w+)=", given))
    # A family without a sample has no labels to show.
    shown = {family for family in kinds if re.search(rf"^{family}(_bucket)?[{{ ]", page, re.MULTILINE)}
    return {name: (kind, frozenset(labels[name]) if name in shown else None) for name, kind in kinds.items()}


def fetch(port):
    with HTTP.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


class Documentation(unittest.TestCase):
    def test_the_configuration_reference_is_up_to_date(self):
        there = document_settings.PAGE.read_text(encoding="utf-8").splitlines()
        self.assertEqual(there, document_settings.page().splitlines(), "run `make docs`")

    def test_each_option_and_variable_of_a_program_is_in_the_reference(self):
        page = document_settings.PAGE.read_text(encoding="utf-8")
        for program in document_settings.PROGRAMS:
            text = document_settings.help_of(program, ())
            for option in set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", text, re.MULTILINE)) - {"--help", "--version"}:
                self.assertRegex(page, f"`{option}[ `\\[]", program)
            for variable in re.findall(r"\[env: (\w+)", text):
                self.assertIn(f"`{variable}`", page, program)


class Observed(unittest.TestCase):
    """One stage with everything that has a page or a log."""

    @classmethod
    def setUpClass(cls):
        cls.stage = Stage(find_broker(), PERMISSIONS.read_text(encoding="utf-8"))
        cls.addClassCleanup(cls.stage.__exit__)
        stage = cls.stage
        stage.set_up("--shipper")
        (stage.directory / "routes.toml").write_text(ROUTES, encoding="utf-8")
        listen = ("--listen", f"127.0.0.1:{stage.listen}", "--admin-listen", f"127.0.0.1:{stage.admin}")
        traced = {"NATSWAY_ACCESS_LOG": "true", "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
        logs = {"NATSWAY_LOG_FORMAT": "json", "NATSWAY_LOG": "debug"}
        routes = ("--routes", str(stage.directory / "routes.toml"))
        # So that the client's trace is continued.
        trusting = {"NATSWAY_TRUSTED_PROXIES": "127.0.0.0/8"}
        cls.gateway = stage.start("gateway", "apiproxy", *routes, *listen, **traced, **logs, **trusting)
        cls.worker = stage.start("worker", "worker", **logs)
        stage.until("a request is answered", lambda: stage.get("/version")[0] == 200)
        # Problems, a miss, every class of status.
        for path in ("/status/404", "/status/503", "/status/302", "/total"):
            stage.get(path)
        source = stage.directory / "a.log"
        source.write_text("one line\n", encoding="utf-8")
        cls.ports = {"apiproxy": stage.admin, "producer": free_port(), "consumer": free_port()}
        shipper = {
            "SHIPPER_SUBJECT": "logs",
            "SHIPPER_FILE": str(source),
            "SHIPPER_STATE": str(stage.directory / "state"),
            "SHIPPER_DIRECTORY": str(stage.directory / "lines"),
            "SHIPPER_OUTPUT": "lines",
        }
        cls.sides = []
        for side in ("producer", "consumer"):
            address = f"127.0.0.1:{cls.ports[side]}"
            cls.sides.append(stage.start(side, side, SHIPPER_METRICS=address, **shipper, **logs))
            stage.until(f"{side} serves its metrics", lambda side=side: "serving metrics" in cls.sides[-1].text())
        stage.until("the line is written", lambda: "shipper_messages_total 1" in fetch(cls.ports["consumer"]))
        (stage.directory / "p.toml").write_text(
            '[[target]]\nname = "t"\nsignal = { kind = "services", service = "demo" }\n'
            'backend = { kind = "directives", subject = "svc.demo.blue" }\n',
            encoding="utf-8",
        )
        config = str(stage.directory / "p.toml")
        cls.provisioner = stage.start("provisioner", "provisioner", "run", "--config", config, **logs)
        stage.until("the gateway tells of the target", lambda: "natsway_target_frozen" in stage.metrics())

    def test_each_metric_is_documented_and_each_documented_one_is_there(self):
        for program, port in self.ports.items():
            with self.subTest(program=program):
                told = documented(program)
                seen = scraped(fetch(port))
                seen = {name: (kind, told.get(name, (kind, None))[1] if labels is None else labels) for name, (kind, labels) in seen.items()}
                self.assertEqual(seen, told)

    def test_codes_and_reasons_are_of_the_closed_sets(self):
        page = fetch(self.ports["apiproxy"])
        reasons = set(re.findall(r'natsway_failed_attempts_total\{reason="(\w+)"\}', page))
        row = next(line for line in METRICS.read_text(encoding="utf-8").splitlines() if line.startswith("| `reason` |"))
        self.assertEqual(reasons, set(re.findall(r"`(\w+)`", row)) - {"reason"})

    def test_every_program_logs_one_json_object_a_line(self):
        for running in (self.gateway, self.worker, self.provisioner, *self.sides):
            lines = running.text().splitlines()
            self.assertTrue(lines, running.role)
            for line in lines:
                entry = json.loads(line)
                self.assertLessEqual({"timestamp", "level", "target"}, set(entry), f"{running.role}: {line}")

    def test_the_access_log_has_the_request_id_and_the_trace_id(self):
        import urllib.request

        parent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
        fields = {"X-Request-Id": "asked-for-by-the-client", "traceparent": parent, "Authorization": "Bearer top-secret"}
        url = f"http://127.0.0.1:{self.stage.listen}/version?token=top-secret"
        with HTTP.open(urllib.request.Request(url, headers=fields), timeout=10) as answer:
            self.assertEqual(answer.headers["X-Request-Id"], "asked-for-by-the-client")
        told = lambda: [e for e in map(json.loads, self.gateway.text().splitlines()) if e["target"] == "access"]
        mine = lambda: [entry for entry in told() if entry.get("request_id") == "asked-for-by-the-client"]
        self.stage.until("the access log has the request", mine)
        entry = mine()[0]
        self.assertEqual((entry["trace_id"], entry["path"], entry["status"], entry["method"]), (TRACE_ID, "/version", 200, "GET"))
        self.assertEqual(entry["client"], "127.0.0.1")
        self.assertNotIn("top-secret", self.gateway.text() + self.worker.text())

    def test_no_log_has_a_password_even_when_it_tells_everything(self):
        for running in (running for running in self.stage.running if running.role != "broker"):
            for role in ROLES:
                self.assertNotIn(password(role), running.text(), running.log.name)


if __name__ == "__main__":
    unittest.main()
