//! Opens a store, and makes it where there is none and we may.

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{Context, ErrorCode, kv};
use tracing::info;

/// Why a store could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The broker does not answer, has no JetStream, or does not let us ask.
    #[error("{name} is not reached: {reason}")]
    Unavailable {
        /// The store, as people call it.
        name: String,
        /// What the client said.
        reason: String,
    },
    /// There is none, and it could not be made.
    #[error(
        "{name} is not there and was not made ({reason}): run `apiproxy setup` as an \
         administrator, or use a user that may make it"
    )]
    NotMade {
        /// The store, as people call it.
        name: String,
        /// What the client said.
        reason: String,
    },
}

/// The kinds of [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// See [`StoreError::Unavailable`].
    Unavailable,
    /// See [`StoreError::NotMade`].
    NotMade,
}

impl StoreError {
    /// What kind of failure this is.
    pub fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Unavailable { .. } => StoreErrorKind::Unavailable,
            Self::NotMade { .. } => StoreErrorKind::NotMade,
        }
    }
}

/// Opens a bucket, and makes it first if there is none. Several may do so at once: one makes it and
/// all have it.
///
/// # Errors
/// [`StoreError`]. That a bucket is not reached is no reason to make one.
///
/// # Panics
/// Where `config` is of no bucket.
pub async fn open_or_make(context: &Context, config: Config) -> Result<kv::Store, StoreError> {
    let bucket =
        config.name.strip_prefix("KV_").expect("the definitions's buckets are named so").to_owned();
    let name = format!("bucket {bucket:?}");
    if let Ok(store) = context.get_key_value(&bucket).await {
        return Ok(store);
    }
    // Rare, and large: whoever waits for this need not keep room for it.
    Box::pin(open_or_make_stream(context, config)).await?;
    let opened = context.get_key_value(&bucket).await;
    opened.map_err(|error| StoreError::Unavailable { name, reason: error.to_string() })
}

/// The same with a stream.
///
/// # Errors
/// [`StoreError`].
pub async fn open_or_make_stream(context: &Context, config: Config) -> Result<Stream, StoreError> {
    let name = match config.name.strip_prefix("KV_") {
        Some(bucket) => format!("bucket {bucket:?}"),
        None => format!("stream {:?}", config.name),
    };
    match context.get_stream(&config.name).await {
        Ok(stream) => return Ok(stream),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(StoreError::Unavailable { name, reason: error.to_string() }),
    }
    info!("making {name}");
    let made = context.create_stream(&config).await;
    let error = match made {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    // Another one may have been faster, with other settings; what there is, is used.
    let opened = context.get_stream(&config.name).await;
    opened.map_err(|_| StoreError::NotMade { name, reason: error.to_string() })
}

/// Whether there is no such stream, rather than no answer.
pub fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}
