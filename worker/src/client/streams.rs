//! Bodies of calls that fit in no message: what goes up by a stream, and what comes down.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use natsway_caller::stream::activity::{Activity, Watch};
use natsway_caller::stream::download::WatchedDownload;
use natsway_caller::stream::{BrokenOff, Rest, Streamed};
use natsway_routes::table::{Codec, Route, RouteLimits, StreamLimits};
use natsway_wire::content_type::is_grpc;

use super::error::{CallError, CallErrorKind};
use super::going_up::GoingUp;
use super::outbound::NamedRequest;
use super::stream_places::StreamPlace;
use super::thread::ClientThread;
use crate::Body;
use crate::content_type::is_event_stream;
use crate::handler::body::{Begun, CollectError, Collected, begin};

/// How long a body of unknown length may take to end that goes in a message.
const INLINE_PATIENCE: Duration = Duration::from_millis(5);

impl NamedRequest<'_> {
    /// Takes a body: into the message where it fits and ends soon, else to go up by a stream.
    ///
    /// # Errors
    /// It is above a bound of its route, fits in no message and there are no streams, or broke off.
    pub(super) async fn take_body(
        &mut self,
        thread: &ClientThread,
        route: &Route,
        body: Body,
    ) -> Result<(), CallError> {
        let RouteLimits { inline_body_bytes, max_body_bytes } = route.limits;
        let hint = body.size_hint();
        let most = max_body_bytes.unwrap_or(u64::MAX);
        if hint.lower() > most {
            return Err(self.above("max_body_bytes", most));
        }
        let broke_off = |error| CallError::refused(&self.route, format!("its body: {error}"));
        // What is known to fit is waited for.
        let patience = match hint.upper() {
            Some(upper) if upper <= inline_body_bytes as u64 => route.timeout,
            _ => INLINE_PATIENCE,
        };
        let begun = begin(body, inline_body_bytes, patience).await.map_err(broke_off)?;
        let (partial, has_streams) = match begun {
            Begun::Whole(Collected { data, .. }) if data.len() as u64 > most => {
                return Err(self.above("max_body_bytes", most));
            }
            Begun::Whole(Collected { data, .. }) => {
                self.body = data;
                return Ok(());
            }
            Begun::GoesOn(partial) => (partial, thread.dispatcher.tunnels().is_some()),
        };
        if has_streams && route.codec == Codec::Http {
            let idle_timeout = idle_timeout(route.streams, &self.head.headers);
            let place = thread.streams.try_take().ok_or_else(|| self.streams_full(false))?;
            self.up = Some(Box::new(GoingUp::new(partial, place, route, idle_timeout)));
            return Ok(());
        }
        let fits = inline_body_bytes.min(usize::try_from(most).unwrap_or(usize::MAX));
        match partial.collect(fits).await {
            Ok(Collected { data, .. }) => self.body = data,
            Err(CollectError::Body(error)) => return Err(broke_off(error)),
            Err(CollectError::TooLarge) if route.codec == Codec::Native => {
                return Err(self.above("inline_body_bytes", fits as u64));
            }
            Err(CollectError::TooLarge) => {
                let reason = format!(
                    "the body is above the route's inline_body_bytes, {fits}, and this client \
                     takes no tunnels: see ClientOptions::tunnel_listen and tunnel_pipes"
                );
                return Err(CallError::refused(&self.route, reason));
            }
        }
        Ok(())
    }

    /// What was wrong with the call's own body, where it failed for that.
    pub(super) fn own_fault(&self) -> Option<CallError> {
        let GoingUp { progress, max_bytes, .. } = &**self.up.as_ref()?;
        let error = if progress.was_too_large() {
            self.above("max_body_bytes", max_bytes.unwrap_or_default())
        } else if progress.broke_off() {
            self.error(CallErrorKind::Refused, "the request's body broke off")
        } else if progress.timed_out() {
            self.error(CallErrorKind::TimedOut, "the request's body stood still")
        } else {
            return None;
        };
        Some(error.that_may_have_run())
    }

    /// Returns the response whose body goes on by a stream.
    pub(super) fn respond_streamed(
        &mut self,
        thread: &ClientThread,
        streamed: Streamed,
        route: &Route,
    ) -> Result<Response<Body>, CallError> {
        let Streamed { response, rest } = streamed;
        let Rest::Body(rest) = rest else {
            let reason = "it is a connection that nobody asked for";
            return Err(self.error(CallErrorKind::BadReply, reason));
        };
        let (place, activity) = match &mut self.up {
            Some(up) => (up.place.take(), Arc::clone(&up.activity)),
            None => (thread.streams.try_take(), Activity::start()),
        };
        let place = place.ok_or_else(|| self.streams_full(true))?;
        let (first, headers) = (response.body, response.headers);
        let has_content = self.head.method != Method::HEAD
            && !matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if has_content {
            let left = length(&headers).map(|length| length.saturating_sub(first.len() as u64));
            activity.note();
            let idle_timeout = idle_timeout(route.streams, &headers);
            let watch = Watch::new(activity, idle_timeout, route.streams.max_age);
            let rest = WatchedDownload::new(rest, watch, left);
            Body::streamed(first, Held { rest, _place: place })
        } else {
            Body::default()
        };
        let mut http = Response::new(body);
        *http.status_mut() = response.status;
        *http.headers_mut() = headers;
        Ok(http)
    }

    fn above(&self, key: &str, most: u64) -> CallError {
        CallError::refused(&self.route, format!("the body is above the route's {key}, {most}"))
    }

    fn streams_full(&self, has_run: bool) -> CallError {
        let reason = "this client has as many streams open as it may";
        match has_run {
            true => self.error(CallErrorKind::OutcomeUnknown, reason),
            false => self.error(CallErrorKind::Unavailable, reason),
        }
    }
}

/// How long nothing may come in either direction.
fn idle_timeout(limits: StreamLimits, headers: &HeaderMap) -> Duration {
    match is_event_stream(headers) || is_grpc(headers) {
        true => limits.session_idle_timeout(),
        false => limits.body_idle_timeout(),
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).map(HeaderValue::to_str)?.ok()?.parse().ok()
}

/// A response's body with the place of its stream.
struct Held {
    rest: WatchedDownload,
    _place: StreamPlace,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.size_hint()
    }
}
