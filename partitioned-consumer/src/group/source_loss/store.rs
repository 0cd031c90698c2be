//! The account in the bucket of our settings, and the broker's answers that bring it up to date.

use std::time::Duration;

use async_nats::jetstream::{self, kv};

use super::account::{Account, Holes};
use super::observation::{Copied, Observation};
use crate::api::{self, code};
use crate::error::{Error, ErrorKind};
use crate::group::entry::WRITE_ATTEMPTS;
use crate::group::name::GroupName;
use crate::group::settings::BUCKET;

/// After which a group that is behind counts as one that stays behind, where nobody has looked
/// before.
const STAYS_BEHIND_FOR: Duration = Duration::from_secs(1);

/// Missing messages that the broker is asked to list; each takes some ten bytes of its answer.
const MOST_LISTED: u64 = 50_000;

pub(super) fn key(name: &GroupName) -> String {
    format!("copied.{}", name.key())
}

/// Observes both streams; `None` when one of them does not exist.
pub(crate) async fn observe(
    context: &jetstream::Context,
    name: &GroupName,
    sample: Option<Copied>,
) -> Result<Option<Observation>, Error> {
    let doing = "the source stream of the group could not be compared with what was copied";
    let ask = async |stream: &str| match api::stream_info(context, stream).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => Ok(None),
        Err(error) => Err(error.into_error(doing)),
    };
    // In this order: see `Observation`.
    let Some(source) = ask(name.stream()).await? else { return Ok(None) };
    let Some(queue) = ask(&name.work_queue()).await? else { return Ok(None) };
    // One of an earlier queue of that name says nothing.
    let sample = sample.filter(|sample| sample.queue <= queue.state.last_sequence);
    let mut newest = sample;
    if queue.state.last_sequence > sample.map_or(0, |sample| sample.queue) {
        // It may be handled and gone; then the next observation will know.
        let last = api::message(context, &name.work_queue(), queue.state.last_sequence).await;
        newest = last
            .ok()
            .and_then(|headers| Copied::of(queue.state.last_sequence, &headers?))
            .or(sample);
    }
    Ok(Some(Observation::new(&source, &queue, newest)))
}

/// The account as it is kept, and its revision; an empty one where there is none.
pub(super) async fn kept(store: &kv::Store, name: &GroupName) -> Result<(Account, u64), Error> {
    let entry = store.entry(key(name)).await.map_err(|error| {
        ErrorKind::Broker.caused("the group's account of copied messages could not be read", error)
    })?;
    Ok(entry.map_or_else(Default::default, |entry| {
        // One that cannot be read is begun anew.
        let account = Some(&entry).filter(|entry| entry.operation == kv::Operation::Put);
        let account = account.and_then(|entry| serde_json::from_slice(&entry.value).ok());
        (account.unwrap_or_default(), entry.revision)
    }))
}

/// The account as it stands by an observation, without writing anything.
pub(crate) async fn read(
    context: &jetstream::Context,
    name: &GroupName,
    observation: &Observation,
) -> Result<Account, Error> {
    let mut account = match context.get_key_value(BUCKET).await {
        Ok(store) => kept(&store, name).await?.0,
        Err(_) => Account::default(),
    };
    account.take(observation);
    if !observation.takes_everything && observation.lag > 0 {
        // Is it behind for longer than a moment?
        tokio::time::sleep(STAYS_BEHIND_FOR).await;
        if let Some(observation) = observe(context, name, observation.newest).await? {
            account.take(&observation);
        }
    }
    Ok(account)
}

/// Brings the account up to date by an observation, where there is a bucket to keep it in: members
/// make none.
pub(crate) async fn update(
    context: &jetstream::Context,
    name: &GroupName,
    observation: &Observation,
) -> Result<Account, Error> {
    match context.get_key_value(BUCKET).await {
        Ok(store) => write(&store, name, |account| account.take(observation)).await,
        Err(_) => read(context, name, observation).await,
    }
}

/// Changes the account; two that write at once lose nothing. A observation that the other one has
/// overtaken changes nothing.
pub(crate) async fn write(
    store: &kv::Store,
    name: &GroupName,
    edit: impl Fn(&mut Account),
) -> Result<Account, Error> {
    for _ in 0..WRITE_ATTEMPTS {
        let (before, revision) = kept(store, name).await?;
        let mut account = before.clone();
        edit(&mut account);
        if account == before {
            return Ok(account);
        }
        let json = serde_json::to_vec(&account).expect("plain fields serialize");
        match store.update(key(name), json.into(), revision).await {
            Ok(_) => return Ok(account),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
            Err(error) => {
                let doing = "the group's account of copied messages could not be written";
                return Err(ErrorKind::Broker.caused(doing, error));
            }
        }
    }
    Err(ErrorKind::Conflict
        .with("the group's account of copied messages kept changing under the write; try again"))
}

/// The holes of the source from `next` on, and the observation that they are of.
pub(crate) async fn observe_from(
    context: &jetstream::Context,
    name: &GroupName,
    next: u64,
) -> Result<(Observation, Holes), Error> {
    let mut source = api::check_stream(context, name.stream()).await?;
    let state = &source.state;
    let deleted = state.deleted_count.unwrap_or(0);
    let is_inside = next > state.first_sequence && next <= state.last_sequence;
    let mut listed = None;
    if is_inside && (1..=MOST_LISTED).contains(&deleted) {
        let doing = "the missing messages of the source stream could not be listed";
        let answer = api::stream_info_and_deleted(context, name.stream()).await;
        let (info, deleted) = answer.map_err(|error| error.into_error(doing))?;
        listed = Some(deleted.iter().filter(|sequence| **sequence >= next).count() as u64);
        source = info;
    }
    let queue = api::check_stream(context, &name.work_queue()).await?;
    let observation = Observation::new(&source, &queue, None);
    let holes = listed.map_or_else(
        || Holes::at_most(next.saturating_sub(1), &observation),
        |holes| Holes::counted(holes, &observation),
    );
    Ok((observation, holes))
}

/// Forgets the account of a group that is deleted.
pub(crate) async fn delete(context: &jetstream::Context, name: &GroupName) -> Result<(), Error> {
    let Ok(store) = context.get_key_value(BUCKET).await else { return Ok(()) };
    let deleted = store.delete(key(name)).await;
    deleted.map_err(|error| {
        ErrorKind::Broker.caused("the group's account could not be deleted", error)
    })
}
