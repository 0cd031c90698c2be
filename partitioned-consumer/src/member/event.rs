//! What a member is doing, and what happens to it: told to whoever listens, and to the log.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::error::Error;
use crate::group::name::GroupName;
use crate::group::source_loss::SourceLoss;
use crate::order::PinLoss;

/// What a member is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It has no partitions, or cannot have its consumer yet.
    Waiting,
    /// It has a consumer; another instance may be at work with it.
    Standby,
    /// It is the instance that gets the messages.
    Pinned,
    /// It has stopped.
    Ended,
}

/// Something that happened to a member, for logs and dashboards.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum MemberEvent {
    /// The member's consumer exists, with this many filter subjects.
    Joined {
        /// Partitions times filters.
        filter_subjects: usize,
    },
    /// The member has no partitions at present.
    Waiting,
    /// This instance gets the messages from now on.
    Pinned,
    /// Another instance may get the messages from now on; running handlers were cancelled.
    PinLost(PinLoss),
    /// Somebody has set the member's consumer to another place in its stream: what comes from there
    /// is handled, again too.
    ConsumerReset,
    /// The group was paused: running handlers end, nothing new begins.
    Paused,
    /// The group goes on.
    Resumed,
    /// A handler returned an error, or panicked; the message will be delivered again.
    HandlerFailed {
        /// The message.
        stream_sequence: u64,
        /// What it said.
        error: String,
    },
    /// A message was moved to the dead letters.
    DeadLettered {
        /// The message.
        stream_sequence: u64,
    },
    /// The source stream has dropped messages before they were copied: nobody handles them.
    SourceDropped(SourceLoss),
    /// Something went wrong that will be tried again.
    Retrying(Arc<Error>),
}

/// Events that a slow reader misses are dropped, oldest first, above this many.
const EVENTS_KEPT: usize = 256;

#[derive(Clone)]
pub(crate) struct MemberEvents {
    sender: broadcast::Sender<MemberEvent>,
    /// Whose they are, for the log: a process may run members of several groups.
    group: Arc<str>,
    member: Arc<str>,
}

impl MemberEvents {
    pub(super) fn new(group: &GroupName, member: &str) -> Self {
        let sender = broadcast::channel(EVENTS_KEPT).0;
        Self { sender, group: group.to_string().into(), member: member.into() }
    }

    /// Logs what happened, and sends it to whoever listens.
    pub(crate) fn publish(&self, event: MemberEvent) {
        let Self { group, member, .. } = self;
        match &event {
            MemberEvent::Retrying(error) => {
                tracing::warn!(%group, %member, %error, "will be tried again")
            }
            MemberEvent::SourceDropped(SourceLoss { messages, exact, .. }) => tracing::error!(
                %group, %member, messages, exact,
                "the source stream has dropped messages before they were copied: let it keep more"
            ),
            MemberEvent::ConsumerReset => {
                tracing::info!(%group, %member, "the consumer was reset: messages come again from \
                                                 there")
            }
            MemberEvent::HandlerFailed { stream_sequence, error } => {
                tracing::warn!(%group, %member, stream_sequence, error, "handler failed")
            }
            other => tracing::debug!(%group, %member, event = ?other, "member"),
        }
        // Nobody has to listen.
        drop(self.sender.send(event));
    }

    /// Everything that happens from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<MemberEvent> {
        self.sender.subscribe()
    }
}
