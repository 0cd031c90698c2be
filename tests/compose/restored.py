"""Back-up and restore as docs/operations.md has them, and a broker that is made anew over the volume of the one before."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from documented import PAGE, shell_blocks, typed
from find_nats_cli import NoGo, find_nats_cli
from images import Images
from load import Load
from stack import Stack, expect, until


def restored(stack: Stack, _: Images) -> str:
    """A bucket that is lost and comes back from the file of `nats`, from the TOML file, and with its volume."""
    try:
        nats = str(find_nats_cli())
    except NoGo as error:
        return f"SKIPPED: {error}"
    stack.compose("up", "--detach")
    stack.await_healthy("nats", "apiproxy")
    stack.instances(2)
    with tempfile.TemporaryDirectory(prefix="natsway-backup-") as home:
        (backup,) = shell_blocks(PAGE, "nats stream backup")
        commands = [line.replace("nats ", f"{nats} --server {stack.nats_url} ", 1).replace("routes-backup", f"{home}/routes-backup") for line in backup.splitlines()]
        expect([line.split()[4] for line in commands] == ["backup", "rm", "restore"], f"{PAGE} shows {commands}")
        before = revision(stack)
        with Load(stack.base + "/version") as load:
            typed(stack, commands[0])
            changed = change(stack)
            expect(changed > before, f"revision {changed} after a change of revision {before}")
            for command in commands[1:]:
                typed(stack, command)
            until("the gateway is back at what was backed up", 60, lambda: revision(stack) == before)
            again = change(stack)
            report = load.end()
        expect(again > before, "the bucket that came back takes no changes")
        expect(report.failed == 0, f"while the bucket was lost and came back: {report}")
    # Everything but the volumes goes; what was written last is there.
    stack.compose("down", "--timeout", "15")
    stack.compose("up", "--detach")
    stack.await_healthy("nats", "apiproxy")
    stack.instances(2)
    kept = revision(stack)
    expect(kept == again, f"revision {kept} after `down` and `up`, and {again} before")
    return f"the bucket restored under load: {report}; revision {kept} outlived `down` and `up`"


def change(stack: Stack) -> int:
    """Writes the route anew; returns its revision."""
    stack.inside("apiproxy", "sh", "-c", "apiproxy routes get demo | apiproxy routes put -")
    return revision(stack)


def revision(stack: Stack) -> int:
    """Of the route, as the bucket has it; 0 when it has none."""
    found = re.search(r"^demo +(\d+) ", stack.inside("apiproxy", "apiproxy", "routes", "ls"), re.MULTILINE)
    return int(found.group(1)) if found else 0
