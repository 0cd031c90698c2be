"""What a role could try that none of our programs does, and what of it the broker lets happen.

An attack is tried by a connection of its own with the role's password, on a broker where every bucket and stream is there. `found` gives
what succeeded: a set of facts `(id, role, detail)`. deploy/nats/remains.json has the facts that are known and why they remain;
what is found and not there, or there and not found, is a fault. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import string
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, Iterable, List, Set, Tuple

from intruder import Intruder
from permissions import INSTEAD, PERMISSIONS, Permission, read_all, text_for
from plays import ROUTES, start_gateway
from stage import Running, Stage, free_port

REMAINS = PERMISSIONS.parent / "remains.json"

# An id, the role, and where it matters what is reached.
Fact = Tuple[str, str, str]

# Whoever makes streams can do anything; nothing is tried on his behalf.
ALMIGHTY = "admin"

# How long to wait for what an attack may cause. What is refused causes nothing, however long one waits.
EFFECT_SECONDS = 1.0

# The digits of a token, of now and of once.
LETTERS = string.ascii_letters + string.digits + "-_"
HEXADECIMAL = re.compile(r"^[0-9a-f]{16}$")

# Questions that change what the other attacks need.
ORDERS = ("$JS.API.STREAM.CREATE.", "$JS.API.STREAM.UPDATE.", "$JS.API.STREAM.DELETE.", "$JS.API.CONSUMER.DELETE.", "$JS.API.CONSUMER.UNPIN.", "$JS.API.CONSUMER.RESET.")

# What nobody of a role should cause, because others act on it: a route, a lease, a request, a directive, the API itself.
TARGETS = (
    "$KV.natsway-routes.forged",
    "natsway.figures.forged",
    "svc.demo.forged",
    "natsway.drain.svc.demo.forged",
    "natsway.scale-out.svc.demo.forged",
    "_INBOX_apiproxy.forged.forged",
    "$JS.API.STREAM.PURGE.KV_natsway-routes",
    "$JS.API.STREAM.DELETE.KV_natsway-routes",
    "$JS.API.STREAM.CREATE.FORGED",
)


def remaining() -> Dict[str, Dict[str, object]]:
    """What is known to remain, by its id: `roles`, or `reaches` for each role, and `what` in words."""
    return dict(json.loads(REMAINS.read_text(encoding="utf-8")))


def table() -> List[str]:
    """What remains as rows of docs/security.md: the id, whose it is, what it is, and why it remains."""
    rows = []
    for name, entry in remaining().items():
        reaches, roles = entry.get("reaches"), entry.get("roles", [])
        if isinstance(reaches, dict):
            whose = "; ".join(f"{role}: {', '.join(streams)}" for role, streams in sorted(reaches.items()))
        else:
            assert isinstance(roles, list)
            whose = ", ".join(sorted(roles))
        rows.append(f"| `{name}` | {whose} | {entry['what']} | {entry['why']} |")
    return rows


def known() -> Set[Fact]:
    """The facts that are known to remain."""
    facts: Set[Fact] = set()
    for name, entry in remaining().items():
        reaches = entry.get("reaches", {})
        assert isinstance(reaches, dict)
        facts |= {(name, role, detail) for role, details in reaches.items() for detail in details}
        roles = entry.get("roles", [])
        assert isinstance(roles, list)
        facts |= {(name, role, "") for role in roles}
    return facts


def differences(found: Set[Fact], roles: Iterable[str]) -> List[str]:
    """What of the facts about these roles is not as it is known."""
    wanted = {fact for fact in known() if fact[1] in set(roles)}
    say = lambda fact: " ".join(part for part in fact if part)
    faults = [f"POSSIBLE, and not in {REMAINS.name}: {say(fact)}" for fact in sorted(found - wanted)]
    return faults + [f"NOT POSSIBLE, and in {REMAINS.name}: {say(fact)}" for fact in sorted(wanted - found)]


def prove(broker: Path, extras: bool) -> Tuple[List[str], int]:
    """Tries everything as every role; what did not hold, and how much was tried. With `extras` also as the roles of permissions-extra.conf."""
    faults: List[str] = []
    tried = 0
    roles = sorted({permission.role for permission in read_all()} - {ALMIGHTY})
    usual = [role for role in roles if role not in INSTEAD]
    for cast in [usual] + ([[role] for role in roles if role in INSTEAD] if extras else []):
        with Stage(broker, text_for(cast[0])) as stage:
            furnish(stage)
            for role in cast:
                told, count = keeps_to_its_own(stage, role)
                faults += told
                tried += count
            faults += differences({fact for role in cast for fact in found(stage, role)}, cast)
    return faults, tried


def furnish(stage: Stage) -> None:
    """Makes every bucket and stream that permissions name."""
    stage.set_up("--groups", "--shipper")
    stage.admin_stream("orders")
    stage.admin_stream("events", partitions=4)
    stage.run_admin("cg", "elastic", "create", "orders", "workers", "4", "--filter", "orders.*", "--wildcards", "1")
    stage.run_admin("cg", "elastic", "create", "LOGS", "default", "2", "--filter", "logs.>", "--wildcards", "")
    with stage.intruder("setup") as owner:
        for subject in ("$KV.natsway-routes.demo", "logs.p0.host", "orders.1", "events.1"):
            assert owner.ask(subject, b"the owner's") is not None, f"nobody keeps {subject}"


def concrete(subject: str) -> str:
    """A subject that a pattern covers."""
    return ".".join({"*": "x", ">": "x.y"}.get(token, token) for token in subject.split("."))


def of_role(role: str) -> List[Permission]:
    return [permission for permission in read_all() if permission.role == role]


def may(own: List[Permission], direction: str, subject: str, queue: str = "") -> bool:
    """Whether the file says that it is permitted."""
    return any(permission.covers(direction, subject, queue) for permission in own)


def keeps_to_its_own(stage: Stage, role: str) -> Tuple[List[str], int]:
    """Tries every subject of every other role, as it is and by a reply subject of a message to itself; what the broker let through that is
    not among the role's own, and how much was tried."""
    own = of_role(role)
    others = [permission for permission in read_all() if permission.role != role]
    publish = sorted({concrete(p.subject) for p in others if p.direction == "publish"} | set(TARGETS))
    publish = [subject for subject in publish if not may(own, "publish", subject)]
    hear = sorted({p.subject.split(" ")[0] for p in others if p.direction == "subscribe"} | {"svc.>", "$KV.>", "$JS.>", "_INBOX.>", ">"})
    hear = [pattern for pattern in hear if not may(own, "subscribe", pattern)]
    with stage.intruder(INSTEAD.get(role, role)) as one:
        one.subscribe(f"{one.inbox}.self")
        for subject in publish:
            one.publish(subject, b"forged")
            # Only who may publish to himself can be told by himself where he may publish.
            if may(own, "publish", f"{one.inbox}.self"):
                one.publish(f"{one.inbox}.self", b"", subject)
        one.settle()
        one.refused, before = [], list(one.refused)
        for subject in publish:
            one.publish(subject, b"forged")
        for pattern in hear:
            one.subscribe(pattern)
            one.subscribe(concrete(pattern), "another-queue")
        one.settle()
        faults = [f"{role} may publish {subject}" for subject in publish if ("publish", subject) not in before]
        faults += [f"{role} may publish {subject} after a message to itself" for subject in publish if ("publish", subject) not in one.refused]
        faults += [f"{role} may hear {pattern}" for pattern in hear if ("subscribe", pattern) not in one.refused]
        faults += [
            f"{role} may hear {concrete(pattern)} in another queue" for pattern in hear if ("subscribe", concrete(pattern)) not in one.refused
        ]
    return faults, 2 * len(publish) + 2 * len(hear)


