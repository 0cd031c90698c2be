//! The way from a reader to the writer, bounded in bytes.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::metrics::Metrics;
use crate::head::{HEADER, Head, MOST_AHEAD_MS};
use crate::name::{Prefix, Source};

/// Memory is handed out in units of this many bytes.
const PERMIT_BYTES: usize = 1024;
/// Messages that may wait for the writer beside the bound in bytes.
const WAITING: usize = 512;
/// A message for the writer.
pub(super) struct Delivery {
    pub(super) source: Source,
    pub(super) subject: String,
    pub(super) partition: u32,
    /// What our producer says; without, the payload is one line of the published tool.
    pub(super) head: Option<Head>,
    /// The sequence in the stream; 0 where there is none.
    pub(super) sequence: u64,
    /// Lines without the last line feed.
    pub(super) payload: Bytes,
    /// Notified when the message is committed, or known to be so.
    pub(super) done: oneshot::Sender<()>,
    /// The writer may keep it until its predecessors are written; else it is given up, and its
    /// reader hands it over again.
    pub(super) may_wait_here: bool,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// A message that can never be written.
#[derive(Debug)]
pub(super) struct Refused;

/// What the broker tells of a message.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stored {
    /// The sequence in the stream; 0 where there is none.
    pub(super) sequence: u64,
    /// When the stream took it, in nanoseconds since 1970.
    pub(super) at_unix_ns: i128,
}

/// What messages must stay within.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most memory of messages that are not written.
    pub(super) window_bytes: u64,
    /// Most bytes of a message when it is unpacked.
    pub(super) unpacked_bytes: u64,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Receiver {
    prefix: Prefix,
    has_file: bool,
    limits: Limits,
    memory: Arc<Semaphore>,
    most_units: u32,
    may_wait: bool,
    heads: bool,
    queue: mpsc::Sender<Delivery>,
    metrics: Arc<Metrics>,
}

impl Receiver {
    /// An intake, and the writer's end of it. Without `heads` what a message says of itself is not
    /// used: there is nothing to compare it with.
    pub(super) fn new(
        prefix: Prefix,
        has_file: bool,
        limits: Limits,
        heads: bool,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::Receiver<Delivery>) {
        let (queue, deliveries) = mpsc::channel(WAITING);
        let units = limits.window_bytes as usize / PERMIT_BYTES;
        let most_units = u32::try_from(units).unwrap_or(u32::MAX >> 4).max(1);
        let memory = Arc::new(Semaphore::new(most_units as usize));
        let receiver = Self {
            prefix,
            has_file,
            limits,
            memory,
            most_units,
            may_wait: false,
            heads,
            queue,
            metrics,
        };
        (receiver, deliveries)
    }

    /// A part of the memory for one of several readers. What waits at the writer for the messages
    /// of another reader then never takes the memory that those need.
    pub(super) fn share(&self, readers: usize) -> Self {
        let most_units =
            (self.most_units / u32::try_from(readers).unwrap_or(u32::MAX).max(1)).max(1);
        let memory = Arc::new(Semaphore::new(most_units as usize));
        Self { memory, most_units, may_wait: true, ..self.clone() }
    }

    /// The same, for messages that come as they like: each is written.
    pub(super) fn without_heads(&self) -> Self {
        Self { heads: false, ..self.clone() }
    }

    /// Hands a message over, and gives what tells that it is committed; that fails when it will not
    /// be.
    ///
    /// It waits while the memory is in use, which stops the reader.
    pub(super) async fn offer(
        &self,
        subject: &str,
        headers: Option<&HeaderMap>,
        payload: Bytes,
        stored: Stored,
    ) -> Result<oneshot::Receiver<()>, Refused> {
        let (partition, source) = self
            .prefix
            .read(subject, self.has_file)
            .map_err(|error| self.refused(subject, &error))?;
        let refused = |reason: &dyn std::fmt::Display| self.refused(source.host(), reason);
        let head = headers
            .and_then(|headers| headers.get(HEADER))
            .map(|head| head.as_str().parse::<Head>());
        let head = head.transpose().map_err(|error| refused(&error))?;
        if let Some(head) = head.filter(|_| self.heads) {
            check_clock(&head, stored).map_err(|error| refused(&error))?;
        }
        let raw = head.and_then(|head| head.zstd);
        if let Some(raw) = raw.filter(|raw| *raw > self.limits.unpacked_bytes) {
            let most = self.limits.unpacked_bytes;
            let reason = format!(
                "unpacked it claims to have {raw} bytes, more than {most}: if that is right, raise \
                 SHIPPER_UNPACKED_LIMIT"
            );
            return Err(refused(&reason));
        }
        // Before anything is unpacked. One message is always let through, however large.
        let bytes = payload.len().max(raw.unwrap_or(0) as usize);
        let units = (bytes.div_ceil(PERMIT_BYTES) as u32).clamp(1, self.most_units);
        let permit = Arc::clone(&self.memory)
            .acquire_many_owned(units)
            .await
            .map_err(|error| refused(&error))?;
        let payload = match raw {
            None => payload,
            Some(raw) => unpack(&payload, raw as usize).map_err(|error| refused(&error))?,
        };
        let (done, receipt) = oneshot::channel();
        if !self.heads && head.is_some_and(|head| head.gap.is_some()) {
            // It has no lines.
            done.send(()).unwrap_or_default();
            return Ok(receipt);
        }
        let head = head.filter(|_| self.heads);
        let subject = subject.to_owned();
        let delivery = Delivery {
            source,
            subject,
            partition,
            head,
            sequence: stored.sequence,
            payload,
            done,
            may_wait_here: self.may_wait,
            _permit: permit,
        };
        // A writer that has ended drops what it is given, and the receipt says so.
        self.queue.send(delivery).await.unwrap_or_default();
        Ok(receipt)
    }

    fn refused(&self, host: &str, reason: &dyn std::fmt::Display) -> Refused {
        self.metrics.refuse(1, host, &reason.to_string());
        Refused
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// A history that is born in the future would make all that is shipped later look older, and
/// dropped as such. The clock is the broker's: one of ours that is wrong refuses nothing.
fn check_clock(head: &Head, stored: Stored) -> Result<(), String> {
    let ahead_ms = i128::from(head.generation.born_unix_ms()) - stored.at_unix_ns / 1_000_000;
    if stored.at_unix_ns == 0 || ahead_ms <= i128::from(MOST_AHEAD_MS) {
        return Ok(());
    }
    Err(format!(
        "its history begins {} s in the future: set the clock of that host",
        ahead_ms / 1_000
    ))
}

/// Unpacks a payload that says how large it is; a larger one is an error, and takes no more memory
/// than that.
fn unpack(packed: &[u8], bytes: usize) -> Result<Bytes, String> {
    let unpacked = zstd::bulk::decompress(packed, bytes).map_err(|error| error.to_string())?;
    if unpacked.len() != bytes {
        return Err(format!(
            "unpacked it has {} bytes, and claims to have {bytes}",
            unpacked.len()
        ));
    }
    Ok(Bytes::from(unpacked))
}
