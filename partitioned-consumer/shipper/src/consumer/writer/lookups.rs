//! Messages that are looked up in the stream to decide on others, so many for one group.

use std::sync::Arc;

use async_nats::jetstream::stream::Stream;

use super::super::metrics::Metrics;
use crate::accept::GapResolution;
use crate::head::{HEADER, Head};

/// Messages of the stream that are looked up for one group: each is a round trip to the broker, for
/// which all sources wait.
const LOOKUPS: u32 = 64;

/// A search that has not found anything yet. What was looked at says nothing, now and later.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The sequence of the message that waits, and the mark that it waits for.
    of: (u64, u64),
    /// The sequence to go on from.
    next: u64,
}

/// See the module.
pub(super) struct Lookups {
    /// The stream that messages come from; none in core mode.
    stream: Option<Stream>,
    left: u32,
    metrics: Arc<Metrics>,
}

impl Lookups {
    pub(super) fn new(stream: Option<Stream>, metrics: Arc<Metrics>) -> Self {
        Self { stream, left: LOOKUPS, metrics }
    }

    /// Allows as many lookups again.
    pub(super) fn begin_group(&mut self) {
        self.left = LOOKUPS;
    }

    /// Gives the stream for one lookup; `None` when there were enough.
    fn next(&mut self) -> Option<&Stream> {
        let stream = self.stream.as_ref()?;
        self.left = self.left.checked_sub(1)?;
        self.metrics.lookups.add(1);
        Some(stream)
    }

    /// Searches the stream for what stands behind a message that begins above its mark: `of` are
    /// its sequence and the mark. The search goes on from where it ended before, and takes no more
    /// than its part of the time.
    pub(super) async fn behind(
        &mut self,
        searched: &mut Option<Search>,
        of: (u64, u64),
        head: &Head,
        subject: &str,
    ) -> Option<(u64, GapResolution)> {
        let mut search =
            searched.filter(|search| search.of == of).unwrap_or(Search { of, next: of.0 + 1 });
        let mut found = None;
        while found.is_none()
            && let Some(stream) = self.next()
        {
            // The leader is asked. Whatever goes wrong, the message waits and is looked at again.
            let asked = stream.get_first_raw_message_by_subject(subject, search.next).await;
            let Ok(message) = asked else { break };
            let later =
                message.headers.get(HEADER).and_then(|later| later.as_str().parse::<Head>().ok());
            let behind = later.and_then(|later| GapResolution::says(of.1, head, &later));
            found = behind.map(|behind| (message.sequence, behind));
            search.next = message.sequence + 1;
        }
        *searched = Some(search).filter(|_| found.is_none());
        found
    }

    /// Whether the stream has nothing of a source but on this subject: what came before on another
    /// one is gone. `all` is the filter for everything of the source.
    pub(super) async fn is_alone(&mut self, all: String, subject: &str) -> bool {
        let Some(stream) = self.next() else { return false };
        let first = stream.get_first_raw_message_by_subject(all, 1).await;
        first.is_ok_and(|first| first.subject.as_str() == subject)
    }
}
