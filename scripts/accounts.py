"""Reads who is in which account from deploy/nats/accounts.conf. Standard library only, Python >= 3.9."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List

from stage import SHIPPED

ACCOUNTS = SHIPPED / "accounts.conf"

ACCOUNT = re.compile(r"^  ([A-Z_]+) \{")
USER = re.compile(r"^\s+\{ user: ([\w-]+), .*permissions: \$MAY_")


@dataclass(frozen=True)
class User:
    """Somebody in an account."""

    name: str
    account: str


def users() -> List[User]:
    """All users, in the file's order."""
    found: List[User] = []
    account = ""
    for line in ACCOUNTS.read_text(encoding="utf-8").splitlines():
        begins, user = ACCOUNT.match(line), USER.match(line)
        if begins:
            account = begins.group(1)
        elif user:
            found.append(User(user.group(1), account))
    return found