def found(stage: Stage, role: str) -> Set[Fact]:
    """What a role gets the broker to do that its permissions do not say."""
    own = of_role(role)
    facts: Set[Fact] = set()
    with ExitStack() as stack:
        owner = stack.enter_context(stage.owner(role))
        one = stack.enter_context(stage.intruder(INSTEAD.get(role, role)))
        owner.subscribe(">")
        owner.settle()
        facts |= answered_elsewhere(role, one, owner)
        facts |= own_words_elsewhere(role, own, one, owner)
        facts |= delivered_elsewhere(stage, role, one)
        facts |= read_whole(role, own, one)
        facts |= changed(role, one, owner)
        facts |= said_for_others(role, one, owner)
        facts |= ended(role, one, owner)
    return facts


def forged_replies(broker: Path) -> Tuple[List[str], int]:
    """Has a worker that was sent a request answer another one, which somebody else has in hand; what did not hold, and how many guesses it had."""
    with Stage(broker, text_for("worker")) as stage:
        (stage.directory / "routes.toml").write_text(ROUTES, encoding="utf-8")
        where = ("--listen", f"127.0.0.1:{stage.listen}", "--admin-listen", f"127.0.0.1:{stage.admin}")
        stage.start("gateway", "apiproxy", "--static-routes", "--routes", str(stage.directory / "routes.toml"), *where, NATSWAY_SHARDS="1")
        worker = stage.start("worker", "worker", "--subject", "svc.demo.blue")
        with stage.intruder("setup") as owner:
            # What a worker is told, and what it answers.
            owner.subscribe("_INBOX_apiproxy.>")
            owner.settle()
            stage.until("the worker answers", lambda: stage.get("/version")[0] == 200)
            owner.settle()
            answer = [heard for heard in owner.heard if b"svc.demo.blue" in heard.payload][-1]
        session, _, token = answer.subject.rpartition(".")
        answers: List[Tuple[int, str]] = []
        asking = threading.Thread(target=lambda: answers.append(stage.get("/slow?ms=1500", 20.0)))
        asking.start()
        forged = guesses(token)
        with stage.intruder("worker") as one:
            while asking.is_alive():
                for guess in forged:
                    one.publish(f"{session}.{guess}", answer.payload)
                one.settle()
        assert worker.process.poll() is None, worker.text()
        asking.join()
        counted = re.search(r"^natsway_late_replies_total (\d+)", stage.metrics(), re.MULTILINE)
        faults = [f"a guessed token was taken for the answer: {answers[0]}"] if "svc.demo.blue" in answers[0][1] else []
        if counted is None or int(counted.group(1)) < len(forged):
            faults.append(f"forged replies are not counted: {counted and counted.group(0)}")
        return faults, len(forged)


