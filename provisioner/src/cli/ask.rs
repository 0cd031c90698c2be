//! `provisioner status`, `explain` and `top`: what leaders say of themselves.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use async_nats::{Client, StatusCode};
use clap::Args;
use futures_util::StreamExt;
use humantime_serde::re::humantime::format_duration;
use natsway_boot::{BrokerConfig, Clock, Dial, Dialer};
use tokio::time::Instant;

use crate::decision::Decision;
use crate::events::{Status, decision_subject, status_subject};
use crate::graph::Graph;
use crate::signal::now_ms;

/// The inbox prefix of people and pipelines.
const INBOX_PREFIX: &str = "_INBOX_operator";

/// How long the broker and the leader may take.
const WITHIN: Duration = Duration::from_secs(5);

/// How much later than the first answer others may come.
const OTHERS_WITHIN: Duration = Duration::from_millis(300);

/// Columns where there is no terminal.
const COLUMNS: usize = 80;

/// How often the picture is drawn anew at the least.
const REDRAW: Duration = Duration::from_secs(1);

/// Clears the terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Args)]
pub(super) struct TopArgs {
    /// Decisions that are shown side by side; as many as the terminal has room for by default
    #[arg(long, value_name = "COUNT")]
    width: Option<usize>,

    /// Leave after so many decisions
    #[arg(long, value_name = "COUNT")]
    count: Option<usize>,
}

pub(super) async fn connect(broker: &BrokerConfig) -> anyhow::Result<Client> {
    const NAME: &str = "provisioner command line";
    let dial = Dial {
        name: NAME.to_owned(),
        inbox_prefix: INBOX_PREFIX.to_owned(),
        subscription_messages: 1,
        publish_messages: 1,
    };
    // It says at once, and why, when there is none; the client that is used comes back by itself
    // after a loss.
    Dialer::new(broker.clone(), dial).dial_once(None).await?;
    let client = broker.connect(NAME, INBOX_PREFIX).await?;
    let flushed = tokio::time::timeout(WITHIN, client.flush()).await;
    flushed.ok().and_then(Result::ok).with_context(|| format!("broker {broker} is not reached"))?;
    Ok(client)
}

/// What each leader says; several lead when they have leases of their own.
async fn ask(broker: &BrokerConfig) -> anyhow::Result<Vec<Status>> {
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
        messages.push(
            message.context("a leader's answer cannot be read; is it newer than this program")?,
        );
        until = until.min(Instant::now() + OTHERS_WITHIN);
    }
    ensure!(!messages.is_empty(), "no provisioner answers within {} s", WITHIN.as_secs());
    Ok(Status::whole(messages))
}

pub(super) async fn explain(
    broker: BrokerConfig,
    target: Option<&str>,
) -> anyhow::Result<ExitCode> {
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

pub(super) async fn status(broker: BrokerConfig) -> anyhow::Result<ExitCode> {
    for Status { leader, lease, since_ms, targets, .. } in ask(&broker).await? {
        let lease = lease.map_or("without a lease".to_owned(), |lease| format!("by lease {lease}"));
        let since = UNIX_EPOCH + Duration::from_millis(since_ms);
        let led = SystemTime::now().duration_since(since).unwrap_or_default();
        println!(
            "{leader} leads {lease} for {}",
            format_duration(Duration::from_secs(led.as_secs()))
        );
        println!(
            "{:<24} {:>5} {:>5} {:>9} {:>9} {:>9} {:>8} {:>6}  DECISION",
            "TARGET", "HAS", "WANTS", "RATE/S", "LAG", "IN HAND", "STARTING", "SILENT"
        );
        targets.iter().for_each(print_row);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_row(decision: &Decision) {
    let view = decision.view.as_ref();
    let rate = view.map_or("-".to_owned(), |view| format!("{:.1}", view.arrival_rate));
    let lag = view.map_or("-".to_owned(), |view| view.waiting.to_string());
    let in_hand = view.map_or("-".to_owned(), |view| view.in_hand.to_string());
    let Decision { target, from, to, fleet, .. } = decision;
    let trouble = decision.trouble().map(|trouble| format!(": {trouble}")).unwrap_or_default();
    println!(
        "{target:<24} {from:>5} {to:>5} {rate:>9} {lag:>9} {in_hand:>9} {:>8} {:>6}  {}{trouble}",
        fleet.starting,
        fleet.silent,
        decision.direction()
    );
}

impl TopArgs {
    pub(super) async fn run(self, broker: BrokerConfig) -> anyhow::Result<ExitCode> {
        let client = connect(&broker).await?;
        let mut decisions = client.subscribe(decision_subject("*")).await?;
        let columns =
            terminal_size::terminal_size().map_or(COLUMNS, |(width, _)| usize::from(width.0));
        let mut graph = Graph::new(columns, self.width);
        let clock = Clock::start();
        let mut out = std::io::stdout();
        let mut seen = 0;
        // Without a decision the age of the last one is what there is to show.
        let mut pace = tokio::time::interval(REDRAW);
        loop {
            let message = tokio::select! {
                message = decisions.next() => message.context("the connection has ended")?,
                _ = pace.tick() => {
                    write!(out, "{CLEAR}{}", graph.draw(now_ms(&clock)))?;
                    out.flush()?;
                    continue;
                }
            };
            let Ok(decision) = serde_json::from_slice(&message.payload) else { continue };
            graph.push(now_ms(&clock), decision);
            write!(out, "{CLEAR}{}", graph.draw(now_ms(&clock)))?;
            out.flush()?;
            seen += 1;
            if self.count == Some(seen) {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
