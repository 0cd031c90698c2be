//! The generation of a source that begins a new history: later than any before it.

use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::jetstream;
use tokio_util::sync::CancellationToken;

use crate::connect;
use crate::error::{Error, ErrorKind};
use crate::head::{Generation, HEADER, Head, MOST_AHEAD_MS};
use crate::name::{Prefix, Source};
use crate::stream::{StreamPlan, last_message};

/// Where the history of a source is looked up.
pub(super) struct History<'a> {
    pub(super) context: &'a jetstream::Context,
    pub(super) plan: &'a StreamPlan,
    pub(super) prefix: &'a Prefix,
    pub(super) stop: &'a CancellationToken,
}

/// Returns a generation by the clock of this machine, for a source whose messages nobody keeps.
pub(super) fn unkept() -> Generation {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Generation::after(None, now_ms, fastrand::u32(..))
}

impl History<'_> {
    /// Returns a generation that is later than any that the stream has of the source, by the
    /// broker's clock: one of ours that is wrong would make all that is shipped later look older.
    pub(super) async fn next_generation(&self, source: &Source) -> Result<Generation, Error> {
        let (older, now_ms) = self.last_generation(source).await?;
        // What nobody can have made yet is none of ours, and consumers refuse it.
        let latest_ms = now_ms.saturating_add(MOST_AHEAD_MS);
        let older = older.filter(|older| older.born_unix_ms() <= latest_ms);
        Ok(Generation::after(older, now_ms, fastrand::u32(..)))
    }

    /// The generation of the newest message, and the broker's time in milliseconds since 1970.
    async fn last_generation(&self, source: &Source) -> Result<(Option<Generation>, u64), Error> {
        let stream =
            connect::patiently("the stream", self.stop, || self.plan.open(self.context)).await?;
        let ask = || broker_time_ms(self.context, &self.plan.name);
        let now_ms = connect::patiently("the broker's time", self.stop, ask).await?;
        let subject = self.prefix.of_source(source);
        // Not to know it is not enough: a history that looks older than the last one would be
        // dropped.
        let read = || last_message(&stream, &subject);
        let last = connect::patiently("the stream", self.stop, read).await?;
        let head = last.and_then(|it| it.headers.get(HEADER)?.as_str().parse::<Head>().ok());
        Ok((head.map(|head| head.generation), now_ms))
    }
}

/// The broker's clock: an answer about a stream has it.
async fn broker_time_ms(context: &jetstream::Context, stream: &str) -> Result<u64, Error> {
    #[derive(serde::Deserialize)]
    struct Answer {
        ts: String,
    }
    let asked =
        context.client().request(format!("$JS.API.STREAM.INFO.{stream}"), Default::default()).await;
    let answer =
        asked.map_err(|error| ErrorKind::Broker.caused("the stream cannot be asked", error))?;
    let no_time = "an answer without the time";
    let Answer { ts } = serde_json::from_slice(&answer.payload)
        .map_err(|error| ErrorKind::Broker.caused(no_time, error))?;
    let now = ts.parse::<jiff::Timestamp>();
    let now = now.map_err(|error| ErrorKind::Broker.caused(no_time, error))?;
    Ok(u64::try_from(now.as_millisecond()).unwrap_or(0))
}