# What is said in another's name: by which source, of which role, and of whom.
FORGERIES = (
    ("gateway", "gateway", "gateway"),
    ("caller", "gateway", "gateway"),
    ("caller", "caller", "gateway"),
    ("caller", "caller", "caller"),
)

# Which of them remains, where the gateway takes it for the other's own words.
BELIEVED = {"gateway": "metrics-of-gateways", "caller": "metrics-of-callers"}


def forged_metrics(broker: Path) -> Tuple[List[str], int]:
    """Has every role report in the name of a gateway and of a caller that are at work, and looks what another gateway makes of it; what did
    not hold, and how much was tried."""
    with Stage(broker, text_for("caller")) as stage:
        stage.set_up()
        (stage.directory / "routes.toml").write_text(ROUTES, encoding="utf-8")
        with stage.owner("gateway") as owner:
            reports = Reports(owner)
            start_gateway(stage, stage.listen, stage.admin)
            stage.until("a gateway reports", lambda: reports.of("gateway"))
            # This one judges. The others are spoken for.
            judge, *_ = reports.of("gateway")
            victim = start_gateway(stage, free_port(), free_port())
            stage.start("caller", "examples/caller")
            for version in ("blue", "green"):
                stage.start("worker", "worker", "--subject", f"svc.demo.{version}")
            stage.until("another gateway and a caller report", lambda: set(reports.of("gateway")) > {judge} and reports.of("caller"))
            (other,) = set(reports.of("gateway")) - {judge}
            reports.judge, reports.victims = judge, {"gateway": other, "caller": next(iter(reports.of("caller")))}
            stage.until("it has its routes", lambda: "routes in force" in victim.text())
            faults, tried = disbelieved(stage, reports)
            return faults + stands_still(stage, victim, reports), tried


