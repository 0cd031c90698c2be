"""What crosses the accounts of deploy/nats/accounts.conf, by trying: everything, from each account and as each of its users.

deploy/nats/crossings.json has the exact list: what is said where and heard elsewhere, who says it, who hears it, how many answers come
back, and what else remains possible. What crosses and is not there, or is there and does not cross, is a fault. Standard library only,
Python >= 3.9.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

import accounts
import attacks
from accounts import AccountsStage, Line, User
from attacks import EFFECT_SECONDS, Fact, concrete, mark, may
from intruder import Heard, Intruder
from permissions import PERMISSIONS, Permission, matches, read, read_all
from stage import ROLES, Failed

CROSSINGS = PERMISSIONS.parent / "crossings.json"

# Account and subject of what was said, and the same of what was heard.
Passage = Tuple[str, str, str, str]


@dataclass(frozen=True)
class Crossing:
    """One thing that is said in one account and heard in another."""

    what: str
    source: str
    sink: str
    said: str
    heard: str
    answers: str
    said_by: Tuple[str, ...]
    heard_by: Tuple[str, ...]

    @property
    def name(self) -> str:
        team = self.sink if self.sink.startswith("TEAM") else self.source
        return f"{self.what} {team}"

    def passage(self, account: str, subject: str) -> List[Passage]:
        """How a subject that is said in an account is heard by this crossing, if it is."""
        if account != self.source or not matches(self.said, subject):
            return []
        return [(account, subject, self.sink, mapped(self.said, self.heard, subject))]


def mapped(pattern: str, onto: str, subject: str) -> str:
    """A subject of one pattern in the form of another, whose wildcards are the same."""
    if pattern == onto:
        return subject
    wild = [token for token, wanted in zip(subject.split("."), pattern.split(".")) if wanted == "*"]
    return ".".join(wild.pop(0) if token == "*" else token for token in onto.split("."))


def document() -> Dict[str, object]:
    return dict(json.loads(CROSSINGS.read_text(encoding="utf-8")))


def for_teams(entry: object) -> List[object]:
    """An entry for each team, where it speaks of teams."""
    teams = document()["teams"]
    assert isinstance(teams, dict)
    text = json.dumps(entry)
    if not re.search(r"<team>", text, re.IGNORECASE):
        return [entry]
    return [json.loads(text.replace("<TEAM>", account).replace("<team>", name)) for account, name in teams.items()]


@lru_cache(maxsize=None)
def crossings() -> Tuple[Crossing, ...]:
    """All that crosses, of each team."""
    entries = document()["crossings"]
    assert isinstance(entries, list)
    return tuple(
        Crossing(e["what"], e["from"], e["to"], e["said"], e["heard"], e["answers"], tuple(e["said_by"]), tuple(e["heard_by"]))
        for entry in entries
        for e in for_teams(entry)
    )


@lru_cache(maxsize=None)
def subjects() -> Tuple[str, ...]:
    """Everything that anybody says or hears in any account, and what is close to what crosses."""
    never = document()["never"]
    assert isinstance(never, list)
    known = {p.subject.split(" ")[0] for p in read_all() + read(accounts.ACCOUNTS)} | set(attacks.TARGETS) | set(never)
    for crossing in crossings():
        known |= {crossing.said, crossing.heard}
    return tuple(sorted({concrete(subject) for subject in known}))


def passages(stage: AccountsStage, universe: Iterable[str]) -> Set[Passage]:
    """What is heard in another account, when somebody who may do anything says everything in each."""
    found: Set[Passage] = set()
    with ExitStack() as stack:
        owners = {account: stack.enter_context(stage.owner_of_account(account)) for account in accounts.names()}
        for owner in owners.values():
            owner.subscribe(">")
            owner.settle()
        for account, owner in owners.items():
            for subject in universe:
                owner.publish(subject, f"{account} {subject}".encode())
            owner.settle()
        for account, owner in owners.items():
            owner.settle()
            for heard in owner.heard:
                source, _, subject = heard.payload.decode(errors="replace").partition(" ")
                if source in owners and source != account:
                    found.add((source, subject, account, heard.subject))
    return found


def expected_passages(universe: Iterable[str], of: Iterable[Crossing]) -> Set[Passage]:
    of = list(of)
    return {p for subject in universe for crossing in of for account in accounts.names() for p in crossing.passage(account, subject)}


def differing(found: Set[Passage], expected: Set[Passage]) -> List[str]:
    """What crosses and should not, and what should and does not."""
    faults = [f"CROSSES, and not in {CROSSINGS.name}: {' '.join(passage)}" for passage in sorted(found - expected)]
    return faults + [f"DOES NOT CROSS, and in {CROSSINGS.name}: {' '.join(passage)}" for passage in sorted(expected - found)]


def boundaries(broker: Path) -> Tuple[List[str], int]:
    """Tries all subjects from each account, and the answers to what crosses; what did not hold, and how much was tried."""
    universe = subjects()
    with AccountsStage(broker, accounts.text()) as stage:
        faults = differing(passages(stage, universe), expected_passages(universe, crossings()))
        for crossing in crossings():
            faults += answered(stage, crossing)
        faults += stored(stage, universe)
    return faults, len(universe) * len(accounts.names()) + 3 * len(crossings())


def answered(stage: AccountsStage, crossing: Crossing) -> List[str]:
    """Whether as many answers come back as should, and none from a third account that knows where they go."""
    wanted = {"none": 0, "one": 1, "many": 2}[crossing.answers]
    with ExitStack() as stack:
        owners = {account: stack.enter_context(stage.owner_of_account(account)) for account in accounts.names()}
        asker, answerer = owners[crossing.source], owners[crossing.sink]
        inbox = f"{asker.inbox}.{mark()}"
        asker.subscribe(inbox)
        asker.settle()
        answerer.subscribe(crossing.heard)
        answerer.settle()
        asker.publish(concrete(crossing.said), b"?", inbox)
        asker.settle()
        if not answerer.until(lambda: answerer.heard, EFFECT_SECONDS):
            return [f"{crossing.name}: the question is not heard"]
        where = answerer.heard[0].reply
        for other in set(owners) - {crossing.source, crossing.sink}:
            owners[other].publish(where or inbox, b"a third one's")
            owners[other].settle()
        for _ in range(2):
            answerer.publish(where or inbox, b"!")
        answerer.settle()
        asker.settle()
        came = [heard.payload for heard in asker.heard]
    faults = [f"{crossing.name}: {len(came)} answers come back, not {wanted}"] if len(came) != wanted else []
    faults += [f"{crossing.name}: a third account answers"] if b"a third one's" in came else []
    if wanted and not where.startswith("_R_."):
        faults.append(f"{crossing.name}: the asker's own reply subject is shown: {where}")
    return faults


def stored(stage: AccountsStage, universe: Sequence[str]) -> List[str]:
    """Whether a stream over everything that an administrator of an account makes has what others say, but for what crosses."""
    faults: List[str] = []
    taps = [user for user in accounts.users() if user.permissions == "admin"]
    for tap in taps:
        with ExitStack() as stack:
            one = stack.enter_context(stage.intruder(tap.name))
            patterns = ["svc.>", "natsway.>", "logs.>", "orders.>", "events.>", "_INBOX.>", "_INBOX_apiproxy.>", "_INBOX_worker.>"]
            answer = one.ask("$JS.API.STREAM.CREATE.TAP", {"name": "TAP", "subjects": patterns, "storage": "memory"})
            if answer is None or b'"error"' in answer.payload:
                return [f"{tap.name} makes no stream: {answer}"]
            for account in accounts.names():
                if account != tap.account:
                    owner = stack.enter_context(stage.owner_of_account(account))
                    for subject in universe:
                        # No order to JetStream, in whichever account.
                        if not subject.startswith("$JS.API.STREAM."):
                            owner.publish(subject, b"another's")
                    owner.settle()
            kept = one.ask("$JS.API.STREAM.INFO.TAP", {"subjects_filter": ">"})
            assert kept is not None
            found = set(json.loads(kept.payload)["state"].get("subjects", {}))
            of = [crossing for crossing in crossings() if crossing.sink == tap.account]
            expected = {p[3] for p in expected_passages(universe, of) if any(matches(pattern, p[3]) for pattern in patterns)}
            if found != expected:
                faults.append(f"{tap.name} stores {sorted(found ^ expected)} of others")
            one.ask("$JS.API.STREAM.DELETE.TAP")
    return faults


def drop(broker: Path, line: Line) -> List[str]:
    """Leaves one export or import out: the broker refuses what is imported and not exported, and what is not imported does not cross."""
    universe = subjects()
    try:
        with AccountsStage(broker, accounts.without(line)) as stage:
            if line.direction == "export":
                return [f"NOT NOTICED  {line}: the broker takes an import of what is not exported"]
            found = passages(stage, universe)
    except Failed as error:
        told = line.direction == "export" and f'"{line.subject}"' in str(error) and "not authorized" in str(error)
        return [] if told else [f"NOT TOLD  {line}: {error}"]
    lost = [crossing for crossing in crossings() if crosses_by(crossing, line)]
    if len(lost) != 1:
        return [f"{line}: {len(lost)} crossings of {CROSSINGS.name} go by it"]
    return [f"{line} left out: {fault}" for fault in differing(found, expected_passages(universe, set(crossings()) - set(lost)))]


def crosses_by(crossing: Crossing, line: Line) -> bool:
    """Whether a crossing needs an import. It stands in the account that begins, but for a stream's, which stands where it is heard."""
    imports = crossing.sink if crossing.answers == "none" else crossing.source
    exports = crossing.source if crossing.answers == "none" else crossing.sink
    source = accounts.text().splitlines()[line.number]
    return line.account == imports and f"account: {exports}," in source and line.subject == crossing.said


