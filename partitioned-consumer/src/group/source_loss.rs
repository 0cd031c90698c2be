//! What the source stream of an elastic group dropped before it was copied into the work queue.
//!
//! A source stream with a limit drops its oldest messages whether they were copied or not, and says
//! nothing. But a copied message carries the sequence that it had there (`Nats-Stream-Source`)
//! beside its own in the queue. Both count up by one; where the first gets ahead of the second,
//! messages were passed over. A group that takes everything passes over none, so what is missing is
//! gone. Where filters take a part, a gap may be messages that no filter takes: only what goes
//! while the group stays behind with copying is counted, and still may be others' in part.
//!
//! A source may have holes before the group comes to it: messages that were deleted one by one, or
//! that a limit for each subject dropped. They are passed over as well, and nobody lost them, so as
//! many are taken off what is missing.
//!
//! The [`Account`] of a group is kept in the bucket of our settings, beside them. Members bring it
//! up to date; everybody reads it.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, kv, stream};
use serde::{Deserialize, Serialize};

use super::entry::WRITE_ATTEMPTS;
use super::filter::takes_all_of;
use super::name::GroupName;
use super::settings::BUCKET;
use crate::api::{self, code};
use crate::error::{Error, ErrorKind};

/// After which a group that is behind counts as one that stays behind, where nobody has looked
/// before.
const STAYS_BEHIND_FOR: Duration = Duration::from_secs(1);

/// Missing messages that the broker is asked to list; each takes some ten bytes of its answer.
const MOST_LISTED: u64 = 50_000;

/// What a group lost before it could handle it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceLoss {
    /// Messages that the source stream dropped before they were copied.
    pub messages: u64,
    /// Whether `messages` is known to be just what the group lost. Where filters take a part of the
    /// stream, it counts others too, and may miss what was dropped between two observations. While
    /// a group copies what the source had when the group was made, and messages were missing in
    /// between then, it may be too low.
    pub exact: bool,
    /// The most messages that the group was ever behind with copying.
    pub largest_lag_messages: u64,
}

/// A copied message: its sequence in the work queue, and the one that it had in the source stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Copied {
    pub(crate) queue: u64,
    pub(crate) source: u64,
}

impl Copied {
    /// Reads the header of a message of the work queue.
    pub(crate) fn of(queue: u64, headers: &HeaderMap) -> Option<Self> {
        let source = headers.get("Nats-Stream-Source")?.as_str().split(' ').nth(1)?.parse().ok()?;
        Some(Self { queue, source })
    }
}

/// Both streams as they stand. The source was asked first: what it holds no more by then, and the
/// queue not yet later, is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// Which streams these are, by when they were made; numbers of others mean nothing.
    streams: String,
    source_first: u64,
    source_last: u64,
    /// Missing messages of the source between its first and its last.
    source_holes: u64,
    queue_last: u64,
    newest: Option<Copied>,
    /// Messages that wait to be copied, as the broker said a moment ago.
    lag: u64,
    takes_everything: bool,
    /// How many messages the source stream may keep, as far as its limits or what it holds tell.
    keeps_messages: Option<u64>,
}

/// Missing messages that the source had lost before the group had to copy them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holes {
    /// As many were not taken off yet.
    left: u64,
    /// As many were taken off what is missing.
    used: u64,
    /// All of them are at or below this sequence of the source.
    up_to: u64,
    /// Whether there may be fewer.
    is_estimate: bool,
}

/// What was counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    streams: String,
    /// Everything up to this copy is counted; before the first, the place in front of it.
    copied: Option<Copied>,
    /// Missing messages of the source that were counted before their successor was copied, up to
    /// this sequence.
    #[serde(default)]
    counted_to: u64,
    #[serde(default)]
    lost: u64,
    #[serde(default)]
    uncertain: u64,
    #[serde(default)]
    holes: Holes,
    /// Whether something that was lost may have been taken for a hole, for good.
    #[serde(default)]
    may_hide: bool,
    #[serde(default)]
    largest_lag: u64,
    /// Whether messages waited to be copied at the last observation.
    #[serde(default)]
    behind: bool,
}

impl Holes {
    /// This many, up to the source's last message of an observation.
    pub(crate) fn counted(holes: u64, observation: &Observation) -> Self {
        Self { left: holes, up_to: observation.source_last, ..Self::default() }
    }

