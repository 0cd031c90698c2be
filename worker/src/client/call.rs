//! One call: its route by name, a version of it, tries until there is an answer.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use natsway_caller::encode::{Encoded, Fields, Sending, TraceFields};
use natsway_caller::link::{Answer, Link, Outgoing, Refused};
use natsway_caller::retry::{Miss, Next, Tries};
use natsway_routes::table::{Codec, Route};
use natsway_wire::envelope;
use natsway_wire::native::NativeReply;
use tokio::sync::oneshot;

use super::context::{REQUEST_ID, TRACEPARENT, TRACESTATE};
use super::desk::Desk;
use super::error::{CallError, CallErrorKind};
use super::spans::TrySpans;
use super::view::{TargetView, View};
use crate::{Body, Deadline};

/// A call on its way to the client's thread.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) request: Request<Body>,
    pub(super) started: Instant,
    pub(super) answer: oneshot::Sender<Result<Response<Body>, CallError>>,
}

/// Answers a call, unless nobody waits for it any more: then what is out is dropped, which cancels it at its worker.
pub(super) async fn answer(desk: Rc<Desk>, call: Call) {
    let Call { request, started, mut answer } = call;
    let carried = tokio::select! {
        biased;
        carried = carry(&desk, request, started) => carried,
        () = answer.closed() => return,
    };
    answer.send(carried).ok();
}

async fn carry(desk: &Desk, request: Request<Body>, started: Instant) -> Result<Response<Body>, CallError> {
    let (mut head, body) = request.into_parts();
    let name = route_name(&head)?;
    // Names the call in the logs of whoever answers it, also when it follows from no request.
    head.headers.entry(REQUEST_ID).or_insert_with(|| {
        HeaderValue::try_from(natsway_boot::random_id()).expect("letters and digits are a header value")
    });
    let span = desk.spans.begin(&name, &head);
    let mut spans = span.tries();
    let carried = Carried { desk, name, head, body: body.into_bytes(), started }.run(&mut spans).await;
    // The last try ends before the call does.
    drop(spans);
    span.end(&carried);
    carried
}

/// The route that a request's authority names.
fn route_name(head: &Parts) -> Result<String, CallError> {
    let refused = |reason: String| CallError::new(CallErrorKind::Refused, "", reason);
    let Some(authority) = head.uri.authority() else {
        return Err(refused(format!(
            "the uri {:?} names no route: expected http://<route>/<path>",
            head.uri
        )));
    };
    if authority.as_str() != authority.host() {
        return Err(refused(format!(
            "{authority:?}: expected the name of a route, without a port or a user"
        )));
    }
    Ok(authority.host().to_owned())
}

/// What stays the same over the tries of one call.
struct Carried<'d> {
    desk: &'d Desk,
    name: String,
    head: Parts,
    body: Bytes,
    started: Instant,
}

