"""What a role could try that none of our programs does, and what of it the broker lets happen.

An attack is tried by a connection of its own with the role's password, on a broker where every bucket and stream is there. `found` gives
what succeeded: a set of facts `(id, role, detail)`. deploy/nats/remains.json has the facts that are known and why they remain;
what is found and not there, or there and not found, is a fault. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import json
import re
import secrets
import string
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, Iterable, List, Set, Tuple

from intruder import Intruder
from permissions import INSTEAD, PERMISSIONS, Permission, read_all, text_for
from plays import ROUTES
from stage import Stage

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

# What nobody of a role should cause, because others act on it: a route, a lease, a request, a directive, the API itself.
TARGETS = (
    "$KV.natsway-routes.forged",
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
        owner = stack.enter_context(stage.intruder("setup"))
        one = stack.enter_context(stage.intruder(INSTEAD.get(role, role)))
        owner.subscribe(">")
        owner.settle()
        facts |= answered_elsewhere(role, own, one, owner)
        facts |= own_words_elsewhere(role, own, one, owner)
        facts |= delivered_elsewhere(role, own, one, owner)
        facts |= read_whole(role, own, one)
        facts |= changed(role, one, owner)
        facts |= said_for_others(role, own)
    return facts


def forged_replies(broker: Path) -> Tuple[List[str], int]:
    """Has a worker that was sent a request answer another one, which somebody else has in hand; what did not hold, and how many guesses it had."""
    with Stage(broker, text_for("worker")) as stage:
        (stage.directory / "routes.toml").write_text(ROUTES, encoding="utf-8")
        where = ("--listen", f"127.0.0.1:{stage.listen}", "--admin-listen", f"127.0.0.1:{stage.admin}")
        stage.start("gateway", "apiproxy", "--static-routes", "--routes", str(stage.directory / "routes.toml"), *where, NATSWAY_CORES="1")
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


def guesses(token: str) -> List[str]:
    """Tokens that may come after one that was shown: counted on, and with any one letter another."""
    counted = [f"{int(token, 16) + (step << 32) + place:016x}" for step in range(256) for place in range(-3, 4)] if HEXADECIMAL.match(token) else []
    near = [token[:place] + letter + token[place + 1 :] for place in range(len(token)) for letter in LETTERS if letter != token[place]]
    return counted + near


def mark() -> str:
    """Something that no message has had."""
    return secrets.token_hex(6)


def answered_elsewhere(role: str, own: List[Permission], one: Intruder, owner: Intruder) -> Set[Fact]:
    """JetStream answers a question of the role's where the role may not publish."""
    asked = [p.subject for p in own if p.direction == "publish" and p.subject.startswith(("$JS.API.", "$KV.", "logs."))]
    for number, subject in enumerate(asked):
        reply = f"natsway.drain.{mark()}.{number}"
        one.publish(concrete(subject), b"", reply)
    one.settle()
    came = lambda: any(heard.subject.startswith("natsway.drain.") for heard in owner.heard)
    return {("answered-elsewhere", role, "")} if asked and owner.until(came, EFFECT_SECONDS) else set()


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


def delivered_elsewhere(role: str, own: List[Permission], one: Intruder, owner: Intruder) -> Set[Fact]:
    """A consumer that the role makes delivers to whoever listens on a subject, where the role may not publish."""
    for stream, subject in creating(own):
        target = f"natsway.drain.{mark()}"
        with_target = {"deliver_subject": target, "ack_policy": "none", "deliver_policy": "last"}
        name = subject.split(".")[5] if len(subject.split(".")) > 5 else ""
        config = {**with_target, **({"name": name} if name else {})}
        owner.subscribe(target)
        owner.settle()
        answer = one.ask(subject, {"stream_name": stream, "config": config})
        if answer is not None and json.loads(answer.payload).get("config", {}).get("deliver_subject") == target:
            return {("delivered-elsewhere", role, "")}
    return set()


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


def said_for_others(role: str, own: List[Permission]) -> Set[Fact]:
    """What a role may say in another's name, because the subject says who speaks and all of the kind may use it."""
    names = {
        "metrics-of-gateways": "natsway.metrics.gateway.another",
        "metrics-of-callers": "natsway.metrics.caller.another",
        "metrics-of-anybody": "natsway.figures.another",
        "cancels-and-pings-any-worker": "natsway.worker.another",
        "ends-consumers-of-others": "$JS.API.CONSUMER.DELETE.KV_natsway-routes.another",
        "floods-inboxes-of-gateways": "_INBOX_apiproxy.another.token",
        "says-that-workers-are-there": "natsway.present.svc.demo.another",
        "has-gateways-stand-in": "natsway.tombstone.svc.demo.another",
    }
    facts = {(name, role, "") for name, subject in names.items() if may(own, "publish", subject)}
    heard = {"hears-commands-to-all-workers": "natsway.worker.another", "takes-requests-of-all-services": "svc.demo.another"}
    return facts | {(name, role, "") for name, subject in heard.items() if may(own, "subscribe", subject, "q")}
