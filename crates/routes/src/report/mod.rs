//! What everybody who sends requests tells the others each second: who it is, which routes it goes
//! by, and its [`AttemptMetrics`] of each version. The command line, the rollouts and whoever
//! watches read the same reports.
//!
//! A report is a JSON object, or several when there are many versions; unknown members are skipped.
//! Every tenth second and when asked (see [`control::report_subject`]) it has all versions, else
//! those whose metrics have changed since then.
//!
//! Whoever asks hears the answer where all reports go, for there the broker vouches for who it is
//! from ([`crate::peers`]).
//!
//! Messages are published at most once and may be lost, or come in another order. So a report is
//! numbered and cumulative: [`Reporter`] makes it, [`Parts`] takes it in once all of its messages
//! are there, and [`SenderState`] says what follows. A reader that has missed a whole report knows
//! it, and asks for one.

mod parts;
mod reporter;
mod sender_state;

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use async_nats::{Client, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_wire::control;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tracing::debug;

pub use self::parts::Parts;
pub use self::reporter::Reporter;
pub use self::sender_state::{ReportOutcome, SenderState};
use crate::metrics::AttemptMetrics;

/// How often metrics are told unasked.
pub const PERIOD: Duration = Duration::from_secs(1);

/// The time between two answers once [`ANSWERS_AT_ONCE`] were given: whoever asks meanwhile hears
/// the second one. So no number of questions makes a sender say more than that.
pub const ANSWER_GAP: Duration = Duration::from_millis(250);

/// Answers that are given without a gap, where none was given for long.
pub const ANSWERS_AT_ONCE: u32 = 20;

/// Askers that wait for an answer at their own inbox, as programs before 0.2 do; more get none.
const MOST_WAITING: usize = 8;

/// Versions in one message: some 100 KB when all of their buckets are in use, far below what a
/// broker takes.
pub(crate) const VERSIONS_PER_MESSAGE: usize = 128;

/// What one sender of requests tells.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Report {
    /// The sender: another one after each start.
    pub id: String,
    /// What it is.
    pub role: Role,
    /// Where it runs, for people.
    pub host: String,
    /// How long it has been running, in milliseconds.
    pub age_ms: u64,
    /// The newest revision of the routes bucket by which all of its threads go.
    pub revision: u64,
    /// The bucket that this is a revision of: when it was made. One that is made anew counts from
    /// 1.
    pub bucket: u64,
    /// The newest schema of route documents that it reads; 0 from a release that reads 1 and does
    /// not say so.
    pub schema: u32,
    /// Routes whose newest document it refuses: it goes by the one before, or has no such route.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "at_most::<_, _, REFUSED_READ>"
    )]
    pub refused: Vec<String>,
    /// It sends no more requests after this report.
    pub leaving: bool,
    /// Its place among the sender's reports, from 1 on; 0 from an older release, which does not
    /// number them.
    pub number: u64,
    /// A report that is not whole has every version that has changed since the whole report of this
    /// number.
    pub since: u64,
    /// Which message of the report this is, from 0 on.
    pub part: u32,
    /// How many messages the report has; 0 from an older release.
    pub parts: u32,
    /// More messages of the same report follow: what older releases go by.
    pub more: bool,
    /// Every version that it has tried is among the metrics, not only those that changed.
    pub whole: bool,
    /// Its metrics of each version since its start.
    #[serde(deserialize_with = "at_most::<_, _, VERSIONS_READ>")]
    pub versions: Vec<VersionMetrics>,
    /// How far the rollouts are, as a gateway sees it.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "at_most::<_, _, ROLLOUTS_READ>"
    )]
    pub rollouts: Vec<Progress>,
}

/// What sends requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A gateway.
    #[default]
    Gateway,
    /// A service that calls others without a gateway.
    Caller,
    /// Something that is newer than we are.
    #[serde(other)]
    Other,
}

/// The metrics of one version of one route.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct VersionMetrics {
    /// The route's name.
    pub route: String,
    /// The version's.
    pub version: String,
    /// The metrics.
    #[serde(flatten)]
    pub metrics: AttemptMetrics,
}

/// A rollout's phase and step as a gateway has seen it since it began.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Progress {
    /// The route.
    pub route: String,
    /// Whether this gateway drives it.
    pub driving: bool,
    /// For how long it has seen this step.
    pub in_phase_ms: u64,
    /// What the old version did meanwhile, at all senders.
    pub old: AttemptMetrics,
    /// What the new one did.
    pub new: AttemptMetrics,
    /// What that says, at a canary's step.
    pub verdict: Option<String>,
    /// Senders that do not go by the newest weights yet, or are not heard of, a sentence each.
    pub behind: Vec<String>,
}

/// The longest message that is read, in bytes: three times what our largest has.
const REPORT_BYTES: usize = 1024 * 1024;

/// Versions that are read of one message: one more than it has, so that one with too many is known
/// for what it is.
const VERSIONS_READ: usize = VERSIONS_PER_MESSAGE + 1;

