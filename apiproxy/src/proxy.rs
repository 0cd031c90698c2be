//! The path of a request: match, encode, publish, wait, answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use natsway_wire::envelope;
use natsway_wire::native::NativeReply;
use tracing::info;

use crate::body::{ReadError, ReplyBody, read_whole};
use crate::core::Core;
use crate::encode::{Encoded, Sending};
use crate::headers::{Origin, REQUEST_ID, check_response, sound_request_id};
use crate::inspect::{authority, inspect};
use crate::link::{Answer, Outgoing};
use crate::metrics::{Gauge, TargetStats};
use crate::problem::Problem;
use crate::retry::{Miss, Next, Tries};
use crate::table::{Lookup, Route};

/// Answers one request, whatever happens to it.
pub async fn handle(
    core: Rc<Core>,
    peer: SocketAddr,
    closing: bool,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let started = Instant::now();
    core.metrics.requests.inc();
    core.budget.borrow_mut().deposit();
    let request_id = match sound_request_id(request.headers()) {
        Some(id) => id.to_owned(),
        None => natsway_boot::random_id(),
    };
    let (version, method) = (request.version(), request.method().clone());
    let logged = core.settings.access_log.then(|| request.uri().path().to_owned());

    let served = serve(&core, peer, &request_id, request, started).await;
    let mut response = served.unwrap_or_else(|problem| {
        core.metrics.problem(problem.code);
        problem.into_response(&request_id)
    });

    if let Some(path) = logged {
        let (status, duration) = (response.status().as_u16(), started.elapsed());
        info!(target: "access", %peer, %method, path, status, ?duration, request_id);
    }
    let id = HeaderValue::try_from(request_id).expect("a sound request id is a header value");
    response.headers_mut().insert(REQUEST_ID, id);
    if closing && version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// What stays the same over the tries of one request.
struct Call<'c> {
    core: &'c Core,
    started: Instant,
    host: String,
    head: http::request::Parts,
    body: Bytes,
    peer: SocketAddr,
    authority: String,
    request_id: &'c str,
}

async fn serve(
    core: &Rc<Core>,
    peer: SocketAddr,
    request_id: &str,
    request: Request<Incoming>,
    started: Instant,
) -> Result<Response<ReplyBody>, Problem> {
    let (head, body) = request.into_parts();
    inspect(&head, &core.settings.client)?;
    let authority = authority(&head)?;
    let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
    let authority = authority.as_str().to_owned();

    let limit_bytes = {
        let view = core.routes();
        find(view.table.look_up(&host, head.uri.path(), &head.method))?.1.limits.body_bytes
    };
    let reading = tokio::time::timeout(core.settings.client.body_timeout, read_whole(body, limit_bytes));
    let body = reading.await.map_err(|_| request_timeout())?.map_err(|error| match error {
        ReadError::TooLarge => too_large(limit_bytes),
        ReadError::Broken => {
            Problem::new(StatusCode::BAD_REQUEST, "broken_body", "the body broke off or is malformed")
        }
    })?;
    Call { core, started, host, head, body, peer, authority, request_id }.run().await
}

fn find(lookup: Lookup<'_>) -> Result<(usize, &std::sync::Arc<Route>), Problem> {
    match lookup {
        Lookup::Found(index, route) => Ok((index, route)),
        Lookup::NotFound => {
            Err(Problem::new(StatusCode::NOT_FOUND, "no_route", "no route matches this host and path"))
        }
        Lookup::MethodNotAllowed(methods) => {
            let detail = format!("this path is served with {methods} only");
            let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail);
            Err(Problem { allow: Some(methods.to_string()), ..problem })
        }
    }
}

