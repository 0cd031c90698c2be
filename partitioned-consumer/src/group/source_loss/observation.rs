//! Both streams as they stand at one moment, and what limits their source.

use async_nats::HeaderMap;
use async_nats::jetstream::stream;
use serde::{Deserialize, Serialize};

use crate::group::filter::takes_all_of;

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
    pub(super) streams: String,
    pub(super) source_first: u64,
    pub(super) source_last: u64,
    /// Missing messages of the source between its first and its last.
    pub(super) source_holes: u64,
    pub(super) queue_last: u64,
    pub(super) newest: Option<Copied>,
    /// Messages that wait to be copied, as the broker said a moment ago.
    pub(super) lag: u64,
    pub(super) takes_everything: bool,
    /// How many messages the source stream may keep, as far as its limits or what it holds tell.
    pub(super) keeps_messages: Option<u64>,
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
