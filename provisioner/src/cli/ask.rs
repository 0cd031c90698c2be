//! `provisioner status`, `explain` and `top`: what leaders say of themselves.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use async_nats::{Client, StatusCode};
use clap::Args;
use futures_util::StreamExt;
use humantime_serde::re::humantime::format_duration;
use natsway_boot::{Broker, Dial, Dialer};
use tokio::time::Instant;

use crate::decision::Decision;
use crate::events::{Status, decision_subject, status_subject};
use crate::graph::Graph;

/// The inbox prefix of people and pipelines.
const INBOX_PREFIX: &str = "_INBOX_operator";

/// How long the broker and the leader may take.
const WITHIN: Duration = Duration::from_secs(5);

/// How much later than the first answer others may come.
const OTHERS_WITHIN: Duration = Duration::from_millis(300);

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
    const NAME: &str = "provisioner command line";
    let dial = Dial {
        name: NAME.to_owned(),
        inbox_prefix: INBOX_PREFIX.to_owned(),
        subscription_messages: 1,
        publish_messages: 1,
    };
    // It says at once, and why, when there is none; the client that is used comes back by itself after a loss.
    Dialer::new(broker.clone(), dial).dial_once(None).await?;
    let client = broker.connect(NAME, INBOX_PREFIX).await?;
    let flushed = tokio::time::timeout(WITHIN, client.flush()).await;
    flushed.ok().and_then(Result::ok).with_context(|| format!("broker {broker} is not reached"))?;
    Ok(client)
}

/// What each leader says; several lead when they have leases of their own.
async fn ask(broker: &Broker) -> anyhow::Result<Vec<Status>> {
    let client = connect(broker).await?;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply(status_subject(), inbox, "".into()).await?;
    let mut messages: Vec<Status> = Vec::new();
    let mut until = Instant::now() + WITHIN;
    while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            bail!("no provisioner leads: start one");
        }
        let message = serde_json::from_slice(&answer.payload);
        messages.push(message.context("a leader's answer cannot be read; is it newer than this program")?);
        until = until.min(Instant::now() + OTHERS_WITHIN);
    }
    ensure!(!messages.is_empty(), "no provisioner answers within {} s", WITHIN.as_secs());
    Ok(Status::whole(messages))
}

pub(super) async fn explain(broker: Broker, target: Option<&str>) -> anyhow::Result<ExitCode> {
    let decisions: Vec<Decision> =
        ask(&broker).await?.into_iter().flat_map(|status| status.targets).collect();
    ensure!(!decisions.is_empty(), "no decision was made yet");
    let is_asked_for = |decision: &&Decision| target.is_none_or(|target| decision.target == target);
    let asked_for: Vec<&Decision> = decisions.iter().filter(is_asked_for).collect();
    if asked_for.is_empty() {
        let known: Vec<&str> = decisions.iter().map(|decision| decision.target.as_str()).collect();
        bail!("no target {}; there are: {}", target.unwrap_or_default(), known.join(", "));
    }
    for decision in asked_for {
        print!("{decision}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn status(broker: Broker) -> anyhow::Result<ExitCode> {
    for Status { leader, lease, since_ms, targets, .. } in ask(&broker).await? {
        let lease = lease.map_or("without a lease".to_owned(), |lease| format!("by lease {lease}"));
        let since = UNIX_EPOCH + Duration::from_millis(since_ms);
        let led = SystemTime::now().duration_since(since).unwrap_or_default();
        println!("{leader} leads {lease} for {}", format_duration(Duration::from_secs(led.as_secs())));
        println!(
            "{:<24} {:>5} {:>5} {:>9} {:>9} {:>8}  DECISION",
            "TARGET", "HAS", "WANTS", "RATE/S", "LAG", "STARTING"
        );
        targets.iter().for_each(print_row);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_row(decision: &Decision) {
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
