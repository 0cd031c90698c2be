//! Setting a group to another place in its stream: to handle messages again, or to pass over them.
//!
//! The consumers of a static group are reset by the broker (ADR-60, server 2.14), and its members
//! go on from there without being started anew. The work queue of an elastic group forgets what was
//! handled, so it is emptied and copies again from the place that was asked for.

use std::time::{Duration, SystemTime};

use async_nats::datetime;
use async_nats::jetstream::{self, consumer};
use serde::Serialize;

use super::count::{count_from, passing, passing_consumer};
use crate::api::{self, ApiError};
use crate::error::{Error, ErrorKind};
use crate::group::consumers::consumers_or_none;
use crate::group::elastic_group::{ElasticGroup, LEAST_DUPLICATE_WINDOW};
use crate::group::settings;
use crate::group::source_loss::{self, Account};
use crate::group::static_group::StaticGroup;

/// How long a work queue may remember the ids of messages once it was told to keep them no longer:
/// a broker looks for old ones when the window has passed, which is the least that it takes.
const FORGETS_IDS_WITHIN: Duration = LEAST_DUPLICATE_WINDOW.saturating_mul(3);

/// Where members go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// With this sequence of the source stream.
    Sequence(u64),
    /// With the first message that the source stream stored at this time or later.
    Time(SystemTime),
    /// With what is stored from now on.
    New,
}

/// What a reset does, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResetReport {
    /// The sequence of the source stream with which the group goes on.
    pub sequence: u64,
    /// What waits to be handled from there on; unknown for a source that is a work queue.
    pub messages: Option<u64>,
    /// Messages that waited in the work queue and are dropped from it; they come again if they are
    /// behind the place (elastic).
    pub dropped_from_queue: Option<u64>,
    /// Each member that has a consumer (static).
    pub members: Vec<MemberReset>,
}

/// What a reset does to a member of a static group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberReset {
    /// Its name.
    pub member: String,
    /// Up to where everything was acknowledged.
    pub acknowledged_to: u64,
    /// Messages behind the place that were acknowledged, or may have been: they are handled again.
    pub again_messages: Option<u64>,
    /// Messages before the place that were not acknowledged: they are passed over.
    pub skipped_messages: Option<u64>,
}

/// The sequence that is meant.
async fn sequence_of(
    context: &jetstream::Context,
    stream: &str,
    to: ResetTo,
) -> Result<u64, Error> {
    let state = api::check_stream(context, stream).await?.state;
    let next = state.last_sequence + 1;
    match to {
        ResetTo::New => Ok(next),
        ResetTo::Sequence(0) => Err(ErrorKind::InvalidConfig.with("sequence 0: expected at least \
                                                                   1")),
        ResetTo::Sequence(sequence) if sequence > next => Err(ErrorKind::InvalidConfig.with(format!(
            "sequence {sequence}: stream {stream:?} has come to {}, and messages before it would \
             be passed over unseen",
            next - 1
        ))),
        // What the stream dropped long ago is nothing that the group loses now.
        ResetTo::Sequence(sequence) => Ok(sequence.max(state.first_sequence.min(next))),
        ResetTo::Time(time) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            let time = i128::try_from(since).ok().and_then(|nanos| datetime::from_nanos(nanos).ok());
            let start_time = time.ok_or_else(|| ErrorKind::InvalidConfig.with("the time is out of range"))?;
            let config = passing(consumer::DeliverPolicy::ByStartTime { start_time }, Vec::new());
            let info = passing_consumer(context, stream, &config).await;
            let info = info.map_err(|error| error.into_error("the sequence of that time could not \
                                                              be found"))?;
            Ok(info.delivered.stream_sequence + 1)
        }
    }
}

