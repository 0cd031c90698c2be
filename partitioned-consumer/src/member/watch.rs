//! Follows one key of a bucket through restarts, and distinguishes a deleted bucket from a silent
//! one.

use std::time::Duration;

use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc::Sender;

use crate::api::{self, code};

/// What became of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WatchUpdate {
    Value(Bytes),
    /// Deleted, purged, or never written.
    Absent,
    BucketGone,
}

/// How often the key is read besides being watched: a watch can die silently.
const READ_EVERY: Duration = Duration::from_secs(3);
const REOPEN_AFTER: Duration = Duration::from_millis(250);

/// What was sent last, so that nothing is sent twice and a stale replica cannot turn the clock
/// back.
#[derive(Default)]
struct LastSent {
    update: Option<WatchUpdate>,
    revision: u64,
    /// Reads in a row that did not find the key; one alone may come from a replica that lags.
    missing: u32,
}

/// Sends each change of the key, and its present state first, until the receiver is dropped.
pub(crate) async fn follow(
    context: jetstream::Context,
    bucket: &'static str,
    key: String,
    updates: Sender<WatchUpdate>,
) {
    let mut sent = LastSent::default();
    loop {
        let Ok(store) = context.get_key_value(bucket).await else {
            if is_gone(&context, bucket).await
                && !sent.send(&updates, WatchUpdate::BucketGone).await
            {
                return;
            }
            if pause_or_closed(&updates, REOPEN_AFTER * 4).await {
                return;
            }
            continue;
        };
        // A bucket that was made anew counts from 1 again.
        sent.revision = 0;
        let watch = store.watch_with_history(&key).await;
        let open = match watch {
            Ok(watch) => forward(&store, watch, &key, &updates, &mut sent).await,
            Err(_) => true,
        };
        if !open || pause_or_closed(&updates, REOPEN_AFTER).await {
            return;
        }
    }
}

/// Forwards until the watch ends; false when nobody listens any more.
async fn forward(
    store: &kv::Store,
    mut watch: kv::Watch,
    key: &str,
    updates: &Sender<WatchUpdate>,
    sent: &mut LastSent,
) -> bool {
    let mut read = tokio::time::interval(READ_EVERY);
    loop {
        let entry = tokio::select! {
            () = updates.closed() => return false,
            entry = watch.next() => match entry {
                Some(Ok(entry)) => Some(entry),
                Some(Err(_)) | None => return true,
            },
            _ = read.tick() => match store.entry(key).await {
                Ok(entry) => entry,
                // The bucket may be gone: open it anew.
                Err(_) => return true,
            },
        };
        let listening = match entry {
            Some(entry) => sent.entry(updates, entry).await,
            None => sent.missing(updates).await,
        };
        if !listening {
            return false;
        }
    }
}

impl LastSent {
    async fn entry(&mut self, updates: &Sender<WatchUpdate>, entry: kv::Entry) -> bool {
        self.missing = 0;
        if entry.revision < self.revision {
            return true;
        }
        self.revision = entry.revision;
        let now = match entry.operation {
            kv::Operation::Put => WatchUpdate::Value(entry.value),
            kv::Operation::Delete | kv::Operation::Purge => WatchUpdate::Absent,
        };
        self.send(updates, now).await
    }

    async fn missing(&mut self, updates: &Sender<WatchUpdate>) -> bool {
        self.missing += 1;
        if self.update.is_some() && self.missing < 2 {
            return true;
        }
        self.send(updates, WatchUpdate::Absent).await
    }

    /// Sends what was not said last; false when nobody listens.
    async fn send(&mut self, updates: &Sender<WatchUpdate>, now: WatchUpdate) -> bool {
        if self.update.as_ref() == Some(&now) {
            return true;
        }
        self.update = Some(now.clone());
        updates.send(now).await.is_ok()
    }
}

async fn is_gone(context: &jetstream::Context, bucket: &str) -> bool {
    let info = api::stream_info(context, &format!("KV_{bucket}")).await;
    info.is_err_and(|error| error.code() == Some(code::STREAM_NOT_FOUND))
}

async fn pause_or_closed(updates: &Sender<WatchUpdate>, pause: Duration) -> bool {
    tokio::time::timeout(pause, updates.closed()).await.is_ok()
}
