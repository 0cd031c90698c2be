//! Entries of groups in their buckets: found, listed, written with care.

use std::time::Duration;

use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::TryStreamExt;
use natsway_stores::definitions;

use super::kind::GroupKind;
use super::name::GroupName;
use crate::api::{self, code};
use crate::error::{Error, ErrorKind};

/// How often a write is tried again when somebody else was faster.
pub(crate) const WRITE_ATTEMPTS: u32 = 20;

/// The bucket, or `None` when it does not exist; any other failure is an error, never a reason to
/// create one.
pub(crate) async fn bucket(
    context: &jetstream::Context,
    kind: GroupKind,
) -> Result<Option<kv::Store>, Error> {
    let failed = |error| {
        ErrorKind::Broker
            .caused(format!("the bucket {:?} could not be opened", kind.bucket()), error)
    };
    match context.get_key_value(kind.bucket()).await {
        Ok(store) => Ok(Some(store)),
        Err(error) => match api::stream_info(context, &format!("KV_{}", kind.bucket())).await {
            Err(gone) if gone.code() == Some(code::STREAM_NOT_FOUND) => Ok(None),
            _ => Err(failed(error)),
        },
    }
}

pub(crate) async fn bucket_or_new(
    context: &jetstream::Context,
    kind: GroupKind,
    replicas: usize,
) -> Result<kv::Store, Error> {
    let config = match kind {
        GroupKind::Static => definitions::static_groups(replicas),
        GroupKind::Elastic => definitions::elastic_groups(replicas),
    };
    let opened = natsway_stores::open_or_make(context, config).await;
    opened.map_err(|error| {
        ErrorKind::Broker.caused("the bucket of the groups could not be opened", error)
    })
}

fn no_group(name: &GroupName) -> Error {
    ErrorKind::GroupNotFound.with(format!(
        "there is no group {:?} on stream {:?}",
        name.group(),
        name.stream()
    ))
}

/// An entry's bytes and revision.
pub(crate) async fn entry(store: &kv::Store, name: &GroupName) -> Result<(Bytes, u64), Error> {
    let found = store.entry(name.key()).await;
    let found = found
        .map_err(|error| ErrorKind::Broker.caused("the group's entry could not be read", error))?;
    match found.filter(|e| e.operation == kv::Operation::Put) {
        Some(entry) => Ok((entry.value, entry.revision)),
        None => Err(no_group(name)),
    }
}

/// Reads and checks a group's configuration.
pub(crate) async fn read<C>(
    context: &jetstream::Context,
    kind: GroupKind,
    name: &GroupName,
    parse: impl Fn(&[u8]) -> Result<C, Error>,
) -> Result<C, Error> {
    let store = bucket(context, kind).await?.ok_or_else(|| no_group(name))?;
    parse(&entry(&store, name).await?.0)
}

/// Rewrites an entry, again from the start when somebody else was faster.
pub(crate) async fn rewrite<T>(
    context: &jetstream::Context,
    kind: GroupKind,
    name: &GroupName,
    edit: impl Fn(&[u8]) -> Result<Option<(Vec<u8>, T)>, Error>,
) -> Result<Option<T>, Error> {
    let store = bucket(context, kind).await?.ok_or_else(|| no_group(name))?;
    for attempt in 0..WRITE_ATTEMPTS {
        let (json, revision) = entry(&store, name).await?;
        let Some((json, outcome)) = edit(&json)? else { return Ok(None) };
        match store.update(name.key(), json.into(), revision).await {
            Ok(_) => return Ok(Some(outcome)),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(
                    0..=5 * u64::from(attempt + 1),
                )))
                .await;
            }
            Err(error) => {
                return Err(
                    ErrorKind::Broker.caused("the group's entry could not be written", error)
                );
            }
        }
    }
    Err(ErrorKind::Conflict.with("the group's entry kept changing under the write; try again"))
}

/// What became of the attempt to write a new entry.
pub(crate) enum Written {
    New,
    /// An entry of that name was there already.
    Present(Bytes),
}

/// Writes an entry that must not exist yet.
pub(crate) async fn write_new(
    store: &kv::Store,
    name: &GroupName,
    json: Vec<u8>,
) -> Result<Written, Error> {
    match store.create(name.key(), json.into()).await {
        Ok(_) => Ok(Written::New),
        Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => {
            Ok(Written::Present(entry(store, name).await?.0))
        }
        Err(error) => {
            Err(ErrorKind::Broker.caused("the group's entry could not be written", error))
        }
    }
}

pub(crate) fn exists_differently(name: &GroupName) -> Error {
    ErrorKind::GroupExists.with(format!(
        "group {:?} exists on stream {:?} with another configuration: choose another name, or \
         delete it first",
        name.group(),
        name.stream()
    ))
}

/// The groups of a stream.
pub(crate) async fn list(
    context: &jetstream::Context,
    kind: GroupKind,
    stream: &str,
) -> Result<Vec<String>, Error> {
    let keys = keys(context, kind).await?;
    let of_stream = keys.iter().filter_map(|key| key.split_once('.')).filter(|(s, _)| *s == stream);
    Ok(of_stream.map(|(_, group)| group.to_owned()).collect())
}

/// The groups of all streams.
pub(crate) async fn list_all(
    context: &jetstream::Context,
    kind: GroupKind,
) -> Result<Vec<GroupName>, Error> {
    let keys = keys(context, kind).await?;
    let names = keys.iter().filter_map(|key| key.split_once('.'));
    Ok(names.filter_map(|(stream, group)| GroupName::new(stream, group).ok()).collect())
}

/// The entries of a bucket, in order.
async fn keys(context: &jetstream::Context, kind: GroupKind) -> Result<Vec<String>, Error> {
    let Some(store) = bucket(context, kind).await? else { return Ok(Vec::new()) };
    let failed = |error: &dyn std::fmt::Display| {
        ErrorKind::Broker.with(format!("the groups could not be listed: {error}"))
    };
    let keys = store.keys().await.map_err(|error| failed(&error))?;
    let mut keys: Vec<String> = keys.try_collect().await.map_err(|error| failed(&error))?;
    keys.sort();
    Ok(keys)
}