    /// Those behind a sequence, of which only the number in the whole stream is known.
    pub(crate) fn at_most(behind: u64, observation: &Observation) -> Self {
        let left = observation.source_holes.min(observation.source_last.saturating_sub(behind));
        let is_estimate = left > 0 && behind >= observation.source_first;
        Self { left, up_to: observation.source_last, is_estimate, ..Self::default() }
    }

    /// Takes holes off what is missing, and returns the rest.
    fn take_off(&mut self, missing: u64) -> u64 {
        let holes = missing.min(self.left);
        self.left -= holes;
        self.used += holes;
        missing - holes
    }
}

impl Account {
    /// The account of a work queue whose next copy is that of `next`, behind which the source has
    /// these holes.
    pub(crate) fn beginning(observation: &Observation, next: u64, holes: Holes) -> Self {
        let copied = Some(Copied { queue: observation.queue_last, source: next.saturating_sub(1) });
        Self { streams: observation.streams.clone(), copied, holes, ..Self::default() }
    }

    /// As [`Account::beginning`], for a group that was told to go on elsewhere; what it lost before
    /// stays counted.
    pub(crate) fn moved(&self, observation: &Observation, next: u64, holes: Holes) -> Self {
        let Self { lost, uncertain, largest_lag, .. } = *self;
        let may_hide = self.may_hide || self.holes.used > 0;
        Self { lost, uncertain, largest_lag, may_hide, ..Self::beginning(observation, next, holes) }
    }

    /// Goes on behind a copy of which only the place is known.
    fn go_on_behind(&mut self, copied: Option<Copied>, observation: &Observation) {
        self.may_hide |= self.holes.used > 0;
        self.holes =
            copied.map_or_else(Holes::default, |copied| Holes::at_most(copied.source, observation));
        self.copied = copied;
        self.counted_to = 0;
    }

    /// Forgets the holes that are passed: as many are taken off as there were, where their number
    /// was known.
    fn pass_holes(&mut self, source: u64) {
        if source >= self.holes.up_to {
            self.may_hide |= self.holes.is_estimate && self.holes.used > 0;
            self.holes = Holes::default();
        }
    }

    /// Takes an observation into account.
    pub(crate) fn take(&mut self, observation: &Observation) {
        let known = self.copied.filter(|_| self.streams == observation.streams);
        let Some(before) = known else {
            // Nothing is known of the time before the first observation of these streams.
            self.streams.clone_from(&observation.streams);
            self.go_on_behind(observation.newest, observation);
            return;
        };
        let newest =
            observation.newest.filter(|newest| newest.queue > before.queue).unwrap_or(before);
        if newest.source < before.source {
            // Somebody had the group copy from further back.
            self.go_on_behind(Some(newest), observation);
            return;
        }
        if observation.takes_everything {
            let passed_over =
                (newest.source - before.source).saturating_sub(newest.queue - before.queue);
            let counted = self.counted_to.clamp(before.source, newest.source) - before.source;
            self.lost += self.holes.take_off(passed_over.saturating_sub(counted));
        }
        self.copied = Some(newest);
        // The newest copy is known for sure only where nothing was copied after it.
        if newest.queue == observation.queue_last {
            let missing_to = observation.source_first.saturating_sub(1);
            let missing = missing_to.saturating_sub(newest.source.max(self.counted_to));
            let stays_behind = observation.lag > 0 && self.behind;
            match observation.takes_everything {
                true => self.lost += self.holes.take_off(missing),
                false if stays_behind => self.uncertain += missing,
                false => {}
            }
            self.counted_to = self.counted_to.max(missing_to);
        }
        self.pass_holes(newest.source.max(self.counted_to));
        let behind = match observation.takes_everything {
            true if newest.queue == observation.queue_last => {
                observation.source_last.saturating_sub(newest.source)
            }
            _ => observation.lag,
        };
        self.largest_lag = self.largest_lag.max(behind);
        self.behind = observation.lag > 0;
    }

    pub(crate) fn loss(&self) -> SourceLoss {
        SourceLoss {
            messages: self.lost + self.uncertain,
            exact: self.uncertain == 0 && self.holes.used == 0 && !self.may_hide,
            largest_lag_messages: self.largest_lag,
        }
    }

    /// How many messages the source keeps, when it keeps fewer than the group was behind.
    pub(crate) fn keeps_too_few(&self, observation: &Observation) -> Option<u64> {
        observation.keeps_messages.filter(|kept| *kept < self.largest_lag)
    }
}

