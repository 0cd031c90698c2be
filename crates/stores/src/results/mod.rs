//! The results of stored requests: one entry each, which is written once.
//!
//! A gateway begins an entry before it stores the request, so that a status can be told from an id
//! that nobody gave out. A worker finishes it before it acknowledges the request. What was written
//! first stays: each write names the revision that it was decided on ([`step`] decides, purely), so
//! a worker that comes second finds the result of the first.

mod key;

use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use tracing::debug;

pub use self::key::ResultKey;
use crate::definitions::{RESULTS, stream_of};

/// How long the broker may take for one request.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a write that others overtake is decided anew: an entry changes twice in its life, and
/// may expire in between.
const WRITES: usize = 5;

/// What the bucket has of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing: it never had, or no longer has. The revision is that of the deletion, or 0.
    Nothing {
        /// What a write must name.
        revision: u64,
    },
    /// The request is stored, or is being stored, and has no result yet.
    Pending {
        /// What a write must name.
        revision: u64,
    },
    /// The result, as it was written.
    Done(Bytes),
}

/// What somebody wants of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It is to be there.
    Begin,
    /// It is to have a result.
    Finish,
}

/// What is to be done for a [`Wish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write, if the entry is still of this revision.
    Write {
        /// The revision; 0 where there must be none.
        revision: u64,
    },
    /// Nothing: another one was first, and that stays.
    Leave,
}

/// Decides about an entry that is there as `kept`.
pub fn step(wish: &Wish, kept: &Kept) -> Step {
    match (wish, kept) {
        (_, Kept::Nothing { revision }) | (Wish::Finish, Kept::Pending { revision }) => {
            Step::Write { revision: *revision }
        }
        (Wish::Begin, Kept::Pending { .. }) | (_, Kept::Done(_)) => Step::Leave,
    }
}

/// Whose result an entry has after [`Results::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// The one that was given.
    Written,
    /// An earlier one.
    WasThere,
}

/// Why the bucket could not be asked, or did not take an entry.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// There is no such bucket.
    #[error("there is no bucket {RESULTS:?}: run `apiproxy setup --results` as an administrator")]
    NoBucket,
    /// The broker does not answer, or does not let us ask.
    #[error("bucket {RESULTS:?} is not reached: {0}")]
    Unavailable(String),
    /// The bucket does not take it: it is full, say.
    #[error("bucket {RESULTS:?} refuses an entry: {0}")]
    Refused(String),
}

/// The bucket of the results, as one connection reaches it.
#[derive(Clone, Debug)]
pub struct Results {
    context: Context,
}

impl Results {
    /// Returns the bucket that `client` reaches.
    pub fn new(client: Client) -> Self {
        let mut context = jetstream::new(client);
        context.set_timeout(PATIENCE);
        Self { context }
    }

    /// Begins an entry, unless there is one.
    ///
    /// # Errors
    /// [`ResultsError`]; there may be an entry then.
    pub async fn begin(&self, key: &ResultKey) -> Result<(), ResultsError> {
        // Most are new, and need no look.
        match self.write(key, Bytes::new(), 0).await? {
            Written::Yes => Ok(()),
            Written::Overtaken => self.settle(key, &Wish::Begin, Bytes::new()).await.map(drop),
        }
    }

    /// Gives an entry its result, unless it has one.
    ///
    /// # Errors
    /// [`ResultsError`]; it may have this result then.
    pub async fn finish(&self, key: &ResultKey, result: Bytes) -> Result<Finished, ResultsError> {
        self.settle(key, &Wish::Finish, result).await
    }

    /// Looks an entry up.
    ///
    /// # Errors
    /// [`ResultsError`].
    pub async fn look(&self, key: &ResultKey) -> Result<Kept, ResultsError> {
        let stream = self.context.get_stream_no_info(stream_of(RESULTS)).await;
        let stream = stream.map_err(|error| ResultsError::Unavailable(error.to_string()))?;
        let found = stream.get_last_raw_message_by_subject(&key.subject()).await;
        let message = match found {
            Ok(message) => message,
            Err(error) => return missing(&error),
        };
        let revision = message.sequence;
        Ok(match (message.headers.get("KV-Operation"), message.payload) {
            (Some(_), _) => Kept::Nothing { revision },
            (None, payload) if payload.is_empty() => Kept::Pending { revision },
            (None, payload) => Kept::Done(payload),
        })
    }

    /// Hears when a worker says that the result is there. Whoever asks looks the entry up after
    /// this; news may be lost, so looks again now and then.
    ///
    /// # Errors
    /// [`ResultsError::Unavailable`].
    pub async fn news(&self, key: &ResultKey) -> Result<Subscriber, ResultsError> {
        let subscribed = self.context.client().subscribe(key.news_subject()).await;
        subscribed.map_err(|error| ResultsError::Unavailable(error.to_string()))
    }

