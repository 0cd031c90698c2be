//! A consumer group on the cluster, and a publisher that stops for nothing.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::groups::ledger::{Ledger, LedgerReport};
use crate::groups::member::{Orders, now_ns};
use anyhow::Result;
use async_nats::jetstream::{self, stream};
use natsway_partitioned_consumer::{ElasticConfig, ElasticGroup};
use natsway_testkit::{Process, workspace_binary};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::stage::{DEADLINE, Stage, connect};

/// The stream that the publisher fills.
pub(super) const STREAM: &str = "ORDERS";

const GROUP: &str = "work";
const MEMBERS: [&str; 3] = ["m1", "m2", "m3"];
const KEYS: u64 = 20;
const REPLICAS: usize = 3;

/// An acknowledgement that takes longer will not come: whoever should send it is gone.
const ACK_PATIENCE: Duration = Duration::from_millis(500);

/// How long nothing may be finished at the end before what is left counts as lost.
const STANDSTILL: Duration = Duration::from_secs(120);

/// Members at work, and a publisher beside them.
pub(super) struct Group {
    members: Vec<(PathBuf, Process)>,
    faults_ns: Vec<RangeInclusive<u64>>,
    stop: CancellationToken,
    publisher: JoinHandle<u64>,
}

impl Group {
    /// Makes the stream and the group with a copy at each broker, starts the members and the
    /// publisher.
    pub(super) async fn start(stage: &Stage) -> Result<Self> {
        let urls = stage.cluster.url();
        let context = jetstream::new(connect(&urls, "prove group").await?);
        let config = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec!["orders.*".to_owned()],
            num_replicas: REPLICAS,
            ..stream::Config::default()
        };
        context.create_stream(config).await?;
        let group = ElasticGroup::new(context.clone(), STREAM, GROUP)?;
        group.create(&ElasticConfig::new(6).filter("orders.*", [1])).await?;
        group.add_members(MEMBERS).await?;
        let members: Result<Vec<_>> =
            MEMBERS.iter().map(|member| launch(stage.directory(), &urls, member)).collect();
        let stop = CancellationToken::new();
        let publisher = tokio::spawn(publish(context, stop.clone()));
        Ok(Self { members: members?, faults_ns: Vec::new(), stop, publisher })
    }

    /// Notes since when something was broken that is whole again now.
    pub(super) fn fault(&mut self, since_ns: u64) {
        self.faults_ns.push(since_ns..=now_ns());
    }

    /// Lets the members finish everything, and judges their logs; says how long it took until
    /// nothing was left.
    pub(super) async fn judge(mut self) -> Result<(LedgerReport, Duration)> {
        self.stop.cancel();
        let last = (&mut self.publisher).await?;
        let settling = Instant::now();
        // However long the backlog is: it has to shrink. What the broker tells of it is not enough:
        // while a stream does not reach its source, its lag stands at what it was.
        let (mut least, mut patience) = (usize::MAX, Instant::now() + STANDSTILL);
        loop {
            let lost = self.ledger(last)?.judge().lost;
            if lost == 0 || Instant::now() > patience {
                break;
            }
            if lost < least {
                (least, patience) = (lost, Instant::now() + STANDSTILL);
            }
            sleep(Duration::from_millis(250)).await;
        }
        let settled_after = settling.elapsed();
        for (_, process) in &mut self.members {
            process.terminate();
            process.wait_exit(DEADLINE).await;
        }
        Ok((self.ledger(last)?.judge(), settled_after))
    }

    /// What was published and what the members did so far.
    fn ledger(&self, last: u64) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        for key in 0..KEYS {
            (1..=last).for_each(|number| ledger.published(format!("orders.k{key}"), number));
        }
        self.faults_ns.iter().for_each(|broken| ledger.fault(broken.clone()));
        for (log, _) in self.members.iter().filter(|(log, _)| log.exists()) {
            ledger.read(log, &log.display().to_string(), None)?;
        }
        Ok(ledger)
    }
}

fn launch(directory: &Path, urls: &str, member: &str) -> Result<(PathBuf, Process)> {
    let log = directory.join(format!("{member}.log"));
    let orders = Orders {
        url: urls.to_owned(),
        stream: STREAM.to_owned(),
        group: GROUP.to_owned(),
        fixed: false,
        member: member.to_owned(),
        max_ack_pending: 100,
        ack_wait_ms: 5_000,
        concurrency: 4,
        work_ms: 2,
        moody: false,
        log: log.to_string_lossy().into_owned(),
    };
    let process = Process::builder(workspace_binary("groups-member"))
        .name(member)
        .arg(serde_json::to_string(&orders)?)
        .start();
    Ok((log, process))
}

/// Publishes numbered messages, key by key, each until it is acknowledged, and says how far every
/// key came.
async fn publish(context: jetstream::Context, stop: CancellationToken) -> u64 {
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        for key in 0..KEYS {
            let patience = Instant::now() + DEADLINE;
            while !store(&context, key, number).await {
                assert!(Instant::now() < patience, "nothing could be published for {DEADLINE:?}");
                sleep(Duration::from_millis(20)).await;
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    number
}

/// Publishes one message, and says whether it is stored for certain.
async fn store(context: &jetstream::Context, key: u64, number: u64) -> bool {
    let message = jetstream::message::PublishMessage::build()
        .payload(number.to_string().into())
        // What is published again is not stored twice.
        .message_id(format!("{key}-{number}"));
    let Ok(acknowledged) = context.send_publish(format!("orders.k{key}"), message).await else {
        return false;
    };
    matches!(tokio::time::timeout(ACK_PATIENCE, acknowledged.into_future()).await, Ok(Ok(_)))
}
