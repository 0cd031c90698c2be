"""Runs all tests of the workspace and says what came of them on one page.

`cargo test` prints a line for each of some thousand tests; here a test program gets one line, a failure is shown whole,
and the end has the sums, the slowest programs, and the command for each test that failed. With cargo-nextest installed,
it runs the tests (`.config/nextest.toml`) and `cargo test` only those in the documentation; NATSWAY_TEST_RUNNER=cargo
does without. Arguments are handed to both: `run_tests.py --package natsway-worker`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from typing import Callable, Dict, Iterable, List, Optional, TextIO

from tooling import ROOT, target_dir

CARGO = os.environ.get("CARGO", "cargo")

SECTION = re.compile(r"^ +(?:Running (?:unittests )?(?P<source>\S+) \((?P<program>\S+)\)|Doc-tests (?P<crate>\S+))$")
TEST = re.compile(r"^test (?P<name>.+) \.\.\. (?P<end>ok|FAILED|ignored)\b")
SLOW = re.compile(r"^test .+ has been running for over \d+ seconds$")
RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;.* finished in ([\d.]+)s$")
# Of nextest: `     Summary [  12.3s] 40 tests run: 39 passed (1 slow), 1 failed, 2 skipped`.
SUMMARY = re.compile(r"^ +Summary \[ *([\d.]+)s\] .*tests? run: ")

# Colours, which CARGO_TERM_COLOR=always asks for where nobody looks at a terminal.
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

SLOWEST = 5


@dataclasses.dataclass
class Program:
    """A test program, or the tests in a crate's documentation."""

    label: str
    rerun: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: List[str] = dataclasses.field(default_factory=list)


class Reader:
    """Follows the output of `cargo test`: passes on what matters at once, and the rest when a program has failed."""

    def __init__(self, labels: Dict[str, Program], out: TextIO) -> None:
        self.programs: List[Program] = []
        self._labels = labels
        self._out = out
        self._current: Optional[Program] = None
        self._held: List[str] = []

    def line(self, line: str) -> None:
        if section := SECTION.match(line):
            self._begin(section)
        elif self._current is None:
            # Cargo's own: warnings, errors, and which programs failed.
            if line.strip() and not line.startswith("all doctests ran in"):
                self._say(line)
        elif result := RESULT.match(line):
            self._end(result)
        elif test := TEST.match(line):
            if test["end"] == "FAILED":
                self._current.failures.append(test["name"])
                self._say(f"FAILED {self._current.label}: {test['name']}")
        elif SLOW.match(line):
            self._say(line)
        elif not re.match(r"^running \d+ tests?$", line):
            self._held.append(line)

    def end(self) -> None:
        """The output is over: a program that ended without a result was killed or ended the process itself."""
        if self._current is not None:
            self._current.failed += 1
            self._say_held(f"{self._current.label} ended before its tests did")
            self._current = None

    def _begin(self, section: "re.Match[str]") -> None:
        self.end()
        if section["crate"]:
            package = section["crate"].replace("_", "-")
            program = Program(f"{package}, documentation", f"--package {package} --doc")
        else:
            name = os.path.basename(section["program"])
            program = self._labels.get(name) or Program(section["source"], "--workspace")
        self.programs.append(program)
        self._current, self._held = program, []

    def _end(self, result: "re.Match[str]") -> None:
        program = self._current
        assert program is not None, "a result follows the beginning of its program"
        program.passed, program.failed, program.skipped = (int(result[group]) for group in (1, 2, 3))
        program.seconds = float(result[4])
        if program.failed:
            self._say_held(f"{program.label}: {program.failed} failed")
        elif program.passed:
            self._say(f"{program.passed:5} passed {program.seconds:7.1f} s  {program.label}")
        self._current = None

    def _say_held(self, heading: str) -> None:
        self._say(f"\n---- {heading} ----")
        for line in self._held:
            self._say(line)

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def labels(messages: Iterable[str]) -> Dict[str, Program]:
    """What `cargo test --no-run --message-format=json` built: each program by the name of its file."""
    found = {}
    for message in map(json.loads, messages):
        executable = message.get("executable")
        if message.get("reason") != "compiler-artifact" or not executable or not message["profile"]["test"]:
            continue
        target = message["target"]
        package = package_name(message["package_id"], message["manifest_path"])
        kind = target["kind"][0]
        unit = kind if kind in ("bin", "test", "example", "bench") else "lib"
        which = "--lib" if unit == "lib" else f"--{unit} {target['name']}"
        name = "" if unit == "lib" else f", {target['name']}"
        found[os.path.basename(executable)] = Program(f"{package}{name}", f"--package {package} {which}")
    return found


