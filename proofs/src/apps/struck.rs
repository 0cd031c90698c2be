//! Three sidecars with an app each, under requests and streams: replaced, killed, frozen.

use std::path::Path;

use anyhow::Context;
use natsway_testkit::{Signal, TestBroker, eventually, workspace_binary};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use crate::load::{Load, Tally};
use crate::stand::{DEADLINE, Extras, PATIENT, Stand};
use crate::streams::Rows;
use crate::{Finding, Size};

/// How long sidecars may take to leave: apps do not know that they are to end their streams, so
/// those last so long.
const DRAIN_TIMEOUT: &str = "2s";

/// WebSockets and event streams for each connection of the load: 200 and 100 with 64.
const SOCKETS: (usize, usize) = (25, 8);
const EVENT_STREAMS: (usize, usize) = (25, 16);

/// Three sidecars with an app each.
async fn three(size: &Size, directory: &Path, broker: &TestBroker) -> anyhow::Result<Stand> {
    let app = tokio::task::spawn_blocking(|| workspace_binary("prove-app")).await?;
    let app = app.to_str().context("the path of the app is no text")?;
    let sidecar = [
        "--port-env",
        "PORT",
        "--health",
        "GET /health",
        "--health-interval",
        "200ms",
        "--drain-timeout",
        DRAIN_TIMEOUT,
        "--",
        app,
    ];
    let transport = size.transport;
    let extras = Extras { worker: &sidecar, transport, ..Extras::default() };
    Stand::start_with(directory, (&broker.url(), &broker.url()), PATIENT, 3, extras).await
}

/// What a sidecar says when it has joined its queue group, and when it has left.
const JOINED: &str = "serving subject";
const LEFT: &str = " left ";

/// What is under way while sidecars and apps are struck: requests, WebSockets and event streams.
struct Traffic {
    load: Load,
    rows: Rows,
    stop: CancellationToken,
    /// Connections that the apps had which were struck, when they were: for each stream one, for
    /// each request one, and some that waited.
    held: usize,
}

impl Traffic {
    fn start(size: &Size, port: u16) -> Self {
        let share = |(times, of): (usize, usize)| (size.connections * times / of).max(4);
        let stop = CancellationToken::new();
        let load = Load::start(port, size.connections, size.seed);
        let rows = Rows::start(port, share(SOCKETS), share(EVENT_STREAMS), &stop);
        Self { load, rows, stop, held: 0 }
    }

    /// Waits for a round's part of the load.
    async fn go_on(&self, size: &Size, rounds: usize) {
        self.load.more(size.requests / (rounds + 1)).await;
    }

    /// Notes what an app holds, which is struck now.
    fn strikes(&mut self, app: Pid) -> anyhow::Result<()> {
        self.held += sockets_of(app)?;
        Ok(())
    }

    /// Ends it all and judges the streams: announced, but for what was held.
    async fn end(self, size: &Size, finding: &mut Finding) -> anyhow::Result<Tally> {
        self.load.reach(size.requests).await;
        self.stop.cancel();
        finding.figure("connections_held", self.held);
        self.rows.judge(finding, self.held).await?;
        let tally = self.load.stop().await;
        finding.figure("requests", tally.outcomes.len());
        finding.figure("per_second", tally.rate());
        finding.figure("slowest_ms", u64::try_from(tally.slowest().as_millis())?);
        Ok(tally)
    }

    /// The same when something was struck: no GET failed, and of POSTs what it held.
    async fn end_struck(self, size: &Size, finding: &mut Finding) -> anyhow::Result<()> {
        // Each connection has one request out.
        let held = size.connections * size.rounds;
        let tally = self.end(size, finding).await?;
        let (gets, posts): (Vec<_>, Vec<_>) =
            tally.failed().into_iter().partition(|outcome| outcome.method == http::Method::GET);
        finding.figure("posts_failed", posts.len());
        finding.promise(gets.is_empty(), || format!("GETs failed: {gets:?}"));
        finding.promise(posts.len() <= held, || {
            format!("{} POSTs failed, it held {held}", posts.len())
        });
        Ok(())
    }
}

pub(super) async fn restarted_in_turn(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = three(size, directory, &broker).await?;
    let traffic = Traffic::start(size, stand.port);
    for _ in 0..3 * size.rounds {
        traffic.go_on(size, 3 * size.rounds).await;
        stand.add_worker();
        stand.members(4).await;
        retire(&mut stand).await?;
        stand.members(3).await;
    }
    let tally = traffic.end(size, finding).await?;
    let by_tunnel = stand.metric("natsway_tunnel_requests_total").await?;
    finding.figure("by_tunnel", by_tunnel);
    finding.promise(!size.transport.is_by_tunnels() || by_tunnel > 100.0, || {
        format!("{by_tunnel} requests went by tunnels")
    });
    finding.promise(tally.failed().is_empty(), || format!("failed: {}", tally.failures()));
    stand.all_let_go().await;
    Ok(())
}

