//! The way from a reader to the writer, bounded in bytes.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::error;

use super::status::Figures;
use crate::shipper::head::{HEADER, Head};
use crate::shipper::name::{Prefix, Source};

/// Memory is handed out in units of this many bytes.
const PERMIT_BYTES: usize = 1024;
/// Messages that may wait for the writer beside the bound in bytes.
const WAITING: usize = 512;
/// Larger than any payload may be when unpacked: a message that claims more is not unpacked.
const MOST_UNPACKED: u64 = 256 << 20;

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
    /// Told when the message is committed, or known to be so.
    pub(super) done: oneshot::Sender<()>,
    /// The writer may keep it until its predecessors are written; else it is given up, and its reader hands it over again.
    pub(super) may_wait_here: bool,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// A message that can never be written.
#[derive(Debug)]
pub(super) struct Refused;

/// See the module.
#[derive(Clone)]
pub(super) struct Intake {
    prefix: Prefix,
    has_file: bool,
    memory: Arc<Semaphore>,
    most_units: u32,
    may_wait: bool,
    heads: bool,
    queue: mpsc::Sender<Delivery>,
    figures: Arc<Figures>,
}

impl Intake {
    /// An intake, and the writer's end of it. Without `heads` what a message says of itself is not used: there is nothing to
    /// compare it with.
    pub(super) fn new(
        prefix: Prefix,
        has_file: bool,
        window_bytes: u64,
        heads: bool,
        figures: Arc<Figures>,
    ) -> (Self, mpsc::Receiver<Delivery>) {
        let (queue, deliveries) = mpsc::channel(WAITING);
        let most_units = u32::try_from(window_bytes as usize / PERMIT_BYTES).unwrap_or(u32::MAX >> 4).max(1);
        let memory = Arc::new(Semaphore::new(most_units as usize));
        (Self { prefix, has_file, memory, most_units, may_wait: false, heads, queue, figures }, deliveries)
    }

    /// A part of the memory for one of several readers. What waits at the writer for the messages of another reader then never
    /// takes the memory that those need.
    pub(super) fn share(&self, readers: usize) -> Self {
        let most_units = (self.most_units / u32::try_from(readers).unwrap_or(u32::MAX).max(1)).max(1);
        let memory = Arc::new(Semaphore::new(most_units as usize));
        Self { memory, most_units, may_wait: true, ..self.clone() }
    }

    /// The same, for messages that come as they like: each is written.
    pub(super) fn without_heads(&self) -> Self {
        Self { heads: false, ..self.clone() }
    }

    /// Hands a message over, and gives what tells that it is committed; that fails when it will not be.
    ///
    /// It waits while the memory is in use, which stops the reader.
    pub(super) async fn offer(
        &self,
        subject: &str,
        headers: Option<&HeaderMap>,
        payload: Bytes,
        sequence: u64,
    ) -> Result<oneshot::Receiver<()>, Refused> {
        let refused = |reason: &dyn std::fmt::Display| {
            self.figures.refused.add(1);
            error!(subject, %reason, "a message that can never be written is dropped");
            Refused
        };
        let (partition, source) =
            self.prefix.read(subject, self.has_file).map_err(|error| refused(&error))?;
        let head = headers.and_then(|headers| headers.get(HEADER)).map(|head| head.as_str().parse::<Head>());
        let head = head.transpose().map_err(|error| refused(&error))?;
        let payload = match head.and_then(|head| head.zstd) {
            None => payload,
            Some(raw) if raw > MOST_UNPACKED => {
                return Err(refused(&"it claims to be larger than any message"));
            }
            Some(raw) => {
                let unpacked =
                    zstd::bulk::decompress(&payload, raw as usize).map_err(|error| refused(&error))?;
                Bytes::from(unpacked)
            }
        };
        let (done, receipt) = oneshot::channel();
        if !self.heads && head.is_some_and(|head| head.gap.is_some()) {
            // It has no lines.
            done.send(()).unwrap_or_default();
            return Ok(receipt);
        }
        let head = head.filter(|_| self.heads);
        // One message is always let through, however large.
        let units = (payload.len().div_ceil(PERMIT_BYTES) as u32).clamp(1, self.most_units);
        let permit =
            Arc::clone(&self.memory).acquire_many_owned(units).await.map_err(|error| refused(&error))?;
        let subject = subject.to_owned();
        let delivery = Delivery {
            source,
            subject,
            partition,
            head,
            sequence,
            payload,
            done,
            may_wait_here: self.may_wait,
            _permit: permit,
        };
        // A writer that has ended drops what it is given, and the receipt says so.
        self.queue.send(delivery).await.unwrap_or_default();
        Ok(receipt)
    }

    pub(super) fn figures(&self) -> &Figures {
        &self.figures
    }
}