def prove(broker: Path, chosen: Optional[Sequence[User]] = None) -> Tuple[List[str], int]:
    """Tries everything as every user of every account, or as the chosen ones; what did not hold, and how much was tried."""
    chosen = chosen or who()
    with AccountsStage(broker, accounts.text()) as stage:
        furnish(stage)
        faults, tried = roles(stage, chosen)
        usual = [user.name for user in chosen if user.permissions in ROLES]
        # Within an account, what remains is what remains without accounts.
        inside = {fact for role in usual for fact in attacks.found(stage, role)}
        return faults + attacks.differences(inside, usual), tried


def who() -> List[User]:
    """Everybody but those who make streams: they can do anything in their account, as `boundaries` does."""
    return [user for user in accounts.users() if user.permissions != attacks.ALMIGHTY]


def furnish(stage: AccountsStage) -> None:
    """Makes every bucket and stream, each in its account."""
    for admin, *arguments in (("admin",), ("shipper-admin", "--shipper"), ("groups-admin", "--groups")):
        stage.run(admin, "apiproxy", "setup", *arguments)
    for account, name, partitions in (("NATSWAY", "orders", 0), ("GROUPS", "orders", 0), ("GROUPS", "events", 4)):
        kind = ("static", "setup", name, "--partitions", str(partitions)) if partitions else ("elastic", "setup", name)
        stage.run(accounts.owner_name(account), "cg", *kind)
    create = ("cg", "elastic", "create", "orders", "workers", "4", "--filter", "orders.*", "--wildcards", "1")
    stage.run("groups-admin", *create, NATS_INBOX_PREFIX="_INBOX_admin")
    for account, subject in (("NATSWAY", "$KV.natsway-routes.demo"), ("SHIPPER", "logs.p0.host"), ("GROUPS", "orders.1"), ("GROUPS", "events.1")):
        with stage.owner_of_account(account) as owner:
            assert owner.ask(subject, b"the owner's") is not None, f"nobody keeps {subject}"


