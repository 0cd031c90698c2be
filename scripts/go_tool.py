"""Programs in Go that this checkout needs, each pinned by a go.mod of its own and built once under target/tools/."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tooling import ToolError, exclusive, run_step, say, tools_dir

# What a finder ends with on a machine without Go.
NO_GO = 3


class NoGo(ToolError):
    """There is no Go on this machine."""


@dataclass(frozen=True)
class GoTool:
    """One program: what a user calls it, where its go.mod is, and what of it is built."""

    name: str
    directory: str
    module: Path
    repository: str
    package: str
    variable: str

    def find(self) -> Path:
        """Its path. Raises NoGo, or ToolError when it does not build."""
        named = os.environ.get(self.variable)
        if named:
            if not os.access(named, os.X_OK):
                raise ToolError(f"{self.variable}={named}: expected the path of a program")
            return Path(named).absolute()
        version = self.pinned_version((self.module / "go.mod").read_text(encoding="utf-8"))
        name = f"{self.directory}-{version}"
        program = tools_dir() / name / self.package.rsplit("/", 1)[-1]
        if program.exists():
            return program
        go = shutil.which("go")
        if go is None:
            raise NoGo(f"go is not in PATH: install Go >= 1.25 (https://go.dev/doc/install), or name a program in {self.variable}")
        with exclusive(name):
            if not program.exists():
                self.build(go, program, version)
        return program

    def pinned_version(self, go_mod: str) -> str:
        """The version that a go.mod file pins: `v0.4.0`."""
        found = re.search(re.escape(self.repository) + r" (v[0-9.]+)", go_mod)
        if found is None:
            raise ToolError(f"{self.module / 'go.mod'}: expected a line {self.repository} VERSION")
        return found.group(1)

    def build(self, go: str, program: Path, version: str) -> None:
        say(f"building {self.name} {version} into {program.parent} (a minute or two, once)")
        program.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when it is whole: what is at `program` always runs.
        half = program.with_suffix(".part")
        command = [go, "build", "-C", str(self.module), "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(half), self.package]
        run_step(command, f"go could not build {self.name}; check the network, and that Go is >= 1.25")
        half.rename(program)


def print_path(tool: GoTool) -> int:
    """Prints the path of a tool and gives the exit code of its finder: 0, 3 when there is no Go to build it with, else 2."""
    try:
        print(tool.find())
    except ToolError as error:
        say(f"{Path(sys.argv[0]).stem}: {error}")
        return NO_GO if isinstance(error, NoGo) else 2
    return 0