impl Observation {
    /// What both streams say; `newest` is a copy of which the asker knows, where the queue has no
    /// newer.
    pub(crate) fn new(source: &stream::Info, queue: &stream::Info, newest: Option<Copied>) -> Self {
        let of_source = |stream: &&stream::Source| stream.name == source.config.name;
        let filters: Vec<&str> = queue
            .config
            .sources
            .iter()
            .flatten()
            .filter(of_source)
            .flat_map(|source| {
                source.subject_transforms.iter().map(|transform| transform.source.as_str())
            })
            .collect();
        Self {
            streams: format!(
                "{} {}",
                source.created.unix_timestamp_nanos(),
                queue.created.unix_timestamp_nanos()
            ),
            source_first: source.state.first_sequence,
            source_last: source.state.last_sequence,
            source_holes: source.state.deleted_count.unwrap_or(0),
            queue_last: queue.state.last_sequence,
            newest,
            lag: queue.sources.iter().map(|source| source.lag).sum(),
            takes_everything: takes_everything(&source.config, &filters),
            keeps_messages: keeps_messages(source),
        }
    }
}

/// Whether each message that the stream stores is one that some filter takes.
fn takes_everything(source: &stream::Config, filters: &[&str]) -> bool {
    if filters.contains(&">") {
        return true;
    }
    let own =
        source.sources.is_none() && source.mirror.is_none() && source.subject_transform.is_none();
    let taken = |subject: &String| filters.iter().any(|filter| takes_all_of(filter, subject));
    own && !source.subjects.is_empty() && source.subjects.iter().all(taken)
}

/// How many messages a stream keeps whatever comes; `None` where nothing but a time, or nothing at
/// all, limits it.
fn keeps_messages(source: &stream::Info) -> Option<u64> {
    let config = &source.config;
    if config.discard == stream::DiscardPolicy::New
        || config.retention != stream::RetentionPolicy::Limits
    {
        return None;
    }
    let by_count = u64::try_from(config.max_messages).ok().filter(|limit| *limit > 0);
    // A limit in bytes is as many messages as were kept when it was last reached.
    let reached = config.max_bytes > 0 && source.state.first_sequence > 1;
    by_count.into_iter().chain(reached.then_some(source.state.messages)).min()
}

/// Why a source stream may drop messages before they are copied; `None` when it cannot.
pub(crate) fn may_drop(source: &stream::Config) -> Option<String> {
    let mut limits = Vec::new();
    let bounded = |limit: i64| limit > 0;
    if source.discard == stream::DiscardPolicy::Old {
        if bounded(source.max_messages) {
            limits.push(format!("keeps {} messages", source.max_messages));
        }
        if bounded(source.max_bytes) {
            limits.push(format!("keeps {} bytes", source.max_bytes));
        }
        if bounded(source.max_messages_per_subject) {
            limits.push(format!("keeps {} messages of a subject", source.max_messages_per_subject));
        }
    }
    if !source.max_age.is_zero() {
        limits.push(format!("keeps messages for {:?}", source.max_age));
    }
    (!limits.is_empty()).then(|| limits.join(", "))
}

pub(crate) fn key(name: &GroupName) -> String {
    format!("copied.{}", name.key())
}

/// Observes both streams; `None` when one of them does not exist.
pub(crate) async fn observe(
    context: &jetstream::Context,
    name: &GroupName,
    sample: Option<Copied>,
) -> Result<Option<Observation>, Error> {
    let doing = "the source stream of the group could not be compared with what was copied";
    let ask = async |stream: &str| match api::stream_info(context, stream).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => Ok(None),
        Err(error) => Err(error.into_error(doing)),
    };
    // In this order: see `Observation`.
    let Some(source) = ask(name.stream()).await? else { return Ok(None) };
    let Some(queue) = ask(&name.work_queue()).await? else { return Ok(None) };
    // One of an earlier queue of that name says nothing.
    let sample = sample.filter(|sample| sample.queue <= queue.state.last_sequence);
    let mut newest = sample;
    if queue.state.last_sequence > sample.map_or(0, |sample| sample.queue) {
        // It may be handled and gone; then the next observation will know.
        let last = api::message(context, &name.work_queue(), queue.state.last_sequence).await;
        newest = last
            .ok()
            .and_then(|headers| Copied::of(queue.state.last_sequence, &headers?))
            .or(sample);
    }
    Ok(Some(Observation::new(&source, &queue, newest)))
}