impl Carried<'_> {
    /// Tries until there is an answer, or no try is left. Each looks the route up anew: what the one before missed may
    /// be because it changed.
    async fn run(&self, spans: &mut TrySpans) -> Result<Response<Body>, CallError> {
        let (mut tries, deadline) = self.begin(&self.desk.routes())?;
        if deadline <= Instant::now() {
            return Err(CallError::too_late(&self.name));
        }
        self.desk.budget.borrow_mut().deposit();
        let mut encoded = None;
        loop {
            let miss = match self.try_once(&tries, spans, &mut encoded).await? {
                Answer::Miss(miss) => miss,
                Answer::Http(response) | Answer::Native(NativeReply::Response(response)) => {
                    return Ok(http_response(response));
                }
                Answer::Native(NativeReply::ServiceError { status, text, headers, body }) => {
                    let body = if body.is_empty() { text.into() } else { body };
                    let trailers = HeaderMap::new();
                    return Ok(http_response(envelope::Response { status, headers, trailers, body }));
                }
                Answer::Unreadable(reason) => return Err(self.error(CallErrorKind::BadReply, reason)),
            };
            let (now, jitter) = (Instant::now(), fastrand::f64());
            let next = tries.after(miss, now, jitter, &mut self.desk.budget.borrow_mut());
            match next {
                Next::GiveUp => return Err(CallError::given_up(&self.name, miss, tries.may_have_run())),
                Next::RetryAfter(Duration::ZERO) => {}
                Next::RetryAfter(pause) => tokio::time::sleep(pause).await,
            }
        }
    }

    /// The tries that the route gives it, and when they end: with the route's time-out, or the deadline of the request
    /// that the call follows from.
    fn begin(&self, view: &View) -> Result<(Tries, Instant), CallError> {
        let (route, _) = self.find(view)?;
        let limit_bytes = route.limits.body_bytes;
        if self.body.len() > limit_bytes {
            let reason = format!("the body is above the route's max_body_bytes, {limit_bytes}");
            return Err(self.error(CallErrorKind::Refused, reason));
        }
        let inherited = self.head.extensions.get().map(Deadline::at);
        let own = self.started + route.timeout;
        let deadline = inherited.map_or(own, |inherited| inherited.min(own));
        let idempotent = self.head.method.is_idempotent();
        Ok((Tries::new(route.retry, idempotent, self.started, deadline), deadline))
    }

    fn find<'v>(&self, view: &'v View) -> Result<(&'v Route, &'v [TargetView]), CallError> {
        match view.route(&self.name) {
            Some(found) => Ok((&found.route, &found.targets)),
            None if !self.desk.knows_routes() => {
                Err(self.error(CallErrorKind::Unavailable, "the routes are not read yet"))
            }
            None => Err(self.error(CallErrorKind::NoRoute, "there is no route of that name")),
        }
    }

    /// Sends it to a version of the route in force, and counts how that ended.
    async fn try_once(
        &self,
        tries: &Tries,
        spans: &mut TrySpans,
        encoded: &mut Option<(Codec, Encoded)>,
    ) -> Result<Answer, CallError> {
        let links = self.desk.lanes.of(self.find(&self.desk.routes())?.0.codec);
        let link = match links.link() {
            None => links.link_by(tries.deadline()).await,
            link => link,
        };
        // After the wait: a version is chosen and counted as out without giving way in between.
        let view = self.desk.routes();
        let (route, targets) = self.find(&view)?;
        let chosen = route.selection.choose(&route.split, &self.head.headers, None, fastrand::u32(..));
        let Some((place, target)) = chosen.map(|place| (place, &targets[place])) else {
            return Err(self.error(CallErrorKind::NoVersion, "no version of this service takes traffic now"));
        };
        let Some(link) = link else {
            // One that may have run is idempotent if it got here, and worth a longer wait.
            return match tries.may_have_run() {
                true => Ok(Answer::Miss(Miss::NotConnected)),
                false => Err(CallError::given_up(&self.name, Miss::NotConnected, false)),
            };
        };
        let version = route.split.targets()[place].version.as_str();
        let (trace, is_news) =
            self.desk.spans.begin_try(spans, &target.subject, version, &link, tries.made());
        if is_news {
            // The worker's span is this try's child, so it has a message of its own.
            *encoded = None;
        }
        let outgoing = self.prepare(route, target, &link, tries, trace.as_ref(), encoded)?;
        let attempt = target.tries.begin();
        let give_up = || self.desk.budget.borrow_mut().withdraw(Instant::now());
        let answer = link.call(outgoing, give_up).await;
        answer.count(attempt);
        spans.end(&answer);
        Ok(answer)
    }

    /// The message of one try, within the bounds of the link.
    fn prepare(
        &self,
        route: &Route,
        target: &TargetView,
        link: &Link,
        tries: &Tries,
        trace: Option<&TraceFields>,
        encoded: &mut Option<(Codec, Encoded)>,
    ) -> Result<Outgoing, CallError> {
        let now = Instant::now();
        let until = tries.until(now, route.try_timeout);
        let sending = Sending::new(now, until, link.unix_ms_at(now));
        let message = match encoded {
            Some((codec, encoded)) if *codec == route.codec => encoded.stamped(sending),
            other => other.insert((route.codec, self.encode(route.codec, sending, trace)?)).1.first(),
        };
        let bytes = message.bytes();
        link.admit(bytes).map_err(|refused| match refused {
            Refused::TooLarge { most_bytes } => {
                let reason =
                    format!("with its headers it is above the broker's max_payload, {most_bytes} bytes");
                self.error(CallErrorKind::Refused, reason)
            }
            Refused::Full => self.error(CallErrorKind::Unavailable, "this client has as much out as it may"),
        })?;
        let manners = message.manners(route.cancel, tries.is_idempotent());
        Ok(Outgoing {
            subject: target.subject.clone(),
            manners,
            payload: message.payload,
            headers: message.headers,
            bytes,
            deadline: until,
            doubt_from: tries.doubt_from(now, until).filter(|_| manners.signals),
            version: Some(Arc::clone(&target.tries)),
        })
    }

    fn encode(
        &self,
        codec: Codec,
        sending: Sending,
        trace: Option<&TraceFields>,
    ) -> Result<Encoded, CallError> {
        let path = self.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let fields = Told { call: self, trace };
        Encoded::new(codec, sending, &self.head.method, path, &fields, &self.body)
            .map_err(|error| self.error(CallErrorKind::Refused, format!("it cannot be sent: {error}")))
    }

    fn error(&self, kind: CallErrorKind, reason: impl Into<std::borrow::Cow<'static, str>>) -> CallError {
        CallError::new(kind, &self.name, reason)
    }
}

/// Fields that concern a connection that is not there, or that we say ourselves.
const NOT_SENT: [HeaderName; 6] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
];

/// What a worker is to see of a call: its word of a trace stands unless there is ours.
struct Told<'c> {
    call: &'c Carried<'c>,
    trace: Option<&'c TraceFields>,
}

impl Fields for Told<'_> {
    fn bytes(&self) -> usize {
        let Carried { name, head, .. } = self.call;
        let own: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 6).sum();
        own + name.len() + 40 + self.trace.map_or(0, |_| 80)
    }

    fn each<E>(&self, mut put: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let Carried { name: route, head, body, .. } = self.call;
        let is_ours = |name: &HeaderName| self.trace.is_some() && (name == TRACEPARENT || name == TRACESTATE);
        let sent = |(name, _): &(&HeaderName, &HeaderValue)| !NOT_SENT.contains(name) && !is_ours(name);
        for (name, value) in head.headers.iter().filter(sent) {
            put(name.as_str(), value.as_bytes())?;
        }
        if let Some(TraceFields { parent, state }) = self.trace {
            put(TRACEPARENT.as_str(), parent)?;
            if let Some(state) = state {
                put(TRACESTATE.as_str(), state.as_bytes())?;
            }
        }
        put("host", route.as_bytes())?;
        if !body.is_empty() {
            put("content-length", body.len().to_string().as_bytes())?;
        }
        Ok(())
    }
}

fn http_response(response: envelope::Response) -> Response<Body> {
    let envelope::Response { status, headers, trailers, body } = response;
    let mut http = Response::new(Body::new(body).with_trailers(trailers));
    *http.status_mut() = status;
    *http.headers_mut() = headers;
    http
}