def package_name(package_id: str, manifest_path: str) -> str:
    """`path+file:///.../worker#natsway-worker@0.1.0`; without a name behind the `#` it is the folder's."""
    fragment = package_id.rpartition("#")[2]
    return fragment.partition("@")[0] if "@" in fragment else os.path.basename(os.path.dirname(manifest_path))


def summary(programs: List[Program], seconds: float) -> str:
    """The last page: slowest programs, what failed and how to run it again, sums."""
    lines = ["", "slowest:"]
    busy = [program for program in programs if program.seconds]
    for program in sorted(busy, key=lambda program: -program.seconds)[:SLOWEST]:
        lines.append(f"{program.seconds:7.1f} s  {program.label}")
    # Of nextest's failures nextest has said how to run them again.
    broken = [program for program in programs if program.failed and program.rerun]
    if broken:
        lines += ["", "failed, each with the command that runs it again:"]
    for program in broken:
        for name in program.failures or [""]:
            # A test of the documentation is named after its file and line.
            wanted = name.partition(" ")[0] if "--doc" in program.rerun else name
            lines.append(f"  cargo test {program.rerun} {wanted}".rstrip())
    passed, failed, skipped = (
        sum(getattr(program, which) for program in programs) for which in ("passed", "failed", "skipped")
    )
    minutes, rest = divmod(round(seconds), 60)
    lines += ["", f"in {minutes} min {rest} s", f"tests: {passed} passed, {failed} failed, {skipped} skipped"]
    return "\n".join(lines)


def follow(command: List[str], take: Callable[[str], None], env: Optional[dict] = None) -> int:
    """Runs a command, hands `take` each line of its output, without colours, and returns its exit code."""
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            take(COLOUR.sub("", line.rstrip("\n")))
    return process.returncode


class NextestReader:
    """Passes on all that nextest says, and keeps its sums."""

    def __init__(self, out: TextIO) -> None:
        self.program = Program("all but the documentation", "")
        self._out = out

    def line(self, line: str) -> None:
        print(line, file=self._out, flush=True)
        if found := SUMMARY.match(line):
            self.program.seconds = float(found[1])
            for count, word in re.findall(r"(\d+) (passed|failed|timed out|skipped)", line):
                field = "failed" if word == "timed out" else word
                setattr(self.program, field, getattr(self.program, field) + int(count))


def has_nextest() -> bool:
    if os.environ.get("NATSWAY_TEST_RUNNER") == "cargo":
        return False
    asked = [CARGO, "nextest", "--version"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, check=False).returncode == 0


def main(arguments: List[str]) -> int:
    scope = arguments or ["--workspace"]
    build = subprocess.run(
        [CARGO, "test", *scope, "--no-run", "--message-format=json-render-diagnostics"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )
    if build.returncode:
        return build.returncode
    began = time.monotonic()
    reader = Reader(labels(build.stdout.splitlines()), sys.stdout)
    code = 0
    if has_nextest():
        # Each test is a process of its own here, and would ask cargo for each program.
        built = dict(os.environ, NATSWAY_BIN_DIR=str(target_dir() / "debug"))
        nextest = NextestReader(sys.stdout)
        code = follow([CARGO, "nextest", "run", *scope], nextest.line, built)
        reader.programs.append(nextest.program)
        scope = [*scope, "--doc"]
    code = follow([CARGO, "test", *scope, "--no-fail-fast"], reader.line) or code
    reader.end()
    print(summary(reader.programs, time.monotonic() - began), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
