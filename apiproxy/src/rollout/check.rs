//! Asking workers: are they there, do they answer, would they leave.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, StatusCode as NatsStatus};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, StatusCode};
use natsway_args::accept::Rendering;
use natsway_args::reply::render;
use natsway_args::request::{Request, encode};
use natsway_boot::Clock;
use natsway_routes::table::{Codec, Route, Target};
use natsway_wire::envelope::{Reply, RequestEncoder, Signal, decode_reply};
use natsway_wire::native::{self, DEADLINE, METHOD, NativeReply, PATH};
use natsway_wire::{Limits, control};
use serde::Deserialize;

use super::machine::Workers;

/// How long services may take to say that they are there.
const PRESENCE_LIMIT: Duration = Duration::from_millis(500);

/// How long a worker may be without a connection that changes it.
const RECONNECT_LIMIT: Duration = Duration::from_secs(1);

/// How long the smoke request may take.
const SMOKE_LIMIT: Duration = Duration::from_secs(3);

/// The question of ADR-32 that is answered with subjects; a PING says no more than names.
const INFO: &str = "$SRV.INFO";

/// Whether a version answers: somebody announces its subject, and the smoke request, if there is
/// one, is answered with a status below 500. Gives a sentence about it either way.
///
/// # Errors
/// It does not, and why.
pub async fn answers(
    client: &Client,
    target: &Target,
    route: &Route,
    smoke: Option<&str>,
) -> Result<String, String> {
    let announced = members(client, target, Some(1)).await?;
    // Not each NATS client announces itself.
    if announced == 0 && route.codec == Codec::Http {
        return Err(format!("no worker announces {} (ADR-32, {INFO})", target.subject));
    }
    let Some(path) = smoke else { return Ok(format!("a worker announces {}", target.subject)) };
    let answer = tokio::time::timeout(SMOKE_LIMIT, request(client, target, route, path)).await;
    let status =
        answer.map_err(|_| format!("no answer to GET {path} within {SMOKE_LIMIT:?}"))??;
    match status.is_server_error() {
        true => Err(format!("GET {path} is answered with {status}")),
        false => Ok(format!("{} answers GET {path} with {}", target.subject, status.as_u16())),
    }
}

/// Asks the workers of a version to leave, and says what is known of them.
///
/// Silence proves nothing: workers hear this question until they are gone, so only the broker's
/// word that nobody listens counts, twice, for one of them may have been changing its connection.
///
/// # Errors
/// The broker does not take the question.
pub async fn ask_to_leave(
    client: &Client,
    target: &Target,
    codec: Codec,
) -> Result<Workers, String> {
    let question = || question(client, control::drain_subject(&target.subject));
    let mut is_nobody = question().await? == Listening::Nobody;
    if is_nobody {
        tokio::time::sleep(RECONNECT_LIMIT).await;
        is_nobody = question().await? == Listening::Nobody;
    }
    Ok(match members(client, target, None).await? {
        // Any NATS client need not hear it, nor announce itself.
        0 if is_nobody && codec == Codec::Http => Workers::Gone,
        0 => Workers::Silent,
        count => Workers::There(count),
    })
}

/// Whether anybody listens on a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    /// The broker says that nobody does.
    Nobody,
    /// Somebody does, or the broker says nothing.
    Perhaps,
}

async fn question(client: &Client, subject: String) -> Result<Listening, String> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
    let asked = client.publish_with_reply(subject, inbox, Bytes::new()).await;
    asked.map_err(|error| error.to_string())?;
    let first = tokio::time::timeout(PRESENCE_LIMIT, answers.next()).await;
    let is_nobody =
        matches!(first, Ok(Some(answer)) if answer.status == Some(NatsStatus::NO_RESPONDERS));
    Ok(if is_nobody { Listening::Nobody } else { Listening::Perhaps })
}

