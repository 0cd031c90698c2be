//! A durable route: the request is a message of a stream, and its client hears so once it is.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use natsway_caller::outbound::Outbound;
use natsway_caller::publish::{Publication, PublishError, PublishFailure, Stored};
use natsway_caller::route_view::Resolved;
use natsway_routes::table::{Publish, StatusPath};
use natsway_stores::results::ResultKey;
use serde::Serialize;

use crate::body::ReplyBody;
use crate::call::Call;
use crate::memory::cost;
use crate::problem::{Problem, bad_gateway, not_admitted, unavailable};
use crate::shard::RouteStats;

/// By what a client says that two requests are one: the IETF's draft of that name.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest key.
const KEY_BYTES: usize = 128;

/// The shortest key of a request whose result is kept: who guesses a key may read that.
const SECRET_KEY_BYTES: usize = 16;

/// More than an acknowledgement has, whatever the name of its stream.
const ACK_BYTES: usize = 1_024;

/// What a client gets whose request was stored.
#[derive(Serialize)]
struct Receipt<'r> {
    id: &'r str,
    stream: &'r str,
    sequence: u64,
    duplicate: bool,
    /// Where the result will be, if it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'r str>,
}

impl Call<'_> {
    /// Stores the request in its route's stream, or tells what became of one that was.
    pub(crate) async fn store(
        &mut self,
        resolved: Resolved<RouteStats>,
    ) -> Result<Response<ReplyBody>, Problem> {
        let route = resolved.route();
        let Some(publish) = &route.publish else {
            unreachable!("only what is to be stored comes here");
        };
        if let Some(span) = self.span {
            span.routed(&self.head.method, route, self.authority.authority());
            self.spans = span.attempts();
        }
        let reads = matches!(self.head.method, Method::GET | Method::HEAD);
        let answered = match &publish.status {
            Some(path) if reads => self.tell_result(&resolved, path).await,
            _ => self.publish(&resolved, publish).await,
        };
        if let Some(stats) = &resolved.kept().durable {
            let status = answered.as_ref().map_or_else(|problem| problem.status, Response::status);
            stats.responded(status, self.started.elapsed());
        }
        answered
    }

    async fn publish(
        &mut self,
        resolved: &Resolved<RouteStats>,
        publish: &Publish,
    ) -> Result<Response<ReplyBody>, Problem> {
        let route = resolved.route();
        if self.up.is_some() {
            return Err(unavailable("route_changed", "the route changed while the body came"));
        }
        // A preflight is found by the method that it asks for.
        if !route.methods.contains(&self.head.method) {
            let detail = format!("this path is served with {} only", route.methods);
            let refused =
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail);
            return Err(Problem { allow: Some(route.methods.to_string()), ..refused });
        }
        let subject = publish.subject.subject(self.head.uri.path()).map_err(|not_listed| {
            let parameter = not_listed.parameter;
            let detail = format!("this route has no {parameter:?} of that value");
            Problem::new(StatusCode::NOT_FOUND, "no_subject", detail)
        })?;
        let shortest = if publish.status.is_some() { SECRET_KEY_BYTES } else { 1 };
        let key = idempotency_key(&self.head.headers, shortest)?;
        let message_id = message_id(&route.name, key);
        let has_key = key.is_some();
        let deadline = Instant::now() + publish.ack_timeout;
        let room = match self.reserve(resolved.kept(), ACK_BYTES) {
            Some(room) => room,
            None => self.wait_for_room(resolved.kept(), ACK_BYTES, deadline).await?,
        };
        let status = match &publish.status {
            Some(path) => Some(self.begin_result(path, &message_id, deadline).await?),
            None => None,
        };
        let publication = Publication {
            route,
            subject: &subject,
            message_id: &message_id,
            expect_stream: publish.expect_stream.as_deref(),
            deadline,
        };
        let shard = self.shard;
        let stored = shard.dispatcher.publish(self, publication).await;
        let stored = stored.map_err(|failure| not_stored(failure, has_key))?;
        let receipt = receipt(&message_id, &stored, status.as_deref());
        shard.admission.sizes.record(room.kind, receipt.len(), Instant::now());
        let held = room.reservation.arrived(cost::reply_bytes(receipt.len()));
        let held = held.ok_or_else(|| {
            let detail = "the message is stored, and the gateway has no room to say so";
            bad_gateway("no_room_for_answer", detail.to_owned())
        })?;
        let mut response = Response::new(ReplyBody::from(receipt).holding(held));
        *response.status_mut() = StatusCode::ACCEPTED;
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if let Some(status) = status {
            let location = HeaderValue::try_from(status).expect("a route's path is ASCII");
            response.headers_mut().insert(header::LOCATION, location);
        }
        Ok(response)
    }

    /// Begins the entry of a request's result, before the request is stored: there is none for an
    /// id that nobody gave out. Gives where the result will be.
    async fn begin_result(
        &self,
        path: &StatusPath,
        message_id: &str,
        deadline: Instant,
    ) -> Result<String, Problem> {
        let key = ResultKey::of_message(message_id).expect("our ids begin with the route's name");
        self.shard.results.begin(&key, deadline).await?;
        Ok(path.of_token(key.token()))
    }
}