class Reports:
    """The newest whole report of each sender, as whoever may hear everything has it."""

    def __init__(self, owner: Intruder) -> None:
        # The gateway that judges, and who is spoken for of each source.
        self.judge = ""
        self.victims: Dict[str, str] = {}
        self._owner = owner
        self._newest: Dict[Tuple[str, str], Dict[str, object]] = {}
        self._heard: Dict[Tuple[str, str], float] = {}
        self._numbers: Dict[Tuple[str, str], int] = {}
        owner.subscribe("natsway.metrics.*.*")

    def of(self, source: str) -> Dict[str, Dict[str, object]]:
        """Those of a source, by who sent them."""
        self._owner.settle()
        for heard in self._owner.heard:
            _, _, of, sender = heard.subject.split(".")
            report = json.loads(heard.payload)
            key = (of, sender)
            self._numbers[key] = max(report["number"], self._numbers.get(key, 0))
            if report["whole"]:
                self._newest[key], self._heard[key] = report, time.monotonic()
        self._owner.heard = []
        return {sender: report for (of, sender), report in self._newest.items() if of == source}

    def continued(self, source: str, claimed: str) -> bytes:
        """What the victim of a source could say next: it goes by the judge's routes."""
        key = (source, self.victims[source])
        report, judges = self.of(source)[key[1]], self.of("gateway")[self.judge]
        age = report["age_ms"]
        assert isinstance(age, int)
        self._numbers[key] += 1
        age += int(1000 * (time.monotonic() - self._heard[key]))
        routes = {"revision": judges["revision"], "bucket": judges["bucket"]}
        return json.dumps({**report, **routes, "role": claimed, "age_ms": age, "number": self._numbers[key]}).encode()


def disbelieved(stage: Stage, reports: Reports) -> Tuple[List[str], int]:
    """Every forgery as every role: which are counted against the one who is meant, and which as nobody's."""
    facts: Set[Fact] = set()
    faults: List[str] = []
    roles = sorted({permission.role for permission in read_all()} - {ALMIGHTY} - set(INSTEAD))
    for role in roles:
        with stage.intruder(role) as one:
            for source, claimed, of in FORGERIES:
                before, victim = disbeliefs(stage), reports.victims[of]
                # It has been there for an hour, which the victim has not, and leaves.
                said = json.dumps({"id": victim, "role": claimed, "age_ms": 3_600_000, "number": 1, "parts": 1, "whole": True, "leaving": True})
                permitted = one.may_publish(f"natsway.metrics.{source}.{victim}", said.encode())
                counted = lambda before=before: {reason for reason, count in disbeliefs(stage).items() if count > before.get(reason, 0)}
                stage.wait(counted, EFFECT_SECONDS if permitted else 0.0)
                if "contradiction" in counted():
                    facts.add((BELIEVED[of], role, ""))
                if permitted and claimed != source and "foreign" not in counted():
                    faults.append(f"{role}: a {claimed}'s report is not counted as nobody's where a {source} speaks")
    wanted = {fact for fact in known() if fact[0] in BELIEVED.values() and fact[1] in roles}
    faults += [f"a report is taken for another's own, or is not, against {REMAINS.name}: {fact}" for fact in sorted(facts ^ wanted)]
    return faults, len(roles) * len(FORGERIES)


def disbeliefs(stage: Stage) -> Dict[str, int]:
    """How many reports the judge has not believed, by why."""
    found = re.findall(r'^natsway_reports_rejected_total\{reason="(\w+)"\} (\d+)', stage.metrics(), re.MULTILINE)
    return {reason: int(count) for reason, count in found}


def stands_still(stage: Stage, victim: Running, reports: Reports) -> List[str]:
    """A gateway stands still while a version is left, and may wake and send it a request. A caller says in its name that it goes by the new
    routes, and the gateway that drives does not believe it. In the mouth of a gateway it is believed: that the caller may not say it there
    is what keeps it from that."""
    faults = []
    os.kill(victim.process.pid, signal.SIGSTOP)
    try:
        for role, target, ways in (("caller", "green", FORGERIES[1:3]), ("gateway", "blue", FORGERIES[:1])):
            stage.run("operator", "apiproxy", "rollout", "start", "demo", "--to", target, "--strategy", "blue-green")
            with stage.intruder(role) as one:

                def is_over(one: Intruder = one, ways: Iterable[Tuple[str, str, str]] = ways) -> bool:
                    for source, claimed, of in ways:
                        one.publish(f"natsway.metrics.{source}.{reports.victims[of]}", reports.continued(of, claimed))
                    one.settle()
                    return rollout(stage).get("phase") == "promoted"

                stage.until(f"the rollout to {target} is over", is_over)
            is_named = bool(rollout(stage).get("behind"))
            if is_named != (role == "caller"):
                faults.append(f"{role}: a gateway that stands still is {'' if is_named else 'not '}named: {rollout(stage)}")
    finally:
        os.kill(victim.process.pid, signal.SIGCONT)
    return faults


def rollout(stage: Stage) -> Dict[str, object]:
    """The rollout of the route `demo`, as its document has it."""
    return dict(json.loads(stage.run("operator", "apiproxy", "routes", "get", "demo")).get("rollout") or {})


