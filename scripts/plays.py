"""What each role has to be able to do, as plays on a stage: the whole job of every program, one step after the other.

A play raises Failed when something does not do its work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Tuple

from stage import Failed, Running, Stage, free_port
from valve import Valve

ROUTES = """
subject_prefix = "svc"
[[route]]
name = "demo"
path = "/{*rest}"
[[route.target]]
version = "blue"
subject = "svc.demo.blue"
weight = 100
[[route.target]]
version = "green"
subject = "svc.demo.green"
weight = 0
[[route]]
name = "total"
path = "/total"
[[route.target]]
version = "blue"
subject = "svc.total.blue"
"""

# Broker losses by which a client has noticed one while it listened.
LOSSES = 5

PROVISIONER = """
[[target]]
name = "demo"
signal = {{ kind = "services", service = "demo", route = "demo", version = "blue" }}
policy = [{{ kind = "rate" }}]
instance = {{ service_rate = 1.0 }}
scale = {{ min = {least}, max = {most}, in_window = "1s" }}
[target.backend]
kind = "directives"
subject = "svc.demo.blue"
[[target]]
name = "calling"
signal = {{ kind = "services", service = "total" }}
instance = {{ service_rate = 10.0 }}
scale = {{ min = 1, max = 1 }}
[target.backend]
kind = "processes"
command = ["sleep", "60"]
state = "{directory}/calling"
[[target]]
name = "queue"
signal = {{ kind = "consumer", stream = "orders", consumer = "w" }}
instance = {{ service_rate = 10.0 }}
scale = {{ min = 1, max = 2 }}
[target.backend]
kind = "processes"
command = ["sleep", "60"]
state = "{directory}/instances"
"""

SCOUT = """
[[target]]
name = "found"
signal = {{ kind = "services", service = "de*", route = "demo", version = "blue" }}
instance = {{ service_rate = 10.0 }}
scale = {{ min = {least}, max = {most}, in_window = "1s" }}
[target.backend]
kind = "directives"
subject = "svc.{{name}}.blue"
[[target]]
name = "queue"
signal = {{ kind = "consumer", stream = "orders", consumer = "co*" }}
instance = {{ service_rate = 10.0 }}
scale = {{ min = 0, max = 1 }}
[target.backend]
kind = "processes"
command = ["sleep", "60"]
state = "{directory}/{{name}}"
[[target]]
name = "tally"
signal = {{ kind = "tally", stream = "orders", consumer = "count" }}
instance = {{ service_rate = 10.0 }}
scale = {{ min = 0, max = 1 }}
[target.backend]
kind = "processes"
command = ["sleep", "60"]
state = "{directory}/tally"
"""


def requests(stage: Stage) -> None:
    """A gateway and workers: requests, cancellation, routes, a rollout with its drain, the last worker's departure."""
    stage.set_up()
    (stage.directory / "routes.toml").write_text(ROUTES, encoding="utf-8")
    serve(stage, start_gateways(stage))


def serve(stage: Stage, gateway: Running) -> None:
    """The same, with a gateway that has its routes."""
    call_another(stage)
    blue = stage.start("worker", "worker", "--subject", "svc.demo.blue", NATSWAY_MAX_SETS="3")
    expect_status(stage, 200)
    # Whoever follows the routes begins anew.
    caller = stage.start("caller", "examples/caller")
    stage.until("a call is answered", lambda: stage.get("/total")[0] == 200)
    lose_broker(stage, gateway="natsway-routes", caller="natsway-routes")
    stage.until("a call is answered again", lambda: stage.get("/total")[0] == 200)
    expect_status(stage, 200)
    # Its client leaves; a handler that runs for longer has told who runs it.
    stage.get("/slow?ms=5000", timeout=1.0)
    operate(stage)
    scale(stage)
    # Leaves with all of its subscription sets, as the last worker; then one comes while a gateway stands in.
    stage.stop(blue)
    expect_status(stage, 503)
    # A worker that calls is told by the gateway as well.
    stage.until("a call is not answered", lambda: stage.get("/total")[0] >= 500)
    blue = stage.start("worker", "worker", "--subject", "svc.demo.blue")
    green = stage.start("worker", "worker", "--subject", "svc.demo.green")
    expect_status(stage, 200)
    stage.until("green serves", lambda: "serving" in green.text())
    # One of the two drives, and the other sees that.
    other = start_gateway(stage, free_port(), free_port())
    stage.until("the routes are at the other gateway", lambda: "routes in force" in other.text())
    started = ("rollout", "start", "demo", "--to", "green", "--strategy", "blue-green", "--stop-old", "--follow")
    stage.run("operator", "apiproxy", *started)
    stage.until("the old worker was asked to leave", lambda: blue.process.poll() is not None)
    stage.until("green answers", lambda: "green" in stage.get("/version")[1])
    # All who send requests answer, the worker that calls among them.
    stage.run("operator", "apiproxy", "rollout", "status", "demo")
    stage.stop(caller)
    stage.stop(green)
    stage.stop(other)
    stage.stop(gateway)