/// The account as it is kept, and its revision; an empty one where there is none.
async fn kept(store: &kv::Store, name: &GroupName) -> Result<(Account, u64), Error> {
    let entry = store.entry(key(name)).await.map_err(|error| {
        ErrorKind::Broker.caused("the group's account of copied messages could not be read", error)
    })?;
    Ok(entry.map_or_else(Default::default, |entry| {
        // One that cannot be read is begun anew.
        let account = Some(&entry).filter(|entry| entry.operation == kv::Operation::Put);
        let account = account.and_then(|entry| serde_json::from_slice(&entry.value).ok());
        (account.unwrap_or_default(), entry.revision)
    }))
}

/// The account as it stands by an observation, without writing anything.
pub(crate) async fn read(
    context: &jetstream::Context,
    name: &GroupName,
    observation: &Observation,
) -> Result<Account, Error> {
    let mut account = match context.get_key_value(BUCKET).await {
        Ok(store) => kept(&store, name).await?.0,
        Err(_) => Account::default(),
    };
    account.take(observation);
    if !observation.takes_everything && observation.lag > 0 {
        // Is it behind for longer than a moment?
        tokio::time::sleep(STAYS_BEHIND_FOR).await;
        if let Some(observation) = observe(context, name, observation.newest).await? {
            account.take(&observation);
        }
    }
    Ok(account)
}

/// Brings the account up to date by an observation, where there is a bucket to keep it in: members
/// make none.
pub(crate) async fn update(
    context: &jetstream::Context,
    name: &GroupName,
    observation: &Observation,
) -> Result<Account, Error> {
    match context.get_key_value(BUCKET).await {
        Ok(store) => write(&store, name, |account| account.take(observation)).await,
        Err(_) => read(context, name, observation).await,
    }
}

/// Changes the account; two that write at once lose nothing. A observation that the other one has
/// overtaken changes nothing.
pub(crate) async fn write(
    store: &kv::Store,
    name: &GroupName,
    edit: impl Fn(&mut Account),
) -> Result<Account, Error> {
    for _ in 0..WRITE_ATTEMPTS {
        let (before, revision) = kept(store, name).await?;
        let mut account = before.clone();
        edit(&mut account);
        if account == before {
            return Ok(account);
        }
        let json = serde_json::to_vec(&account).expect("plain fields serialize");
        match store.update(key(name), json.into(), revision).await {
            Ok(_) => return Ok(account),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
            Err(error) => {
                let doing = "the group's account of copied messages could not be written";
                return Err(ErrorKind::Broker.caused(doing, error));
            }
        }
    }
    Err(ErrorKind::Conflict
        .with("the group's account of copied messages kept changing under the write; try again"))
}

/// The holes of the source from `next` on, and the observation that they are of.
pub(crate) async fn observe_from(
    context: &jetstream::Context,
    name: &GroupName,
    next: u64,
) -> Result<(Observation, Holes), Error> {
    let mut source = api::check_stream(context, name.stream()).await?;
    let state = &source.state;
    let deleted = state.deleted_count.unwrap_or(0);
    let is_inside = next > state.first_sequence && next <= state.last_sequence;
    let mut listed = None;
    if is_inside && (1..=MOST_LISTED).contains(&deleted) {
        let doing = "the missing messages of the source stream could not be listed";
        let answer = api::stream_info_and_deleted(context, name.stream()).await;
        let (info, deleted) = answer.map_err(|error| error.into_error(doing))?;
        listed = Some(deleted.iter().filter(|sequence| **sequence >= next).count() as u64);
        source = info;
    }
    let queue = api::check_stream(context, &name.work_queue()).await?;
    let observation = Observation::new(&source, &queue, None);
    let holes = listed.map_or_else(
        || Holes::at_most(next.saturating_sub(1), &observation),
        |holes| Holes::counted(holes, &observation),
    );
    Ok((observation, holes))
}

