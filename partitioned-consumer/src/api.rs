//! The few JetStream requests that the library makes itself, with the server's error codes kept.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{self, IntoConsumerConfig, pull};
use async_nats::jetstream::{self, response::Response, stream::Info};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Server error codes that decide something here.
pub(crate) mod code {
    pub(crate) const CONSUMER_NOT_FOUND: u64 = 10014;
    pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
    pub(crate) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(crate) const FILTER_OVERLAPS: u64 = 10100;
    pub(crate) const CONSUMER_EXISTS: u64 = 10148;
}

/// What a request came to.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The server refused it, with this code.
    Refused { code: u64, text: String },
    /// No answer came.
    Unanswered(Error),
}

impl ApiError {
    pub(crate) fn code(&self) -> Option<u64> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unanswered(_) => None,
        }
    }

    /// As an error of `kind` when the server refused; time-outs keep their own kind.
    pub(crate) fn into_error(self, doing: &str) -> Error {
        match self {
            Self::Refused { text, .. } => ErrorKind::Broker.with(format!("{doing}: {text}")),
            Self::Unanswered(error) => {
                let kind = error.kind();
                kind.caused(doing.to_owned(), error)
            }
        }
    }
}

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Sends one JetStream API request; the context adds its prefix.
pub(crate) async fn request<T, V>(
    context: &jetstream::Context,
    subject: String,
    body: &T,
) -> Result<V, ApiError>
where
    T: Serialize + ?Sized + Sync,
    V: DeserializeOwned,
{
    let unanswered = |kind: ErrorKind, text: &str| ApiError::Unanswered(kind.with(text.to_owned()));
    match tokio::time::timeout(ANSWER_WITHIN, context.request::<_, T, Response<V>>(subject, body))
        .await
    {
        Err(_) => Err(unanswered(
            ErrorKind::Timeout,
            "the broker did not answer in time, is it reachable",
        )),
        Ok(Err(error)) => Err(ApiError::Unanswered(
            ErrorKind::Broker.caused("the broker could not be asked", error),
        )),
        Ok(Ok(Response::Ok(answer))) => Ok(answer),
        Ok(Ok(Response::Err { error })) => {
            Err(ApiError::Refused { code: error.error_code().0, text: error.to_string() })
        }
    }
}

/// The body of a request without one: the server takes an empty object for it.
#[derive(Serialize)]
pub(crate) struct Empty {}

#[derive(Serialize)]
struct CreateConsumer<'a> {
    stream_name: &'a str,
    config: consumer::Config,
    action: &'static str,
}

/// Creates a consumer, or finds it with the very same settings.
pub(crate) async fn create_consumer(
    context: &jetstream::Context,
    stream: &str,
    name: &str,
    config: &pull::Config,
) -> Result<consumer::Info, ApiError> {
    let body = CreateConsumer {
        stream_name: stream,
        config: config.into_consumer_config(),
        action: "create",
    };
    request(context, format!("CONSUMER.CREATE.{stream}.{name}"), &body).await
}

pub(crate) async fn consumer_info(
    context: &jetstream::Context,
    stream: &str,
    name: &str,
) -> Result<consumer::Info, ApiError> {
    request(context, format!("CONSUMER.INFO.{stream}.{name}"), &Empty {}).await
}

