//! JupyterLab in a real browser, whose page outlives a switch of the sidecars before its server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use natsway_testkit::{Process, eventually, free_port, repository_root, workspace_binary};

use super::real::{App, CHECK, Install, JUPYTERLAB, START, environment, judge};
use crate::stand::DEADLINE;
use crate::versions::fleet::{Fleet, ROUTE};
use crate::{Finding, Size, probe};

/// What drives the browser.
const DRIVER: App = App {
    name: "browser",
    install: Install::Npm { packages: &["playwright-core@1"], program: None },
    command: "",
    health: "",
    check: "browse_jupyterlab.mjs",
};

/// How long a sidecar that leaves waits for streams, of which the kernel's is one.
const DRAIN_TIMEOUT: &str = "1s";

pub(super) async fn jupyterlab_in_a_browser(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let browser = chromium()?;
    let started = Instant::now();
    let driver = DRIVER.install().await.context("install playwright-core")?;
    let home = JUPYTERLAB.install().await.context("install jupyterlab")?;
    finding.figure("install_seconds", started.elapsed().as_secs());
    let app_port = free_port();
    let server = serve(&home, app_port).await?;

    let fleet = Fleet::start(directory, 1, &size.transport.with("timeout = \"60s\"")).await?;
    let mut blue = sidecar(&fleet, "blue", app_port).await;
    let green = sidecar(&fleet, "green", app_port).await;

    let browse = |port: u16, is_switched: bool| {
        let script = repository_root().join("proofs/apps").join(DRIVER.check);
        let page = Process::builder("node").name("browser").arg(script);
        page.args([format!("http://127.0.0.1:{port}"), is_switched.to_string()])
            .arg(&browser)
            .arg(directory.join(if is_switched { "through.png" } else { "direct.png" }))
            .env("NODE_PATH", driver.join("node_modules"))
            .start()
    };
    let mut page = browse(app_port, false);
    let direct = seen(&mut page).await?;
    let mut page = browse(fleet.ports()[0], true);
    let ready = page.wait_for_line("ready to be switched", CHECK);
    ready.await;
    let switch = ["rollout", "start", ROUTE, "--to", "green", "--strategy", "blue-green"];
    let done = fleet.cli(&[&switch[..], &["--follow"]].concat()).await?;
    ensure!(done.code == Some(0), "no switch: {}", done.text);
    blue.terminate();
    let status = blue.wait_exit(DEADLINE).await;
    ensure!(status.success(), "blue left with {status}: {}", blue.stderr());
    std::fs::write(directory.join("switched"), "")?;
    let through = seen(&mut page).await?;
    let lives = through.lines().filter(|line| line.starts_with("after the switch, ")).count();
    finding.promise(lives == 2, || format!("after the switch: {through}"));
    // What was there before it is to be as directly.
    let before = through.lines().filter(|line| {
        !line.starts_with("after the switch, ") && !line.starts_with("ready to be switched")
    });
    let before: String = before.map(|line| format!("{line}\n")).collect();
    judge(&direct, &before, directory, finding)?;
    drop((green, server));
    Ok(())
}

/// The browser, of which `BROWSER` may name another than Debian's.
fn chromium() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("BROWSER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut of_path = std::env::split_paths(&path).map(|directory| directory.join("chromium"));
    named
        .or_else(|| of_path.find(|program| program.exists()))
        .context("no chromium in PATH: apt-get install chromium, or BROWSER=<program>")
}

/// Starts the server, without anything before it.
async fn serve(home: &Path, port: u16) -> anyhow::Result<Process> {
    let mut command = tokio::process::Command::new("sh");
    environment(&mut command, home);
    let variables = command.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut server = Process::builder("sh")
        .name("jupyterlab")
        .args(["-c", JUPYTERLAB.command])
        .env("PORT", port.to_string())
        .current_dir(home);
    for (name, value) in variables {
        server = server.env(name, value);
    }
    let server = server.start();
    eventually(START, async || match probe::get(port, "/api").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    Ok(server)
}

async fn sidecar(fleet: &Fleet, version: &str, app_port: u16) -> Process {
    let mut sidecar = Process::builder(workspace_binary("worker"))
        .name(format!("sidecar {version}"))
        .args(["--nats-url", &fleet.broker.url(), "--subject", &format!("svc.prove.{version}")])
        .args(["--upstream", &format!("http://127.0.0.1:{app_port}"), "--health"])
        .args([JUPYTERLAB.health, "--drain-timeout", DRAIN_TIMEOUT])
        .start();
    sidecar.wait_for_line("serving subject", START).await;
    sidecar
}

/// What the page showed, once it is closed.
async fn seen(page: &mut Process) -> anyhow::Result<String> {
    let status = page.wait_exit(CHECK + Duration::from_secs(5)).await;
    ensure!(status.success(), "the browser ended with {status}: {}", page.stderr());
    Ok(page.stdout())
}
