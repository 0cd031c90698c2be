//! What a tailer is told, what it remembers, and what it gives.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::fingerprint::{Fingerprint, Probe};
use crate::framing::Framer;
use crate::head::Skipped;

/// Where to begin with a file that no checkpoint knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum From {
    /// At its first byte.
    #[default]
    Beginning,
    /// Behind its last whole line; only for the file that is there at the very first start.
    End,
}

/// How to follow.
#[derive(Clone, Debug)]
pub struct Follow {
    /// How to cut messages.
    pub framer: Framer,
    /// Where to begin.
    pub from: From,
    /// How long bytes wait for a batch to fill.
    pub linger: Duration,
    /// How long an event of several lines waits for its next line.
    pub event_timeout: Duration,
    /// How long a file that was renamed away stays followed after its last byte: its writer may not
    /// have noticed yet.
    pub rotate_wait: Duration,
}

/// A file, or what came after its truncation, as a part of the run of offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Which file.
    pub identity: Fingerprint,
    /// Where in the file the segment begins, in bytes.
    pub file_start: u64,
    /// The run's offset there.
    pub start: u64,
    /// The run's offset where it ends, once that is decided. It is decided for good before anything
    /// behind it is sent.
    pub end: Option<u64>,
    /// The file's length at the last poll.
    pub seen_bytes: u64,
    /// Rotated files that were last written before that are done with: when this one was, as seen
    /// while it was at the path or when it was chosen; nanoseconds since 1970.
    pub modified_ns: i128,
}

/// What a tailer needs to go on after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailState {
    /// The run's offset to go on from.
    pub offset: u64,
    /// Offsets from here on were never used.
    pub reserved: u64,
    /// The files that are not done with, in order.
    pub segments: Vec<Segment>,
    /// Rotated files that are.
    pub finished: Vec<Fingerprint>,
    /// What stands before `offset` in its file; none at the beginning of one, and in checkpoints of
    /// version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// The process ended in order: nothing above `offset` was sent.
    #[serde(default)]
    pub clean: bool,
}

/// A part of the run, to be sent as one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The run's offset of its first byte.
    pub start: u64,
    /// The run's offset behind its last byte.
    pub end: u64,
    /// The bytes; none for a gap.
    pub payload: Bytes,
    /// Why there are none.
    pub gap: Option<Skipped>,
}

/// What a poll of the file came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something to send.
    Chunk(Chunk),
    /// Another file follows: save the tailer's state durably before the next poll.
    Save,
    /// Nothing now.
    Idle,
}

/// What happened to the path so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Files renamed away.
    pub rotations: u64,
    /// Files truncated in place.
    pub truncations: u64,
    /// Files gone before they were read to their end.
    pub vanished: u64,
    /// Bytes known to be lost by that. What was written and cut off between two polls is not among
    /// them, and neither is what an earlier process may have sent before it crashed: the consumer
    /// knows that.
    pub lost_bytes: u64,
    /// Lines above the limit.
    pub long_lines: u64,
}