def guesses(token: str) -> List[str]:
    """Tokens that may come after one that was shown: counted on, and with any one letter another."""
    counted = [f"{int(token, 16) + (step << 32) + place:016x}" for step in range(256) for place in range(-3, 4)] if HEXADECIMAL.match(token) else []
    near = [token[:place] + letter + token[place + 1 :] for place in range(len(token)) for letter in LETTERS if letter != token[place]]
    return counted + near


def mark() -> str:
    """Something that no message has had."""
    return secrets.token_hex(6)


def answered_elsewhere(role: str, one: Intruder, owner: Intruder) -> Set[Fact]:
    """JetStream answers a question, anybody's, where the role may not publish."""
    text = mark()
    asked = {concrete(p.subject) for p in read_all() if p.direction == "publish" and p.subject.startswith(("$JS.API.", "$KV.", "logs."))}
    for number, subject in enumerate(sorted(asked - set(TARGETS))):
        if not subject.startswith(ORDERS):
            one.publish(subject, b"", f"natsway.drain.{text}.{number}")
    one.settle()
    came = lambda: any(heard.subject.startswith(f"natsway.drain.{text}.") for heard in owner.heard)
    return {("answered-elsewhere", role, "")} if owner.until(came, EFFECT_SECONDS) else set()


def own_words_elsewhere(role: str, own: List[Permission], one: Intruder, owner: Intruder) -> Set[Fact]:
    """The broker publishes what the role has stored, word for word, where the role may not publish: by a direct get."""
    for permission in own:
        if permission.direction == "publish" and permission.subject.startswith(("$KV.", "logs.")):
            key, text = concrete(permission.subject), mark().encode()
            stream = "LOGS" if key.startswith("logs.") else f"KV_{key.split('.')[1]}"
            one.publish(key, text)
            one.publish(f"$JS.API.DIRECT.GET.{stream}.{key}", b'{"no_hdr": true}', f"natsway.drain.{mark()}")
            # By its place in the stream as well.
            one.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps({"last_by_subj": key, "no_hdr": True}).encode(), f"natsway.drain.{mark()}")
            one.settle()
            came = lambda text=text: any(h.subject.startswith("natsway.drain.") and h.payload == text for h in owner.heard)
            if owner.until(came, EFFECT_SECONDS):
                return {("own-words-elsewhere", role, "")}
    return set()


def delivered_elsewhere(stage: Stage, role: str, one: Intruder) -> Set[Fact]:
    """A consumer that the role makes, on any stream, delivers to whoever listens on a subject, where the role may not publish."""
    asked = [(stream, subject, f"natsway.drain.{mark()}") for stream, subject in creating(read_all())]
    with stage.owner(role) as listener:
        # JetStream delivers only where somebody asks for this very subject.
        for _, _, target in asked:
            listener.subscribe(target)
        listener.settle()
        for stream, subject, target in asked:
            one.publish(subject, json.dumps(consumer(stream, subject, target)).encode())
        one.settle()
        came = listener.until(lambda: listener.heard, EFFECT_SECONDS)
    return {("delivered-elsewhere", role, "")} if came else set()


def consumer(stream: str, subject: str, target: str, group: str = "") -> Dict[str, object]:
    """The question on `subject` that makes a consumer which delivers the last message of a stream, perhaps to a queue group."""
    words = subject.split(".")
    config = {"deliver_subject": target, "ack_policy": "none", "deliver_policy": "last", **({"deliver_group": group} if group else {})}
    return {"stream_name": stream, "config": {**config, **({"name": words[5]} if len(words) > 5 else {})}}


def creating(own: List[Permission]) -> List[Tuple[str, str]]:
    """Streams on which a role may make consumers, and the subject by which."""
    begin = "$JS.API.CONSUMER.CREATE."
    subjects = [p.subject for p in own if p.direction == "publish" and p.subject.startswith(begin)]
    return [(subject[len(begin) :].split(".")[0], concrete(subject).replace("x.y", "x")) for subject in subjects]


def read_whole(role: str, own: List[Permission], one: Intruder) -> Set[Fact]:
    """Streams of which the role reads whatever it likes."""
    begin = "$JS.API.STREAM.MSG.GET."
    streams = {stream for stream, _ in creating(own)}
    for permission in own:
        if permission.direction == "publish" and permission.subject.startswith(begin):
            stream = permission.subject[len(begin) :]
            answer = one.ask(permission.subject, {"seq": 1})
            assert answer is not None and b"not supported" not in answer.payload, f"{role} does not read {stream}"
            streams.add(stream)
    return {("reads-whole-stream", role, stream) for stream in streams}


