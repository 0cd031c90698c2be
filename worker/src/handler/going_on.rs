//! Answers and requests that go on by a stream: a response whose body does not end small and soon,
//! a request whose body comes on one.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use natsway_tunnel::body::DrainedBody;
use natsway_tunnel::http2::{HandlerEnd, HeldByUpgrade, REFUSED_WITH, handler_end};
use natsway_wire::content_type::is_grpc;
use natsway_wire::envelope::{NotRun, Reference, Signal, encode_reference, encode_signal};
use natsway_wire::offer::TunnelSecret;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::body::{Begun, Body, BoxError, Collected, Partial, begin};
use super::context::ReaderContext;
use crate::content_type::is_event_stream;
use crate::streams::{End, Offered, Opened, StreamBody, StreamPermit, StreamWriter, stream_body};
use crate::telemetry::metrics::Permit;
use crate::unary::ReplyTo;

/// What of a body goes back with its head, in a message.
const INLINE_BYTES: usize = 64 * 1024;

/// How long a body may take to end that goes back in a message.
const INLINE_PATIENCE: Duration = Duration::from_millis(5);

/// An answer whose body goes on.
pub(super) struct GoingOn<B> {
    pub(super) head: Parts,
    partial: Partial<B>,
    /// What is needed to say where it goes on; nothing where the stream is there.
    way: Option<(TunnelSecret, StreamPermit)>,
}

/// How an answer began.
pub(super) enum Started<B> {
    /// All of it is there.
    Whole(Parts, Collected),
    /// It goes on by a stream.
    GoesOn(Box<GoingOn<B>>),
    /// It goes on, and there is no tunnel, or it is longer than it may be.
    Unreachable(Parts, Partial<B>),
    /// It goes on, and there are as many streams as there may be.
    Full,
}

/// Whether a body is there at once, as most are, and small.
pub(super) fn is_small(body: &impl http_body::Body) -> bool {
    body.size_hint().exact().is_some_and(|bytes| bytes <= INLINE_BYTES as u64)
}

