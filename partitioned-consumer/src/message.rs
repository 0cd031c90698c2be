//! A message as a handler sees it: the subject without its partition, and every way to settle it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind};
use crate::flow::{Event, Settlement};
use crate::work::Work;

/// A message as it came from the consumer, before anybody may handle it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) subject: Subject,
    pub(crate) payload: Bytes,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) reply: Subject,
    pub(crate) meta: Meta,
}

/// Where a message comes from, read from its acknowledgement subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) stream_seq: u64,
    pub(crate) consumer_seq: u64,
    pub(crate) deliveries: u64,
    /// Nanoseconds since 1970, when the stream stored it.
    pub(crate) stored_at_ns: i64,
    pub(crate) pending: u64,
}

impl Meta {
    /// Reads `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]`.
    pub(crate) fn parse(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        // Every message passes here: one look at each byte, no list of parts.
        let dots = rest.bytes().filter(|byte| *byte == b'.').count();
        let names = match dots {
            6 => 2,
            8.. => 4,
            _ => return None,
        };
        let mut parts = rest.as_bytes().split(|byte| *byte == b'.').skip(names);
        let mut number = || parts.next().and_then(decimal);
        Some(Self {
            deliveries: number()?,
            stream_seq: number()?,
            consumer_seq: number()?,
            stored_at_ns: number()?.try_into().ok()?,
            pending: number()?,
        })
    }
}

/// A number as the broker writes it: digits only.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// A message that its handler has to settle: acknowledge, refuse or terminate.
///
/// While it is held, the member tells the broker that it is being worked on, and nothing newer of its partition is
/// handed out. Dropping it unsettled leaves it to be delivered again after the consumer's `ack_wait`.
pub struct Message {
    received: Box<Received>,
    partition: Option<u32>,
    ticket: Arc<Ticket>,
}

/// The right to handle one message; the run is over when the last holder drops it.
pub(crate) struct Ticket {
    pub(crate) run: u64,
    pub(crate) work: Arc<Work>,
    pub(crate) reply: Subject,
    pub(crate) settled: AtomicBool,
    /// The end of the run was told already.
    pub(crate) finished: AtomicBool,
    pub(crate) session: Arc<CancellationToken>,
}

impl Ticket {
    /// Claims the right to settle; the member hears of it before the broker does.
    fn settle(&self, event: Event<Box<Received>>) -> Result<(), Error> {
        if self.settled.swap(true, Ordering::AcqRel) {
            return Err(
                ErrorKind::AlreadySettled.with("the message was acknowledged, refused or terminated before")
            );
        }
        self.work.settle(self.run, event);
        Ok(())
    }

    fn settled_as(&self, settlement: Settlement) -> Event<Box<Received>> {
        Event::Settled { run: self.run, settlement }
    }

    async fn publish(&self, verb: Bytes) -> Result<(), Error> {
        if !self.work.acks() {
            return Ok(());
        }
        let sent = self.work.client().publish(self.reply.clone(), verb).await;
        sent.map_err(|error| ErrorKind::Broker.caused("the acknowledgement could not be sent", error))
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    pub(crate) async fn ack(&self) -> Result<(), Error> {
        self.settle(self.settled_as(Settlement::Done))?;
        self.publish(Bytes::from_static(b"+ACK")).await
    }

    pub(crate) async fn nak(&self, delay: Option<Duration>) -> Result<(), Error> {
        self.settle(self.settled_as(Settlement::Again))?;
        self.publish(nak_verb(delay)).await
    }

    pub(crate) async fn term(&self, reason: Option<&str>) -> Result<(), Error> {
        self.settle(self.settled_as(Settlement::Done))?;
        let verb =
            reason.map_or(Bytes::from_static(b"+TERM"), |reason| Bytes::from(format!("+TERM {reason}")));
        self.publish(verb).await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !*self.finished.get_mut() {
            self.work.finish(self.run);
        }
    }
}

pub(crate) fn nak_verb(delay: Option<Duration>) -> Bytes {
    match delay {
        None => Bytes::from_static(b"-NAK"),
        Some(delay) => Bytes::from(format!("-NAK {{\"delay\":{}}}", delay.as_nanos())),
    }
}

/// Splits `7.orders.new` into `(Some(7), "orders.new")`; a subject without a dot stays whole.
pub(crate) fn split_partition(subject: &str) -> (Option<u32>, &str) {
    match subject.split_once('.') {
        Some((partition, rest)) => (partition.parse().ok(), rest),
        None => (None, subject),
    }
}

impl Message {
    pub(crate) fn new(received: Box<Received>, ticket: Arc<Ticket>) -> Self {
        let (partition, _) = split_partition(&received.subject);
        Self { partition, received, ticket }
    }

    /// The subject as it was published, without the partition.
    pub fn subject(&self) -> &str {
        split_partition(&self.received.subject).1
    }

    /// The partition, counted from 0; `None` when the subject does not begin with a number.
    pub fn partition(&self) -> Option<u32> {
        self.partition
    }

    /// The body.
    pub fn payload(&self) -> &Bytes {
        &self.received.payload
    }

    /// The headers, the pin's `Nats-Pin-Id` among them.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.received.headers.as_ref()
    }

    /// The acknowledgement subject.
    pub fn reply(&self) -> &str {
        &self.ticket.reply
    }

    /// The message's sequence in the stream that the member consumes.
    ///
    /// It grows along each key, so it is the fencing token for the handler's own store: write it with the effect, and
    /// refuse an effect whose token is not above the stored one. That holds even against a process that stood still
    /// while its pin went to another instance.
    pub fn fencing_token(&self) -> u64 {
        self.received.meta.stream_seq
    }