fn receipt(id: &str, stored: &Stored, status: Option<&str>) -> Bytes {
    let Stored { stream, sequence, duplicate } = stored;
    let receipt = Receipt { id, stream, sequence: *sequence, duplicate: *duplicate, status };
    serde_json::to_vec(&receipt).expect("a receipt is strings and numbers").into()
}

/// The key that a client gave its request, of no fewer than `shortest` bytes.
fn idempotency_key(headers: &HeaderMap, shortest: usize) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let key = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(key), None) => {
            key.to_str().ok().map(unquoted).filter(|key| is_sound(key) && key.len() >= shortest)
        }
        (Some(_), Some(_)) => None,
    };
    key.map(Some).ok_or_else(|| {
        let detail = format!(
            "expected one Idempotency-Key of {shortest} to {KEY_BYTES} printable ASCII characters without \
             white space, quotes and backslashes"
        );
        Problem::new(StatusCode::BAD_REQUEST, "bad_idempotency_key", detail)
    })
}

/// The draft has a string in quotes; most clients leave them out.
fn unquoted(key: &str) -> &str {
    key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key)
}

fn is_sound(key: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    (1..=KEY_BYTES).contains(&key.len()) && key.bytes().all(sound)
}

/// By what the stream knows the message again. Routes' names have neither of the marks, so no key
/// of one route is an id of another, nor one that we made.
fn message_id(route: &str, key: Option<&str>) -> String {
    match key {
        Some(key) => format!("{route}/{key}"),
        None => format!("{route}:{}", natsway_boot::random_id()),
    }
}

/// Why a request is not known to be stored.
fn not_stored(failure: PublishFailure<Problem>, has_key: bool) -> Problem {
    let (error, may_be_stored) = match failure {
        PublishFailure::Failed { error, may_be_stored } => (error, may_be_stored),
        PublishFailure::Sender(problem) => return problem,
        PublishFailure::NotAdmitted(refused) => return not_admitted(refused),
        PublishFailure::Unencodable(error) => {
            let detail = format!("the request cannot be stored: {error}");
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Problem::new(status, "head_too_large", detail);
        }
    };
    if may_be_stored {
        return not_acknowledged(error, has_key);
    }
    let code = error.as_str();
    match error {
        PublishError::NotConnected => {
            unavailable(code, "the gateway has no connection to the broker")
        }
        PublishError::NoStream => unavailable(
            code,
            "no stream listens on this route's subject, or none has a leader; nothing is stored",
        ),
        PublishError::StreamFull => {
            unavailable(code, "the stream of this route is full; nothing is stored")
        }
        PublishError::WrongStream => unavailable(
            code,
            "another stream than this route expects listens on its subject; nothing is stored",
        ),
        PublishError::Unavailable => {
            unavailable(code, "the stream of this route cannot store now; nothing is stored")
        }
        PublishError::TooLarge => {
            let detail = "the stream of this route takes no message as large";
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, code, detail)
        }
        PublishError::Conflict => {
            let detail = "the stream expects another message before this one; nothing is stored";
            Problem::new(StatusCode::CONFLICT, code, detail)
        }
        PublishError::Refused => {
            bad_gateway(code, "the stream of this route refuses the message".to_owned())
        }
        PublishError::NotAcknowledged | PublishError::NotAnAck | PublishError::InProcess => {
            not_acknowledged(error, has_key)
        }
    }
}

