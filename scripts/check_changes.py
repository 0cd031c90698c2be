"""`make check`, the inner loop: format, style, clippy and unit tests of what changed against main.

What changed is what this branch has committed, what is not committed yet, and what is new. A package counts as changed
when one of its files did; a change of the workspace's own settings is one of every package. BASE names another branch.
What the whole workspace says, and the tests with brokers and programs, are `make lint` and `make test`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Set

from tooling import ROOT

CARGO = os.environ.get("CARGO", "cargo")
# The settings by which every package is built.
OF_ALL = {"Cargo.toml", "Cargo.lock", "clippy.toml", "rust-toolchain.toml"}
# Of the scripts' own tests, those that start no programs.
QUICK = ("test_run_tests", "test_style", "test_check_changes")


def git(*arguments: str) -> List[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.split("\0" if "-z" in arguments else "\n") if line]


def changed_files(base: str) -> List[str]:
    fork = git("merge-base", "HEAD", base) or ["HEAD"]
    return git("diff", "--name-only", "-z", fork[0]) + git("ls-files", "--others", "--exclude-standard", "-z")


def packages() -> Dict[str, str]:
    """The name of each package of the workspace, by its folder."""
    metadata = subprocess.run(
        [CARGO, "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folder = lambda package: Path(package["manifest_path"]).parent.relative_to(ROOT).as_posix()
    return {folder(package): package["name"] for package in json.loads(metadata.stdout)["packages"]}


def changed_packages(files: List[str], by_folder: Dict[str, str]) -> Set[str]:
    """Each file belongs to the package of the innermost folder around it."""
    if OF_ALL & set(files):
        return set(by_folder.values())
    found = set()
    for file in files:
        around = (parent.as_posix() for parent in Path(file).parents)
        name = next((by_folder[folder] for folder in around if folder in by_folder), None)
        if name:
            found.add(name)
    return found


def run(*command: str) -> None:
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(code)


def main() -> None:
    files = changed_files(os.environ.get("BASE", "main"))
    run(sys.executable, "scripts/check_style.py")
    run(CARGO, "fmt", "--all", "--check")
    if any(file.startswith("scripts/") for file in files):
        tests = [f"tests.{name}" for name in QUICK]
        subprocess.run([sys.executable, "-m", "unittest", *tests], cwd=ROOT / "scripts", check=True)
    chosen = [argument for name in sorted(changed_packages(files, packages())) for argument in ("--package", name)]
    if not chosen:
        print("make check: no package changed")
        return
    print("make check:", *chosen[1::2])
    run(CARGO, "clippy", "--quiet", *chosen, "--all-targets", "--", "-D", "warnings")
    run(CARGO, "test", "--quiet", *chosen, "--lib", "--bins")


if __name__ == "__main__":
    main()
