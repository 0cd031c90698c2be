//! What the questions of an engine come to.

use async_nats::datetime::DateTime;

use super::super::event::MemberEvent;
use super::super::lifecycle;
use crate::group::source_loss::SourceLoss;
use crate::order::Position;

/// What a question came to.
pub(super) enum Answer {
    Life(lifecycle::Event),
    /// The consumer exists; when it was made tells it from a later one of its name.
    Created {
        filters: Vec<String>,
        made_at: DateTime,
    },
    Position(Position),
    /// The question failed and will be asked again in time.
    Nothing,
    /// A message was moved to the dead letters, or could not be.
    DeadLettered(MemberEvent),
    /// What a comparison with the source stream found, when it could be had.
    Compared(Option<Compared>),
}

/// What a comparison with the source stream found.
pub(super) struct Compared {
    pub(super) loss: SourceLoss,
    /// How many messages the source keeps, when that is fewer than the group was behind.
    pub(super) keeps_too_few: Option<u64>,
}
