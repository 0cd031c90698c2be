//! What became of a stored request: its client asks once, waits for it, or has it told as an event.
//!
//! Who knows the status URL may read the result, and nobody else can: its token is a hash of an id
//! with 80 random bits, or of a key that the client chose. A token is looked up below its route's
//! name alone.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use natsway_caller::route_view::Resolved;
use natsway_routes::table::StatusPath;
use natsway_stores::results::{Kept, ResultKey};
use natsway_wire::Limits;
use natsway_wire::envelope::{self, Reply, decode_reply};

use crate::body::{ReplyBody, compact};
use crate::call::Call;
use crate::headers::{check_response, has_content};
use crate::memory::{BodyBudget, cost};
use crate::metrics::ResultState;
use crate::problem::{Problem, bad_gateway, memory_full, streams_full};
use crate::results::ShardResults;
use crate::shard::RouteStats;
use crate::stream::download::Download;

/// Says of a status whether the request is done: then all else is as its handler said.
const STATE: HeaderName = HeaderName::from_static("natsway-result");

/// How long a client would wait (RFC 7240): `wait=10`.
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The longest that is waited for a client; proxies in between give up after a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The longest that events are sent; whoever reads them connects again.
const LONGEST_EVENTS: Duration = Duration::from_secs(300);

/// Between two signs of life in a stream of events.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// How a client asks for a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Whatever there is now.
    Now,
    /// The result, if it comes within this time.
    Within(Duration),
    /// An event when it comes.
    Events,
}

impl Asked {
    fn of(headers: &HeaderMap) -> Self {
        match wants_events(headers) {
            true => Self::Events,
            false => wait(headers).map_or(Self::Now, Self::Within),
        }
    }
}

