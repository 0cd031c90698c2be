//! Following a file through rotation, truncation and restarts.
//!
//! A [`Tailer`] gives the bytes of one path as one run of offsets that goes on over all files which
//! are ever found there. Which file is which is decided by a [`Fingerprint`]: device, inode and a
//! hash of the head together. An inode alone is reused, a path alone is renamed away, and a head
//! alone may be repeated. The run is remembered as [`Segment`]s in a [`checkpoint`].

pub mod checkpoint;
mod fingerprint;
mod present;
mod rotation;
mod segments;
mod siblings;
mod state;
mod tailer;
#[cfg(test)]
mod tests;

pub use fingerprint::{FileId, Fingerprint, Probe};
pub(crate) use siblings::is_rotated_name;
pub use state::{Chunk, Follow, From, Segment, Step, TailState, Tally};
pub use tailer::Tailer;
