//! What is promised of HTTP/1, asked of others: real clients whose uploads are refused, and nginx
//! on our cases.

mod nginx;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use natsway_testkit::{
    Process, TestBroker, eventually, free_port, repository_root, workspace_binary,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use super::scenario::{Scenario, run, scenario};
use super::stand::DEADLINE;
use super::{Finding, Report, probe};

/// How often each client uploads.
const UPLOADS: u32 = 40;

/// What it uploads: far more than the route takes.
const BODY_BYTES: u32 = 5_000_000;

/// Enough for a client that is compiled first.
const CLIENT: Duration = Duration::from_secs(300);

const ROUTES: &str = r#"
[[route]]
name = "upload"
path = "/{*rest}"
max_body_bytes = 65536
target = [{ version = "blue", subject = "svc.upload.blue" }]
"#;

/// What is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Write what nginx answers into the file of cases, in place of comparing it with what is there
    #[arg(long)]
    pub write: bool,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

/// What one client saw.
#[derive(Deserialize)]
struct Client {
    /// How often each status, or each failure, came.
    outcomes: BTreeMap<String, u32>,
}

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 2] = [
    scenario!(
        uploads,
        "Go's and Node's clients upload 5 MB where 64 KiB are taken: each reads its 413"
    ),
    scenario!(nginx_answers, "nginx answers the cases of HTTP/1 as the file of cases says"),
];

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that
/// cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    // Nothing is left to chance.
    run("http", (0, &size.only), size, &SCENARIOS).await
}

/// Has real clients upload what the gateway refuses. A socket that is closed too early resets the
/// connection, and the client sees a broken pipe in place of the answer.
async fn uploads(_: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let (port, admin_port) = (free_port(), free_port());
    let routes = directory.join("routes.toml");
    std::fs::write(&routes, ROUTES)?;
    let _gateway = Process::builder(workspace_binary("apiproxy"))
        .args([
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--admin-listen",
            &format!("127.0.0.1:{admin_port}"),
        ])
        .args(["--nats-url", &broker.url(), "--static-routes", "--routes"])
        .arg(&routes)
        .start();
    eventually(DEADLINE, async || match probe::get(admin_port, "/readyz").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let clients = repository_root().join("proofs/http_clients");
    let (go, node) = (clients.join("main.go"), clients.join("clients.mjs"));
    let url = format!("http://127.0.0.1:{port}/");
    finding.figure("body_bytes", BODY_BYTES);
    let (mut lost, mut reports, mut missing) = (0, Vec::new(), Vec::new());
    for (program, first) in [("go", vec!["run".into(), go]), ("node", vec![node])] {
        let Some(lines) = upload(program, &first, &url).await? else {
            missing.push(program);
            continue;
        };
        for line in lines.lines() {
            let client: Client =
                serde_json::from_str(line).with_context(|| format!("{program}: {line}"))?;
            let all: u32 = client.outcomes.values().sum();
            lost += all - client.outcomes.get("413").copied().unwrap_or_default();
            reports.push(serde_json::from_str::<Value>(line)?);
        }
    }
    finding.figure("clients", reports);
    finding.figure("lost", lost);
    finding.figure("missing", missing);
    finding.promise(lost == 0, || format!("{lost} answers were lost"));
    Ok(())
}

/// Runs the clients of a program, and gives what they print; nothing where there is no such
/// program.
async fn upload(
    program: &str,
    first: &[std::path::PathBuf],
    url: &str,
) -> anyhow::Result<Option<String>> {
    let mut command = Command::new(program);
    command.args(first).args([url, &UPLOADS.to_string(), &BODY_BYTES.to_string()]);
    command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    match tokio::time::timeout(CLIENT, command.output())
        .await
        .with_context(|| format!("{program} hangs"))?
    {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("*** SKIPPED: no {program} in PATH, so its clients are not tried");
            Ok(None)
        }
        other => {
            let output = other?;
            ensure!(output.status.success(), "{program} ended with {}", output.status);
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
    }
}

/// Asks nginx every case, and compares its answers with those in the file. It is one opinion: a
/// case goes by its RFC.
async fn nginx_answers(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let Some(program) = nginx::find() else {
        eprintln!(
            "*** SKIPPED: no nginx: install it (Debian: apt-get install nginx), or name it in \
             NATSWAY_NGINX"
        );
        finding.figure("missing", vec!["nginx"]);
        return Ok(());
    };
    let path = repository_root().join("apiproxy/tests/it/http1_cases.jsonl");
    let lines = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let cases = lines.lines().map(nginx::Case::read).collect::<anyhow::Result<Vec<_>>>()?;
    let answers = nginx::ask_all(&program, &cases, directory).await?;
    let mut differ = 0;
    for (case, answer) in cases.iter().zip(&answers) {
        let is_other = *answer != case.expected();
        differ += usize::from(is_other);
        if is_other {
            eprintln!("  {:>18}  {}: {:?}, nginx {answer:?}", case.rfc, case.name, case.expected());
        }
        let known = case.nginx.clone().unwrap_or_else(|| case.expected());
        finding.promise(size.write || *answer == known, || {
            format!(
                "{}: nginx answers {answer:?}, and the file has {known:?}; --write puts it there",
                case.name
            )
        });
    }
    finding.figure("cases", cases.len());
    finding.figure("differ", differ);
    if size.write {
        let written = lines.lines().zip(cases.iter().zip(&answers));
        let written = written.map(|(line, (case, answer))| case.line_with(line, answer) + "\n");
        std::fs::write(&path, written.collect::<String>())?;
    }
    Ok(())
}
