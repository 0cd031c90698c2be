"""docker-compose.yml says what it promises, and real programs accept what it tells them."""

import os
import re
import subprocess
import sys
import unittest

from tooling import ROOT

try:
    import yaml
except ImportError:
    yaml = None

# Ours, by the name of the image that the Dockerfile makes.
PROGRAMS = {"apiproxy", "worker", "provisioner", "producer", "consumer"}
# What a program takes to read all of its settings and leave without a broker.
DRY_RUN = {
    "apiproxy": ["--check"],
    "provisioner": ["--check"],
    "producer": ["status"],
    "consumer": ["status"],
}
# The longest that a program of ours may take to leave, in seconds, as it is set by default.
DRAIN_TIMEOUTS = {"apiproxy": 9, "worker": 8, "producer": 10, "consumer": 10, "provisioner": 5}


def substituted(text):
    """What compose makes of `${NAME:-default}` without any variable set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text).group(1))


@unittest.skipIf(yaml is None, "PyYAML is not installed: docker-compose.yml is not checked")
class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.file = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
        cls.services = cls.file["services"]
        cls.dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")

    def ours(self):
        for name, service in self.services.items():
            if "build" in service:
                yield name, service, service["build"]["target"]

    def networks(self, name):
        return set(self.services[name].get("networks", []))

    def test_every_part_is_there(self):
        self.assertEqual({program for _, _, program in self.ours()}, PROGRAMS)
        profiles = {profile for service in self.services.values() for profile in service.get("profiles", [])}
        self.assertEqual(profiles, {"green", "provisioner", "shipper", "cluster", "observability"})
        members = [name for name in self.services if name.startswith("nats-")]
        self.assertEqual(len(members), 3)

    def test_gateway_and_workers_share_no_network_and_only_the_broker_is_on_both(self):
        workers = self.networks("worker")
        for gateway in ("apiproxy", "provisioner", "producer", "consumer", "prometheus", "grafana", "jaeger"):
            self.assertFalse(self.networks(gateway) & workers, gateway)
        both = {name for name in self.services if self.networks(name) >= workers | {"gateway"}}
        self.assertEqual(both, {"nats", "nats-1", "nats-2", "nats-3", "collector"})
        for name, network in self.file["networks"].items():
            self.assertEqual(bool(network.get("internal")), name not in ("edge", "local"), name)

    def test_only_the_proxy_sees_the_engines_socket(self):
        sees = {name for name, service in self.services.items() if "docker.sock:" in str(service.get("volumes"))}
        self.assertEqual(sees, {"engine-proxy"})
        allowed = [argument for argument in self.services["engine-proxy"]["command"] if argument.startswith("-allow")]
        methods = {argument.split("=")[0] for argument in allowed}
        self.assertEqual(methods, {"-allowbindmountfrom", "-allowGET", "-allowPOST", "-allowDELETE"})
        # Before 1.13 it looked at mounts only where the path has a version, and the provisioner's paths have none.
        version = re.search(r":(\d+)\.(\d+)", self.services["engine-proxy"]["image"])
        self.assertGreaterEqual(tuple(map(int, version.groups())), (1, 13))
        patterns = dict(argument.split("=", 1) for argument in allowed)
        for method, path in (
            ("GET", "/v1.41/containers/json"),
            ("GET", "/containers/abc/json"),
            ("POST", "/v1.41/containers/create"),
            ("POST", "/v1.41/containers/abc/stop"),
            ("POST", "/v1.41/networks/natsway_local/connect"),
            ("DELETE", "/v1.41/containers/abc"),
        ):
            self.assertRegex(path, f"^(?:{patterns['-allow' + method]})$")
        for method, path in (
            ("POST", "/v1.41/containers/abc/exec"),
            ("POST", "/v1.41/images/create"),
            ("POST", "/v1.41/networks/create"),
            ("POST", "/v1.41/networks/natsway_local/disconnect"),
            ("GET", "/v1.41/containers/abc/archive"),
            ("DELETE", "/v1.41/volumes/abc"),
        ):
            self.assertNotRegex(path, f"^(?:{patterns['-allow' + method]})$")

    def test_every_service_is_confined(self):
        for name, service in self.services.items():
            with self.subTest(name):
                self.assertTrue(service["read_only"])
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertIn("no-new-privileges:true", service["security_opt"])
                self.assertIn("mem_limit", service)
                once = name == "ownership"
                self.assertEqual(service["restart"], "no" if once else "unless-stopped")
                if not once:
                    user = service.get("user", "65532" if "build" in service else None)
                    user = user or ("10001" if name == "collector" else None)
                    self.assertNotIn(user, (None, "0", "root"))
                    self.assertNotEqual(str(user).split(":")[0], "0")
        self.assertIn("USER 65532:65532", self.dockerfile)

    def test_every_image_is_pinned(self):
        images = [substituted(service["image"]) for service in self.services.values()]
        images += re.findall(r"^FROM (?:--platform=\S+ )?(\S+:\S+)", self.dockerfile, re.MULTILINE)
        for image in images:
            self.assertRegex(image, r":(v?\d+\.\d+\.\d+|bookworm-\d{8}-)", "no tag, or one that moves")

    def test_the_collector_that_stands_in_is_of_the_images_version(self):
        version = re.search(r":([0-9.]+)", self.services["collector"]["image"]).group(1)
        go_mod = (ROOT / "tests" / "compose" / "otelcol" / "go.mod").read_text(encoding="utf-8")
        self.assertIn(f"go.opentelemetry.io/collector/otelcol v{version}\n", go_mod)

    def test_each_image_of_others_can_be_pinned_by_digest(self):
        for name, service in self.services.items():
            if "build" not in service:
                self.assertRegex(service["image"], r"\$\{NATSWAY_\w+_DIGEST:-\}$", name)
        # Arguments of a build, in the same form.
        for image in re.findall(r"(?m)^FROM (?:--platform=\S+ )?(\S+:\S+)", self.dockerfile):
            self.assertRegex(image, r"\$\{(RUST|DEBIAN)_DIGEST\}$")

    def test_nobody_can_log_in_to_the_dashboards(self):
        settings = self.services["grafana"]["environment"]
        self.assertEqual(settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"], "true")
        self.assertEqual(settings["GF_AUTH_DISABLE_LOGIN_FORM"], "true")
        self.assertEqual(settings["GF_AUTH_BASIC_ENABLED"], "false")
        self.assertEqual(settings["GF_AUTH_ANONYMOUS_ORG_ROLE"], "Viewer")

    def test_what_the_engines_proxy_lets_through_is_said_where_the_profile_is_offered(self):
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        said = text[: text.index("\n  engine-proxy:")].rpartition("\n\n")[2]
        for word in ("Privileged", "Devices", "PidMode", "inspect"):
            self.assertIn(word, said)

    def test_programs_are_given_more_time_to_leave_than_they_take(self):
        for name, service, program in self.ours():
            self.assertGreaterEqual(seconds(service["stop_grace_period"]), DRAIN_TIMEOUTS[program] + 2, name)

    def test_every_program_has_an_image_and_a_stage(self):
        for name, service, program in self.ours():
            self.assertRegex(self.dockerfile, rf"(?m)^FROM base AS {program}$")
            self.assertEqual(service["image"], "natsway/" + program + ":${NATSWAY_VERSION:-0.1.0}", name)

    def test_nothing_of_ours_is_pulled(self):
        # Nobody publishes these names, and whoever did would be somebody else.
        for name, service, _ in self.ours():
            self.assertEqual(service["pull_policy"], "never", name)

    def test_every_setting_is_in_the_settings_file_with_its_default(self):
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        wanted = set(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
        told = re.findall(r"^#(\w+)=(.*)$", (ROOT / ".env").read_text(encoding="utf-8"), re.MULTILINE)
        self.assertEqual(set(told), wanted)

    def test_programs_accept_what_they_are_told(self):
        binaries = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug"
        for name, service, program in self.ours():
            binary = binaries / program
            if program not in DRY_RUN or not binary.exists():
                continue
            environment = {key: substituted(value) for key, value in service["environment"].items()}
            # Files that are mounted are those of this directory.
            for volume in service.get("volumes", []):
                source, _, target = substituted(volume).partition(":")
                target = target.split(":")[0]
                if source.startswith("./"):
                    environment = {key: str(ROOT / source) if value == target else value for key, value in environment.items()}
            with self.subTest(name):
                told = subprocess.run(
                    [binary, *service.get("command", []), *DRY_RUN[program]],
                    env=environment, capture_output=True, text=True, timeout=60, check=False,
                )
                # A status without a directory is an error of its own; arguments that are refused end with 2.
                self.assertNotEqual(told.returncode, 2, told.stderr)
                if DRY_RUN[program] == ["--check"]:
                    self.assertEqual(told.returncode, 0, told.stderr)


class ComposeTest(unittest.TestCase):
    """`make compose-test` says what is missing before it does anything, and asks for images that can be had."""

    def test_images_are_asked_for_by_name_and_tag_alone(self):
        home = ROOT / "tests" / "compose"
        source = f"import sys; sys.path[:0] = [{str(home)!r}]; import run; print(*sorted(run.bases_of('compile')))"
        told = subprocess.run([sys.executable, "-c", source], cwd=home, capture_output=True, text=True, timeout=60, check=True)
        names = told.stdout.split()
        self.assertEqual(len(names), 2, names)
        for name in names:
            self.assertRegex(name, r"^(rust|debian):[a-z0-9.-]+$")

    def refused(self, **settings):
        command = [sys.executable, ROOT / "tests" / "compose" / "run.py"]
        told = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual((told.returncode, told.stdout), (2, ""))
        return told.stderr

    def test_without_an_engine(self):
        self.assertIn("DOCKER=/no/such/docker: expected the path of docker", self.refused(DOCKER="/no/such/docker"))
        self.assertIn("no engine answers: start it", self.refused(DOCKER="/bin/false"))

    def test_with_settings_that_are_none(self):
        self.assertIn("BIN_SOURCE=nowhere: expected compile or prebuilt", self.refused(BIN_SOURCE="nowhere"))


@unittest.skipIf(yaml is None, "PyYAML is not installed: examples/compose is not checked")
class Example(unittest.TestCase):
    """examples/compose, as far as that shows without an engine."""

    HOME = ROOT / "examples" / "compose"

    @classmethod
    def setUpClass(cls):
        cls.services = yaml.safe_load((cls.HOME / "compose.yml").read_text(encoding="utf-8"))["services"]
        cls.page = (cls.HOME / "README.md").read_text(encoding="utf-8")

    def variables(self):
        lines = (self.HOME / ".env").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    def test_a_sidecar_is_stopped_before_its_app(self):
        for name, service in self.services.items():
            upstream = service.get("environment", {}).get("NATSWAY_UPSTREAM")
            if upstream is not None:
                app = re.fullmatch(r"http://([\w-]+):3000", upstream).group(1)
                self.assertEqual(service["depends_on"][app], {"condition": "service_healthy"}, name)
                self.assertIn("healthcheck", self.services[app])

    def test_each_release_stands_in_the_file_that_every_command_reads(self):
        asked = set(re.findall(r"\$\{(RELEASE\w*)", (self.HOME / "compose.yml").read_text(encoding="utf-8")))
        self.assertEqual(asked, {name for name in self.variables() if name.startswith("RELEASE")})
        before = (self.HOME / ".env").read_text(encoding="utf-8")
        for expression in re.findall(r"sed -i '([^']+)' \.env", self.page):
            changed = subprocess.run(["sed", expression, str(self.HOME / ".env")], capture_output=True, text=True, check=True).stdout
            self.assertNotEqual(before, changed, expression)

    def test_every_service_and_profile_of_the_page_is_there(self):
        profiles = {profile for service in self.services.values() for profile in service.get("profiles", [])}
        self.assertEqual(profiles, {"green", "entrypoint"})
        for line in re.findall(r"^docker compose (?!-f)(.*?)(?: +#.*)?$", self.page, re.MULTILINE):
            words = line.split()
            for flag, value in zip(words, words[1:]):
                if flag == "--profile":
                    self.assertIn(value, profiles, line)
            verb = next(word for word in words if word in ("up", "exec", "stop", "start", "down"))
            behind = words[words.index(verb) + 1:]
            named = behind[:1] if verb == "exec" else [word for word in behind if not word.startswith("-") and "=" not in word]
            self.assertEqual([word for word in named if word not in self.services], [], line)

    def test_a_container_has_the_time_that_leaving_takes(self):
        for name, service in self.services.items():
            if "sidecar" in name:
                needed = DRAIN_TIMEOUTS["worker"] + (5 if "with-sidecar" in name else 0)
                self.assertGreater(seconds(service["stop_grace_period"]), needed, name)

    def test_the_first_process_is_stopped_by_a_signal_that_it_leaves_by(self):
        dockerfile = (self.HOME / "Dockerfile").read_text(encoding="utf-8")
        self.assertIn("STOPSIGNAL SIGTERM", dockerfile.split("AS app-with-sidecar")[1])
