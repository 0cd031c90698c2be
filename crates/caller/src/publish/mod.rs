//! How a message gets into a stream once, or it is said that it may not be there.
//!
//! Every attempt sends the same bytes with the same id, so that a stream that has the message
//! already says so instead of storing it twice: what is repeated after a lost acknowledgement is
//! safe within the stream's duplicate window.

mod ack;

use std::time::{Duration, Instant};

use natsway_routes::table::Route;

pub use self::ack::{PublishError, Stored, read_ack};
use crate::attempt::{Hop, Outgoing};
use crate::connection::AdmissionError;
use crate::counter::Counter;
use crate::dispatch::Dispatcher;
use crate::encode::{Sending, Stamped};
use crate::outbound::{EncodeError, Outbound};
use crate::pending::ReplyPolicy;
use crate::route_view::Ledger;

/// The header by which a stream knows a message again.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// The header that has another stream refuse a message.
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";

/// How long the first attempt waits for its acknowledgement; each further one waits twice as long.
/// A stream of three copies takes some milliseconds, and one without a leader never answers.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
/// The shortest pause before another attempt.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// The longest: a stream that has a leader again is found soon.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A message for a stream.
#[derive(Clone, Copy, Debug)]
pub struct Publication<'p> {
    /// Its route, for the codec.
    pub route: &'p Route,
    /// Where to.
    pub subject: &'p str,
    /// By what the stream knows it again.
    pub message_id: &'p str,
    /// The stream that is to store it, if that matters.
    pub expect_stream: Option<&'p str>,
    /// When no acknowledgement is waited for any more.
    pub deadline: Instant,
}

/// Why a message is not known to be stored.
#[derive(Debug)]
pub enum PublishFailure<E> {
    /// Its sender does not let it go: nothing that its route takes can be made of it.
    Sender(E),
    /// It is above the wire's limits.
    Unencodable(natsway_wire::Error),
    /// The connection does not take it.
    NotAdmitted(AdmissionError),
    /// No attempt was acknowledged.
    Failed {
        /// Why the last one was not.
        error: PublishError,
        /// Whether it may be in the stream all the same, by any attempt.
        may_be_stored: bool,
    },
}

/// What one thread's publications come to.
#[derive(Debug, Default)]
pub struct PublishCounts {
    /// Messages that were stored.
    pub stored: Counter,
    /// Messages that the stream had already.
    pub duplicates: Counter,
    /// Attempts after a message's first.
    pub repeats: Counter,
    failures: [Counter; PublishError::ALL.len()],
}

impl PublishCounts {
    /// Returns how many attempts ended so.
    pub fn failures(&self, error: PublishError) -> u64 {
        self.failures[error as usize].get()
    }
}

/// Decides about another attempt.
#[derive(Debug, Default)]
struct Attempts {
    made: u32,
    may_be_stored: bool,
}

impl Attempts {
    /// Returns until when the next attempt waits for its acknowledgement.
    fn until(&self, now: Instant, deadline: Instant) -> Instant {
        deadline.min(now + FIRST_PATIENCE * 2_u32.saturating_pow(self.made.min(8)))
    }

    /// Takes note of a failed attempt; returns the pause before the next one, if there is one.
    fn after(&mut self, error: PublishError, now: Instant, deadline: Instant) -> Option<Duration> {
        self.may_be_stored |= error.may_be_stored();
        let pause = (SHORTEST_PAUSE * 2_u32.pow(self.made.min(8))).min(LONGEST_PAUSE);
        self.made += 1;
        (error.is_passing() && now + pause < deadline).then_some(pause)
    }
}

