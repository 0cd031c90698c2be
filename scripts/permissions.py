"""Reads deploy/nats/permissions.conf and its extras as lines: who may do what, and the files without any one of these.

They are the only place where permissions are written down; the proof makes its mutations from them. Standard library
only, Python >= 3.9.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import List

from tooling import ROOT

PERMISSIONS = ROOT / "deploy" / "nats" / "permissions.conf"
# What some settings need beyond that, each in place of a role's own permissions.
EXTRA = ROOT / "deploy" / "nats" / "permissions-extra.conf"
# In whose place.
INSTEAD = {"shared": "consumer", "scout": "provisioner"}

ROLE = re.compile(r"^MAY_([A-Z_]+) \{")
DIRECTION = re.compile(r"^\s+(publish|subscribe):")
SUBJECT = re.compile(r'^\s+"([^"]+)"')
INLINE = re.compile(r'^(\s+)(publish|subscribe): \{ allow: \["([^"]+)"\] \}')


@dataclass(frozen=True)
class Permission:
    """One line of the file."""

    role: str
    direction: str
    subject: str
    line: int

    @property
    def user(self) -> str:
        """The user who has it."""
        return INSTEAD.get(self.role, self.role)

    @property
    def file(self) -> Path:
        """Where it is written down."""
        return EXTRA if self.role in INSTEAD else PERMISSIONS

    def __str__(self) -> str:
        return f"{self.role} {self.direction} {self.subject}"

    def covers(self, direction: str, subject: str, queue: str = "") -> bool:
        """Whether an operation needs this permission or another one like it."""
        if direction != self.direction:
            return False
        wanted, _, group = self.subject.partition(" ")
        if group and group != queue:
            return False
        return matches(wanted, subject)


def matches(pattern: str, subject: str) -> bool:
    """Whether the broker takes a subject, which may have wildcards itself, for one within a pattern. `*` at the end admits `>`, since
    it compares them as tokens."""
    wanted, had = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(had) > place
        if place >= len(had) or (token != "*" and token != had[place]):
            return False
    return len(wanted) == len(had)


def read_all() -> List[Permission]:
    """All permissions of both files, in their order."""
    return read(PERMISSIONS) + read(EXTRA)


def text_for(role: str) -> str:
    """The broker's permissions with a role's user in force: for an extra one, its block in place of the usual one."""
    text = PERMISSIONS.read_text(encoding="utf-8")
    return text if role not in INSTEAD else in_place(EXTRA.read_text(encoding="utf-8"), role, text)


def in_place(extra: str, role: str, text: str) -> str:
    """`text` with the block of `extra` in place of the one that it replaces."""
    block = re.search(rf"^MAY_{role.upper()} \{{\n.*?^\}}\n", extra, re.MULTILINE | re.DOTALL)
    usual = rf"^MAY_{INSTEAD[role].upper()} \{{\n.*?^\}}\n"
    assert block is not None, f"no block for {role}"
    text = re.sub(usual, lambda _: block.group(0), text, flags=re.MULTILINE | re.DOTALL)
    return text.replace(f"$MAY_{INSTEAD[role].upper()} ", f"$MAY_{role.upper()} ")


def read(path: Path = PERMISSIONS) -> List[Permission]:
    """All permissions of a file, in its order."""
    found: List[Permission] = []
    role = direction = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        named = ROLE.match(line)
        if named:
            role = named.group(1).lower()
        if line.startswith("}"):
            role = ""
        if not role:
            continue
        inline = INLINE.match(line)
        turned = DIRECTION.match(line)
        subject = SUBJECT.match(line)
        if inline:
            found.append(Permission(role, inline.group(2), inline.group(3), number))
        elif turned:
            direction = turned.group(1)
        elif subject:
            found.append(Permission(role, direction, subject.group(1), number))
    return found


def without(permission: Permission) -> str:
    """What `text_for` the permission's role gives, without it."""
    lines = permission.file.read_text(encoding="utf-8").splitlines()
    line = lines[permission.line]
    if INLINE.match(line):
        # A list that is empty allows everything.
        lines[permission.line] = line.replace(f'"{permission.subject}"', '"natsway.nothing"')
    else:
        del lines[permission.line]
    text = "\n".join(lines) + "\n"
    if permission.role not in INSTEAD:
        return text
    return in_place(text, permission.role, PERMISSIONS.read_text(encoding="utf-8"))
