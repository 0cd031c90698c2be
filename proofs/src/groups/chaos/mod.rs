//! Chaos: members join, leave, are killed and stopped, partitions move, the broker restarts, and
//! all the while messages flow. Everything random comes from one seed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::jetstream;
use natsway_partitioned_consumer::{Error, GroupKind, MemberMapping, Membership};
use natsway_testkit::{Cluster, Process, TestBroker};
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::ledger::{Ledger, LedgerReport};
use super::member::{Orders, now_ns};

mod stage;

use stage::Stage;

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything random comes from.
    pub seed: u64,
    /// Which kind of group.
    pub kind: GroupKind,
    /// Changes of the membership to make; of a static group, which knows none, disturbances.
    pub changes: u32,
    /// The program `groups-member`.
    pub member: PathBuf,
    /// Where logs go; they stay there.
    pub logs: PathBuf,
    /// The consumers' limit.
    pub max_ack_pending: i64,
    /// Copies of everything: with more than one, a cluster of as many brokers, one of which
    /// restarts at a time.
    pub replicas: usize,
}

/// What a run did, and whether the promises held.
#[derive(Debug, Serialize)]
pub struct ChaosReport {
    /// `elastic` or `static`.
    pub kind: &'static str,
    /// The seed, to run it again.
    pub seed: u64,
    /// The consumers' limit.
    pub max_ack_pending: i64,
    /// Copies of everything.
    pub replicas: usize,
    /// Changes of the membership.
    pub membership_changes: u32,
    /// Processes killed with SIGKILL.
    pub kills: u32,
    /// Processes asked to stop.
    pub stops: u32,
    /// Members told to step down.
    pub step_downs: u32,
    /// Consumers deleted behind their members' back.
    pub foreign_deletes: u32,
    /// Restarts of the broker.
    pub broker_restarts: u32,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The judgement.
    pub verdict: LedgerReport,
}

const STREAM: &str = "ORDERS";
const GROUP: &str = "work";
const PARTITIONS: u32 = 8;
const MEMBERS: [&str; 4] = ["m1", "m2", "m3", "m4"];
const INSTANCES: usize = 2;
const KEYS: u64 = 40;
const ACK_WAIT_MS: u64 = 2_000;
/// How long nothing may be finished at the end before what is left counts as lost.
const STANDSTILL: Duration = Duration::from_secs(60);

struct Instance {
    name: String,
    log: PathBuf,
    process: Process,
}

struct Ended {
    name: String,
    log: PathBuf,
    killed_ns: Option<u64>,
}

enum Brokers {
    One(TestBroker),
    Cluster(Cluster),
}