impl Call<'_> {
    /// Tells what became of the request that the path names.
    pub(crate) async fn tell_result(
        &mut self,
        resolved: &Resolved<RouteStats>,
        path: &StatusPath,
    ) -> Result<Response<ReplyBody>, Problem> {
        let (shard, route) = (self.shard, resolved.route());
        let token = path.token(self.head.uri.path());
        let key = token.and_then(|token| ResultKey::of_status(&route.name, token));
        let key = key.ok_or_else(|| self.no_result())?;
        let asked = match self.head.method == Method::HEAD {
            true => Asked::Now,
            false => Asked::of(&self.head.headers),
        };
        let mut kept = shard.results.look(&key).await;
        // Who waits for a result waits for the bucket, too.
        if let (Asked::Within(time), Ok(Kept::Pending { .. }) | Err(_)) = (asked, &kept) {
            kept = self.wait_for_result(&key, time).await;
        }
        match kept? {
            Kept::Nothing { .. } => Err(self.no_result()),
            Kept::Pending { .. } if asked == Asked::Events => self.events(key),
            Kept::Pending { .. } => self.pending(),
            Kept::Done(result) if asked == Asked::Events => self.event(&result),
            Kept::Done(result) => self.done(result),
        }
    }

    /// Waits among the shard's streams, which are as many as there may be.
    async fn wait_for_result(&self, key: &ResultKey, time: Duration) -> Result<Kept, Problem> {
        let shard = self.shard;
        let taken = shard.streams.try_take(self.from.client.address);
        let _place = taken.map_err(streams_full)?;
        let waited = shard.results.wait(key, Instant::now() + time);
        tokio::select! {
            kept = waited => kept,
            () = shard.closing.cancelled() => Ok(Kept::Pending { revision: 0 }),
        }
    }

    fn no_result(&self) -> Problem {
        self.shard.metrics.told_result(ResultState::Unknown);
        let detail = "there is no result of that id: it never was, or it has expired";
        Problem::new(StatusCode::NOT_FOUND, "unknown_result", detail)
    }

    fn pending(&self) -> Result<Response<ReplyBody>, Problem> {
        self.shard.metrics.told_result(ResultState::Pending);
        let body = match self.head.method == Method::HEAD {
            true => ReplyBody::default(),
            false => ReplyBody::from(Bytes::from_static(br#"{"state":"pending"}"#)),
        };
        let mut response = self.told(StatusCode::ACCEPTED, "application/json", body)?;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response.headers_mut().insert(STATE, HeaderValue::from_static("pending"));
        Ok(response)
    }

    /// An answer of the gateway's own, small, and of this moment.
    fn told(
        &self,
        status: StatusCode,
        content_type: &'static str,
        body: ReplyBody,
    ) -> Result<Response<ReplyBody>, Problem> {
        let held = BodyBudget::take(self.account, cost::REPLY_BYTES).ok_or_else(memory_full)?;
        let mut response = Response::new(body.holding(held));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// The handler's response, as the client would have got it.
    fn done(&self, result: Bytes) -> Result<Response<ReplyBody>, Problem> {
        let envelope::Response { status, mut headers, body, .. } = read(&result)?;
        let bytes = cost::reply_fields_bytes(&headers) + cost::reply_bytes(body.len());
        let held = BodyBudget::take(self.account, bytes).ok_or_else(memory_full)?;
        let body = compact(body);
        check_response(&self.head.method, status, &mut headers, body.len())
            .map_err(|fault| bad_result(fault.to_string()))?;
        let has_body = self.head.method != Method::HEAD && has_content(status);
        let body = if has_body { ReplyBody::from(body) } else { ReplyBody::default() };
        headers.insert(STATE, HeaderValue::from_static("done"));
        if !headers.contains_key(header::CACHE_CONTROL) {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        self.shard.metrics.told_result(ResultState::Done);
        let mut response = Response::new(body.holding(held));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// One event, of a result that is there.
    fn event(&self, result: &Bytes) -> Result<Response<ReplyBody>, Problem> {
        let status = read(result)?.status;
        self.shard.metrics.told_result(ResultState::Done);
        self.told(StatusCode::OK, EVENTS, ReplyBody::from(done_event(status)))
    }

    /// Events until the result is there, in a place among the shard's streams.
    fn events(&self, key: ResultKey) -> Result<Response<ReplyBody>, Problem> {
        let shard = self.shard;
        let open = shard.streams.try_take(self.from.client.address).map_err(streams_full)?;
        self.from.caller.unread.stream_began();
        shard.metrics.told_result(ResultState::Pending);
        let events = events_of(shard.results.clone(), key);
        let closing = shard.closing.clone().cancelled_owned();
        let download = Download::of_events(Box::pin(events), open)
            .ending_after(closing, shard.settings.drain.spread());
        let first = Bytes::from_static(b"event: pending\ndata: {}\n\n");
        self.told(StatusCode::OK, EVENTS, ReplyBody::streamed(first, download))
    }
}

/// The content type of events.
const EVENTS: &str = "text/event-stream";

/// Signs of life, and at last the event that says what became of a request.
fn events_of(results: ShardResults, key: ResultKey) -> impl Stream<Item = Bytes> {
    let until = Instant::now() + LONGEST_EVENTS;
    let waited = Box::pin(async move { results.wait(&key, until).await });
    stream::unfold(Some(waited), |waiting| async move {
        let mut waited = waiting?;
        match tokio::time::timeout(SIGN_OF_LIFE, &mut waited).await {
            Err(_) => Some((Bytes::from_static(b":\n\n"), Some(waited))),
            Ok(kept) => last_event(kept).map(|event| (event, None)),
        }
    })
}

fn last_event(kept: Result<Kept, Problem>) -> Option<Bytes> {
    match kept {
        Ok(Kept::Done(result)) => read(&result).ok().map(|response| done_event(response.status)),
        Ok(Kept::Nothing { .. }) => Some(Bytes::from_static(b"event: expired\ndata: {}\n\n")),
        // It ends, and who reads it connects again.
        Ok(Kept::Pending { .. }) | Err(_) => None,
    }
}

fn done_event(status: StatusCode) -> Bytes {
    format!("event: done\ndata: {{\"status\":{}}}\n\n", status.as_u16()).into()
}

/// Reads a result, which is a reply as a worker sends it.
fn read(result: &Bytes) -> Result<envelope::Response, Problem> {
    match decode_reply(result, Limits::DEFAULT) {
        Ok(Reply::Response(response)) => Ok(response),
        Ok(Reply::Reference(..) | Reply::Signal(_)) => Err(bad_result("it is no response".into())),
        Err(error) => Err(bad_result(error.to_string())),
    }
}

fn bad_result(reason: String) -> Problem {
    bad_gateway("bad_result", format!("what is kept as the result cannot be read: {reason}"))
}

/// Whether a client reads events: it names their type among those that it takes.
fn wants_events(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = values.flat_map(|value| value.split(','));
    types.any(|one| one.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(EVENTS))
}

/// How long a client would wait, at most as long as it may.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut wishes = values.flat_map(|value| value.split([',', ';']));
    let seconds: u64 = wishes.find_map(|wish| {
        let (name, value) = wish.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        is_wait.then(|| value.trim().trim_matches('"').parse().ok())?
    })?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &[(&'static str, &str)]) -> Asked {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        Asked::of(&headers)
    }

    #[test]
    fn a_client_waits_as_long_as_it_says_and_may() {
        let within = |seconds| Asked::Within(Duration::from_secs(seconds));
        assert_eq!(asked(&[]), Asked::Now);
        assert_eq!(asked(&[("prefer", "wait=5")]), within(5));
        assert_eq!(asked(&[("prefer", "respond-async, Wait = \"7\"")]), within(7));
        assert_eq!(asked(&[("prefer", "respond-async"), ("prefer", "wait=0")]), within(0));
        assert_eq!(asked(&[("prefer", "wait=86400")]), within(LONGEST_WAIT.as_secs()));
        for wrong in ["wait", "wait=", "wait=-1", "wait=x", "waits=5", "wait=99999999999999999999"]
        {
            assert_eq!(asked(&[("prefer", wrong)]), Asked::Now, "{wrong}");
        }
    }

    #[test]
    fn who_reads_events_says_so_by_their_type() {
        for value in ["text/event-stream", "Text/Event-Stream;q=0.9, */*"] {
            assert_eq!(asked(&[("accept", value), ("prefer", "wait=5")]), Asked::Events);
        }
        for value in ["*/*", "text/*", "text/event-streams", "application/json"] {
            assert_eq!(asked(&[("accept", value)]), Asked::Now, "{value}");
        }
    }

    #[test]
    fn the_last_event_says_the_status_or_that_nothing_is_left() {
        let headers = HeaderMap::new();
        let result = envelope::encode_response(StatusCode::CREATED, &headers, &headers, b"x");
        let done = last_event(Ok(Kept::Done(result.unwrap()))).unwrap();
        assert_eq!(done, "event: done\ndata: {\"status\":201}\n\n");
        let expired = last_event(Ok(Kept::Nothing { revision: 0 })).unwrap();
        assert_eq!(expired, "event: expired\ndata: {}\n\n");
        assert_eq!(last_event(Ok(Kept::Pending { revision: 1 })), None);
    }
}
