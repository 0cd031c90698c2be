//! What a lifecycle is told and what it asks for.

use std::time::Duration;

use crate::error::Error;

/// Settings of a lifecycle.
#[derive(Clone, Debug)]
pub(crate) struct LifecycleConfig {
    /// A static member: its consumer is durable, is never deleted here, and no change can be
    /// followed.
    pub(crate) fixed: bool,
    /// How long running handlers may take before they are cancelled.
    pub(crate) drain_timeout: Duration,
    /// How long a holder that lost its pin may go on without knowing.
    pub(crate) lease: Duration,
    /// Seed of the pauses between attempts.
    pub(crate) seed: u64,
}

/// Why a member stopped, when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// [`MemberHandle::stop`](crate::MemberHandle::stop) was called.
    Stopped,
    /// The group was deleted.
    GroupDeleted,
}

#[derive(Debug)]
pub(crate) enum Event {
    /// The configuration gives this member these filter subjects; none while it has no partitions.
    Assigned(Vec<String>),
    GroupDeleted,
    /// The configuration changed in a way that a running member cannot follow, or cannot be read.
    Broken(Error),
    /// The consumer exists with these filter subjects.
    Created(Vec<String>),
    CreateFailed(CreateFault),
    Inspected(Existing),
    /// Our consumer does not exist any more; whether it did until we deleted it.
    Deleted {
        by_us: bool,
    },
    /// The server says that the consumer is gone.
    ConsumerGone,
    Pinned(bool),
    Drained,
    Stop,
    Tick,
}

/// Why a consumer could not be created.
#[derive(Debug)]
pub(crate) enum CreateFault {
    /// Another member still has one of our partitions (10100).
    Overlaps,
    /// Our consumer exists with other settings (10148).
    Differs,
    /// The stream is gone (10059).
    NoStream,
    /// Anything else.
    Other(Error),
}

/// The consumer of our name, as the server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    Absent,
    /// Nobody is pinned. Somebody may be at work all the same, with messages in flight, and not
    /// know yet: a restart of the broker and a step-down take the pin at once, while its holder's
    /// lease goes on.
    Unpinned {
        in_flight: bool,
    },
    /// Another instance of this member is at work; whether it has the filters that we want.
    Pinned {
        same_filters: bool,
    },
    Unknown,
}

#[derive(Debug)]
pub(crate) enum Action {
    Create(Vec<String>),
    Inspect(Vec<String>),
    Delete,
    /// Begin to pull from the consumer with these filters.
    Attach,
    Drain,
    /// Cancel handlers, drop what is buffered, pull no more.
    Abort,
    /// Give the buffered messages back and the pin up, then abort: another instance goes on at
    /// once.
    HandOver,
    Report(Report),
    End(Result<End, Error>),
}

/// What the machine tells the user about.
#[derive(Debug)]
pub(crate) enum Report {
    Joined { filters: usize },
    Waiting,
    Retrying(Error),
}