    /// The message's sequence in the stream that the member consumes.
    pub fn stream_sequence(&self) -> u64 {
        self.received.meta.stream_seq
    }

    /// Its sequence among the consumer's deliveries.
    pub fn consumer_sequence(&self) -> u64 {
        self.received.meta.consumer_seq
    }

    /// How often it was delivered, this time included.
    pub fn deliveries(&self) -> u64 {
        self.received.meta.deliveries
    }

    /// How many messages waited behind it when it was delivered.
    pub fn pending(&self) -> u64 {
        self.received.meta.pending
    }

    /// When the stream stored it, in nanoseconds since 1970.
    pub fn stored_at_unix_ns(&self) -> i64 {
        self.received.meta.stored_at_ns
    }

    /// Cancelled when this instance may no longer handle the message: its pin is lost, or its time to drain is over.
    ///
    /// An `async` handler is dropped then and needs not look; blocking work has to. The token is the caller's own:
    /// cancelling it tells nobody else.
    pub fn cancellation(&self) -> CancellationToken {
        self.ticket.session.child_token()
    }

    /// The message was handled: the broker may forget it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadySettled`], or [`ErrorKind::Broker`] when it could not be sent; it will be delivered again
    /// then, and is acknowledged again without a run if this instance still is the pinned one.
    pub async fn ack(&self) -> Result<(), Error> {
        self.ticket.ack().await
    }

    /// Acknowledges and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadySettled`]; [`ErrorKind::Timeout`] or [`ErrorKind::Broker`] when no confirmation came: the
    /// message counts as unhandled and may be delivered again.
    ///
    /// # Cancel safety
    /// When the future is dropped, the acknowledgement may or may not have been taken.
    pub async fn double_ack(&self) -> Result<(), Error> {
        let ticket = &self.ticket;
        let done = ticket.settled_as(Settlement::Done);
        ticket.settle(Event::Settling { run: ticket.run })?;
        if !ticket.work.acks() {
            ticket.work.settle(ticket.run, done);
            return Ok(());
        }
        let request = ticket.work.client().request(ticket.reply.clone(), Bytes::from_static(b"+ACK"));
        match request.await {
            Ok(_) => {
                ticket.work.settle(ticket.run, done);
                Ok(())
            }
            Err(error) => {
                let timeout = error.kind() == async_nats::RequestErrorKind::TimedOut;
                let kind = if timeout { ErrorKind::Timeout } else { ErrorKind::Broker };
                Err(kind.caused("the broker did not confirm the acknowledgement", error))
            }
        }
    }

    /// The message could not be handled: deliver it again now. Nothing newer of its partition passes it.
    ///
    /// # Errors
    /// As [`Message::ack`].
    pub async fn nak(&self) -> Result<(), Error> {
        self.ticket.nak(None).await
    }

    /// Delivers the message again after `delay`. Its partition waits for it.
    ///
    /// # Errors
    /// As [`Message::ack`].
    pub async fn nak_with_delay(&self, delay: Duration) -> Result<(), Error> {
        self.ticket.nak(Some(delay)).await
    }

    /// Tells the broker that the work goes on. The member does so by itself while it holds the message.
    ///
    /// # Errors
    /// [`ErrorKind::Broker`] when it could not be sent.
    pub async fn in_progress(&self) -> Result<(), Error> {
        self.ticket.publish(Bytes::from_static(b"+WPI")).await
    }

    /// Gives the message up: it will not be delivered again.
    ///
    /// # Errors
    /// As [`Message::ack`].
    pub async fn term(&self) -> Result<(), Error> {
        self.ticket.term(None).await
    }

    /// Gives the message up, with a reason for the broker's advisory.
    ///
    /// # Errors
    /// As [`Message::ack`].
    pub async fn term_with_reason(&self, reason: &str) -> Result<(), Error> {
        self.ticket.term(Some(reason)).await
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("subject", &self.subject())
            .field("partition", &self.partition)
            .field("stream_sequence", &self.received.meta.stream_seq)
            .field("deliveries", &self.received.meta.deliveries)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_acknowledgement_subject_are_read() {
        let meta = Meta { deliveries: 2, stream_seq: 7, consumer_seq: 9, stored_at_ns: 1_700, pending: 3 };
        assert_eq!(Meta::parse("$JS.ACK.S.c.2.7.9.1700.3"), Some(meta));
        assert_eq!(Meta::parse("$JS.ACK.hub.hash.S.c.2.7.9.1700.3.token"), Some(meta));
        assert_eq!(Meta::parse("$JS.ACK.hub.hash.S.c.2.7.9.1700.3"), Some(meta));
        for other in
            ["_INBOX.x", "$JS.ACK.S.c.2.7.9.x.3", "$JS.ACK.S.c.2.7..1700.3", "$JS.ACK.S.c.2.7.9.1700"]
        {
            assert_eq!(Meta::parse(other), None, "{other}");
        }
        assert_eq!(Meta::parse("$JS.ACK.S.c.2.18446744073709551616.9.1700.3"), None, "too large a number");
    }

    #[test]
    fn the_partition_leaves_the_subject() {
        assert_eq!(split_partition("7.orders.new"), (Some(7), "orders.new"));
        assert_eq!(split_partition("orders.new"), (None, "new"));
        assert_eq!(split_partition("orders"), (None, "orders"));
    }

    #[test]
    fn a_delayed_nak_speaks_nanoseconds() {
        assert_eq!(nak_verb(Some(Duration::from_millis(1))), Bytes::from_static(b"-NAK {\"delay\":1000000}"));
    }
}
