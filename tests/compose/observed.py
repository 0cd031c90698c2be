"""The profile `observability`, as far as its images can be had: figures, alert rules and traces, asked for as Grafana would."""

from __future__ import annotations

import json
import re
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Iterator, Tuple

from demand import proxy_or_why_not
from images import Images, image_named
from load import Load
from serving import check_confined
from stack import LOOK_SECONDS, Stack, expect, fetch, until
from tooling import ROOT

NAMES = {
    "prometheus": "prom/prometheus",
    "collector": "otel/opentelemetry-collector",
    "jaeger": "jaegertracing/jaeger",
    "grafana": "grafana/grafana",
}
# The dashboard has panels for what scales and for what ships lines.
PROFILES = ("observability", "provisioner", "shipper")
SHIPPER = ["producer", "consumer"]
SCALER = ["engine-proxy", "provisioner"]
# Of a queue, and the provisioner of docker-compose.yml looks at none.
OF_QUEUES = ("natsway_target_lag_messages", "natsway_target_in_hand_messages")
# Of consumers that share the partitions out by a group, and that of docker-compose.yml reads those it is told.
OF_GROUPS = ("shipper_source_loss_messages",)
# What fires, and here nothing must.
OF_ALERTS = "ALERTS{"
# A minute of figures, and what a busy machine takes to get them.
SHOWN_SECONDS = 180
BOARD = ROOT / "deploy" / "grafana" / "dashboards" / "natsway.json"


def observability(stack: Stack, images: Images) -> str:
    """Starts what can be had, and asks it what an operator would ask."""
    wanted = {service: image_named("docker-compose.yml", name) for service, name in NAMES.items()}
    there = [service for service, image in wanted.items() if images.provide(image)]
    away = [service for service in wanted if service not in there]
    if not there:
        return "SKIPPED: none of the images can be had: " + "; ".join(f"{image}: {why}" for image, why in images.unavailable.items())
    if "collector" in there:
        stack.settings.update(OTEL_TRACES_EXPORTER="otlp", OTEL_TRACES_SAMPLER_ARG="1")
    services = ["ownership", "nats", "apiproxy", "worker", *SHIPPER]
    without = proxy_or_why_not(stack, images)
    services += [] if without else SCALER
    with tempfile.TemporaryDirectory(prefix="natsway-lines-") as home:
        Path(home).chmod(0o755)
        log = Path(home, "app.log")
        log.touch(mode=0o644)
        stack.settings["SHIPPER_LOGS"] = home
        stack.compose("up", "--detach", *services, *there, profiles=PROFILES)
        stack.await_healthy("nats", "apiproxy", *SHIPPER)
        stack.instances(2)
        looked = check_confined(stack, tuple(there))
        told = figures(stack, log, bool(without)) if "prometheus" in there else "prometheus not here"
        told += f"; {spans(stack)}" if "collector" in there else ""
        told += f"; {trace(stack)}" if {"collector", "jaeger"} <= set(there) else ""
        stack.compose("rm", "--stop", "--force", *there, *SHIPPER, *([] if without else SCALER), profiles=PROFILES)
    missing = f"; NOT HERE: {', '.join(away)} (their configuration is checked by scripts/tests only)" if away else ""
    return f"{told}; {looked} more containers confined{missing}"


def spans(stack: Stack) -> str:
    """The collector takes spans from both sides of the hop, and refuses none."""
    collector = stack.the("collector")
    # Its own figures, on an address that is its alone.
    script = "exec 3<>/dev/tcp/127.0.0.1/8888; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"

    def total(kind: str) -> float:
        page = stack.from_network_of(collector, script).stdout
        return sum(float(value) for value in re.findall(rf"^otelcol_receiver_{kind}_spans\S* (\S+)$", page, re.MULTILINE))

    # Three for a request: the gateway's, its try, and the worker's.
    before = total("accepted")
    for _ in range(20):
        expect(stack.get("/version").status == 200, "a traced request is not answered")
    taken = until("spans of 20 requests are there", 60, lambda: total("accepted") - before >= 60 and total("accepted"))
    expect(total("refused") == 0, "the collector refuses spans")
    return f"collector: {taken:.0f} spans taken, none refused"


def trace(stack: Stack) -> str:
    """Jaeger has a request as one trace, with spans of the gateway and of the worker."""
    jaeger = f"http://127.0.0.1:{stack.ports['NATSWAY_JAEGER_PORT']}/api"

    def whole() -> str:
        for found in fetch(f"{jaeger}/traces?service=apiproxy&limit=20").json()["data"]:
            services = {found["processes"][span["processID"]]["serviceName"] for span in found["spans"]}
            if {"apiproxy", "worker"} <= services and len(found["spans"]) >= 3:
                return f"jaeger: a trace of {len(found['spans'])} spans of {' and '.join(sorted(services))}"
        return ""

    return until("jaeger has a whole trace", 60, whole)


def figures(stack: Stack, log: Path, unscaled: bool) -> str:
    """Prometheus asks all pages, takes the rules, and has something to show in every panel."""
    shown = [
        (title, expression) for title, expression in expressions()
        if not any(figure in expression for figure in (*OF_QUEUES, *OF_GROUPS, OF_ALERTS)) and not (unscaled and "natsway_target_" in expression)
    ]
    with Load(stack.base + "/version", 50) as load:
        until("the gateway is asked", 120, lambda: query(stack, 'up{job="apiproxy"} == 1'))
        end = time.monotonic() + SHOWN_SECONDS
        empty = shown
        while empty and time.monotonic() < end:
            something_happens(stack, log)
            empty = [(title, expression) for title, expression in empty if not figures_of(stack, expression)]
        expect(not empty, f"panels that show nothing: {empty}")
        report = load.end()
    expect(report.failed == 0, f"while Prometheus looked: {report}")
    groups = asking(stack, "rules", "")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    faulty = [rule["name"] for rule in rules if rule["health"] == "err"]
    expect(rules and not faulty, f"rules with errors: {faulty}")
    firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
    expect(not firing, f"alerts without a reason: {firing}")
    return f"prometheus: {len(shown)} expressions of the dashboard show something, {len(rules)} rules, none firing"


def something_happens(stack: Stack, log: Path) -> None:
    """Lines, an error of a worker, and a request that the gateway answers itself: counters are there once they count."""
    with log.open("a", encoding="utf-8") as out:
        out.write("a line\n" * 100)
    stack.get("/status/503")
    stack.get("/" + "x" * 9_000)
    time.sleep(LOOK_SECONDS)


def figures_of(stack: Stack, expression: str) -> list:
    return [one for one in query(stack, expression) if one["value"][1] != "NaN"]


def expressions() -> Iterator[Tuple[str, str]]:
    """What the panels ask for, with every variable at "all", as the dashboard begins."""
    for row in json.loads(BOARD.read_text(encoding="utf-8"))["panels"]:
        # A row that is closed has its panels inside.
        for panel in (row, *row.get("panels", [])):
            for target in panel.get("targets", []):
                yield panel["title"], re.sub(r"\$[a-z]\w*", ".*", target["expr"])


def asking(stack: Stack, what: str, expression: str) -> dict:
    base = f"http://127.0.0.1:{stack.ports['NATSWAY_PROMETHEUS_PORT']}/api/v1/{what}"
    answer = fetch(base + ("?" + urllib.parse.urlencode({"query": expression}) if expression else ""))
    return answer.json()


def query(stack: Stack, expression: str) -> list:
    return asking(stack, "query", expression)["data"]["result"]
