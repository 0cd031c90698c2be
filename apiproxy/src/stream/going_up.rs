//! Which requests go up by a stream, and what is sent there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Version;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use natsway_caller::stream::activity::{Activity, Watch};
use natsway_caller::stream::upload::WatchedUpload;
use natsway_caller::stream::{Opening, Upload};
use natsway_routes::table::{Codec, Route};
use natsway_wire::content_type::is_grpc;

use super::upgrade::Upgrade;
use crate::call::{Call, GoingUp};
use crate::inspect::not_implemented;
use crate::problem::{Problem, streams_full, too_large};

impl Call<'_> {
    /// Whether a body is not to be waited for: a call by gRPC may go on for as long as both ends
    /// like, and who asks before it sends is told to go on once a worker was found (RFC 9110,
    /// 10.1.1). Where there is no place for one more stream, what is known to fit in a message goes
    /// in one.
    pub(crate) fn goes_up_at_once(&self, route: &Route, body: &Incoming) -> bool {
        if !self.has_streams(route) {
            return false;
        }
        if is_grpc(&self.head.headers) {
            return true;
        }
        let most = route.limits.inline_body_bytes as u64;
        let fits = body.size_hint().exact().is_some_and(|bytes| bytes <= most);
        let has_place = || self.shard.streams.has_place(self.from.client.address);
        self.asks_first() && (!fits || has_place())
    }

    /// Whether the client waits for our word before it sends the body.
    fn asks_first(&self) -> bool {
        self.from.survey.has_expect && self.head.version < Version::HTTP_2
    }

    /// Whether a request was refused for want of a stream whose body may fit in a message: nothing
    /// of it was asked for.
    pub(crate) fn is_unread(&self) -> bool {
        self.was_not_opened && self.asks_first() && !is_grpc(&self.head.headers)
    }

    /// Takes the body of such a request.
    pub(crate) fn take_unread(&mut self) -> Option<Upload> {
        self.was_not_opened = false;
        match self.up.take()?.opening? {
            Opening::Upload { body, .. } => Some(body),
            Opening::Upgrade { .. } => None,
        }
    }

    fn has_streams(&self, route: &Route) -> bool {
        route.codec == Codec::Http
            && route.publish.is_none()
            && self.shard.dispatcher.tunnels().is_some()
    }

    /// Has a body go up by a stream that does not fit in a message.
    pub(crate) fn go_up(
        &mut self,
        route: &Route,
        start: Bytes,
        rest: Incoming,
    ) -> Result<(), Problem> {
        if !self.has_streams(route) {
            return Err(too_large(route.limits.inline_body_bytes as u64));
        }
        let max_bytes = route.limits.max_body_bytes;
        if let Some(most) = max_bytes.filter(|most| start.len() as u64 > *most) {
            return Err(too_large(most));
        }
        let client = self.from.client.address;
        let open = self.shard.streams.try_take(client).map_err(streams_full)?;
        self.from.caller.unread.stream_began();
        let limits = route.streams;
        let idle_timeout = match is_grpc(&self.head.headers) {
            true => limits.session_idle_timeout(),
            false => limits.body_idle_timeout(),
        };
        let activity = Activity::start();
        let watch = Watch::new(Arc::clone(&activity), idle_timeout, limits.max_age);
        let progress = Arc::default();
        let length = rest.size_hint().exact().map(|rest| rest + start.len() as u64);
        let rest = ClientBody { incoming: rest, version: self.head.version };
        let body = WatchedUpload::new(start, rest, max_bytes, watch, Arc::clone(&progress));
        let opening = Opening::Upload { body: body.boxed_unsync(), length };
        self.up = Some(Box::new(GoingUp {
            opening: Some(opening),
            length,
            protocol: None,
            on_upgrade: None,
            progress,
            activity,
            open: Some(open),
        }));
        Ok(())
    }

    /// Has the connection of a request become one to a handler.
    pub(crate) fn go_up_as_connection(
        &mut self,
        route: &Route,
        upgrade: Upgrade,
    ) -> Result<(), Problem> {
        let Upgrade { protocol, on } = upgrade;
        let is_version_2 = self.head.version >= Version::HTTP_2;
        if !self.has_streams(route) || is_version_2 && on.is_none() {
            return Err(not_implemented("protocol upgrades (WebSocket) are not served here"));
        }
        let client = self.from.client.address;
        let open = self.shard.streams.try_take(client).map_err(streams_full)?;
        self.up = Some(Box::new(GoingUp {
            opening: Some(Opening::Upgrade { protocol: protocol.clone() }),
            length: None,
            protocol: Some(protocol),
            on_upgrade: on,
            progress: Arc::default(),
            activity: Activity::start(),
            open: Some(open),
        }));
        Ok(())
    }
}

/// A body that a client sends, whole or visibly not.
struct ClientBody {
    incoming: Incoming,
    version: Version,
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        // When a client of HTTP/2 leaves in some ways, hyper reports the end of its body as if it
        // were whole.
        let is_cut = frame.is_none() && self.version >= Version::HTTP_2;
        if is_cut && !self.incoming.is_end_stream() {
            return Poll::Ready(Some(Err(io::Error::other("the client broke off"))));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