def roles(stage: AccountsStage, chosen: Sequence[User]) -> Tuple[List[str], int]:
    """Has users say and ask to hear everything, and do by other means what is not permitted; what did not hold, and how much was tried."""
    universe = subjects()
    faults: List[str] = []
    found: Set[Fact] = set()
    for user in chosen:
        own = accounts.permissions_of(user)
        told, facts = says(stage, user, own, universe)
        faults += told
        found |= facts
        told, facts = hears(stage, user, own, universe)
        faults += told
        found |= facts
        found |= by_other_means(stage, user, own)
    return faults + differences(found, [user.name for user in chosen]), len(chosen) * 3 * len(universe)


def known() -> Set[Fact]:
    """The facts of crossings.json."""
    facts = {("says", role, crossing.name) for crossing in crossings() for role in crossing.said_by}
    return facts | {("hears", role, crossing.name) for crossing in crossings() for role in crossing.heard_by} | remaining_facts()


def remaining_facts() -> Set[Fact]:
    """Those of them that no line of accounts.conf is for."""
    return {
        (name, role, detail)
        for name, entry in remaining().items()
        for part in for_teams({key: entry[key] for key in ("roles", "reaches") if key in entry})
        for role, detail in facts_of(part)
    }


def remaining() -> Dict[str, Dict[str, object]]:
    """What else remains, by its id, as attacks.remaining has it for one account."""
    remains = document()["remains"]
    assert isinstance(remains, dict)
    return remains