/// Forgets the account of a group that is deleted.
pub(crate) async fn delete(context: &jetstream::Context, name: &GroupName) -> Result<(), Error> {
    let Ok(store) = context.get_key_value(BUCKET).await else { return Ok(()) };
    let deleted = store.delete(key(name)).await;
    deleted.map_err(|error| {
        ErrorKind::Broker.caused("the group's account could not be deleted", error)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn observation(
        first: u64,
        last: u64,
        queue_last: u64,
        newest: Option<(u64, u64)>,
    ) -> Observation {
        Observation {
            streams: "one".into(),
            source_first: first,
            source_last: last,
            source_holes: 0,
            queue_last,
            newest: newest.map(|(queue, source)| Copied { queue, source }),
            lag: newest.map_or(last, |(_, source)| last - source),
            takes_everything: true,
            keeps_messages: None,
        }
    }

    #[test]
    fn the_header_says_where_a_copy_comes_from() {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Stream-Source", "ORDERS 87 > {{Partition(2)}}.> orders.a");
        assert_eq!(Copied::of(3, &headers), Some(Copied { queue: 3, source: 87 }));
        headers.insert("Nats-Stream-Source", "ORDERS");
        assert_eq!(Copied::of(3, &headers), None);
    }

    #[test]
    fn what_was_passed_over_is_gone() {
        let mut account = Account::beginning(&observation(1, 0, 0, None), 1, Holes::default());
        account.take(&observation(1, 10, 10, Some((10, 10))));
        assert_eq!(account.loss().messages, 0);
        // 11 to 90 went before they were copied, and the next copy is 91.
        account.take(&observation(91, 100, 11, Some((11, 91))));
        account.take(&observation(95, 110, 15, Some((15, 95))));
        assert_eq!(
            account.loss(),
            SourceLoss { messages: 80, exact: true, largest_lag_messages: 15 }
        );
    }

    #[test]
    fn what_is_missing_before_the_next_copy_is_told_at_once_and_once() {
        let mut account = Account::beginning(&observation(1, 0, 0, None), 1, Holes::default());
        account.take(&observation(51, 150, 10, Some((10, 10))));
        assert_eq!((account.loss().messages, account.loss().largest_lag_messages), (40, 140));
        account.take(&observation(61, 160, 10, Some((10, 10))));
        assert_eq!(account.loss().messages, 50);
        account.take(&observation(71, 170, 11, Some((11, 71))));
        assert_eq!(account.loss().messages, 60);
    }

    #[test]
    fn other_streams_and_a_place_further_back_begin_anew() {
        let mut account = Account::beginning(&observation(1, 0, 0, None), 1, Holes::default());
        account.take(&observation(51, 150, 10, Some((10, 10))));
        account.take(&Observation {
            streams: "other".into(),
            ..observation(1, 500, 1, Some((1, 400)))
        });
        account
            .take(&Observation { streams: "other".into(), ..observation(1, 500, 5, Some((5, 4))) });
        account
            .take(&Observation { streams: "other".into(), ..observation(1, 500, 9, Some((9, 8))) });
        assert_eq!(account.loss().messages, 40);
        let here = observation(1, 500, 20, None);
        assert_eq!(account.moved(&here, 300, Holes::default()).loss(), account.loss());
    }

    #[test]
    fn filters_that_take_a_part_blame_only_what_a_look_finds_missing() {
        let part = |observation, lag| Observation { takes_everything: false, lag, ..observation };
        let mut account =
            Account::beginning(&part(observation(1, 0, 0, None), 0), 1, Holes::default());
        // Every other message is not ours, and what was copied may go.
        account.take(&part(observation(90, 200, 100, Some((100, 200))), 0));
        // No filter takes what comes now, and it goes again; or one is just being copied.
        account.take(&part(observation(301, 400, 100, Some((100, 200))), 0));
        account.take(&part(observation(401, 500, 100, Some((100, 200))), 1));
        assert_eq!(
            account.loss(),
            SourceLoss { messages: 0, exact: true, largest_lag_messages: 1 }
        );
        account.take(&part(observation(411, 600, 100, Some((100, 200))), 90));
        assert_eq!(
            account.loss(),
            SourceLoss { messages: 10, exact: false, largest_lag_messages: 90 }
        );
    }

    #[test]
    fn holes_that_were_there_before_are_nobodys_loss() {
        let of = |holes, observation| Observation { source_holes: holes, ..observation };
        // The source had 1 to 100, and 40 of them not.
        let begin = of(40, observation(1, 100, 0, None));
        let mut account = Account::beginning(&begin, 1, Holes::counted(40, &begin));
        account.take(&of(30, observation(1, 100, 20, Some((20, 30)))));
        let loss = account.loss();
        assert_eq!(
            (loss.messages, loss.exact),
            (0, false),
            "some of these ten may have been dropped meanwhile"
        );
        account.take(&of(0, observation(1, 100, 60, Some((60, 100)))));
        assert_eq!((account.loss().messages, account.loss().exact), (0, true));
        account.take(&observation(111, 200, 61, Some((61, 111))));
        assert_eq!((account.loss().messages, account.loss().exact), (10, true));
    }

    #[test]
    fn holes_whose_number_is_not_known_make_the_count_a_lower_bound() {
        let of = |holes, observation| Observation { source_holes: holes, ..observation };
        let mut account = Account::default();
        account.take(&of(10, observation(1, 100, 50, Some((50, 50)))));
        account.take(&of(10, observation(1, 100, 60, Some((60, 60)))));
        assert!(account.loss().exact, "nothing is missing yet");
        account.take(&of(10, observation(1, 100, 85, Some((85, 100)))));
        assert_eq!((account.loss().messages, account.loss().exact), (5, false));
        account.take(&of(10, observation(1, 200, 185, Some((185, 200)))));
        assert_eq!((account.loss().messages, account.loss().exact), (5, false));
        assert!(!account.moved(&observation(1, 200, 185, None), 1, Holes::default()).loss().exact);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_that_write_at_once_lose_nothing() {
        let broker = natsway_testkit::TestBroker::builder().jetstream().start().await;
        let context = jetstream::new(broker.connect().await);
        let config = kv::Config { bucket: BUCKET.into(), ..Default::default() };
        let store = context.create_key_value(config).await.unwrap();
        let name = GroupName::new("S", "g").unwrap();
        let here = observation(1, 100, 10, Some((10, 10)));
        let before = write(&store, &name, |account| account.take(&here)).await.unwrap();
        // A member writes between the reading and the writing of whoever moves the group.
        let by_member = serde_json::to_vec(&Account { largest_lag: 777, ..before }).unwrap();
        let attempts = std::cell::Cell::new(0);
        let moved = write(&store, &name, |account| {
            attempts.set(attempts.get() + 1);
            if attempts.get() == 1 {
                let written = store.put(key(&name), by_member.clone().into());
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(written))
                    .unwrap();
            }
            *account = account.moved(&here, 90, Holes::default());
        });
        moved.await.unwrap();
        let (account, _) = kept(&store, &name).await.unwrap();
        assert_eq!(
            (account.copied, account.largest_lag),
            (Some(Copied { queue: 10, source: 89 }), 777)
        );
    }

    proptest! {
        /// A stream that has holes and keeps a few messages, a queue that copies at its own pace,
        /// and observations whenever: the count is exact, and says where it may be too low.
        #[test]
        fn the_count_is_what_was_never_copied(
            there in prop::collection::vec(any::<bool>(), 0..40),
            steps in prop::collection::vec((0_u64..30, 0_u64..20, any::<bool>(), any::<bool>()), 1..60),
        ) {
            const KEPT: usize = 25;
            let old = there.len() as u64;
            let is_there = |sequence: &u64| [1, old].contains(sequence) || there[*sequence as usize - 1];
            let mut source: BTreeSet<u64> = (1..=old).filter(is_there).collect();
            let (mut last, mut copied, mut queue, mut lost) = (old, 0, 0, 0);
            let observe = |source: &BTreeSet<u64>, last: u64, queue, newest| {
                let first = source.first().copied().unwrap_or(last + 1);
                let source_holes = (last + 1 - first) - source.len() as u64;
                Observation { source_holes, ..observation(first, last, queue, newest) }
            };
            let begin = observe(&source, last, 0, None);
            let mut account = Account::beginning(&begin, 1, Holes::counted(begin.source_holes, &begin));
            for (published, copies, observations, handled) in steps {
                for _ in 0..published {
                    last += 1;
                    source.insert(last);
                    while source.len() > KEPT {
                        let dropped = source.pop_first().unwrap();
                        lost += u64::from(dropped > copied);
                    }
                }
                // Asked before the queue copies on.
                let asked = observe(&source, last, 0, None);
                for _ in 0..copies {
                    let Some(next) = source.range(copied + 1..).next() else { break };
                    copied = *next;
                    queue += 1;
                }
                if observations {
                    let newest = (!handled && queue > 0).then_some(Copied { queue, source: copied });
                    account.take(&Observation { queue_last: queue, newest, ..asked });
                    prop_assert!(account.loss().messages <= lost);
                }
            }
            account.take(&observe(&source, last, queue, (queue > 0).then_some((queue, copied))));
            let loss = account.loss();
            prop_assert!(loss.messages <= lost && (!loss.exact || loss.messages == lost), "{loss:?}, {lost}");
            prop_assert!(loss.exact || copied.max(source.first().map_or(0, |first| first - 1)) < old);
        }
    }
}
