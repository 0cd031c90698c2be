//! The stream between producers and consumers: found, or made by whoever comes first.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use natsway_stores::definitions;

use super::name::Prefix;

/// A stream that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// It exists for something else.
    #[error(
        "stream {stream:?} does not hold {subjects:?}: name another with SHIPPER_STREAM, or add \
         the subjects to it"
    )]
    OtherSubjects {
        /// The stream.
        stream: String,
        /// What it should hold.
        subjects: String,
    },
    /// The broker did not give or make it.
    #[error(transparent)]
    Broker(#[from] natsway_stores::StoreError),
}

/// What a stream is made with when it does not exist.
#[derive(Clone, Debug)]
pub struct StreamPlan {
    /// Its name.
    pub name: String,
    /// Whose subjects it holds.
    pub prefix: Prefix,
    /// Bytes above which producers have to wait; `None` for no limit but the broker's.
    pub max_bytes: Option<u64>,
    /// How long messages are kept for clusters that come later; `None` for ever.
    pub max_age: Option<Duration>,
    /// Copies in a cluster of brokers.
    pub replicas: usize,
}

impl StreamPlan {
    fn config(&self) -> stream::Config {
        let prefix = self.prefix.to_string();
        definitions::lines(&self.name, &prefix, self.max_bytes, self.max_age, self.replicas)
    }

    /// The stream, made now if need be.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn open(&self, context: &jetstream::Context) -> Result<stream::Stream, StreamError> {
        let stream = natsway_stores::open_or_make_stream(context, self.config()).await?;
        let everything = self.prefix.everything();
        let held = &stream.cached_info().config.subjects;
        if held
            .iter()
            .any(|subject| natsway_partitioned_consumer::subject_matches(subject, &everything))
        {
            return Ok(stream);
        }
        Err(StreamError::OtherSubjects { stream: self.name.clone(), subjects: everything })
    }
}

/// The newest message of a subject; the leader of the stream is asked.
///
/// # Errors
/// The broker's; that there is none is none.
pub(crate) async fn last_message(
    stream: &stream::Stream,
    subject: &str,
) -> Result<Option<jetstream::message::StreamMessage>, stream::LastRawMessageError> {
    use stream::LastRawMessageErrorKind::{JetStream, NoMessageFound};
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) => match error.kind() {
            NoMessageFound => Ok(None),
            JetStream(kind) if kind.error_code() == jetstream::ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}
