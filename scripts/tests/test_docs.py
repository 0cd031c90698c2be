"""Every command in the documentation is run, and does what it is shown for.

A line of a shell block is known here by its text, so that a command that is added or changed is noticed until somebody says
how it is tested. Most run as they stand against a broker, a gateway and workers that are started here; only the standard
addresses are replaced. Commands with `docker compose` are run by tests/compose.
"""

import fnmatch
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Tuple

from find_nats_cli import NoGo, find_nats_cli
from tests.test_run import Run, environment, free_ports
from tooling import ROOT, target_dir

PAGES = [
    "README.md", "partitioned-consumer/README.md",
    *sorted(str(page.relative_to(ROOT)) for where in ("docs/*.md", "examples/README.md", "examples/*/README.md") for page in ROOT.glob(where)),
]
BLOCK = re.compile(r"^```(sh|console|bash|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND_SECONDS = 120
# pip downloads some 100 MB for JupyterLab.
INSTALL_SECONDS = 900
# How long something that serves is watched: it must not leave by itself.
SERVES_SECONDS = 3


def commands(text):
    """The commands of a page, one for each line that begins one, without the comments behind them."""
    for language, block in BLOCK.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            bare = re.sub(r"\s+#\s.*$", "", " ".join(line.split()) if language == "console" else line).strip()
            if bare:
                yield bare


@dataclass(frozen=True)
class Known:
    """How a command is tested."""

    # "ends": it ends by itself. "serves": it goes on until it is stopped. Else why it is not run here.
    how: str
    # What its output must match.
    shows: str = ""
    # Run before it, not shown in the page.
    before: Tuple[str, ...] = ()
    # Left running for the rest of the page.
    stays: bool = False
    # What it ends with.
    status: int = 0
    # Of the part of a page that needs packages, and installs them. Where they cannot be had, that part is left out.
    needs_install: bool = False
    installs: bool = False


ENDS, SERVES = "ends", "serves"
BACK_TO_BLUE = ("apiproxy rollout start demo --to blue --strategy blue-green --smoke /version --follow >/dev/null || true",)
COMPOSE = "tests/compose"
RESULTS = "apiproxy/tests/it/enqueue.rs"
CG = {
    "cg elastic setup foo": Known(ENDS, before=("nats stream rm --force foo >/dev/null 2>&1 || true",)),
    "cg elastic create foo cg 10 --filter 'foo.*' --wildcards 1": Known(ENDS),
    "cg traffic foo --every 10ms &": Known(SERVES, stays=True),
    "cg elastic consume foo cg m1 --sleep 20ms": Known(SERVES, stays=True),
    "cg elastic consume foo cg m1 --sleep 20ms &": Known(SERVES, stays=True),
    "cg elastic add foo cg m1 m2": Known(ENDS),
    "cg elastic consume foo cg m2 --sleep 20ms": Known(SERVES, stays=True),
    "cg elastic info foo cg": Known(ENDS, shows="m1"),
    # Nobody is m2 there, and the doctor says so.
    "cg elastic doctor foo cg": Known(ENDS, shows="m2", status=1),
    "cg static setup bar": Known(ENDS),
    "cg static create balanced bar cg 10 '>' m1 m2": Known(ENDS),
    "cg traffic bar --every 10ms &": Known(SERVES, stays=True),
    "cg static consume bar cg m1 --sleep 20ms": Known(SERVES, stays=True),
    "cargo install --path partitioned-consumer --bin cg": Known("would install outside the checkout; the same program is built for the tests"),
    "nats-server -js &": Known("a broker is started for all"),
}
ROUTES = {
    "apiproxy routes ls": Known(ENDS, shows="demo"),
    "apiproxy routes import routes.toml": Known(ENDS),
    "apiproxy routes get demo > demo.json; apiproxy routes put demo.json": Known(ENDS),
    "apiproxy routes test GET http://shop.example/cart -H 'x-canary: always'": Known(ENDS, shows="demo"),
    "apiproxy routes export": Known(ENDS, shows="svc.demo.green"),
    "apiproxy routes export > routes-backup.toml": Known(ENDS),
    "apiproxy routes import routes-backup.toml": Known(ENDS),
}
DURABLE = {
    "nats stream add HOOKS --subjects 'hooks.>' --dupe-window 1h --defaults": Known(ENDS, shows="HOOKS"),
    "apiproxy routes import hooks.toml": Known(ENDS),
    "apiproxy routes test POST http://127.0.0.1:8080/hooks/push": Known(ENDS, shows="hooks.push(.|\n)*stream +HOOKS"),
    "curl -d '{\"ref\":\"main\"}' -H 'Idempotency-Key: delivery-7' http://127.0.0.1:8080/hooks/push":
        Known(ENDS, shows='"id":"hooks/delivery-7","stream":"HOOKS","sequence":1,"duplicate":false'),
    "nats consumer add HOOKS WORKERS --pull --defaults": Known(ENDS),
    "nats consumer next HOOKS WORKERS --count 1": Known(ENDS, shows="Natsway-Method: POST"),
}
ROLLOUTS = {
    "apiproxy rollout start demo --to green --strategy blue-green --follow": Known(ENDS, before=BACK_TO_BLUE),
    "apiproxy rollout start demo --to green --follow": Known(SERVES, before=BACK_TO_BLUE),
    "apiproxy rollout status demo": Known(ENDS, shows="green"),
    "apiproxy rollout abort demo": Known(ENDS),
    "apiproxy rollout ls": Known(ENDS),
    "apiproxy rollout pause|resume|promote|abort demo": Known("a choice: proofs/tests/it/versions.rs and apiproxy/tests run each"),
    "apiproxy completions bash": Known(ENDS, shows="complete"),
    "worker --subject svc.demo.green &": Known(SERVES),
}
JUPYTER = "http://127.0.0.1:8080/jupyter/api"
SIDECAR = {
    "python3 -m http.server --bind 127.0.0.1 3000 &": Known(SERVES, stays=True),
    "worker --subject svc.shop.blue --upstream http://127.0.0.1:3000 &": Known(SERVES, shows="serving", stays=True),
    "apiproxy routes import shop.toml": Known(ENDS),
    "curl http://127.0.0.1:8080/shop/shop.toml": Known(ENDS, shows="svc.shop.blue", before=(
        "until curl -s http://127.0.0.1:8080/shop/shop.toml | grep -q svc.shop.blue; do sleep 0.1; done",)),
    "python3 -m http.server --bind 127.0.0.1 3001 &": Known(SERVES, stays=True),
    "worker --subject svc.shop.green --upstream http://127.0.0.1:3001 &": Known(SERVES, shows="serving", stays=True),
    "apiproxy rollout start shop --to green --strategy blue-green --follow": Known(ENDS),
    "worker --subject svc.shop.green --port-env PORT --health 'GET /' -- sh -c 'exec python3 -m http.server --bind 127.0.0.1 \"$PORT\"' &":
        Known(SERVES, shows="serving"),
    "python3 -m venv jupyter": Known(ENDS, needs_install=True),
    "jupyter/bin/pip install --quiet jupyterlab": Known(ENDS, needs_install=True, installs=True),
    "printf '%s ' 'exec jupyter/bin/jupyter lab --no-browser --ip 127.0.0.1 --port \"$PORT\"' > jupyter.sh": Known(ENDS, needs_install=True),
    "printf '%s\\n' '--ServerApp.base_url=/jupyter/ --IdentityProvider.token=five \"$@\"' >> jupyter.sh": Known(ENDS, needs_install=True),
    "apiproxy routes import jupyter.toml": Known(ENDS, needs_install=True),
    "worker --subject svc.jupyter.blue --port-env PORT --health 'GET /jupyter/api' -- sh jupyter.sh &":
        Known(SERVES, shows="serving", stays=True, needs_install=True),
    f"curl --silent --retry 60 --retry-delay 1 --fail {JUPYTER}": Known(ENDS, shows="version", needs_install=True),
    "worker --subject svc.jupyter.green --port-env PORT --health 'GET /jupyter/api' -- sh jupyter.sh --ServerApp.terminals_enabled=False &":
        Known(SERVES, shows="serving", stays=True, needs_install=True),
    f"while sleep 0.05; do curl --silent --output /dev/null {JUPYTER}; done &": Known(SERVES, stays=True, needs_install=True),
    "apiproxy rollout start jupyter --to green --steps 10,100 --hold 5s --min-requests 5 --smoke /jupyter/api --follow":
        Known(ENDS, needs_install=True),
}
RUN_AS_EXAMPLE = Known("scripts/tests/test_examples.py runs it")
RUN_AS_BACKEND = Known("scripts/tests/test_one_backend.py does it, to each backend whose language is there")
RUN_BY_CARGO = Known("worker/tests/it/examples.rs runs that program")
EXAMPLES = {
    "python3 examples/run.py fastapi": Known("proofs/tests/it/apps.rs runs that app; test_examples.py has run.py run others"),
    "python3 examples/run.py axum": RUN_AS_EXAMPLE,
    "nats-server": Known("a broker is started for all"),
    "cargo run --bin apiproxy -- --static-routes --routes examples/one-backend/routes.toml": RUN_AS_BACKEND,
    "curl 'http://127.0.0.1:8080/hello?name=ann'": RUN_AS_BACKEND,
    "curl -d name=ann http://127.0.0.1:8080/hello": RUN_AS_BACKEND,
    "curl --json '{\"name\": \"ann\"}' http://127.0.0.1:8080/hello": RUN_AS_BACKEND,
    "curl -H 'accept: text/plain' -F name=ann http://127.0.0.1:8080/hello": RUN_AS_BACKEND,
    "curl 'http://127.0.0.1:8080/hello?name=ann&callback=show'": RUN_AS_BACKEND,
    "python3 examples/run.py two-groups": RUN_AS_EXAMPLE,
    "python3 examples/run.py signal": RUN_AS_EXAMPLE,
    "curl -X PUT -H 'content-type: application/json' -d '\"buy milk\"' http://127.0.0.1:8080/todos/1": RUN_AS_EXAMPLE,
    "curl http://127.0.0.1:8080/todos/1": RUN_AS_EXAMPLE,
    "apiproxy routes import examples/axum/routes.toml": Known("test_examples.py gives it to a gateway"),
    "NATS_URL=nats://127.0.0.1:4222 cargo run --package natsway-worker --example axum": RUN_BY_CARGO,
    "NATS_URL=nats://127.0.0.1:4222 cargo run --package natsway-worker --example two-groups": RUN_BY_CARGO,
    "NATS_URL=nats://127.0.0.1:4222 cargo run --package natsway-worker --example signal-publisher": RUN_BY_CARGO,
    "NATS_URL=nats://127.0.0.1:4222 cargo run --package natsway-worker --example signal-subscriber": RUN_BY_CARGO,
    "cd examples/compose": Known(COMPOSE),
    "curl --retry 30 --retry-delay 1 http://127.0.0.1:8080/": Known(COMPOSE),
    "while sleep 0.02; do curl -s http://127.0.0.1:8080/ > /dev/null; done &": Known(COMPOSE),
    "kill %1": Known("ends the line above"),
    "sed -i 's/^RELEASE_BLUE=.*/RELEASE_BLUE=3/' .env": Known("test_compose.py looks what it changes"),
}
OTHERS = {
    "curl http://127.0.0.1:8080/version": Known(ENDS, shows="svc.demo"),
    "curl 'http://127.0.0.1:8080/sum?n=1&n=2&n=3'": Known(ENDS, shows='"sum":6'),
    "curl -d 'hello' http://127.0.0.1:8080/echo": Known(ENDS, shows="hello"),
    "curl -s http://127.0.0.1:8081/readyz": Known(ENDS, shows="ready"),
    "curl -s http://127.0.0.1:8081/metrics": Known(ENDS, shows="natsway_requests_total"),
    "NATS_URL=nats://127.0.0.1:4222 cargo run": Known("the worker is the README's own doctest"),
    "curl http://127.0.0.1:8080/hello": Known("needs that worker"),
    'PATH="$PWD/target/release:$PATH"': Known("set for all"),
    'nats="$(python3 scripts/find_nats_cli.py)"': Known("set for all"),
    "\"$nats\" reply --queue q svc.greet.v1 'hello from a shell'": Known(SERVES),
    "nats sub 'natsway.metrics.*.*'": Known(SERVES, shows="natsway.metrics"),
    "nats pub natsway.report ''": Known(ENDS),
    "nats micro ls": Known(ENDS, shows="demo"),
    "nats micro stats demo": Known(ENDS, shows="Requests"),
    "nats stream backup KV_natsway-routes routes-backup": Known(ENDS),
    "nats stream rm --force KV_natsway-routes": Known(ENDS),
    "nats stream restore routes-backup": Known(ENDS),
    "nats-top -s 127.0.0.1 -m 8222 -o - -r 1": Known(COMPOSE),
    "export NATS_URL=nats://nats-1:4222,nats://nats-2:4222,nats://nats-3:4222 NATSWAY_ROUTES_REPLICAS=3": Known(COMPOSE),
    "deploy/nats/make-secrets.sh": Known(COMPOSE),
    "apiproxy setup --results": Known(RESULTS),
    "nats stream add JOBS --subjects 'jobs.>' --retention work --defaults": Known(RESULTS),
    "apiproxy routes import jobs.toml": Known(RESULTS),
    "worker --subject svc.reports.blue --work-stream JOBS": Known(RESULTS),
    "curl -i -X POST http://127.0.0.1:8080/reports": Known(RESULTS),
    "curl -i -H 'Prefer: wait=20' http://127.0.0.1:8080/reports/0123456789abcdef0123456789abcdef": Known(RESULTS),
    "apiproxy setup --dry-run": Known("its exit code says what there is to do; `prove security` runs it"),
    "apiproxy setup --groups --shipper": Known("`prove security` runs it, as an administrator"),
    "set -a; . secrets/compose.env; set +a": Known(COMPOSE),
    "set -a; . secrets/compose.env; COMPOSE_FILE=$COMPOSE_FILE:docker-compose.accounts.yml; set +a": Known(COMPOSE),
    'export NATS_CA=secrets/authority.pem NATS_USER=operator NATS_PASSWORD="$(cat secrets/operator.password)"': Known(COMPOSE),
    "nats --server tls://127.0.0.1:4222 rtt": Known(COMPOSE),
    "nats --server tls://127.0.0.1:4222 --inbox-prefix _INBOX_operator kv get natsway-routes demo --raw": Known(COMPOSE),
    "provisioner run --config provisioner.toml": Known(SERVES, stays=True),
    "provisioner status": Known(ENDS, shows="orders"),
    "provisioner explain orders": Known(ENDS, shows="orders"),
    "provisioner top": Known(SERVES),
    "provisioner record --out monday.jsonl": Known(SERVES),
    "provisioner replay monday.jsonl --config other.toml": Known(ENDS),
    "provisioner simulate step flash-crowd --svg comparison.svg": Known(ENDS, shows="flash-crowd"),
    "provisioner simulate --trace monday.csv --service-rate 40": Known("needs such a file: provisioner/tests/it/running.rs runs it with one"),
    "apiproxy --routes routes.toml --otlp-endpoint http://collector:4318": Known(SERVES),
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 worker --subject svc.shop.blue": Known(SERVES),
    "SHIPPER_SUBJECT=shipper SHIPPER_OUTPUT=logfile NATS_URL=localhost:4222 SHIPPER_READ_PARTITIONS=\"0,1,2,3,4\" "
    "SHIPPER_DIRECTORY=/tmp/shipper ./consumer": Known(SERVES, stays=True),
    'SHIPPER_FILE=/var/log/system.log SHIPPER_SUBJECT="shipper" NATS_URL="localhost:4222" SHIPPER_PARTITIONS=5 ./producer': Known(SERVES),
}
MEASURED = "bench/tests/measure.rs measures in small; figures are no test"
BENCH = {
    "make tools peers": Known("installs; test_tooling.py has the finders"),
    "make bench": Known(MEASURED),
    "make bench QUICK=1": Known(MEASURED),
    "make bench ARGS='--only peers'": Known(MEASURED),
    "make bench ITERATIONS=5 SECONDS=5": Known(MEASURED),
    "make bench ARGS='--only article//c255 --requests 1000000'": Known(MEASURED),
    "target/release/bench list": Known("bench/tests/measure.rs lists"),
    "make bench-compare OLD=before.json NEW=bench/results.json": Known("bench/tests/measure.rs compares"),
    "make bench-instructions": Known(MEASURED),
    "make bench-micro ARGS=envelope": Known("a unit test runs every operation"),
}
KNOWN: Dict[str, Known] = {**CG, **ROUTES, **DURABLE, **ROLLOUTS, **SIDECAR, **EXAMPLES, **OTHERS, **BENCH}


def known(command):
    """What is done about a command; those of the engine are all run elsewhere, and what measures or builds takes too long."""
    if "docker " in command:
        return Known(COMPOSE)
    if command.startswith("make "):
        return Known("takes long; that the target is there is tested below")
    if command.startswith("target/release/"):
        return Known("the same program is run under its own name")
    return KNOWN.get(command)


def reaches_pypi():
    """Whether pip reaches its package source, whatever became of a larger installation."""
    with tempfile.TemporaryDirectory() as home:
        asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", home, "idna"]
        return subprocess.run(asked, capture_output=True, timeout=COMMAND_SECONDS, check=False).returncode == 0


class Pages(unittest.TestCase):
    def test_every_command_is_known_and_every_known_one_is_there(self):
        shown = {command for page in PAGES for command in commands((ROOT / page).read_text(encoding="utf-8"))}
        self.assertEqual({command for command in shown if known(command) is None}, set(), "say in this file how these are tested")
        self.assertEqual(set(KNOWN) - shown, set(), "these are in no page any more")


    def test_every_target_of_make_that_is_shown_is_there(self):
        rules = re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        rules = [rule.replace("%", "*") for rule in rules]
        for page in PAGES:
            for command in commands((ROOT / page).read_text(encoding="utf-8")):
                if command.startswith("make "):
                    wanted = {word for word in re.sub(r"\w+=('[^']*'|\S*)", "", command).split()[1:]}
                    missing = {word for word in wanted if not any(fnmatch.fnmatch(word, rule) for rule in rules)}
                    self.assertEqual(missing, set(), f"{page}: {command}")


class Tables(unittest.TestCase):
    """The operating guide leaves nothing out that an operator can meet."""

    GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

    def test_every_code_of_the_gateway_is_explained(self):
        code_of = lambda path: path.read_text(encoding="utf-8").split("#[cfg(test)]")[0]
        attempts = code_of(ROOT / "crates" / "caller" / "src" / "attempt.rs")
        sources = "".join(map(code_of, (ROOT / "apiproxy" / "src").rglob("*.rs"))) + attempts
        sources += "".join(map(code_of, (ROOT / "crates" / "args" / "src").rglob("*.rs")))
        made = r'(?:Problem::new|unavailable|bad_request|bad_gateway)\(\s*(?:(?:StatusCode::|error\.)\w+,\s*)?"([a-z0-9_]+)"'
        missed = set(re.findall(r'Self::\w+ => "([a-z_]+)"', attempts))
        # Told as `not_acknowledged`.
        acks = code_of(ROOT / "crates" / "caller" / "src" / "publish" / "ack.rs")
        missed |= set(re.findall(r'Self::\w+ => "([a-z_]+)"', acks)) - {"in_process"}
        self.assertIn("no_responders", missed)
        codes = set(re.findall(made, sources)) | missed
        self.assertGreater(len(codes), 20)
        explained = set(re.findall(r"`([a-z0-9_]+)`", self.GUIDE.split("## When something fails")[1]))
        self.assertEqual(codes - explained, set())

    def test_every_alert_is_explained(self):
        alerts = re.findall(r"- alert: (\w+)", (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
        self.assertEqual({alert for alert in alerts if f"`{alert}`" not in self.GUIDE}, set())

    def test_every_profile_is_explained(self):
        profiles = re.findall(r"profiles: \[(\w+)\]", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
        self.assertEqual({profile for profile in profiles if f"| `{profile}` |" not in self.GUIDE}, set())


class Commands(unittest.TestCase):
    """Each page's commands in their order, against programs of this checkout."""

    @classmethod
    def setUpClass(cls):
        try:
            nats = find_nats_cli()
        except NoGo as error:
            raise unittest.SkipTest(f"commands in the documentation are not run: {error}") from error
        build = [os.environ.get("CARGO", "cargo"), "build", "--quiet", "--workspace", "--bins"]
        subprocess.run(build, cwd=ROOT, check=True)
        cls.demo = Run()
        cls.addClassCleanup(cls.demo.end)
        cls.demo.await_line("Ctrl-C stops everything")
        listen, admin, broker, _ = cls.demo.ports
        app, next_app = free_ports(2)
        home = tempfile.TemporaryDirectory()
        cls.addClassCleanup(home.cleanup)
        cls.home = Path(home.name)
        programs = cls.home / "bin"
        programs.mkdir()
        for program in ("apiproxy", "worker", "provisioner", "producer", "consumer", "cg"):
            (programs / program).symlink_to(ROOT / target_dir() / "debug" / program)
            (cls.home / program).symlink_to(programs / program)
        (programs / "nats").symlink_to(nats)
        orders = programs / "orders-worker"
        orders.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
        orders.chmod(0o755)
        cls.environment = environment(
            PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", HOME=str(cls.home), nats=str(nats),
            XDG_STATE_HOME=str(cls.home / "state"), XDG_CONFIG_HOME=str(cls.home / "config"),
            JUPYTER_CONFIG_DIR=str(cls.home / "jupyter-config"), NO_PROXY="127.0.0.1",
            NATS_URL=f"nats://127.0.0.1:{broker}", NATSWAY_LISTEN="127.0.0.1:0", NATSWAY_ADMIN_LISTEN="127.0.0.1:0",
        )
        # What the pages write as it is on a machine of one's own.
        cls.here = [
            ("127.0.0.1:8080", f"127.0.0.1:{listen}"), ("127.0.0.1:8081", f"127.0.0.1:{admin}"),
            ("127.0.0.1:4222", f"127.0.0.1:{broker}"), ("localhost:4222", f"127.0.0.1:{broker}"),
            ("/tmp/shipper", f"{cls.home}/lines"), ("/var/log/system.log", f"{cls.home}/system.log"),
            ("/var/lib/natsway", f"{cls.home}/instances"),
            ("127.0.0.1 3000", f"127.0.0.1 {app}"), ("127.0.0.1:3000", f"127.0.0.1:{app}"),
            ("127.0.0.1 3001", f"127.0.0.1 {next_app}"), ("127.0.0.1:3001", f"127.0.0.1:{next_app}"),
        ]
        cls.fill(cls.home)
        cls.background = []
        cls.addClassCleanup(cls.stop_background)
        cls.background.append(cls.start("worker --subject svc.demo.green"))

    @classmethod
    def fill(cls, home):
        """The files that the commands read."""
        shutil.copy2(ROOT / "deploy" / "routes.toml", home / "routes.toml")
        (home / "system.log").write_text("a line\n" * 10, encoding="utf-8")
        page = (ROOT / "docs" / "durable-routes.md").read_text(encoding="utf-8")
        (home / "hooks.toml").write_text(re.search(r"```toml\n(.*?)```", page, re.DOTALL).group(1), encoding="utf-8")
        page = (ROOT / "docs" / "provisioner.md").read_text(encoding="utf-8")
        example = cls.localised(re.search(r"```toml\n(.*?)```", page, re.DOTALL).group(1))
        for name in ("provisioner.toml", "other.toml"):
            (home / name).write_text(example, encoding="utf-8")
        page = (ROOT / "docs" / "sidecar.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
        for name, block in zip(("shop.toml", "jupyter.toml", "pairs.toml"), blocks):
            (home / name).write_text(cls.localised(block), encoding="utf-8")
        # As root it wants to be told so.
        (home / "jupyter-config").mkdir()
        (home / "jupyter-config" / "jupyter_server_config.json").write_text('{"ServerApp": {"allow_root": true}}', encoding="utf-8")

    @classmethod
    def localised(cls, text):
        for there, here in cls.here:
            text = text.replace(there, here)
        return text

    @classmethod
    def start(cls, command):
        """Starts a command in a process group of its own, with its output in a file."""
        output = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        bare = re.sub(r"&$", "", cls.localised(command)).strip()
        process = subprocess.Popen(
            ["bash", "-c", bare], cwd=cls.home, env=cls.environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )
        process.told = output
        return process

    @staticmethod
    def output(process):
        process.told.seek(0)
        return process.told.read()

    @staticmethod
    def stop(process):
        for wish in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, wish)
            except ProcessLookupError:
                break
            try:
                process.wait(20)
                break
            except subprocess.TimeoutExpired:
                continue
        process.told.close()

    @classmethod
    def stop_background(cls):
        while cls.background:
            cls.stop(cls.background.pop())

    def ends(self, command, wanted=0, seconds=COMMAND_SECONDS):
        process = self.start(command)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            told = self.output(process)
            self.stop(process)
            self.fail(f"{command}: does not end:\n{told}")
        told = self.output(process)
        process.told.close()
        self.assertEqual(status, wanted, f"{command}:\n{told}")
        return told

    def serves(self, command, shows, stays):
        process = self.start(command)
        end = time.monotonic() + COMMAND_SECONDS
        settled = time.monotonic() + SERVES_SECONDS
        try:
            while time.monotonic() < settled or not re.search(shows, self.output(process)):
                self.assertIsNone(process.poll(), f"{command}: ended:\n{self.output(process)}")
                self.assertLess(time.monotonic(), end, f"{command}: does not show {shows!r}:\n{self.output(process)}")
                time.sleep(0.05)
        except AssertionError:
            self.stop(process)
            raise
        if stays:
            self.background.append(process)
        else:
            self.stop(process)

    def run_page(self, page, *before):
        kept, is_installed = list(self.background), True
        for command in before:
            self.ends(command)
        for command in commands((ROOT / page).read_text(encoding="utf-8")):
            what = known(command)
            if what is None or what.how not in (ENDS, SERVES) or (what.needs_install and not is_installed):
                continue
            if what.installs:
                is_installed = self.installs(command)
                continue
            with self.subTest(f"{page}: {command}"):
                if command.startswith("curl ") and shutil.which("curl") is None:
                    self.skipTest("curl is not installed")
                for first in what.before:
                    self.ends(first)
                if what.how == SERVES:
                    self.serves(command, what.shows, what.stays)
                else:
                    told = self.ends(command, what.status)
                    self.assertTrue(re.search(what.shows, told), f"{command}: does not show {what.shows!r}:\n{told}")
        for process in [process for process in self.background if process not in kept]:
            self.background.remove(process)
            self.stop(process)

    def installs(self, command):
        """Whether packages can be had. It is a fault in CI if not, unless the package source is away."""
        try:
            self.ends(command, seconds=INSTALL_SECONDS)
            return True
        except AssertionError as error:
            if os.environ.get("CI") == "true" and reaches_pypi():
                raise
            print(f"\nSKIPPED: packages cannot be had, so a part of docs/sidecar.md is not run: {error}", file=sys.stderr, flush=True)
            return False

    def test_readme(self):
        self.run_page("README.md", "apiproxy routes import routes.toml")

    def test_rollouts(self):
        self.run_page("docs/rollouts.md", "apiproxy routes import routes.toml")

    def test_operations(self):
        self.run_page("docs/operations.md", "apiproxy routes import routes.toml")

    def test_durable_routes(self):
        self.run_page("docs/durable-routes.md")

    def test_traces(self):
        self.run_page("docs/traces.md")

    def test_provisioner(self):
        self.run_page(
            "docs/provisioner.md",
            "nats stream add ORDERS --subjects 'orders.>' --defaults",
            "nats consumer add ORDERS WORKERS --pull --defaults",
        )

    def test_shipper(self):
        self.run_page("docs/shipper.md")

    def test_sidecar(self):
        self.run_page("docs/sidecar.md")

    def test_the_provisioner_scales_the_pair(self):
        """docs/sidecar.md's configuration: as many apps as pairs are wanted, and none without its worker."""
        pairs = (self.home / "pairs.toml").read_text(encoding="utf-8")

        def want(count):
            bounds = f"min = {count}, max = {count}"
            changed, found = re.subn(r"min = \d+, max = \d+", bounds, pairs)
            self.assertEqual(found, 1)
            (self.home / "pairs.new").write_text(changed, encoding="utf-8")
            (self.home / "pairs.new").replace(self.home / "pairs.toml")

        self.ends("apiproxy routes import shop.toml")
        want(1)
        leader = self.start("provisioner run --config pairs.toml --lease-bucket pairs")
        try:
            for count in (1, 3, 1):
                want(count)
                self.await_pairs(count, leader)
        finally:
            self.stop(leader)
            # Instances outlive the provisioner.
            for pid in self.workers():
                os.kill(pid, signal.SIGTERM)
        self.await_pairs(0)

    def await_pairs(self, count, leader=None):
        end = time.monotonic() + COMMAND_SECONDS
        while (found := (len(self.workers()), len(self.apps()))) != (count, count):
            told = self.output(leader) if leader else ""
            self.assertLess(time.monotonic(), end, f"workers and apps: {found}, wanted {count} of each:\n{told}")
            time.sleep(0.1)

    def workers(self):
        return [pid for pid, command in self.processes() if command[:3] == ["worker", "--subject", "svc.shop.blue"]]

    def apps(self):
        return [pid for pid, command in self.processes() if command[1:3] == ["-m", "http.server"]]

    def processes(self):
        """The processes that were started below here: each with its arguments."""
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                command = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
                variables = (directory / "environ").read_bytes()
            except OSError:
                continue
            if str(self.home).encode() in variables:
                yield int(directory.name), command

    def test_consumer_groups(self):
        self.run_page("docs/consumer-groups.md")
        self.run_page("partitioned-consumer/README.md")

    def test_no_page_is_left_out(self):
        tested = set(re.findall(r'run_page\(\s*"([^"]+)"', Path(__file__).read_text(encoding="utf-8")))
        runs = {
            page for page in PAGES
            if any((what := known(command)) and what.how in (ENDS, SERVES) for command in commands((ROOT / page).read_text(encoding="utf-8")))
        }
        self.assertEqual(runs - tested, set())


if __name__ == "__main__":
    unittest.main()
