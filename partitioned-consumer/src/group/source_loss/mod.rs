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

mod account;
mod observation;
mod store;

pub use self::account::SourceLoss;
pub(crate) use self::account::{Account, Holes};
pub(crate) use self::observation::{Copied, Observation, may_drop};
pub(crate) use self::store::{delete, observe, observe_from, read, update, write};

#[cfg(test)]
mod tests;