def facts_of(entry: object) -> List[Tuple[str, str]]:
    """Roles and what each of them reaches."""
    assert isinstance(entry, dict)
    plain = [(role, "") for role in entry.get("roles", [])]
    return plain + [(role, detail) for role, details in entry.get("reaches", {}).items() for detail in details]


def table() -> List[str]:
    """What crosses, and what else remains, as rows of docs/security.md."""
    entries = document()["crossings"]
    assert isinstance(entries, list)
    shown = lambda names: ", ".join(name.replace("<team>-", "its ") for name in names)
    account = lambda name: "the team" if name == "<TEAM>" else f"`{name}`"
    rows = [
        f"| {e['what']} | {account(e['from'])}: {shown(e['said_by'])} | `{e['said']}` | {account(e['to'])}: {shown(e['heard_by'])} | {e['answers']} |"
        for e in entries
    ]
    for name, entry in remaining().items():
        reaches, plain = entry.get("reaches", {}), entry.get("roles", [])
        assert isinstance(reaches, dict) and isinstance(plain, list)
        # What is reached of each team is one word; where it is the team alone, none.
        reached = {role: [detail.replace("<TEAM>", "").strip() for detail in details] for role, details in reaches.items()}
        whose = [f"{role}: {', '.join(details)}" if any(details) else role for role, details in reached.items()] + list(plain)
        rows.append(f"| `{name}` | {'; '.join(whose)} | {entry['what']} | {entry['why']} |".replace("<team>-", "its "))
    return rows


def differences(found: Set[Fact], of: Sequence[str]) -> List[str]:
    """What of the facts about these users is not as it is known."""
    wanted = {fact for fact in known() if fact[1] in of}
    say = lambda fact: " ".join(part for part in fact if part)
    faults = [f"POSSIBLE, and not in {CROSSINGS.name}: {say(fact)}" for fact in sorted(found - wanted)]
    return faults + [f"NOT POSSIBLE, and in {CROSSINGS.name}: {say(fact)}" for fact in sorted(wanted - found)]


def says(stage: AccountsStage, user: User, own: List[Permission], universe: Sequence[str]) -> Tuple[List[str], Set[Fact]]:
    """Has a user say everything: what the broker lets through beyond the user's lines, and what other accounts hear of the rest."""
    permitted = {subject for subject in universe if may(own, "publish", subject)}
    facts: Set[Fact] = set()
    text = mark().encode()
    with ExitStack() as stack:
        one = stack.enter_context(stage.intruder(user.name))
        others = {a: stack.enter_context(stage.owner_of_account(a)) for a in accounts.names() if a != user.account}
        for other in others.values():
            other.subscribe(">")
            other.settle()
        for subject in universe:
            one.publish(subject, text)
        one.settle()
        for account, other in others.items():
            other.settle()
            for heard in (heard for heard in other.heard if heard.payload == text):
                facts |= {("says", user.name, name) for name in heard_by_way_of(user.account, account, heard)}
        refused = {subject for verb, subject in one.refused if verb == "publish"}
    faults = [f"{user.name} may publish {subject}" for subject in sorted(set(universe) - permitted - refused)]
    return faults + [f"{user.name} may not publish {subject}" for subject in sorted(permitted & refused)], facts


