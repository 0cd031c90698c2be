//! The routes bucket: one JSON document for each route, in a key-value bucket of the broker, every
//! write checked against the revision that it was made from.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::kv::{self, CreateErrorKind, Entry, Operation, UpdateErrorKind};
use async_nats::jetstream::{self, context::KeyValueErrorKind};
use futures_util::{StreamExt, TryStreamExt};
use natsway_stores::definitions;

use crate::document::RouteDocument;
use crate::reconciler::Change;

/// The bucket's name unless another is given.
pub use natsway_stores::definitions::ROUTES as BUCKET;

/// How long the broker may take for one request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The bucket, opened.
#[derive(Clone, Debug)]
pub struct RouteStore {
    bucket: kv::Store,
}

/// Why the bucket did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct StoreError {
    kind: StoreErrorKind,
    what: String,
    reason: String,
}

/// The kinds of [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// There is no such bucket.
    NoBucket,
    /// Somebody else wrote in between: read again and decide anew.
    Conflict,
    /// The broker does not answer, has no JetStream, or does not allow it.
    Unavailable,
}

impl StoreError {
    fn new(kind: StoreErrorKind, what: impl Into<String>, reason: impl ToString) -> Self {
        Self { kind, what: what.into(), reason: reason.to_string() }
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

/// A document as the bucket holds it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its key.
    pub name: String,
    /// Its revision, for the next write.
    pub revision: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl RouteStore {
    /// Opens a bucket that exists.
    ///
    /// # Errors
    /// [`StoreErrorKind::NoBucket`] and [`StoreErrorKind::Unavailable`].
    pub async fn open(client: Client, bucket: &str) -> Result<Self, StoreError> {
        let mut context = jetstream::new(client);
        context.set_timeout(TIMEOUT);
        match context.get_key_value(bucket).await {
            Ok(bucket) => Ok(Self { bucket }),
            Err(error) => {
                let kind = match error.kind() {
                    KeyValueErrorKind::GetBucket => missing_or_unavailable(&context, bucket).await,
                    _ => StoreErrorKind::Unavailable,
                };
                Err(StoreError::new(kind, format!("routes bucket {bucket:?}"), error))
            }
        }
    }

    /// Opens a bucket, making it first if there is none, with so many replicas.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`].
    pub async fn open_or_create(
        client: Client,
        bucket: &str,
        replicas: usize,
    ) -> Result<Self, StoreError> {
        match Self::open(client.clone(), bucket).await {
            Err(error) if error.kind() == StoreErrorKind::NoBucket => {}
            opened => return opened,
        }
        let mut context = jetstream::new(client);
        context.set_timeout(TIMEOUT);
        // Several gateways may do this at once; the same bucket made twice is one bucket.
        let made =
            natsway_stores::open_or_make(&context, definitions::routes(bucket, replicas)).await;
        let failed = |error| StoreError::new(StoreErrorKind::Unavailable, "routes", error);
        made.map(|bucket| Self { bucket }).map_err(failed)
    }

    /// Copies of the bucket in a cluster, as it was when it was opened.
    pub fn replicas(&self) -> usize {
        self.bucket.stream.cached_info().config.num_replicas
    }

    /// What tells this bucket from one of the same name that is made after it is gone: when it was
    /// made, in nanoseconds since 1970.
    pub fn made_at(&self) -> u64 {
        u64::try_from(self.bucket.stream.cached_info().created.unix_timestamp_nanos()).unwrap_or(0)
    }

    /// Whether nothing was ever written to it. A bucket whose documents were all removed is empty,
    /// and not that.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`].
    pub async fn is_untouched(&self) -> Result<bool, StoreError> {
        Ok(self.last_revision().await? == 0)
    }

    /// The newest revision, by the bucket's leader; 0 if nothing was ever written.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`].
    pub async fn last_revision(&self) -> Result<u64, StoreError> {
        // Asked anew: the bucket's own status is that of the moment when it was opened.
        let info = self.bucket.stream.get_info().await;
        let info = info.map_err(|error| {
            StoreError::new(StoreErrorKind::Unavailable, "look at the routes", error)
        })?;
        Ok(info.state.last_sequence)
    }

    /// All documents, by name.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`].
    pub async fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let failed =
            |error: String| StoreError::new(StoreErrorKind::Unavailable, "list routes", error);
        let keys = self.bucket.keys().await.map_err(|error| failed(error.to_string()))?;
        let mut names: Vec<String> =
            keys.try_collect().await.map_err(|error| failed(error.to_string()))?;
        names.sort();
        let mut documents = Vec::new();
        for name in names {
            documents.extend(self.get(&name).await?);
        }
        Ok(documents)
    }

    /// One document, if it is there.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`].
    pub async fn get(&self, name: &str) -> Result<Option<Stored>, StoreError> {
        let entry = self.bucket.entry(name).await;
        let entry = entry.map_err(|error| {
            StoreError::new(StoreErrorKind::Unavailable, format!("read route {name:?}"), error)
        })?;
        Ok(entry.filter(|entry| entry.operation == Operation::Put).map(|entry| Stored {
            name: entry.key,
            revision: entry.revision,
            bytes: entry.value.to_vec(),
        }))
    }

    /// Writes a document over `revision`, or as a new one when that is `None`; gives the new
    /// revision.
    ///
    /// # Errors
    /// [`StoreErrorKind::Conflict`] when it is not at that revision any more, or is there already.
    pub async fn put(
        &self,
        document: &RouteDocument,
        revision: Option<u64>,
    ) -> Result<u64, StoreError> {
        let (name, bytes) = (&document.name, document.to_json().into());
        let what = || format!("write route {name:?}");
        match revision {
            Some(revision) => self
                .bucket
                .update(name, bytes, revision)
                .await
                .map_err(|error| update_error(what(), &error)),
            None => self.bucket.create(name, bytes).await.map_err(|error| {
                let kind = match error.kind() {
                    CreateErrorKind::AlreadyExists => StoreErrorKind::Conflict,
                    _ => StoreErrorKind::Unavailable,
                };
                StoreError::new(kind, what(), error)
            }),
        }
    }

    /// Deletes a document that is at `revision`.
    ///
    /// # Errors
    /// [`StoreErrorKind::Conflict`] when it is not at that revision any more.
    pub async fn remove(&self, name: &str, revision: u64) -> Result<(), StoreError> {
        let removed = self.bucket.delete_expect_revision(name, Some(revision)).await;
        removed.map_err(|error| update_error(format!("remove route {name:?}"), &error))
    }

    /// Every document as it is now, then every change for as long as the broker is there;
    /// [`Update::Complete`] stands between the two.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`].
    pub async fn watch(
        &self,
    ) -> Result<impl futures_util::Stream<Item = Update> + use<>, StoreError> {
        let failed =
            |error: String| StoreError::new(StoreErrorKind::Unavailable, "watch routes", error);
        // Asked anew: the bucket's own status is that of the moment when it was opened.
        let info =
            self.bucket.stream.get_info().await.map_err(|error| failed(error.to_string()))?;
        let is_empty = info.state.messages == 0;
        let entries =
            self.bucket.watch_with_history(">").await.map_err(|error| failed(error.to_string()))?;
        let at_once = is_empty.then_some(Update::Complete);
        let updates = entries.map(|entry| match entry {
            Ok(entry) => {
                let complete = entry.delta == 0;
                let mut updates = vec![Update::Change(change(entry))];
                updates.extend(complete.then_some(Update::Complete));
                updates
            }
            Err(error) => vec![Update::Broken(error.to_string())],
        });
        Ok(futures_util::stream::iter(at_once).chain(updates.flat_map(futures_util::stream::iter)))
    }
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// A document, or its deletion.
    Change(Change),
    /// All that was there has been said. Said again with each later change.
    Complete,
    /// The watch ended: open another.
    Broken(String),
}

fn change(entry: Entry) -> Change {
    let Entry { key: name, revision, value, operation, .. } = entry;
    match operation {
        Operation::Put => Change::Put { name, revision, document: value.to_vec() },
        Operation::Delete | Operation::Purge => Change::Removed { name, revision },
    }
}

fn update_error(what: String, error: &kv::UpdateError) -> StoreError {
    let kind = match error.kind() {
        UpdateErrorKind::WrongLastRevision => StoreErrorKind::Conflict,
        _ => StoreErrorKind::Unavailable,
    };
    StoreError::new(kind, what, error)
}

/// The client says the same of a bucket that is not there and of a broker that does not answer;
/// asking for the stream tells them apart.
async fn missing_or_unavailable(context: &jetstream::Context, bucket: &str) -> StoreErrorKind {
    use jetstream::context::GetStreamErrorKind::JetStream;
    match context.get_stream(format!("KV_{bucket}")).await {
        Err(error) => match error.kind() {
            JetStream(inner) if inner.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND => {
                StoreErrorKind::NoBucket
            }
            _ => StoreErrorKind::Unavailable,
        },
        Ok(_) => StoreErrorKind::Unavailable,
    }
}
