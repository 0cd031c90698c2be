"""The images that docker-compose.yml and the Dockerfile name, pulled, or made here where there is no registry.

A stand-in bears the real name and tag, so that the files are used unedited. It is made of what the machine's package
sources have: a Debian by debootstrap, the broker's own program over busybox, the host's Rust toolchain, programs that the
caller names, engine-proxy/ in place of the socket proxy, and otelcol/, a collector of the collector's own modules. Each is
announced as STAND-IN, and removed in the end when this run has made it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, Optional

from engine import Engine, Missing
from find_broker import find_broker
from find_promtool import unpacked
from tooling import ROOT, ToolError, say, tools_dir

HERE = Path(__file__).resolve().parent
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Programs that only their authors or a language's package source publish, and the variable that names a file of them.
NAMED_PROGRAMS = {
    "wollomatic/socket-proxy": ("NATSWAY_SOCKET_PROXY", "/socket-proxy", ()),
    "prom/prometheus": ("NATSWAY_PROMETHEUS", "/usr/bin/prometheus", ("RUN mkdir /prometheus && chown 65534:65534 /prometheus",)),
    "jaegertracing/jaeger": ("NATSWAY_JAEGER", "/cmd/jaeger/jaeger-linux", ("ENV JAEGER_LISTEN_HOST=0.0.0.0", "VOLUME /tmp")),
    "otel/opentelemetry-collector": ("NATSWAY_OTELCOL", "/otelcol", ("USER 10001:10001",)),
}
PULL_SECONDS = 600
BUILD_SECONDS = 1200


def image_named(file: str, name: str) -> str:
    """The image of this name, with its tag, that a file of the checkout asks for."""
    found = re.search(rf"(?:image:|FROM|FROM --platform=\S+) ({re.escape(name)}:\S+)", (ROOT / file).read_text(encoding="utf-8"))
    if found is None:
        raise Missing(f"{file} names no image {name}")
    return by_tag(found.group(1))


def by_tag(image: str) -> str:
    """The name and tag alone: a digest comes from a setting, which nobody has set here."""
    return re.sub(r"\$\{\w+(?::-[^}]*)?\}", "", image)


# What stands in for a shell, too, where the images that are tested have none.
DEBIAN = image_named("Dockerfile", "debian")


class Images:
    """Sees to it that images are there, and remembers which of them are stand-ins."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.made: List[str] = []
        self.unavailable: Dict[str, str] = {}

    def provide(self, image: str) -> bool:
        """Whether the image is there, by the engine's store, a registry or a stand-in."""
        if self.present(image) or self.pulled(image):
            return True
        makers: Dict[str, Callable[[str], None]] = {
            "debian": self.debian,
            "nats": self.nats,
            "rust": self.rust,
        }
        bare = image.partition("@")[0]
        name = bare.rpartition(":")[0]
        maker = makers.get(bare) or makers.get(name) or (self.named_program if name in NAMED_PROGRAMS else None)
        if maker is None:
            self.unavailable[image] = "it cannot be pulled here, and nothing can stand in for it"
            return False
        if bare != image:
            raise Missing(f"{image} is pinned by digest and cannot be pulled, so nothing can stand in for it")
        try:
            maker(image)
        except Missing as error:
            self.unavailable[image] = str(error)
            return False
        self.made.append(image)
        say(f"STAND-IN {image}: made here, because it cannot be pulled")
        return True

    def need(self, image: str) -> None:
        """As `provide`, for an image without which nothing can be tested."""
        if not self.provide(image):
            raise Missing(f"{image}: {self.unavailable[image]}")

    def present(self, image: str) -> bool:
        return self.engine.quiet("image", "inspect", image).returncode == 0

    def pulled(self, image: str) -> bool:
        try:
            return self.engine.quiet("pull", "--quiet", image, seconds=PULL_SECONDS).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def forget(self) -> None:
        """Removes what was made here."""
        if self.made:
            self.engine.quiet("image", "rm", "--force", *self.made)

    # ---- makers

    def debian(self, image: str) -> None:
        require("debootstrap", "apt install debootstrap")
        if os.geteuid() != 0:
            raise Missing("debootstrap needs root")
        with tempfile.TemporaryDirectory(prefix="natsway-debian-") as home:
            tree = Path(home, "tree")
            step(["debootstrap", "--variant=minbase", "bookworm", str(tree)])
            # The slim image has neither package lists nor documentation.
            for heavy in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
                shutil.rmtree(tree / heavy, ignore_errors=True)
                (tree / heavy).mkdir(parents=True, exist_ok=True)
            archive = Path(home, "tree.tar")
            step(["tar", "--create", "--numeric-owner", "--one-file-system", f"--file={archive}", f"--directory={tree}", "."])
            self.engine.run("import", "--change", 'CMD ["bash"]', str(archive), image)

    def nats(self, image: str) -> None:
        busybox = require("busybox", "apt install busybox-static")
        wanted = re.search(r":(\d+\.\d+)", image)
        broker = find_broker()
        told = subprocess.run([broker, "--version"], capture_output=True, text=True, check=True).stdout
        if wanted is None or f"v{wanted.group(1)}." not in told:
            raise Missing(f"the broker of this checkout is {told.strip()}, not the one of {image}")
        self.build(
            image,
            {"busybox": busybox, "nats-server": str(broker), "ca-certificates.crt": str(CERTIFICATES)},
            [
                "FROM scratch",
                "COPY busybox /bin/busybox",
                'RUN ["/bin/busybox", "--install", "-s", "/bin"]',
                "COPY nats-server /usr/local/bin/nats-server",
                "COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt",
                "RUN mkdir -p /tmp /etc/nats && chmod 1777 /tmp",
                "EXPOSE 4222 8222 6222",
                'ENTRYPOINT ["nats-server"]',
            ],
        )

    def rust(self, image: str) -> None:
        """A C compiler, and the host's rustup with the toolchain that rust-toolchain.toml pins, where the image has them."""
        self.need(DEBIAN)
        rustup = require("rustup", "https://rustup.rs")
        sysroot = subprocess.run(["rustc", "--print", "sysroot"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        wanted = re.search(r":(\d+\.\d+)", image)
        told = subprocess.run(["rustc", "--version"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        if wanted is None or f"rustc {wanted.group(1)}." not in told:
            raise Missing(f"the toolchain of this checkout is {told.strip()}, not the one of {image}")
        # As rustup names it by version, whatever it is called here.
        toolchain = f"{told.split()[1]}-{Path(sysroot).name.partition('-')[2]}"
        self.build(
            image,
            {"toolchain": sysroot, "rustup": rustup, "ca-certificates.crt": str(CERTIFICATES)},
            [
                f"FROM {DEBIAN}",
                "RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ libc6-dev make pkg-config perl"
                " && rm -rf /var/lib/apt/lists/*",
                "COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt",
                "ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"COPY toolchain /usr/local/rustup/toolchains/{toolchain}",
                "COPY rustup /usr/local/cargo/bin/rustup",
                f"RUN ln -s rustup /usr/local/cargo/bin/cargo && ln -s rustup /usr/local/cargo/bin/rustc && rustup default {toolchain}",
            ],
            leave=("share", "libexec"),
        )

    def named_program(self, image: str) -> None:
        variable, target, more = NAMED_PROGRAMS[image.rpartition(":")[0]]
        program = os.environ.get(variable) or OTHERWISE.get(variable, lambda: None)()
        if not program or not os.access(program, os.X_OK):
            raise Missing(f"it cannot be pulled here; {variable} may name a build of the program for this system")
        self.need(DEBIAN)
        self.build(
            image,
            {"program": program, "ca-certificates.crt": str(CERTIFICATES)},
            [
                f"FROM {DEBIAN}",
                f"COPY program {target}",
                "COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt",
                *more,
                f'ENTRYPOINT ["{target}"]',
            ],
        )

    def build(self, image: str, files: Dict[str, str], lines: List[str], leave: tuple = ()) -> None:
        """Builds an image of copies of files or directories, and of these lines."""
        with tempfile.TemporaryDirectory(prefix="natsway-image-", dir=context_home()) as home:
            for name, source in files.items():
                if Path(source).is_dir():
                    shutil.copytree(source, Path(home, name), symlinks=True, ignore=shutil.ignore_patterns(*leave))
                else:
                    shutil.copy2(source, Path(home, name), follow_symlinks=True)
            Path(home, "Dockerfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
            self.engine.run("build", "--quiet", "--tag", image, home, seconds=BUILD_SECONDS)


def context_home() -> Optional[str]:
    """Where contexts of a gigabyte may lie: not in a temporary file system of memory."""
    home = ROOT / "target" / "tmp"
    home.mkdir(parents=True, exist_ok=True)
    return str(home)


def prometheus_of_debian() -> Optional[str]:
    """Of another version than the image's, but the same program."""
    try:
        return str(unpacked("prometheus"))
    except ToolError:
        return None


def built(directory: str) -> str:
    """A program in Go beside this file, which takes the same arguments."""
    go = shutil.which("go")
    if go is None:
        raise Missing("it cannot be pulled here: install Go >= 1.25, which builds what stands in for it")
    program = tools_dir() / directory
    # Without a C library, since its image is another system than this.
    options = ["-C", str(HERE / directory), "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(program)]
    step(["env", "CGO_ENABLED=0", go, "build", *options, "."])
    return str(program)


# What is tried where no variable names a program.
OTHERWISE: Dict[str, Callable[[], Optional[str]]] = {
    "NATSWAY_PROMETHEUS": prometheus_of_debian,
    "NATSWAY_SOCKET_PROXY": lambda: built("engine-proxy"),
    "NATSWAY_OTELCOL": lambda: built("otelcol"),
}


def require(program: str, remedy: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise Missing(f"{program} is not installed: {remedy}")
    return found


def step(command: List[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode != 0:
        raise Missing(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-600:]}")
