//! A message as a handler sees it: the subject without its partition, and every way to settle it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::received::Received;
use super::work::{Taken, Work};
use crate::error::{Error, ErrorKind};
use crate::group::partition::split_partition;
use crate::order::{Event, Settlement};

/// A message that its handler has to settle: acknowledge, refuse or terminate.
///
/// While it is held, the member tells the broker that it is being worked on, and nothing newer of
/// its partition is handed out. Dropping it unsettled leaves it to be delivered again after the
/// consumer's `ack_wait`.
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

/// A message on its way to a handler, with the means to follow its run.
pub(crate) struct Job {
    pub(crate) message: Message,
    pub(crate) ticket: Arc<Ticket>,
}

impl Job {
    /// The next message whose turn has come, as [`Work::take`] has it.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub(crate) async fn next(work: &Arc<Work>, finished: Option<u64>) -> Option<Self> {
        let Taken { run, content, session } = work.take(finished).await?;
        let ticket = Ticket::new(work, run, &content, session);
        Some(Self { message: Message::new(content, Arc::clone(&ticket)), ticket })
    }
}

impl Ticket {
    pub(crate) fn new(
        work: &Arc<Work>,
        run: u64,
        content: &Received,
        session: Arc<CancellationToken>,
    ) -> Arc<Self> {
        Arc::new(Self {
            run,
            work: Arc::clone(work),
            reply: content.reply.clone(),
            settled: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            session,
        })
    }

    /// Claims the right to settle; the member hears of it before the broker does.
    fn settle(&self, event: Event<Box<Received>>) -> Result<(), Error> {
        if self.settled.swap(true, Ordering::AcqRel) {
            return Err(ErrorKind::AlreadySettled
                .with("the message was acknowledged, refused or terminated before"));
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
        sent.map_err(|error| {
            ErrorKind::Broker.caused("the acknowledgement could not be sent", error)
        })
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
        let verb = reason
            .map_or(Bytes::from_static(b"+TERM"), |reason| Bytes::from(format!("+TERM {reason}")));
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

impl Message {
    fn new(received: Box<Received>, ticket: Arc<Ticket>) -> Self {
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
    /// It grows along each key, so it is the fencing token for the handler's own store: write it
    /// with the effect, and refuse an effect whose token is not above the stored one. That holds
    /// even against a process that stood still while its pin went to another instance.
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

    /// Cancelled when this instance may no longer handle the message: its pin is lost, or its time
    /// to drain is over.
    ///
    /// An `async` handler is dropped then and needs not look; blocking work has to. The token is
    /// the caller's own: cancelling it tells nobody else.
    pub fn cancellation(&self) -> CancellationToken {
        self.ticket.session.child_token()
    }

    /// The message was handled: the broker may forget it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadySettled`], or [`ErrorKind::Broker`] when it could not be sent; it will
    /// be delivered again then, and is acknowledged again without a run if this instance still is
    /// the pinned one.
    pub async fn ack(&self) -> Result<(), Error> {
        self.ticket.ack().await
    }

    /// Acknowledges and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadySettled`]; [`ErrorKind::Timeout`] or [`ErrorKind::Broker`] when no
    /// confirmation came: the message counts as unhandled and may be delivered again.
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
        let request =
            ticket.work.client().request(ticket.reply.clone(), Bytes::from_static(b"+ACK"));
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

    /// The message could not be handled: deliver it again now. Nothing newer of its partition
    /// passes it.
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

    /// Tells the broker that the work goes on. The member does so by itself while it holds the
    /// message.
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
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::received::Meta;
    use super::*;
    use crate::order::{Delivery, FlowConfig};

    #[test]
    fn a_delayed_nak_speaks_nanoseconds() {
        assert_eq!(
            nak_verb(Some(Duration::from_millis(1))),
            Bytes::from_static(b"-NAK {\"delay\":1000000}")
        );
    }

    fn config() -> FlowConfig {
        FlowConfig {
            pinned_ttl: Duration::from_secs(60),
            redelivery_after: Duration::from_secs(60),
            max_ack_pending: None,
            buffer: 10,
            concurrency: 2,
            acks: true,
            dead_letter_after: None,
        }
    }

    fn delivery(stream_seq: u64) -> Event<Box<Received>> {
        let meta = Meta {
            stream_seq,
            consumer_seq: stream_seq,
            deliveries: 1,
            stored_at_ns: 0,
            pending: 0,
        };
        let (subject, reply) = (Subject::from("0.a"), Subject::from("$JS.ACK.S.c.1.1.1.1.1"));
        let content =
            Box::new(Received { subject, payload: "".into(), headers: None, reply, meta });
        let pin = Some("pin".into());
        Event::Delivered(Delivery {
            stream_seq,
            consumer_seq: stream_seq,
            deliveries: 1,
            queue: 0,
            pin,
            content,
        })
    }

    #[tokio::test]
    async fn a_defect_ends_the_member_even_where_a_message_is_dropped_by_a_panic() {
        let broker = natsway_testkit::TestBroker::builder().start().await;
        let work = Work::new(broker.connect().await, config());
        work.step_all([Event::Attach, delivery(1)]);
        work.step(Event::Position(crate::order::Position {
            question: 1,
            delivered_stream_seq: 1,
            delivered_consumer_seq: 1,
            ack_floor_stream_seq: 0,
            ack_pending: 1,
            pinned: Some("pin".into()),
        }));
        let Job { message, ticket } = Job::next(&work, None).await.expect("a message may start");
        let session = Arc::clone(&ticket.session);
        drop(ticket);
        // The next step finds the books wrong, and is taken by the destructor of the message, by a
        // panic of the handler.
        work.spoil();
        let handler = catch_unwind(AssertUnwindSafe(move || {
            let _message = message;
            panic!("the handler panics");
        }));
        assert!(handler.is_err());
        assert!(work.defect().expect("the step has panicked").contains("spoiled"));
        assert!(session.is_cancelled(), "handlers have lost their right to run");
        assert!(Job::next(&work, None).await.is_none());
        work.step(delivery(2));
        assert!(Job::next(&work, None).await.is_none());
    }
}
