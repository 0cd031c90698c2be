"""Reads deploy/nats/accounts.conf as lines: who is in which account, and what is exported and imported; and a stage with these accounts.

Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from intruder import Intruder
from permissions import PERMISSIONS, Permission, read
from stage import INBOXES, Stage, password

ACCOUNTS = PERMISSIONS.parent / "accounts.conf"

ACCOUNT = re.compile(r"^  ([A-Z_]+) \{")
USER = re.compile(r"^\s+\{ user: ([\w-]+), .*permissions: \$MAY_([A-Z_]+) \}")
LINE = re.compile(r"^\s+\{ (service|stream): ")
QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class User:
    """Somebody in an account, with the name of the permissions."""

    name: str
    account: str
    permissions: str


@dataclass(frozen=True)
class Line:
    """One line by which an account exports or imports something."""

    account: str
    direction: str
    subject: str
    number: int

    def __str__(self) -> str:
        return f"{self.account} {self.direction} {self.subject}"


def text() -> str:
    return ACCOUNTS.read_text(encoding="utf-8")


def users() -> List[User]:
    """All users, in the file's order."""
    found: List[User] = []
    account = ""
    for line in text().splitlines():
        begins, user = ACCOUNT.match(line), USER.match(line)
        if begins:
            account = begins.group(1)
        elif user:
            found.append(User(user.group(1), account, user.group(2).lower()))
    return found


def names() -> List[str]:
    """The accounts, in the file's order."""
    return list(dict.fromkeys(user.account for user in users()))


def lines() -> List[Line]:
    """All exports and imports, in the file's order."""
    found: List[Line] = []
    account = direction = ""
    for number, line in enumerate(text().splitlines()):
        begins = ACCOUNT.match(line)
        if begins:
            account = begins.group(1)
        for word in ("exports", "imports"):
            if line.strip().startswith(f"{word}:"):
                direction = word[:-1]
        if LINE.match(line):
            found.append(Line(account, direction, QUOTED.findall(line)[0], number))
    return found


def without(line: Line) -> str:
    """The file without one of its lines."""
    kept = text().splitlines()
    del kept[line.number]
    return "\n".join(kept) + "\n"


def permissions_of(user: User) -> List[Permission]:
    """What a user may do, in the account."""
    return [permission for permission in read(PERMISSIONS) + read(ACCOUNTS) if permission.role == user.permissions]


class AccountsStage(Stage):
    """A stage whose broker has the accounts. Each has a further user, `setup-<ACCOUNT>`, who may do anything in it."""

    roles = [user.name for user in users()]

    def _write(self, permissions: str) -> str:
        (self.directory / "permissions.conf").write_text(PERMISSIONS.read_text(encoding="utf-8"), encoding="utf-8")
        (self.directory / ACCOUNTS.name).write_text(with_owners(permissions), encoding="utf-8")
        return ACCOUNTS.name

    def owner(self, of: str) -> Intruder:
        return self.owner_of_account(account_of(of))

    def owner_of_account(self, account: str) -> Intruder:
        """Whoever may do anything in an account."""
        return self.intruder(owner_name(account))

    def intruder(self, role: str) -> Intruder:
        """A connection as a user."""
        return Intruder(self.port, role, password(role), inbox_of(role))


def owner_name(account: str) -> str:
    return f"setup-{account}"


def account_of(user: str) -> str:
    return next(one.account for one in users() if one.name == user)


def inbox_of(user: str) -> str:
    """Where a user hears answers: the first inbox that may be heard."""
    known: Dict[str, Optional[str]] = {
        one.name: next((p.subject[:-2] for p in permissions_of(one) if p.direction == "subscribe" and p.subject.startswith("_INBOX")), None)
        for one in users()
    }
    return known.get(user) or INBOXES.get(user, f"_INBOX_{user}")


def with_owners(accounts: str) -> str:
    """With one more user in each account, who may do anything there."""
    account, made = "", []
    for line in accounts.splitlines():
        begins = ACCOUNT.match(line)
        account = begins.group(1) if begins else account
        made.append(line)
        if account and line.strip() == "users: [":
            made.append(f"      {{ user: {owner_name(account)}, password: {password(owner_name(account))} }}")
    return "\n".join(made) + "\n"