impl<B> GoingOn<B>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    /// An answer that goes back on the stream that is there.
    pub(super) fn from_start(head: Parts, body: B) -> Self {
        let partial = Partial { first: Bytes::new(), beyond: None, body: Box::pin(body) };
        Self { head, partial, way: None }
    }

    /// Reads what goes back with the head, and finds a way for the rest.
    pub(super) async fn begin(
        head: Parts,
        body: B,
        context: &ReaderContext,
        offered: Offered<'_>,
    ) -> Result<Started<B>, B::Error> {
        let patience =
            if is_event_stream(&head.headers) { Duration::ZERO } else { INLINE_PATIENCE };
        let partial = match begin(body, INLINE_BYTES, patience).await? {
            Begun::Whole(collected) => return Ok(Started::Whole(head, collected)),
            Begun::GoesOn(partial) => partial,
        };
        let exact = partial.body.size_hint().exact();
        let is_allowed = exact.is_none_or(|bytes| bytes <= context.max_response_bytes as u64);
        if !is_allowed {
            return Ok(Started::Unreachable(head, partial));
        }
        let Some(mut permit) = context.streams.try_take() else { return Ok(Started::Full) };
        Ok(match context.streams.tunnel(offered, &mut permit).await {
            Some(secret) => {
                let way = Some((secret, permit));
                Started::GoesOn(Box::new(Self { head, partial, way }))
            }
            None => Started::Unreachable(head, partial),
        })
    }

    /// Says by the broker where the body goes on, and sends it there once it is asked for.
    pub(super) async fn refer(
        mut self,
        context: &Arc<ReaderContext>,
        reply: ReplyTo,
        deadline: Instant,
        permit: Permit,
        path: &str,
    ) {
        let Some((secret, _stream)) = self.way.take() else { return };
        if let Some(length) = self.length()
            && !self.head.headers.contains_key(CONTENT_LENGTH)
        {
            self.head.headers.insert(CONTENT_LENGTH, length.into());
        }
        let waiting = context.streams.wait();
        let reference = Reference { token: waiting.token(), secret };
        let (status, headers) = (self.head.status, &self.head.headers);
        let message = match encode_reference(status, headers, &self.partial.first, reference) {
            Ok(message) => message,
            Err(error) => return warn!(path, %error, "response cannot be sent"),
        };
        let _unbound = context.streams.unbind().await;
        if let Err(error) = reply.send(&context.outbox, message, deadline).await {
            return warn!(path, ?error, "reply not sent");
        }
        // It is no request in hand any more, but a stream.
        drop(permit);
        let Some(opened) = waiting.opened().await else {
            return debug!(path, "nobody took the rest of a response");
        };
        let left = self.length().map(|length| length - self.partial.first.len() as u64);
        let (writer, body) = stream_body(left);
        let mut response = Response::new(body);
        if let Some(left) = left {
            response.headers_mut().insert(CONTENT_LENGTH, left.into());
        }
        if opened.respond.send(response).is_ok() {
            self.pump(writer, context, path).await;
        }
    }

    /// Answers on the stream that the request came by.
    pub(super) async fn go_on(
        mut self,
        stream: OpenedRequest,
        context: &ReaderContext,
        path: &str,
    ) {
        let OpenedRequest { respond, upgrade, permit, _unbound } = stream;
        for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE, REFUSED_WITH] {
            self.head.headers.remove(name);
        }
        let mut head = Response::new(()).into_parts().0;
        head.status = self.head.status;
        head.headers = std::mem::take(&mut self.head.headers);
        // What the request was upgraded to is the handler's now.
        let is_accepted = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let upgrade = match upgrade {
            Some(handler) if is_accepted => {
                head.status = StatusCode::OK;
                head.extensions.insert(HeldByUpgrade::new(permit));
                if respond.send(Response::from_parts(head, StreamBody::empty())).is_ok() {
                    handler.accept();
                }
                return;
            }
            upgrade => upgrade,
        };
        let _permit = permit;
        if upgrade.is_some() {
            head.headers.insert(REFUSED_WITH, head.status.as_u16().into());
            head.status = StatusCode::BAD_REQUEST;
        }
        let length = self.length();
        if let Some(length) = length
            && !head.headers.contains_key(CONTENT_LENGTH)
        {
            head.headers.insert(CONTENT_LENGTH, length.into());
        }
        let (writer, body) = stream_body(length);
        if respond.send(Response::from_parts(head, body)).is_ok() {
            self.pump(writer, context, path).await;
        }
    }

    /// What all of it is long, where that is known.
    fn length(&self) -> Option<u64> {
        let Partial { first, beyond, body } = &self.partial;
        let read = first.len() + beyond.as_ref().map_or(0, Bytes::len);
        body.size_hint().exact().map(|left| left + read as u64)
    }

    /// Writes what is left of the body, as it comes, until nobody reads any more or the worker
    /// ends.
    async fn pump(self, writer: StreamWriter, context: &ReaderContext, path: &str) {
        let Partial { beyond, mut body, first } = self.partial;
        let mut left = context.max_response_bytes.saturating_sub(first.len());
        let mut piece = beyond;
        loop {
            if let Some(data) = piece.take() {
                let Some(rest) = left.checked_sub(data.len()) else {
                    return warn!(path, "response broken off: it is above the limit of responses");
                };
                left = rest;
                let written = tokio::select! {
                    biased;
                    written = writer.write(data) => written,
                    () = context.streams.ended() => return end_early(&self.head, writer).await,
                };
                if !written {
                    return;
                }
            }
            let next = tokio::select! {
                biased;
                next = next(body.as_mut()) => next,
                () = writer.closed() => return,
                () = context.streams.ended() => return end_early(&self.head, writer).await,
            };
            match next {
                // Whoever always has more would never come to its end.
                Ok(Next::Piece(_)) if context.streams.have_ended() => {
                    return end_early(&self.head, writer).await;
                }
                Ok(Next::Piece(data)) => piece = Some(data),
                Ok(Next::End(end)) => return writer.end(end).await,
                Err(error) => {
                    return warn!(path, %error, "response broken off: its body failed");
                }
            }
        }
    }
}

