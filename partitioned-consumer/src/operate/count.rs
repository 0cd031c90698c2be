//! Counts a stream's messages by consumers that are made for that alone.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self, consumer};

use crate::api;
use crate::error::Error;

/// Counts a stream's messages from a sequence on, by a consumer that is deleted again.
pub(super) async fn count_from(
    context: &jetstream::Context,
    stream: &str,
    filter_subjects: Vec<String>,
    from: u64,
) -> Result<u64, Error> {
    let from = consumer::DeliverPolicy::ByStartSequence { start_sequence: from.max(1) };
    let config = passing(from, filter_subjects);
    let info = passing_consumer(context, stream, &config).await;
    Ok(info.map_err(|error| error.into_error("the partition could not be counted"))?.num_pending)
}

pub(super) fn passing(
    deliver_policy: consumer::DeliverPolicy,
    filter_subjects: Vec<String>,
) -> pull::Config {
    pull::Config {
        name: Some(format!("count-{:016x}", fastrand::u64(..))),
        deliver_policy,
        ack_policy: consumer::AckPolicy::None,
        filter_subjects,
        inactive_threshold: Duration::from_secs(5),
        memory_storage: true,
        ..Default::default()
    }
}

/// What the broker says of a consumer that is made for that alone, and deleted again.
pub(super) async fn passing_consumer(
    context: &jetstream::Context,
    stream: &str,
    config: &pull::Config,
) -> Result<consumer::Info, api::ApiError> {
    let consumer = config.name.clone().unwrap_or_default();
    let info = api::create_consumer(context, stream, &consumer, config).await?;
    // It would go by itself after five seconds.
    drop(api::delete_consumer(context, stream, &consumer).await);
    Ok(info)
}