def lose_broker(stage: Stage, **followed: str) -> None:
    """Has the broker die and come back, until each of these roles has gone on to follow its bucket. That it opens the bucket
    anew instead is chance."""

    def goes_on(role: str, bucket: str) -> bool:
        return all(stage.count(role, f"PUB $JS.API.CONSUMER.{verb}.KV_{bucket}.") for verb in ("DELETE", "CREATE"))

    for _ in range(LOSSES if stage.loses_brokers else 0):
        if not all(goes_on(role, bucket) for role, bucket in followed.items()):
            stage.lose_broker()
            # Longer than a missing heartbeat takes to be noticed.
            stage.wait(lambda: all(goes_on(role, bucket) for role, bucket in followed.items()), 15.0)


def start_gateways(stage: Stage) -> Running:
    """Two that fill a fresh bucket at once: the first to begin writes last, and finds that another has written."""
    valve = Valve(stage.port, b"PUB $KV.natsway-routes.")
    try:
        late = start_gateway(stage, free_port(), free_port(), NATS_URL=f"nats://127.0.0.1:{valve.port}")
        stage.until("the first gateway is about to write", valve.held.is_set)
        gateway = start_gateway(stage, stage.listen, stage.admin)
        stage.until("the routes are in force", lambda: "routes in force" in gateway.text())
        valve.open()
        stage.until("they are at the other as well", lambda: "routes in force" in late.text())
        stage.stop(late)
    finally:
        valve.close()
    return gateway


def start_gateway(stage: Stage, listen: int, admin: int, **variables: str) -> Running:
    where = ("--listen", f"127.0.0.1:{listen}", "--admin-listen", f"127.0.0.1:{admin}")
    routes = str(stage.directory / "routes.toml")
    return stage.start("gateway", "apiproxy", "--routes", routes, *where, **variables)


def call_another(stage: Stage) -> None:
    """A worker that calls another one, in vain when its own client leaves: that cancels the call."""
    slow = stage.start("worker", "worker", "--subject", "svc.demo.blue", NATSWAY_MISBEHAVE="delays=1500")
    caller = stage.start("caller", "examples/caller")
    stage.until("a call is answered", lambda: stage.get("/total")[0] == 200)
    stage.get("/total", timeout=0.7)
    stage.stop(caller)
    stage.stop(slow)


def expect_status(stage: Stage, status: int) -> None:
    stage.until(f"a request is answered {status}", lambda: stage.get("/version")[0] == status)


def operate(stage: Stage) -> None:
    """What people do to routes."""
    stage.run("operator", "apiproxy", "routes", "ls")
    document = stage.run("operator", "apiproxy", "routes", "get", "demo")
    path = stage.directory / "demo.json"
    path.write_text(document, encoding="utf-8")
    stage.run("operator", "apiproxy", "routes", "put", str(path))
    stage.run("operator", "apiproxy", "routes", "export")
    stage.run("operator", "apiproxy", "routes", "test", "GET", "http://shop.example/")


def scale(stage: Stage) -> None:
    """An autoscaler that opens subscription sets in a worker and closes them, leads, and answers."""
    path = stage.directory / "provisioner.toml"
    stage.admin_stream("orders")
    provisioner = None
    for least, most in ((3, 3), (1, 1)):
        text = PROVISIONER.format(least=least, most=most, directory=stage.directory)
        path.write_text(text, encoding="utf-8")
        provisioner = provisioner or stage.start("provisioner", "provisioner", "run", "--config", str(path))
        reached = f"demo {least} {most}"
        stage.until(f"there are {least} sets", lambda: reached in " ".join(status(stage).split()))
    standby = stage.start("provisioner", "provisioner", "run", "--config", str(path))
    stage.until("another provisioner stands by", lambda: "standing by" in standby.text())
    stage.stop(standby)
    stage.until("the gateway's page has the workers and the targets", lambda: "natsway_target_" in stage.metrics())
    # Its health check.
    stage.run("provisioner", "provisioner", "status", NATS_INBOX_PREFIX="_INBOX_provisioner")
    stage.run("operator", "provisioner", "explain", "demo")
    stage.run("operator", "provisioner", "top", "--count", "1")
    stage.run("operator", "provisioner", "record", "--count", "1")
    stage.stop(provisioner)


