"""Reads deploy/nats/permissions.conf as lines: who may do what, and the file without any one of these.

The file is the only place where permissions are written down; the proof makes its mutations from it. Standard library
only, Python >= 3.9.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import List

from tooling import ROOT

PERMISSIONS = ROOT / "deploy" / "nats" / "permissions.conf"

ROLE = re.compile(r"^MAY_([A-Z]+) \{")
DIRECTION = re.compile(r"^\s+(publish|subscribe):")
SUBJECT = re.compile(r'^\s+"([^"]+)"')
INLINE = re.compile(r'^(\s+)(publish|subscribe): \{ allow: \["([^"]+)"\] \}')
RESPONSES = re.compile(r"^\s+allow_responses:")


@dataclass(frozen=True)
class Permission:
    """One line of the file."""

    role: str
    direction: str
    subject: str
    line: int

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
    """Whether a subject, which may have wildcards itself, lies within a pattern."""
    wanted, had = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(had) > place
        if place >= len(had) or (token != "*" and token != had[place]) or had[place] == ">":
            return False
    return len(wanted) == len(had)


def read(path: Path = PERMISSIONS) -> List[Permission]:
    """All permissions of the file, in its order."""
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
        elif RESPONSES.match(line):
            found.append(Permission(role, "respond", "allow_responses", number))
        elif turned:
            direction = turned.group(1)
        elif subject:
            found.append(Permission(role, direction, subject.group(1), number))
    return found


def without(permission: Permission, path: Path = PERMISSIONS) -> str:
    """The file's text without one permission."""
    lines = path.read_text(encoding="utf-8").splitlines()
    line = lines[permission.line]
    if INLINE.match(line):
        # A list that is empty allows everything.
        lines[permission.line] = line.replace(f'"{permission.subject}"', '"natsway.nothing"')
    else:
        del lines[permission.line]
    return "\n".join(lines) + "\n"
