//! The end of a request: what its client gets of a worker's answer, or is told of its failure.

use std::time::Instant;

use http::{HeaderMap, Method, Response, StatusCode, header};
use natsway_caller::outbound::{Chosen, DispatchError};
use natsway_wire::envelope;
use natsway_wire::native::NativeReply;
use tracing::warn;

use crate::body::{ReplyBody, compact};
use crate::call::{Call, ReplyRoom};
use crate::headers::{announced, check_response, has_content, passable_trailers};
use crate::memory::cost;
use crate::metrics::TargetStats;
use crate::problem::{Problem, bad_gateway, given_up, not_admitted, unavailable};
use crate::shard::RouteStats;

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
        let envelope::Response { status, mut headers, trailers, body } = match reply {
            NativeReply::Response(response) => response,
            NativeReply::ServiceError { status, text, headers, body } => {
                let error =
                    envelope::Response { status, headers, trailers: HeaderMap::new(), body };
                service_error(error, text, self.from.request_id)
            }
        };
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

/// The metrics of a version.
fn stats(chosen: &Chosen<RouteStats>) -> &TargetStats {
    &chosen.kept().versions[chosen.version]
}

/// A native backend's error as a response: with its own fields, and its own body or else its text
/// as a problem.
fn service_error(error: envelope::Response, text: String, request_id: &str) -> envelope::Response {
    let detail = if text.is_empty() { "the service reports an error".to_owned() } else { text };
    let problem = Problem::new(error.status, "service_error", detail);
    let envelope::Response { status, headers: mut own, trailers, mut body } = error;
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
    envelope::Response { status, headers, trailers, body }
}
