"""Alert rules and the dashboard ask for figures that our pages really have, and the rules fire when they should."""

import json
import os
import re
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

from find_promtool import NoPackage, find_promtool
from tests.promql import figures, grouped, matched
from tests.test_run import Run, environment, free_ports
from tooling import ROOT, target_dir

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
SOURCES = ROOT / "deploy" / "grafana" / "provisioning" / "datasources"
# Of Prometheus itself, and the labels that it adds to every series.
OWN_FIGURES = {"up", "ALERTS"}
OWN_LABELS = {"job", "instance", "alertname", "alertstate"}
PAGE_SECONDS = 60
# Of Grafana's grid.
COLUMNS = 24
UNITS = {"reqps", "cps", "percentunit", "s", "short", "bytes", "Bps"}
# Something for a provisioner to tell of.
TARGET = """
[[target]]
name = "demo"
signal = { kind = "services", service = "demo", route = "demo", version = "blue" }
scale = { min = 1, max = 2 }
[target.backend]
kind = "processes"
# Ends with the test's directory: instances outlive their provisioner.
command = ["sh", "-c", "while [ -e STATE ]; do sleep 1; done"]
state = "STATE"
"""


def dashboard_panels():
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]:
            yield file.name, panel
            # A row that is closed has its panels inside.
            for inner in panel.get("panels", []):
                yield file.name, inner


def dashboard_expressions():
    for file, panel in dashboard_panels():
        for target in panel.get("targets", []):
            yield f"{file}: {panel['title']}: {target['refId']}", target["expr"]


def rule_expressions():
    """By a reader of our own, so that they are checked without PyYAML too."""
    text = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    for name, body in re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - alert:|\n  - name:|\Z)", text, re.DOTALL):
        found = re.search(r"expr: (?:>-\n)?(.*?)(?=\n        \w+:)", body, re.DOTALL)
        yield name, " ".join(found.group(1).split())


class Page:
    """A page in the text format of Prometheus."""

    def __init__(self, text):
        self.kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        self.labels = {}
        for name, labels in re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
            for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""):
                self.labels.setdefault(name, {}).setdefault(label, set()).add(value)
            self.labels.setdefault(name, {})

    def family(self, figure):
        """The family that a series belongs to, or None."""
        if figure in self.kinds:
            return figure if self.kinds[figure] != "histogram" else None
        parent = re.sub(r"_(bucket|sum|count)$", "", figure)
        return parent if self.kinds.get(parent) == "histogram" else None


def fetch(address, path="/metrics"):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}{path}", timeout=10) as answer:
        return answer.read().decode("utf-8")