def status(stage: Stage) -> str:
    try:
        return stage.run("operator", "provisioner", "status")
    except Failed as error:
        if type(error) is not Failed or "no provisioner" not in str(error):
            raise
        return ""


def scout(stage: Stage) -> None:
    """An autoscaler that finds its targets by patterns, and counts what comes by receiving it."""
    stage.set_up()
    path = stage.directory / "provisioner.toml"
    stage.admin_stream("orders")
    worker = stage.start("worker", "worker", "--subject", "svc.demo.blue", NATSWAY_MAX_SETS="3")
    stage.until("there is a service to find", lambda: "serving" in worker.text())
    leading = None
    for least, most in ((3, 3), (1, 1)):
        text = SCOUT.format(least=least, most=most, directory=stage.directory)
        path.write_text(text, encoding="utf-8")
        leading = leading or stage.start("provisioner", "provisioner", "run", "--config", str(path))
        reached = f"found-demo {least} {most}"
        stage.until(f"there are {least} sets", lambda: reached in " ".join(status(stage).split()))
    stage.until("the tally's consumer is found as well", lambda: "queue-count" in status(stage))
    # Gateways show the targets.
    (stage.directory / "routes.toml").write_text(ROUTES, encoding="utf-8")
    gateway = start_gateway(stage, stage.listen, stage.admin)
    stage.until("the gateway's page has the targets", lambda: "natsway_target_" in stage.metrics())
    stage.stop(gateway)
    stage.admin_traffic("orders")
    stage.until("messages are counted", lambda: stage.count("provisioner", "PUB $JS.ACK.orders.count."))
    standby = stage.start("provisioner", "provisioner", "run", "--config", str(path))
    stage.until("another provisioner stands by", lambda: "standing by" in standby.text())
    stage.stop(standby)
    stage.run("provisioner", "provisioner", "status", NATS_INBOX_PREFIX="_INBOX_provisioner")
    stage.stop(leading)
    stage.stop(worker)


def groups(stage: Stage) -> None:
    """Consumer groups, elastic and static, from their making to their end, with members that leave and come back."""
    stage.admin_stream("orders")
    stage.admin_stream("events", partitions=4)
    stage.set_up("--groups")
    # An elastic group has a stream of its own, and who makes streams can do anything.
    stage.run_admin("cg", "elastic", "create", "orders", "workers", "4", "--filter", "orders.*", "--wildcards", "1")
    stage.run("groups", "cg", "static", "create", "balanced", "events", "readers", "4", ">", "m1")
    stage.run("groups", "cg", "elastic", "add", "orders", "workers", "m1")
    for kind, stream, group in (("elastic", "orders", "workers"), ("static", "events", "readers")):
        member = stage.start("member", "cg", kind, "consume", stream, group, "m1", "--sleep", "1ms")
        stage.admin_traffic(stream)
        stage.until("the member has handled all", lambda: member.text().count("acknowledged") >= 10)
        stage.run("groups", "cg", kind, "info", stream, group)
        stage.run("groups", "cg", kind, "pause", stream, group)
        if kind == "elastic":
            # What it has not handled it asks for, to see how far the source was copied.
            stage.admin_traffic(stream)
            asked = "PUB $JS.API.STREAM.MSG.GET.orders-workers"
            stage.until("the member looks how far its stream was copied", lambda: stage.count("member", asked))
        stage.run("groups", "cg", kind, "resume", stream, group)
        lose_broker(stage, member=f"{kind}-consumer-groups")
        lose_broker(stage, member="natsway-consumer-groups")
        # Hands its partitions over, and is there again.
        stage.run("groups", "cg", kind, "step-down", stream, group, "m1")
        stage.admin_traffic(stream)
        published = 30 if kind == "elastic" else 20
        stage.until("the member goes on", lambda: member.text().count("acknowledged") >= published)
        stage.stop(member)
    stage.admin_stream("dead")
    stage.run("groups", "cg", "elastic", "dead-letter", "orders", "workers", "dead.orders", "--after", "3")
    stage.run("groups", "cg", "static", "reset", "events", "readers", "--to-seq", "1")
    stage.run("groups", "cg", "elastic", "ls", "orders")
    stage.run("groups", "cg", "static", "ls", "events")
    stage.run_admin("cg", "elastic", "repartition", "orders", "workers", "8")
    stage.run_admin("cg", "elastic", "delete", "--force", "orders", "workers")
    stage.run("groups", "cg", "static", "delete", "--force", "events", "readers")