impl Call<'_> {
    /// Tries until there is an answer, or no try is left.
    async fn run(self) -> Result<Response<ReplyBody>, Problem> {
        let mut encoded: Option<Encoded> = None;
        let mut tries: Option<Tries> = None;
        loop {
            // Each try resolves the route again: what a try missed may be because it changed.
            let view = self.core.routes();
            let (index, route) =
                find(view.table.look_up(&self.host, self.head.uri.path(), &self.head.method))?;
            let deadline = self.started + route.timeout;
            let idempotent = self.head.method.is_idempotent();
            let tries =
                tries.get_or_insert_with(|| Tries::new(route.retry, idempotent, self.started, deadline));
            let Some(target) = route.split.pick(fastrand::u32(..)) else {
                return Err(unavailable("no_version", "no version of this service takes traffic now"));
            };
            let target = view.target(index, target);
            let answer = match self.core.link() {
                None => Answer::Miss(Miss::NotConnected),
                Some(link) => {
                    // Only an idempotent request can use what a shorter try leaves of the time.
                    let until =
                        if idempotent { deadline.min(Instant::now() + route.try_timeout) } else { deadline };
                    let sending = Sending::until(until, link.now_ms());
                    let message = match &mut encoded {
                        Some(encoded) => encoded.stamped(sending),
                        none => none.insert(self.encode(route, sending)?).first(),
                    };
                    if message.bytes() > link.max_payload() {
                        let most = link.max_payload();
                        let detail = format!(
                            "with its headers this request is above the broker's limit of {most} bytes"
                        );
                        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
                    }
                    if !link.has_room(message.bytes()) {
                        return Err(unavailable(
                            "overloaded",
                            "the gateway has as many requests out as it may",
                        ));
                    }
                    let _in_flight = InFlight::new(&target.stats.in_flight);
                    let outgoing = Outgoing {
                        subject: target.subject.clone(),
                        manners: message.manners(route.cancel),
                        payload: message.payload,
                        headers: message.headers,
                        deadline: until,
                    };
                    link.call(outgoing).await
                }
            };
            match answer {
                Answer::Http(response) => return self.respond(response, &target.stats),
                Answer::Native(NativeReply::Response(response)) => {
                    return self.respond(response, &target.stats);
                }
                Answer::Native(NativeReply::ServiceError { status, text, body }) => {
                    target.stats.responded(status, self.started.elapsed());
                    return service_error(status, text, body, self.request_id);
                }
                Answer::Unreadable(reason) => {
                    self.core.metrics.bad_replies.inc();
                    return self.fail(
                        &target.stats,
                        bad_gateway("bad_reply", format!("unreadable reply: {reason}")),
                    );
                }
                Answer::Miss(miss) => match self.after_miss(miss, tries) {
                    Next::RetryAfter(pause) => {
                        drop(view);
                        if !pause.is_zero() {
                            tokio::time::sleep(pause).await;
                        }
                    }
                    Next::GiveUp => return self.fail(&target.stats, given_up(miss, tries)),
                },
            }
        }
    }

    fn after_miss(&self, miss: Miss, tries: &mut Tries) -> Next {
        self.core.metrics.missed(miss);
        let next = tries.after(miss, Instant::now(), fastrand::f64(), &mut self.core.budget.borrow_mut());
        if next != Next::GiveUp {
            self.core.metrics.retries.inc();
        }
        next
    }

    fn encode(&self, route: &Route, sending: Sending) -> Result<Encoded, Problem> {
        let said_length = self.head.headers.contains_key(header::CONTENT_LENGTH);
        let origin = Origin {
            peer: self.peer,
            trusted: self.core.settings.trusts(self.peer.ip()),
            authority: &self.authority,
            request_id: self.request_id,
            body_bytes: (said_length || !self.body.is_empty()).then_some(self.body.len()),
        };
        let path = self.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = route.forwarded_path(path);
        Encoded::new(route.codec, sending, &self.head, &path, origin, &self.body).map_err(|error| {
            let detail = format!("the request cannot be forwarded: {error}");
            Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail)
        })
    }

    /// The response for a client, of a worker's that was checked.
    fn respond(
        &self,
        reply: envelope::Response,
        stats: &TargetStats,
    ) -> Result<Response<ReplyBody>, Problem> {
        let envelope::Response { status, mut headers, trailers, body } = reply;
        if let Err(fault) = check_response(&self.head.method, status, &mut headers, body.len()) {
            self.core.metrics.bad_replies.inc();
            return self
                .fail(stats, bad_gateway("bad_reply", format!("the worker's response is wrong: {fault}")));
        }
        let bodiless = self.head.method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
        let body = match bodiless {
            true => ReplyBody::default(),
            false => ReplyBody::new(body, self.wanted_trailers(trailers)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        stats.responded(status, self.started.elapsed());
        Ok(response)
    }

    /// HTTP/1 clients get trailers only when they say that they can take them.
    fn wanted_trailers(&self, trailers: HeaderMap) -> HeaderMap {
        let wanted = || {
            let values = self.head.headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
            values
                .flat_map(|value| value.split(','))
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        };
        if trailers.is_empty() || self.head.version >= Version::HTTP_2 || wanted() {
            trailers
        } else {
            HeaderMap::new()
        }
    }

    /// Counts a failure with the version that it was with.
    fn fail(&self, stats: &TargetStats, problem: Problem) -> Result<Response<ReplyBody>, Problem> {
        stats.responded(problem.status, self.started.elapsed());
        Err(problem)
    }
}

/// A try that is out, for the gauge.
struct InFlight<'g>(&'g Gauge);

impl<'g> InFlight<'g> {
    fn new(gauge: &'g Gauge) -> InFlight<'g> {
        gauge.add(1);
        InFlight(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// A native backend's error, with its own words: its body where it has one.
fn service_error(
    status: StatusCode,
    text: String,
    body: Bytes,
    request_id: &str,
) -> Result<Response<ReplyBody>, Problem> {
    let detail = if text.is_empty() { "the service reports an error".to_owned() } else { text };
    let problem = Problem::new(status, "service_error", detail);
    if body.is_empty() {
        return Err(problem);
    }
    let mut response = problem.into_response(request_id);
    response.headers_mut().remove(header::CONTENT_TYPE);
    *response.body_mut() = ReplyBody::from(body);
    Ok(response)
}

fn given_up(miss: Miss, tries: &Tries) -> Problem {
    let detail = || format!("no answer after {} tries; the request may have run", tries.made());
    match miss {
        Miss::NotConnected => unavailable(miss.as_str(), "the gateway has no connection to the broker"),
        Miss::NoResponders | Miss::Moved => unavailable(miss.as_str(), "no worker of this service is there"),
        Miss::Overloaded => unavailable(miss.as_str(), "the workers of this service are full"),
        Miss::Expired => unavailable(miss.as_str(), "the request reached no worker in time"),
        Miss::InstanceLost => {
            bad_gateway(miss.as_str(), "the worker that ran this request is gone".to_owned())
        }
        Miss::ConnectionLost | Miss::TimedOut => {
            Problem::new(StatusCode::GATEWAY_TIMEOUT, miss.as_str(), detail())
        }
    }
}

fn unavailable(code: &'static str, detail: &'static str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
}

fn bad_gateway(code: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, code, detail)
}

fn too_large(limit_bytes: usize) -> Problem {
    let detail = format!("the body is above this route's limit of {limit_bytes} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

fn request_timeout() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body did not arrive in time")
}
