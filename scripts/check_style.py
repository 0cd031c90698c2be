"""Checks what no compiler does: that the words of old are gone, and how wide lines are.

One thing has one name, the one that NATS, tower, Envoy or Kubernetes use for it. A word that was given up comes back
with the first branch that was begun before; `make lint` finds it here and says what took its place.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
# What rustfmt leaves alone, the inside of macros, may stand out a little.
MACRO_WIDTH = 120

# What starts the programs of older releases says it in their words.
OLDER = r"^(?!bench/src/instructions/path\.rs|proofs/src/versions/fleet\.rs)"
SENDING = r"^(crates/caller|apiproxy/src|worker/src/client)/"
GROUPS = r"^partitioned-consumer/"
SHIPPER = r"^partitioned-consumer/shipper/"


class Word(NamedTuple):
    where: str
    old: str
    new: str


# Types, flags, variables and metrics. Not here: what stands in stored documents, on the wire or in a changelog.
WORDS = (
    Word(r"", r"--cores\b", "--shards"),
    Word(r"", r"connections[_-]per[_-]core", "connections_per_shard"),
    Word(OLDER, r"NATSWAY_(CORES|CONNECTIONS_PER_CORE)\b", "NATSWAY_SHARDS, NATSWAY_CONNECTIONS_PER_SHARD"),
    Word(r"", r"drain[ _-]limit|DRAIN_LIMIT", "drain_timeout"),
    Word(r"", r"SHIPPER_DRAIN\b", "SHIPPER_DRAIN_TIMEOUT"),
    Word(r"", r"natsway_(tries_total|try_errors_total|try_seconds|misses_total)", "natsway_attempts_total and its kin"),
    Word(r"", r"natsway_second_replies_total", "natsway_duplicate_replies_total"),
    Word(r"", r"natsway_reports_disbelieved_total", "natsway_reports_rejected_total"),
    Word(r"^apiproxy/", r"\b(Core|CoreMetrics|CoreThread|OnThisCore|Seat|Held|Unsent|Told)\b", "Shard, ShardHandle, BodyBudget"),
    Word(r"^apiproxy/", r"\bcores?\b", "shard"),
    Word(r"^crates/boot/", r"\b(Pulse|Beat|Complaints)\b", "Heartbeat, ServerErrorLog"),
    Word(r"^(crates|apiproxy|worker|provisioner|partitioned-consumer)/", r"\b(BrokerError|BrokerSettings|into_broker)\b",
         "BrokerConfigError, UncheckedBrokerConfig, into_config"),
    Word(r"^(crates|apiproxy|worker|provisioner|partitioned-consumer|bench)/",
         r"natsway_(boot|worker|testkit)::Broker\b", "BrokerConfig, TestBroker"),
    Word(SENDING, r"\b(Links|Lanes|LaneCounts|LinkCounts|LinkLimits|Slots|Manners|Doubt|Miss|Tries|TrySpans)\b",
         "ConnectionPool, CodecPools, PendingRequests, ReplyPolicy, AttemptError"),
    Word(r"^(crates/routes|apiproxy|worker|provisioner)/", r"\b(InForce|VersionFigures|Figures|Disbelief|Beliefs)\b",
         "ActiveRoutes, VersionMetrics, ReportFault"),
    Word(r"^(crates/routes|apiproxy)/", r"\bFeed\b", "RouteReconciler"),
    Word(r"^worker/", r"\b(House|Desk|Deaf|Intake|untraced|no_spans)\b",
         "ControlPlane, ClientThread, ReaderContext, Admission"),
    Word(r"", r"\bdeaf\b(?!')", "denied"),
    Word(GROUPS, r"\b(Consuming|Notices?|Bury)\b", "MemberHandle, MemberEvent, DeadLetter"),
    Word(SHIPPER, r"\b(Cutter|Situation|Figures?|Ledger(Error|Identity)?|Catalogue|Sweep|Intake)\b",
         "Framer, FrameContext, Metrics, OffsetStore, FileIndex, RetentionTask, Receiver"),
    Word(SHIPPER, r"\b(Parcel|Behind)\b(?! its last)", "PendingMessage, GapResolution"),
    Word(r"^partitioned-consumer/src/", r"\bLanes?\b", "KeyQueue"),
    Word(r"^apiproxy/src/fleet_metrics/", r"\bRoster\b", "Registry"),
    Word(r"^provisioner/", r"\b(Course|feel_the_way|Twin)\b", "Direction, probe_capacity, ContainerSpec"),
)

# Where old words may stand: this list, what has been, and what stays on the wire.
KEPT = re.compile(r"^(CHANGELOG\.md|scripts/check_style\.py|scripts/tests/test_(style|supervise)\.py|bench/(RESULTS\.md|report\.html|plots/)|fuzz/seeds/)")
TEXT = re.compile(r"\.(rs|py|md|toml|yml|yaml|json|conf|sh)$|^Makefile$|^\.env$")


def word_faults(path, text):
    """The old words of a file, each with its line and what took its place."""
    rules = [(re.compile(word.old), word.new) for word in WORDS if re.search(word.where, path)]
    for number, line in enumerate(text.splitlines(), 1):
        for old, new in rules:
            if found := old.search(line):
                yield f"{path}:{number}: {found[0]!r} is an old word: {new}"


def width_faults(path, text):
    """Lines above the width that `cargo fmt` does not see to: comments, and the inside of macros.

    Tables, addresses and raw strings are as long as they are."""
    raw = False
    for number, line in enumerate(text.splitlines(), 1):
        inside, raw = raw, is_raw_after(line, raw)
        stripped = line.strip()
        most = WIDTH if stripped.startswith("//") else MACRO_WIDTH
        if len(line) <= most or inside or raw:
            continue
        is_table = re.match(r"^//[/!]? \|", stripped)
        is_unbreakable = "://" in line or not re.search(r"\S+\s+\S+", re.sub(r"^(//[/!]?|\w+(?=\())", "", stripped))
        # What a message or a subject looks like on the wire is shown on one line.
        is_literal = 'r"' in line or 'r#"' in line or "$JS.ACK" in line or "Natsway-Shipper: 1" in line
        if not (is_table or is_unbreakable or is_literal):
            yield f"{path}:{number}: {len(line)} columns, at most {most}"


def is_raw_after(line, raw):
    """Whether the text after a line is still inside a raw string."""
    if raw:
        return '"#' not in line
    opened = line.rfind('r#"')
    return opened >= 0 and '"#' not in line[opened + 3:]


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [path for path in listed.decode().split("\0") if path and (ROOT / path).is_file()]


def faults(paths):
    for path in paths:
        if KEPT.match(path) or not TEXT.search(path):
            continue
        text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
        yield from word_faults(path, text)
        if path.endswith(".rs"):
            yield from width_faults(path, text)


def main():
    found = list(faults(tracked()))
    print("\n".join(found))
    if found:
        sys.exit(f"check_style: {len(found)} faults")


if __name__ == "__main__":
    main()
