//! Commits in a bucket of the broker, by compare-and-set.

use std::future::Future;

use async_nats::jetstream::{self, kv, stream};
use bytes::Bytes;
use natsway_stores::definitions::shipper_commits;
use natsway_stores::open_or_make;
use serde::{Deserialize, Serialize};

use crate::commit::Commit;
use crate::stream::last_message;

/// The bucket of all shippers of an account; the key is `<cluster>.<stream>.<source>`.
pub(super) use natsway_stores::definitions::SHIPPER_COMMITS as BUCKET;

/// See the module.
#[derive(Clone)]
pub(super) struct OffsetStore {
    store: kv::Store,
    stream: stream::Stream,
    prefix: String,
}

/// A commit with its revision; 0 when there is none yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Committed {
    pub(super) revision: u64,
    pub(super) commit: Option<Commit>,
}

/// What a commit came to.
#[derive(Debug)]
pub(super) enum CommitOutcome {
    /// It is the newest, with this revision.
    Done(u64),
    /// Somebody else committed meanwhile; this is the newest.
    Overtaken(Committed),
}

/// The bucket did not answer as it should.
#[derive(Debug, thiserror::Error)]
#[error("commits: {0}")]
pub(super) struct OffsetStoreError(pub(super) String);

/// Where commits are kept: the bucket of a broker, and a map in memory for the model of the writer.
pub(super) trait Offsets: Clone + Send + Sync + 'static {
    /// Identifies this store among others, its successors included: what one committed, another
    /// does not know.
    fn identity(&self) -> OffsetStoreIdentity;

    /// The newest commit of a source, given as it stands in keys.
    fn read(
        &self,
        source: &str,
    ) -> impl Future<Output = Result<Committed, OffsetStoreError>> + Send;

    /// Replaces the commit of `revision`, and returns the new revision; `None` when that is not the
    /// newest any more. An error leaves open whether it was replaced.
    fn replace(
        &self,
        source: &str,
        revision: u64,
        commit: &Commit,
    ) -> impl Future<Output = Result<Option<u64>, OffsetStoreError>> + Send;

    /// Replaces the commit of `revision`. After an error the same commit may be given again,
    /// whatever became of it.
    fn write(
        &self,
        source: &str,
        revision: u64,
        commit: &Commit,
    ) -> impl Future<Output = Result<CommitOutcome, OffsetStoreError>> + Send {
        async move {
            if let Some(revision) = self.replace(source, revision, commit).await? {
                return Ok(CommitOutcome::Done(revision));
            }
            let newest = self.read(source).await?;
            // An attempt of ours that seemed to fail may have been the one.
            if newest.commit.as_ref() == Some(commit) {
                return Ok(CommitOutcome::Done(newest.revision));
            }
            Ok(CommitOutcome::Overtaken(newest))
        }
    }
}

/// Which commits a directory goes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OffsetStoreIdentity {
    /// When the bucket was made, in nanoseconds since 1970: another time is another bucket, which
    /// knows nothing.
    pub(super) born_ns: i64,
    /// The cluster and the stream.
    pub(super) prefix: String,
}

impl OffsetStore {
    /// The commits of a cluster of consumers of a stream.
    pub(super) async fn open(
        context: &jetstream::Context,
        cluster: &str,
        stream: &str,
        replicas: usize,
    ) -> Result<Self, OffsetStoreError> {
        let failed = |error: &dyn std::fmt::Display| OffsetStoreError(error.to_string());
        let store = open_or_make(context, shipper_commits(replicas))
            .await
            .map_err(|error| failed(&error))?;
        let backing =
            context.get_stream(format!("KV_{BUCKET}")).await.map_err(|error| failed(&error))?;
        Ok(Self { store, stream: backing, prefix: format!("{cluster}.{stream}.") })
    }

    /// Whether anything was ever committed.
    pub(super) async fn exists(context: &jetstream::Context) -> bool {
        context.get_key_value(BUCKET).await.is_ok()
    }

    fn key(&self, source: &str) -> String {
        format!("{}{source}", self.prefix)
    }

    /// All commits of the cluster, by source as text.
    pub(super) async fn all(&self) -> Result<Vec<(String, Commit)>, OffsetStoreError> {
        use futures_util::TryStreamExt;

        let failed = |error: &dyn std::fmt::Display| OffsetStoreError(error.to_string());
        let keys = self.store.keys().await.map_err(|error| failed(&error))?;
        let keys: Vec<String> = keys.try_collect().await.map_err(|error| failed(&error))?;
        let mut commits = Vec::new();
        for key in keys.iter().filter(|key| key.starts_with(&self.prefix)) {
            let Some(json) = self.store.get(key).await.map_err(|error| failed(&error))? else {
                continue;
            };
            if let Ok(commit) = serde_json::from_slice(&json) {
                commits.push((key[self.prefix.len()..].to_owned(), commit));
            }
        }
        commits.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(commits)
    }
}

impl Offsets for OffsetStore {
    fn identity(&self) -> OffsetStoreIdentity {
        let nanoseconds = self.stream.cached_info().created.unix_timestamp_nanos();
        let born_ns = i64::try_from(nanoseconds).unwrap_or(i64::MAX);
        OffsetStoreIdentity { born_ns, prefix: self.prefix.clone() }
    }

    /// The leader is asked: a follower may be behind, and then a commit would look lost.
    async fn read(&self, source: &str) -> Result<Committed, OffsetStoreError> {
        let subject = format!("$KV.{BUCKET}.{}", self.key(source));
        match last_message(&self.stream, &subject)
            .await
            .map_err(|error| OffsetStoreError(error.to_string()))?
        {
            None => Ok(Committed::default()),
            Some(message) if message.payload.is_empty() => {
                Ok(Committed { revision: message.sequence, commit: None })
            }
            Some(message) => {
                let commit = serde_json::from_slice(&message.payload).map_err(|error| {
                    OffsetStoreError(format!("the commit of {source} cannot be read: {error}"))
                })?;
                Ok(Committed { revision: message.sequence, commit: Some(commit) })
            }
        }
    }

    async fn replace(
        &self,
        source: &str,
        revision: u64,
        commit: &Commit,
    ) -> Result<Option<u64>, OffsetStoreError> {
        let json = Bytes::from(
            serde_json::to_vec(commit).map_err(|error| OffsetStoreError(error.to_string()))?,
        );
        match self.store.update(self.key(source), json, revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(OffsetStoreError(error.to_string())),
        }
    }
}