/// The members of a target's queue group that announce themselves; `enough` of them need not be
/// waited for.
async fn members(client: &Client, target: &Target, enough: Option<usize>) -> Result<usize, String> {
    #[derive(Deserialize)]
    struct Info {
        endpoints: Vec<Endpoint>,
    }
    #[derive(Deserialize)]
    struct Endpoint {
        subject: String,
    }
    let serves = |message: &Message| {
        let info = serde_json::from_slice::<Info>(&message.payload);
        info.is_ok_and(|info| {
            info.endpoints.iter().any(|endpoint| endpoint.subject == target.subject.as_str())
        })
    };
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
    let asked = client.publish_with_reply(INFO, inbox, Bytes::new()).await;
    asked.map_err(|error| error.to_string())?;
    let mut count = 0;
    let until = tokio::time::Instant::now() + PRESENCE_LIMIT;
    while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
        if answer.status == Some(NatsStatus::NO_RESPONDERS) {
            break;
        }
        count += usize::from(serves(&answer));
        if enough.is_some_and(|enough| count >= enough) {
            break;
        }
    }
    Ok(count)
}

/// One GET, sent as the gateway sends them.
async fn request(
    client: &Client,
    target: &Target,
    route: &Route,
    path: &str,
) -> Result<StatusCode, String> {
    let deadline_ms = SMOKE_LIMIT.as_millis() as u32;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
    let subject = target.subject.to_string();
    let published = match route.codec {
        Codec::Http => {
            let sent_ms = Clock::start().unix_ms_at(Instant::now());
            let mut encoder = RequestEncoder::new(deadline_ms, sent_ms, "GET", path, 256)
                .map_err(|error| error.to_string())?;
            encoder.header("user-agent", b"natsway-rollout").map_err(|error| error.to_string())?;
            client.publish_with_reply(subject, inbox, encoder.finish(&[])).await
        }
        Codec::Native => {
            let mut headers = HeaderMap::new();
            headers.insert(METHOD, "GET");
            headers.insert(PATH, path);
            headers.insert(DEADLINE, deadline_ms.to_string().as_str());
            client.publish_with_reply_and_headers(subject, inbox, headers, Bytes::new()).await
        }
        Codec::Args => {
            let mut headers = HeaderMap::new();
            headers.insert(DEADLINE, deadline_ms.to_string().as_str());
            let arguments = smoke_arguments(route, path)?;
            client.publish_with_reply_and_headers(subject, inbox, headers, arguments).await
        }
    };
    published.map_err(|error| error.to_string())?;
    while let Some(answer) = answers.next().await {
        if answer.status == Some(NatsStatus::NO_RESPONDERS) {
            return Err(format!("nobody listens at {}", target.subject));
        }
        match read(route, &answer)? {
            Some(status) => return Ok(status),
            None => continue,
        }
    }
    Err("the connection to the broker was lost".to_owned())
}

/// The arguments of a GET that nobody made.
fn smoke_arguments(route: &Route, path: &str) -> Result<Bytes, String> {
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    let request = Request {
        method: &Method::GET,
        path: &route.forwarded_path(path),
        query,
        peer: Ipv4Addr::LOCALHOST.into(),
        id: "natsway-rollout",
        parameters: &route.path.parameters(path),
        named: &[],
        head: &http::HeaderMap::new(),
        body: &Bytes::new(),
    };
    encode(&request, &route.args).map_err(|problem| problem.detail.into_owned())
}

/// The status of an answer; `None` when the answer is still to come.
fn read(route: &Route, answer: &Message) -> Result<Option<StatusCode>, String> {
    if route.codec.is_for_any_client() {
        let fields = answer.headers.iter().flat_map(HeaderMap::iter);
        let pairs = fields.flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| (name, value.as_str()))
        });
        let reply = native::decode_reply(pairs, answer.payload.clone())
            .map_err(|error| error.to_string())?;
        return Ok(Some(match reply {
            NativeReply::Response(response) if route.codec == Codec::Args => {
                let rendered = render(route.args.format, &response.body, &Rendering::Text);
                rendered.map_err(|error| error.to_string())?.status.unwrap_or(response.status)
            }
            NativeReply::Response(response) => response.status,
            NativeReply::ServiceError { status, .. } => status,
        }));
    }
    match decode_reply(&answer.payload, Limits::DEFAULT).map_err(|error| error.to_string())? {
        Reply::Response(response) | Reply::Reference(response, _) => Ok(Some(response.status)),
        Reply::Signal(Signal::Accepted { .. } | Signal::Ready { .. } | Signal::Invite { .. }) => {
            Ok(None)
        }
        Reply::Signal(Signal::NotRun(reason)) => {
            Err(format!("the worker did not run it: {}", reason.as_str()))
        }
    }
}
