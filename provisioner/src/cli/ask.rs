//! `provisioner status`, `explain` and `top`: what the leader says of itself.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::Client;
use clap::Args;
use futures_util::StreamExt;
use natsway_boot::Broker;

use super::INBOX_PREFIX;
use crate::decision::Decision;
use crate::events::{Status, decision_subject, status_subject};
use crate::graph::Graph;

/// How long the broker and the leader may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Clears the terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Args)]
pub(super) struct TopArgs {
    /// Decisions that are shown side by side
    #[arg(long, value_name = "COUNT", default_value = "60")]
    width: usize,

    /// Leave after so many decisions
    #[arg(long, value_name = "COUNT")]
    count: Option<usize>,
}

pub(super) async fn connect(broker: &Broker) -> anyhow::Result<Client> {
    let client = broker.connect("provisioner command line", INBOX_PREFIX).await?;
    let flushed = tokio::time::timeout(WITHIN, client.flush()).await;
    flushed.ok().and_then(Result::ok).with_context(|| format!("broker {broker} is not reached"))?;
    Ok(client)
}

async fn ask(broker: &Broker) -> anyhow::Result<Status> {
    let client = connect(broker).await?;
    let answer = tokio::time::timeout(WITHIN, client.request(status_subject(), "".into())).await;
    let answer =
        answer.context("no provisioner answers in time")?.context("no provisioner leads: start one")?;
    serde_json::from_slice(&answer.payload)
        .context("the leader's answer cannot be read; is it newer than this program")
}

pub(super) async fn explain(broker: Broker, target: Option<&str>) -> anyhow::Result<ExitCode> {
    let status = ask(&broker).await?;
    let is_asked_for = |decision: &&Decision| target.is_none_or(|target| decision.target == target);
    let decisions: Vec<&Decision> = status.targets.iter().filter(is_asked_for).collect();
    if decisions.is_empty() {
        let known: Vec<&str> = status.targets.iter().map(|decision| decision.target.as_str()).collect();
        bail!("no decision about {}; there are: {}", target.unwrap_or("anything"), known.join(", "));
    }
    for decision in decisions {
        print!("{decision}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn status(broker: Broker) -> anyhow::Result<ExitCode> {
    let status = ask(&broker).await?;
    println!("leader {}, since {} (Unix ms)", status.leader, status.since_ms);
    println!(
        "{:<24} {:>5} {:>5} {:>9} {:>9} {:>8}  DECISION",
        "TARGET", "HAS", "WANTS", "RATE/S", "LAG", "STARTING"
    );
    for decision in &status.targets {
        let view = decision.view.as_ref();
        let rate = view.map_or("-".to_owned(), |view| format!("{:.1}", view.arrival_rate));
        let lag = view.map_or("-".to_owned(), |view| view.backlog().to_string());
        let Decision { target, from, to, fleet, .. } = decision;
        let trouble = decision.trouble().map(|trouble| format!(": {trouble}")).unwrap_or_default();
        println!(
            "{target:<24} {from:>5} {to:>5} {rate:>9} {lag:>9} {:>8}  {}{trouble}",
            fleet.starting,
            decision.course()
        );
    }
    Ok(ExitCode::SUCCESS)
}

impl TopArgs {
    pub(super) async fn run(self, broker: Broker) -> anyhow::Result<ExitCode> {
        let client = connect(&broker).await?;
        let mut decisions = client.subscribe(decision_subject("*")).await?;
        let mut graph = Graph::new(self.width.clamp(10, 500));
        let mut out = std::io::stdout();
        let mut seen = 0;
        write!(out, "{CLEAR}{}", graph.draw())?;
        out.flush()?;
        while let Some(message) = decisions.next().await {
            let Ok(decision) = serde_json::from_slice(&message.payload) else { continue };
            graph.push(decision);
            write!(out, "{CLEAR}{}", graph.draw())?;
            out.flush()?;
            seen += 1;
            if self.count == Some(seen) {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