def shipping(stage: Stage) -> None:
    """Lines by JetStream, over a restart of both sides, and lines in the core."""
    stage.set_up("--shipper")
    logs = stage.directory / "logs"
    logs.mkdir()
    common = {"SHIPPER_SUBJECT": "logs", "SHIPPER_STREAM": "LOGS", "SHIPPER_PARTITIONS": "2"}
    for mode in ("jetstream", "core"):
        source, lines = logs / f"{mode}.log", stage.directory / f"lines-{mode}"
        variables = {
            **common,
            "SHIPPER_MODE": mode,
            "SHIPPER_FILE": str(source),
            "SHIPPER_STATE": str(stage.directory / f"state-{mode}"),
            "SHIPPER_READ_PARTITIONS": "0,1",
            "SHIPPER_DIRECTORY": str(lines),
            "SHIPPER_OUTPUT": "lines",
        }
        source.write_text("", encoding="utf-8")
        for number in (1, 2):
            sides = start_sides(stage, mode, variables)
            with open(source, "a", encoding="utf-8") as out:
                out.write(f"line {number}\n")
            stage.until(f"line {number} arrived", lambda: f"line {number}" in written(lines))
            if mode == "jetstream":
                stage.run("consumer", "consumer", "status", **variables)
            for side in sides:
                stage.stop(side)


def start_sides(stage: Stage, mode: str, variables: Dict[str, str]) -> Tuple[Running, Running]:
    """The consumer first: in the core nothing is kept for it."""
    heard = stage.count("consumer", "SUB logs.p1.>")
    consumer = stage.start("consumer", "consumer", **variables)
    if mode == "core":
        stage.until("the consumer listens", lambda: stage.count("consumer", "SUB logs.p1.>") > heard)
    return stage.start("producer", "producer", **variables), consumer


def shared(stage: Stage) -> None:
    """Lines to consumers that share the partitions: a second one comes, the first leaves, another is dropped."""
    source, lines = stage.directory / "app.log", stage.directory / "lines"
    source.write_text("", encoding="utf-8")
    variables = {
        "SHIPPER_SUBJECT": "logs",
        "SHIPPER_STREAM": "LOGS",
        "SHIPPER_PARTITIONS": "2",
        "SHIPPER_FILE": str(source),
        "SHIPPER_STATE": str(stage.directory / "state"),
        "SHIPPER_READ_PARTITIONS": "auto",
        "SHIPPER_OUTPUT": "lines",
        "SHIPPER_MEMBER_TIMEOUT": "2s",
    }

    def consumer(name: str) -> Running:
        return stage.start("consumer", "consumer", SHIPPER_DIRECTORY=str(lines / name), **variables)

    def line(text: str) -> None:
        with open(source, "a", encoding="utf-8") as out:
            out.write(f"{text}\n")
        stage.until(f"{text} arrived", lambda: text in written(lines))

    stage.set_up("--shipper", "--member-timeout", "2s")
    stage.run_admin("cg", "elastic", "create", "LOGS", "default", "2", "--filter", "logs.>", "--wildcards", "")
    one = consumer("one")
    producer = stage.start("producer", "producer", **variables)
    line("line 1")
    two = consumer("two")
    stage.until("both take part", lambda: "Waiting for messages" in two.text())
    stage.stop(one)
    line("line 2")
    lose_broker(stage, consumer="elastic-consumer-groups")
    line("line 3")
    gone = consumer("three")
    stage.until("a third takes part", lambda: "Waiting for messages" in gone.text())
    gone.process.kill()
    stage.until("it is missed", lambda: "dropping silent members" in two.text())
    line("line 4")
    stage.run("consumer", "consumer", "status", SHIPPER_DIRECTORY=str(lines / "two"), **variables)
    stage.stop(two)
    stage.stop(producer)


def written(directory: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in directory.rglob("lines*") if path.is_file())


# Which play a role is in.
PLAYS: Dict[str, Callable[[Stage], None]] = {
    "admin": groups,
    "gateway": requests,
    "worker": requests,
    "caller": requests,
    "operator": requests,
    "provisioner": requests,
    "groups": groups,
    "member": groups,
    "producer": shipping,
    "consumer": shipping,
    "shared": shared,
    "scout": scout,
}
