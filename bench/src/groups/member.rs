//! One member that handles messages which were all stored before, and says how long that took.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::consumer::pull;
use natsway_partitioned_consumer::{Message, OrderBy, StaticGroup};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// What a member process is told, as JSON in its first argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// The broker.
    pub url: String,
    /// The stream.
    pub stream: String,
    /// The static group.
    pub group: String,
    /// The member.
    pub member: String,
    /// End after this many messages.
    pub messages: u64,
    /// The consumer's limit.
    pub max_ack_pending: i64,
    /// The consumer's ack wait, in milliseconds.
    pub ack_wait_ms: u64,
    /// What each handler does besides; with none, the order is not checked either.
    #[serde(default)]
    pub work: Option<Work>,
    /// With what.
    pub means: Means,
    /// Handlers at once.
    pub concurrency: usize,
    /// Keeps subjects in order in place of partitions.
    #[serde(default)]
    pub by_subject: bool,
}

/// What a handler does before it acknowledges.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Work {
    /// How long it waits for something else, in milliseconds.
    pub wait_ms: u64,
    /// How long it keeps a processor busy, in microseconds.
    pub busy_us: u64,
}

/// With what messages are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// The library, in tokio's default runtime.
    Library,
    /// The library, in a runtime of one thread.
    OneThread,
    /// A socket and a loop: the bound, see [`super::bare`].
    Bare,
}

/// What it came to; the Go peer prints the same.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemberRun {
    /// From the first message to the last, in seconds.
    pub seconds: f64,
    /// How long a handler took, on average, in milliseconds; 0 without work.
    pub handler_ms: f64,
}

impl Orders {
    /// The consumer's settings that the caller of the library decides.
    pub fn template(&self) -> pull::Config {
        let ack_wait = Duration::from_millis(self.ack_wait_ms);
        pull::Config { max_ack_pending: self.max_ack_pending, ack_wait, ..Default::default() }
    }
}

/// Handles the messages through the library.
///
/// # Errors
/// When the member cannot start, or messages of a key came out of order or two at once.
pub async fn run(orders: Orders) -> Result<MemberRun> {
    let client = async_nats::connect(&orders.url).await?;
    let group =
        StaticGroup::new(async_nats::jetstream::new(client), &orders.stream, &orders.group)?;
    let order = if orders.by_subject { OrderBy::Subject } else { OrderBy::Partition };
    let member = group.consume(&orders.member).template(orders.template());
    let member = member.concurrency(orders.concurrency).order_by(order);
    let (finished, last) = oneshot::channel();
    let tally = Tally {
        left: AtomicU64::new(orders.messages),
        began: OnceLock::new(),
        finished: Mutex::new(Some(finished)),
    };
    let (tally, keys) = (Arc::new(tally), Arc::new(Keys::default()));
    let work = orders.work;
    let member = member.handle({
        let keys = Arc::clone(&keys);
        move |message| {
            let (tally, keys) = (Arc::clone(&tally), Arc::clone(&keys));
            async move {
                tally.begin();
                if let Some(work) = work {
                    keys.begin(&message);
                    work.carry_out().await;
                    keys.end(&message);
                }
                let acked = message.ack().await;
                tally.end();
                acked
            }
        }
    });
    let member = member.await?;
    let seconds = last.await.context("the member ended early")?.as_secs_f64();
    member.stopped().await?;
    let faults = *keys.faults.lock().expect("no handler panics");
    ensure!(
        faults == 0,
        "{faults} messages were handled out of order, or beside another of their key"
    );
    let handled = keys.worked.lock().expect("no handler panics").as_secs_f64();
    Ok(MemberRun { seconds, handler_ms: handled * 1e3 / orders.messages as f64 })
}

impl Work {
    async fn carry_out(self) {
        tokio::time::sleep(Duration::from_millis(self.wait_ms)).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(self.busy_us) {
            std::hint::spin_loop();
        }
    }
}

/// Tells the time from the beginning of the first handler to the end of the last.
struct Tally {
    left: AtomicU64,
    began: OnceLock<Instant>,
    finished: Mutex<Option<oneshot::Sender<Duration>>>,
}

impl Tally {
    fn begin(&self) {
        self.began.get_or_init(Instant::now);
    }

    fn end(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let took = self.began.get().map_or(Duration::ZERO, Instant::elapsed);
        if let Some(finished) = self.finished.lock().expect("no handler panics").take() {
            // The receiver waits for exactly this.
            finished.send(took).unwrap_or_default();
        }
    }
}

/// Sees to it that each key's messages come one at a time and in order.
#[derive(Default)]
struct Keys {
    /// The last number of each key, and since when it is at work.
    seen: Mutex<HashMap<String, (u64, Option<Instant>)>>,
    worked: Mutex<Duration>,
    faults: Mutex<u64>,
}

impl Keys {
    fn begin(&self, message: &Message) {
        let number =
            std::str::from_utf8(message.payload()).ok().and_then(|text| text.trim().parse().ok());
        let mut seen = self.seen.lock().expect("no handler panics");
        let (last, at_work) = seen.entry(message.subject().to_owned()).or_default();
        let next = *last + 1;
        if number != Some(next) || at_work.is_some() {
            *self.faults.lock().expect("no handler panics") += 1;
        }
        (*last, *at_work) = (number.unwrap_or(next), Some(Instant::now()));
    }

    fn end(&self, message: &Message) {
        let mut seen = self.seen.lock().expect("no handler panics");
        let began = seen.get_mut(message.subject()).and_then(|(_, at_work)| at_work.take());
        *self.worked.lock().expect("no handler panics") +=
            began.map_or(Duration::ZERO, |at| at.elapsed());
    }
}
