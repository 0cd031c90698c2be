//! A broker, a gateway, and sidecars with an app each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use natsway_testkit::{
    Process, ProcessBuilder, TestBroker, eventually, free_port, workspace_binary,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::stage::SUBJECT;

/// Generous: for a hang, not for a slow machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Stand {
    /// Where clients connect.
    pub(super) port: u16,
    pub(super) broker: TestBroker,
    _gateway: Process,
    directory: TempDir,
    sidecars: usize,
}

/// A sidecar, and where its app is told how to behave.
pub(super) struct Sidecar {
    pub(super) process: Process,
    behaviour: PathBuf,
}

/// A sidecar that is yet to be started.
pub(super) struct Prepared {
    pub(super) process: ProcessBuilder,
    pub(super) behaviour: PathBuf,
}

/// What a client got.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) json: Value,
    pub(super) trailers: HeaderMap,
}

impl Stand {
    pub(super) async fn start(route_lines: &str) -> Self {
        let program = tokio::task::spawn_blocking(|| workspace_binary("apiproxy")).await.unwrap();
        let broker = TestBroker::start().await;
        let directory = tempfile::tempdir().unwrap();
        let routes = directory.path().join("routes.toml");
        let target = format!("[[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n");
        let route = "[[route]]\nname = \"test\"\npath = \"/{*rest}\"\ntimeout = \"20s\"\n";
        std::fs::write(&routes, format!("{route}{route_lines}\n{target}")).unwrap();
        let (port, admin_port) = (free_port(), free_port());
        let gateway = Process::builder(program)
            .args(["--static-routes", "--nats-url", &broker.url()])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .arg("--routes")
            .arg(&routes)
            .start();
        eventually(PATIENCE, async || match get(admin_port, "/readyz").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        Self { port, broker, _gateway: gateway, directory, sidecars: 0 }
    }

    /// Starts the app behind a sidecar, without waiting for either.
    pub(super) fn start_app(&mut self, behaviour: &[&str], arguments: &[&str]) -> Sidecar {
        let sidecar = self.sidecar(arguments);
        let process = sidecar.process.args(["--", "python3"]).arg(app());
        start(process, sidecar.behaviour, behaviour)
    }

    /// Starts the app by a shell, which is its parent, behind a sidecar that serves.
    pub(super) async fn serve_by_shell(
        &mut self,
        behaviour: &[&str],
        arguments: &[&str],
    ) -> Sidecar {
        let sidecar = self.sidecar(arguments);
        let command = format!("python3 '{}'; true", app().display());
        let process = sidecar.process.args(["--", "sh", "-c", &command]);
        let mut sidecar = start(process, sidecar.behaviour, behaviour);
        sidecar.process.wait_for_line("serving subject", PATIENCE).await;
        sidecar
    }

    /// A sidecar that is yet to be started, without a command.
    pub(super) fn sidecar(&mut self, arguments: &[&str]) -> Prepared {
        let directory = self.directory.path().join(self.sidecars.to_string());
        self.sidecars += 1;
        std::fs::create_dir(&directory).unwrap();
        let defaults = [
            ["--port-env", "PORT"],
            ["--health", "GET /health"],
            ["--health-interval", "100ms"],
            ["--health-timeout", "300ms"],
        ];
        let process = Process::builder(env!("CARGO_BIN_EXE_worker"))
            .name(format!("sidecar {}", self.sidecars))
            .args(["--nats-url", &self.broker.url(), "--subject", SUBJECT])
            .args(defaults.into_iter().filter(|[name, _]| !arguments.contains(name)).flatten())
            .args(arguments)
            .env("BEHAVIOUR", &directory)
            .env("NATSWAY_LOG", "info");
        Prepared { process, behaviour: directory }
    }

    /// Starts the app behind a sidecar that serves.
    pub(super) async fn serve_app(&mut self, behaviour: &[&str], arguments: &[&str]) -> Sidecar {
        let mut sidecar = self.start_app(behaviour, arguments);
        sidecar.process.wait_for_line("serving subject", PATIENCE).await;
        sidecar
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        get(self.port, path).await.unwrap()
    }
}

/// The app.
pub(super) fn app() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sidecar/app.py")
}

/// Starts a sidecar whose app behaves in these ways.
pub(super) fn start(process: ProcessBuilder, directory: PathBuf, behaviour: &[&str]) -> Sidecar {
    for name in behaviour {
        std::fs::write(directory.join(name), "").unwrap();
    }
    Sidecar { process: process.start(), behaviour: directory }
}

impl Sidecar {
    /// Has the app behave in a way.
    pub(super) fn make(&self, name: &str) {
        std::fs::write(self.behaviour.join(name), "").unwrap();
    }

    /// Has it behave in that way no longer.
    pub(super) fn unmake(&self, name: &str) {
        std::fs::remove_file(self.behaviour.join(name)).unwrap();
    }

    /// Waits until the app did what leaves this file.
    pub(super) async fn made(&self, name: &str) {
        eventually(PATIENCE, async || match self.behaviour.join(name).exists() {
            true => Ok(()),
            false => Err(format!("no {name}")),
        })
        .await;
    }

    /// What the app, or its check, has written there.
    pub(super) fn wrote(&self, name: &str) -> String {
        std::fs::read_to_string(self.behaviour.join(name)).unwrap_or_default()
    }

    /// The process that the app itself is, which a shell may have started.
    pub(super) fn app_itself(&self) -> Pid {
        Pid::from_raw(self.wrote("pid").parse().expect("it has written it"))
    }

    /// The app's process, by what its sidecar said last.
    pub(super) fn app(&self) -> Pid {
        let log = self.process.stderr();
        let line = log.lines().rfind(|line| line.contains("app started")).expect("it was started");
        let (_, pid) = line.split_once("pid=").expect("with its id");
        Pid::from_raw(pid.split_whitespace().next().unwrap().parse().unwrap())
    }

    pub(super) fn signal_app(&self, signal: Signal) {
        kill(self.app(), signal).unwrap();
    }

    /// Waits until a line was said so often.
    pub(super) async fn said(&self, text: &str, times: usize) {
        eventually(PATIENCE, async || {
            let found = self.process.stderr().matches(text).count();
            if found >= times { Ok(()) } else { Err(format!("{found} times {text}")) }
        })
        .await;
    }
}

/// Whether a process is there, and not just waited for.
pub(super) fn lives(id: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

pub(super) async fn get(port: u16, path: &str) -> Result<Answer, String> {
    send(port, Request::get(path).body(Full::default()).unwrap()).await
}

pub(super) async fn post(port: u16, path: &str, body: &'static str) -> Result<Answer, String> {
    let request = Request::builder().method(Method::POST).uri(path);
    send(port, request.body(Full::from(body)).unwrap()).await
}

pub(super) async fn send(port: u16, mut request: Request<Full<Bytes>>) -> Result<Answer, String> {
    request.headers_mut().entry("host").or_insert("shop.example:8443".parse().unwrap());
    let exchanged = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let json = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        Ok(Answer { status, json, trailers })
    };
    tokio::time::timeout(PATIENCE, exchanged).await.map_err(|_| "no answer".to_owned())?
}

impl Answer {
    /// A field as the app saw it; several are joined.
    pub(super) fn seen(&self, name: &str) -> Option<String> {
        let fields = self.json["headers"].as_array()?.iter();
        let values = fields.filter(|field| field[0] == name).filter_map(|field| field[1].as_str());
        let all: Vec<_> = values.collect();
        (!all.is_empty()).then(|| all.join(" | "))
    }
}
