"""The profile `observability`, as far as its images can be had: figures and alert rules in a real Prometheus."""

from __future__ import annotations

import json
import re
import urllib.parse
from typing import Iterator, Tuple

from images import Images, image_named
from load import Load
from serving import check_confined
from stack import Stack, expect, fetch, until
from tooling import ROOT

NAMES = {
    "prometheus": "prom/prometheus",
    "collector": "otel/opentelemetry-collector",
    "jaeger": "jaegertracing/jaeger",
    "grafana": "grafana/grafana",
}
PROFILES = ("observability",)
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
    stack.compose("up", "--detach", "nats", "apiproxy", "worker", *there, profiles=PROFILES)
    stack.await_healthy("nats", "apiproxy")
    stack.instances(2)
    looked = check_confined(stack, tuple(there))
    told = figures(stack) if "prometheus" in there else "prometheus not here"
    told += f"; {spans(stack)}" if "collector" in there else ""
    stack.compose("rm", "--stop", "--force", *there, profiles=PROFILES)
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


def figures(stack: Stack) -> str:
    """Prometheus asks the gateway, takes the rules, and has something to show in every panel of the gateway's."""
    asked = 0
    with Load(stack.base + "/version", 50) as load:
        until("the gateway is asked", 120, lambda: query(stack, 'up{job="apiproxy"} == 1'))
        until("there are rates", 120, lambda: query(stack, "sum(rate(natsway_responses_total[1m])) > 0"))
        for title, expression in expressions():
            answer = asking(stack, "query", expression)
            expect(answer["status"] == "success", f"{title}: {answer}")
            asked += 1
        report = load.end()
    expect(report.failed == 0, f"while Prometheus looked: {report}")
    groups = asking(stack, "rules", "")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    faulty = [rule["name"] for rule in rules if rule["health"] == "err"]
    expect(rules and not faulty, f"rules with errors: {faulty}")
    firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
    expect(not firing, f"alerts without a reason: {firing}")
    return f"prometheus: {asked} expressions of the dashboard, {len(rules)} rules, none firing"


def expressions() -> Iterator[Tuple[str, str]]:
    for panel in json.loads(BOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def asking(stack: Stack, what: str, expression: str) -> dict:
    base = f"http://127.0.0.1:{stack.ports['NATSWAY_PROMETHEUS_PORT']}/api/v1/{what}"
    answer = fetch(base + ("?" + urllib.parse.urlencode({"query": expression}) if expression else ""))
    return answer.json()


def query(stack: Stack, expression: str) -> list:
    return asking(stack, "query", expression)["data"]["result"]