impl<L: Ledger> Dispatcher<L> {
    /// Publishes a message until a stream has acknowledged it, or its deadline has come. While
    /// there is no connection to the broker, it waits for the next one.
    ///
    /// # Errors
    /// [`PublishFailure`].
    ///
    /// # Cancel safety
    /// When the future is dropped, nobody waits any more; the message may be stored.
    pub async fn publish<O: Outbound<Route = L::Route>>(
        &self,
        outbound: &mut O,
        publication: Publication<'_>,
    ) -> Result<Stored, PublishFailure<O::Error>> {
        let counts = &self.counts().publish;
        let mut attempts = Attempts::default();
        let mut message = None;
        loop {
            let attempt = self.attempt(outbound, publication, &attempts, &mut message).await?;
            let error = match attempt {
                Ok(stored) => {
                    // After an attempt of unknown end, the first message may be that attempt's.
                    let duplicate = stored.duplicate && !attempts.may_be_stored;
                    match duplicate {
                        true => counts.duplicates.inc(),
                        false => counts.stored.inc(),
                    }
                    return Ok(Stored { duplicate, ..stored });
                }
                Err(error) => error,
            };
            counts.failures[error as usize].inc();
            let Some(pause) = attempts.after(error, Instant::now(), publication.deadline) else {
                let may_be_stored = attempts.may_be_stored;
                return Err(PublishFailure::Failed { error, may_be_stored });
            };
            counts.repeats.inc();
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends the message once.
    async fn attempt<O: Outbound<Route = L::Route>>(
        &self,
        outbound: &mut O,
        publication: Publication<'_>,
        attempts: &Attempts,
        message: &mut Option<Stamped>,
    ) -> Result<Result<Stored, PublishError>, PublishFailure<O::Error>> {
        let Publication { route, subject, deadline, .. } = publication;
        let pool = self.pools().envelope();
        // A caller who sends no second time is served better by an answer that comes late than by
        // none, so this waits longer than a request does. What waits is counted.
        if tokio::time::timeout_at(deadline.into(), pool.connected()).await.is_err() {
            return Ok(Err(PublishError::NotConnected));
        }
        let Some(connection) = pool.connection() else {
            return Ok(Err(PublishError::NotConnected));
        };
        let (broker, resends) = (connection.address(), attempts.made);
        let trace = outbound.begin_attempt(Hop { subject, version: None, broker, resends });
        let message = match message {
            Some(message) => &*message,
            // Once: a repeat is the same message.
            none => {
                let encoded = outbound.encode(route, Sending::NEVER, trace.fields.as_ref(), &[]);
                let encoded = encoded.map_err(|error| match error {
                    EncodeError::Wire(error) => PublishFailure::Unencodable(error),
                    EncodeError::Sender(error) => PublishFailure::Sender(error),
                })?;
                &*none.insert(for_stream(encoded.first(), publication))
            }
        };
        let bytes = message.bytes();
        connection.admit(bytes).map_err(PublishFailure::NotAdmitted)?;
        let outgoing = Outgoing {
            subject: subject.into(),
            payload: message.payload.clone(),
            headers: message.headers.clone(),
            offer_bytes: 0,
            bytes,
            policy: ReplyPolicy { signals: false, cancel: false, repeatable: true },
            deadline: attempts.until(Instant::now(), deadline),
            accept_by: None,
            version: None,
        };
        let answer = connection.call(outgoing, || false).await;
        outbound.end_attempt(&answer);
        Ok(ack::read(&answer))
    }
}

/// Has a message say to its stream which one it is.
fn for_stream(message: Stamped, publication: Publication<'_>) -> Stamped {
    let mut headers = message.headers.unwrap_or_default();
    headers.insert(MESSAGE_ID, publication.message_id);
    if let Some(stream) = publication.expect_stream {
        headers.insert(EXPECTED_STREAM, stream);
    }
    Stamped { payload: message.payload, headers: Some(headers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[test]
    fn what_passes_is_tried_again_until_the_deadline() {
        let (start, mut attempts) = (Instant::now(), Attempts::default());
        let mut now = start;
        while let Some(pause) = attempts.after(PublishError::NoStream, now, start + DEADLINE) {
            assert!((SHORTEST_PAUSE..=LONGEST_PAUSE).contains(&pause), "{pause:?}");
            now += pause;
        }
        assert!(now + LONGEST_PAUSE >= start + DEADLINE && now < start + DEADLINE);
        assert!(!attempts.may_be_stored, "nobody was there to store it");
    }

    #[test]
    fn a_refusal_is_final_and_a_lost_ack_is_remembered() {
        let (now, mut attempts) = (Instant::now(), Attempts::default());
        let deadline = now + DEADLINE;
        assert!(attempts.after(PublishError::NotAcknowledged, now, deadline).is_some());
        assert_eq!(attempts.after(PublishError::StreamFull, now, deadline), None);
        assert!(attempts.may_be_stored, "the first attempt may have stored it");
    }

    #[test]
    fn attempts_wait_longer_each_time_and_never_beyond_the_deadline() {
        let (now, mut attempts) = (Instant::now(), Attempts::default());
        let deadline = now + DEADLINE;
        let mut waits = Vec::new();
        for _ in 0..4 {
            waits.push((attempts.until(now, deadline) - now).as_secs());
            attempts.after(PublishError::NotAcknowledged, now, deadline);
        }
        assert_eq!(waits, [1, 2, 4, 5]);
    }
}