class Figures(unittest.TestCase):
    """Against the pages of real programs that had something to do."""

    @classmethod
    def setUpClass(cls):
        cls.demo = Run()
        cls.addClassCleanup(cls.demo.end)
        cls.demo.await_line("Ctrl-C stops everything")
        listen, admin, nats, _ = (f"127.0.0.1:{port}" for port in cls.demo.ports)
        for path in ("/version", "/status/503"):
            try:
                fetch(listen, path)
            except urllib.error.HTTPError as error:
                error.close()
        cls.pages = {}
        home = tempfile.TemporaryDirectory()
        cls.addClassCleanup(home.cleanup)
        Path(home.name, "app.log").write_text("a line\n", encoding="utf-8")
        Path(home.name, "provisioner.toml").write_text(TARGET.replace("STATE", f"{home.name}/instances"), encoding="utf-8")
        common = {"NATS_URL": f"nats://{nats}", "SHIPPER_SUBJECT": "logs", "SHIPPER_STREAM": "LOGS"}
        own = {
            "consumer": {"SHIPPER_DIRECTORY": f"{home.name}/lines", "SHIPPER_READ_PARTITIONS": "auto", "SHIPPER_OUTPUT": "out.log"},
            "provisioner": {"NATSWAY_PROVISIONER_CONFIG": f"{home.name}/provisioner.toml"},
            "producer": {"SHIPPER_FILE": f"{home.name}/app.log", "SHIPPER_STATE": f"{home.name}/state", "SHIPPER_PARTITIONS": "1"},
        }
        # The workspace, for a package by itself has other features, and half of the dependencies would be compiled once more.
        build = [os.environ.get("CARGO", "cargo"), "build", "--quiet", "--workspace", "--bins"]
        subprocess.run(build, cwd=ROOT, check=True)
        for (program, settings), port in zip(own.items(), free_ports(len(own))):
            address = f"127.0.0.1:{port}"
            arguments = ["run"] if program == "provisioner" else []
            process = subprocess.Popen(
                [target_dir() / "debug" / program, *arguments], env=environment(**common, **settings, SHIPPER_METRICS=address),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            cls.addClassCleanup(process.wait, PAGE_SECONDS)
            cls.addClassCleanup(process.terminate)
            if program != "provisioner":
                # What is lost on the way into the group is shown once it was asked for.
                shows = "\nshipper_source_loss_messages" if program == "consumer" else ""
                cls.pages[program] = Page(cls.awaited(address, shows))
        # The gateway tells of what scales, too.
        cls.pages["apiproxy"] = Page(cls.awaited(admin, "natsway_target_instances{"))

    @staticmethod
    def awaited(address, shows=""):
        """The page, once there is one that shows this."""
        end = time.monotonic() + PAGE_SECONDS
        while True:
            try:
                page = fetch(address)
                if shows in page:
                    return page
                problem = f"{address}/metrics does not show {shows!r}"
            except OSError as error:
                problem = str(error)
            if time.monotonic() > end:
                raise AssertionError(problem)
            time.sleep(0.1)

    def problems(self, expression):
        """What an expression asks for that no page has."""
        for figure in figures(expression) - OWN_FIGURES:
            if not any(page.family(figure) for page in self.pages.values()):
                yield f"no page has {figure}"
        for figure, label, operator, value in matched(expression):
            for page in (page for page in self.pages.values() if figure in page.labels):
                if label not in page.labels[figure] and label not in OWN_LABELS:
                    yield f"{figure} has no label {label}"
                elif operator == "=" and label not in OWN_LABELS and value not in page.labels[figure][label]:
                    yield f"{figure} has no {label}={value!r}, but {sorted(page.labels[figure][label])}"
            if label == "job" and value not in self.jobs():
                yield f"no job {value!r} is scraped"
        known = set().union(*(labels for page in self.pages.values() for labels in page.labels.values()))
        for label in grouped(expression) - OWN_LABELS - known:
            yield f"no series has a label {label}"

    @staticmethod
    def jobs():
        return set(re.findall(r"job_name: (\S+)", (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")))

    def test_every_expression_asks_for_what_is_there(self):
        rules, shown = dict(rule_expressions()), dict(dashboard_expressions())
        self.assertGreater(min(len(rules), len(shown)), 10)
        for name, expression in (*rules.items(), *shown.items()):
            with self.subTest(name):
                self.assertEqual(list(self.problems(expression)), [], expression)

    def test_what_is_not_there_is_noticed(self):
        for expression, problem in (
            ("rate(natsway_nothing_total[1m])", "no page has natsway_nothing_total"),
            ("sum(natsway_duration_seconds)", "no page has natsway_duration_seconds"),
            ('natsway_failed_attempts_total{cause="no_responders"}', "natsway_failed_attempts_total has no label cause"),
            ('natsway_failed_attempts_total{reason="nobody"}', "natsway_failed_attempts_total has no reason='nobody'"),
            ("sum by (path) (natsway_in_flight)", "no series has a label path"),
            ('absent(up{job="gateway"})', "no job 'gateway' is scraped"),
        ):
            self.assertIn(problem, "; ".join(self.problems(expression)))

    def test_legends_name_labels_that_the_expression_keeps(self):
        for file, panel in dashboard_panels():
            for target in panel.get("targets", []):
                named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                with self.subTest(f"{file}: {panel['title']}"):
                    keeps = grouped(target["expr"]) or OWN_LABELS
                    self.assertLessEqual(named, keeps)


class Dashboard(unittest.TestCase):
    """What Grafana needs to show it."""

    def test_panels_are_whole_and_lie_beside_each_other(self):
        sources = set(re.findall(r"uid: (\S+)", "".join(file.read_text(encoding="utf-8") for file in SOURCES.iterdir())))
        for file in DASHBOARDS.glob("*.json"):
            board = json.loads(file.read_text(encoding="utf-8"))
            self.assertTrue(board["uid"] and board["title"])
            self.assertGreaterEqual(board["schemaVersion"], 39)
            panels = [panel for name, panel in dashboard_panels() if name == file.name]
            self.assertEqual(len({panel["id"] for panel in panels}), len(panels), "ids are taken twice")
            cells = set()
            for panel in panels:
                place = panel["gridPos"]
                own = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
                self.assertLessEqual(place["x"] + place["w"], COLUMNS)
                self.assertFalse(cells & own, f"{panel['title']} lies over another")
                cells |= own
                if panel["type"] == "row":
                    continue
                self.assertIn(panel["type"], ("timeseries", "stat"))
                self.assertIn(panel["datasource"]["uid"], sources)
                self.assertIn(panel["fieldConfig"]["defaults"]["unit"], UNITS)
                self.assertTrue(panel["description"])
                refs = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(set(refs)), len(refs))

    def test_what_a_profile_adds_is_closed_and_what_is_red_is_what_an_alert_fires_at(self):
        rows = {panel["title"]: panel["collapsed"] for _, panel in dashboard_panels() if panel["type"] == "row"}
        for title, closed in rows.items():
            self.assertEqual(closed, "(profile " in title, title)
        rules = dict(rule_expressions())
        for title, alert in (("5xx", "NatswayErrors"), ("99th of a hundred", "NatswaySlow"), ("Places taken", "NatswayWorkerNearlyFull"),
                             ("Errors, share of 5xx", "NatswayErrors"), ("Duration, median and 99th of a hundred", "NatswaySlow")):
            (panel,) = [panel for _, panel in dashboard_panels() if panel["title"] == title]
            red = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"] if step["color"] == "red"]
            self.assertIn(f"> {red[0]}", rules[alert], title)

    def test_grafana_finds_it_where_compose_puts_it(self):
        provider = (ROOT / "deploy/grafana/provisioning/dashboards/natsway.yaml").read_text(encoding="utf-8")
        path = re.search(r"path: (\S+)", provider).group(1)
        self.assertIn(f"./deploy/grafana/dashboards:{path}:ro", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


class Promtool(unittest.TestCase):
    """By Prometheus's own reader of them."""

    @classmethod
    def setUpClass(cls):
        try:
            cls.promtool = str(find_promtool())
        except NoPackage as error:
            raise unittest.SkipTest(str(error)) from error

    def accepted(self, *arguments):
        told = subprocess.run([self.promtool, *arguments], capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(told.returncode, 0, told.stdout + told.stderr)
        return told.stdout

    def test_configuration_and_rules_are_accepted(self):
        self.accepted("check", "config", str(PROMETHEUS / "prometheus.yml"))
        count = len(dict(rule_expressions()))
        self.assertIn(f"{count} rules found", self.accepted("check", "rules", str(PROMETHEUS / "alerts.yml")))

    def test_every_expression_of_the_dashboard_is_promql(self):
        rules = [
            {"record": f"panel:{number}", "expr": expression}
            for number, (_, expression) in enumerate(dashboard_expressions())
        ]
        with tempfile.TemporaryDirectory() as home:
            # JSON is YAML.
            file = Path(home, "panels.yml")
            file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
            self.assertIn(f"{len(rules)} rules found", self.accepted("check", "rules", str(file)))

    def test_every_alert_fires_when_it_should_and_not_before(self):
        file = ROOT / "scripts" / "tests" / "alerts_test.yml"
        self.accepted("test", "rules", str(file))
        text = file.read_text(encoding="utf-8")
        for name, _ in rule_expressions():
            fired = re.findall(rf"alertname: {name}\n +exp_alerts:\n", text)
            calm = re.findall(rf"alertname: {name}\n +exp_alerts: \[\]", text)
            self.assertTrue(fired and calm, f"{name}: expected one case in which it fires and one in which it does not")


if __name__ == "__main__":
    unittest.main()