/// Has the oldest sidecar leave, which ends as its app does: by SIGTERM.
async fn retire(stand: &mut Stand) -> anyhow::Result<()> {
    let mut oldest = stand.workers.remove(0);
    oldest.terminate();
    let code = oldest.wait_exit(DEADLINE).await.code();
    anyhow::ensure!(code == Some(143), "it left with {code:?}: {}", oldest.stderr());
    Ok(())
}

/// The process of a sidecar's app, by what the sidecar said last.
fn app_of(stand: &Stand, index: usize) -> anyhow::Result<Pid> {
    let log = stand.workers[index].stderr();
    let line = log.lines().rfind(|line| line.contains("app started"));
    let pid = line.and_then(|line| line.split_once("pid=")?.1.split_whitespace().next());
    let pid = pid.and_then(|pid| pid.parse().ok());
    pid.map(Pid::from_raw).ok_or_else(|| anyhow::anyhow!("no app was started: {log}"))
}

/// How often a sidecar has said something.
fn said(stand: &Stand, index: usize, text: &str) -> usize {
    stand.workers[index].stderr().matches(text).count()
}

/// Waits until a sidecar has said something more often than before.
async fn says_again(stand: &Stand, index: usize, text: &str, before: usize) {
    eventually(DEADLINE, async || match said(stand, index, text) > before {
        true => Ok(()),
        false => Err(format!("it did not say {text:?}")),
    })
    .await;
}

pub(super) async fn app_killed(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = three(size, directory, &broker).await?;
    let mut traffic = Traffic::start(size, stand.port);
    for round in 0..size.rounds {
        traffic.go_on(size, size.rounds).await;
        let (struck, app) = (round % 3, app_of(&stand, round % 3)?);
        let joined = said(&stand, struck, JOINED);
        traffic.strikes(app)?;
        kill(app, Signal::SIGKILL)?;
        says_again(&stand, struck, JOINED, joined).await;
    }
    traffic.end_struck(size, finding).await?;
    stand.all_let_go().await;
    Ok(())
}

pub(super) async fn app_frozen(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = three(size, directory, &broker).await?;
    let mut traffic = Traffic::start(size, stand.port);
    for round in 0..size.rounds {
        traffic.go_on(size, size.rounds).await;
        let (struck, app) = (round % 3, app_of(&stand, round % 3)?);
        let (joined, left) = (said(&stand, struck, JOINED), said(&stand, struck, LEFT));
        kill(app, Signal::SIGSTOP)?;
        traffic.strikes(app)?;
        says_again(&stand, struck, LEFT, left).await;
        kill(app, Signal::SIGCONT)?;
        says_again(&stand, struck, JOINED, joined).await;
    }
    traffic.end_struck(size, finding).await?;
    stand.all_let_go().await;
    Ok(())
}

pub(super) async fn sidecar_killed(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = three(size, directory, &broker).await?;
    let mut traffic = Traffic::start(size, stand.port);
    for _ in 0..size.rounds {
        traffic.go_on(size, size.rounds).await;
        let app = app_of(&stand, 0)?;
        traffic.strikes(app)?;
        stand.workers.remove(0).kill9();
        eventually(DEADLINE, async || match has_ended(app) {
            true => Ok(()),
            false => Err("its app lives"),
        })
        .await;
        stand.add_worker();
        stand.members(3).await;
    }
    traffic.end_struck(size, finding).await?;
    stand.all_let_go().await;
    Ok(())
}

pub(super) async fn sidecar_frozen(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = three(size, directory, &broker).await?;
    let mut traffic = Traffic::start(size, stand.port);
    for round in 0..size.rounds {
        traffic.go_on(size, size.rounds).await;
        let struck = round % 3;
        let app = app_of(&stand, struck)?;
        stand.workers[struck].freeze();
        traffic.strikes(app)?;
        stand.members(2).await;
        // The others have the load.
        traffic.go_on(size, size.rounds).await;
        stand.workers[struck].thaw();
        stand.members(3).await;
    }
    traffic.end_struck(size, finding).await?;
    stand.all_let_go().await;
    Ok(())
}

/// How many sockets a process has open, the one that listens left out.
fn sockets_of(id: Pid) -> anyhow::Result<usize> {
    let descriptors = std::fs::read_dir(format!("/proc/{id}/fd"))?;
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let sockets = targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count();
    Ok(sockets.saturating_sub(1))
}

/// Whether a process is gone, or has ended and is not waited for.
fn has_ended(id: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    state.is_none_or(|state| matches!(state, 'Z' | 'X'))
}