def heard_by_way_of(source: str, sink: str, heard: Heard) -> List[str]:
    """The crossings by which a message came; what no one explains is shown as it is."""
    ways = [c.name for c in crossings() if (c.source, c.sink) == (source, sink) and matches(c.heard, heard.subject)]
    return ways or [f"{source} to {sink}: {heard.subject}"]


def hears(stage: AccountsStage, user: User, own: List[Permission], universe: Sequence[str]) -> Tuple[List[str], Set[Fact]]:
    """Has a user ask to hear everything, in each of its queue groups: what the broker lets it beyond its lines, and what it hears of
    all that is said in other accounts."""
    patterns = sorted({p.subject.split(" ")[0] for p in read_all() + read(accounts.ACCOUNTS)} | set(universe) | {"svc.>", "natsway.>", ">"})
    queues = sorted({p.subject.partition(" ")[2] for p in own if p.direction == "subscribe"} | {""})
    facts: Set[Fact] = set()
    with ExitStack() as stack:
        one = stack.enter_context(stage.intruder(user.name))
        others = {a: stack.enter_context(stage.owner_of_account(a)) for a in accounts.names() if a != user.account}
        faults = []
        for queue in queues:
            one.refused = []
            for pattern in patterns:
                one.subscribe(pattern, queue)
            one.settle()
            refused = {subject for verb, subject in one.refused if verb == "subscribe"}
            beyond = [pattern for pattern in patterns if not may(own, "subscribe", pattern, queue) and pattern not in refused]
            faults += [f"{user.name} may hear {pattern} {queue}".rstrip() for pattern in beyond]
        one.heard = []
        for account, other in others.items():
            for subject in universe:
                other.publish(subject, account.encode())
            other.settle()
        one.settle()
        for heard in one.heard:
            source = heard.payload.decode(errors="replace")
            if source in others:
                facts |= {("hears", user.name, name) for name in heard_by_way_of(source, user.account, heard)}
    return faults, facts


def by_other_means(stage: AccountsStage, user: User, own: List[Permission]) -> Set[Fact]:
    """What a user has others or the broker say in another account, or where it may not say it."""
    facts: Set[Fact] = set()
    with ExitStack() as stack:
        one = stack.enter_context(stage.intruder(user.name))
        owners = {account: stack.enter_context(stage.owner_of_account(account)) for account in accounts.names()}
        for owner in owners.values():
            owner.subscribe(">")
            owner.settle()
        facts |= answered_across(stage, user, own, one)
        facts |= delivered_across(stage, user, own, one)
        facts |= answers_lent(user, own, one, owners)
        facts |= answers_forged(user, one, owners)
        facts |= by_trying(user, one, owners[user.account])
    return facts


def teams() -> Dict[str, str]:
    """The accounts of teams, and their names."""
    found = document()["teams"]
    assert isinstance(found, dict)
    return found


def answered_across(stage: AccountsStage, user: User, own: List[Permission], one: Intruder) -> Set[Fact]:
    """JetStream answers a question of the user's in another account, where the user could not have said it."""
    asked = sorted({concrete(p.subject) for p in read_all() if p.direction == "publish" and p.subject.startswith(("$JS.API.", "$KV.", "logs."))})
    asked = [subject for subject in asked if may(own, "publish", subject) and not subject.startswith(attacks.ORDERS)]

    def attempt(crossing: Crossing) -> None:
        for subject in asked:
            one.publish(subject, b"", concrete(crossing.said))
        one.settle()

    reached = [crossing for crossing in beyond(user, own) if asked and is_heard(stage, crossing, attempt)]
    return {("answered-in-another-account", user.name, crossing.name) for crossing in reached}


