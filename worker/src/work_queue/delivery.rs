//! One stored request, from its delivery to its acknowledgement.

use std::time::{Duration, Instant};

use async_nats::Subject;
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use natsway_stores::results::{Finished, Kept, ResultKey, ResultsError};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::verdict::{Delivery, Verdict, not_kept, unreadable};
use super::{Work, WorkCounts};
use crate::admission::Start;

/// The header by which a stream knows a message again.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Between two tries to keep a result.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a worker tries to keep a result; then the request is left to be delivered again.
const KEEP_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a word about a message may wait for a session. The broker delivers it again if it hears
/// nothing.
const WORD_TIMEOUT: Duration = Duration::from_secs(30);

/// After this a request is delivered again whose bucket cannot be reached.
const NO_BUCKET_PAUSE: Duration = Duration::from_secs(5);

/// A request as its stream delivers it.
#[derive(Debug)]
pub(super) struct Stored {
    payload: Bytes,
    /// Where it is acknowledged.
    reply: Subject,
    /// None of a message that no durable route has stored.
    key: Option<ResultKey>,
    number: u64,
    /// How long the broker waits for a word of us.
    ack_wait: Duration,
}

impl Stored {
    /// Reads what a consumer delivers; `None` if it cannot be acknowledged.
    pub(super) fn read(message: &Message, ack_wait: Duration) -> Option<Self> {
        let number = u64::try_from(message.info().ok()?.delivered).ok()?;
        let id = message.headers.as_ref().and_then(|headers| headers.get(MESSAGE_ID));
        Some(Self {
            payload: message.payload.clone(),
            reply: message.reply.clone()?,
            key: id.and_then(|id| ResultKey::of_message(id.as_str())),
            number,
            ack_wait,
        })
    }
}

impl<F: Start> Work<F> {
    /// Has a request be handled and its result kept, and says so to its stream.
    pub(super) async fn settle(&self, stored: Stored) {
        let Some(key) = stored.key.clone() else {
            warn!(stream = self.config.stream, "a message of no route is not delivered again");
            return self.say(&stored, AckKind::Term).await;
        };
        if self.leaving.is_cancelled() {
            return self.say(&stored, AckKind::Nak(None)).await;
        }
        let word = {
            let mut settled = std::pin::pin!(self.settled(&stored, &key));
            loop {
                match tokio::time::timeout(stored.ack_wait / 3, &mut settled).await {
                    Ok(word) => break word,
                    Err(_) => self.say(&stored, AckKind::Progress).await,
                }
            }
        };
        self.say(&stored, word).await;
    }

    /// What is to be said of a request, once it is known.
    async fn settled(&self, stored: &Stored, key: &ResultKey) -> AckKind {
        // Its acknowledgement may have been lost.
        let counts = &self.config.counts;
        WorkCounts::count(&counts.taken);
        match self.results().await.look(key).await {
            Ok(Kept::Done(_)) => {
                WorkCounts::count(&counts.second);
                return AckKind::Ack;
            }
            Ok(Kept::Pending { .. } | Kept::Nothing { .. }) => {}
            Err(error) => {
                warn!(%key, %error, "a request is not run whose result cannot be kept");
                return AckKind::Nak(Some(NO_BUCKET_PAUSE));
            }
        }
        let delivery = Delivery { number: stored.number, most: self.config.deliveries };
        let verdict = match delivery.before_running() {
            Some(given_up) => {
                WorkCounts::count(&counts.given_up);
                Verdict::Keep(given_up)
            }
            None => match self.run_handler(&stored.payload).await {
                Ok(answer) => delivery.judge(answer),
                Err(reason) => Verdict::Keep(unreadable(&reason)),
            },
        };
        match verdict {
            Verdict::Keep(result) => self.keep(key, result).await,
            Verdict::TryAgain { after } => {
                WorkCounts::count(&counts.again);
                AckKind::Nak(Some(after).filter(|after| !after.is_zero()))
            }
        }
    }

    /// What the handler answers; nothing if it was dropped.
    async fn run_handler(&self, payload: &Bytes) -> Result<Option<Bytes>, String> {
        let (answer, answered) = oneshot::channel();
        self.admission.accept_stored(payload, answer, self.config.result_bytes)?;
        Ok(answered.await.ok())
    }

    /// Keeps a result, unless there is one.
    async fn keep(&self, key: &ResultKey, mut result: Bytes) -> AckKind {
        let until = Instant::now() + KEEP_TIMEOUT;
        loop {
            let results = self.results().await;
            let error = match results.finish(key, result.clone()).await {
                Ok(finished) => {
                    WorkCounts::count(match finished {
                        Finished::Written => &self.config.counts.kept,
                        Finished::WasThere => &self.config.counts.second,
                    });
                    results.announce(key).await;
                    return AckKind::Ack;
                }
                Err(error) => error,
            };
            if Instant::now() >= until {
                warn!(%key, %error, "a result is not kept, and its request delivered again");
                return AckKind::Nak(Some(NO_BUCKET_PAUSE));
            }
            if let ResultsError::Refused(reason) = error {
                // It may be too long for this bucket, and a word about it is not.
                result = not_kept(&reason);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Says something of a message to its stream, by the newest session.
    async fn say(&self, stored: &Stored, word: AckKind) {
        let outbox = &self.admission.context.outbox;
        let deadline = Instant::now() + WORD_TIMEOUT;
        if let Err(error) = outbox.send(stored.reply.clone(), word.into(), deadline).await {
            debug!(?error, ?word, "a word to the stream is not sent");
        }
    }
}
