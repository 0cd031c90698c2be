//! Figures of this library beside the Go library's: one run, one broker build, the same work. Writes JSON.
//!
//! `MESSAGES` (100,000) sets the size of the throughput runs, `HAZARD_SECONDS` (40) the length of the hazard run;
//! `PARTS` picks some of `throughput,handlers,take-over,rebalance,hazard`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use async_nats::jetstream::{self, stream};
use natsway_groups_proof::peer::Peer;
use natsway_testkit::Broker;
use serde_json::{Value, json};

mod moves;
mod speed;

const PARTITIONS: u32 = 10;

/// What was measured, by side and part.
type Figures = BTreeMap<&'static str, BTreeMap<String, Value>>;

struct Bench {
    broker: Broker,
    context: jetstream::Context,
    go: Option<PathBuf>,
    logs: PathBuf,
    made: u32,
    here: PathBuf,
}

/// Whether a part is to be measured: all are, unless `PARTS` names some.
fn wanted(part: &str) -> bool {
    std::env::var("PARTS").map_or(true, |parts| parts.split(',').any(|p| p == part))
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text}: expected a number")),
        Err(_) => Ok(default),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    natsway_groups_proof::usage::answer_help(
        "Figures of consumer groups beside the Go library's, as JSON",
        "bench-groups",
        &[
            ("PARTS", "which to measure: throughput,handlers,take-over,rebalance,hazard (all)"),
            ("MESSAGES", "messages of each throughput run (100000)"),
            ("HAZARD_SECONDS", "length of the hazard run (40)"),
        ],
    );
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let logs = std::path::absolute(target.join("bench/groups"))?;
    if logs.exists() {
        std::fs::remove_dir_all(&logs)?;
    }
    std::fs::create_dir_all(&logs)?;
    let go = match Peer::newest(&logs.join("interop-go")) {
        Ok((peer, programs)) => {
            eprintln!("go: the library's {}", peer.version());
            Some(programs.join("interop"))
        }
        Err(why) => {
            eprintln!("*** the Go library is missing from the figures: {why:?}");
            None
        }
    };
    let broker = Broker::builder().jetstream().start().await;
    let context = jetstream::new(broker.connect().await);
    let mut bench =
        Bench { broker, context, go, logs: logs.clone(), made: 0, here: std::env::current_exe()? };
    let (messages, hazard_s) = (number("MESSAGES", 100_000)?, number("HAZARD_SECONDS", 40)?);
    let mut figures = Figures::new();
    if wanted("throughput") {
        bench.throughput(messages, &mut figures).await?;
    }
    if wanted("handlers") {
        bench.handlers(messages, &mut figures).await?;
    }
    let with_go = bench.go.is_some();
    for side in ["rust", "go"].into_iter().filter(|side| *side == "rust" || with_go) {
        let one = figures.entry(side).or_default();
        for (name, kill) in [("failover_after_kill_s", true), ("graceful_hand_over_s", false)]
            .into_iter()
            .filter(|_| wanted("take-over"))
        {
            let mut gaps = Vec::new();
            for _ in 0..3 {
                gaps.push(bench.take_over(side, kill).await?);
            }
            eprintln!("{side}: {name}: {gaps:?}");
            one.insert(name.into(), json!(gaps));
        }
        if wanted("rebalance") {
            let flowing = bench.rebalance(side).await?;
            eprintln!("{side}: 50 changes, slowest partition of each: {flowing}");
            one.insert("rebalance".into(), flowing);
        }
        if wanted("hazard") {
            let overlaps = bench.hazard(side, hazard_s).await?;
            eprintln!("{side}: hazard run: {overlaps}");
            one.insert("hazard".into(), overlaps);
        }
    }
    let line = json!({ "messages": messages, "partitions": PARTITIONS, "figures": figures }).to_string();
    std::fs::write(logs.join("figures.json"), &line)?;
    println!("{line}");
    Ok(())
}

impl Bench {
    fn go(&self) -> Result<PathBuf> {
        self.go.clone().context("there is no Go peer")
    }

    /// Another program of this package.
    fn beside(&self, name: &str) -> PathBuf {
        self.here.with_file_name(name)
    }

    /// A stream of its own for each run, in memory; `partitioned` writes the partition into the subjects.
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