/// Deletes a consumer; says whether it was there.
pub(crate) async fn delete_consumer(
    context: &jetstream::Context,
    stream: &str,
    name: &str,
) -> Result<bool, ApiError> {
    match request::<_, serde_json::Value>(
        context,
        format!("CONSUMER.DELETE.{stream}.{name}"),
        &Empty {},
    )
    .await
    {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(error.code(), Some(code::CONSUMER_NOT_FOUND | code::STREAM_NOT_FOUND)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Takes the pin from whoever has it; a consumer without a pin is fine.
pub(crate) async fn unpin(
    context: &jetstream::Context,
    stream: &str,
    name: &str,
    group: &str,
) -> Result<(), ApiError> {
    let body = serde_json::json!({ "group": group });
    request::<_, serde_json::Value>(context, format!("CONSUMER.UNPIN.{stream}.{name}"), &body)
        .await
        .map(|_| ())
}

/// Copies that a stream has in a cluster; what belongs to it is kept as safe. One where it cannot
/// be told.
pub(crate) async fn replicas_of(context: &jetstream::Context, stream: &str) -> usize {
    stream_info(context, stream).await.map_or(1, |info| info.config.num_replicas)
}

/// Stream info, without its subjects.
pub(crate) async fn stream_info(
    context: &jetstream::Context,
    stream: &str,
) -> Result<Info, ApiError> {
    request(context, format!("STREAM.INFO.{stream}"), &Empty {}).await
}

/// Stream info, and the missing sequences between its first and its last message.
pub(crate) async fn stream_info_and_deleted(
    context: &jetstream::Context,
    stream: &str,
) -> Result<(Info, Vec<u64>), ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        state: State,
    }
    #[derive(Deserialize)]
    struct State {
        #[serde(default)]
        deleted: Vec<u64>,
    }
    let body = serde_json::json!({ "deleted_details": true });
    let answer: serde_json::Value =
        request(context, format!("STREAM.INFO.{stream}"), &body).await?;
    let read = || Ok((Info::deserialize(&answer)?, Answer::deserialize(&answer)?.state.deleted));
    read().map_err(|error: serde_json::Error| {
        let doing = "the broker's answer about a stream could not be read";
        ApiError::Unanswered(ErrorKind::Broker.caused(doing, error))
    })
}

/// Stream info of a stream that has to be there.
pub(crate) async fn check_stream(
    context: &jetstream::Context,
    stream: &str,
) -> Result<jetstream::stream::Info, Error> {
    match stream_info(context, stream).await {
        Ok(info) => Ok(info),
        Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => {
            Err(ErrorKind::StreamNotFound.with(format!("there is no stream {stream:?}")))
        }
        Err(error) => Err(error.into_error("the stream could not be looked up")),
    }
}

/// The headers of a stored message; `None` when it has none.
pub(crate) async fn message(
    context: &jetstream::Context,
    stream: &str,
    sequence: u64,
) -> Result<Option<HeaderMap>, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        ErrorKind::Broker
            .with(format!("message {sequence} of stream {stream:?} could not be read: {error}"))
    };
    let stream = context.get_stream_no_info(stream).await.map_err(|error| failed(&error))?;
    let message = stream.get_raw_message(sequence).await.map_err(|error| failed(&error))?;
    Ok(Some(message.headers).filter(|headers| !headers.is_empty()))
}

/// Sets a consumer to another place in its stream (ADR-60, server 2.14).
pub(crate) async fn reset_consumer(
    context: &jetstream::Context,
    stream: &str,
    name: &str,
    seq: u64,
) -> Result<(), ApiError> {
    let body = serde_json::json!({ "seq": seq });
    request::<_, serde_json::Value>(context, format!("CONSUMER.RESET.{stream}.{name}"), &body)
        .await
        .map(|_| ())
}

/// The streams that store what is published to a subject.
pub(crate) async fn streams_of(
    context: &jetstream::Context,
    subject: &str,
) -> Result<Vec<String>, ApiError> {
    #[derive(Deserialize)]
    struct Names {
        #[serde(default)]
        streams: Option<Vec<String>>,
    }
    let body = serde_json::json!({ "subject": subject });
    let names: Names = request(context, "STREAM.NAMES".to_owned(), &body).await?;
    Ok(names.streams.unwrap_or_default())
}

/// Who is pinned in the priority group of a consumer.
pub(crate) fn pinned(info: &consumer::Info, group: &str) -> Option<String> {
    let state = info.priority_groups.iter().find(|g| g.group == group)?;
    state.pinned_client_id.clone().filter(|id| !id.is_empty())
}
