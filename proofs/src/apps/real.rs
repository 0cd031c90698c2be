//! Real apps: installed by their ordinary tools below `target/apps`, asked by one script directly
//! and through the sidecar, and compared line by line.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use natsway_testkit::{
    Process, TestBroker, eventually, free_port, repository_root, workspace_binary,
};
use tokio::process::Command;

use crate::{Finding, Size, Transport, probe};

/// An installation may download hundreds of megabytes.
const INSTALL: Duration = Duration::from_secs(1_200);
/// Jupyter takes a while on a busy machine.
pub(super) const START: Duration = Duration::from_secs(120);
pub(super) const CHECK: Duration = Duration::from_secs(300);

/// An app, how it is installed and started, and what asks it.
pub(super) struct App {
    pub(super) name: &'static str,
    pub(super) install: Install,
    /// What the shell runs, in the app's directory, with `PORT`.
    pub(super) command: &'static str,
    pub(super) health: &'static str,
    /// The script in `proofs/apps` that asks it and prints what it saw, a line each. It is given
    /// the base of all addresses.
    pub(super) check: &'static str,
}

/// Where an app comes from.
pub(super) enum Install {
    /// A list of packages for pip, from the root of the repository, or packages.
    Pip { requirements: Option<&'static str>, packages: &'static [&'static str] },
    /// Packages for npm, and the directory of the program that uses them.
    Npm { packages: &'static [&'static str], program: Option<&'static str> },
    /// A directory with a module of Go, and programs for `go install`.
    GoModule { module: &'static str, programs: &'static [&'static str] },
    /// Programs for `go install`.
    GoPrograms(&'static [&'static str]),
}

/// What the scripts themselves need.
const CLIENT_PACKAGES: &[&str] = &["httpx", "websockets"];

const FASTAPI: App = App {
    name: "fastapi",
    install: Install::Pip {
        requirements: Some("examples/fastapi/requirements.txt"),
        packages: &[],
    },
    command: "cd \"$EXAMPLES/fastapi\" && exec uvicorn app:app --host 127.0.0.1 --port $PORT",
    health: "GET /health",
    check: "check_fastapi.py",
};

pub(super) async fn fastapi(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    FASTAPI.compare(size, directory, finding).await
}

/// Installs FastAPI and uvicorn once, and gives the directory that has them in `venv`.
///
/// # Errors
/// There is no Python, or pip reaches no package source.
pub async fn install_fastapi() -> anyhow::Result<PathBuf> {
    FASTAPI.install().await.context("install fastapi")
}

pub(super) async fn flask(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let app = App {
        name: "flask",
        install: Install::Pip {
            requirements: Some("examples/flask/requirements.txt"),
            packages: &[],
        },
        command: "cd \"$EXAMPLES/flask\" && exec gunicorn --bind 127.0.0.1:$PORT \
                  --worker-class gthread --workers 2 --threads 16 app:app",
        health: "GET /health",
        check: "check_flask.py",
    };
    app.compare(size, directory, finding).await
}

pub(super) async fn express(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let app = App {
        name: "express",
        install: Install::Npm { packages: &["express@5"], program: Some("examples/express") },
        command: "exec node server.js",
        health: "GET /health",
        check: "check_express.py",
    };
    app.compare(size, directory, finding).await
}

pub(super) async fn go(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let app = App {
        name: "go",
        install: Install::GoModule { module: "examples/go", programs: &[] },
        command: "exec ./hello",
        health: "GET /health",
        check: "check_go.py",
    };
    app.compare(size, directory, finding).await
}

pub(super) async fn httpbin(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let app = App {
        name: "httpbin",
        install: Install::Pip { requirements: None, packages: &["httpbin", "gunicorn"] },
        command: "exec gunicorn --bind 127.0.0.1:$PORT --worker-class gthread --workers 1 \
                  --threads 16 httpbin:app",
        health: "GET /status/200",
        check: "check_httpbin.py",
    };
    app.compare(size, directory, finding).await
}

pub(super) async fn jupyterlab(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    JUPYTERLAB.compare(size, directory, finding).await
}

pub(super) const JUPYTERLAB: App = App {
    name: "jupyterlab",
    install: Install::Pip { requirements: None, packages: &["jupyterlab"] },
    command: "mkdir -p notebooks && exec jupyter lab --no-browser --allow-root --ip 127.0.0.1 --port $PORT \
              --ServerApp.port_retries=0 --ServerApp.root_dir=notebooks --IdentityProvider.token=t",
    health: "GET /api",
    check: "check_jupyterlab.py",
};

pub(super) async fn gradio(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let app = App {
        name: "gradio",
        install: Install::Pip { requirements: None, packages: &["gradio"] },
        command: "GRADIO_ANALYTICS_ENABLED=False exec python \"$CHECKS/gradio_app.py\"",
        health: "GET /config",
        check: "check_gradio.py",
    };
    app.compare(size, directory, finding).await
}

pub(super) async fn node_red(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let app = App {
        name: "node-red",
        install: Install::Npm { packages: &["node-red@4"], program: None },
        command: "exec node node_modules/node-red/red.js --port $PORT --userDir data",
        health: "GET /",
        check: "check_node_red.py",
    };
    app.compare(size, directory, finding).await
}

pub(super) async fn grpc(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let app = App {
        name: "grpc",
        install: Install::GoPrograms(&[
            "google.golang.org/grpc/interop/server@latest",
            "google.golang.org/grpc/interop/client@latest",
        ]),
        command: "exec server --port=$PORT --use_tls=false",
        health: "tcp",
        check: "check_grpc.py",
    };
    app.compare(size, directory, finding).await
}

pub(super) async fn pocketbase(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let app = App {
        name: "pocketbase",
        install: Install::GoPrograms(&["github.com/pocketbase/pocketbase/examples/base@v0.36.8"]),
        command: "base superuser upsert root@app.example secret-of-a-test --dir data && \
                  exec base serve --http 127.0.0.1:$PORT --dir data",
        health: "GET /api/health",
        check: "check_pocketbase.py",
    };
    app.compare(size, directory, finding).await
}

pub(super) async fn grpcurl_and_ghz(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let app = App {
        name: "grpcurl-and-ghz",
        install: Install::GoModule {
            module: "proofs/apps/greeter-go",
            programs: &[
                "github.com/fullstorydev/grpcurl/cmd/grpcurl@latest",
                "github.com/bojand/ghz/cmd/ghz@latest",
            ],
        },
        command: "exec ./hello",
        health: "tcp",
        check: "check_grpcurl_and_ghz.py",
    };
    app.compare(size, directory, finding).await
}

impl App {
    /// Asks it directly and through the sidecar.
    async fn compare(
        &self,
        size: &Size,
        directory: &Path,
        finding: &mut Finding,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let home = self.install().await.with_context(|| format!("install {}", self.name))?;
        finding.figure("install_seconds", started.elapsed().as_secs());
        let stand = RealStand::start(self, size.transport, &home, directory).await?;
        let direct = self.check(&home, stand.app_port).await?;
        let through = self.check(&home, stand.port).await?;
        judge(&direct, &through, directory, finding)
    }

    /// Installs it once; gives the directory in which its command runs.
    pub(super) async fn install(&self) -> anyhow::Result<PathBuf> {
        let root = repository_root();
        let home = crate::scenario::target_directory().join("apps").join(self.name);
        let stamp = home.join("installed");
        std::fs::create_dir_all(&home)?;
        if stamp.exists() {
            return Ok(home);
        }
        let venv = home.join("venv");
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv)).await?;
        let pip = || {
            let mut pip = Command::new(venv.join("bin/pip"));
            pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(CLIENT_PACKAGES);
            pip
        };
        match &self.install {
            Install::Pip { requirements, packages } => {
                let mut pip = pip();
                if let Some(requirements) = requirements {
                    pip.arg("--requirement").arg(root.join(requirements));
                }
                run(pip.args(*packages)).await?;
            }
            Install::Npm { packages, program } => {
                run(&mut pip()).await?;
                let npm = ["install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix"];
                run(Command::new("npm").args(npm).arg(&home).args(*packages)).await?;
                if let Some(program) = program {
                    std::fs::copy(root.join(program).join("server.js"), home.join("server.js"))?;
                }
            }
            Install::GoModule { module, programs } => {
                run(&mut pip()).await?;
                let mut go = Command::new("go");
                go.arg("build").arg("-C").arg(root.join(module));
                run(go.arg("-o").arg(home.join("hello")).arg(".")).await?;
                go_install(programs, &venv).await?;
            }
            Install::GoPrograms(programs) => {
                run(&mut pip()).await?;
                go_install(programs, &venv).await?;
            }
        }
        std::fs::write(stamp, "")?;
        Ok(home)
    }

    async fn check(&self, home: &Path, port: u16) -> anyhow::Result<String> {
        let script = repository_root().join("proofs/apps").join(self.check);
        let mut python = Command::new(home.join("venv/bin/python"));
        python.arg(script).arg(format!("http://127.0.0.1:{port}"));
        environment(&mut python, home);
        python.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let output = tokio::time::timeout(CHECK, python.output()).await.context("it hangs")??;
        ensure!(output.status.success(), "{} ended with {}", self.check, output.status);
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Compares what was seen directly with what was seen through us, line by line.
pub(super) fn judge(
    direct: &str,
    through: &str,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    std::fs::write(directory.join("direct.txt"), direct)?;
    std::fs::write(directory.join("through.txt"), through)?;
    let (direct, through): (Vec<_>, Vec<_>) = (direct.lines().collect(), through.lines().collect());
    finding.figure("observations", direct.len());
    finding.promise(!direct.is_empty(), || "nothing was observed".to_owned());
    finding.promise(direct.len() == through.len(), || {
        format!("{} observations directly, {} through us", direct.len(), through.len())
    });
    for (direct, through) in direct.into_iter().zip(through) {
        let text = || format!("directly {direct:?}, through us {through:?}");
        finding.promise(direct == through, text);
    }
    Ok(())
}

async fn go_install(programs: &[&str], venv: &Path) -> anyhow::Result<()> {
    for program in programs {
        let mut go = Command::new("go");
        run(go.args(["install", program]).env("GOBIN", venv.join("bin"))).await?;
    }
    Ok(())
}

/// The environment of apps and scripts.
pub(super) fn environment(command: &mut Command, home: &Path) {
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{}:{path}", home.join("venv/bin").display()))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // What asks this machine asks no proxy.
        .env("NO_PROXY", "127.0.0.1,localhost");
}

async fn run(command: &mut Command) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let shown = format!("{:?}", command.as_std());
    let ended = tokio::time::timeout(INSTALL, command.status()).await.context(shown.clone())?;
    let status = ended.context(shown.clone())?;
    ensure!(status.success(), "{shown} ended with {status}");
    Ok(())
}

/// A broker, a gateway, and a sidecar with a real app.
struct RealStand {
    port: u16,
    app_port: u16,
    _sidecar: Process,
    _gateway: Process,
    _broker: TestBroker,
}

impl RealStand {
    async fn start(
        app: &App,
        transport: Transport,
        home: &Path,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        const SUBJECT: &str = "svc.real.blue";
        let broker = TestBroker::start().await;
        let (port, admin_port, app_port) = (free_port(), free_port(), free_port());
        let routes = directory.join("routes.toml");
        let lines = transport.with("timeout = \"60s\"");
        let route = format!("[[route]]\nname = \"real\"\npath = \"/{{*rest}}\"\n{lines}\n");
        let target = format!("[[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n");
        std::fs::write(&routes, route + &target)?;
        let gateway = Process::builder(workspace_binary("apiproxy"))
            .args(["--static-routes", "--nats-url", &broker.url()])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .arg("--routes")
            .arg(&routes)
            .start();
        let root = repository_root();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut sidecar = Process::builder(workspace_binary("worker"))
            .args(["--nats-url", &broker.url(), "--subject", SUBJECT])
            .args(["--upstream", &format!("http://127.0.0.1:{app_port}")])
            .args(["--health", app.health, "--start-timeout", "2m"])
            .args(["--", "sh", "-c", app.command])
            .env("NATSWAY_TUNNEL", transport.of_worker(0))
            .env("PORT", app_port.to_string())
            .env("EXAMPLES", root.join("examples"))
            .env("CHECKS", root.join("proofs/apps"))
            .env("PATH", format!("{}:{path}", home.join("venv/bin").display()))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("NO_PROXY", "127.0.0.1,localhost")
            .current_dir(home)
            .start();
        sidecar.wait_for_line("serving subject", START).await;
        eventually(START, async || match probe::get(admin_port, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        Ok(Self { port, app_port, _sidecar: sidecar, _gateway: gateway, _broker: broker })
    }
}
