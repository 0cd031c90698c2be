//! Figures of this library beside the Go library's: one run, one broker build, the same work. Writes JSON.
//!
//! `MESSAGES` (100,000) sets the size of the throughput runs, `HAZARD_SECONDS` (40) the length of the hazard run;
//! `PARTS` picks some of `throughput,take-over,rebalance,hazard`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::{self, stream};
use natsway_groups_proof::cpu;
use natsway_groups_proof::ledger::Ledger;
use natsway_groups_proof::member::{Orders, now_ns};
use natsway_groups_proof::peer::Peer;
use natsway_partitioned_consumer::{ElasticConfig, ElasticGroup, Membership, StaticConfig, StaticGroup};
use natsway_testkit::{Broker, Process};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const PARTITIONS: u32 = 10;

/// How often each side's throughput is measured.
const ROUNDS: usize = 3;

/// What one member did with messages that were all stored before.
#[derive(Serialize)]
struct Throughput {
    messages_per_s: u64,
    /// Processor time of the member's process, start and end included.
    member_us_per_message: f64,
    broker_us_per_message: f64,
}

struct Bench {
    broker: Broker,
    context: jetstream::Context,
    rust: PathBuf,
    go: Option<PathBuf>,
    logs: PathBuf,
    made: u32,
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
    let rust = std::env::current_exe()?.with_file_name("groups-member");
    let mut bench = Bench { broker, context, rust, go, logs: logs.clone(), made: 0 };
    let (messages, hazard_s) = (number("MESSAGES", 100_000)?, number("HAZARD_SECONDS", 40)?);
    let sides: Vec<&str> =
        ["rust", "go"].into_iter().filter(|side| *side == "rust" || bench.go.is_some()).collect();
    let mut figures: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
    for limit in [1, 1000].into_iter().filter(|_| wanted("throughput")) {
        let count = if limit == 1 { messages / 5 } else { messages };
        let mut rounds: BTreeMap<&str, Vec<Throughput>> = BTreeMap::new();
        // In turn, so that whatever else the machine does meets both alike.
        for _ in 0..ROUNDS {
            for side in &sides {
                rounds.entry(side).or_default().push(bench.throughput(side, limit, count).await?);
            }
        }
        for (side, rounds) in rounds {
            eprintln!("{side}: max_ack_pending {limit}: {}", json!(rounds));
            figures.entry(side).or_default().insert(format!("max_ack_pending_{limit}"), json!(rounds));
        }
    }
    for side in sides {
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

    async fn publish(&self, stream: &str, count: u64, keys: u64, body: usize) -> Result<()> {
        let mut acks = Vec::with_capacity(1000);
        for at in 0..count {
            let number = (at / keys + 1).to_string();
            let payload = if body > 0 { "x".repeat(body) } else { number };
            acks.push(self.context.publish(format!("{stream}.k{}", at % keys), payload.into()).await?);
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

    fn orders(
        &self,
        stream: &str,
        member: &str,
        limit: i64,
        ack_wait_ms: u64,
        work_ms: u64,
        name: &str,
    ) -> Orders {
        Orders {
            url: self.broker.url(),
            stream: stream.into(),
            group: "g".into(),
            fixed: false,
            member: member.into(),
            max_ack_pending: limit,
            ack_wait_ms,
            concurrency: 1,
            work_ms,
            moody: false,
            log: self.logs.join(name).to_string_lossy().into_owned(),
            bench: None,
        }
    }

    fn program(&self, side: &str, orders: &Orders, what: &str) -> Result<(PathBuf, String)> {
        let mut orders = serde_json::to_value(orders)?;
        if side == "rust" {
            return Ok((self.rust.clone(), orders.to_string()));
        }
        orders["do"] = json!(what);
        orders["bench"] = json!(orders["bench"].as_u64().unwrap_or(0));
        Ok((self.go.clone().context("no Go peer")?, orders.to_string()))
    }

    fn start(&self, side: &str, name: &str, orders: &Orders) -> Result<Process> {
        let (program, orders) = self.program(side, orders, "consume-elastic")?;
        Ok(Process::builder(program).name(name).arg(orders).start())
    }

    /// One member, all messages stored before.
    async fn throughput(&mut self, side: &str, limit: i64, count: u64) -> Result<Throughput> {
        let stream = self.stream(true).await?;
        let group = StaticGroup::new(self.context.clone(), &stream, "g")?;
        group.create(&StaticConfig::new(PARTITIONS, Membership::balanced(["m"]))).await?;
        self.publish(&stream, count, 1000, 128).await?;
        let orders = Orders { bench: Some(count), ..self.orders(&stream, "m", limit, 5000, 0, "unused") };
        let (program, orders) = self.program(side, &orders, "bench")?;
        let (member, broker) = (cpu::of_ended_children(), cpu::of_process(self.broker.pid()));
        let output = tokio::process::Command::new(program).arg(orders).stdin(Stdio::null()).output().await?;
        let per_message = |used: Duration| (used.as_secs_f64() * 1e8 / count as f64).round() / 100.0;
        let member = per_message(cpu::of_ended_children().saturating_sub(member));
        let broker = per_message(cpu::of_process(self.broker.pid()).saturating_sub(broker));
        self.context.delete_stream(&stream).await?;
        if !output.status.success() {
            bail!("{side} bench: {}", String::from_utf8_lossy(&output.stderr));
        }
        let seconds: f64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        let messages_per_s = (count as f64 / seconds).round() as u64;
        Ok(Throughput { messages_per_s, member_us_per_message: member, broker_us_per_message: broker })
    }

    /// Two instances, the pinned one goes: seconds until the other handles.
    async fn take_over(&mut self, side: &str, kill: bool) -> Result<f64> {
        let stream = self.stream(false).await?;
        let group = ElasticGroup::new(self.context.clone(), &stream, "g")?;
        group.create(&ElasticConfig::new(PARTITIONS).filter(format!("{stream}.*"), [1])).await?;
        group.add_members(["m"]).await?;
        let names = ["first", "second"].map(|which| format!("{stream}-{which}"));
        let orders = |name: &str| self.orders(&stream, "m", 1, 2000, 1, name);
        let mut first = self.start(side, &names[0], &orders(&names[0]))?;
        self.publish(&stream, 200, 50, 0).await?;
        self.wait_for(&names[0], 20).await?;
        let second = self.start(side, &names[1], &orders(&names[1]))?;
        sleep(Duration::from_millis(1500)).await;
        self.publish(&stream, 6000, 50, 0).await?;
        self.wait_for(&names[0], 300).await?;
        let left = now_ns();
        if kill {
            first.kill9();
        } else {
            first.terminate();
        }
        self.wait_for(&names[1], 1).await?;
        let began =
            self.begins(&names[1])?.first().map(|(at, _)| *at).context("the standby handled nothing")?;
        drop(second);
        self.context.delete_stream(group.name().work_queue()).await?;
        Ok((began.saturating_sub(left)) as f64 / 1e9)
    }

    /// Fifty additions and drops under traffic: how long each kept its slowest partition waiting.
    async fn rebalance(&mut self, side: &str) -> Result<Value> {
        let stream = self.stream(false).await?;
        let group = ElasticGroup::new(self.context.clone(), &stream, "g")?;
        let config = ElasticConfig::new(PARTITIONS).filter(format!("{stream}.*"), [1]);
        group.create(&config).await?;
        group.add_members(["m1", "m2"]).await?;
        // One key for each partition, so that every partition's flow is seen.
        let mut keys: Vec<Option<u64>> = vec![None; PARTITIONS as usize];
        for key in 0..1000 {
            if let Some(partition) = config.partition_of(&format!("{stream}.k{key}")) {
                keys[partition as usize].get_or_insert(key);
            }
        }
        let names = ["m1", "m2", "m3"].map(|member| format!("{stream}-{member}"));
        let mut members = Vec::new();
        for (name, member) in names.iter().zip(["m1", "m2", "m3"]) {
            members.push(self.start(side, name, &self.orders(&stream, member, 1, 2000, 1, name))?);
        }
        let context = self.context.clone();
        let subjects: Vec<String> = keys.iter().flatten().map(|key| format!("{stream}.k{key}")).collect();
        let feed = tokio::spawn(async move {
            for number in 1_u64.. {
                for subject in &subjects {
                    if let Ok(ack) = context.publish(subject.clone(), number.to_string().into()).await {
                        drop(ack.await);
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        sleep(Duration::from_secs(4)).await;
        let mut changes = Vec::new();
        for change in 0..50 {
            changes.push(now_ns());
            if change % 2 == 0 {
                group.add_members(["m3"]).await?
            } else {
                group.drop_members(["m3"]).await?
            };
            sleep(Duration::from_millis(1200)).await;
        }
        sleep(Duration::from_secs(4)).await;
        feed.abort();
        let mut handled: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for name in &names {
            for (at, key) in self.begins(name)? {
                handled.entry(key).or_default().push(at);
            }
        }
        handled.values_mut().for_each(|times| times.sort_unstable());
        // The longest gap of any partition that the change lies in, or that begins within the second after it.
        let gap = |times: &Vec<u64>, change: u64| {
            let near = |pair: &&[u64]| pair[1] > change && pair[0] < change + 1_000_000_000;
            times.windows(2).filter(near).map(|pair| pair[1] - pair[0].max(change)).max().unwrap_or(u64::MAX)
        };
        let mut gaps: Vec<f64> = Vec::new();
        for change in changes {
            gaps.push(
                handled.values().map(|times| gap(times, change)).max().unwrap_or(u64::MAX) as f64 / 1e9,
            );
        }
        drop(members);
        self.context.delete_stream(group.name().work_queue()).await?;
        gaps.sort_by(f64::total_cmp);
        let within = gaps.iter().filter(|gap| **gap <= 1.0).count();
        Ok(
            json!({ "changes": gaps.len(), "within_1_s": within, "median_s": gaps[gaps.len() / 2], "worst_s": gaps[gaps.len() - 1] }),
        )
    }

    /// The run that breaks exclusivity where a buffer outlives the pin: a backlog, slow handlers, two instances.
    async fn hazard(&mut self, side: &str, seconds: u64) -> Result<Value> {
        let stream = self.stream(false).await?;
        let group = ElasticGroup::new(self.context.clone(), &stream, "g")?;
        group.create(&ElasticConfig::new(PARTITIONS).filter(format!("{stream}.*"), [1])).await?;
        group.add_members(["m"]).await?;
        self.publish(&stream, 10_000, 20, 0).await?;
        let names = ["one", "two"].map(|which| format!("{stream}-{which}"));
        let mut members = Vec::new();
        for name in &names {
            let orders = self.orders(&stream, "m", 1000, 5000, 20, name);
            members.push(self.start(side, name, &orders)?);
        }
        sleep(Duration::from_secs(seconds)).await;
        let mut ledger = Ledger::default();
        for (mut member, name) in members.into_iter().zip(&names) {
            member.kill9();
            if self.logs.join(name).exists() {
                ledger.read(&self.logs.join(name), name, Some(now_ns()))?;
            }
        }
        self.context.delete_stream(group.name().work_queue()).await?;
        let verdict = ledger.judge();
        Ok(
            json!({ "runs": verdict.runs, "overlaps": verdict.overlaps, "duplicates": verdict.duplicates, "disorders": verdict.disorders }),
        )
    }

    /// When handlers began, and on which subject.
    fn begins(&self, name: &str) -> Result<Vec<(u64, String)>> {
        let path: &Path = &self.logs.join(name);
        let text = if path.exists() { std::fs::read_to_string(path)? } else { String::new() };
        let parse = |line: &str| {
            let mut parts = line.split(' ');
            (parts.next()? == "B").then_some(())?;
            Some((parts.next()?.parse().ok()?, parts.nth(1)?.to_owned()))
        };
        Ok(text.lines().filter_map(parse).collect())
    }

    async fn wait_for(&self, name: &str, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.begins(name)?.len() < count {
            if Instant::now() > deadline {
                bail!("{name} handled fewer than {count} messages in a minute");
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}