/// Refused routes that are read of one message.
const REFUSED_READ: usize = 1_024;

/// Rollouts that are read of one message: a few bytes of each claim several KiB of histograms.
const ROLLOUTS_READ: usize = 64;

/// Reads the first `MOST` of a sequence, and passes over the others without taking memory for them.
fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(
    input: D,
) -> Result<Vec<T>, D::Error> {
    struct First<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for First<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let mut first = Vec::new();
            while first.len() < MOST {
                match sequence.next_element()? {
                    Some(element) => first.push(element),
                    None => return Ok(first),
                }
            }
            while sequence.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    input.deserialize_seq(First::<T, MOST>(PhantomData))
}

impl Report {
    /// Reads a message; `None` when it is no report.
    pub fn read(message: &[u8]) -> Option<Self> {
        if message.len() > REPORT_BYTES {
            return None;
        }
        serde_json::from_slice(message).ok().filter(|report: &Self| !report.id.is_empty())
    }

    /// The messages that it takes, the last of which says that it is.
    pub fn messages(&self) -> Vec<Bytes> {
        let parts = self.versions.chunks(VERSIONS_PER_MESSAGE);
        let parts: Vec<&[VersionMetrics]> =
            if self.versions.is_empty() { vec![&[]] } else { parts.collect() };
        let last = parts.len() - 1;
        let message = |(place, versions): (usize, &&[VersionMetrics])| {
            let rollouts = if place == 0 { self.rollouts.clone() } else { Vec::new() };
            let part = Self {
                part: u32::try_from(place)
                    .expect("the versions of a table are far fewer than 2^32"),
                parts: u32::try_from(parts.len())
                    .expect("the versions of a table are far fewer than 2^32"),
                more: place < last,
                versions: versions.to_vec(),
                rollouts,
                ..self.header()
            };
            serde_json::to_vec(&part).expect("a report is plain values").into()
        };
        parts.iter().enumerate().map(message).collect()
    }

    fn header(&self) -> Self {
        Self {
            id: self.id.clone(),
            host: self.host.clone(),
            refused: self.refused.clone(),
            versions: Vec::new(),
            rollouts: Vec::new(),
            ..*self
        }
    }
}

/// Publishes what `report` gives below `source`, each second and whenever asked, until `leave`
/// completes; then once more, as the last.
///
/// # Cancel safety
/// Dropping it ends the reports without a last one; others notice after some seconds.
pub async fn keep(
    client: Client,
    source: &str,
    mut report: impl FnMut() -> Report,
    leave: impl Future<Output = ()>,
) {
    let mut asked = match client.subscribe(control::report_subject()).await {
        Ok(asked) => asked,
        Err(error) => return debug!(%error, "no metrics are told: not connected"),
    };
    let mut leave = std::pin::pin!(leave);
    let mut pace = tokio::time::interval(PERIOD);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reporter = Reporter::default();
    let mut questions = Questions::default();
    loop {
        let due = questions.due();
        tokio::select! {
            _ = pace.tick() => {
                let news = reporter.due(report());
                publish(&client, own_subject(source, &news), &news).await;
            }
            question = asked.next() => match question {
                Some(question) => questions.take(question.reply, Instant::now()),
                None => return,
            },
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                let whole = reporter.whole(report());
                publish(&client, own_subject(source, &whole), &whole).await;
                for inbox in questions.answered(Instant::now()) {
                    publish(&client, inbox, &whole).await;
                }
            }
            () = &mut leave => break,
        }
    }
    let last = reporter.whole(Report { leaving: true, ..report() });
    publish(&client, own_subject(source, &last), &last).await;
}

fn own_subject(source: &str, report: &Report) -> Subject {
    control::metrics_subject(source, &report.id).into()
}

/// Questions that wait for their answer. Pure.
#[derive(Debug, Default)]
struct Questions {
    /// When the first of those came that wait.
    since: Option<Instant>,
    inboxes: Vec<Subject>,
    /// When the answers that were given would have been over, one a gap (the generic cell rate
    /// algorithm, ITU-T I.371).
    paid_until: Option<Instant>,
}

impl Questions {
    /// Takes one in. Whoever names an inbox wants the answer there too.
    fn take(&mut self, reply: Option<Subject>, now: Instant) {
        self.since.get_or_insert(now);
        let inbox = reply.filter(|reply| control::is_inbox(reply) && !self.inboxes.contains(reply));
        self.inboxes.extend(inbox.filter(|_| self.inboxes.len() < MOST_WAITING));
    }

    /// When they are to be answered; `None` while there are none.
    fn due(&self) -> Option<Instant> {
        let since = self.since?;
        let earliest =
            self.paid_until.and_then(|until| until.checked_sub(ANSWER_GAP * (ANSWERS_AT_ONCE - 1)));
        Some(earliest.map_or(since, |earliest| earliest.max(since)))
    }

    /// They are being answered; gives the inboxes.
    fn answered(&mut self, now: Instant) -> Vec<Subject> {
        self.since = None;
        self.paid_until = Some(self.paid_until.map_or(now, |until| until.max(now)) + ANSWER_GAP);
        std::mem::take(&mut self.inboxes)
    }
}