def delivered_across(stage: AccountsStage, user: User, own: List[Permission], one: Intruder) -> Set[Fact]:
    """A consumer of the user's delivers what a stream holds to another account, where the user could not have said it. JetStream delivers
    only where somebody in its account asks for this very subject: the user does, if it may, and so does another one there."""
    asked = [(stream, subject) for stream, subject in attacks.creating(read_all()) if may(own, "publish", subject)]
    with stage.owner(user.name) as other:

        def attempt(crossing: Crossing) -> None:
            for group in ("", "q"):
                target = f"{concrete(crossing.said).rpartition('.')[0]}.{mark()}"
                for listener in (one, other):
                    listener.subscribe(target, group)
                    listener.settle()
                for stream, subject in asked:
                    one.publish(subject, json.dumps(attacks.consumer(stream, subject, target, group)).encode())
                one.settle()

        reached = [crossing for crossing in beyond(user, own) if asked and is_heard(stage, crossing, attempt)]
    return {("delivered-to-another-account", user.name, crossing.name) for crossing in reached}


def said(own: List[Permission], crossing: Crossing) -> List[str]:
    """Subjects by which somebody with these permissions says something that crosses."""
    return [subject for subject in subjects() if matches(crossing.said, subject) and may(own, "publish", subject)]


def beyond(user: User, own: List[Permission]) -> List[Crossing]:
    """What crosses from the user's account, and is not said by the user."""
    return [crossing for crossing in crossings() if crossing.source == user.account and not said(own, crossing)]


def is_heard(stage: AccountsStage, crossing: Crossing, attempt: Callable[[Crossing], None]) -> bool:
    """Whether what is attempted is heard where the crossing leads, by whichever subject: the broker shows some of it by another one."""
    with stage.owner_of_account(crossing.sink) as listener:
        listener.subscribe(">")
        listener.settle()
        attempt(crossing)
        return listener.until(lambda: listener.heard, EFFECT_SECONDS)


def answers_lent(user: User, own: List[Permission], one: Intruder, owners: Dict[str, Intruder]) -> Set[Fact]:
    """Somebody of another account who answers a question of the user's does so where the user may not publish: the broker hides from whoever
    answers where that is."""
    facts: Set[Fact] = set()
    owner = owners[user.account]
    for crossing in (crossing for crossing in crossings() if crossing.source == user.account):
        question, target = mark().encode(), f"$KV.natsway-lease.{mark()}"
        assert not may(own, "publish", target), user
        for subject in said(own, crossing)[:1]:
            one.publish(subject, question, target)
        one.settle()
        answerer = owners[crossing.sink]
        answerer.settle()
        for heard in [heard for heard in answerer.heard if heard.payload == question and heard.reply.startswith("_R_.")]:
            answerer.publish(heard.reply, b"an answer")
        answerer.settle()
        owner.settle()
        if any(heard.subject == target for heard in owner.heard):
            facts.add(("lends-answers", user.name, crossing.name))
    return facts


def answers_forged(user: User, one: Intruder, owners: Dict[str, Intruder]) -> Set[Fact]:
    """The user answers a request that another worker was given, and knows the broker's subject for the answer."""
    facts: Set[Fact] = set()
    for crossing in (crossing for crossing in crossings() if crossing.what == "requests"):
        asker, inbox, question = owners[crossing.source], f"_INBOX.{mark()}", mark().encode()
        asker.publish(concrete(crossing.said), question, inbox)
        asker.settle()
        owners[crossing.sink].settle()
        given = [heard.reply for heard in owners[crossing.sink].heard if heard.payload == question]
        assert len(given) == 1, f"{crossing.name} is heard {len(given)} times"
        one.publish(given[0], b"forged")
        one.settle()
        asker.settle()
        if any(heard.subject == inbox for heard in asker.heard):
            facts.add(("answers-for-others", user.name, crossing.name))
    return facts


def by_trying(user: User, one: Intruder, owner: Intruder) -> Set[Fact]:
    """What a user says in another's name in its account, and what it hears of others. What has nothing to do with teams is in attacks.found."""
    facts: Set[Fact] = set()
    for account, team in teams().items():
        for name, entry in remaining().items():
            # Within the team, or towards it.
            if "try" in entry and user.account == entry.get("in", account):
                attempt = str(entry["try"]).replace("<team>", team)
                facts |= attacks.by_trying(user.name, [(name, account if "in" in entry else "", attempt)], one, owner)
    return facts
