//! Figures of consumer groups beside the Go library's: one broker, the same work; `bench groups`.

pub mod bare;
mod cpu;
pub mod member;
mod moves;
mod speed;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use async_nats::jetstream::{self, stream};
use clap::ValueEnum;
use natsway_proofs::groups::peer::Peer;
use natsway_testkit::TestBroker;
use serde_json::{Value, json};

use crate::raw_directory;

/// What is measured, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to measure, several with commas between [default: all]
    #[arg(long, env = "PARTS", value_name = "PARTS", value_delimiter = ',')]
    parts: Vec<Part>,

    /// Messages of each throughput run; where handlers take time, and with a limit of one, it is
    /// fewer
    #[arg(long, env = "MESSAGES", value_name = "COUNT", default_value = "100000")]
    messages: u64,

    /// How long the hazard run takes
    #[arg(long, env = "HAZARD_SECONDS", value_name = "SECONDS", default_value = "40")]
    hazard_seconds: u64,
}

/// A part of the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Handlers that only acknowledge
    Throughput,
    /// Handlers that take time, in order
    Handlers,
    /// A member is killed, or leaves: how long until another goes on
    TakeOver,
    /// Changes of the membership: how long until all partitions flow
    Rebalance,
    /// What breaks exclusivity where a buffer outlives the pin
    Hazard,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

const PARTITIONS: u32 = 10;

/// What was measured, by side and part.
type Figures = BTreeMap<&'static str, BTreeMap<String, Value>>;

struct Bench {
    broker: TestBroker,
    context: jetstream::Context,
    go: Option<PathBuf>,
    logs: PathBuf,
    made: u32,
}

/// Measures what was asked for, and prints one line of JSON.
///
/// # Errors
/// Something does not start, or a file cannot be written.
pub async fn measure(args: &Args) -> Result<()> {
    let logs = raw_directory("groups")?;
    let go = go_library(&logs);
    let broker = TestBroker::builder().jetstream().start().await;
    let context = jetstream::new(broker.connect().await);
    let mut bench = Bench { broker, context, go, logs: logs.clone(), made: 0 };
    let mut figures = Figures::new();
    if args.wants(Part::Throughput) {
        bench.throughput(args.messages, &mut figures).await?;
    }
    if args.wants(Part::Handlers) {
        bench.handlers(args.messages, &mut figures).await?;
    }
    let with_go = bench.go.is_some();
    for side in ["rust", "go"].into_iter().filter(|side| *side == "rust" || with_go) {
        let one = figures.entry(side).or_default();
        bench.changes(args, side, one).await?;
    }
    let line = json!({ "messages": args.messages, "partitions": PARTITIONS, "figures": figures })
        .to_string();
    std::fs::write(logs.join("figures.json"), &line)?;
    println!("{line}");
    Ok(())
}

/// Builds the newest generation of the Go library that can be had.
fn go_library(logs: &Path) -> Option<PathBuf> {
    match Peer::newest(&logs.join("interop-go")) {
        Ok((peer, programs)) => {
            eprintln!("go: the library's {}", peer.version());
            Some(programs.join("interop"))
        }
        Err(why) => {
            eprintln!("*** the Go library is missing from the figures: {why:?}");
            None
        }
    }
}

impl Bench {
    /// What changes of the members cost one side.
    async fn changes(
        &mut self,
        args: &Args,
        side: &str,
        figures: &mut BTreeMap<String, Value>,
    ) -> Result<()> {
        if args.wants(Part::TakeOver) {
            for (name, kill) in [("failover_after_kill_s", true), ("graceful_hand_over_s", false)] {
                let mut gaps = Vec::new();
                for _ in 0..3 {
                    gaps.push(self.take_over(side, kill).await?);
                }
                eprintln!("{side}: {name}: {gaps:?}");
                figures.insert(name.into(), json!(gaps));
            }
        }
        if args.wants(Part::Rebalance) {
            let flowing = self.rebalance(side).await?;
            eprintln!("{side}: 50 changes, slowest partition of each: {flowing}");
            figures.insert("rebalance".into(), flowing);
        }
        if args.wants(Part::Hazard) {
            let overlaps = self.hazard(side, args.hazard_seconds).await?;
            eprintln!("{side}: hazard run: {overlaps}");
            figures.insert("hazard".into(), overlaps);
        }
        Ok(())
    }

    fn go(&self) -> Result<PathBuf> {
        self.go.clone().context("there is no Go peer")
    }

    /// A stream of its own for each run, in memory; `partitioned` writes the partition into the
    /// subjects.
    async fn stream(&mut self, partitioned: bool) -> Result<String> {
        self.made += 1;
        let name = format!("S{}", self.made);
        let source = format!("{name}.*");
        let destination = format!("{{{{partition({PARTITIONS},1)}}}}.{name}.{{{{wildcard(1)}}}}");
        let transform = stream::SubjectTransform { source: source.clone(), destination };
        let config = stream::Config {
            name: name.clone(),
            subjects: vec![source],
            subject_transform: partitioned.then_some(transform),
            storage: stream::StorageType::Memory,
            ..Default::default()
        };
        self.context.create_stream(config).await?;
        Ok(name)
    }

    /// Numbers each key's messages from 1, padded to `body_bytes`.
    async fn publish(&self, stream: &str, count: u64, keys: u64, body_bytes: usize) -> Result<()> {
        let mut acks = Vec::with_capacity(1000);
        for at in 0..count {
            let body = format!("{:<body_bytes$}", at / keys + 1);
            acks.push(self.context.publish(format!("{stream}.k{}", at % keys), body.into()).await?);
            if acks.len() == 1000 {
                for ack in acks.drain(..) {
                    ack.await?;
                }
            }
        }
        for ack in acks {
            ack.await?;
        }
        Ok(())
    }
}