/// What comes next of a body.
enum Next {
    Piece(Bytes),
    End(End),
}

async fn next<B>(mut body: Pin<&mut B>) -> Result<Next, BoxError>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    poll_fn(|cx| {
        let frame = std::task::ready!(body.as_mut().poll_frame(cx));
        Poll::Ready(match frame {
            None => Ok(Next::End(End::Whole)),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(mut data) => Ok(Next::Piece(data.copy_to_bytes(data.remaining()))),
                Err(frame) => {
                    let end = frame.into_trailers().map_or(End::Whole, End::Trailers);
                    Ok(Next::End(end))
                }
            },
        })
    })
    .await
}

/// Ends a body that would go on, because its worker leaves, in the way of its kind: who reads
/// events connects again, who calls by gRPC is told, and anything else breaks off visibly.
async fn end_early(head: &Parts, writer: StreamWriter) {
    if is_event_stream(&head.headers) {
        writer.end(End::Whole).await;
    } else if is_grpc(&head.headers) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("14"));
        trailers.insert("grpc-message", HeaderValue::from_static("the worker is leaving"));
        writer.end(End::Trailers(trailers)).await;
    } else {
        writer.leave();
    }
}

/// Says that there is room for a request whose body comes on a stream, and waits for that; puts it
/// in its place. `None` when it does not run.
pub(super) async fn open_request(
    context: &Arc<ReaderContext>,
    request: &mut Request<Body>,
    offered: Offered<'_>,
    deadline: Instant,
) -> Option<OpenedRequest> {
    // On a tunnel there are whole requests alone.
    let reply = offered.reply?;
    let refuse = async |reason| {
        let signal = encode_signal(&Signal::NotRun(reason));
        if let Err(error) = context.outbox.send(reply.clone(), signal, deadline).await {
            debug!(?error, "refusal not sent");
        }
        None
    };
    if !context.streams.is_on() {
        return refuse(NotRun::Unreachable).await;
    }
    let Some(mut permit) = context.streams.try_take() else {
        return refuse(NotRun::Overloaded).await;
    };
    let Some(secret) = context.streams.tunnel(offered, &mut permit).await else {
        return refuse(NotRun::Unreachable).await;
    };
    let waiting = context.streams.wait();
    let unbound = context.streams.unbind().await;
    let ready = encode_signal(&Signal::Ready {
        instance: context.instance.clone(),
        token: waiting.token(),
        secret,
    });
    if let Err(error) = context.outbox.send(reply.clone(), ready, deadline).await {
        debug!(?error, "readiness not said");
        return None;
    }
    let Opened { body, upgrade, respond } = waiting.opened().await?;
    let upgrade = match upgrade {
        Some(stream) => {
            // The end of a WebSocket says by itself whether it is one: its gateway closes it for
            // the client. Any other breaks off with its tunnel.
            let ending = context.streams.ending();
            let is_websocket = (request.headers().get(UPGRADE))
                .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
            let ends = async move {
                match is_websocket {
                    true => ending.cancelled_owned().await,
                    false => std::future::pending().await,
                }
            };
            let (upgrade, handler) = handler_end(stream, ends).await?;
            request.extensions_mut().insert(upgrade);
            Some(handler)
        }
        None => {
            *request.body_mut() = Body::streamed(Bytes::new(), DrainedBody::new(body));
            None
        }
    };
    Some(OpenedRequest { respond, upgrade, permit, _unbound: unbound })
}

/// A request whose stream is there.
pub(super) struct OpenedRequest {
    pub(super) respond: oneshot::Sender<Response<StreamBody>>,
    /// It asked for a connection, not for a response.
    upgrade: Option<HandlerEnd>,
    permit: StreamPermit,
    _unbound: crate::streams::Unbound,
}
