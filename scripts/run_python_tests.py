"""Runs the tests of the scripts, the documentation and the examples: two programs of them at a time, since most of their
time is spent waiting for processes. Each page of the documentation is a program. What one says is shown when it has ended.

Arguments choose among them: `run_python_tests.py test_docs test_run`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import List

HERE = Path(__file__).resolve().parent
AT_A_TIME = 2
# Each of its tests is a page of the documentation and takes as long as another file. They are begun first, so that
# nothing waits for them in the end.
OF_PAGES = "test_docs"

RAN = re.compile(r"^Ran (\d+) tests? in ", re.MULTILINE)
SKIPPED = re.compile(r"skipped=(\d+)")


@dataclass
class Outcome:
    """What came of one program of tests."""

    name: str
    status: int
    seconds: float
    output: str

    def count(self, pattern: "re.Pattern[str]") -> int:
        return sum(int(found) for found in pattern.findall(self.output))


def names(wanted: List[str]) -> List[str]:
    """The programs to run, the longest first."""
    there = sorted(path.stem for path in (HERE / "tests").glob("test_*.py"))
    unknown = sorted(set(wanted) - set(there))
    if unknown:
        sys.exit(f"run_python_tests: no tests of the name {', '.join(unknown)}; there are {', '.join(there)}")
    chosen = wanted or there
    pages = each_test(OF_PAGES) if OF_PAGES in chosen else []
    return pages + [name for name in chosen if name != OF_PAGES]


def each_test(module: str) -> List[str]:
    """The tests of a file, by their names."""
    found: List[str] = []
    waiting = list(unittest.defaultTestLoader.loadTestsFromName(f"tests.{module}"))
    while waiting:
        one = waiting.pop()
        if isinstance(one, unittest.TestSuite):
            waiting.extend(one)
        else:
            found.append(one.id().removeprefix("tests."))
    return found


def run(name: str) -> Outcome:
    begun = time.monotonic()
    command = [sys.executable, "-m", "unittest", f"tests.{name}"]
    ended = subprocess.run(command, cwd=HERE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    outcome = Outcome(name, ended.returncode, time.monotonic() - begun, ended.stdout)
    verdict = "ok" if outcome.status == 0 else "FAILED"
    print(f"{outcome.seconds:7.1f} s  {name}: {outcome.count(RAN)} tests, {verdict}", flush=True)
    told = [line for line in outcome.output.splitlines() if "SKIPPED" in line or "skipped " in line]
    print("\n".join(told) if outcome.status == 0 else outcome.output, end="\n" if told or outcome.status else "", flush=True)
    return outcome


def main() -> int:
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        outcomes = list(pool.map(run, names(sys.argv[1:])))
    failed = [outcome.name for outcome in outcomes if outcome.status != 0]
    for name in failed:
        print(f"again: python3 scripts/{Path(__file__).name} {name.split('.')[0]}")
    ran, skipped = sum(outcome.count(RAN) for outcome in outcomes), sum(outcome.count(SKIPPED) for outcome in outcomes)
    print(f"Python tests: {ran} ran, {skipped} of them skipped, {len(failed)} programs failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
