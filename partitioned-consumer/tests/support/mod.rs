//! What the tests on a real broker share.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "support of tests, each of which uses its own part"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use natsway_partitioned_consumer::{MemberHandle, MemberState, Message};
use natsway_testkit::{TestBroker, eventually};

/// Longer than anything here takes, short enough to notice a hang.
pub const SOON: Duration = Duration::from_secs(30);

/// What handlers did, and whether two were ever at work with one key at once.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    running: BTreeMap<String, String>,
    overlaps: Vec<String>,
    handled: Vec<(String, u64, String)>,
}

/// A handler at work with a key; it counts as ended when it is dropped.
pub struct Entry {
    book: Ledger,
    key: String,
}

impl Ledger {
    pub fn begin(&self, instance: &str, key: &str) -> Entry {
        let mut book = self.0.lock().unwrap();
        if let Some(other) = book.running.insert(key.into(), instance.into()) {
            book.overlaps.push(format!("{key}: {other} and {instance}"));
        }
        Entry { book: self.clone(), key: key.into() }
    }

    pub fn handled(&self) -> Vec<(String, u64, String)> {
        self.0.lock().unwrap().handled.clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().handled.len()
    }

    pub fn count_by(&self, instance: &str) -> usize {
        self.0.lock().unwrap().handled.iter().filter(|(_, _, by)| by == instance).count()
    }

    /// Different messages that were handled.
    pub fn distinct(&self) -> usize {
        let handled = self.handled();
        handled
            .iter()
            .map(|(key, number, _)| (key, number))
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    }

    /// No key ever had two handlers, and the first success of each message came in order.
    pub fn check(&self) {
        let book = self.0.lock().unwrap();
        assert!(book.overlaps.is_empty(), "two handlers at once: {:?}", book.overlaps);
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, number, by) in &book.handled {
            let newest = last.entry(key).or_insert(0);
            let repeat =
                book.handled.iter().filter(|(k, n, _)| k == key && n == number).count() > 1;
            assert!(*number > *newest || repeat, "{key}: {number} after {newest}, by {by}");
            *newest = (*newest).max(*number);
        }
    }

    /// Every message was handled exactly once.
    pub fn check_exactly_once(&self) {
        self.check();
        assert_eq!(
            self.count(),
            self.distinct(),
            "some message was handled twice: {:?}",
            self.handled()
        );
    }
}

impl Entry {
    pub fn succeed(self, instance: &str, number: u64) {
        self.book.0.lock().unwrap().handled.push((self.key.clone(), number, instance.into()));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.book.0.lock().unwrap().running.remove(&self.key);
    }
}

/// A handler that takes `work` for each message and acknowledges it.
pub fn handler(
    ledger: &Ledger,
    instance: &str,
    work: Duration,
) -> impl Fn(
    Message,
)
    -> futures_util::future::BoxFuture<'static, Result<(), natsway_partitioned_consumer::Error>>
+ Send
+ Sync
+ 'static {
    let (ledger, instance) = (ledger.clone(), instance.to_owned());
    move |message| {
        let (ledger, instance) = (ledger.clone(), instance.clone());
        Box::pin(async move {
            let entry = ledger.begin(&instance, message.subject());
            tokio::time::sleep(work).await;
            entry.succeed(&instance, number(&message));
            message.ack().await
        })
    }
}

pub fn number(message: &Message) -> u64 {
    std::str::from_utf8(message.payload()).unwrap().parse().unwrap()
}

pub async fn broker() -> (TestBroker, jetstream::Context) {
    let broker = TestBroker::builder().jetstream().start().await;
    let context = jetstream::new(broker.connect().await);
    (broker, context)
}

pub async fn stream(context: &jetstream::Context, name: &str, subject: &str) {
    let config =
        stream::Config { name: name.into(), subjects: vec![subject.into()], ..Default::default() };
    context.create_stream(config).await.unwrap();
}

/// A stream that writes the partition in front of `foo.<key>`.
pub async fn partitioned_stream(context: &jetstream::Context, name: &str, partitions: u32) {
    let transform = stream::SubjectTransform {
        source: "foo.*".into(),
        destination: format!("{{{{partition({partitions},1)}}}}.foo.{{{{wildcard(1)}}}}"),
    };
    let config = stream::Config {
        name: name.into(),
        subjects: vec!["foo.*".into()],
        subject_transform: Some(transform),
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
}

/// Publishes `1..=count` to each key, round robin.
pub async fn publish(context: &jetstream::Context, keys: u64, first: u64, count: u64) {
    let mut acks = Vec::new();
    for number in first..first + count {
        for key in 0..keys {
            acks.push(
                context.publish(format!("foo.k{key}"), number.to_string().into()).await.unwrap(),
            );
        }
        if acks.len() > 200 {
            for ack in acks.drain(..) {
                ack.await.unwrap();
            }
        }
    }
    for ack in acks {
        ack.await.unwrap();
    }
}

pub async fn becomes(member: &MemberHandle, state: MemberState) {
    let mut watch = member.state();
    // A member with messages waiting passes through standby faster than anybody can look.
    let passed =
        |s: MemberState| s == state || (state == MemberState::Standby && s == MemberState::Pinned);
    let reached = tokio::time::timeout(SOON, watch.wait_for(|s| passed(*s))).await;
    assert!(reached.is_ok(), "never became {state:?}, is {:?}", *member.state().borrow());
}

pub async fn handles(ledger: &Ledger, distinct: usize) {
    eventually(SOON, async || {
        let seen = ledger.distinct();
        if seen >= distinct { Ok(()) } else { Err(format!("{seen} of {distinct} handled")) }
    })
    .await;
}