async fn publish(client: &Client, subject: Subject, report: &Report) {
    for message in report.messages() {
        if let Err(error) = client.publish(subject.clone(), message).await {
            return debug!(%error, "metrics not told");
        }
    }
}

#[cfg(test)]
mod bounds {
    use super::*;

    /// A few bytes must not claim many: each rollout and version is read with its histograms.
    #[test]
    fn no_more_is_read_of_a_message_than_a_sender_of_ours_would_say() {
        let many = |element: &str, count: usize| vec![element; count].join(",");
        let message = format!(
            r#"{{"id":"a","rollouts":[{}],"refused":[{}],"versions":[{}]}}"#,
            many("{}", 100_000),
            many(r#""r""#, 50_000),
            many(r#"{"route":"r","version":"v"}"#, 10_000),
        );
        let report = Report::read(message.as_bytes()).unwrap();
        assert_eq!(report.rollouts.len(), ROLLOUTS_READ);
        assert_eq!(report.refused.len(), REFUSED_READ);
        assert_eq!(report.versions.len(), VERSIONS_READ);
        let long = format!(r#"{{"id":"a","host":"{}"}}"#, "h".repeat(REPORT_BYTES));
        assert_eq!(Report::read(long.as_bytes()), None);
    }

    #[test]
    fn what_peers_count_is_added_without_overflow() {
        let text = r#"{"route":"r","version":"v","errors":18446744073709551615,"in_flight":9223372036854775807,
            "latency":[[0,18446744073709551615],[7,18446744073709551615]]}"#;
        let of: VersionMetrics = serde_json::from_str(text).unwrap();
        let mut sum = of.metrics.clone();
        sum += &of.metrics;
        assert_eq!((sum.errors, sum.requests(), sum.in_flight), (u64::MAX, u64::MAX, i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(versions: usize) -> Report {
        let of = |number| VersionMetrics {
            route: format!("r{number}"),
            version: "blue".to_owned(),
            metrics: AttemptMetrics { errors: 1, ..AttemptMetrics::default() },
        };
        let versions = (0..versions).map(of).collect();
        Report { id: "a".to_owned(), revision: 7, versions, ..Report::default() }
    }

    #[test]
    fn a_long_report_is_several_messages_and_the_last_says_so() {
        for (versions, expected) in [(0, 1), (1, 1), (128, 1), (129, 2), (1_000, 8)] {
            let whole = report(versions);
            let parts: Vec<Report> =
                whole.messages().iter().map(|message| Report::read(message).unwrap()).collect();
            assert_eq!(parts.len(), expected);
            assert!(parts.iter().rev().skip(1).all(|part| part.more) && !parts[expected - 1].more);
            assert_eq!(
                parts.iter().flat_map(|part| part.versions.clone()).collect::<Vec<_>>(),
                whole.versions
            );
        }
    }

    #[test]
    fn questions_are_answered_together_and_no_more_often_than_the_gap() {
        let (mut questions, start) = (Questions::default(), Instant::now());
        assert_eq!(questions.due(), None);
        // One a millisecond for ten seconds, answered as soon as that is due.
        let mut answers = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            questions.take(Some(format!("_INBOX_operator.{ms}").into()), now);
            if questions.due().unwrap() <= now {
                answers += 1;
                assert!(questions.answered(now).len() <= MOST_WAITING);
                assert_eq!(questions.due(), None);
            }
        }
        assert_eq!(answers, ANSWERS_AT_ONCE + 39);
        questions.answered(start + Duration::from_secs(10));
        // After a while in which nobody asked, all of them may come at once again.
        let later = start + Duration::from_secs(60);
        for _ in 0..ANSWERS_AT_ONCE {
            questions.take(None, later);
            assert_eq!(questions.due(), Some(later));
            questions.answered(later);
        }
        questions.take(None, later);
        assert_eq!(questions.due(), Some(later + ANSWER_GAP));
    }

    #[test]
    fn a_question_does_not_have_the_answer_published_where_the_asker_could_not() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        for reply in ["natsway.drain.svc.demo.blue", "$KV.natsway-routes.demo", "svc.demo.blue"] {
            questions.take(Some(reply.into()), now);
        }
        questions.take(Some("_INBOX_operator.x".into()), now);
        questions.take(Some("_R_.x".into()), now);
        assert_eq!(questions.answered(now), ["_INBOX_operator.x".into(), "_R_.x".into()]);
    }

    #[test]
    fn readers_skip_what_they_do_not_know_and_refuse_what_is_no_report() {
        let read = Report::read(br#"{"id":"x","role":"sidecar","colour":"red"}"#).unwrap();
        assert_eq!((read.role, read.revision), (Role::Other, 0));
        for bad in
            [&b""[..], b"{}", b"[]", br#"{"id":7}"#, br#"{"id":"x","versions":[{"route":1}]}"#]
        {
            assert_eq!(Report::read(bad), None);
        }
    }
}