def changed(role: str, one: Intruder, owner: Intruder) -> Set[Fact]:
    """What is there that should not be, or is not there any more: streams made, changed, purged or deleted, also by answers of the broker's
    that are sent to its own API."""
    before = streams(owner)
    evil = {"name": "FORGED", "subjects": ["svc.>"]}
    one.publish("$JS.API.STREAM.CREATE.FORGED", json.dumps(evil).encode())
    for stream in before:
        config = {**before[stream], "republish": {"src": ">", "dest": "svc.>"}}
        config.pop("first")
        one.publish(f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(config).encode())
        one.publish(f"$JS.API.STREAM.PURGE.{stream}")
        one.publish(f"$JS.API.STREAM.DELETE.{stream}")
        for verb in ("PURGE", "DELETE"):
            # The answer to this question, to the API as a question.
            one.publish(f"$JS.API.STREAM.INFO.{stream}", b"", f"$JS.API.STREAM.{verb}.{stream}")
    one.publish("$JS.API.STREAM.INFO.KV_natsway-routes", b"", "$JS.API.STREAM.CREATE.FORGED")
    one.settle()
    owner.until(lambda: False, 0.2)
    after = streams(owner)
    facts = {("changes-stream", role, stream) for stream in set(before) ^ set(after)}
    return facts | {("changes-stream", role, name) for name in set(before) & set(after) if before[name] != after[name]}


def streams(owner: Intruder) -> Dict[str, Dict[str, object]]:
    """The settings of every stream, and whether it has lost what it held."""
    answer = owner.ask("$JS.API.STREAM.LIST")
    assert answer is not None, "the broker lists its streams"
    found = json.loads(answer.payload)["streams"]
    return {stream["config"]["name"]: {**stream["config"], "first": stream["state"]["first_seq"]} for stream in found if keeps(stream)}


def keeps(stream: Dict[str, Dict[str, object]]) -> bool:
    """Whether a stream forgets nothing by itself within a proof."""
    age = stream["config"].get("max_age", 0)
    assert isinstance(age, int)
    return age == 0 or age > 3_600_000_000_000


def by_trying(role: str, tries: Iterable[Tuple[str, str, str]], one: Intruder, owner: Intruder) -> Set[Fact]:
    """Which of these the broker lets a role do: an id, a detail, and `say SUBJECT`, which somebody hears then, or
    `hear SUBJECT by PATTERN QUEUE`, what somebody says there."""
    facts: Set[Fact] = set()
    for name, detail, attempt in tries:
        verb, subject, *means = attempt.split(" ")
        text = mark().encode()
        if verb == "hear":
            one.subscribe(*means[1:])
            one.settle()
        speaker, listener = (one, owner) if verb == "say" else (owner, one)
        speaker.publish(subject, text)
        speaker.settle()
        listener.settle()
        if any(heard.payload == text for heard in listener.heard):
            facts.add((name, role, detail))
    return facts


def said_for_others(role: str, one: Intruder, owner: Intruder) -> Set[Fact]:
    """What a role says in another's name, because the subject says who speaks and all of the kind may use it; and what it hears so."""
    tries = [(name, "", str(entry["try"])) for name, entry in remaining().items() if "try" in entry]
    return by_trying(role, tries, one, owner)


def ended(role: str, one: Intruder, owner: Intruder) -> Set[Fact]:
    """A consumer on the routes that is somebody else's, and is not there any more."""
    name = f"another-{mark()}"
    made = {"stream_name": "KV_natsway-routes", "config": {"name": name, "ack_policy": "none", "inactive_threshold": 60_000_000_000}}
    answer = owner.ask(f"$JS.API.CONSUMER.CREATE.KV_natsway-routes.{name}", made)
    assert answer is not None and b'"error"' not in answer.payload, answer
    one.publish(f"$JS.API.CONSUMER.DELETE.KV_natsway-routes.{name}")
    one.settle()
    left = owner.ask(f"$JS.API.CONSUMER.INFO.KV_natsway-routes.{name}")
    return {("ends-consumers-of-others", role, "")} if left is not None and b'"error"' in left.payload else set()