impl StaticGroup {
    /// Sets every member that has a consumer to another place; running members of this library and
    /// of Go go on from there. With `dry_run`, it only says what would happen.
    ///
    /// A handler at work ends as ever, and its message may come once more. Members that never had a
    /// consumer begin by their delivery policy. The consumers have to deliver all messages, or by a
    /// start before the place.
    ///
    /// # Errors
    /// As [`StaticGroup::config`]; [`ErrorKind::InvalidConfig`] for a sequence that the stream has
    /// not come to; [`ErrorKind::Broker`] when the broker refuses, and from servers before 2.14,
    /// which cannot. Members before the one that failed are reset then; give the same again.
    pub async fn reset(&self, to: ResetTo, dry_run: bool) -> Result<ResetReport, Error> {
        let config = self.config().await?;
        let stream = self.name().stream();
        let sequence = sequence_of(&self.context, stream, to).await?;
        let consumers = consumers_or_none(&self.context, stream).await?;
        let mut report = ResetReport {
            sequence,
            messages: Some(0),
            dropped_from_queue: None,
            members: Vec::new(),
        };
        for member in config.membership.names() {
            let consumer = self.name().durable(&member);
            let Some(info) = consumers.iter().find(|info| info.name == consumer) else { continue };
            let acknowledged_to = info.ack_floor.stream_sequence;
            let filters = &info.config.filter_subjects;
            let count =
                async |from| count_from(&self.context, stream, filters.clone(), from).await.ok();
            let (there, here) = (count(sequence).await, count(acknowledged_to + 1).await);
            let (again, skipped) = match there.zip(here) {
                Some((there, here)) => {
                    (Some(there.saturating_sub(here)), Some(here.saturating_sub(there)))
                }
                None => (None, None),
            };
            report.messages = report.messages.zip(there).map(|(sum, there)| sum + there);
            report.members.push(MemberReset {
                member,
                acknowledged_to,
                again_messages: again,
                skipped_messages: skipped,
            });
            if !dry_run {
                let reset = api::reset_consumer(&self.context, stream, &consumer, sequence).await;
                reset.map_err(|error| refused(&consumer, error))?;
            }
        }
        Ok(report)
    }
}

fn refused(consumer: &str, error: ApiError) -> Error {
    let doing = format!("consumer {consumer:?} could not be reset");
    match error {
        // Consumers of such a server do not listen for it.
        ApiError::Unanswered(error) => {
            ErrorKind::Broker.caused(format!("{doing}; it needs a nats-server from 2.14 on"), error)
        }
        refused => refused.into_error(&doing),
    }
}

impl ElasticGroup {
    /// Empties the work queue and has it copy from another place of the source stream on; running
    /// members go on with what is copied. With `dry_run`, it only says what would happen.
    ///
    /// What members have in hand is handled as ever, and comes once more if it is behind the place.
    /// One that was cut off leaves a group that copies nothing, which the doctor tells; give the
    /// same again.
    ///
    /// # Errors
    /// As [`ElasticGroup::config`]; [`ErrorKind::InvalidConfig`] for a sequence that the stream has
    /// not come to; [`ErrorKind::NotAllowed`] while a repartition is under way;
    /// [`ErrorKind::Broker`].
    pub async fn reset(&self, to: ResetTo, dry_run: bool) -> Result<ResetReport, Error> {
        let (config, name) = (self.config().await?, self.name());
        if self.settings().await?.repartition.is_some() {
            return Err(ErrorKind::NotAllowed.with(
                "a change of the number of partitions is under way: finish it first, by asking for \
                 it again",
            ));
        }
        let sequence = sequence_of(&self.context, name.stream(), to).await?;
        let queue = api::check_stream(&self.context, &name.work_queue()).await?;
        let filters = config.filters.iter().map(|filter| filter.filter.clone()).collect();
        let messages = count_from(&self.context, name.stream(), filters, sequence).await.ok();
        let report = ResetReport {
            sequence,
            messages,
            dropped_from_queue: Some(queue.state.messages),
            members: Vec::new(),
        };
        if dry_run {
            return Ok(report);
        }
        self.stop_copying().await?;
        if !queue.config.duplicate_window.is_zero() {
            tokio::time::sleep(FORGETS_IDS_WITHIN).await;
        }
        let purge = format!("STREAM.PURGE.{}", name.work_queue());
        let purged =
            api::request::<_, serde_json::Value>(&self.context, purge, &api::Empty {}).await;
        purged.map_err(|error| error.into_error("the work queue could not be emptied"))?;
        self.note_place(sequence).await?;
        self.copy_again(sequence - 1).await?;
        Ok(report)
    }

    /// What is passed over now is not lost.
    async fn note_place(&self, sequence: u64) -> Result<(), Error> {
        let (context, name) = (&self.context, self.name());
        let (observation, holes) = source_loss::observe_from(context, name, sequence).await?;
        let store = settings::open(context, name).await?;
        let moved =
            |account: &mut Account| *account = account.moved(&observation, sequence, holes.clone());
        let noted = source_loss::write(&store, name, moved);
        noted.await.map(|_| ())
    }
}
