//! The end of a request: what its client gets of a worker's answer, or is told of its failure.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body;
use natsway_caller::outbound::{Chosen, DispatchError};
use natsway_caller::stream::activity::{Activity, Watch};
use natsway_caller::stream::download::WatchedDownload;
use natsway_caller::stream::{Rest, Streamed, UpgradedStream};
use natsway_routes::table::Codec;
use natsway_wire::content_type::is_grpc;
use natsway_wire::envelope;
use natsway_wire::native::NativeReply;
use tracing::warn;

use crate::body::{ReplyBody, compact};
use crate::call::{Call, ReplyRoom};
use crate::headers::{
    announced, check_response, has_content, may_have_trailers, passable_trailers, take_length,
};
use crate::memory::cost;
use crate::metrics::TargetStats;
use crate::problem::{
    Problem, bad_gateway, given_up, not_admitted, response_streams_full, unavailable,
};
use crate::shard::RouteStats;
use crate::stream::OpenStream;
use crate::stream::becomes::Becomes;
use crate::stream::download::Download;
use crate::stream::splice::Spliced;
use crate::stream::websocket::FrameBoundary;

impl Call<'_> {
    /// The problem that says why there is no answer.
    pub(crate) fn failed(&self, error: DispatchError<Call<'_>>) -> Problem {
        match error {
            DispatchError::Sender(problem) => problem,
            DispatchError::NoVersion => {
                unavailable("no_version", "no version of this service takes traffic now")
            }
            DispatchError::Unencodable(error) => {
                let detail = format!("the request cannot be forwarded: {error}");
                Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail)
            }
            DispatchError::NotAdmitted(refused) => not_admitted(refused),
            // It is sent once more, in a message.
            DispatchError::GivenUp { error, attempts, .. } if self.is_unread() => {
                given_up(error, attempts)
            }
            DispatchError::GivenUp { error, attempts, chosen, .. } => {
                self.counted(stats(&chosen), given_up(error, attempts))
            }
            DispatchError::BadReply { reason, chosen } => {
                self.bad_reply(stats(&chosen), format!("unreadable reply: {reason}"))
            }
        }
    }

    /// The response for a client, of a worker's that was checked.
    pub(crate) fn respond(
        &self,
        reply: NativeReply,
        chosen: &Chosen<RouteStats>,
        room: ReplyRoom,
    ) -> Result<Response<ReplyBody>, Problem> {
        let stats = stats(chosen);
        let mut is_value = chosen.route().codec == Codec::Args;
        let mut response = match reply {
            NativeReply::Response(response) => response,
            NativeReply::ServiceError { status, text, headers, body } => {
                // Without a body it is a problem of ours.
                is_value &= !body.is_empty();
                let error = envelope::Response {
                    status,
                    headers,
                    trailers: HeaderMap::new(),
                    body,
                    join: None,
                };
                service_error(error, text, self.from.request_id)
            }
        };
        if is_value {
            let rendered = self.rendered(response, chosen.route());
            response = rendered.map_err(|reason| self.bad_reply(stats, reason))?;
        }
        let envelope::Response { status, mut headers, trailers, body, .. } = response;
        let fields_bytes = cost::reply_fields_bytes(&headers) + cost::reply_fields_bytes(&trailers);
        let ReplyRoom { kind, reservation } = room;
        self.shard.admission.sizes.record(kind, fields_bytes + body.len(), Instant::now());
        let reply_bytes = fields_bytes + cost::reply_bytes(body.len());
        let Some(held) = reservation.arrived(reply_bytes) else {
            let detail = "the answer is larger than those before, and the gateway has no room for \
                          it; the request ran";
            return Err(self.counted(stats, bad_gateway("no_room_for_answer", detail.to_owned())));
        };
        let body = compact(body);
        if let Err(fault) = check_response(&self.head.method, status, &mut headers, body.len()) {
            let reason = format!("the worker's response is wrong: {fault}");
            return Err(self.bad_reply(stats, reason));
        }
        let content = self.head.method != Method::HEAD && has_content(status);
        if !has_content(status) && !body.is_empty() {
            self.shard.metrics.bodies_dropped.inc();
        }
        let trailers = self.passable_trailers(trailers, content);
        if let Some(names) = announced(&trailers) {
            headers.insert(header::TRAILER, names);
        }
        let body = if content { ReplyBody::new(body, trailers) } else { ReplyBody::default() };
        let mut response = Response::new(body.holding(held));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        stats.responded(status, self.started.elapsed());
        Ok(response)
    }

    /// The response for a client whose body goes on by a stream, or which is a connection.
    pub(crate) fn respond_streamed(
        &mut self,
        streamed: Streamed,
        chosen: &Chosen<RouteStats>,
        room: ReplyRoom,
    ) -> Result<Response<ReplyBody>, Problem> {
        let stats = stats(chosen);
        let Streamed { response, rest } = streamed;
        let envelope::Response { status, mut headers, body: first, .. } = response;
        let fields_bytes = cost::reply_fields_bytes(&headers);
        let ReplyRoom { kind, reservation } = room;
        let bytes = fields_bytes + first.len();
        self.shard.admission.sizes.record(kind, bytes, Instant::now());
        let Some(held) = reservation.arrived(fields_bytes + cost::reply_bytes(first.len())) else {
            let detail = "the answer is larger than those before, and the gateway has no room for \
                          it; the request ran";
            return Err(self.counted(stats, bad_gateway("no_room_for_answer", detail.to_owned())));
        };
        let (activity, open) = match self.up.as_mut() {
            Some(up) => (Arc::clone(&up.activity), up.open.take()),
            None => (Activity::start(), None),
        };
        activity.note();
        self.from.caller.unread.stream_began();
        let open = match open {
            Some(open) => open,
            None => {
                let taken = self.shard.streams.try_take(self.from.client.address);
                taken.map_err(|full| self.counted(stats, response_streams_full(full)))?
            }
        };
        let length = take_length(&mut headers);
        let announced = headers.remove(header::TRAILER);
        let is_upgrade = status == StatusCode::SWITCHING_PROTOCOLS;
        let checked = if is_upgrade { StatusCode::OK } else { status };
        if let Err(fault) = check_response(&self.head.method, checked, &mut headers, 0) {
            let reason = format!("the worker's response is wrong: {fault}");
            return Err(self.bad_reply(stats, reason));
        }
        let limits = chosen.route().streams;
        let rest = match rest {
            Rest::Upgraded(worker) => {
                return self.become_connection(worker, headers, open, chosen);
            }
            Rest::Body(rest) => rest,
        };
        let is_stream_of_http2 = self.up.as_ref().is_some_and(|up| up.on_upgrade.is_some());
        if is_stream_of_http2 && status.is_success() {
            let detail = format!("the service answered {status} and did not upgrade");
            return Err(self.counted(stats, bad_gateway("not_upgraded", detail)));
        }
        // What ends with its head ends so for the client too, as a call by gRPC does that failed.
        let is_empty = first.is_empty() && length.unwrap_or_default() == 0;
        let is_whole = is_empty && rest.is_end_stream();
        let content = self.head.method != Method::HEAD && has_content(status);
        let body = if content && !is_whole {
            let is_events = has_type(&headers, "text/event-stream");
            let idle_timeout = match is_events || is_grpc(&headers) {
                true => limits.session_idle_timeout(),
                false => limits.body_idle_timeout(),
            };
            let watch = Watch::new(activity, idle_timeout, limits.max_age);
            let takes_trailers = may_have_trailers(&self.head.headers, self.head.version);
            if takes_trailers && let Some(announced) = announced {
                headers.insert(header::TRAILER, announced);
            }
            let trailers_for =
                takes_trailers.then(|| (self.head.headers.clone(), self.head.version));
            let left = length.map(|length| length.saturating_sub(first.len() as u64));
            let rest = WatchedDownload::new(rest, watch, left);
            let mut download = Download::new(rest, trailers_for, open);
            if is_events {
                let closing = self.shard.closing.clone().cancelled_owned();
                download = download.ending_after(closing, self.shard.settings.drain.spread());
            }
            ReplyBody::streamed(compact(first), download)
        } else {
            if let Some(length) = length {
                headers.insert(header::CONTENT_LENGTH, length.into());
            }
            ReplyBody::default()
        };
        if self.up.as_ref().is_some_and(|up| up.progress.has_ended()) {
            self.from.caller.unread.request_ended();
        }
        let mut response = Response::new(body.holding(held));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        stats.responded(status, self.started.elapsed());
        Ok(response)
    }

    /// The response by which a client's connection, or its stream of HTTP/2, becomes one to a
    /// handler.
    fn become_connection(
        &mut self,
        worker: UpgradedStream,
        mut headers: HeaderMap,
        open: OpenStream,
        chosen: &Chosen<RouteStats>,
    ) -> Result<Response<ReplyBody>, Problem> {
        let (stats, limits) = (stats(chosen), chosen.route().streams);
        let Some(up) = self.up.as_mut() else {
            return Err(
                self.bad_reply(stats, "it is a connection that nobody asked for".to_owned())
            );
        };
        let protocol = up.protocol.clone().unwrap_or_default();
        let spliced = Spliced {
            worker,
            frames: (protocol == "websocket").then(FrameBoundary::default),
            watch: Watch::new(Activity::start(), limits.session_idle_timeout(), limits.max_age),
            closing: self.shard.closing.clone(),
            spread: self.shard.settings.drain.spread(),
            write_timeout: self.shard.settings.client.send.span,
            open,
        };
        let becomes = Becomes::Spliced(Box::new(spliced));
        let mut response = Response::new(ReplyBody::default());
        match up.on_upgrade.take() {
            Some(on_upgrade) => {
                headers.remove(header::SEC_WEBSOCKET_ACCEPT);
                *response.body_mut() = ReplyBody::becoming(on_upgrade, becomes);
            }
            None => {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                let protocol = HeaderValue::try_from(protocol);
                headers.insert(header::UPGRADE, protocol.expect("the client's own token"));
                self.from.caller.becomes.replace(Some(becomes));
            }
        }
        self.from.caller.unread.request_ended();
        *response.headers_mut() = headers;
        stats.responded(StatusCode::OK, self.started.elapsed());
        Ok(response)
    }

    /// The trailers that this client may have; the others are counted.
    fn passable_trailers(&self, trailers: HeaderMap, content: bool) -> HeaderMap {
        if trailers.is_empty() {
            return trailers;
        }
        let all = trailers.len();
        let passed = passable_trailers(trailers, &self.head.headers, self.head.version, content);
        self.shard.metrics.trailers_dropped.add((all - passed.len()) as u64);
        passed
    }

    /// A reply that no client can get: told in the log now and then, for it is a fault of the
    /// worker's program.
    fn bad_reply(&self, stats: &TargetStats, reason: String) -> Problem {
        self.shard.metrics.bad_replies.inc();
        if let Some(unsaid) = self.shard.bad_replies.borrow_mut().say(Instant::now()) {
            let (route, version, request_id) =
                (stats.route(), stats.version(), self.from.request_id);
            warn!(route, version, request_id, reason, unsaid, "reply not passed on");
        }
        self.counted(stats, bad_gateway("bad_reply", reason))
    }

    /// Counts a failure with the version that it was with.
    fn counted(&self, stats: &TargetStats, problem: Problem) -> Problem {
        stats.responded(problem.status, self.started.elapsed());
        problem
    }
}

/// Whether the content is of this type, with whatever parameters or suffix.
fn has_type(headers: &HeaderMap, name: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    value.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
}

/// The metrics of a version.
fn stats(chosen: &Chosen<RouteStats>) -> &TargetStats {
    &chosen.kept().versions[chosen.version]
}

/// A native backend's error as a response: with its own fields, and its own body or else its text
/// as a problem.
fn service_error(error: envelope::Response, text: String, request_id: &str) -> envelope::Response {
    let detail = if text.is_empty() { "the service reports an error".to_owned() } else { text };
    let problem = Problem::new(error.status, "service_error", detail);
    let envelope::Response { status, headers: mut own, trailers, mut body, .. } = error;
    let mut headers = problem.fields();
    if body.is_empty() {
        body = problem.document(Some(request_id));
        // They would describe a body that is not there.
        for name in
            [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH, header::ETAG]
        {
            own.remove(name);
        }
    } else {
        headers.remove(header::CONTENT_TYPE);
    }
    headers.extend(own);
    envelope::Response { status, headers, trailers, body, join: None }
}
