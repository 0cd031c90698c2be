//! What happens when members come and go: take-overs, changes of membership, and the run that
//! breaks exclusivity where a buffer outlives its pin.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use natsway_partitioned_consumer::{ElasticConfig, ElasticGroup};
use natsway_proofs::groups::ledger::Ledger;
use natsway_proofs::groups::member::{Orders, now_ns};
use natsway_testkit::{Process, workspace_binary};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Bench, PARTITIONS};

impl Bench {
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
        }
    }

    fn start(&self, side: &str, name: &str, orders: &Orders) -> Result<Process> {
        let mut text = serde_json::to_value(orders)?;
        text["do"] = json!("consume-elastic");
        let program = if side == "go" { self.go()? } else { workspace_binary("groups-member") };
        Ok(Process::builder(program).name(name).arg(text.to_string()).start())
    }

    /// Two instances, the pinned one goes: seconds until the other handles.
    pub(super) async fn take_over(&mut self, side: &str, kill: bool) -> Result<f64> {
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
        let began = self
            .begins(&names[1])?
            .first()
            .map(|(at, _)| *at)
            .context("the standby handled nothing")?;
        drop(second);
        self.context.delete_stream(group.name().work_queue()).await?;
        Ok((began.saturating_sub(left)) as f64 / 1e9)
    }

    /// Fifty additions and drops under traffic: how long each kept its slowest partition waiting.
    pub(super) async fn rebalance(&mut self, side: &str) -> Result<Value> {
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
            members.push(self.start(
                side,
                name,
                &self.orders(&stream, member, 1, 2000, 1, name),
            )?);
        }
        let context = self.context.clone();
        let subjects: Vec<String> =
            keys.iter().flatten().map(|key| format!("{stream}.k{key}")).collect();
        let feed = tokio::spawn(async move {
            for number in 1_u64.. {
                for subject in &subjects {
                    if let Ok(ack) =
                        context.publish(subject.clone(), number.to_string().into()).await
                    {
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
        // The longest gap of any partition that the change lies in, or that begins within the
        // second after it.
        let gap = |times: &Vec<u64>, change: u64| {
            let near = |pair: &&[u64]| pair[1] > change && pair[0] < change + 1_000_000_000;
            times
                .windows(2)
                .filter(near)
                .map(|pair| pair[1] - pair[0].max(change))
                .max()
                .unwrap_or(u64::MAX)
        };
        let mut gaps: Vec<f64> = Vec::new();
        for change in changes {
            gaps.push(
                handled.values().map(|times| gap(times, change)).max().unwrap_or(u64::MAX) as f64
                    / 1e9,
            );
        }
        drop(members);
        self.context.delete_stream(group.name().work_queue()).await?;
        gaps.sort_by(f64::total_cmp);
        let within = gaps.iter().filter(|gap| **gap <= 1.0).count();
        Ok(json!({
            "changes": gaps.len(), "within_1_s": within,
            "median_s": gaps[gaps.len() / 2], "worst_s": gaps[gaps.len() - 1],
        }))
    }

    /// The run that breaks exclusivity where a buffer outlives the pin: a backlog, slow handlers,
    /// two instances.
    pub(super) async fn hazard(&mut self, side: &str, seconds: u64) -> Result<Value> {
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
        Ok(json!({
            "runs": verdict.runs, "overlaps": verdict.overlaps,
            "duplicates": verdict.duplicates, "disorders": verdict.disorders,
        }))
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