    /// Says that the result is there, once it is. Nobody need hear it.
    pub async fn announce(&self, key: &ResultKey) {
        if let Err(error) = self.context.client().publish(key.news_subject(), Bytes::new()).await {
            debug!(%error, "a result is not announced");
        }
    }

    async fn settle(
        &self,
        key: &ResultKey,
        wish: &Wish,
        value: Bytes,
    ) -> Result<Finished, ResultsError> {
        for _ in 0..WRITES {
            let Step::Write { revision } = step(wish, &self.look(key).await?) else {
                return Ok(Finished::WasThere);
            };
            if let Written::Yes = self.write(key, value.clone(), revision).await? {
                return Ok(Finished::Written);
            }
        }
        Err(ResultsError::Unavailable("others write the same entry".to_owned()))
    }

    async fn write(
        &self,
        key: &ResultKey,
        value: Bytes,
        revision: u64,
    ) -> Result<Written, ResultsError> {
        let message =
            PublishMessage::build().payload(value).expected_last_subject_sequence(revision);
        let acknowledged = match self.context.send_publish(key.subject(), message).await {
            Ok(sent) => sent.await.map(drop),
            Err(error) => Err(error),
        };
        let Err(error) = acknowledged else { return Ok(Written::Yes) };
        match error.kind() {
            PublishErrorKind::WrongLastSequence => Ok(Written::Overtaken),
            PublishErrorKind::StreamNotFound => Err(ResultsError::NoBucket),
            PublishErrorKind::Other | PublishErrorKind::MaxPayloadExceeded => {
                Err(ResultsError::Refused(error.to_string()))
            }
            _ => Err(ResultsError::Unavailable(error.to_string())),
        }
    }
}

/// What became of a write.
enum Written {
    Yes,
    /// The entry is of another revision.
    Overtaken,
}

/// Whether there is no entry, or no answer.
fn missing(error: &jetstream::stream::LastRawMessageError) -> Result<Kept, ResultsError> {
    match error.kind() {
        LastRawMessageErrorKind::NoMessageFound => Ok(Kept::Nothing { revision: 0 }),
        LastRawMessageErrorKind::JetStream(found)
            if found.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND =>
        {
            Err(ResultsError::NoBucket)
        }
        _ => Err(ResultsError::Unavailable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bucket of one entry, and who uses it: each has looked, and writes by what it saw.
    #[derive(Default)]
    struct Model {
        revision: u64,
        kept: Option<Option<u8>>,
        results_seen: Vec<u8>,
    }

    impl Model {
        fn look(&self) -> Kept {
            match self.kept {
                None => Kept::Nothing { revision: 0 },
                Some(None) => Kept::Pending { revision: self.revision },
                Some(Some(result)) => Kept::Done(vec![result].into()),
            }
        }

        /// A write by what was seen; refused where the entry has changed since.
        fn write(&mut self, step: Step, value: Option<u8>) {
            let now = self.kept.map_or(0, |_| self.revision);
            match step {
                Step::Write { revision } if revision == now => {
                    self.revision += 1;
                    self.kept = Some(value);
                    self.results_seen.extend(value);
                }
                _ => {}
            }
        }
    }

    /// Everybody's looks and writes in every order: a gateway that begins, two workers that finish.
    #[test]
    fn whoever_is_first_stays_in_every_order_of_looks_and_writes() {
        let wishes = [(Wish::Begin, None), (Wish::Finish, Some(1)), (Wish::Finish, Some(2))];
        let mut orders = 0;
        for order in 0..6_usize.pow(6) {
            // Each of six turns is somebody's next move: a look, then a write.
            let turns: Vec<usize> = (0..6_u32).map(|turn| order / 6_usize.pow(turn) % 3).collect();
            if (0..3).any(|who| turns.iter().filter(|turn| **turn == who).count() != 2) {
                continue;
            }
            orders += 1;
            let (mut model, mut seen) = (Model::default(), [None, None, None]);
            for who in turns {
                let (wish, value) = &wishes[who];
                match seen[who].take() {
                    None => seen[who] = Some(step(wish, &model.look())),
                    Some(decided) => model.write(decided, *value),
                }
            }
            assert!(model.results_seen.len() <= 1, "a result was replaced");
            // Whoever was overtaken decides anew, and then there is a result that stays.
            for (wish, value) in &wishes[1..] {
                let decided = step(wish, &model.look());
                model.write(decided, *value);
            }
            assert_eq!(model.results_seen.len(), 1);
            let begun = step(&Wish::Begin, &model.look());
            assert_eq!(begun, Step::Leave, "a gateway that comes late leaves the result alone");
        }
        assert!(orders >= 90, "{orders}");
    }
}
