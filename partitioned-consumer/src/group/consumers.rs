//! The consumers of a group's members, as the broker has them.

use async_nats::jetstream::{self, consumer};
use futures_util::TryStreamExt;

use super::kind::GroupKind;
use super::name::GroupName;
use crate::api::{self, code};
use crate::error::{Error, ErrorKind};

/// All consumers of a stream.
pub(crate) async fn consumers(
    context: &jetstream::Context,
    stream: &str,
) -> Result<Vec<consumer::Info>, Error> {
    api::check_stream(context, stream).await?;
    let failed = |error: &dyn std::fmt::Display| {
        ErrorKind::Broker.with(format!("the consumers could not be listed: {error}"))
    };
    let stream = context.get_stream_no_info(stream).await.map_err(|error| failed(&error))?;
    stream.consumers().try_collect().await.map_err(|error| failed(&error))
}

/// All consumers of a stream; none where there is no such stream.
pub(crate) async fn consumers_or_none(
    context: &jetstream::Context,
    stream: &str,
) -> Result<Vec<consumer::Info>, Error> {
    match consumers(context, stream).await {
        Err(error) if error.kind() == ErrorKind::StreamNotFound => Ok(Vec::new()),
        other => other,
    }
}

/// Whether a consumer has an instance that waits for messages or is pinned.
pub(crate) fn is_active(info: &consumer::Info) -> bool {
    info.num_waiting > 0
        || info
            .priority_groups
            .iter()
            .any(|g| g.pinned_client_id.as_deref().is_some_and(|id| !id.is_empty()))
}

/// Makes the pinned instance of a member step down.
pub(crate) async fn step_down(
    context: &jetstream::Context,
    kind: GroupKind,
    name: &GroupName,
    member: &str,
) -> Result<(), Error> {
    let (stream, consumer) = (kind.consumed_stream(name), kind.consumer(name, member));
    let info = match api::consumer_info(context, &stream, &consumer).await {
        Ok(info) => info,
        Err(error)
            if matches!(error.code(), Some(code::CONSUMER_NOT_FOUND | code::STREAM_NOT_FOUND)) =>
        {
            return Err(ErrorKind::NotActive.with(format!(
                "member {member:?} of {name} has no consumer: no instance is active"
            )));
        }
        Err(error) => return Err(error.into_error("the consumer could not be looked up")),
    };
    // The older generation pins under the member's own name.
    let group = info.config.priority_groups.first().cloned().unwrap_or_default();
    api::unpin(context, &stream, &consumer, &group)
        .await
        .map_err(|error| error.into_error("the pin could not be taken"))
}