impl Brokers {
    async fn start(replicas: usize) -> Self {
        let settings = TestBroker::builder().jetstream();
        match replicas {
            1 => Self::One(settings.port(natsway_testkit::free_port()).start().await),
            more => Self::Cluster(settings.start_cluster(more).await),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::One(broker) => broker.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    fn log(&self) -> String {
        match self {
            Self::One(broker) => broker.log(),
            Self::Cluster(cluster) => cluster.iter().map(TestBroker::log).collect(),
        }
    }

    async fn restart(&mut self, drawn: usize) {
        match self {
            Self::One(broker) => broker.restart().await,
            Self::Cluster(cluster) => {
                let at = drawn % cluster.len();
                cluster[at].restart().await;
                // Two that are away at once are more than three copies can bear.
                cluster.ready().await;
            }
        }
    }
}

struct Chaos {
    plan: Plan,
    random: fastrand::Rng,
    brokers: Brokers,
    stage: Stage,
    context: jetstream::Context,
    running: Vec<Option<Instance>>,
    ended: Vec<Ended>,
    faults: Vec<u64>,
    started: usize,
    outcome: ChaosReport,
    diary: File,
}

/// Makes the chaos, then judges it.
///
/// # Errors
/// When the run itself cannot be carried through: that is neither a kept nor a broken promise.
pub async fn run(plan: Plan) -> Result<ChaosReport> {
    let began = Instant::now();
    std::fs::create_dir_all(&plan.logs).context("the directory for logs cannot be made")?;
    let brokers = Brokers::start(plan.replicas).await;
    let url = brokers.url();
    let context = jetstream::new(async_nats::connect(url.split(',').collect::<Vec<_>>()).await?);
    let stage = Stage::set(&context, plan.kind, plan.replicas).await?;
    let outcome = ChaosReport {
        kind: plan.kind.as_str(),
        seed: plan.seed,
        max_ack_pending: plan.max_ack_pending,
        replicas: plan.replicas,
        membership_changes: 0,
        kills: 0,
        stops: 0,
        step_downs: 0,
        foreign_deletes: 0,
        broker_restarts: 0,
        seconds: 0.0,
        verdict: LedgerReport::default(),
    };
    let random = fastrand::Rng::with_seed(plan.seed);
    let diary = File::create(plan.logs.join("chaos.txt")).context("the diary cannot be made")?;
    let mut chaos = Chaos {
        plan,
        random,
        brokers,
        stage,
        context: context.clone(),
        running: Vec::new(),
        ended: Vec::new(),
        faults: Vec::new(),
        started: 0,
        outcome,
        diary,
    };
    for slot in 0..MEMBERS.len() * INSTANCES {
        let instance = chaos.start(slot)?;
        chaos.running.push(Some(instance));
    }
    let stop = CancellationToken::new();
    let traffic = tokio::spawn(publish(context, stop.clone()));
    while chaos.progress() < chaos.plan.changes {
        chaos.disturb().await?;
    }
    chaos.settle(&stop, traffic).await.map(|mut outcome| {
        outcome.seconds = began.elapsed().as_secs_f64();
        outcome
    })
}

/// A broker that was restarted never acknowledges what was published before; the client would wait
/// for seconds, and the chaos go on with no messages in it.
const ACK_PATIENCE: Duration = Duration::from_millis(500);

/// Publishes numbered messages, key by key, and gives back how far each key came: the last number
/// that was stored.
async fn publish(context: jetstream::Context, stop: CancellationToken) -> u64 {
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        for key in 0..KEYS {
            // The broker restarts now and then: the identifier keeps a repeated publish from being
            // stored twice.
            loop {
                let message = jetstream::message::PublishMessage::build()
                    .payload(number.to_string().into())
                    .message_id(format!("{key}-{number}"));
                let sent = context.send_publish(format!("orders.k{key}"), message).await;
                if let Ok(ack) = sent
                    && let Ok(Ok(_)) = tokio::time::timeout(ACK_PATIENCE, ack.into_future()).await
                {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        sleep(Duration::from_millis(60)).await;
    }
    number
}

impl Chaos {
    fn start(&mut self, slot: usize) -> Result<Instance> {
        let member = MEMBERS[slot % MEMBERS.len()];
        self.started += 1;
        let name = format!("{member}-{}", self.started);
        let log = self.plan.logs.join(format!("{name}.log"));
        let orders = Orders {
            url: self.brokers.url(),
            stream: STREAM.into(),
            group: GROUP.into(),
            member: member.into(),
            fixed: self.plan.kind == GroupKind::Static,
            max_ack_pending: self.plan.max_ack_pending,
            ack_wait_ms: ACK_WAIT_MS,
            concurrency: 4,
            work_ms: 6,
            moody: true,
            log: log.to_string_lossy().into_owned(),
        };
        let process = Process::builder(&self.plan.member)
            .name(&name)
            .arg(serde_json::to_string(&orders)?)
            .start();
        Ok(Instance { name, log, process })
    }

    /// Writes down what was done and when, to be read beside the members' logs.
    fn note(&self, what: &str) -> Result<()> {
        writeln!(&self.diary, "{} {what}", now_ns()).context("the diary cannot be written")
    }

    fn progress(&self) -> u32 {
        let o = &self.outcome;
        match self.stage {
            Stage::Elastic(_) => o.membership_changes,
            Stage::Static(_) => o.kills + o.stops + o.step_downs + o.broker_restarts,
        }
    }

    /// One disturbance, and a pause in which things may or may not settle.
    async fn disturb(&mut self) -> Result<()> {
        let drawn = match &self.stage {
            Stage::Elastic(_) => self.random.u32(0..100),
            // No membership to change, and a durable that somebody deletes is a loss that no member
            // can heal.
            Stage::Static(_) => [72, 72, 82, 82, 91, 99][self.random.usize(0..6)],
        };
        match drawn {
            0..72 => self.change_membership().await?,
            72..82 => self.kill()?,
            82..91 => self.stop_one().await?,
            91..96 => {
                let member = MEMBERS[self.random.usize(0..MEMBERS.len())];
                // It may have no consumer at the moment.
                self.note(&format!("step down {member}"))?;
                if self.stage.step_down(member).await.is_ok() {
                    self.outcome.step_downs += 1;
                    self.faults.push(now_ns());
                }
            }
            96..99 => {
                let member = MEMBERS[self.random.usize(0..MEMBERS.len())];
                let queue = self.stage.stream(&self.context).await?;
                self.note(&format!("delete consumer {member}"))?;
                if queue.delete_consumer(member).await.is_ok() {
                    self.outcome.foreign_deletes += 1;
                    self.faults.push(now_ns());
                }
            }
            _ => {
                self.faults.push(now_ns());
                self.note("restart the broker")?;
                let drawn = if self.plan.replicas > 1 { self.random.usize(..) } else { 0 };
                self.brokers.restart(drawn).await;
                self.note("the broker is back")?;
                self.faults.push(now_ns());
                self.outcome.broker_restarts += 1;
            }
        }
        sleep(Duration::from_millis(self.random.u64(0..400))).await;
        Ok(())
    }

    async fn change_membership(&mut self) -> Result<()> {
        let wanted: Vec<&str> = MEMBERS.into_iter().filter(|_| self.random.bool()).collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        // The broker may be on its way back.
        while let Err(error) = self.set_members(&wanted).await {
            if Instant::now() > deadline {
                return Err(error.into());
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.note(&format!("members are {wanted:?}"))?;
        self.outcome.membership_changes += 1;
        Ok(())
    }

    async fn set_members(&mut self, wanted: &[&str]) -> Result<(), Error> {
        let Stage::Elastic(group) = &self.stage else { return Ok(()) };
        if self.random.u8(..10) == 0 && !wanted.is_empty() {
            let share =
                |at: usize| (0..PARTITIONS).filter(move |p| *p as usize % wanted.len() == at);
            let mappings = wanted
                .iter()
                .enumerate()
                .map(|(at, member)| MemberMapping::new(*member, share(at)));
            return group.set_mappings(mappings).await;
        }
        if matches!(group.config().await?.membership, Membership::Mapped(_)) {
            group.delete_mappings().await?;
        }
        let dropped: Vec<&str> = MEMBERS.into_iter().filter(|m| !wanted.contains(m)).collect();
        if !dropped.is_empty() {
            group.drop_members(dropped).await?;
        }
        if !wanted.is_empty() {
            group.add_members(wanted.iter().copied()).await?;
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let slot = self.random.usize(0..self.running.len());
        let Some(mut instance) = self.running[slot].take() else { return Ok(()) };
        self.faults.push(now_ns());
        self.note(&format!("kill {}", instance.name))?;
        instance.process.kill9();
        self.ended.push(Ended {
            name: instance.name,
            log: instance.log,
            killed_ns: Some(now_ns()),
        });
        self.outcome.kills += 1;
        self.running[slot] = Some(self.start(slot)?);
        Ok(())
    }

    async fn stop_one(&mut self) -> Result<()> {
        let slot = self.random.usize(0..self.running.len());
        let Some(instance) = self.running[slot].take() else { return Ok(()) };
        self.outcome.stops += 1;
        self.note(&format!("stop {}", instance.name))?;
        self.finish(instance).await?;
        self.running[slot] = Some(self.start(slot)?);
        Ok(())
    }

    async fn finish(&mut self, mut instance: Instance) -> Result<()> {
        // A member hears signals before it makes its log; one that is not up yet is ended by them,
        // and has handled nothing.
        let up = instance.log.exists();
        instance.process.terminate();
        let status = instance.process.wait_exit(Duration::from_secs(30)).await;
        if up && !status.success() {
            bail!("{} ended with {status}: {}", instance.name, instance.process.stderr());
        }
        self.ended.push(Ended { name: instance.name, log: instance.log, killed_ns: None });
        Ok(())
    }

    /// Lets everything come to rest, and judges.
    async fn settle(
        mut self,
        stop: &CancellationToken,
        traffic: JoinHandle<u64>,
    ) -> Result<ChaosReport> {
        stop.cancel();
        let last = traffic.await?;
        self.set_members(&MEMBERS).await?;
        // However long the backlog is: it has to shrink.
        let (mut least, mut deadline) = (u64::MAX, Instant::now());
        let mut quiet = 0;
        while quiet < 10 {
            let left = self.stage.left_over(&self.context).await?;
            quiet = if left == 0 { quiet + 1 } else { 0 };
            if left < least {
                (least, deadline) = (left, Instant::now() + STANDSTILL);
            }
            if left > 0 && Instant::now() > deadline {
                eprintln!("{left} messages are left, and nothing happens");
                for consumer in self.stage.consumers(&self.context).await? {
                    self.note(&format!("{consumer:?}"))?;
                }
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        for slot in 0..self.running.len() {
            if let Some(instance) = self.running[slot].take() {
                self.finish(instance).await?;
            }
        }
        let mut ledger = Ledger::default();
        for key in 0..KEYS {
            (1..=last).for_each(|number| ledger.published(format!("orders.k{key}"), number));
        }
        self.faults.iter().for_each(|fault| ledger.fault(*fault..=*fault));
        for ended in &self.ended {
            if Path::new(&ended.log).exists() {
                ledger.read(&ended.log, &ended.name, ended.killed_ns)?;
            }
        }
        std::fs::write(self.plan.logs.join("broker.txt"), self.brokers.log())?;
        self.outcome.verdict = ledger.judge();
        Ok(self.outcome)
    }
}