/// What became of the message nobody knows.
fn not_acknowledged(error: PublishError, has_key: bool) -> Problem {
    let detail = match (error, has_key) {
        (PublishError::NotAnAck, _) => {
            let detail = "somebody who is no stream answers on this route's subject; the message \
                          may be stored or not";
            return bad_gateway(PublishError::NotAnAck.as_str(), detail.to_owned());
        }
        (_, true) => {
            "no stream acknowledged the message in time: it may be stored or not; it is safe to \
             send it again with the same Idempotency-Key within the stream's duplicate window"
        }
        (_, false) => {
            "no stream acknowledged the message in time: it may be stored or not, and sending it \
             again may store it twice; with an Idempotency-Key that would be safe within the \
             stream's duplicate window"
        }
    };
    let code = PublishError::NotAcknowledged.as_str();
    let problem = Problem::new(StatusCode::GATEWAY_TIMEOUT, code, detail);
    Problem { is_repeatable: true, ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&[u8]]) -> Result<Option<String>, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
        }
        let key = idempotency_key(&headers, 1);
        key.map(|key| key.map(str::to_owned)).map_err(|problem| problem.code)
    }

    #[test]
    fn a_key_is_taken_with_and_without_quotes() {
        assert_eq!(key(&[]), Ok(None));
        let longest = "k".repeat(KEY_BYTES);
        for (value, taken) in [
            ("a", "a"),
            ("\"8e03978e-40d5\"", "8e03978e-40d5"),
            ("a/b:c=~{}", "a/b:c=~{}"),
            (&longest, &longest),
        ] {
            assert_eq!(key(&[value.as_bytes()]), Ok(Some(taken.to_owned())));
        }
    }

    #[test]
    fn what_cannot_be_a_key_is_refused() {
        let too_long = "k".repeat(KEY_BYTES + 1);
        for values in [
            &[&b""[..]][..],
            &[b"\"\""],
            &[b"a b"],
            &[b"a\"b"],
            &[b"\"a"],
            &[b"a\\b"],
            &[b"\xc3\xa9"],
            &[b"a\tb"],
            &[too_long.as_bytes()],
            &[b"a", b"a"],
        ] {
            assert_eq!(key(values), Err("bad_idempotency_key"), "{values:?}");
        }
    }

    #[test]
    fn a_key_that_leads_to_a_result_is_not_short() {
        for (length, is_taken) in [(SECRET_KEY_BYTES - 1, false), (SECRET_KEY_BYTES, true)] {
            let mut headers = HeaderMap::new();
            headers.insert(IDEMPOTENCY_KEY, "k".repeat(length).parse().unwrap());
            let key = idempotency_key(&headers, SECRET_KEY_BYTES);
            assert_eq!(key.is_ok(), is_taken, "{length}");
        }
    }

    #[test]
    fn ids_of_two_routes_never_meet_nor_do_keys_and_ids_of_ours() {
        assert_eq!(message_id("a", Some("b/c")), "a/b/c");
        assert_ne!(message_id("a", Some("x")), message_id("b", Some("x")));
        let ours = message_id("a", None);
        assert!(ours.starts_with("a:") && ours != message_id("a", None), "{ours}");
        // Names have neither mark, so what stands before the first of them is the route.
        let route = |id: &str| id.split(['/', ':']).next().unwrap().to_owned();
        assert_eq!(route(&message_id("a", Some("b:c"))), "a");
    }

    #[test]
    fn who_may_have_stored_a_message_says_so_and_when_to_come_back() {
        let failed = |error, may_be_stored| {
            let failure = PublishFailure::Failed { error, may_be_stored };
            not_stored(failure, true)
        };
        let unknown = failed(PublishError::NoStream, true);
        assert_eq!((unknown.status.as_u16(), unknown.code), (504, "not_acknowledged"));
        assert!(unknown.is_repeatable && unknown.detail.contains("same Idempotency-Key"));
        for error in PublishError::ALL.into_iter().filter(|error| !error.may_be_stored()) {
            let problem = failed(error, false);
            assert_eq!(problem.code, error.as_str());
            assert!(!problem.detail.contains("may be stored"), "{problem:?}");
        }
    }
}
