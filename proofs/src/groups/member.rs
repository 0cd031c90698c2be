//! A member that writes down what its handlers do.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use async_nats::jetstream::consumer::pull;
use natsway_boot::BrokerConfig;
use natsway_partitioned_consumer::{ElasticGroup, MemberHandle, Message, StaticGroup};
use serde::{Deserialize, Serialize};

/// What a member process is told, as JSON in its first argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// The broker.
    pub url: String,
    /// The stream.
    pub stream: String,
    /// The group.
    pub group: String,
    /// Whether the group is a static one.
    #[serde(default)]
    pub fixed: bool,
    /// The member.
    pub member: String,
    /// The consumer's limit.
    pub max_ack_pending: i64,
    /// The consumer's ack wait, in milliseconds.
    pub ack_wait_ms: u64,
    /// Handlers at once.
    pub concurrency: usize,
    /// How long a handler takes, in milliseconds; up to that, when it is moody.
    pub work_ms: u64,
    /// Whether handlers are slow and refuse messages at times.
    pub moody: bool,
    /// Where to write.
    pub log: String,
}

const START_WITHIN: Duration = Duration::from_secs(30);

/// The machine's clock, in nanoseconds since 1970.
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Lines of at most a few dozen bytes, each written at once: a kill loses none that was written.
struct Log {
    file: File,
    runs: AtomicU64,
}

struct Entry {
    log: Arc<Log>,
    run: u64,
}

impl Log {
    fn write(&self, line: &str) {
        // A log that cannot be written would hide a breach.
        (&self.file).write_all(line.as_bytes()).expect("the log can be written");
    }

    fn begin(self: &Arc<Self>, message: &Message) -> Entry {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let number = String::from_utf8_lossy(message.payload()).into_owned();
        let line = format!(
            "B {} {run} {} {number} {}\n",
            now_ns(),
            message.subject(),
            message.stream_sequence()
        );
        self.write(&line);
        Entry { log: Arc::clone(self), run }
    }
}

impl Entry {
    fn succeed(&self) {
        self.log.write(&format!("S {} {}\n", now_ns(), self.run));
    }
}

impl Entry {
    fn refuse(&self) {
        self.log.write(&format!("N {} {}\n", now_ns(), self.run));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.log.write(&format!("E {} {}\n", now_ns(), self.run));
    }
}

/// Runs a member until it is told to stop, or its group ends it.
///
/// # Errors
/// When the member cannot start, or ended with an error.
pub async fn run(orders: Orders) -> Result<()> {
    let stop = natsway_boot::shutdown::on_signal()?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(&orders.log)
        .context("the log cannot be opened")?;
    let log = Arc::new(Log { file, runs: AtomicU64::new(1) });
    // The broker may be on its way back just now.
    let deadline = Instant::now() + START_WITHIN;
    let mut member = loop {
        // Whoever is told to stop before it has joined has nothing to hand over.
        let joined = tokio::select! {
            joined = join(&orders, &log) => joined,
            () = stop.cancelled() => return Ok(()),
        };
        match joined {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Ok(member) => break member,
        }
    };
    let diary = Arc::clone(&log);
    let mut events = member.events();
    tokio::spawn(async move {
        // Beside the runs, for whoever has to find out what went wrong; the ledger passes over it.
        while let Ok(event) = events.recv().await {
            diary.write(&format!("# {} {event:?}\n", now_ns()));
        }
    });
    tokio::select! {
        end = member.done() => { end?; }
        () = stop.cancelled() => { member.stop(); member.done().await?; }
    }
    Ok(())
}

async fn join(orders: &Orders, log: &Arc<Log>) -> Result<MemberHandle> {
    // As programs have it: a frozen server is noticed, and another one of a cluster is taken.
    let client = BrokerConfig::new(&orders.url)?.connect("groups-member", "_INBOX_member").await?;
    let context = async_nats::jetstream::new(client);
    let builder = if orders.fixed {
        StaticGroup::new(context, &orders.stream, &orders.group)?.consume(&orders.member)
    } else {
        ElasticGroup::new(context, &orders.stream, &orders.group)?.consume(&orders.member)
    };
    let ack_wait = Duration::from_millis(orders.ack_wait_ms);
    let template =
        pull::Config { max_ack_pending: orders.max_ack_pending, ack_wait, ..Default::default() };
    let builder = builder.template(template).concurrency(orders.concurrency);
    let builder = builder.drain_timeout(Duration::from_secs(5));
    let (work_ms, moody, log) = (orders.work_ms, orders.moody, Arc::clone(log));
    Ok(builder.handle(move |message| handle(Arc::clone(&log), message, work_ms, moody)).await?)
}

async fn handle(log: Arc<Log>, message: Message, work_ms: u64, moody: bool) {
    let entry = log.begin(&message);
    let mood = if moody { fastrand::u8(..100) } else { 50 };
    let work_ms = match mood {
        0 => 300,
        _ if moody => fastrand::u64(0..=work_ms),
        _ => work_ms,
    };
    tokio::time::sleep(Duration::from_millis(work_ms)).await;
    // What cannot be settled will come again; the ledger sees whether that was right.
    drop(match mood {
        1 => message.nak().await,
        // Goes on with its message refused, while the broker delivers it again.
        4 | 5 => {
            entry.refuse();
            let refused = if mood == 4 {
                message.nak().await
            } else {
                message.nak_with_delay(Duration::from_millis(fastrand::u64(0..40))).await
            };
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..100))).await;
            refused
        }
        2 => message.nak_with_delay(Duration::from_millis(100)).await,
        3 => {
            entry.succeed();
            message.double_ack().await
        }
        _ => {
            entry.succeed();
            message.ack().await
        }
    });
}
