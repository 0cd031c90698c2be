#!/usr/bin/env python3
"""Proves that deploy/nats/permissions.conf, and permissions-extra.conf in its place, are sufficient, minimal and kept to; and that
between the accounts of accounts.conf nothing crosses but what is exported and imported.

Sufficient: every program does its whole job on a real broker with these permissions, and the broker has nothing to
object. Minimal: each permission is used in that, as the broker's own trace shows; and with any one of them dropped the
job fails, or the broker objects and the program says so in words that name the subject. Without --sample all of them
are dropped, each on a broker of its own. Kept to: what no program does is tried as each role (attacks.py), and what succeeds is
exactly what deploy/nats/remains.json says, metrics in another's name among it (attacks.py). Across accounts (crossings.py): what is heard
elsewhere, and what remains, is exactly what deploy/nats/crossings.json says, and each export and import is left out in turn. A JSON line at the end has the figures; the exit code is 1 when anything
did not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

import accounts
import attacks
import crossings
from find_broker import find_broker
from permissions import INSTEAD, Permission, read_all, text_for, without
from plays import PLAYS
from stage import ROLES, Failed, Stage, Violated, password
from tooling import ToolError, say


@dataclass
class Verdict:
    """What became of a job with one permission less."""

    permission: Permission
    # "objected": the broker did; "failed": the job did; "survived": neither, so that the permission is not needed.
    outcome: str
    # Whether a program said it, with the subject; None where the broker did not object.
    told: Optional[bool]
    detail: str


def whole(broker: Path) -> List[str]:
    """Plays everything with all permissions; returns what did not hold."""
    faults: List[str] = []
    done = set()
    # One role of each play: those that play together have the same text.
    for play, role in {play: role for role, play in PLAYS.items()}.items():
        with Stage(broker, text_for(role)) as stage:
            try:
                play(stage)
            except Failed as error:
                faults.append(f"{play.__name__}: {error}")
            faults += [f"{play.__name__}: {role} may not {op} {subject}" for op, role, subject in stage.violations()]
            faults += secrets_told(stage)
            # In a play with an extra role, that is whose permissions are used, and nobody else's are looked at.
            named = {INSTEAD[role]: role} if role in INSTEAD else {user: user for user in ROLES}
            done |= {(named[user], *rest) for user, *rest in stage.operations() if user in named}
    if not faults:
        faults += [f"{permission}: not used" for permission in unused(done)]
    return faults


def unused(done: "set") -> List[Permission]:
    """Permissions that nothing needs, for nothing was done by them that no other one of the role allows."""
    left = read_all()
    needed = set()
    for role, direction, subject, queue in done:
        allowing = [p for p in left if p.role == role and p.covers(direction, subject, queue)]
        if len(allowing) == 1:
            needed.add(allowing[0])
    return [permission for permission in left if permission not in needed]


def secrets_told(stage: Stage) -> List[str]:
    """Passwords in logs of ours."""
    told = []
    for running in (running for running in stage.running if running.role != "broker"):
        text = running.text()
        told += [f"{running.log.name} tells the password of {role}" for role in ROLES if password(role) in text]
    return told


def drop(broker: Path, permission: Permission) -> Verdict:
    """Plays a role's job with one permission less."""
    with Stage(broker, without(permission), watched=permission.user) as stage:
        try:
            PLAYS[permission.role](stage)
        except Violated as error:
            subject = str(error).split(" ", 1)[1]
            return Verdict(permission, "objected", is_told(stage, permission.user, subject), str(error))
        except Failed as error:
            return Verdict(permission, "failed", None, str(error)[:200])
        return Verdict(permission, "survived", None, "")


def is_told(stage: Stage, role: str, subject: str) -> bool:
    """Whether a program of the role says what is not permitted, soon."""
    deadline = time.monotonic() + 10.0
    while True:
        logs = "\n".join(running.text() for running in stage.running if running.role == role)
        if any("does not permit" in line and subject in line for line in logs.splitlines()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sample", type=int, help="drop so many permissions, chosen by the seed; all by default")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--jobs", type=int, default=4, help="brokers at a time")
    arguments.add_argument("--role", help="drop permissions of this role only")
    arguments.add_argument("--skip-whole", action="store_true", help="begin with the attacks")
    arguments.add_argument("--attacks-only", action="store_true", help="try only what must not be possible")
    given = arguments.parse_args()
    began = time.monotonic()
    broker = find_broker()
    faults = [] if given.skip_whole or given.attacks_only else whole(broker)
    for fault in faults:
        say(f"NOT SUFFICIENT  {fault}")
    escapes, tried = attacks.prove(broker, extras=True)
    for attempt in (attacks.forged_replies, attacks.forged_metrics, crossings.boundaries, crossings.prove):
        more, count = attempt(broker)
        escapes += more
        tried += count
    for escape in escapes:
        say(f"NOT KEPT TO  {escape}")
    chosen = [permission for permission in read_all() if given.role in (None, permission.role)]
    if given.attacks_only:
        chosen = []
    if given.sample is not None:
        chosen = random.Random(given.seed).sample(chosen, min(given.sample, len(chosen)))
    lines = [] if given.attacks_only or given.role else list(accounts.lines())
    if given.sample is not None:
        lines = random.Random(given.seed).sample(lines, min(given.sample, len(lines)))
    with ThreadPoolExecutor(given.jobs) as pool:
        for line, told in zip(lines, pool.map(lambda one: crossings.drop(broker, one), lines)):
            for escape in told:
                say(f"NOT KEPT TO  {escape}")
            say(f"{'left out':9} {line}")
            escapes += told
    outcomes: Dict[str, int] = {"objected": 0, "failed": 0, "survived": 0}
    untold = 0
    # Where the whole does not hold, what is missing would be blamed on the one that was dropped.
    with ThreadPoolExecutor(given.jobs) as pool:
        for verdict in pool.map(lambda one: drop(broker, one), [] if faults else chosen):
            outcomes[verdict.outcome] += 1
            untold += verdict.told is False
            if verdict.outcome == "survived" or verdict.told is False:
                say(f"{'NOT NEEDED' if verdict.outcome == 'survived' else 'NOT TOLD'}  {verdict.permission}: {verdict.detail}")
            else:
                say(f"{verdict.outcome:9} {verdict.permission}: {verdict.detail}")
    holds = not faults and not escapes and not outcomes["survived"] and not untold
    print(
        json.dumps(
            {
                "proof": "security",
                "permissions": len(read_all()),
                "dropped": sum(outcomes.values()),
                **outcomes,
                "untold": untold,
                "faults": len(faults),
                "lines_left_out": len(lines),
                "tried": tried,
                "escapes": len(escapes),
                "remains": len(attacks.known()),
                "crossings": len(crossings.crossings()),
                "remains_across": len(crossings.remaining_facts()),
                "seed": given.seed,
                "seconds": round(time.monotonic() - began, 1),
                "holds": holds,
            }
        )
    )
    return 0 if holds else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ToolError as error:
        say(f"prove_security: {error}")
        sys.exit(2)
