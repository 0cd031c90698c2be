//! How fast one member handles messages that were all stored before.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail};
use natsway_partitioned_consumer::{Membership, StaticConfig, StaticGroup};
use natsway_testkit::workspace_binary;
use serde::Serialize;
use serde_json::json;

use super::member::{Means, MemberRun, Orders, Work};
use super::{Bench, Figures, PARTITIONS, cpu};

/// How often each side is measured.
const ROUNDS: usize = 3;
const KEYS: u64 = 1000;
const BODY_BYTES: usize = 128;
/// Long enough that no pin has to be renewed for its sake: the bound does not.
const ACK_WAIT_MS: u64 = 30_000;
/// A handler that asks something else and waits for the answer.
const WORK: Work = Work { wait_ms: 1, busy_us: 20 };

/// Who handles the messages, and how.
#[derive(Clone, Copy)]
pub(super) struct Side {
    /// Its key among the figures.
    name: &'static str,
    /// The Go library has none: it calls one handler after another.
    means: Option<Means>,
    concurrency: usize,
    by_subject: bool,
}

const fn side(name: &'static str, means: Option<Means>) -> Side {
    Side { name, means, concurrency: 1, by_subject: false }
}

const RUST: Side = side("rust", Some(Means::Library));
const GO: Side = side("go", None);

/// Who is measured with handlers that only acknowledge.
const LIGHT: [Side; 4] = [
    RUST,
    side("rust_one_thread", Some(Means::OneThread)),
    GO,
    // What the broker and the socket leave to any client.
    side("bound", Some(Means::Bare)),
];

/// Who is measured with handlers that take time; partitions at once, or keys.
const BUSY: [Side; 4] = [
    side("rust_one_handler", Some(Means::Library)),
    Side { concurrency: PARTITIONS as usize, ..RUST },
    Side { concurrency: 100, by_subject: true, ..side("rust_by_key", Some(Means::Library)) },
    GO,
];

/// What one member did.
#[derive(Serialize)]
struct Speed {
    messages_per_s: u64,
    /// Processor time of the member's process, start and end included.
    member_us_per_message: f64,
    broker_us_per_message: f64,
    /// How long a handler took on average, in milliseconds, where it did something.
    handler_ms: f64,
}

impl Bench {
    /// Handlers that only acknowledge: what a message costs.
    pub(super) async fn throughput(&mut self, messages: u64, figures: &mut Figures) -> Result<()> {
        self.in_turns("max_ack_pending_1", &[RUST, GO], 1, messages / 5, None, figures).await?;
        self.in_turns("max_ack_pending_1000", &LIGHT, 1000, messages, None, figures).await
    }

    /// Handlers that take time: what order costs.
    pub(super) async fn handlers(&mut self, messages: u64, figures: &mut Figures) -> Result<()> {
        self.in_turns("busy_handlers", &BUSY, 1000, messages / 20, Some(WORK), figures).await
    }

    /// Each side in turn, so that whatever else the machine does meets all alike.
    async fn in_turns(
        &mut self,
        part: &str,
        sides: &[Side],
        limit: i64,
        messages: u64,
        work: Option<Work>,
        figures: &mut Figures,
    ) -> Result<()> {
        let sides: Vec<Side> = sides
            .iter()
            .filter(|side| side.means.is_some() || self.go.is_some())
            .copied()
            .collect();
        let mut rounds: BTreeMap<&str, Vec<Speed>> = BTreeMap::new();
        for _ in 0..ROUNDS {
            for side in &sides {
                let speed = self.handle_stored(*side, limit, messages, work).await?;
                rounds.entry(side.name).or_default().push(speed);
            }
        }
        for (side, rounds) in rounds {
            eprintln!("{side}: {part}: {}", json!(rounds));
            figures.entry(side).or_default().insert(part.to_owned(), json!(rounds));
        }
        Ok(())
    }

    async fn handle_stored(
        &mut self,
        side: Side,
        limit: i64,
        messages: u64,
        work: Option<Work>,
    ) -> Result<Speed> {
        let stream = self.stream(true).await?;
        let group = StaticGroup::new(self.context.clone(), &stream, "g")?;
        group.create(&StaticConfig::new(PARTITIONS, Membership::balanced(["m"]))).await?;
        self.publish(&stream, messages, KEYS, BODY_BYTES).await?;
        let orders = Orders {
            url: self.broker.url(),
            stream: stream.clone(),
            group: "g".into(),
            member: "m".into(),
            messages,
            max_ack_pending: limit,
            ack_wait_ms: ACK_WAIT_MS,
            work,
            means: side.means.unwrap_or(Means::Library),
            concurrency: side.concurrency,
            by_subject: side.by_subject,
        };
        let mut text = serde_json::to_value(orders)?;
        text["do"] = json!("bench");
        let program =
            if side.means.is_some() { workspace_binary("groups-speed") } else { self.go()? };
        let (member, broker) = (cpu::of_ended_children(), cpu::of_process(self.broker.pid()));
        let mut command = tokio::process::Command::new(program);
        let output = command.arg(text.to_string()).stdin(Stdio::null()).output().await?;
        let per_message =
            |used: Duration| (used.as_secs_f64() * 1e8 / messages as f64).round() / 100.0;
        let member = per_message(cpu::of_ended_children().saturating_sub(member));
        let broker = per_message(cpu::of_process(self.broker.pid()).saturating_sub(broker));
        self.context.delete_stream(&stream).await?;
        if !output.status.success() {
            bail!("{}: {}", side.name, String::from_utf8_lossy(&output.stderr));
        }
        let outcome: MemberRun = serde_json::from_slice(&output.stdout)?;
        Ok(Speed {
            messages_per_s: (messages as f64 / outcome.seconds).round() as u64,
            member_us_per_message: member,
            broker_us_per_message: broker,
            handler_ms: (outcome.handler_ms * 1000.0).round() / 1000.0,
        })
    }
}
